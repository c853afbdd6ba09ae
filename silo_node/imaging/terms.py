"""What of a header may be shown: words of the standard. A value that is none of them may be anything, a name among others.

Numbers (rows, columns, frames) are numbers by then; any other text of a header stays in the index and is not shown.
"""

from __future__ import annotations

from typing import Final

OTHER: Final = "other"
"""In place of a value that the standard does not know. No term of the standard is in small letters."""

_DEFINED: Final = (
    "ANN AR ASMT AU BDUS BI BMD CFM CR CT CTPROTOCOL DG DMS DOC DX ECG EEG EMG EOG EPS ES FID GM HC HD IO IOL IVOCT IVUS "
    "KER KO LEN LS M3D MG MR NM OAM OCT OP OPM OPT OPTBSV OPTENF OPV OSS OT PA PLAN POS PR PT PX REG RESP RF RG RTDOSE "
    "RTIMAGE RTINTENT RTPLAN RTRAD RTRECORD RTSEGANN RTSTRUCT RWV SEG SM SMR SR SRF STAIN TEXTUREMAP TG US VA XA "
    "XAPROTOCOL XC"
)
_RETIRED: Final = "AS CD CF CP CS DD DF DM DS EC FA FS LP MA MS OPR ST VF"
MODALITIES: Final = frozenset([*_DEFINED.split(), *_RETIRED.split()])
"""Defined Terms of Modality (0008,0060) in DICOM PS3.3, C.7.3.1.1.1, and the retired ones that it lists, for old files."""


def modality(value: str | None) -> str | None:
    """One of MODALITIES, or `OTHER`; None where the header has none."""
    return value if value is None or value in MODALITIES else OTHER


def transfer_syntax(uid: str) -> str:
    """A transfer syntax that the standard registers (PS3.6, table A-1), as pydicom lists them, or `OTHER`."""
    from pydicom.uid import UID_dictionary

    _, kind, *_ = UID_dictionary.get(uid, ("", ""))
    return uid if kind == "Transfer Syntax" else OTHER
