"""Labels from structured reports: what a report says of a picture is its label, and nothing is guessed."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tomllib
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence

from silo_node import scanning
from silo_node.config import Config
from silo_node.consent.opt_out import OptOut
from silo_node.errors import UsageError
from silo_node.imaging import cohort, header, index, label_sources
from silo_node.imaging.errors import TableError
from tests.silo_node.imaging.conftest import write_dicom

Dicom = Callable[..., Path]
PRESENT, ABSENT, PNEUMONIA, OTHER = "52101004", "2667000", "233604007", "73211009"


def _code(value: str) -> Sequence:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "SCT", "Plantedsson"
    return Sequence([code])


def image_item(sop: str) -> Dataset:
    item, reference = Dataset(), Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = uid.ComputedRadiographyImageStorage, sop
    item.RelationshipType, item.ValueType, item.ReferencedSOPSequence = "CONTAINS", "IMAGE", Sequence([reference])
    return item


def finding_item(answer: str, *images: str, finding: str = PNEUMONIA) -> Dataset:
    item = Dataset()
    item.RelationshipType, item.ValueType = "CONTAINS", "CODE"
    item.ConceptNameCodeSequence, item.ConceptCodeSequence = _code(finding), _code(answer)
    item.ContentSequence = Sequence([image_item(sop) for sop in images])
    return item


def group_item(*items: Dataset) -> Dataset:
    """A measurement group of TID 1500."""
    item = Dataset()
    item.RelationshipType, item.ValueType, item.ContinuityOfContent = "CONTAINS", "CONTAINER", "SEPARATE"
    item.ConceptNameCodeSequence = _code("125007")
    item.ContentSequence = Sequence(items)
    return item


def report(path: Path, patient: str, *items: Dataset) -> Path:
    """A comprehensive SR."""
    dataset = Dataset()
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.33"
    dataset.SOPInstanceUID = uid.generate_uid(entropy_srcs=[str(path)])
    dataset.PatientID, dataset.PatientName, dataset.Modality = patient, "Plantedsson^Ada", "SR"
    dataset.ContentSequence = Sequence(items)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def config(tmp_path: Path, dicom: Dicom) -> Config:
    """A silo over three pictures of three patients, labels from reports."""
    for number in range(3):
        dicom(tmp_path / f"data/{number}.dcm", patient=f"P{number}", sop=f"1.2.{number}")
    silo = tmp_path / "silo"
    silo.mkdir()
    (silo / "silo.toml").write_text(
        f'name = "site-1"\nportal = "https://portal.example.org"\ndata = "{tmp_path / "data"}"\n'
        f'[label_source]\nsource = "sr"\nfinding = "SCT:{PNEUMONIA}"\n'
    )
    return Config.load(silo, {})


def _labels(config: Config, opt_out: OptOut | None = None) -> dict[str | None, int]:
    scanning.scan(config)
    return {row.sop: row.label for row in label_sources.of(config, opt_out).rows}


def test_a_report_labels_the_pictures_it_refers_to(config: Config, study: Callable[..., Any]) -> None:
    report(config.data / "r0.dcm", "P0", finding_item(PRESENT, "1.2.0"), finding_item(PRESENT, "1.2.0", finding=OTHER))
    report(config.data / "r1.dcm", "P1", group_item(group_item(image_item("1.2.1"), finding_item(ABSENT))))
    report(config.data / "r2.dcm", "P2", image_item("1.2.2"), group_item(finding_item(PRESENT)))
    assert _labels(config) == {"1.2.0": 1, "1.2.1": 0, "1.2.2": 1}
    made = cohort.build(study(), config.index_db, label_sources.of(config, None), None)
    assert {item.sop for item in (*made.train, *made.test)} == {"1.2.0", "1.2.1", "1.2.2"}
    assert scanning.labels_problem(config) is None


def test_another_finding_or_answer_is_no_label(config: Config) -> None:
    report(config.data / "r0.dcm", "P0", finding_item(PRESENT, "1.2.0", finding=OTHER), finding_item("1234", "1.2.1"))
    problem = (scanning.scan(config), scanning.labels_problem(config))[1]
    assert problem is not None and problem.code == "LABELS_MISSING" and "silo.toml" in problem.sentence


def test_a_report_of_another_patient_labels_nobody(config: Config, study: Callable[..., Any]) -> None:
    report(config.data / "r0.dcm", "P9", finding_item(PRESENT, "1.2.0"))
    report(config.data / "r1.dcm", "P1", finding_item(ABSENT, "1.2.1"))
    _labels(config)
    made = cohort.build(study(), config.index_db, label_sources.of(config, None), None)
    assert made.patients == ("P1",) and made.excluded["PATIENT_DIFFERS"] == 1


def test_no_label_is_used_of_a_report_that_was_exchanged_until_it_is_scanned(config: Config, tmp_path: Path) -> None:
    """By another patient's report of the same size and time, and by a link to its own copy outside."""
    reports = [report(config.data / f"r{n}.dcm", f"P{n}", finding_item(PRESENT, f"1.2.{n}")) for n in range(2)]
    assert _labels(config) == {"1.2.0": 1, "1.2.1": 1}

    def refused() -> set[str]:
        codes = set()
        for _ in range(2):  # not the first time alone
            with pytest.raises(TableError) as caught:
                label_sources.of(config, None)
            codes.add(caught.value.code)
        return codes

    seen = reports[0].stat()
    other = report(tmp_path / "other.dcm", "P1", finding_item(ABSENT, "1.2.1"))
    other.write_bytes(other.read_bytes().ljust(seen.st_size, b"\0")[: seen.st_size])
    os.utime(other, ns=(seen.st_mtime_ns, seen.st_mtime_ns))
    shutil.copy2(reports[0], tmp_path / "kept.dcm")
    other.replace(reports[0])
    assert refused() == {"LABELS_CHANGED"}
    with pytest.raises(TableError, match="LABELS_DUPLICATE"):
        _labels(config)
    shutil.copy(tmp_path / "kept.dcm", reports[0])
    assert _labels(config) == {"1.2.0": 1, "1.2.1": 1}
    shutil.copy2(reports[0], tmp_path / "kept.dcm")
    reports[0].unlink()
    reports[0].symlink_to(tmp_path / "kept.dcm")
    assert refused() == {"LABELS_CHANGED"}
    assert _labels(config) == {"1.2.1": 1}


