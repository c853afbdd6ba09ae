"""What survives a crash. A round's secrets live here until it ends; facts about the study stay.

    round/<study>/<round>/<attempt>/..   secrets, accepted sets, quantised words, sent messages: `destroy` erases them
    study/<study>/joined/<n>             which (round, attempt) were joined, in order; the last is the newest
    study/<study>/spent/<round>          the one list L1 this silo signed (or accepted) in that round
    study/<study>/lists/<model>/<n>      every list signed for one model state
    study/<study>/unmasked/<model>/<n>   every list unmasked for it
    study/<study>/resumed/<model>/<n>    every steward's signed resume for it
    study/<study>/made/<n>               which (round, attempt) made the models on which this silo worked; only newer ones
    study/<study>/back/<n>               every steward's signed resume that let the study go back to an older model

A put can only be made once, so no fact is ever overwritten; rows that grow are numbered.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

from protocol import canonical
from protocol.secure_aggregation.errors import JournalConflict, ProtocolViolation, StudyPaused

__all__ = ["Journal", "JournalConflict", "StudyLedger", "round_prefix"]

MAX_LISTS: Final = 3
"""Signed lists for one model state after which the study pauses."""


class Journal(Protocol):
    """Storage that is durable and decides. Used from several threads."""

    def put(self, key: str, value: bytes) -> None:
        """Keep the value; it is on disk when this returns. The same value again does nothing.

        Values reach 4 MiB. Raises: JournalConflict where the key holds another value.
        """

    def get(self, key: str) -> bytes | None:
        """The value, None where there is none."""

    def forget(self, prefix: str) -> None:
        """Destroy every key that starts with `prefix`, for good."""


def round_prefix(study: str, number: int, attempt: int) -> str:
    """Prefix of everything that belongs to one attempt."""
    return f"round/{study}/{number}/{attempt}/"


class StudyLedger:
    """The facts about one study that outlive its rounds."""

    def __init__(self, journal: Journal, study: str) -> None:
        self._journal = journal
        self._study = study
        self._prefix = f"study/{study}/"
        self._seen: dict[str, int] = {}

    # --- joining: rounds and attempts only grow ----------------------------------------------------------------------

    def newest(self) -> tuple[int, int] | None:
        """The newest (round, attempt) that was joined."""
        row = self._last("joined")
        return None if row is None else (row["round"], row["attempt"])

    def check_newest(self, number: int, attempt: int) -> None:
        """Raises: ProtocolViolation (OLD_ROUND) where a newer attempt was joined."""
        newest = self.newest()
        if newest is not None and newest > (number, attempt):
            raise ProtocolViolation(
                "OLD_ROUND", f"round {number}.{attempt} was left for {newest[0]}.{newest[1]}; its secrets are erased"
            )

    def join(self, number: int, attempt: int) -> None:
        """Make this the newest attempt. Raises: as `check_newest`."""
        self.check_newest(number, attempt)
        if self.newest() != (number, attempt):
            self._append("joined", {"round": number, "attempt": attempt})

    def forget_rounds(self) -> None:
        """Erase the secrets of every attempt of this study."""
        self._journal.forget(f"round/{self._study}/")

    # --- spending: one list a round over all its attempts ------------------------------------------------------------

    def spent(self, number: int) -> dict[str, Any] | None:
        """What this silo signed in the round: {"attempt", "members", ..}; None where it signed no list."""
        return self._read(f"spent/{number}")

    def spend(self, number: int, model: str, facts: dict[str, Any], *, final: bool) -> None:
        """Sign (or accept) one list L1 in this round, on disk before the signature exists.

        Parameters:
            final: whether its members will be summed as they stand; with the sketch check L2 decides that.

        Raises:
            ProtocolViolation: ROUND_SPENT where another list or attempt spent the round; OTHER_LIST_UNMASKED where
                another list was already unmasked for this model state.
            StudyPaused: MAX_LISTS lists were signed for this model state.
        """
        spent = self.spent(number)
        if spent is not None and spent != facts:
            raise ProtocolViolation("ROUND_SPENT", f"this silo already signed another list in round {number}")
        if final:
            self.check_members(model, facts["members"])
        row = {"round": number, "members": facts["members"]}
        # After a crash another list may come in the same round; then both stand there, and the steward is shown both.
        if row not in self._rows(f"lists/{model}"):
            self.check_open(model)
            self._append(f"lists/{model}", row)
        self._journal.put(f"{self._prefix}spent/{number}", canonical.encode(facts))

    def check_open(self, model: str) -> None:
        """Raises: StudyPaused where only a steward's resume may go on with this model state."""
        lists = self._count(f"lists/{model}")
        if lists - self.resumed_at(model)["lists"] >= MAX_LISTS:
            raise StudyPaused(
                f"{lists} lists were signed for one model state and no model came of it; "
                "a steward must look at it and sign a resume"
            )

    def check_members(self, model: str, members: list[str]) -> None:
        """Raises: ProtocolViolation (OTHER_LIST_UNMASKED): two sums over different silos of one model state differ by
        the update of those who are in one only."""
        rows = self._rows(f"unmasked/{model}")[self.resumed_at(model)["unmasked"] :]
        if any(row["members"] != members for row in rows):
            raise ProtocolViolation(
                "OTHER_LIST_UNMASKED",
                "another list was already unmasked for this model state; only the same silos may be summed again, "
                "unless a steward signs a resume",
            )

    def unmask(self, number: int, model: str, members: list[str]) -> None:
        """Note an unmasking, before a share leaves. Raises: as `check_members`."""
        rows = self._rows(f"unmasked/{model}")
        if all(row["round"] != number for row in rows):
            self.check_members(model, members)
            self._append(f"unmasked/{model}", {"round": number, "members": members})

    # --- a steward's resume ------------------------------------------------------------------------------------------

    def counts(self, model: str) -> dict[str, int]:
        """How many lists were signed and unmasked for this model state: what a resume must name."""
        return {"lists": self._count(f"lists/{model}"), "unmasked": self._count(f"unmasked/{model}")}

    def lists(self, model: str) -> list[dict[str, Any]]:
        """Every list signed for this model state, oldest first: {"round", "members"}."""
        return self._rows(f"lists/{model}")

    def resume(self, model: str, statement: str) -> None:
        """From now on count anew; `statement` is the digest of the steward's signed resume."""
        self._append(f"resumed/{model}", {**self.counts(model), "statement": statement})

    def resumed_at(self, model: str) -> dict[str, int]:
        """The counts that the last resume named; zeros where there was none."""
        last = self._last(f"resumed/{model}") or {"lists": 0, "unmasked": 0}
        return {"lists": last["lists"], "unmasked": last["unmasked"]}

    # --- the age of models: a study's model only goes forward, or back where a steward has signed it ------------------

    def front(self) -> dict[str, int] | None:
        """The (round, attempt) that made the newest model on which this silo worked, and how often stewards have let the
        study go back: what a resume that goes back must name. None where this silo has worked on no model that was made.
        """
        newest = self._last("made")
        return None if newest is None else {**newest, "returns": self._count("back")}

    def check_age(self, model: str, number: int, attempt: int) -> None:
        """Parameters: number, attempt: the round that made the model.

        After a steward's resume went back to a model, that one and those made later are worked on; those made before are
        older, and so are those that were left.

        Raises: ProtocolViolation (MODEL_OLDER): a portal could have the model trained again beside another cohort, and
            compare.
        """
        newest, back = self._last("made"), self._last("back")
        if newest is None:
            return
        front, made = (newest["round"], newest["attempt"]), (number, attempt)
        if back is not None and (back["round"], back["attempt"]) == front:
            older = model != back["model"] and made <= front
        else:
            older = made < front
        if older:
            raise ProtocolViolation(
                "MODEL_OLDER",
                f"the model was made in round {number}.{attempt}, and this silo has already worked on that of round "
                f"{front[0]}.{front[1]}; only a steward's signed resume goes back to it",
            )

    def work_on(self, model: str, number: int, attempt: int) -> None:
        """Note that this silo works on a model, before it does. Raises: as `check_age`."""
        self.check_age(model, number, attempt)
        newest = self._last("made")
        if newest is None or (number, attempt) > (newest["round"], newest["attempt"]):
            self._append("made", {"round": number, "attempt": attempt})

    def go_back(self, model: str, statement: str) -> None:
        """From now on work on `model`, though it is older; `statement` is the digest of the steward's signed resume.

        It holds until this silo works on a model that was made later than all before.
        """
        newest = self._last("made")
        if newest is None:
            raise ProtocolViolation("STALE_RESUME", "resume: this silo has worked on no model from which to go back")
        self._append("back", {**newest, "model": model, "statement": statement})

    # --- numbered rows -----------------------------------------------------------------------------------------------

    def _read(self, name: str) -> dict[str, Any] | None:
        data = self._journal.get(self._prefix + name)
        if data is None:
            return None
        value: dict[str, Any] = canonical.decode(data)
        return value

    def _row(self, name: str, index: int) -> dict[str, Any] | None:
        return self._read(f"{name}/{index}")

    def _count(self, name: str) -> int:
        """Rows are numbered without gaps and never removed, so the end is at or after where it was seen last; doubling
        and halving finds it in few reads, one where nothing was added."""
        low, step = self._seen.get(name, 0), 1
        while self._there(name, low + step - 1):
            low, step = low + step, 2 * step
        while step > 1:
            step //= 2
            if self._there(name, low + step - 1):
                low += step
        self._seen[name] = low
        return low

    def _there(self, name: str, index: int) -> bool:
        return self._journal.get(f"{self._prefix}{name}/{index}") is not None

    def _last(self, name: str) -> dict[str, Any] | None:
        count = self._count(name)
        return self._row(name, count - 1) if count else None

    def _rows(self, name: str) -> list[dict[str, Any]]:
        rows = (self._row(name, index) for index in range(self._count(name)))
        return [row for row in rows if row is not None]

    def _append(self, name: str, row: dict[str, Any]) -> None:
        self._journal.put(f"{self._prefix}{name}/{self._count(name)}", canonical.encode(row))
