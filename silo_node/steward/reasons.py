"""From any error of a round to the reason that goes to the portal: a code, and a sentence that names nobody."""

from __future__ import annotations

import re
import unicodedata

from protocol.messages import Reason
from protocol.secure_aggregation.errors import ProtocolViolation
from silo_node.errors import SiloError

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")


def reason(error: Exception) -> Reason:
    """Code and sentence of an error of ours; of a foreign one only its kind, because its text may quote what it read."""
    if isinstance(error, (SiloError, ProtocolViolation)):
        return clean(error.code, error.sentence)
    return clean("ROUND_FAILED", f"The round failed at this silo ({type(error).__name__}); its own log says where.")


def plain(text: str) -> str:
    """Somebody else's text as messages, files and terminals can hold it: at most 1999 characters, NFC, no control ones."""
    whole = text.encode("utf-8", "replace").decode()
    return unicodedata.normalize("NFC", _CONTROL.sub(" ", whole)).strip()[:1999]


def clean(code: str, sentence: str) -> Reason:
    """A reason in the form that messages allow."""
    name = re.sub(r"[^A-Z0-9_]", "_", code.upper())[:64]
    if not name[:1].isalpha():
        name = f"CODE_{name}"[:64]
    text = plain(sentence) or "No reason was given."
    return Reason(name, text if text.endswith((".", "!", "?")) else text + ".")
