"""`consilium-verify`: what an auditor runs alone. One changed byte anywhere fails, and says where."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from protocol.canonical import encode
from protocol.signing import SigningKey
from protocol.transparency import export, verify
from protocol.transparency.export import ExportError, check_export
from protocol.transparency.log_policy import write_log_policy
from protocol.transparency.note import Checkpoint, LogKey, WitnessKey, add_signatures, cosign, sign_checkpoint
from protocol.transparency.proof import make_proof
from protocol.transparency.tiles import FolderTileStore, append, entries, inclusion_from_tiles, join_bundle
from protocol.transparency.tree import leaf_hash, root

ROOT = Path(__file__).parents[2]
LOG = LogKey("portal.example.org/audit", SigningKey.from_bytes(b"l" * 32))
OTHER = LogKey("elsewhere.example.org/audit", SigningKey.from_bytes(b"e" * 32))
ONE, TWO = (WitnessKey(f"site-{at}/witness", SigningKey.from_bytes(bytes([at]) * 32)) for at in (1, 2))
SIZE = 300


def record(at: int, **changes: Any) -> bytes:
    return encode(
        {
            "v": 1,
            "id": f"0193a5f0-1234-7abc-8def-{at:012x}",
            "time": f"2026-11-23T10:{at // 60 % 60:02d}:{at % 60:02d}.000Z",
            "type": "log.genesis" if at == 0 else "round.finished" if at % 3 else "study.approved",
            "actor": {"id": "portal", "role": "system", "org": None, "auth": None},
            "subject": {"kind": "study", "id": f"st-{at}", "version": None},
            "outcome": "success",
            "reasons": [],
            "refs": {},
            "data": {"n": at},
            "private": "sha256:" + "0" * 64 if at % 10 == 0 else None,
        }
        | changes
    )


RECORDS = [record(at) for at in range(SIZE)]


def note_at(records: Sequence[bytes], size: int, log: LogKey = LOG, witnesses: Sequence[WitnessKey] = ()) -> str:
    checkpoint = Checkpoint(log.origin, size, root([leaf_hash(item) for item in records[:size]]))
    note = sign_checkpoint(checkpoint, log)
    for number, witness in enumerate(witnesses):
        note = add_signatures(note, cosign(checkpoint, witness, 1_795_428_000 + number))
    return note


def write(
    folder: Path, records: list[bytes], log: LogKey = LOG, witnesses: tuple[WitnessKey, ...] = ()
) -> FolderTileStore:
    """An export with the leftovers of an earlier checkpoint, and two proofs."""
    store = FolderTileStore(folder)
    old = min(len(records), 20)
    append(store, 0, records[:old])
    size, _ = append(store, old, records[old:])
    note = note_at(records, size, log, witnesses)
    store.write("checkpoint", note.encode())
    text = write_log_policy([log.vkey], [item.vkey for item in witnesses], len(witnesses))
    (folder / "policy").write_text(text)
    if records:
        (folder / "proofs").mkdir()
        write_proof(store, "first", 0, note, records)
        write_proof(store, "early", old - 1, note_at(records, old, log, witnesses), records, old)
    return store


def write_proof(
    store: FolderTileStore, name: str, index: int, note: str, records: list[bytes], size: int | None = None
) -> None:
    hashes = inclusion_from_tiles(store, index, size or len(records))
    (store.folder / "proofs" / f"{name}.tlog-proof").write_text(make_proof(index, hashes, note))
    (store.folder / "proofs" / f"{name}.json").write_bytes(records[index])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "export"
    write(folder, RECORDS, witnesses=(ONE, TWO))
    return folder


@pytest.fixture
def exported(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "export")


def faults(folder: Path, **options: str) -> list[export.Fault]:
    with pytest.raises(ExportError) as caught:
        check_export(folder, **options)
    return list(caught.value.faults)


# All is well


def test_a_good_export_is_verified(made: Path) -> None:
    report = check_export(made)
    assert (report.checkpoint.origin, report.checkpoint.size) == (LOG.origin, SIZE)
    assert {row.type: row.count for row in report.types} == {
        "log.genesis": 1,
        "round.finished": 200,
        "study.approved": 99,
    }
    assert (report.proofs, report.private, len(report.cosignatures)) == (2, 30, 2)
    (row,) = [row for row in report.types if row.type == "round.finished"]
    assert (row.first, row.last) == ("2026-11-23T10:00:01.000Z", "2026-11-23T10:04:59.000Z")


def test_the_command_prints_a_table_and_ok(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main([str(made)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"log      {LOG.origin}"
    assert "round.finished      200  2026-11-23T10:00:01.000Z  2026-11-23T10:04:59.000Z" in lines
    assert any(line.startswith("witness  site-2/witness at 2026-11-23T") for line in lines)
    assert any("never written" in line for line in lines)
    assert lines[-1] == f"ok: {SIZE} entries verified"


def test_the_command_prints_one_json_object(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main([str(made), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["entries"], found["log"]["origin"], found["proofs"]) == (True, SIZE, LOG.origin, 2)
    assert [item["time"] for item in found["cosignatures"]] == [1_795_428_000, 1_795_428_001]


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 512])
def test_logs_of_edge_sizes_are_verified(tmp_path: Path, size: int, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "export", [record(at) for at in range(size)])
    assert verify.main([str(tmp_path / "export")]) == 0
    assert "witness  none" in capsys.readouterr().out


def test_it_runs_without_network_django_torch_or_anything_else(made: Path) -> None:
    """A fresh interpreter that can open no socket and import nothing but what an auditor installs."""
    program = f"""
