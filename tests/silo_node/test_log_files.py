"""Logs are cut by size: no line is lost between processes, the old is compressed, the oldest goes."""

from __future__ import annotations

import gzip
import os
import stat
import subprocess
import sys

from silo_node.service import log_files
from silo_node.service.log_files import RotatingFile, keep_within, pieces
from silo_node.service.processes import Child

WRITER = """
import sys
from pathlib import Path
from silo_node.service.log_files import RotatingFile
file = RotatingFile(Path(sys.argv[1]), 1000)
file._piece = 3000
for number in range(1500):
    file.write(f"{sys.argv[2]} {number}\\n")
"""


def lines(path):
    """All lines of all pieces, oldest first."""
    text = b"".join(gzip.decompress(piece.read_bytes()) for _, piece in pieces(path)) + path.read_bytes()
    return text.decode().splitlines()


def test_no_line_is_lost_or_torn_when_three_processes_write_while_it_is_cut(tmp_path):
    path = tmp_path / "silo.log"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), name]) for name in "abc"]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert len(pieces(path)) >= 6
    found = lines(path)
    for name in "abc":
        assert [line for line in found if line[0] == name] == [f"{name} {number}" for number in range(1500)]
    assert len(found) == 4500


def test_pieces_are_compressed_private_and_within_the_limit(tmp_path):
    file = RotatingFile(tmp_path / "silo.log", 1)  # 1 MB in all, so pieces of 100 kB
    for _ in range(40):
        file.write(os.urandom(45_000).hex() + "\n")
    file.close()
    found = [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in found)
    assert sum(path.stat().st_size for path in found) <= 1_000_000
    numbers = [number for number, _ in pieces(tmp_path / "silo.log")]
    assert numbers[0] > 1, "the oldest went"
    assert numbers == list(range(numbers[0], 40))


def test_a_piece_that_a_killed_process_left_is_compressed_by_the_next(tmp_path):
    (tmp_path / "silo-000007.log").write_text("old\n")
    file = RotatingFile(tmp_path / "silo.log", 1)
    file.write("x" * 99_990 + "\n")
    file.write("more than fits\n")
    file.close()
    assert [(number, path.suffix) for number, path in pieces(tmp_path / "silo.log")] == [(7, ".gz"), (8, ".gz")]
    assert lines(tmp_path / "silo.log")[0] == "old"


def test_a_piece_stays_as_it_is_where_there_is_no_room_to_compress_it(tmp_path, monkeypatch):
    class Full(gzip.GzipFile):
        def write(self, data):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(log_files.gzip, "GzipFile", Full)
    file = RotatingFile(tmp_path / "silo.log", 1)
    file.write("x" * 99_990 + "\n")
    file.write("more than fits\n")
    file.close()
    assert (tmp_path / "silo-000001.log").stat().st_size == 99_991
    assert (tmp_path / "silo.log").read_text() == "more than fits\n"
    assert not list(tmp_path.glob(".*.tmp"))


def test_another_logs_pieces_are_not_taken_for_its_own(tmp_path):
    for name in ("worker-training-000001.log.gz", "worker-control-000001.log.gz", "worker-training-x.log"):
        (tmp_path / name).write_bytes(b"12345")
    keep_within(tmp_path / "worker-training.log", 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["worker-control-000001.log.gz", "worker-training-x.log"]


def test_what_a_child_prints_is_cut_too(tmp_path):
    program = "for number in range(30000): print(f'{number:010d}')"
    child = Child("loud", [sys.executable, "-c", program], log=tmp_path / "loud.log", log_mb=1)
    child.process.wait(30)
    child._keeping.join(30)
    assert lines(tmp_path / "loud.log") == [f"{number:010d}" for number in range(30000)]
    assert len(pieces(tmp_path / "loud.log")) >= 3


def test_a_child_is_not_stopped_by_a_log_that_can_not_be_written(tmp_path, monkeypatch):
    def broken(self, text):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(RotatingFile, "write", broken)
    child = Child("loud", [sys.executable, "-c", "print('x' * 300_000)"], log=tmp_path / "loud.log")
    assert child.process.wait(30) == 0
