"""Files that are whole or absent: written beside their place, synced, then renamed into it. Mode 0600."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from silo_node.errors import DiskFull, UsageError, is_disk_full


@contextmanager
def replacing(path: Path, *, sync: bool = True) -> Iterator[IO[bytes]]:
    """A file to write into; it takes `path`'s place when the block ends, and is removed when the block raises.

    sync: whether the bytes are on the disk before the rename (needed for what must survive a power cut).
    Raises: DiskFull.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        beside.replace(path)
    except BaseException as error:
        with suppress(OSError):  # a drive that can't be written: what failed first is what to say
            beside.unlink(missing_ok=True)
        if is_disk_full(error):
            raise DiskFull(f"no room for {path.name} in {path.parent}: make room, nothing was half-written") from error
        raise
    if sync:
        sync_folder(path.parent)


def write_bytes(path: Path, data: bytes, *, sync: bool = True) -> None:
    """`data` as the whole content of `path`. Raises: DiskFull."""
    with replacing(path, sync=sync) as file:
        file.write(data)


def write_json(path: Path, value: Any, *, sync: bool = True) -> None:
    """`value` as readable JSON. Raises: DiskFull."""
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n").encode(), sync=sync)


def read_json(path: Path) -> Any | None:
    """What `write_json` wrote, or None where there is no file. Raises: UsageError for a file that is not JSON, or too deep."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return json.loads(data)
    except ValueError as error:
        raise UsageError(f"{path}: not JSON ({error}); restore it from a backup or remove it") from None
    except RecursionError:
        raise UsageError(f"{path}: its JSON is nested too deeply; restore it from a backup or remove it") from None


def sync_folder(folder: Path) -> None:
    """What was renamed into `folder` keeps its name over a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
