"""A study that waits for this hospital's steward, and the signed resume that lets it go on.

    FOLDER/studies/STUDY/paused.json    why, for which model state, and the lists that this silo signed for it
    FOLDER/resumes/STUDY/*.json         every resume that stewards signed

`silo run` writes the first, and takes up the second when it hears of the next round. The note is for people: what may be
signed is decided by the journal alone, which knows the lists and the age of the models, and which resume ended what.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from protocol.secure_aggregation.errors import ProtocolViolation
from protocol.secure_aggregation.journal import StudyLedger
from protocol.secure_aggregation.resume import PAYLOAD_TYPE, Resume, resume
from protocol.signing import Envelope, SignatureError
from protocol.trust import STEWARD
from silo_node.config import Config
from silo_node.errors import Refused, UsageError
from silo_node.files import read_json, write_json
from silo_node.node import Node
from silo_node.rounds.announcement import Announcement
from silo_node.steward import documents

PAUSED: Final = "STUDY_PAUSED"
OTHER_LIST: Final = "OTHER_LIST_UNMASKED"
"""Only rounds with other silos than before are refused; the gate lets the study's rounds begin."""
OLDER: Final = "MODEL_OLDER"
"""The portal goes back to a model that this silo's study has left."""


@dataclass(frozen=True, kw_only=True)
class Pause:
    """Why a study waits. model: digest; None in a note that says no more than that it is paused. signed: the lists,
    {"round", "members"}, oldest first.

    Where the study would go back to `model`: back: `StudyLedger.front`; made: the (round, attempt) that made `model`;
    asked: the round that was to start from it.
    """

    study: str
    code: str
    sentence: str
    model: str | None = None
    lists: int = 0
    unmasked: int = 0
    signed: tuple[Mapping[str, Any], ...] = ()
    back: Mapping[str, int] | None = None
    made: tuple[int, int] | None = None
    asked: int | None = None

    def covered_by(self, statement: Resume) -> bool:
        """Whether the statement is about exactly these lists."""
        mine = (self.study, self.model, self.lists, self.unmasked, self.back)
        return mine == (statement.study, statement.model, statement.lists, statement.unmasked, statement.back)

    @property
    def lost(self) -> str:
        """The rounds whose models going back throws away, in words."""
        first, last = (self.made or (0, 0))[0] + 1, (self.asked or 1) - 1
        return f"round {first}" if first >= last else f"rounds {first} to {last}"


def read(config: Config, study: str) -> Pause | None:
    """The note about a study, None where it does not wait. A note with missing parts still pauses."""
    value = read_json(_note(config, study))
    if value is None:
        return None
    if not isinstance(value, dict):
        return Pause(study=study, code=PAUSED, sentence="its note can't be read.")
    known = {name: value[name] for name in ("model", "lists", "unmasked", "back", "asked") if name in value}
    if value.get("made") is not None:
        known["made"] = tuple(value["made"])
    signed = tuple(value.get("signed", ()))
    sentence = str(value.get("sentence", ""))
    return Pause(study=study, code=str(value.get("code", PAUSED)), sentence=sentence, signed=signed, **known)


def every(config: Config) -> list[Pause]:
    """All studies that wait for a steward, by name."""
    found = (read(config, path.parent.name) for path in sorted(config.studies.glob("*/paused.json")))
    return [pause for pause in found if pause is not None]


def note(node: Node, announcement: Announcement, error: ProtocolViolation | Refused) -> None:
    """Keep why a study waits, and record it. Nothing for an error that no steward can lift. Raises: DiskFull."""
    if error.code not in (PAUSED, OTHER_LIST, OLDER) or announcement.model is None:
        return
    before, origin = read(node.config, announcement.study), announcement.origin
    now = Pause(study=announcement.study, code=error.code, sentence=error.sentence, model=announcement.model)
    if error.code == OLDER and origin is not None:
        now = replace(now, made=(origin.number, origin.attempt), asked=announcement.number)
        sentence = (
            f"round {now.asked} goes back to the model that round {origin.number} made ({now.model}); what {now.lost} made "
            "is thrown away"
        )
        now = replace(now, sentence=sentence)
    now = _as_it_is(node, now)
    if now == before:
        return
    node.evidence.record(
        "study.paused",
        subject=("study", announcement.study, announcement.manifest),
        reasons=[error.code],
        refs={"model": announcement.model},
        data={"lists": now.lists, "unmasked": now.unmasked, **_back(now)},
    )
    _keep(node.config, now)


