"""What goes wrong at a hospital, through the command itself: exit code, what, where, what to do, and no patient's name."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
import subprocess
import sys

import psutil
import pytest

from silo_node.node import FolderLock
from tests.silo_node.conftest import PASSPHRASE, ROOT
from tests.silo_node.portal_double import PortalDouble
from tests.silo_node.test_gate_cohort import write_image

PATIENTS = [f"PAT-{number:04d}" for number in range(4)]


@pytest.fixture
def passphrase(tmp_path):
    path = tmp_path / "passphrase"
    path.write_bytes(PASSPHRASE + b"\n")
    return str(path)


@pytest.fixture
def images(silo):
    """Four patients with a picture each, and labels.csv; returns its lines."""
    lines = ["PatientID,label,split,file"]
    for number, patient in enumerate(PATIENTS):
        write_image(silo.config.data / f"image{number}.dcm", patient)
        lines.append(f"{patient},{number % 2},train,image{number}.dcm")
    (silo.config.data / "labels.csv").write_text("\n".join(lines) + "\n")
    return lines


def full_disk(limit=0):
    """For `command`: no file of the process can grow beyond `limit` bytes, as on a disk or quota that is full."""
    return {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))}


def without_rights():
    """For `command`: root, where the tests run as root, that has to keep to files' modes as anybody else."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None)
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP; holds from the next exec on


def said(done, exit_code, *words):
    """The whole output, checked: the exit code, each word, no identity and no traceback."""
    text = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == exit_code, text
    for word in words:
        assert word in text, text
    for identity in (*PATIENTS, "Musterfrau", "Traceback"):
        assert identity not in text
    return text


def test_a_second_run_names_the_process_and_what_to_do(silo):
    lock = FolderLock(silo.folder)
    done = silo.command("run", str(silo.folder))
    said(done, 5, "ALREADY_RUNNING", f"process {os.getpid()}", str(silo.folder), "stop that one first")
    lock.release()


@pytest.mark.parametrize("shift", [-4000, 4000])
def test_a_wrong_clock_is_named_with_both_times(silo, portal, passphrase, shift):
    study = portal.make_study()
    portal.clock_shift = shift
    done = silo.command("approve", str(silo.folder), study, "--passphrase-file", passphrase, "--yes")
    text = said(done, 4, "CLOCK_SKEW", "set the clock")
    times = [
        word for word in text.replace(",", " ").replace(";", " ").split() if word.startswith("20") and word[-1] == "Z"
    ]
    assert len(times) == 2
    assert times[0] != times[1]
    assert portal.approvals == []


@pytest.mark.parametrize("limit", [0, 100])
def test_making_a_silo_on_a_full_disk_leaves_nothing_in_the_way(silo, portal, passphrase, tmp_path, limit):
    arguments = (
        *("init", str(tmp_path / "new"), "--name", "site-9", "--portal", portal.address, "--data", str(tmp_path)),
        *("--steward", "Dr. New", "--passphrase-file", passphrase),
    )
    said(silo.command(*arguments, **full_disk(limit)), 1, "SILO_DISK_FULL", "make room")
    said(silo.command(*arguments), 0, "Fingerprint")


def test_a_scan_on_a_full_disk_loses_nothing(silo, images):
    said(silo.command("scan", str(silo.folder), **full_disk()), 1, "DISK_FULL", "No space is left", "scan again")
    said(silo.command("scan", str(silo.folder)), 0, "4 files, 4 usable")


@pytest.mark.parametrize("limit", [0, 2000])
def test_a_decision_on_a_full_disk_is_not_half_made(silo, portal, passphrase, limit):
    study = portal.make_study()
    arguments = ("approve", str(silo.folder), study, "--passphrase-file", passphrase, "--yes")
    said(silo.command(*arguments, **full_disk(limit)), 1, "SILO_DISK_FULL", "make room")
    assert portal.approvals == []
    assert not list(silo.folder.rglob("*.tmp"))
    said(silo.command(*arguments), 0, "Signed and sent")


