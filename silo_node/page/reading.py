"""What the pages show, read from the silo's folder. Nothing here writes, and nothing waits long for another process."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from protocol.approval import ApprovalError, Statement, Trust, parse_statement
from protocol.data_use.document import MICRO
from protocol.manifest import Manifest, ManifestError, parse_manifest
from silo_node.config import Config
from silo_node.errors import Refused, SiloError
from silo_node.imaging import terms
from silo_node.imaging.index import PROBLEMS
from silo_node.steward import documents

PAGE_ROWS: Final = 50


@contextmanager
def database(path: Path) -> Iterator[sqlite3.Connection]:
    """An SQLite file of the silo, to be read only. Raises: Refused where it can't be."""
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=3)) as db:
            db.row_factory = sqlite3.Row
            yield db
    except sqlite3.Error as error:
        raise Refused(
            "FILE_UNREADABLE",
            f"{path.name} can't be read now ({type(error).__name__}): try again; see the settings check.",
        ) from None


@dataclass(frozen=True)
class Images:
    """The index in numbers. problems: (code, meaning, files); files: rows of one page, only for hospital IT."""

    scanned: str | None
    files: int
    usable: int
    patients: int
    modalities: list[tuple[str, int]]
    syntaxes: list[tuple[str, int]]
    problems: list[tuple[str, str, int]]
    rows: list[Mapping[str, Any]]
    found: int


def images(config: Config, *, code: str, page: int, name_files: bool) -> Images | None:
    """The index; None before the first scan. Parameters: code: only files with this problem, "" for all with one."""
    path = config.index_db
    if not path.is_file():
        return None
    with database(path) as db:
        total, usable, patients = db.execute(
            "SELECT count(*), sum(problem IS NULL), count(DISTINCT CASE WHEN problem IS NULL THEN patient END) FROM files"
        ).fetchone()
        counted = {
            name: db.execute(
                f"SELECT coalesce({name}, 'none'), count(*) AS n FROM files WHERE problem IS NULL GROUP BY {name} ORDER BY n DESC"
            ).fetchall()
            for name in ("modality", "transfer_syntax")
        }
        problems = db.execute(
            "SELECT problem, count(*) AS n FROM files WHERE problem IS NOT NULL GROUP BY problem ORDER BY n DESC, problem"
        ).fetchall()
        found = sum(n for name, n in problems if code in ("", name))
        rows: list[Mapping[str, Any]] = []
        if name_files:
            rows = [
                {"path": row["path"], "code": row["problem"], "why": PROBLEMS.get(row["problem"], row["problem"])}
                for row in db.execute(
                    "SELECT path, problem FROM files WHERE problem IS NOT NULL AND (? = '' OR problem = ?)"
                    " ORDER BY path LIMIT ? OFFSET ?",
                    (code, code, PAGE_ROWS, (page - 1) * PAGE_ROWS),
                )
            ]
    changed = datetime.fromtimestamp(max(_times(path)), UTC).isoformat()
    return Images(
        changed,
        total,
        usable or 0,
        patients,
        [(name if name == "none" else terms.modality(name), n) for name, n in counted["modality"]],
        [(_syntax(name), n) for name, n in counted["transfer_syntax"]],
        [(name, PROBLEMS.get(name, name), n) for name, n in problems],
        rows,
        found,
    )


def _times(path: Path) -> list[float]:
    return [each.stat().st_mtime for each in (path, path.with_name(path.name + "-wal")) if each.exists()]


def _syntax(uid: str) -> str:
    """The transfer syntax in words; one that the standard does not know is not shown."""
    from pydicom.uid import UID

    known = terms.transfer_syntax(uid)
    return uid if uid == "none" else known if known == terms.OTHER else f"{UID(uid).name} ({uid})"


@dataclass(frozen=True)
class Consent:
    """Who takes part, in numbers. decisions: (code, meaning, patients). problem: why it can't be read, or permits nobody.

    opted_out: None without a list. unknown: of those on the list, who is not in the index. consents: None without FHIR.
    read: of the last good reading; most: hours that it may be old.
    """

    source: str
    list_name: str | None
    consents: int | None
    unassigned: int
    opted_out: int | None
    unknown: int | None
    decisions: list[tuple[str, str, int]]
    read: datetime | None
    most: int
    default: bool
    problem: SiloError | None

    @property
    def age(self) -> float | None:
        """Hours since the last good reading."""
        return None if self.read is None else max(0.0, time.time() - self.read.timestamp()) / 3600


SOURCES: Final = {"": "none", "folder": "a folder of FHIR resources", "file": "a FHIR file", "server": "a FHIR server"}


