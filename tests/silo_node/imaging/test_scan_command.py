"""`silo scan`: what it prints, for a person and for a script, with a silo and before there is one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread, uid
from pydicom.encaps import encapsulate
from typer.testing import CliRunner, Result

from silo_node.cli import app
from silo_node.commands import scan as commands_scan
from silo_node.imaging import header, index
from tests.silo_node.imaging import awkward

Dicom = Callable[..., Path]


def scan(*options: object) -> Result:
    return CliRunner().invoke(app, ["scan", *map(str, options)], env={"SILO_HOME": ""})


@pytest.fixture
def silo(tmp_path: Path, hospital: Path) -> Path:
    """A silo's folder over `hospital`."""
    folder = tmp_path / "silo"
    folder.mkdir()
    (folder / "silo.toml").write_text(f'name = "site-1"\nportal = "https://portal.example.org"\ndata = "{hospital}"\n')
    return folder


def lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_json_is_one_object_a_file_with_all_that_a_script_asks(silo: Path, hospital: Path, dicom: Dicom) -> None:
    dicom(hospital / "film.dcm", np.zeros((5, 7, 9), np.uint16), modality="DX", syntax=uid.RLELossless)
    (hospital / "note").write_text("no image")
    result = scan(silo, "--json")
    assert result.exit_code == 0, result.output
    by_path = {each["path"]: each for each in lines(result)}
    assert len(by_path) == 12
    assert by_path["film.dcm"] == {
        "path": "film.dcm", "status": "ok", "reason": None, "modality": "DX", "transfer_syntax": uid.RLELossless,
        "frames": 5, "shape": [7, 9],
    }  # fmt: skip
    assert by_path["note"] == {
        "path": "note", "status": "refused", "reason": "NOT_DICOM", "modality": None, "transfer_syntax": None,
        "frames": None, "shape": None,
    }  # fmt: skip
    assert by_path["images/3.dcm"]["shape"] == [40, 40]


def test_broken_labels_end_with_their_exit_code_and_each_line_is_still_a_file(silo: Path, hospital: Path) -> None:
    (hospital / "labels.csv").write_text("PatientID\nP1\n")
    result = scan(silo, "--json")
    assert result.exit_code == 2 and "LABELS_COLUMN" in result.stderr
    assert [each["status"] for each in lines(result)] == ["ok"] * 10


def test_labels_that_are_not_there_yet_are_said_and_the_scan_has_done_its_work(silo: Path, hospital: Path) -> None:
    (hospital / "labels.csv").unlink()
    result = scan(silo, "--json")
    assert result.exit_code == 0 and result.stderr.startswith("LABELS_MISSING")
    assert [each["status"] for each in lines(result)] == ["ok"] * 10
    result = scan(silo)
    assert (result.exit_code, "put it in place" in result.stderr) == (0, True), result.output
    (hospital / "labels.csv").symlink_to(hospital / "nowhere")
    assert scan(silo).exit_code == 2, "a link that leads nowhere is a fault"


def test_nobody_is_asked_to_put_right_who_opted_out(silo: Path, hospital: Path) -> None:
    (hospital / "opt_out.csv").write_text("PatientID,date\nP1,2024-01-01\n")
    shown = scan(silo).stdout
    assert "OPTED_OUT: 1" in shown and "Put them right" not in shown
    (hospital / "note").touch()
    (hospital / "opt_out.csv").unlink()
    assert "Put them right" in scan(silo).stdout


def test_any_folder_is_scanned_without_a_silo_and_nothing_is_left_behind(tmp_path: Path, dicom: Dicom) -> None:
    dicom(tmp_path / "data/1.dcm")
    before = sorted(tmp_path.rglob("*"))
    result = scan("--data", tmp_path / "data")
    assert result.exit_code == 0 and "1 files, 1 usable, 1 patients" in result.stdout
    assert sorted(tmp_path.rglob("*")) == before
    missing = scan("--data", tmp_path / "nowhere")
    assert missing.exit_code == 2 and "there is no such folder" in missing.output