def test_the_doctor_on_a_full_disk_says_make_room_and_never_to_remove_a_file(silo, images):
    said(silo.command("scan", str(silo.folder)), 0)
    text = said(silo.command("doctor", str(silo.folder), **full_disk()), 1, "Make room", "Nothing more can be written")
    assert "Remove" not in text
    assert "silo.log" not in text, "the doctor writes nothing there"


NEW = ("--name", "site-9", "--portal", "https://portal.invalid", "--data", "/tmp")


@pytest.mark.parametrize(
    ("settings", "arguments", "words"),
    [
        ('name = "x', NEW, ("silo.toml exists and can't be read", "correct it, or remove it")),
        (b"name = '\xfc'", NEW, ("silo.toml exists and can't be read", "correct it, or remove it")),
        (None, (*NEW[:3], "https://portal.invalid:https", *NEW[4:]), ("--portal: the port must be a number",)),
        (None, (*NEW[:3], "https://portal.invalid:99999", *NEW[4:]), ("--portal: the port must be a number",)),
        (None, (*NEW[:5], "/tmp/a\x7fb"), ("control character", "type it anew")),
    ],
)
def test_a_new_silo_with_a_wrong_answer_or_broken_settings_is_refused_and_nothing_is_made(
    silo, tmp_path, settings, arguments, words
):
    folder = tmp_path / "new"
    if settings is not None:
        folder.mkdir()
        (folder / "silo.toml").write_bytes(settings if isinstance(settings, bytes) else settings.encode())
    said(silo.command("init", str(folder), *arguments), 2, *words)
    assert not (folder / "keys").exists()
    assert settings is not None or not (folder / "silo.toml").exists()


def test_a_folder_that_can_not_be_made_is_named(silo, tmp_path):
    (tmp_path / "file").touch()
    said(silo.command("init", str(tmp_path / "file" / "silo"), *NEW), 2, f"{tmp_path}/file/silo", "correct the path")
    said(silo.command("init", str(tmp_path / ("x" * 300)), *NEW), 2, "x" * 300, "use a shorter path")
    (tmp_path / "a folder").mkdir()
    metrics = ("metrics", str(silo.folder), "--out", str(tmp_path / "a folder"))
    said(silo.command(*metrics), 2, f"{tmp_path}/a folder: this is a folder, not a file")


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root to mount read-only")
@pytest.mark.parametrize("command", ["run", "scan", "consent import list.csv", "trust propose --needed 1"])
def test_a_drive_that_is_mounted_read_only_is_named_with_what_to_do(silo, tmp_path, command):
    (tmp_path / "list.csv").write_text("PatientID,date\n")
    words = [str(tmp_path / word) if word == "list.csv" else word for word in command.split()]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"',
         str(silo.folder), sys.executable, "-m", "silo_node.cli", *words],
        cwd=ROOT, env={**os.environ, "SILO_HOME": str(silo.folder)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    said(done, 2, "read-only", "mount")


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root to mount")
@pytest.mark.parametrize("how", ["full", "read-only"])
def test_the_status_needs_no_room_and_hides_nothing_else_that_is_wrong(silo, images, tmp_path, how):
    """On a drive of its own, without a free byte or mounted read-only, with two more things wrong."""
    (silo.config.data / "labels.csv").write_text("PatientID,label\nPAT-0000,seven\n")
    (silo.folder / "status.json").write_text(json.dumps({"state": "idle", "problems": []}))
    kept = tmp_path / "drive"
    kept.mkdir()
    spoil = {
        "full": "dd if=/dev/zero of=$0/fill bs=4k 2>/dev/null; dd if=/dev/zero of=$0/fill2 bs=1 2>/dev/null; ",
        "read-only": "mount -o remount,ro $0; ",
    }[how]
    script = f'mount -t tmpfs -o size=4m none $0 && cp -a $1 $0/silo && {{ {spoil} true; }} && shift 1 && exec "$@"'
    for command in ("status", "metrics"):
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", script, str(kept), str(silo.folder), sys.executable, "-m", "silo_node.cli",
             command, str(kept / "silo"), "--json"],
            cwd=ROOT, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        text = said(done, 0)
        found = json.loads(done.stdout)
        if command == "metrics":
            told = {each["labels"]["code"] for each in found["samples"] if each["name"] == "consilium_silo_problems"}
            sent = sum(each["value"] for each in found["samples"] if each["name"] == "consilium_silo_requests_total")
        else:
            told = {each["code"] for each in found["problems"]}
            sent = sum(each["requests"] for each in found["sent"].values())
            assert found["policy"] is not None
            assert how == "full" or "mounted read-only: mount it for writing" in text
        assert {"NOT_RUNNING", "SILO_DISK_FULL" if how == "full" else "USAGE"} <= told
        assert any(code.startswith("LABELS_") for code in told), told
        assert sent > 0