def consent(config: Config) -> Consent:
    """The consent registry's summary: counts only. A FHIR server is not asked for a page: its last reading counts."""
    from silo_node.consent import registry as registries
    from silo_node.consent.rules import SENTENCES

    problem: SiloError | None = None
    default, held, list_name = False, None, None
    try:
        default = registries.default_of(
            documents.load_policy(config, documents.load_trust(config), now=datetime.now(UTC))[1]
        )
    except SiloError as error:
        problem = error
    try:
        list_name = None if config.opt_out is None else config.opt_out.name
        held = _registry(config, default)
        registries.usable(held)
    except SiloError as error:
        problem = problem or error
    source = config.settings.consent.source
    words = "what was imported" if not source and config.consent_imported.exists() else SOURCES[source]
    hours = config.settings.limits.opt_out_hours
    if held is None:
        return Consent(words, list_name, None, 0, None, None, [], None, hours, default, problem)
    return Consent(
        words,
        list_name,
        None if held.consents is None else sum(map(len, held.consents.values())),
        held.unassigned,
        None if held.opt_out is None else len(held.opt_out),
        None if held.opt_out is None else _unknown(config, held.opt_out.patients),
        [(code, SENTENCES[code], count) for code, count in held.counts().items()],
        held.loaded_at,
        hours if held.consents is None else min(hours, config.settings.consent.max_age_hours),
        default,
        problem,
    )


def _registry(config: Config, default: bool) -> Any:
    from silo_node import opt_out_registry
    from silo_node.consent import registry as registries
    from silo_node.consent import sources

    now = datetime.now(UTC)
    if config.settings.consent.source != "server":
        return registries.load(config, now, default)
    kept = config.consent_kept
    if not kept.exists():
        raise Refused("CONSENT_NOT_READ", "The FHIR server has not been read yet: `silo consent status` does it.")
    found = sources.whole(sources.read(kept, ours=True))
    consents, unassigned = registries.assign(found, registries.patients_of(config, found))
    read = datetime.fromtimestamp(kept.stat().st_mtime, UTC)
    opt_out = opt_out_registry.load(config, now)
    return registries.Registry(opt_out, consents, unassigned, None, read, registries.query_of(config), now, default, {})


def _unknown(config: Config, patients: frozenset[str]) -> int | None:
    if not config.index_db.is_file():
        return None
    with database(config.index_db) as db:
        known = {row[0] for row in db.execute("SELECT DISTINCT patient FROM files WHERE patient IS NOT NULL")}
    return len(patients - known)


def trust(config: Config) -> Trust | None:
    """Who decides for this hospital; None before the first steward."""
    try:
        return documents.load_trust(config)
    except Refused as error:
        if error.code == "TRUST_MISSING":
            return None
        raise


def kept_manifest(config: Config, study: str) -> tuple[str, bytes, Manifest] | None:
    """(digest, bytes, content) of the study's newest manifest in the silo's folder."""
    folder = config.studies / study
    paths = sorted(folder.glob("[0-9a-f]*.json"), key=lambda path: path.stat().st_mtime) if folder.is_dir() else []
    for path in reversed(paths):
        data = path.read_bytes()
        try:
            return f"sha256:{path.stem}", data, parse_manifest(data)
        except ManifestError:
            continue
    return None


def decisions(config: Config, study: str) -> list[Statement]:
    """What this hospital's stewards have said about a study, newest first; unverified, as `silo status` shows it."""
    found = []
    for envelope in documents.load_approvals(config, study):
        try:
            found.append(parse_statement(envelope.payload))
        except ApprovalError:
            continue
    return sorted(found, key=lambda statement: statement.time, reverse=True)


@dataclass(frozen=True)
class Spent:
    """One study in the budget. epsilon: allowed privacy loss, None where the study has no differential privacy."""

    study: str
    title: str
    epsilon: float | None
    rounds: int
    most_rounds: int | None
    until: str | None
    bytes_up: int


def budget(config: Config) -> list[Spent]:
    """What the approved studies may spend of this hospital's data, and have spent."""
    used: dict[str, list[int]] = {}
    for line in round_lines(config):
        each = used.setdefault(str(line.get("study")), [0, 0])
        each[0] += line.get("outcome") == "finished" and line.get("purpose") == "train"
        each[1] += int(line.get("bytes_up", 0))
    names = {path.name for path in config.approvals.iterdir()} if config.approvals.is_dir() else set()
    found = []
    for study in sorted(names | set(used)):
        kept, said = kept_manifest(config, study), decisions(config, study)
        rounds, up = used.get(study, [0, 0])
        # What a later rejection or revocation ended permits nothing any more.
        last = said[0] if said and said[0].decision == "approve" else None
        found.append(
            Spent(
                study,
                kept[2].title if kept else study,
                last.limits.epsilon_micro / MICRO if last is not None and last.limits.epsilon_micro else None,
                rounds,
                last.limits.max_rounds if last is not None else None,
                last.not_after if last is not None else None,
                up,
            )
        )
    return found


def round_lines(config: Config) -> list[dict[str, Any]]:
    """rounds.jsonl; a last line that is cut off (a disk that was full) is passed over."""
    found = []
    try:
        text = config.rounds.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    for line in text.splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
