"""Who may take part in a round: labelled AND in the index AND of the study's modality AND not opted out AND consented.

    1. patients who opted out, or did not consent, leave first, by the label list, by the header, or by both
    2. a label finds its file by SOP instance, by path, or (neither given) by patient; they have to agree
    3. the file must be usable and of a modality of the manifest
    4. no patient may stand in train and test
    5. at least `min_patients` patients, the strictest of manifest and hospital

Training reads the files of this list and no other.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from protocol.transparency import tree
from silo_node.consent.opt_out import OptOut, nobody
from silo_node.imaging import index
from silo_node.imaging.errors import CohortError
from silo_node.imaging.index import IndexedFile
from silo_node.imaging.labels import LabelRow, Labels, check_splits, split_of


@dataclass(frozen=True)
class Item:
    """One picture that may be used. `label` is 0 or 1; the others are what the index says of its file."""

    patient: str = field(repr=False)
    sop: str = field(repr=False)
    path: Path = field(repr=False)
    label: int
    root: Path = field(repr=False)
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Cohort:
    """One round's pictures. Exact counts stay inside the hospital.

    `patients`: sorted, eligible in train or test. `excluded`: reason code -> label lines or files. `withdrawn`:
    patients who opted out or whose consent does not hold, whose cached pixels must go. `min_patients`: the minimum that
    was applied.
    """

    train: tuple[Item, ...] = field(repr=False)
    test: tuple[Item, ...] = field(repr=False)
    patients: tuple[str, ...] = field(repr=False)
    excluded: Mapping[str, int]
    withdrawn: tuple[str, ...] = field(repr=False)
    min_patients: int
    index_db: Path
    built_at: datetime

    def root(self, k_study: bytes) -> bytes:
        """The cohort's Merkle root (32 bytes), see `cohort_root`."""
        return cohort_root(self.patients, k_study)

    def save(self, path: Path) -> None:
        """Write as JSON, mode 0600, for the training process of the same hospital. It holds patient ids."""
        body: dict[str, Any] = {
            "train": [_item_out(item) for item in self.train],
            "test": [_item_out(item) for item in self.test],
            "excluded": dict(self.excluded),
            "withdrawn": list(self.withdrawn),
            "min_patients": self.min_patients,
            "index_db": str(self.index_db),
            "built_at": self.built_at.isoformat(),
        }
        beside = path.with_name(path.name + ".new")
        with os.fdopen(os.open(beside, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            json.dump(body, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)

    @classmethod
    def load(cls, path: Path) -> Cohort:
        """Read what `save` wrote."""
        body = json.loads(path.read_text(encoding="utf-8"))
        train, test = (tuple(_item_in(*item) for item in body[part]) for part in ("train", "test"))
        return cls(
            train, test, _patients(train, test), body["excluded"], tuple(body["withdrawn"]), body["min_patients"],
            Path(body["index_db"]), datetime.fromisoformat(body["built_at"]),
        )  # fmt: skip


def build(
    manifest: Any,
    index_db: Path,
    labels: Labels,
    opt_out: OptOut | None,
    now: datetime | None = None,
    *,
    min_patients: int = 0,
    consented: Callable[[str], bool] = lambda patient: True,
    withdrawn: Iterable[str] = (),
) -> Cohort:
    """The cohort of one round. `manifest` gives `.cohort.modalities` and `.cohort.min_patients`; `min_patients` is what
    the hospital's policy or approval asks on top. `opt_out` None: this hospital keeps no list. `consented`: asked of
    each patient beside it. `withdrawn`: patients besides those on the list whose cached pixels must go.

    Raises CohortError `COHORT_EMPTY`, `COHORT_TOO_SMALL`; TableError `LABELS_SPLIT` where only the index shows that one
    patient has both splits; ScanError where there is no index.
    """
    now = now or datetime.now(UTC)
    opt_out = opt_out or nobody(now)
    modalities = frozenset(manifest.cohort.modalities)
    rows = index.files(index_db)
    matches = _Matches(rows, labels.folder)
    excluded: Counter[str] = Counter()
    used: set[Path] = set()
    chosen: list[tuple[LabelRow, IndexedFile]] = []
    for row in labels.rows:
        found = matches.of(row)
        used.update(file.path for file in found)
        if not found:
            out = row.patient is not None and row.patient in opt_out
            excluded["OPTED_OUT" if out else "NOT_IN_INDEX"] += 1
        for file in found:
            reason = _reason_against(row, file, opt_out, modalities, consented)
            if reason is None:
                chosen.append((row, file))
            else:
                excluded[reason] += 1
    excluded["NO_LABEL"] += sum(1 for file in rows if file.path not in used and file.problem is None)
    check_splits(labels.name, [(row.line, file.patient, row.split) for row, file in chosen])
    parts: dict[str, list[Item]] = {"train": [], "test": []}
    for row, file in chosen:
        assert file.patient is not None and file.sop is not None  # a usable file has both
        parts[row.split or split_of(file.patient)].append(
            Item(file.patient, file.sop, file.path, row.label, file.root, file.size, file.mtime_ns)
        )
    train, test = tuple(parts["train"]), tuple(parts["test"])
    minimum = max(int(manifest.cohort.min_patients), min_patients)
    patients = _patients(train, test)
    require(patients, train, minimum)
    counts = {code: count for code, count in sorted(excluded.items()) if count}
    gone = tuple(sorted(opt_out.patients.union(withdrawn)))
    return Cohort(train, test, patients, counts, gone, minimum, Path(index_db), now)


def require(patients: Iterable[str], train: tuple[Item, ...], minimum: int) -> None:
    """Raise CohortError where a round must not train on these. No exact count is in the sentence: it may leave."""
    count = len(set(patients))
    if not count or not train:
        raise CohortError("COHORT_EMPTY", "No patient of this hospital is eligible for training in this study.")
    if count < minimum:
        raise CohortError("COHORT_TOO_SMALL", f"Fewer patients are eligible than the minimum of {minimum}.")


def cohort_root(patients: Iterable[str], k_study: bytes) -> bytes:
    """Merkle root (RFC 6962 tree, 32 bytes) over the sorted HMAC-SHA256(k_study, patient id).

    Sorted, so that two neighbours prove that a patient between them is not in the cohort.
    """
    return tree.root([tree.leaf_hash(pseudonym) for pseudonym in pseudonyms(patients, k_study)])


def pseudonyms(patients: Iterable[str], k_study: bytes) -> list[bytes]:
    """The leaves of `cohort_root`: sorted HMAC-SHA256(k_study, patient id as UTF-8), 32 bytes each."""
    if len(k_study) < 16:
        raise ValueError("k_study must have at least 16 bytes")
    return sorted(hmac.new(k_study, patient.encode(), hashlib.sha256).digest() for patient in set(patients))


class _Matches:
    """Finds the files of a label line."""

    def __init__(self, rows: list[IndexedFile], folder: Path) -> None:
        self._folder = folder
        self._by_path = {file.path: file for file in rows}
        self._by_sop: dict[str, IndexedFile] = {}
        self._by_patient: dict[str, list[IndexedFile]] = {}
        for file in rows:
            if file.sop and file.problem != "DUPLICATE":
                self._by_sop.setdefault(file.sop, file)
            if file.patient:
                self._by_patient.setdefault(file.patient, []).append(file)

    def of(self, row: LabelRow) -> list[IndexedFile]:
        if row.file is not None:
            file = self._by_path.get(self._folder / row.file)
            return [] if file is None else [file]
        if row.sop is not None:
            file = self._by_sop.get(row.sop)
            return [] if file is None else [file]
        return self._by_patient.get(row.patient or "", [])


def _reason_against(
    row: LabelRow, file: IndexedFile, opt_out: OptOut, modalities: frozenset[str], consented: Callable[[str], bool]
) -> str | None:
    """Why this file stays out, as a code; None where it may be used."""
    patients = [patient for patient in (row.patient, file.patient) if patient]
    if any(patient in opt_out for patient in patients):
        return "OPTED_OUT"
    if not all(map(consented, patients)):
        return "NO_CONSENT"
    if file.problem is not None:
        return file.problem
    if row.patient is not None and row.patient != file.patient:
        return "PATIENT_DIFFERS"
    if row.sop is not None and row.sop != file.sop:
        return "INSTANCE_DIFFERS"
    if file.modality not in modalities:
        return "MODALITY"
    return None


def _patients(train: tuple[Item, ...], test: tuple[Item, ...]) -> tuple[str, ...]:
    return tuple(sorted({item.patient for item in (*train, *test)}))


def _item_out(item: Item) -> list[Any]:
    return [item.patient, item.sop, str(item.path), item.label, str(item.root), item.size, item.mtime_ns]


def _item_in(patient: str, sop: str, path: str, label: int, root: str, size: int, mtime_ns: int) -> Item:
    return Item(patient, sop, Path(path), label, Path(root), size, mtime_ns)