@pytest.mark.parametrize("ended", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_tried_folder_leaves_no_index_behind_when_it_is_ended(tmp_path: Path, dicom: Dicom, ended: int) -> None:
    body = dicom(tmp_path / "data" / "0.dcm").read_bytes()
    for number in range(1, 3000):
        (tmp_path / "data" / f"{number}.dcm").write_bytes(body)
    kept = tmp_path / "kept"
    kept.mkdir()
    command = [sys.executable, "-m", "silo_node.cli", "scan", "--data", str(tmp_path / "data"), "--json"]
    process = subprocess.Popen(
        command, env={**os.environ, "TMPDIR": str(kept)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while not list(kept.glob("silo-scan-*/index.db")):
        assert process.poll() is None
    process.send_signal(ended)
    printed, said = process.communicate(timeout=30)
    assert (process.returncode, printed, said) == (128 + ended, b"", b"")
    assert list(kept.iterdir()) == []


def test_a_folder_of_images_in_place_of_a_silo_is_told_how_to_be_scanned(tmp_path: Path, dicom: Dicom) -> None:
    dicom(tmp_path / "im ages" / "1.dcm")
    result = scan(tmp_path / "im ages", "--json")
    assert result.exit_code == 2
    assert f"`silo scan --data '{tmp_path}/im ages'`" in json.loads(result.stdout)["error"]["sentence"]


def test_a_list_of_labels_that_is_a_pipe_is_not_waited_for(tmp_path: Path, dicom: Dicom) -> None:
    dicom(tmp_path / "data" / "a.dcm", np.zeros((4, 4), np.uint8))
    os.mkfifo(tmp_path / "data" / "labels.csv")
    command = [sys.executable, "-m", "silo_node.cli", "scan", "--data", str(tmp_path / "data"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2 and "no regular file" in done.stderr
    assert [json.loads(line)["path"] for line in done.stdout.splitlines()] == ["a.dcm"]


def test_no_files_name_steers_the_terminal_or_breaks_a_line_of_json(tmp_path: Path, dicom: Dicom) -> None:
    names = {"\x1b[2J.dcm", "\x9b2J.dcm", "a\nb.dcm", "a\u2028b.dcm", "\u202egpj.dcm", "ü.dcm"}
    for name in names:
        dicom(tmp_path / "data" / name, np.zeros((4, 4), np.uint8))
    done = scan("--data", tmp_path / "data", "--json")
    assert all(line.isprintable() for line in done.stdout.split("\n"))
    assert {json.loads(line)["path"] for line in done.stdout.splitlines()} == names


def test_a_silos_opt_out_list_holds_for_another_folder_too(
    silo: Path, tmp_path: Path, dicom: Dicom, watched: Callable[..., Any]
) -> None:
    (silo / "opt_out.csv").write_text("PatientID,date\nP3,2026-01-01\n")
    path = dicom(tmp_path / "data/1.dcm", patient="P3")
    with watched() as opened:
        result = scan(silo, "--data", tmp_path / "data", "--json")
    assert [each["reason"] for each in lines(result)] == ["PATIENT_UNKNOWN"] and path not in opened


def test_pixels_are_decoded_where_asked_for_and_the_index_remembers(silo: Path, hospital: Path, dicom: Dicom) -> None:
    damaged = dicom(hospital / "images/3.dcm", patient="P3", syntax=uid.RLELossless)
    awkward._edit(damaged, PixelData=encapsulate([awkward.NO_RLE]))
    assert scan(silo, "--summary", "--json").stdout.count('"PIXELS_CORRUPT"') == 0
    result = scan(silo, "--pixels", "--summary", "--json", "--files")
    (facts,) = lines(result)
    assert facts["problems"] == {"PIXELS_CORRUPT": 1} and facts["usable"] == 9
    assert facts["problem_files"] == [{"code": "PIXELS_CORRUPT", "file": "images/3.dcm"}]
    assert [file.problem for file in index.files(silo / "index.db") if file.problem] == ["PIXELS_CORRUPT"]


def test_pixels_of_who_opted_out_after_the_first_scan_are_not_decoded(
    silo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from silo_node.imaging.decoder_pool import DecoderPool

    assert scan(silo).exit_code == 0
    (silo / "opt_out.csv").write_text("PatientID,date\nP3,2026-01-01\n")
    asked: list[Any] = []
    decode = DecoderPool.decode
    monkeypatch.setattr(DecoderPool, "decode", lambda pool, files: asked.extend(files) or decode(pool, files))
    assert scan(silo, "--pixels").exit_code == 0
    assert len(asked) == 9 and not [file for file in asked if file.path.name == "3.dcm"]


def test_a_decoder_that_failed_once_gets_another_chance(silo: Path, hospital: Path) -> None:
    scan(silo)
    index.mark(silo / "index.db", {hospital.resolve() / "images/3.dcm": "PIXELS_SLOW"})
    assert "PIXELS_SLOW: 1" in scan(silo).stdout
    assert "10 usable" in scan(silo, "--pixels").stdout


def test_an_index_of_an_older_reader_is_read_anew(silo: Path, monkeypatch: pytest.MonkeyPatch, hospital: Path) -> None:
    monkeypatch.setattr(header, "VERSION", 1)
    assert lines(scan(silo, "--summary", "--json"))[0]["opened"] == 10
    assert lines(scan(silo, "--summary", "--json"))[0]["opened"] == 0
    monkeypatch.undo()
    assert lines(scan(silo, "--summary", "--json"))[0]["opened"] == 10


def test_links_within_the_folder_are_followed_once(tmp_path: Path, dicom: Dicom) -> None:
    dicom(tmp_path / "data/a/1.dcm")
    (tmp_path / "data/b").symlink_to("a")
    (tmp_path / "data/z.dcm").symlink_to("a/1.dcm")
    found = {each["path"]: each["reason"] for each in lines(scan("--data", tmp_path / "data", "--json"))}
    assert found == {"a/1.dcm": None, "b": "LINK_FOLDER", "z.dcm": "DUPLICATE"}


def test_a_link_to_the_data_folder_itself_is_a_row_and_no_loop(tmp_path: Path, dicom: Dicom) -> None:
    dicom(tmp_path / "data/1.dcm")
    (tmp_path / "data/loop").symlink_to(".")
    found = {each["path"]: each["reason"] for each in lines(scan("--data", tmp_path / "data", "--json"))}
    assert found == {"1.dcm": None, "loop": "LINK_FOLDER"}


def test_what_is_passed_over_is_counted_and_the_total_adds_up(tmp_path: Path, dicom: Dicom) -> None:
    data = tmp_path / "data"
    for name in ("1.dcm", "a/2.dcm", ".hidden.dcm", "a/.DS_Store", ".snapshot/1.dcm", ".snapshot/2.dcm"):
        dicom(data / name)
    (data / "labels.csv").write_text("PatientID,label\nP1,1\n")
    (data / "a/old.CSV").touch()
    (facts,) = lines(scan("--data", data, "--summary", "--json", "--pixels"))
    assert facts["passed_over"] == {"CSV": 2, "HIDDEN": 2, "HIDDEN_FOLDER": 1}
    assert facts["found"] == 7 == facts["files"] + 5 and facts["files"] == 2
    assert facts["files"] == facts["usable"] + sum(facts["problems"].values())
    text = scan("--data", data).stdout
    assert "passed over: 2 files whose name begins with a dot" in text and "2 lists (*.csv)" in text


@pytest.mark.parametrize("text", ["PatientID\nP1\n", "PatientID,label\nP1,7\n", "\0\xff", ""])
def test_labels_that_cannot_be_used_are_said_apart_from_the_images_of_any_folder(
    tmp_path: Path, dicom: Dicom, text: str
) -> None:
    dicom(tmp_path / "data/1.dcm")
    (tmp_path / "data/labels.csv").write_text(text)
    result = scan("--data", tmp_path / "data", "--json")
    assert result.exit_code == 2 and result.stderr.startswith("LABELS_")
    assert [(each["path"], each["status"]) for each in lines(result)] == [("1.dcm", "ok")]
    (facts,) = lines(scan("--data", tmp_path / "data", "--json", "--summary"))
    assert facts["usable"] == 1 and facts["error"]["code"].startswith("LABELS_")
    shown = scan("--data", tmp_path / "data")
    assert (shown.exit_code, "1 usable" in shown.stdout, "LABELS_" in shown.stderr) == (2, True, True)


def test_with_an_opt_out_list_labels_that_cannot_be_used_open_nothing(
    silo: Path, tmp_path: Path, dicom: Dicom, watched: Callable[..., Any]
) -> None:
    (silo / "opt_out.csv").write_text("PatientID,date\nP3,2026-01-01\n")
    path = dicom(tmp_path / "data/1.dcm", patient="P3")
    (tmp_path / "data/labels.csv").write_text("PatientID\n")
    with watched() as opened:
        result = scan(silo, "--data", tmp_path / "data", "--json")
    assert (result.exit_code, [each["reason"] for each in lines(result)]) == (2, ["PATIENT_UNKNOWN"])
    assert path not in opened


def test_no_value_of_a_header_that_may_be_a_name_is_printed(tmp_path: Path, dicom: Dicom) -> None:
    dicom(tmp_path / "data/1.dcm", modality="GEHEIM", PhotometricInterpretation="GEHEIM", patient="GEHEIM")
    other = dicom(tmp_path / "data/2.dcm", modality="GEHEIM")
    dataset = dcmread(other)
    dataset.file_meta.TransferSyntaxUID = uid.UID("1.2.3.19480101")
    dataset.save_as(other, implicit_vr=False, little_endian=True)
    for options in ((), ("--json",), ("--json", "--summary"), ("--pixels", "--files"), ("--pixels", "--json")):
        result = scan("--data", tmp_path / "data", *options)
        assert not [word for word in ("GEHEIM", "19480101") if word in result.output], result.output
    assert [each["modality"] for each in lines(scan("--data", tmp_path / "data", "--json"))] == ["other", "other"]


def test_help_shows_examples() -> None:
    text = scan("--help").stdout
    assert "Examples:" in text and "silo scan --data" in text
    assert commands_scan._HELP.count("silo scan") >= 4


def test_an_image_of_another_modality_than_the_silo_keeps_is_a_row_with_its_reason(
    silo: Path, hospital: Path, dicom: Dicom
) -> None:
    dicom(hospital / "a.dcm", modality="MR", sop="1.2.3")
    dicom(hospital / "b.dcm", modality="CR", sop="1.2.3")
    dicom(hospital / "c.dcm", modality=None)

    def odd() -> dict[str, str | None]:
        found = {each["path"]: each["reason"] for each in lines(scan(silo, "--json"))}
        return {name: found[name] for name in ("a.dcm", "b.dcm", "c.dcm")}

    assert odd() == {"a.dcm": None, "b.dcm": "DUPLICATE", "c.dcm": None}
    settings = silo / "silo.toml"
    before = settings.read_text()
    settings.write_text(before + 'modalities = ["CR", "DX"]\n')
    assert odd() == {"a.dcm": "WRONG_MODALITY", "b.dcm": None, "c.dcm": "WRONG_MODALITY"}
    assert "WRONG_MODALITY: 2" in scan("--data", hospital, silo).stdout
    settings.write_text(before)
    assert odd() == {"a.dcm": None, "b.dcm": "DUPLICATE", "c.dcm": None}
    settings.write_text(before + 'modalities = ["X-ray"]\n')
    refused = scan(silo)
    assert (refused.exit_code, "no modality of DICOM" in refused.output) == (2, True), refused.output
