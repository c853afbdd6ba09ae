"""Status in words: for every state that a page can show, its word, its tone and its sign.

One table for the whole portal, so that one state never has two words. A state that is not in the table is shown as it is,
in the neutral tone: a new state must not look like a good or a bad one.
"""

from dataclasses import dataclass

TONES = ("good", "warn", "bad", "wait", "live")


@dataclass(frozen=True)
class Word:
    """`word`: what a person reads. `tone`: one of TONES. `icon`: a name of components/icon.html."""

    word: str
    tone: str
    icon: str


GOOD = ("good", "check")
WARN = ("warn", "question")
BAD = ("bad", "cross")
WAIT = ("wait", "clock")
LIVE = ("live", "turn")
OFF = ("wait", "minus")

_TABLE: dict[str, dict[str, tuple[str, tuple[str, str]]]] = {
    "study": {
        "draft": ("draft", ("wait", "pen")),
        "submitted": ("waiting for the network", WARN),
        "approved": ("waiting for hospitals", ("warn", "clock")),
        "active": ("active", GOOD),
        "running": ("running", LIVE),
        "paused": ("paused", ("warn", "pause")),
        "completed": ("completed", GOOD),
        "released": ("released", GOOD),
        "rejected": ("rejected", BAD),
        "withdrawn": ("withdrawn", OFF),
        "expired": ("expired", OFF),
        "stopped": ("stopped", BAD),
    },
    "silo": {
        "invited": ("invited", WAIT),
        "pending": ("fingerprint to confirm", WARN),
        "active": ("active", GOOD),
        "revoked": ("revoked", BAD),
    },
    "key": {
        "in force": ("in force", GOOD),
        "to confirm": ("to confirm", WARN),
        "rotated": ("followed by the next", OFF),
        "revoked": ("revoked", BAD),
        "replaced": ("invited again", OFF),
    },
    "contact": {
        "in touch": ("in touch", GOOD),
        "silent": ("silent", WARN),
        "never": ("not yet", WAIT),
        "closed": ("closed", OFF),
    },
    "match": {
        "PERMIT": ("permits", GOOD),
        "REVIEW": ("a person must look", WARN),
        "DENY": ("refuses", BAD),
        "NONE": ("no policy yet", WAIT),
    },
    "decision": {
        "approve": ("approved", GOOD),
        "approved": ("approved", GOOD),
        "reject": ("rejected", BAD),
        "rejected": ("rejected", BAD),
        "revoke": ("withdrawn", BAD),
        "waiting": ("waiting", WAIT),
        "not asked": ("not asked yet", OFF),
        "lapsed": ("lapsed", WARN),
        "key changed": ("key changed", WARN),
        "denied": ("refused by its policy", BAD),
    },
    "stage": {
        "keys": ("exchanging keys", LIVE),
        "bundles": ("sharing secrets", LIVE),
        "row": ("drawing neighbours", LIVE),
        "ready": ("agreeing who is in", LIVE),
        "update": ("training and upload", LIVE),
        "list": ("agreeing on the list", LIVE),
        "sketch": ("showing sketches", LIVE),
        "second": ("leaving out who is out of bounds", LIVE),
        "unmask": ("taking the masks off", LIVE),
        "sum": ("summing", LIVE),
        "nonce": ("binding the portal to the sum", LIVE),
        "check": ("checking the sum", LIVE),
        "state": ("agreeing on the model", LIVE),
        "finished": ("finished", GOOD),
        "failed": ("failed", BAD),
    },
    "sum": {
        "open": ("being checked", LIVE),
        "verified": ("verified by all", GOOD),
        "unverified": ("unverified", WARN),
        "false": ("not believed", BAD),
    },
    "rollback": {
        "open": ("waits for the network's admin", WARN),
        "withdrawn": ("withdrawn, as good again", OFF),
        "dismissed": ("dismissed", OFF),
        "rolled_back": ("went back", LIVE),
    },
    "sketch": {"in": ("stays in", GOOD), "out": ("left out", WARN)},
    "lane": {
        "waiting": ("waiting", WAIT),
        "gate": ("checking", LIVE),
        "setup": ("key exchange", LIVE),
        "train": ("training", LIVE),
        "upload": ("uploading", LIVE),
        "sent": ("sent", GOOD),
        "unmask": ("unmasking", LIVE),
        "verify": ("checking the sum", LIVE),
        "done": ("done", GOOD),
        "lost": ("fell out", BAD),
        "refused": ("refused", BAD),
        "left out": ("not in the sum", WARN),
        "ended": ("broken off", OFF),
    },
    "outcome": {"success": ("done", GOOD), "denied": ("denied", BAD), "failure": ("failed", BAD)},
    "proposal": {"proposed": ("waits for the steward", WAIT), "open": ("waits for the steward", WAIT),
                 "signed": ("signed", GOOD), "accepted": ("signed", GOOD), "superseded": ("superseded", OFF)},
    "log": {"in": ("in the log", GOOD), "waiting": ("no number yet", WAIT)},
}  # fmt: skip


def word_for(kind: str, value: str) -> Word:
    """The word of state `value` among the states called `kind` ("study", "silo", "match", ...)."""
    text, (tone, icon) = _TABLE.get(kind, {}).get(value, (value, ("wait", "dot")))
    return Word(text, tone, icon)


def choices(kind: str) -> list[tuple[str, str]]:
    """(value, word) of every state of `kind`, for the select of a filter."""
    return [(value, text) for value, (text, _) in _TABLE[kind].items()]
