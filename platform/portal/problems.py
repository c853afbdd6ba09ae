"""Refusals: what services raise, and how a node gets to read them (RFC 9457 problem documents).

Refused            the caller asked for what the rules do not allow; code for machines, sentence for people
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from django.http import HttpResponse

PROBLEM_TYPE = "application/problem+json"

# code -> (HTTP status, title). A code that is not listed answers 409: the request was understood and is refused.
TITLES: Mapping[str, tuple[int, str]] = {
    "BAD_SIGNATURE": (401, "The signature of the request is not valid"),
    "UNKNOWN_KEY": (401, "No silo has this key"),
    "CLOCK_SKEW": (401, "The clocks of silo and portal differ too much"),
    "SIGN_IN": (401, "Sign in first"),
    "REPLAYED": (409, "This request was received before"),
    "SILO_PENDING": (403, "The silo's fingerprint is not confirmed yet"),
    "SILO_REVOKED": (403, "The silo's key was revoked"),
    "ROLE": (403, "Your role does not allow this"),
    "SECOND_FACTOR": (403, "This role needs a second factor"),
    "OWN_STUDY": (403, "Nobody decides on their own study"),
    "NOT_FOUND": (404, "There is nothing here"),
    "NOT_YOUR_STUDY": (404, "This silo has no such study"),
    "METHOD": (405, "This address does not take this method"),
    "OUT_OF_STAGE": (409, "Not now"),
    "ROUND_OPEN": (409, "The silo takes part in a round"),
    "CHUNK_DIFFERS": (409, "Another chunk is stored under this number"),
    "TOKEN": (403, "The enrolment token is not valid"),
    "FINGERPRINT": (409, "The fingerprint is another one"),
    "TOO_LARGE": (413, "The body is too large"),
    "TOO_SLOW": (408, "The body took too long"),
    "BAD_MESSAGE": (422, "The message is not valid"),
    "BAD_REQUEST": (400, "The request is malformed"),
    "BUSY": (503, "The portal is busy"),
    "DISK_FULL": (507, "The portal's disk is full"),
    "INTERNAL": (500, "The portal failed"),
}
_CODE_OF_STATUS = {400: "BAD_REQUEST", 403: "ROLE", 404: "NOT_FOUND", 405: "METHOD", 413: "TOO_LARGE", 503: "BUSY"}


class Refused(Exception):
    """An act that the rules refuse.

    Parameters: code, in capitals, for machines and for the evidence log; sentence, for the person who reads it: what is
    wrong and what would change the answer (never an identity value); status, where it is not that of the code.
    `recorded`: whether the evidence log has it already.
    """

    def __init__(self, code: str, sentence: str, *, status: int | None = None) -> None:
        super().__init__(f"{code}: {sentence}")
        self.code = code
        self.sentence = sentence
        self.status = status or TITLES.get(code, (409, ""))[0]
        self.recorded = False


def document(*, code: str, detail: str, status: int | None = None) -> tuple[int, bytes]:
    """A problem document (RFC 9457) with our member `code`: (HTTP status, body)."""
    known_status, title = TITLES.get(code, (409, "Refused"))
    status = status or known_status
    content: dict[str, Any] = {
        "type": f"urn:consilium:problem:{code.lower().replace('_', '-')}",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
    }
    return status, json.dumps(content, ensure_ascii=False).encode("utf-8")


def answer(refused: Refused) -> HttpResponse:
    """The problem document of a refusal as a Django response."""
    status, body = document(code=refused.code, detail=refused.sentence, status=refused.status)
    return HttpResponse(body, status=status, content_type=PROBLEM_TYPE)


def answer_for_status(status: int) -> HttpResponse:
    """A problem document for an error that Django itself found (no such address, body too large, an exception)."""
    code = _CODE_OF_STATUS.get(status, "INTERNAL" if status >= 500 else "BAD_REQUEST")
    detail = (
        "The portal could not answer. The reason is in its own log; try again later."
        if status >= 500
        else "See the API's description for what this address takes."
    )
    status, body = document(code=code, detail=detail, status=status)
    return HttpResponse(body, status=status, content_type=PROBLEM_TYPE)
