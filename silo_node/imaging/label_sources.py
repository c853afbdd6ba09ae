"""Where labels come from: `[label_source]` in silo.toml.

    csv    labels.csv, see labels.py
    sr     structured reports in the data folder: those that the index lists with modality SR are read, no other

A source is a function of the silo's settings and who opted out; it answers Labels, as labels.csv does, or raises
TableError. Another one comes from any installed package that names it as an entry point of `consilium.label_sources`;
docs/developer.md has one for segmentations (SEG).

A report that was exchanged after the scan is not read, and no label is used until it has been scanned (known.py).

What `sr` reads (PS3.3 C.17.3, of which TID 1500 is one use): a CODE item whose concept name is `finding`, with a value of
`present` or `absent`; the images are those that the item itself refers to, else those of the group around it, else of the
whole report. A picture that two reports call present and absent is refused: a person has to decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from silo_node.imaging.bounded import Changed, NotAFile, Outside
from silo_node.imaging.errors import DataError, TableError
from silo_node.imaging.labels import LabelRow, Labels, load

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from silo_node.config import Config
    from silo_node.consent.opt_out import OptOut
    from silo_node.imaging.index import IndexedFile

MAX_ITEMS = 20_000  # of one report
MAX_DEPTH = 32


class ReportChanged(Exception):
    """The file at `path` is not the report of which the index speaks."""

    def __init__(self, path: Path) -> None:
        super().__init__("a report was exchanged")
        self.path = path


@dataclass(frozen=True)
class Codes:
    """What a report must say. Each is "SCHEME:VALUE", such as "SCT:233604007"."""

    finding: str
    present: str
    absent: str


def of(config: Config, opt_out: OptOut | None) -> Labels:
    """The labels of this silo; reports of who opted out are not opened.

    Raises: TableError (`LABELS_*`), ScanError where reports are asked for before a scan.
    """
    name = config.settings.label_source.source
    if name in SOURCES:
        return SOURCES[name](config, opt_out)
    try:
        found = installed()[name].load()(config, opt_out)
        if not isinstance(found, Labels):
            raise TypeError
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - somebody else's code: what it says may name a patient
        raise TableError(
            "LABELS_MALFORMED", f"The label source {name!r} failed ({type(error).__name__}): ask who wrote it."
        ) from None
    return found


def installed() -> dict[str, EntryPoint]:
    """The sources that installed packages bring, by name."""
    return {point.name: point for point in entry_points(group="consilium.label_sources")}


def _csv(config: Config, opt_out: OptOut | None) -> Labels:
    return load(config.labels)


def _sr(config: Config, opt_out: OptOut | None) -> Labels:
    from silo_node.imaging import index

    told = config.settings.label_source
    files = [file for file in index.files(config.index_db) if not (opt_out and file.patient in opt_out)]
    reports = [file for file in files if is_report(file)]
    try:
        if any(file.modality == "SR" and file.problem == "FILE_CHANGED" for file in files):
            raise _changed()  # what it says is not known until it is scanned, and may contradict another
        return from_reports(reports, Codes(told.finding, told.present, told.absent), config.data.resolve())
    except ReportChanged as error:
        index.mark(config.index_db, {error.path: "FILE_CHANGED"})
        raise _changed() from error


def _changed() -> TableError:
    return TableError("LABELS_CHANGED", "A structured report was exchanged or overwritten since the scan: scan again.")


SOURCES: dict[str, Callable[[Config, OptOut | None], Labels]] = {"csv": _csv, "sr": _sr}


def is_report(file: IndexedFile) -> bool:
    """Whether the index lists this file as a structured report: whole, of a known patient, and no image."""
    return file.modality == "SR" and file.problem == "NO_IMAGE" and file.patient is not None


def from_reports(reports: Sequence[IndexedFile], codes: Codes, folder: Path) -> Labels:
    """One row a picture that a report speaks of; `line` counts the reports, from 1.

    Raises TableError `LABELS_MISSING` (no report says anything), `LABELS_MALFORMED` (a report can't be read),
    `LABELS_DUPLICATE` (two of them contradict each other); ReportChanged.
    """
    said: dict[str, LabelRow] = {}
    for number, report in enumerate(reports, 1):
        for sop, label in _read(report, codes, number):
            before = said.setdefault(sop, LabelRow(number, label, report.patient, sop, None, None))
            if before.label != label:
                raise TableError(
                    "LABELS_DUPLICATE",
                    f"Reports {before.line} and {number} of the index call one picture present and absent: "
                    "correct one of them in its own system and fetch it again.",
                )
    if not said:
        raise TableError(
            "LABELS_MISSING",
            "No structured report in the data folder says whether the finding is there: check `finding`, `present` and "
            "`absent` under [label_source] in silo.toml, and that the reports were scanned.",
        )
    return Labels("the structured reports", folder, tuple(said.values()), {})


def _read(report: IndexedFile, codes: Codes, number: int) -> list[tuple[str, int]]:
    import pydicom

    from silo_node.imaging import bounded
    from silo_node.imaging.header import PARSE_ERRORS, text
    from silo_node.imaging.known import Known

    known = Known.of(report)
    tags: list[int | str | tuple[int, int]] = ["SOPInstanceUID", "PatientID", "ContentSequence"]
    try:
        with bounded.opened(report.path, root=known.root, seen=(known.size, known.mtime_ns)) as source:
            dataset = pydicom.dcmread(source, stop_before_pixels=True, specific_tags=tags)
            known.require(text(dataset, "SOPInstanceUID"), text(dataset, "PatientID"))
            return list(_findings(dataset, codes))
    except (NotAFile, Outside, Changed) as error:
        raise ReportChanged(report.path) from error
    except (OSError, *PARSE_ERRORS) as error:
        raise TableError(
            "LABELS_MALFORMED", f"Report {number} of the index can't be read: fetch it again, or take it away."
        ) from error


def _findings(report: Dataset, codes: Codes) -> Iterator[tuple[str, int]]:
    """(SOP instance UID, label) of each finding; the images are those nearest to it. Never recursive, always bounded."""
    values = {codes.present: 1, codes.absent: 0}
    waiting: list[tuple[Dataset, int, tuple[str, ...]]] = [(report, 0, ())]
    seen = 0
    while waiting:
        node, depth, images = waiting.pop()
        inner = list(node.get("ContentSequence") or [])
        seen += len(inner)
        if seen > MAX_ITEMS or depth > MAX_DEPTH:
            raise ValueError("a report is too long or too deep")
        near = tuple(_images(inner)) or images
        for item in inner:
            if item.get("ValueType") == "CODE" and _code(item, "ConceptNameCodeSequence") == codes.finding:
                label = values.get(_code(item, "ConceptCodeSequence") or "")
                own = tuple(_images(item.get("ContentSequence") or [])) or near
                if label is not None:
                    yield from ((sop, label) for sop in own)
            waiting.append((item, depth + 1, near))


def _images(items: Iterable[Any]) -> Iterator[str]:
    for item in items:
        if item.get("ValueType") == "IMAGE":
            for reference in item.get("ReferencedSOPSequence") or []:
                if reference.get("ReferencedSOPInstanceUID"):
                    yield str(reference.ReferencedSOPInstanceUID)


def _code(item: Dataset, name: str) -> str | None:
    found = item.get(name)
    if not found:
        return None
    return f"{found[0].get('CodingSchemeDesignator')}:{found[0].get('CodeValue') or found[0].get('LongCodeValue')}"