def take_up(node: Node, announcement: Announcement, *, now: datetime | None = None) -> Resume | None:
    """Let a study go on where its stewards have signed so; what was taken up, None where there is nothing.

    Verification:
      1. The stewards whom trust.json names now signed it, as many people as it asks for.
      2. For this silo, this study, and the lists and the newest model as the journal has them; it was not taken up before
         (`resume`).

    Raises: Refused (RESUME_NOT_VALID): then the study still waits. DiskFull.
    """
    config, now = node.config, now or datetime.now(UTC)
    pause = read(config, announcement.study)
    if pause is None or pause.model is None:
        return None
    if pause.code == OTHER_LIST and pause.model != announcement.model:
        _note(config, pause.study).unlink(missing_ok=True)  # the model state that it was about is over
        return None
    if _goes_on(node, pause):
        _in_force(node, pause, {})  # a crash came between the journal's row and the end of the note
        return None
    if (now_is := _as_it_is(node, pause)) != pause:
        _keep(config, now_is)  # what the steward has to sign next is what the journal has now
    problem = ""
    for envelope in signed_for(config, pause):
        try:
            trust = documents.load_trust(config)
            # 1
            trust.verify(envelope, payload_type=PAYLOAD_TYPE, now=now)
            # 2
            statement = resume(
                node.journal,
                envelope,
                silo=config.name,
                study=pause.study,
                stewards=trust.publics(now=now),
                threshold=trust.roles[STEWARD],
            )
        except (SignatureError, ProtocolViolation) as error:
            problem = getattr(error, "sentence", str(error))
            continue
        _in_force(node, pause, {"resume": envelope.digest})
        return statement
    if problem:
        raise Refused(
            "RESUME_NOT_VALID",
            f"The signed resume of {pause.study} does not hold: {problem}. The study still waits; "
            f"`silo resume` shows how it stands now and signs anew.",
        )
    return None


def signed_for(config: Config, pause: Pause) -> list[Envelope]:
    """The resumes in the folder that are about exactly this pause; no signature is verified here. Raises: Refused."""
    found = []
    for path in sorted((config.resumes / pause.study).glob("*.json")):
        try:
            envelope = documents.read_envelope(path)
            about = envelope is not None and pause.covered_by(Resume.parse(envelope.payload))
        except (UsageError, ProtocolViolation):
            raise Refused(
                "RESUME_NOT_VALID",
                f"{path.name} in resumes/{pause.study} is no signed resume: remove it and sign with `silo resume`.",
            ) from None
        if envelope is not None and about:
            found.append(envelope)
    return found


def _goes_on(node: Node, pause: Pause) -> bool:
    """Whether the journal has it already that this pause is over."""
    ledger, model = StudyLedger(node.journal, pause.study), str(pause.model)
    if pause.made is not None:
        try:
            ledger.check_age(model, *pause.made)
        except ProtocolViolation:
            return False
        return True
    counts = ledger.counts(model)
    return any(counts.values()) and ledger.resumed_at(model) == counts


def _as_it_is(node: Node, pause: Pause) -> Pause:
    ledger, model = StudyLedger(node.journal, pause.study), str(pause.model)
    back = ledger.front() if pause.made is not None else None
    return replace(pause, signed=tuple(ledger.lists(model)), back=back, **ledger.counts(model))


def _back(pause: Pause) -> dict[str, int]:
    return {} if pause.made is None else {"made_in": pause.made[0]}


def _in_force(node: Node, pause: Pause, refs: Mapping[str, str]) -> None:
    node.evidence.record(
        "study.resumed",
        subject=("study", pause.study, None),
        refs={"model": str(pause.model), **refs},
        data={"step": "in force", "lists": pause.lists, "unmasked": pause.unmasked, **_back(pause)},
    )
    _note(node.config, pause.study).unlink(missing_ok=True)


def _note(config: Config, study: str) -> Path:
    return config.studies / study / "paused.json"


def _keep(config: Config, pause: Pause) -> None:
    names = ("code", "sentence", "model", "lists", "unmasked", "back", "made", "asked")
    value = {name: getattr(pause, name) for name in names}
    write_json(_note(config, pause.study), {**value, "signed": list(pause.signed)})
