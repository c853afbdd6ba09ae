"""`make demo`, as a newcomer types it (the command behind the make target, which only installs first)."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pydicom
import pytest

from demo import synthetic
from tests.journeys.conftest import processes_of

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "var" / "demo"
COMMAND = [sys.executable, "-m", "demo"]

pytestmark = pytest.mark.timeout(300)


def environment(**settings: str) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("DJANGO_", "CONSILIUM_", "SILO_"))}
    return {**clean, "PYTHONPATH": str(ROOT), "PORT": "0", **settings}


def left_behind() -> list[str]:
    """Living processes that the demo started."""
    return [str(process) for process in processes_of(DEMO)]


@pytest.fixture(scope="module")
def finished_demo() -> subprocess.CompletedProcess[str]:
    """One whole demo with two rounds, whose silos keep copies of all that they send."""
    return subprocess.run(
        COMMAND,
        env=environment(EXIT="1", ROUNDS="2", SILO_KEEP_COPIES="1"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )


def test_demo_ends_well_and_writes_a_true_summary(finished_demo: subprocess.CompletedProcess[str]) -> None:
    assert finished_demo.returncode == 0, finished_demo.stdout + finished_demo.stderr
    found = json.loads((DEMO / "summary.json").read_text())
    assert found["silos"] == 4
    assert found["rounds"] == 2
    assert set(found["auc"]["per_silo"]) == {path.name for path in (DEMO / "data").iterdir()}
    shared = [value for value in found["auc"]["per_silo"].values() if value is not None]
    assert found["auc"]["mean"] == pytest.approx(sum(shared) / len(shared), abs=1e-4)
    assert found["weights"] > 1000
    assert found["bytes_up_per_silo_per_round"] > 4 * found["weights"]
    assert found["evidence"]["verified"] is True
    assert found["evidence"]["entries"] > 20
    assert found["model"].startswith("sha256:")
    assert 0 < found["round_overhead_seconds"]["median"] < 60


def test_demo_leaves_no_process_behind(finished_demo: subprocess.CompletedProcess[str]) -> None:
    assert finished_demo.returncode == 0
    assert left_behind() == []


def test_nothing_that_left_a_silo_and_no_log_line_names_a_patient(
    finished_demo: subprocess.CompletedProcess[str],
) -> None:
    assert finished_demo.returncode == 0
    values: set[bytes] = set()
    for labels in DEMO.glob("data/*/labels.csv"):
        for row in csv.DictReader(labels.open()):
            values |= {row["PatientID"].encode(), row["SOPInstanceUID"].encode()}
        for path in list(labels.parent.glob("dicom/**/*.dcm")):
            header = pydicom.dcmread(path, stop_before_pixels=True)
            for name in ("PatientName", "PatientBirthDate", "AccessionNumber", "InstitutionName", "StudyInstanceUID"):
                text = str(header.get(name, ""))
                if len(text) > 5:
                    values.add(text.encode())
    assert len(values) > 500
    sent = [path for path in DEMO.glob("silos/*/sent/**/*") if path.is_file()]
    assert len(sent) > 50
    logs = [
        *DEMO.glob("silos/*/*.log"),
        *DEMO.glob("silos/*/log/**/*"),
        *DEMO.glob("portal/*.log"),
        *DEMO.glob("export/**/*"),
    ]
    for path in [*sent, *(each for each in logs if each.is_file())]:
        content = path.read_bytes()
        assert not [value for value in values if value in content], f"{path} names a patient"


def test_verifier_names_the_entry_after_one_changed_byte(
    finished_demo: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    assert finished_demo.returncode == 0
    export = tmp_path / "export"
    shutil.copytree(DEMO / "export", export)
    bundle = next(path for path in (export / "tile" / "entries").rglob("*") if path.is_file())
    content = bytearray(bundle.read_bytes())
    content[len(content) // 2] ^= 1
    bundle.chmod(0o644)
    bundle.write_bytes(content)
    verify = [sys.executable, "-m", "protocol.transparency.verify"]
    bare = {"PYTHONPATH": str(ROOT)}
    good = subprocess.run([*verify, str(DEMO / "export")], env=bare, capture_output=True, text=True, check=False)
    bad = subprocess.run([*verify, str(export)], env=bare, capture_output=True, text=True, check=False)
    assert good.returncode == 0, good.stdout + good.stderr
    assert bad.returncode == 1
    assert "entry" in (bad.stdout + bad.stderr).lower()


def test_ctrl_c_in_the_middle_leaves_nothing_running(finished_demo: subprocess.CompletedProcess[str]) -> None:
    assert finished_demo.returncode == 0  # the same folder: one after the other
    process = subprocess.Popen(
        COMMAND, env=environment(ROUNDS="50"), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "first model agreed" in line:
                break
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(60) == 130, rest
    finally:
        if process.poll() is None:
            process.kill()
    assert left_behind() == []


def test_demo_with_fewer_than_three_hospitals_says_why(tmp_path: Path) -> None:
    for name in ("north", "south"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "labels.csv").write_text("PatientID,SOPInstanceUID,label,finding,split,file\n")
    done = subprocess.run(
        COMMAND, env=environment(EXIT="1", DATA=str(tmp_path)), cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "3 to 20" in " ".join(done.stdout.split())


def test_a_hospital_with_too_few_patients_declines_with_the_reason(
    finished_demo: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    assert finished_demo.returncode == 0  # the same folder: one after the other
    folders = synthetic.write(tmp_path / "data", hospitals=4, images=40, seed=7)
    labels = folders[1] / "labels.csv"
    labels.write_text("\n".join(labels.read_text().splitlines()[:4]) + "\n")
    done = subprocess.run(
        COMMAND,
        env=environment(EXIT="1", ROUNDS="1", DATA=str(tmp_path / "data")),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    said = " ".join(done.stdout.split())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "site-2 declines" in said
    assert "patients" in said[said.index("site-2 declines") :][:400]
    found = json.loads((DEMO / "summary.json").read_text())
    assert found["silos"] == 4
    assert found["auc"]["per_silo"]["site_2"] is None
    assert sum(value is not None for value in found["auc"]["per_silo"].values()) == 3