def test_two_reports_that_contradict_each_other_are_refused(config: Config) -> None:
    report(config.data / "r0.dcm", "P0", finding_item(PRESENT, "1.2.0"))
    report(config.data / "r1.dcm", "P0", finding_item(ABSENT, "1.2.0"))
    with pytest.raises(TableError) as caught:
        _labels(config)
    assert caught.value.code == "LABELS_DUPLICATE" and "Planted" not in str(caught.value)


def test_a_report_of_who_opted_out_is_not_opened(config: Config, watched: Callable[..., Any]) -> None:
    report(config.data / "r0.dcm", "P0", finding_item(PRESENT, "1.2.0"))
    report(config.data / "r1.dcm", "P1", finding_item(PRESENT, "1.2.1"))
    _labels(config)
    with watched() as opened:
        found = label_sources.of(config, OptOut(frozenset({"P0"}), "sha256:" + "0" * 64, datetime.now(UTC)))
    assert [row.sop for row in found.rows] == ["1.2.1"]
    assert config.data / "r0.dcm" not in opened


def test_a_hostile_report_is_refused_with_a_reason(config: Config) -> None:
    item = finding_item(PRESENT, "1.2.0")
    for _ in range(60):
        item = group_item(item)
    report(config.data / "r0.dcm", "P0", item)
    with pytest.raises(TableError) as caught:
        _labels(config)
    assert caught.value.code == "LABELS_MALFORMED" and "Planted" not in str(caught.value)
    assert header.read(config.data / "r0.dcm").problem == "NO_IMAGE"
    assert index.PROBLEMS["NO_IMAGE"]