import sys
class Blocker:
    allowed = {{"protocol", "rfc8785", "cryptography", "_cffi_backend", "cffi"}}
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in self.allowed:
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Blocker())
def refuse(event, arguments):
    if event.startswith(("socket.", "urllib.", "http.", "subprocess.", "os.exec", "os.system")):
        raise RuntimeError("blocked: " + event)
sys.addaudithook(refuse)
sys.path.insert(0, {str(ROOT)!r})
from protocol.transparency.verify import main
status = main([{str(made)!r}])
for name in ("django", "torch", "numpy", "pydantic", "celery", "httpx", "typer", "rich", "socket", "ssl", "silo_node"):
    assert name not in sys.modules, name
sys.exit(status)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd="/")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(f"ok: {SIZE} entries verified\n")


def test_the_module_is_a_command(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["consilium-verify", str(made), "--json"])
    monkeypatch.delitem(sys.modules, "protocol.transparency.verify")
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("protocol.transparency.verify", run_name="__main__")
    assert caught.value.code == 0


# One changed byte


def test_one_changed_byte_anywhere_fails_and_says_where(exported: Path) -> None:
    """Three bytes of each small file's every part, and of each tile; every file of the export takes its turn."""
    for path in sorted(item for item in exported.rglob("*") if item.is_file()):
        name, good = path.relative_to(exported).as_posix(), path.read_bytes()
        for at in sorted({0, 1, 40, len(good) // 2, len(good) - 1} & set(range(len(good)))):
            for flip in (0x01, 0x80):
                path.write_bytes(good[:at] + bytes([good[at] ^ flip]) + good[at + 1 :])
                found = faults(exported)
                wheres = " ".join(map(str, found))
                beside = name.replace(".json", ".tlog-proof")
                assert name in wheres or beside in wheres or "policy" in wheres, (name, at, flip, wheres)
        path.write_bytes(good)
    check_export(exported)


def test_every_byte_of_the_signed_and_pinned_texts_counts(tmp_path: Path) -> None:
    write(tmp_path / "export", [record(at) for at in range(3)], witnesses=(ONE, TWO))
    for name in (
        "checkpoint",
        "policy",
        "proofs/early.tlog-proof",
        "proofs/early.json",
        "tile/entries/000.p/3",
        "tile/0/000.p/3",
    ):
        path = tmp_path / "export" / name
        good = path.read_bytes()
        for at in range(0, len(good), 1 if name in ("checkpoint", "policy") else 3):
            path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
            assert faults(tmp_path / "export"), (name, at)
        path.write_bytes(good)
    check_export(tmp_path / "export")


@pytest.mark.parametrize("index", [0, 1, 17, 255, 256, 299])
def test_a_changed_entry_is_named(exported: Path, index: int) -> None:
    path = exported / ("tile/entries/000" if index < 256 else "tile/entries/001.p/44")
    start = sum(len(item) + 2 for item in RECORDS[index // 256 * 256 : index])
    data = bytearray(path.read_bytes())
    data[start + 60] ^= 1
    path.write_bytes(data)
    first = faults(exported)[0]
    assert (first.where, first.entry) == (path.relative_to(exported).as_posix(), index)
    assert "its bytes hash to" in first.what


@pytest.mark.parametrize("index", [0, 19, 255, 256, 299])
def test_a_changed_hash_in_a_tile_names_its_entry(exported: Path, index: int) -> None:
    path = exported / ("tile/0/000" if index < 256 else "tile/0/001.p/44")
    data = bytearray(path.read_bytes())
    data[index % 256 * 32 + 9] ^= 4
    path.write_bytes(data)
    assert faults(exported)[0].entry == index


def test_a_changed_length_names_its_entry(exported: Path) -> None:
    path = exported / "tile/entries/000"
    good = path.read_bytes()
    start = sum(len(item) + 2 for item in RECORDS[:7])
    for high, low in ((0xFF, 0xFF), (0, 5), (0, 0)):
        path.write_bytes(good[:start] + bytes([high, low]) + good[start + 2 :])
        assert faults(exported)[0].entry == 7


def test_a_changed_hash_of_a_higher_tile_names_its_range(exported: Path) -> None:
    path = exported / "tile/1/000.p/1"
    path.write_bytes(bytes(32))
    found = faults(exported)
    assert (found[0].where, found[0].entry) == ("tile/1/000.p/1", 0)
    assert "entries 0 to 255" in found[0].what
    assert [fault.where for fault in found] == ["tile/1/000.p/1", "checkpoint"]


def test_the_command_names_the_entry_and_fails(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = exported / "tile/entries/000"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert verify.main([str(exported)]) == 1
    out = capsys.readouterr().out
    assert "tile/entries/000, entry 255: its bytes hash to" in out and "ok" not in out.split()
    assert out.endswith("FAILED: 1 fault\n")
    assert verify.main([str(exported), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False and found["faults"][0]["entry"] == 255


# What else can be wrong


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def put(name: str, data: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)

    return change


def link(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).rename(folder.parent / "outside")
        (folder / name).symlink_to(folder.parent / "outside")

    return change


@pytest.mark.parametrize(
    ("change", "where", "what"),
    [
        (drop("policy"), "policy", "missing"),
        (drop("checkpoint"), "checkpoint", "missing"),
        (drop("tile/entries/001.p/44"), "tile/entries/001.p/44", "missing"),
        (drop("tile/0/000"), "tile/0/000", "missing"),
        (drop("tile/1/000.p/1"), "tile/1/000.p/1", "missing"),
        (drop("proofs/first.json"), "proofs/first.tlog-proof", "side by side"),
        (drop("proofs/first.tlog-proof"), "proofs/first.json", "side by side"),
        (put("policy", b"\xff"), "policy", "UTF-8"),
        (put("checkpoint", b"\xff"), "checkpoint", "UTF-8"),
        (put("policy", b"# mine\n" + write_log_policy([LOG.vkey]).encode()), "policy", "one spelling"),
        (put("policy", write_log_policy([LOG.vkey]).encode()), "checkpoint", "signature 2"),
        (put("policy", write_log_policy([OTHER.vkey]).encode()), "checkpoint", "knows no log"),
        (put("tile/0/001.p/44", b"\0" * 5), "tile/0/001.p/44", "5 bytes"),
        (put("tile/1/000.p/1", b""), "tile/1/000.p/1", "0 bytes"),
        (put("tile/entries/000", join_bundle(RECORDS[:255])), "tile/entries/000", "entry is missing"),
        (put("tile/entries/000", join_bundle(RECORDS[:257])), "tile/entries/000", "too many"),
        (put("tile/entries/000", join_bundle(RECORDS[:255]) + b"\0"), "tile/entries/000", "beyond the end"),
        (put("tile/entries/000.p/20", join_bundle(RECORDS[:19])), "tile/entries/000.p/20", "not the beginning"),
        (put("tile/entries/000.p/20", join_bundle(RECORDS[1:21])), "tile/entries/000.p/20", "not the beginning"),
        (put("tile/entries/000.p/20", b"\xff"), "tile/entries/000.p/20", "not the beginning"),
        (put("tile/0/000.p/20", b"\0" * 640), "tile/0/000.p/20", "not the beginning"),
        (put("tile/0/000.p/20", b""), "tile/0/000.p/20", "not the beginning"),
        (put("tile/0/001.p/45", b""), "tile/0/001.p/45", "beyond the 300"),
        (put("tile/0/002.p/1", b""), "tile/0/002.p/1", "beyond the 300"),
        (put("tile/2/000.p/1", b""), "tile/2/000.p/1", "beyond the 300"),
        (put("README", b"trust me"), "README", "nothing vouches"),
        (put("tile/0/000.bak", b""), "tile/0/000.bak", "nothing vouches"),
        (put("proofs/notes.txt", b""), "proofs/notes.txt", "nothing vouches"),
        (put("other/first.json", b""), "other/first.json", "nothing vouches"),
        (link("tile/0/000"), "tile/0/000", "missing"),
        (link("tile/0/000.p/20"), "tile/0/000.p/20", "nothing vouches"),
        (link("proofs"), "proofs", "nothing vouches"),
        (put("proofs/first.tlog-proof", b"\xff"), "proofs/first.tlog-proof", "UTF-8"),
        (put("proofs/first.tlog-proof", b"no"), "proofs/first.tlog-proof", "must begin"),
        (put("proofs/first.json", RECORDS[1]), "proofs/first.tlog-proof", "does not lead"),
    ],
)
def test_each_fault_is_named_with_its_file(
    exported: Path, change: Callable[[Path], None], where: str, what: str
) -> None:
    change(exported)
    assert any(fault.where == where and what in fault.what for fault in faults(exported)), faults(exported)


@pytest.mark.parametrize(
    ("records", "entry", "what"),
    [
        ([record(0), b"not json"], 1, "not a record: not JSON"),
        ([record(0), record(1) + b"\n"], 1, "canonical form"),
        ([record(0), record(1, time="yesterday")], 1, "time: not in its form"),
        ([record(0), record(1), record(0)], 2, "has the id of entry 0"),
    ],
)
def test_signed_entries_that_are_no_records_are_named(
    tmp_path: Path, records: list[bytes], entry: int, what: str
) -> None:
    write(tmp_path / "export", records)
    (fault,) = faults(tmp_path / "export")
    assert (fault.where, fault.entry) == (f"tile/entries/000.p/{len(records)}", entry) and what in fault.what


def test_a_root_that_the_entries_do_not_give_is_noticed(tmp_path: Path) -> None:
    store = write(tmp_path / "export", RECORDS[:5])
    lie = sign_checkpoint(Checkpoint(LOG.origin, 5, bytes(32)), LOG)
    store.write("checkpoint", lie.encode())
    assert "do not lead to the signed root of 5" in str(faults(tmp_path / "export")[0])


def test_proofs_from_a_second_history_or_another_log_are_noticed(exported: Path, tmp_path: Path) -> None:
    store = FolderTileStore(exported)
    second = write(tmp_path / "second", [*RECORDS[:4], record(999), *RECORDS[5:20]])
    (exported / "policy").write_text(write_log_policy([LOG.vkey, OTHER.vkey], [ONE.vkey, TWO.vkey], 0))
    records = [*entries(second, 20)]
    for name, index, note, history, why in [
        ("a", 4, note_at(records, 20), second, "another record than the log holds"),
        ("b", 7, note_at(records, 20), second, "another root of 20 entries"),
        ("c", 7, note_at(RECORDS, 20, OTHER), store, "another log"),
    ]:
        chosen = records if history is second else RECORDS
        hashes = inclusion_from_tiles(history, index, 20)
        put(f"proofs/{name}.tlog-proof", make_proof(index, hashes, note).encode())(exported)
        put(f"proofs/{name}.json", chosen[index])(exported)
        assert any(why in fault.what for fault in faults(exported)), why
        drop(f"proofs/{name}.tlog-proof")(exported)
        drop(f"proofs/{name}.json")(exported)
    check_export(exported)


def test_a_proof_newer_than_the_export_stands_by_itself(exported: Path, tmp_path: Path) -> None:
    longer = [*RECORDS, record(SIZE), record(SIZE + 1)]
    newer = write(tmp_path / "newer", longer)
    note = note_at(longer, SIZE + 2)
    (exported / "policy").write_text(write_log_policy([LOG.vkey], [ONE.vkey, TWO.vkey]))
    for name, index in (("old", 3), ("new", SIZE + 1)):
        proof = make_proof(index, inclusion_from_tiles(newer, index, SIZE + 2), note)
        put(f"proofs/{name}.tlog-proof", proof.encode())(exported)
        put(f"proofs/{name}.json", longer[index])(exported)
    assert check_export(exported).proofs == 4


def test_faults_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "MAX_FAULTS", 2)
    write(tmp_path / "export", [b"no", b"not", b"none", b"never", b"neither"])
    found = faults(tmp_path / "export")
    assert len(found) == 3 and "only the first 2" in found[2].what


# Options


def test_an_auditors_own_policy_decides(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "own"
    own.write_text(f"# pinned by hand\nlog {LOG.vkey} https://portal.example.org/\nquorum none\n")
    (exported / "policy").write_text("anything\n")
    assert verify.main([str(exported), "--policy", str(own)]) == 0
    own.write_text(write_log_policy([OTHER.vkey]))
    assert verify.main([str(exported), "--policy", str(own)]) == 1
    assert "knows no log" in capsys.readouterr().out


def test_a_log_that_grew_from_an_earlier_checkpoint(exported: Path, tmp_path: Path) -> None:
    previous = tmp_path / "previous"
    (exported / "policy").write_text(write_log_policy([LOG.vkey, OTHER.vkey], [ONE.vkey, TWO.vkey]))
    for size in (0, 1, 20, 33, 256, 299, 300):
        previous.write_text(note_at(RECORDS, size))
        assert verify.main([str(exported), "--previous", str(previous)]) == 0
    for note, why in [
        (note_at([*RECORDS, record(SIZE)], SIZE + 1), "it lost some"),
        (sign_checkpoint(Checkpoint(LOG.origin, 20, bytes(32)), LOG), "not those seen before"),
        (note_at(RECORDS, 20, OTHER), "another log"),
        ("no note", "note: must be"),
    ]:
        assert any(why in fault.what for fault in faults(exported, previous=note)), why


def test_one_records_proof(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proof, own = str(made / "proofs/first.tlog-proof"), str(made / "policy")
    command = ["proof", proof, "--policy", own, "--record"]
    assert verify.main([*command, str(made / "proofs/first.json")]) == 0
    out = capsys.readouterr().out
    assert f"ok: the record is entry 0 of {LOG.origin}, which had {SIZE} entries" in out
    assert "witness  site-1/witness at" in out
    assert verify.main([*command, str(made / "proofs/first.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["entry"] == 0
    assert verify.main([*command, str(made / "proofs/early.json")]) == 1
    assert "does not lead" in capsys.readouterr().out
    assert verify.main([*command, str(made / "proofs/early.json"), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_a_command_that_cannot_run_exits_2(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], [str(tmp_path / "absent")], ["proof"], [str(made), "--unknown"]):
        with pytest.raises(SystemExit) as caught:
            verify.main(arguments)
        assert caught.value.code == 2
    assert verify.main([str(made), "--policy", str(tmp_path / "absent")]) == 2
    (tmp_path / "binary").write_bytes(b"\xff")
    assert verify.main([str(made), "--previous", str(tmp_path / "binary")]) == 2
    assert "must be UTF-8" in capsys.readouterr().err


def test_nothing_in_an_export_steers_the_terminal(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put("proofs/\x1b[2J\x1b[31mok", b"")(exported)
    assert verify.main([str(exported)]) == 1
    assert "\x1b" not in capsys.readouterr().out


def test_times_beyond_every_calendar_are_shown_as_seconds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = write(tmp_path / "export", RECORDS[:1])
    checkpoint = Checkpoint(LOG.origin, 1, leaf_hash(RECORDS[0]))
    note = add_signatures(sign_checkpoint(checkpoint, LOG), cosign(checkpoint, ONE, 2**62))
    store.write("checkpoint", note.encode())
    shutil.rmtree(tmp_path / "export" / "proofs")
    (tmp_path / "export" / "policy").write_text(write_log_policy([LOG.vkey], [ONE.vkey], 1))
    assert verify.main([str(tmp_path / "export")]) == 0
    assert f"{2**62} seconds after 1970" in capsys.readouterr().out
