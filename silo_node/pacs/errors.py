"""What goes wrong between this silo and the PACS, sorted by what the reader can do about it.

PacsError               (a SiloError) the run ends; its state says what is missing, and the next run goes on there
├── PacsUnreachable     no answer: the PACS, the network or its TLS; trying again may help       exit code 4
└── PacsDenied          the PACS refuses this silo's sign-in: correct it                         exit code 2
InstanceRefused         one instance is not taken; the others go on

No sentence holds a patient's id, a UID, an address below the PACS's root, or a text that the PACS sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from silo_node.errors import SiloError

REFUSALS: Final[Mapping[str, str]] = {
    "PACS_CUT": "the answer ended before the instance did",
    "PACS_ANSWER": "the answer is not the DICOM file that was asked for",
    "PACS_OTHER": "the answer is another instance, or another patient's, than was asked for",
    "PACS_SLOW": "the answer took longer than `instance_seconds`",
    "PACS_GONE": "the PACS does not have the instance any more",
    "INSTANCE_TOO_BIG": "larger than `max_mb`",
    "OPTED_OUT": "the patient opted out",
    "NOT_CONSENTED": "no consent of the patient permits any use now",
    "NOT_DICOM": "not a DICOM file",
    "CORRUPT": "the header is damaged or cut off",
    "NO_IMAGE": "no image",
}


class PacsError(SiloError):
    """The PACS can't be used now."""


class PacsUnreachable(PacsError):
    """No answer from the PACS."""

    exit_code = 4

    def __init__(self, sentence: str) -> None:
        super().__init__("PACS_UNREACHABLE", sentence)


class PacsDenied(PacsError):
    """401 or 403."""

    exit_code = 2

    def __init__(self, sentence: str) -> None:
        super().__init__("PACS_DENIED", sentence)


class InstanceRefused(SiloError):
    """One instance that is not taken; `code` is one of REFUSALS or of the index's PROBLEMS."""

    def __init__(self, code: str) -> None:
        super().__init__(code, f"An instance was not taken: {REFUSALS.get(code, code)}.")