def test_a_source_without_its_code_is_refused(config: Config) -> None:
    path = config.folder / "silo.toml"
    path.write_text(path.read_text().replace(f'finding = "SCT:{PNEUMONIA}"', 'finding = "pneumonia"'))
    with pytest.raises(UsageError, match="finding"):
        Config.load(config.folder, {})


# --- a source of another package: the one that docs/developer.md prints


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package of docs/developer.md, as pip would install it."""
    docs = (Path(__file__).parents[3] / "docs" / "developer.md").read_text()
    code, project = re.findall(r"```(?:python|toml)\n(# (?:hospital_seg|its pyproject).*?)```", docs, re.DOTALL)
    folder = tmp_path / "site-packages"
    info = folder / "hospital_seg-1.dist-info"
    info.mkdir(parents=True)
    (folder / "hospital_seg.py").write_text(code)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hospital-seg\nVersion: 1\n")
    points = tomllib.loads(project)["project"]["entry-points"]
    lines = [f"[{group}]\n" + "".join(f"{n} = {value}\n" for n, value in of.items()) for group, of in points.items()]
    (info / "entry_points.txt").write_text("".join(lines))
    monkeypatch.syspath_prepend(str(folder))
    yield folder / "hospital_seg.py"
    sys.modules.pop("hospital_seg", None)


def _segmentation(path: Path, patient: str, finding: str, *sops: str) -> None:
    segment, series = Dataset(), Dataset()
    segment.SegmentNumber, segment.SegmentedPropertyTypeCodeSequence = 1, _code(finding)
    series.SeriesInstanceUID, series.ReferencedInstanceSequence = "1.9", Sequence()
    for sop in sops:
        image = Dataset()
        image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = uid.ComputedRadiographyImageStorage, sop
        series.ReferencedInstanceSequence.append(image)
    write_dicom(
        path, patient=patient, modality="SEG", SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4",
        SegmentSequence=Sequence([segment]), ReferencedSeriesSequence=Sequence([series]),
    )  # fmt: skip


def _with_source(config: Config, name: str) -> Config:
    path = config.folder / "silo.toml"
    path.write_text(path.read_text().replace('source = "sr"', f'source = "{name}"'))
    return Config.load(config.folder, {})


def test_a_source_that_a_package_brings_labels_as_the_docs_say(
    config: Config, package: Path, study: Callable[..., Any], watched: Callable[..., Any]
) -> None:
    _segmentation(config.data / "s0.dcm", "P0", PNEUMONIA, "1.2.0")
    _segmentation(config.data / "s1.dcm", "P1", OTHER, "1.2.1")
    _segmentation(config.data / "s2.dcm", "P2", PNEUMONIA, "1.2.2")
    config = _with_source(config, "seg")
    assert _labels(config) == {"1.2.0": 1, "1.2.1": 0, "1.2.2": 1}
    made = cohort.build(study(), config.index_db, label_sources.of(config, None), None)
    assert {item.sop for item in (*made.train, *made.test)} == {"1.2.0", "1.2.1", "1.2.2"}
    with watched() as opened:
        found = label_sources.of(config, OptOut(frozenset({"P0"}), "sha256:" + "0" * 64, datetime.now(UTC)))
    assert {row.sop for row in found.rows} == {"1.2.1", "1.2.2"}
    assert config.data / "s0.dcm" not in opened


@pytest.mark.parametrize("body", ["raise KeyError('Plantedsson')", "return ['Plantedsson']"])
def test_a_source_that_fails_is_named_and_shows_no_patient(config: Config, package: Path, body: str) -> None:
    package.write_text(f"def labels(config, opt_out):\n    {body}\n")
    config = _with_source(config, "seg")
    with pytest.raises(TableError) as caught:
        _labels(config)
    shown = "".join(traceback.format_exception(caught.value))
    assert caught.value.code == "LABELS_MALFORMED" and "'seg'" in str(caught.value) and "Planted" not in shown
    assert scanning.labels_problem(config) is not None


def test_a_source_that_nobody_brings_is_refused(config: Config) -> None:
    with pytest.raises(UsageError, match="csv, sr"):
        _with_source(config, "seg")
