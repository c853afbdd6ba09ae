"""Bodies of the node API as JSON Schema, for the API's description (openapi.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from portal.problems import TITLES

DIGEST = {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"}
BASE64 = {"type": "string", "contentEncoding": "base64"}
BYTES: dict[str, Any] = {}
"""Raw bytes: OpenAPI 3.1 says nothing about them but the media type."""
TEXT = {"type": "string"}
NUMBER = {"type": "integer", "minimum": 0}
TIME = {"type": "string", "format": "date-time"}
ENVELOPES = {"type": "array", "items": {"$ref": "#/components/schemas/Envelope"}}
SILOS = {"type": "array", "items": TEXT}


def obj(
    title: str, members: Mapping[str, Any], *, optional: tuple[str, ...] = (), more: bool = False
) -> dict[str, Any]:
    """An object in which all members but `optional` are required; `more`: others may stand beside them."""
    return {
        "type": "object",
        "description": title,
        "properties": dict(members),
        "required": [name for name in members if name not in optional],
        "additionalProperties": more,
    }


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _task(kind: str, title: str, members: Mapping[str, Any]) -> dict[str, Any]:
    return obj(title, {"kind": {"const": kind}, **members})


def _or_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"anyOf": [dict(schema), {"type": "null"}]}


_REASON = obj("Why.", {"code": TEXT, "sentence": TEXT}, more=True)

_CLAIM = obj("A set of silos, as it is stated.", {"root": DIGEST, "size": NUMBER})
_LEAF = obj("A silo's entry in a set, and its inclusion proof.",
            {"silo": TEXT, "value": _or_null(TEXT), "path": {"type": "array", "items": BASE64}})  # fmt: skip
_LEAVES = {"type": "array", "items": _LEAF}
_SET = {"claim": _CLAIM, "leaves": _LEAVES}
_NEIGHBOUR = obj("A neighbour: its entry in the roster, its key, and its row where it drew the silo.",
                 {"leaf": _LEAF, "keys": _or_null(_ref("Envelope")), "row": _or_null(_ref("Envelope"))})  # fmt: skip
_PARCEL = obj("A box, and the hashes of the shares in it.",
              {"box": BASE64, "hashes": _or_null({"type": "array", "items": DIGEST})})  # fmt: skip
_OPENED = obj("The opened nonces: silo -> [digest of its ready, nonce], and the values in R of the others.",
              {"nonces": {"type": "object", "additionalProperties": {"type": "array", "items": TEXT}},
               "others": {"type": "object", "additionalProperties": DIGEST}})  # fmt: skip
_MANY = [
    _task("roster", "With many silos: the roster's root and the silo's own entry.",
          {"round": TEXT, "claim": _CLAIM, "leaf": _LEAF}),
    _task("neighbours", "With many silos: whom the silo drew, and who drew it.",
          {"round": TEXT, "neighbours": {"type": "array", "items": _NEIGHBOUR}}),
    _task("bundles", "With many silos: the neighbours' boxes for this silo.",
          {"round": TEXT, "parcels": {"type": "object", "additionalProperties": _PARCEL}}),
    _task("ready", "With many silos: the set R by its root, and the neighbours' entries.", {"round": TEXT, **_SET}),
    _task("list", "With many silos: the list by its root, and the updates of those who drew the silo.",
          {"round": TEXT, **_SET, "updates": ENVELOPES}),
    _task("unmask", "With many silos: the signatures of the silo's own row.", {"round": TEXT, "lists": ENVELOPES}),
    _task("sum", "With many silos: the published sum, and the list for a silo that did not sign it in time.",
          {"round": TEXT, "sum": _ref("Sum"), "portal_signature": _ref("Envelope"),
           "missed": _or_null(obj("The list.", {**_SET, "lists": ENVELOPES}))}),
    _task("check", "With many silos: the opened nonces of all.", {"round": TEXT, "opened": _OPENED}),
]  # fmt: skip
"""What is asked where each silo masks with a neighbourhood."""

SCHEMAS: dict[str, Any] = {
    "Entries": obj("Entries of a set, with their proofs.", {"leaves": _LEAVES}),
    "Problem": {
        **obj(
            "RFC 9457. Read `code`; `detail` is for people.",
            {
                "type": {"type": "string", "format": "uri"},
                "title": TEXT,
                "status": {"type": "integer"},
                "detail": TEXT,
                "code": {**TEXT, "description": f"Among others: {', '.join(TITLES)}."},
            },
        )
    },
    "Envelope": obj(
        "DSSE. The payload is canonical JSON; the payload type says which.",
        {
            "payloadType": TEXT,
            "payload": BASE64,
            "signatures": {
                "type": "array",
                "minItems": 1,
                "items": obj(
                    "One signature; by a passkey with what the authenticator and the browser said.",
                    {
                        "keyid": {**TEXT, "pattern": "^[0-9a-f]{64}$"},
                        "sig": BASE64,
                        "authenticator_data": BASE64,
                        "client_data": BASE64,
                    },
                    optional=("authenticator_data", "client_data"),
                ),
            },
        },
    ),
    "Enrolment": obj(
        "The token from the network's admin, and the silo's keys. The request is signed with `public`.",
        {
            "token": TEXT,
            "public": BASE64,
            "trust": _ref("Envelope"),
            "log_vkey": {**TEXT, "maxLength": 300},
            "witness_vkey": {**TEXT, "maxLength": 300},
            "version": TEXT,
        },
    ),
    "Enrolled": obj(
        "Pending until the admin has compared the fingerprint; the portal's keys are for pinning.",
        {
            "silo": TEXT,
            "organisation": TEXT,
            "state": {"enum": ["pending", "active"]},
            "portal": obj("Its keys.", {"name": TEXT, "answer_public": BASE64, "log_vkey": TEXT}),
        },
    ),
    "Assignments": obj(
        "Everything that is open for the silo, derived from the database; send `version` back as `after`.",
        {"version": TEXT, "now": TIME, "assignments": {"type": "array", "items": _ref("Assignment")}},
    ),
    "Assignment": {
        "oneOf": [
            _task("study", "A study waits for this hospital's decision.",
                  {"study": TEXT, "manifest": DIGEST, "title": TEXT, "state": TEXT}),
            _task("other_key", "A study that is not over names another key for this silo than it has now, so it is not asked.",
                  {"study": TEXT, "manifest": DIGEST, "title": TEXT, "state": TEXT}),
            _ref("Announcement"),
            _task("roster", "The keys of all who take part.", {"round": TEXT, "keys": ENVELOPES}),
            _task("bundles", "Boxes sealed for this silo.",
                  {"round": TEXT, "boxes": {"type": "object", "additionalProperties": BASE64}}),
            _task("ready", "Who is ready: the set R.", {"round": TEXT, "ready": ENVELOPES}),
            _task("list", "Whose updates came: sign that set.", {"round": TEXT, "updates": ENVELOPES}),
            _task("sketch", "All lists that came in time: show the sketch.", {"round": TEXT, "lists": ENVELOPES}),
            _task("second", "All sketches: sign whom the study's rule leaves in.", {"round": TEXT, "sketches": ENVELOPES}),
            _task("unmask", "t signatures of the set: reveal shares. `seconds` is empty without a sketch check.",
                  {"round": TEXT, "lists": ENVELOPES, "seconds": ENVELOPES}),
            _task("sum", "The sum is published: open the second nonce for it, then fetch the sum.",
                  {"round": TEXT, "sum": _ref("Sum"), "portal_signature": _ref("Envelope"), "lists": ENVELOPES,
                   "seconds": ENVELOPES}),
            _task("check", "The opened nonces: send the check word.", {"round": TEXT, "nonces": ENVELOPES}),
            _task("state", "All check words: verify the sum, make the next model and sign its digest.",
                  {"round": TEXT, "checks": ENVELOPES}),
            *_MANY,
            _task("closed", "The round is over.",
                  {"round": TEXT, "outcome": {"enum": ["finished", "failed"]}, "reason": _or_null(_REASON)}),
            _task("paused", "No further round until somebody resumes the study.",
                  {"study": TEXT, "reason": _or_null(_REASON)}),
            _task("completed", "The study is over.", {"study": TEXT, "model": _or_null(DIGEST)}),
        ]
    },
    "Announcement": _task(
        "announce",
        "A round begins. The silo checks approval, proof, policy, consent and the model's signatures itself.",
        {
            "round": TEXT,
            "study": TEXT,
            "manifest": DIGEST,
            "number": NUMBER,
            "attempt": {"type": "integer", "minimum": 1},
            "model": _or_null(DIGEST),
            "purpose": {"enum": ["initial", "train", "evaluate"]},
            "deadline": TIME,
            "record": BASE64,
            "proof": {**TEXT, "description": "C2SP tlog-proof of the record."},
            "states": ENVELOPES,
            "model_length": NUMBER,
            "participants_approved": SILOS,
        },
    )
    | {"additionalProperties": True},
    "Sum": obj(
        "Facts of a published sum; its pieces are read from rounds/{round}/sum.",
        {"digest": DIGEST, "words": NUMBER, "tail": NUMBER, "chunks": NUMBER, "members": SILOS, "total_weight": NUMBER},
    ),
    "TrustVersions": obj(
        "Versions of the hospital's trust.json after the first.",
        {"versions": {"type": "array", "minItems": 1, "maxItems": 64, "items": _ref("Envelope")}},
    ),
    "TrustTaken": obj("The trust.json is registered.", {"trust": DIGEST, "version": {"type": "integer", "minimum": 1}}),
    "KeyTaken": obj("The silo's key.", {"key": TEXT, "state": TEXT}),
    "PolicyTaken": obj("The policy is in force.", {"policy": DIGEST, "version": {"type": "integer", "minimum": 1}}),
    "DecisionTaken": obj(
        "The decision is stored. `complete` is false while more people of the hospital must sign.",
        {
            "approval": DIGEST,
            "decision": {"enum": ["approve", "reject", "revoke"]},
            "complete": {"type": "boolean"},
            "entry": {"type": "string", "format": "uuid"},
        },
    ),
    "MessageTaken": obj(
        "The round's stage now; `new` is false for a message that was there already.",
        {"stage": TEXT, "new": {"type": "boolean"}},
    ),
    "HeartbeatTaken": obj("The round's stage now.", {"stage": TEXT}),
    "PieceTaken": obj("The piece is stored.", {"chunk": NUMBER, "digest": DIGEST, "new": {"type": "boolean"}}),
    "Pieces": obj("Pieces that are stored.", {"chunks": {"type": "array", "items": NUMBER}}),
    "Checkpoint": obj("A signed checkpoint of the silo's own log.", {"note": TEXT}),
    "EntryWritten": obj("Its entry in the portal's log.", {"entry": {"type": "string", "format": "uuid"}}),
    "Manifest": {
        "type": "object",
        "description": "The study, canonical JSON: exactly the bytes that the hospital approves.",
    },
}  # fmt: skip