def test_a_passphrase_that_was_not_saved_as_utf_8_is_told(silo, tmp_path):
    """As an editor on an old machine saves "Schlüssel"."""
    (tmp_path / "latin").write_bytes("Schlüssel\n".encode("latin-1"))
    done = silo.command("steward", str(silo.folder), "--person", "B", "--passphrase-file", str(tmp_path / "latin"))
    said(done, 2, str(tmp_path / "latin"), "save it as UTF-8")


def new_policy(silo, tmp_path, passphrase, permission):
    """The arguments that sign the page's policy (docs/hospital-it.md) with another permission."""
    page = (ROOT / "docs" / "hospital-it.md").read_text()
    content = json.loads(page.split("<<'POLICY'\n")[1].split("\nPOLICY\n")[0]) | {"permission": permission}
    (tmp_path / "policy.json").write_text(json.dumps(content))
    return "policy", str(silo.folder), "--file", str(tmp_path / "policy.json"), "--passphrase-file", str(passphrase)


def test_a_policy_is_shown_in_words_before_it_is_signed_and_at_a_terminal_can_be_declined(silo, tmp_path, passphrase):
    """A code that nobody knows denies everything: the steward sees that in time."""
    before = (silo.folder / "policy.json").read_bytes()
    (tmp_path / "wrong").write_text("not the passphrase\n")
    arguments = new_policy(silo, tmp_path, tmp_path / "wrong", permission="DUO:9999999")
    said(
        silo.command(*arguments),
        2,
        "DUO:9999999 is not a known permission",
        "every study is denied",
        "passphrase is wrong",
    )
    arguments = new_policy(silo, tmp_path, passphrase, permission="DUO:9999999")
    for answer, code, changed in (("n", 2, False), ("y", 0, True)):
        terminal, there = os.openpty()
        os.write(terminal, f"{answer}\n".encode())
        said(silo.command(*arguments, stdin=there), code, "every study is denied", "Sign this policy?")
        assert ((silo.folder / "policy.json").read_bytes() != before) == changed
        os.close(terminal)
        os.close(there)


def test_a_policy_names_the_hospital_also_where_the_portal_is_not_asked(silo, portal, tmp_path, passphrase):
    organisation = json.loads((silo.folder / "portal.json").read_text())["organisation"]
    arguments = new_policy(silo, tmp_path, passphrase, permission="DUO:0000006")
    portal.close()
    said(silo.command(*arguments), 0, f"Data-use policy of {organisation} (silo site-1)")
    assert organisation != "site-1"


def test_a_silo_without_a_policy_is_not_told_what_its_policy_asks_for(silo):
    (silo.folder / "policy.json").unlink()
    text = said(
        silo.command("doctor", str(silo.folder)), 1, "No data-use policy is in force, so nobody counts as consenting"
    )
    assert "policy asks for" not in text
    text = said(
        silo.command("consent", "status", "--folder", str(silo.folder)), 0, "DENY, because no policy is in force"
    )
    assert "signed policy" not in text


