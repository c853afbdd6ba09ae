"""The first silo.toml: what was asked for, and every other setting with its default, commented out and explained."""

from __future__ import annotations

from typing import Final

from silo_node.errors import UsageError

_TEMPLATE: Final = """\
# The settings of this silo. A line with # in front shows the default: take the # away to change it, then start `silo run` again.
# Paths are absolute, or relative to this folder. A setting that does not exist is refused at start, so a typing error shows.

# This silo's name in the network, as the portal's admin gave it.
name = {name}
# The portal: https, host and port only.
portal = {portal}
# The folder with the DICOM files. It is only read.
data = {data}
# Who has which finding: by default labels.csv beside the images.
# labels = "labels.csv"
# Patients who said no (PatientID,date): by default opt_out.csv in this folder or beside the images.
# opt_out = "opt_out.csv"
# PEM file with the hospital's own certificate authorities, where a proxy opens TLS.
# ca_bundle = "hospital-ca.pem"
# Keep a copy of every message that leaves, in sent/, to look at.
# keep_copies = false

[broker]
# A Redis or Valkey of your own: redis://, rediss:// or redis+socket://. Empty: this silo starts its own.
# url = ""

[training]
# CPU threads of one training.
threads = 1
# Networks that may train here, such as ["densenet"]; empty: all that the software knows.
# networks = []
# A network that reads no image, for measuring only.
allow_constant = false

[limits]
# How old the index of the images may get before the folder is read again, minutes.
# scan_minutes = 60
# How old the last good reading of the opt-out list may get before rounds are refused, hours (24 at most).
# opt_out_hours = 24
# Free disk space below which rounds are refused, MB.
# free_mb = 200
# How long one request to the portal is tried again, seconds.
# retry = 60
"""


def first_settings(*, name: str, portal: str, data: str) -> bytes:
    """The file's content. Raises: UsageError for a value with control characters."""
    return _TEMPLATE.format(name=_quoted(name), portal=_quoted(portal), data=_quoted(data)).encode()


def _quoted(text: str) -> str:
    if any(ord(character) < 32 for character in text):
        raise UsageError("a setting may not hold control characters")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
