"""What the silo notes about its rounds: in its audit log, and one line a finished round in rounds.jsonl."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from protocol.secure_aggregation.journal import round_prefix
from silo_node.errors import DiskFull, is_disk_full
from silo_node.gate import Permission
from silo_node.node import Node
from silo_node.rounds.announcement import Announcement
from silo_node.rounds.round_runner import RoundRunner
from silo_node.rounds.runs import Run

BUCKET = 50


def bucket(count: int) -> int:
    """A count rounded down to a multiple of 50: what the audit log may hold of a cohort's size."""
    return count // BUCKET * BUCKET


def note_cohort(node: Node, announcement: Announcement, permission: Permission) -> None:
    """Before a round opens its first image: whose data it may use. Exact counts and pseudonyms stay beside the log."""
    if Run(node.config.runs, announcement.id).read("announce") is not None:
        return  # taken up again after a restart: it was noted when it began
    subject = ("round", announcement.id, announcement.manifest)
    refs = {"manifest": announcement.manifest, "policy": permission.policy, "match": permission.match}
    for name, value in (("registry", permission.opt_out), ("model", announcement.model)):
        if value is not None:
            refs[name] = value
    if permission.cohort is None:
        node.evidence.record("round.cohort", subject=subject, refs=refs, data={"patients": 0, "opened": False})
        return
    from silo_node.imaging.cohort import cohort_root, pseudonyms

    cohort, key = permission.cohort, node.keys.study_key(announcement.study)
    root = "sha256:" + cohort_root(cohort.patients, key).hex()
    node.evidence.record(
        "round.cohort",
        subject=subject,
        refs={**refs, "cohort_root": root},
        data={
            "patients": bucket(len(cohort.patients)),
            "opened": announcement.purpose != "initial",
            "excluded": {code: bucket(count) for code, count in cohort.excluded.items()},
        },
        private={"patients": len(cohort.patients)},
    )
    if announcement.purpose != "initial":
        node.evidence.record(
            "data.accessed",
            subject=subject,
            refs={"cohort_root": root},
            data={"function": announcement.purpose},
            private={"subjects": [pseudonym.hex() for pseudonym in pseudonyms(cohort.patients, key)]},
        )


def note_round(node: Node, runner: RoundRunner, outcome: str) -> None:
    """At the end of a round: a record, and a line in rounds.jsonl."""
    up, down = node.egress_log.of_round(runner.id)
    announcement = runner.announcement
    node.evidence.record(
        "round.finished" if outcome == "finished" else "round.failed",
        subject=("round", announcement.id, announcement.manifest),
        outcome="success" if outcome == "finished" else "failure",
        refs={"next": runner.next_model} if runner.next_model else {},
        data={
            "purpose": announcement.purpose,
            "bytes_up": up,
            "bytes_down": down,
            **({} if runner.verified is None else {"verified": runner.verified}),
        },
    )
    line = {
        "round": announcement.number,
        "id": announcement.id,
        "study": announcement.study,
        "attempt": announcement.attempt,
        "purpose": announcement.purpose,
        "train_seconds": round(runner.train_seconds, 4),
        "evaluate_seconds": round(runner.evaluate_seconds, 4),
        "bytes_up": up,
        "bytes_down": down,
        "verified": runner.verified,
        "outcome": "refused" if runner.stage == "refused" else outcome,
        "ended": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    }
    _append(node.config.rounds, json.dumps(line).encode() + b"\n")


def _append(path: Path, line: bytes) -> None:
    """One whole line or none. Raises: DiskFull."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        size = os.fstat(handle).st_size
        try:
            whole = os.write(handle, line) == len(line)
        except OSError as error:
            if not is_disk_full(error):
                raise
            whole = False
        if not whole:
            os.ftruncate(handle, size)
            raise DiskFull(f"no room for {path.name}: make room, nothing was half-written")
    finally:
        os.close(handle)


def forget_round(node: Node, run: Run) -> None:
    """A round that ended while this silo was away: its secrets and its folder go."""
    study, number, attempt = run.id.rsplit(".", 2)
    if number.isdecimal() and attempt.isdecimal():
        node.journal.forget(round_prefix(study, int(number), int(attempt)))
    node.egress_log.of_round(
        run.id
    )  # the count of its bytes is forgotten too, or it would be kept as long as this runs
    run.remove()


def models_in_use(runners: Iterable[RoundRunner], last: RoundRunner) -> set[str]:
    """The models that open rounds need, and the newest of the round that ended."""
    found = {last.announcement.model, last.next_model}
    for runner in runners:
        found |= {runner.announcement.model, runner.next_model}
    return {digest for digest in found if digest is not None}
