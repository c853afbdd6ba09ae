"""What reading a hospital's images costs, on this machine: `python -m benchmarks.scan DATA [--many 100000] [--json]`.

    header_ratio    the header scan with its index, over bare pydicom reading of the same headers; at most 1.5 is wanted
    cache_ratio     decoding every picture again, over an epoch of random batches from the ready cache; at least 50 is
                    wanted. Decoding is what the silo does: a pool of processes, one a processor, already started
    many            copies with new UIDs in a folder of their own: seconds and memory of a first and a second scan

Both sides of a ratio are measured in turns, and the least of several repetitions counts. `--many` makes a folder of some
2 kB a file in the system's folder for temporary files, and removes it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from silo_node.imaging import index
from silo_node.imaging.cache import Cache
from silo_node.imaging.cohort import Item
from silo_node.imaging.decoder_pool import DecoderPool

SIZE = (64, 64)
BATCH = 32


def peak_mb() -> int:
    """The most memory that this program held, MB. Not ru_maxrss: that begins with the size of whoever started it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return round(int(line.split()[1]) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--many", type=int, default=0, help="also scan that many files")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", dest="as_json")
    parser.add_argument("--scan-only", type=Path, help=argparse.SUPPRESS)  # one scan in a process of its own
    options = parser.parse_args()
    if options.scan_only:
        print(json.dumps(_one_scan(options.data, options.scan_only)))
        return
    facts = {**_headers(options.data, options.repeats), **_epochs(options.data, options.repeats)}
    if options.many:
        facts["many"] = _many(options.data, options.many)
    if options.as_json:
        print(json.dumps(facts, sort_keys=True))
        return
    for name, value in facts.items():
        print(f"{name:28} {value}")


def _headers(data: Path, repeats: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as kept:
        index.scan(data, Path(kept) / "index.db")
        # A file that pydicom alone cannot read stays out of its time, not out of ours.
        files = [file.path for file in index.files(Path(kept) / "index.db") if file.problem is None]

    def bare() -> None:
        for path in files:
            pydicom.dcmread(path, stop_before_pixels=True)

    def ours() -> None:
        with tempfile.TemporaryDirectory() as kept:
            index.scan(data, Path(kept) / "index.db")

    seconds_bare, seconds_ours = _least(repeats, bare, ours)
    return {
        "files": len(files),
        "header_seconds_bare": round(seconds_bare, 3),
        "header_seconds_scan": round(seconds_ours, 3),
        "header_ratio": round(seconds_ours / seconds_bare, 3),
    }


def _epochs(data: Path, repeats: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as kept:
        index.scan(data, Path(kept) / "index.db")
        usable = [file for file in index.files(Path(kept) / "index.db") if file.problem is None]
        items = [
            Item(str(file.patient), str(file.sop), file.path, 0, file.root, file.size, file.mtime_ns) for file in usable
        ]
        store = Cache(Path(kept) / "cache", "sha256:" + "00" * 32, size=SIZE)
        problems = store.fill(items)
        items = [item for item in items if item.path not in problems]
        pictures = store.open(items)
        rng = np.random.default_rng(0)

        def ready() -> None:
            order = rng.permutation(len(items))
            for start in range(0, len(items), BATCH):
                pictures.batch(np.sort(order[start : start + BATCH]))

        with DecoderPool(size=SIZE) as pool:
            list(pool.decode(items[:8]))

            def again() -> None:
                assert sum(1 for _ in pool.decode(items)) == len(items)

            seconds_ready, seconds_again = _least(repeats, ready, again)
    return {
        "pictures": len(items),
        "epoch_seconds_cache": round(seconds_ready, 4),
        "epoch_seconds_decoding": round(seconds_again, 3),
        "cache_ratio": round(seconds_again / seconds_ready, 1),
    }


def _least(repeats: int, *what: Callable[[], None]) -> list[float]:
    """The least seconds of each, run in turns."""
    seconds = [float("inf")] * len(what)
    for _ in range(repeats):
        for place, act in enumerate(what):
            began = time.perf_counter()
            act()
            seconds[place] = min(seconds[place], time.perf_counter() - began)
    return seconds


def _many(data: Path, count: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="many-images-") as kept:
        folder, db = Path(kept) / "data", Path(kept) / "index.db"
        copies(data, folder, count)
        first = _scan_apart(folder, db)
        changed = next(folder.rglob("*.dcm"))
        os.utime(changed)
        second = _scan_apart(folder, db)
    return {
        "files": first["files"],
        "usable": first["usable"],
        "first_seconds": first["seconds"],
        "first_opened": first["opened"],
        "first_peak_mb": first["peak_mb"],
        "second_seconds": second["seconds"],
        "second_opened": second["opened"],
        "second_peak_mb": second["peak_mb"],
    }


def copies(data: Path, folder: Path, count: int) -> None:
    """`count` files with UIDs and patients of their own, 1,000 a folder, from one small file of `data`."""
    source = min(data.rglob("*.dcm"), key=lambda path: path.stat().st_size)
    dataset = pydicom.dcmread(source)
    dataset.SOPInstanceUID, dataset.PatientID = "2.25.1000000000", "COPY1000000000"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    folder.mkdir(parents=True)
    pattern = folder / "pattern.tmp"
    dataset.save_as(pattern)
    body = pattern.read_bytes()
    pattern.unlink()
    for number in range(count):
        if number % 1000 == 0:
            (folder / f"{number // 1000:04}").mkdir()
        this = f"{1_000_000_001 + number}".encode()
        (folder / f"{number // 1000:04}/{number:07}.dcm").write_bytes(body.replace(b"1000000000", this))


def _scan_apart(folder: Path, db: Path) -> dict[str, Any]:
    """In a process of its own, whose peak memory is the scan's."""
    command = [sys.executable, "-m", "benchmarks.scan", str(folder), "--scan-only", str(db)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def _one_scan(folder: Path, db: Path) -> dict[str, Any]:
    report = index.scan(folder, db)
    index.files(db)  # as the cohort does
    return {
        "files": report.files,
        "usable": report.usable,
        "opened": report.opened,
        "seconds": round(report.seconds, 2),
        "peak_mb": peak_mb(),
    }


if __name__ == "__main__":
    main()