def test_a_steward_whose_name_can_not_stand_in_the_trust_leaves_no_key_behind(silo, portal, passphrase, tmp_path):
    folder = tmp_path / "new"
    said(silo.command("init", str(folder), *NEW), 0)
    made = ("steward", str(folder), "--passphrase-file", passphrase, "--person")
    said(silo.command(*made, "Dr. \x1b[31mA"), 2, "--person", "control or direction character")
    assert not list((folder / "keys").glob("steward-*"))
    said(silo.command(*made, "Dr. A"), 0)


def test_an_index_that_this_user_may_not_write_is_not_called_damaged(silo, images):
    said(silo.command("scan", str(silo.folder)), 0)
    silo.config.index_db.chmod(0)
    done = silo.command("scan", str(silo.folder), preexec_fn=without_rights)
    text = said(done, 2, "INDEX_READ_ONLY", str(silo.config.index_db), "owner")
    assert "delete" not in text


def test_a_data_folder_that_is_away_or_empty_is_named(silo, tmp_path):
    data = silo.config.data
    said(silo.command("scan", str(silo.folder)), 2, "DATA_FOLDER_EMPTY", str(data), "drive is mounted")
    data.rmdir()
    said(silo.command("scan", str(silo.folder)), 2, "DATA_FOLDER_MISSING", str(data), "silo.toml")
    (tmp_path / "file").touch()
    said(silo.command("scan", "--data", str(tmp_path / "file")), 2, f"{tmp_path}/file: is a file")
    said(silo.command("scan", "--data", str(tmp_path / "none")), 2, f"{tmp_path}/none: there is no such folder")


def test_a_silo_that_can_not_even_begin_says_so(silo):
    said(silo.command("run", str(silo.folder), **full_disk()), 1, "SILO_DISK_FULL", "make room and try again")


def test_a_disk_that_is_full_in_a_round_costs_the_round_and_not_the_silo(tmp_path):
    """Its messages fit, the update of 2 MB does not: it says so to the portal, works on, and is back when there is room."""
    from tests.silo_node.conftest import SiloUnderTest

    portal = PortalDouble(parameters=500_000)
    silo = SiloUnderTest(tmp_path / "silo", portal)
    try:
        silo.enrol()
        silo.policy()
        portal.make_study()
        silo.decide()
        run = silo.start()
        portal.holding = True
        portal.begin()
        portal.wait(lambda: portal.finished(0))
        tree = [run.pid, *(child.pid for child in psutil.Process(run.pid).children(recursive=True))]
        for pid in tree:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
        portal.go_on(hold=True)
        [(code, sentence)] = portal.wait(lambda: portal.refused())
        assert code == "SILO_DISK_FULL"
        assert "full" in sentence or "room" in sentence
        assert str(silo.folder) not in sentence
        portal.wait(lambda: portal.finished(1))
        assert "site-1" not in portal.round(1).members
        assert run.poll() is None
        assert "SILO_DISK_FULL" in [problem["code"] for problem in silo.status()["problems"]]
        for pid in tree:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        portal.go_on()
        portal.wait(lambda: portal.finished(2))
        assert "site-1" in portal.round(2).members
        assert not list(silo.folder.rglob("*.tmp"))
    finally:
        silo.close()
        portal.close()


