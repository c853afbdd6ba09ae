"""The errors of a round, sorted by what the reader can do.

ProtocolViolation          what came in does not fit the round; nothing was done, nothing was revealed
├── StudyPaused            too many signed lists for one model state; a steward may resume (see resume.py)
└── NotEnoughShares        the portal cannot rebuild a secret yet; wait for more `unmask` messages
JournalConflict            the journal already holds another value under this key
"""

from __future__ import annotations

from collections.abc import Iterable


class ProtocolViolation(Exception):
    """A message or call that the protocol forbids at this point. Nothing changed and nothing was revealed.

    Attributes:
        code: machine code, upper case with underscores, for example `ROSTER_TOO_SMALL`.
        sentence: what is wrong and with which silo, for people. Names no patient and no secret.
    """

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(f"{code}: {sentence}")
        self.code = code
        self.sentence = sentence


class StudyPaused(ProtocolViolation):
    """Three lists were signed for one model state; only a steward's signed resume goes on (code STUDY_PAUSED)."""

    def __init__(self, sentence: str) -> None:
        super().__init__("STUDY_PAUSED", sentence)


class NotEnoughShares(ProtocolViolation):
    """No t shares of one secret were found that fit its signed hash (code NOT_ENOUGH_SHARES).

    Attributes:
        bad: silos proved to have sent a share that does not fit, sorted.
        suspects: silos of which at least one sent a share that does not fit, where these shares alone cannot tell which.
    """

    def __init__(self, sentence: str, *, bad: Iterable[str] = (), suspects: Iterable[str] = ()) -> None:
        super().__init__("NOT_ENOUGH_SHARES", sentence)
        self.bad = tuple(sorted(bad))
        self.suspects = tuple(sorted(suspects))


class JournalConflict(Exception):
    """The key is already in the journal with another value. The journal decides: the first value stays."""
