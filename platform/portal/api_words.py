"""What each address of the node API is for: the hand-written half of its description (openapi.py has the other).

OPERATIONS[method, path below /api/v1] -> Operation. A path may name one kind of a round's messages where the address has
a parameter for it. HEAD is described by GET.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from portal.api_schemas import BYTES, NUMBER, TEXT

JSON = "application/json"
RAW = "application/octet-stream"
PLAIN = "text/plain"


@dataclass(frozen=True)
class Operation:
    """One method of one address.

    Fields: body, answer: a name in SCHEMAS, a schema, or None for nothing. answers: what a 200 means. problems: codes
    beside those that every address of this access has. query: name -> (schema, sentence). headers: of the answer.
    access: signed by an active silo; by a key that enrols; public; or public and, where it is signed, checked.
    """

    summary: str
    answers: str
    answer: str | dict[str, Any] | None = None
    answer_type: str = JSON
    body: str | dict[str, Any] | None = None
    body_type: str = JSON
    problems: tuple[str, ...] = ()
    query: Mapping[str, tuple[dict[str, Any], str]] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    access: Literal["signed", "enrols", "public", "either"] = "signed"
    description: str = ""


SIGNED = {
    "type": "apiKey",
    "in": "header",
    "name": "Signature",
    "description": (
        "RFC 9421 with Ed25519, label `consilium`, over @method, @path, @query and content-digest, with created, nonce, "
        "keyid, alg and tag `consilium-request`; headers Signature, Signature-Input and Content-Digest. A nonce counts "
        "once; clocks may differ by five minutes. The answer is signed by the portal with tag `consilium-answer` and "
        "bound to the request's signature."
    ),
}
_SIGNATURE = ("BAD_SIGNATURE", "UNKNOWN_KEY", "CLOCK_SKEW", "REPLAYED")
_SERVER = ("METHOD", "TOO_LARGE", "TOO_SLOW", "INTERNAL")
ALWAYS: Mapping[str, tuple[str, ...]] = {
    "signed": (*_SIGNATURE, "SILO_PENDING", "SILO_REVOKED", *_SERVER),
    "enrols": (*_SIGNATURE, *_SERVER),
    "either": (*_SIGNATURE, *_SERVER),
    "public": ("METHOD", "INTERNAL"),
}
"""Codes that every address has."""
APPROVAL = (
    "APPROVAL_EXPIRED", "APPROVAL_FORM", "APPROVAL_MISSING", "APPROVAL_NOT_YET", "APPROVAL_OTHER_MANIFEST",
    "APPROVAL_OTHER_POLICY", "APPROVAL_OTHER_SILO", "APPROVAL_REJECTED", "APPROVAL_REVOKED", "APPROVAL_SIGNATURE",
    "APPROVAL_TYPE",
)  # fmt: skip
STATUS: Mapping[str, int] = dict.fromkeys(APPROVAL, 422) | {
    "CHUNKS_MISSING": 409,
    "KEY_TAKEN": 409,
    "MESSAGE_DIFFERS": 409,
    "POLICY_DENIES": 409,
    "SILO_LOG_FORKED": 409,
    "TRUST": 422,
    "VERSION": 409,
}
"""Codes that are not in problems.TITLES -> their status."""

_PIECE = {"chunk": (NUMBER, "Number of the piece, from 0 on.")}
_PIECES = {"X-Chunks": "How many pieces there are."}


def _message(summary: str, content: str, *problems: str, answer: str = "MessageTaken") -> Operation:
    return Operation(
        summary,
        "Stored; the same message again changes nothing.",
        answer,
        body="Envelope",
        problems=("NOT_YOUR_STUDY", *problems, "BAD_MESSAGE"),
        description=f"A DSSE envelope by the silo's key. Its payload has `schema`, `ctx`, `silo`, `roster` and {content}. "
        "With many silos: docs/wire-many.md.",
    )


_STAGE = ("OUT_OF_STAGE", "MESSAGE_DIFFERS")
OPERATIONS: Mapping[tuple[str, str], Operation] = {
    ("GET", "/openapi.json"): Operation("This description.", "OpenAPI 3.1.", {"type": "object"}, access="public"),
    ("POST", "/silo/enrol"): Operation(
        "Enrol a silo with a one-time token.",
        "The key is taken; two people compare its fingerprint now.",
        "Enrolled",
        body="Enrolment",
        problems=("TOKEN", "KEY_TAKEN", "TRUST", "BAD_MESSAGE"),
        access="enrols",
        description="Signed with the key that is being enrolled. The same again is allowed until the admin confirms.",
    ),
    ("PUT", "/silo/trust"): Operation(
        "Send later versions of the hospital's trust.json: whose keys decide there.",
        "The newest is registered.",
        "TrustTaken",
        body="TrustVersions",
        problems=("TRUST", "VERSION", "BAD_MESSAGE"),
        description="Oldest first; each is signed by the thresholds of the one before and its own. Known ones are passed over.",
    ),
    ("PUT", "/silo/key"): Operation(
        "The silo's next key, vouched for by its present one.",
        "The new key is the silo's; the old one is refused from now on.",
        "KeyTaken",
        body="Envelope",
        problems=("OUT_OF_STAGE", "ROUND_OPEN", "KEY_TAKEN", "BAD_MESSAGE"),
        description="Payload type application/vnd.consilium.key-rotation+json, signed by both keys. The same again, in a "
        "request by the new key, changes nothing.",
    ),
    ("PUT", "/silo/policy"): Operation(
        "Send the hospital's data-use policy, signed by its stewards.",
        "The policy is in force.",
        "PolicyTaken",
        body="Envelope",
        problems=("VERSION", "BAD_MESSAGE"),
        description="Payload type application/vnd.consilium.policy+json. Versions only grow.",
    ),
    ("GET", "/silo/assignments"): Operation(
        "What the silo has to do; waits for news.",
        "The list, at once where `after` is not the present version, else when it changes or the time is over.",
        "Assignments",
        problems=("BAD_REQUEST",),
        query={
            "wait": ({"type": "integer", "minimum": 0, "maximum": 999}, "Seconds to wait for news; at most 55 count."),
            "after": (TEXT, "The version that the silo has; left out, the list is complete and comes at once."),
        },
    ),
    ("GET", "/studies/{study}/manifest"): Operation(
        "The manifest to decide on, byte for byte.",
        "Canonical JSON.",
        "Manifest",
        problems=("NOT_YOUR_STUDY",),
        query={"digest": (TEXT, "Digest of an earlier version; left out, the newest.")},
        headers={"X-Manifest-Digest": "Digest of these bytes."},
    ),
    ("PUT", "/studies/{study}/approval"): Operation(
        "Send a steward's signed decision: approve, reject or revoke.",
        "The decision is stored and in the log.",
        "DecisionTaken",
        body="Envelope",
        problems=("NOT_YOUR_STUDY", "OUT_OF_STAGE", "POLICY_DENIES", "BAD_MESSAGE", *APPROVAL),
        description="Payload type application/vnd.consilium.approval+json.",
    ),
    ("GET", "/models/{digest}"): Operation(
        "A model that the silo needs for a round that it was asked to take part in.",
        "ModelState bytes, or the piece of 4 MiB that `chunk` names.",
        BYTES,
        RAW,
        problems=("NOT_YOUR_STUDY", "NOT_FOUND", "BAD_REQUEST"),
        query=_PIECE,
        headers={**_PIECES, "X-Size": "Bytes of the whole model."},
        description="Without `chunk` only models of at most 64 MiB.",
    ),
    ("POST", "/rounds/{round}/refusal"): _message(
        "Refuse a round, with reasons.", "`reasons`: [{code, sentence}]", *_STAGE
    ),
    ("POST", "/rounds/{round}/keys"): _message("The silo's key of this round.", "`hpke_public`", *_STAGE),
    ("POST", "/rounds/{round}/row"): _message(
        "With many silos: open the nonce that draws the silo's neighbours.", "`nonce`", *_STAGE
    ),
    ("POST", "/rounds/{round}/bundles"): _message(
        "Shares and seeds, sealed for each partner.", "`boxes`: silo -> base64", *_STAGE
    ),
    ("POST", "/rounds/{round}/ready"): _message(
        "The silo has all its boxes.", "`list_digest`, `list_box`, `self_hash`, `list_hash`, `nonces`, `senders`", *_STAGE
    ),
    ("POST", "/rounds/{round}/update"): _message(
        "The masked update is complete.", "`ready_set`, `members`, `chunks`: digests", *_STAGE, "CHUNKS_MISSING",
        "CHUNK_DIFFERS",
    ),
    ("POST", "/rounds/{round}/list"): _message(
        "Sign the set of silos whose updates are summed.", "`members`, `ready_set`, `updates`, `nonce`", *_STAGE
    ),
    ("POST", "/rounds/{round}/sketch"): _message(
        "The sketch of the silo's update, where the study has the sketch check.", "`first_list`, `nonces`, `sums`", *_STAGE
    ),
    ("POST", "/rounds/{round}/second"): _message(
        "Sign whom the sketch check leaves in the sum.", "`members`, `first_list`, `sketches`", *_STAGE
    ),
    ("POST", "/rounds/{round}/unmask"): _message(
        "Reveal shares; never both kinds for one silo.", "`self_shares`, `list_shares`", *_STAGE
    ),
    ("POST", "/rounds/{round}/nonce"): _message(
        "Open the second nonce, once the sum is published.", "`sum`, `nonce`", *_STAGE
    ),
    ("POST", "/rounds/{round}/check"): _message(
        "The check word on the silo's own update.", "`sum`, `nonces`, `word`", *_STAGE
    ),
    ("POST", "/rounds/{round}/state"): _message(
        "Sign the digest of the next model; in the first round with the tensor table.", "`state`, `table`", *_STAGE
    ),
    ("POST", "/rounds/{round}/metrics"): _message(
        "The hospital's own AUC, where its policy shares it.", "`auc_micro`: millionths or null", *_STAGE
    ),
    ("POST", "/rounds/{round}/heartbeat"): _message(
        "The silo lives; ten seconds without one and it counts as lost.", "`stage`, `at`", answer="HeartbeatTaken"
    ),
    ("GET", "/rounds/{round}/entries"): Operation(
        "With many silos: the entries of partners whose keys the hospital compared.",
        "At most 64 at once, each with its proof.",
        "Entries",
        problems=("NOT_YOUR_STUDY", "OUT_OF_STAGE", "BAD_MESSAGE"),
        query={"set": (TEXT, "ready or list."), "silos": (TEXT, "Names, with commas between.")},
    ),
    ("GET", "/rounds/{round}/update"): Operation(
        "Which pieces of the silo's update are stored.", "Their numbers.", "Pieces", problems=("NOT_YOUR_STUDY",)
    ),
    ("PUT", "/rounds/{round}/update/{index}"): Operation(
        "Send one piece of the masked update.",
        "Stored; the same bytes again change nothing.",
        "PieceTaken",
        body=BYTES,
        body_type=RAW,
        problems=("NOT_YOUR_STUDY", "OUT_OF_STAGE", "CHUNK_DIFFERS", "BAD_MESSAGE", "DISK_FULL"),
        description="Up to 1,048,576 little-endian words of the manifest's word_bits; the last piece: 64-bit words, the tail.",
    ),
    ("GET", "/rounds/{round}/sum"): Operation(
        "A piece of the published sum.",
        "Raw little-endian words; the last piece is the tail.",
        BYTES,
        RAW,
        problems=("NOT_YOUR_STUDY", "OUT_OF_STAGE", "NOT_FOUND", "BAD_REQUEST"),
        query=_PIECE,
        headers=_PIECES,
    ),
    ("GET", "/log/checkpoint"): Operation(
        "The newest signed checkpoint of the portal's log.",
        "C2SP tlog-checkpoint as a signed note.",
        TEXT,
        PLAIN,
        problems=("NOT_FOUND",),
        access="either",
    ),
    ("GET", "/log/tile/{rest}"): Operation(
        "A hash tile or an entry bundle of the portal's log.",
        "C2SP tlog-tiles; never changes.",
        BYTES,
        RAW,
        problems=("NOT_FOUND",),
        access="either",
    ),
    ("POST", "/log/silo-checkpoint"): Operation(
        "Anchor the silo's own log in the portal's.",
        "The checkpoint is a leaf of the portal's log.",
        "EntryWritten",
        body="Checkpoint",
        problems=("SILO_LOG_FORKED", "BAD_MESSAGE"),
    ),
}  # fmt: skip