def test_an_opt_out_list_that_forgets_somebody_is_not_taken_by_accident(silo, tmp_path):
    """Such as an export of this month's objections only: those of the months before would be used again."""
    whole, rest = tmp_path / "whole.csv", tmp_path / "rest.csv"
    whole.write_text(f"PatientID,date\n{PATIENTS[0]},2025-01-01\n{PATIENTS[1]},2025-01-01\n")
    rest.write_text(f"PatientID,date\n{PATIENTS[1]},2025-01-01\n{PATIENTS[2]},2025-02-01\n")
    home = ("--folder", str(silo.folder))
    said(silo.command("consent", "import", str(whole), *home), 0, "2 patients have opted out")
    said(silo.command("consent", "import", str(rest), *home), 3, "OPT_OUT_SHORTER", "1 patients", "rest.csv", "--yes")
    assert (silo.folder / "opt_out.csv").read_bytes() == whole.read_bytes()
    said(silo.command("consent", "import", str(rest), "--yes", *home), 0, "1 patients of the list in force are missing")
    assert (silo.folder / "opt_out.csv").read_bytes() == rest.read_bytes()
    (silo.folder / "opt_out.csv").write_text("damaged")
    said(silo.command("consent", "import", str(whole), *home), 0, "2 patients have opted out")


def test_a_corrupt_file_is_counted_with_its_reason_and_named_where_asked_for(silo, images):
    path = silo.config.data / "image2.dcm"
    rows = b"\x28\x00\x10\x00US"
    path.write_bytes(path.read_bytes().replace(rows + b"\x02\x00", rows + b"\x01\x00"))
    text = said(silo.command("scan", str(silo.folder)), 0, "3 usable", "silo scan --files", str(silo.config.data))
    assert "CORRUPT: 1 (the header is damaged or cut off)" in text
    assert "image2.dcm" not in text, "a file's name may be a patient's"
    said(silo.command("scan", str(silo.folder), "--files"), 0, "image2.dcm")
    facts = json.loads(silo.command("scan", str(silo.folder), "--files", "--summary", "--json").stdout)
    assert [each["file"] for each in facts["problem_files"]] == ["image2.dcm"]


def test_a_missing_column_is_named(silo, images):
    table = silo.config.data / "labels.csv"
    table.write_text("\n".join(line.replace(",label", "") for line in images) + "\n")
    said(silo.command("scan", str(silo.folder)), 2, "LABELS_MALFORMED", "labels.csv, line 2")
    table.write_text("PatientID,split,file\nPAT-0000,train,image0.dcm\n")
    said(silo.command("scan", str(silo.folder)), 2, "LABELS_COLUMN", "labels.csv, line 1", "`label`", "add it")
    facts = json.loads(silo.command("scan", str(silo.folder), "--summary", "--json").stdout)
    assert (facts["files"], facts["error"]["code"]) == (4, "LABELS_COLUMN")


def test_a_patient_in_both_splits_is_named_by_line(silo, images):
    write_image(silo.config.data / "image9.dcm", PATIENTS[0])
    (silo.config.data / "labels.csv").write_text("\n".join([*images, f"{PATIENTS[0]},0,test,image9.dcm"]) + "\n")
    said(silo.command("scan", str(silo.folder)), 2, "LABELS_SPLIT", "labels.csv, lines 2 and 6", "the same split")


def test_with_opt_outs_nothing_is_scanned_without_labels(silo, images):
    (silo.folder / "opt_out.csv").write_text(f"PatientID,date\n{PATIENTS[1]},2026-01-01\n")
    (silo.config.data / "labels.csv").unlink()
    said(silo.command("scan", str(silo.folder)), 3, "LABELS_NEEDED", "Nothing was opened", "labels.csv", "scan again")


def test_two_opt_out_lists_are_one_too_many(silo, images):
    for folder in (silo.folder, silo.config.data):
        (folder / "opt_out.csv").write_text("PatientID,date\n")
    said(silo.command("scan", str(silo.folder)), 2, "OPT_OUT_SEVERAL", "keep one")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_somebody_else_is_named(silo, portal, passphrase):
    silo.folder.chmod(0o500)
    done = silo.command("approve", str(silo.folder), "st-abc", "--passphrase-file", passphrase, "--yes")
    silo.folder.chmod(0o700)
    said(done, 2, "owner")
