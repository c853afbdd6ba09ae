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
# Modalities of the images that may be used, such as ["CR", "DX"]; empty: all. Any other image is listed with its reason.
# modalities = []
# Patients who said no (PatientID,date): by default opt_out.csv in this folder or beside the images.
# opt_out = "opt_out.csv"
# PEM file with the hospital's own certificate authorities, where a proxy opens TLS.
# ca_bundle = "hospital-ca.pem"
# The proxy on the way to the portal, such as "http://proxy.hospital.example:3128"; HTTPS_PROXY and NO_PROXY win.
# proxy = ""
# Keep a copy of every message that leaves, in sent/, to look at.
# keep_copies = false

# Talk to a portal on another machine without TLS: anybody on the way could read the requests. Leave it.
# unsafe_plain_http = false

[broker]
# A Redis or Valkey of your own: redis://, rediss:// or redis+socket://. Empty: this silo starts its own.
# url = ""

[training]
# CPU threads of one training.
threads = 1
# "cpu", "cuda", "cuda:1"; auto: the first graphics card, or the CPU.
# device = "auto"
# How far training yields to everything else on this machine, 0 to 19.
# nice = 5
# Networks that may train here, such as ["densenet"]; empty: all that the software knows.
# networks = []
# A network that reads no image, for measuring only.
allow_constant = false

[hours]
# When this machine may train, in its local time, such as "20:00-06:00"; empty: always.
# train = ""

[limits]
# How old the index of the images may get before the folder is read again, minutes; how often new files are looked for, seconds.
# scan_minutes = 60
# watch_seconds = 60.0
# How old the last good reading of the opt-out list may get before rounds are refused, hours (24 at most).
# opt_out_hours = 24
# Free disk space below which rounds are refused, MB.
# free_mb = 200
# Decoded pictures, GB; copies of what left, MB; each log, MB. The oldest go first.
# cache_gb = 50
# sent_mb = 5000
# logs_mb = 100
# How long one question waits at the portal, one request is tried again, and between two signs of life in a round, seconds.
# poll = 25
# retry = 60
# heartbeat = 3.0
# Age of this silo's key from which on `silo doctor` and the node's page ask for a new one (`silo key rotate`), days.
# key_days = 365

[page]
# The node's own page, for this machine only. Other machines reach it with a certificate and an internal name alone.
# off = false
# host = "127.0.0.1"
# port = 8765
# name = ""
# tls_cert = ""
# tls_key = ""
# File whose first line is the token with which the hospital's Prometheus reads /metrics; docs/running-for-months.md.
# metrics_token_file = ""

[label_source]
# "csv": labels.csv. "sr": DICOM structured reports beside the images; the codes are those of such a report. Any other: what
# an installed package brings (docs/developer.md).
# source = "csv"
# finding = ""
# present = "SCT:52101004"
# absent = "SCT:2667000"

[consent]
# Patients' consents in FHIR R4: "folder", "file" or "server"; docs/consent.md. Empty: only the opt-out list is looked at.
# source = ""
# path = ""
# url = ""
# token_file = ""
# identifier_system = ""
# map = ""
# max_age_hours = 24
# codes = ["urn:oid:2.16.840.1.113883.3.1937.777.24.5.3|2.16.840.1.113883.3.1937.777.24.5.3.8"]
# purposes = ["http://terminology.hl7.org/CodeSystem/v3-ActReason|HRESCH"]

# Images from the PACS: take the # away from a table's name too; docs/pacs.md has all their settings.
# [dicomweb]
# url = "https://pacs.hospital.example/dicom-web"
# query = {{Modality = "CR"}}
#
# [receiver]
# port = 11112
# ae_title = "SILO"
# peers = [{{ae_title = "PACS", host = "10.0.0.5"}}]
# instance_seconds = 300
# tls_cert = "receiver.pem"
# tls_key = "receiver.key"
# tls_ca = "pacs-ca.pem"
"""


def first_settings(*, name: str, portal: str, data: str) -> bytes:
    """The file's content. Raises: UsageError for a value with control characters."""
    return _TEMPLATE.format(name=_quoted(name), portal=_quoted(portal), data=_quoted(data)).encode()


def _quoted(text: str) -> str:
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise UsageError(f"{text!r} holds a control character, which no setting may: type it anew")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
