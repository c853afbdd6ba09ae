"""The log as static files (C2SP tlog-tiles): hash tiles and entry bundles, written once and read by anybody.

    tile/<L>/<N>[.p/<W>]          256 (or W) hashes of 32 bytes; hash i of tile N at level L is the root over the
                                  256^L leaves from (N*256+i)*256^L on
    tile/entries/<N>[.p/<W>]      256 (or W) entries, each a u16 big-endian length and the leaf data
    checkpoint                    the newest signed checkpoint

N is written in groups of three digits, all but the last led by 'x': 1234067 is `x001/x234/067`. Writing order is
entries, tiles, checkpoint; so what a reader finds below a checkpoint is complete.
"""

from __future__ import annotations

import os
import re
import struct
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from protocol.transparency.note import NoteError, parse_checkpoint, parse_note
from protocol.transparency.tree import (
    HASH_BYTES,
    RangeHash,
    consistency_path,
    inclusion_path,
    leaf_hash,
    node_hash,
    root,
    split,
)

WIDTH: Final = 256
MAX_ENTRY: Final = 65_535
"""Bytes of leaf data: its length is a u16."""

_PATH = re.compile(r"tile/(entries|0|[1-9]|[1-5][0-9]|6[0-3])/((?:x[0-9]{3}/){0,6}[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?")


class TileError(Exception):
    """A tile or entry bundle that is missing, damaged, or must not be written. The message names the file."""


class TileReader(Protocol):
    """Where tiles are found: a folder, a bucket, a web server."""

    def read(self, path: str) -> bytes | None:
        """The bytes of `path`, None where there is none."""


class TileStore(TileReader, Protocol):
    """Where tiles are kept."""

    def write(self, path: str, data: bytes) -> None:
        """Keep `data` under `path`: all of it or nothing, durable when this returns."""


class FolderTileStore:
    """Tiles in a folder. Writes are atomic: a temporary file, synced, renamed, and the folder synced.

    Only `checkpoint` and tile paths are read or written, so a path taken from a URL can't leave the folder.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def read(self, path: str) -> bytes | None:
        """The bytes of `path`, None where there is none or it is no path of a log."""
        try:
            return self._place(path).read_bytes()
        except (TileError, FileNotFoundError, NotADirectoryError):
            return None

    def write(self, path: str, data: bytes) -> None:
        """Keep `data`, replacing what was there. Raises: TileError for another path, OSError where the disk refuses."""
        place = self._place(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=place.parent, prefix=".")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                os.fchmod(file.fileno(), 0o644)
            Path(temporary).replace(place)
        except OSError:
            Path(temporary).unlink(missing_ok=True)
            raise
        folder = os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _place(self, path: str) -> Path:
        if path != "checkpoint" and parse_path(path) is None:
            raise TileError(f"{path!r} is not the path of a checkpoint or a tile")
        return self.folder / path


@dataclass(frozen=True)
class TilePath:
    """What a path stands for. level: 0 to 63, None for entries. index: N. width: 1 to 256."""

    level: int | None
    index: int
    width: int


def tile_path(level: int | None, index: int, width: int = WIDTH) -> str:
    """The path of a hash tile, or of an entry bundle where `level` is None; partial where `width` is below 256."""
    digits = f"{index % 1000:03d}"
    while index >= 1000:
        index //= 1000
        digits = f"x{index % 1000:03d}/{digits}"
    suffix = "" if width == WIDTH else f".p/{width}"
    return f"tile/{'entries' if level is None else level}/{digits}{suffix}"


def parse_path(path: str) -> TilePath | None:
    """The reverse of `tile_path`, None for any other text, other spellings of the same tile included."""
    match = _PATH.fullmatch(path)
    if match is None:
        return None
    level = None if match[1] == "entries" else int(match[1])
    index = int(match[2].replace("x", "").replace("/", ""))
    found = TilePath(level, index, int(match[3]) if match[3] else WIDTH)
    return found if tile_path(found.level, found.index, found.width) == path else None


def paths(size: int) -> Iterator[str]:
    """Every file but the checkpoint that a log of `size` entries needs: bundles, then tiles from level 0 up."""
    for level in (None, *range(_levels(size))):
        count = size >> 8 * (level or 0)
        for index in range(count // WIDTH):
            yield tile_path(level, index)
        if count % WIDTH:
            yield tile_path(level, count // WIDTH, count % WIDTH)


def append(store: TileStore, old_size: int, leaf_datas: Sequence[bytes]) -> tuple[int, bytes]:
    """Add entries to a log of `old_size`: write their bundles, then the hash tiles they change.

    What a crash left behind beyond `old_size` is overwritten; below the store's own checkpoint nothing ever is.

    Returns: the new size and root. The checkpoint is the caller's to sign, and to write last.
    Raises: TileError for an entry longer than MAX_ENTRY, a tile of the old tree that is missing or damaged, or an
    `old_size` behind the store's checkpoint: appending there would fork the log, and every witness would refuse.
    """
    for offset, data in enumerate(leaf_datas):
        if len(data) > MAX_ENTRY:
            raise TileError(f"entry {old_size + offset} has {len(data)} bytes, at most {MAX_ENTRY} fit")
    _refuse_fork(store, old_size)
    if not leaf_datas:
        return old_size, root_at(store, old_size)
    new_size = old_size + len(leaf_datas)
    # Entries.
    first, inside = divmod(old_size, WIDTH)
    pieces = _bundle(store, first, inside) if inside else []
    pieces += leaf_datas
    for index, chunk in enumerate(_chunks(pieces), first):
        store.write(tile_path(None, index, len(chunk)), join_bundle(chunk))
    # Hash tiles, level by level: each full tile becomes one hash of the level above.
    level, hashes = 0, [leaf_hash(data) for data in leaf_datas]
    while hashes:
        first, inside = divmod(old_size >> 8 * level, WIDTH)
        hashes = (_tile(store, level, first, inside) if inside else []) + hashes
        above = []
        for index, tile in enumerate(_chunks(hashes), first):
            store.write(tile_path(level, index, len(tile)), b"".join(tile))
            if len(tile) == WIDTH:
                above.append(root(tile))
        level, hashes = level + 1, above
    return new_size, root_at(store, new_size)


def root_at(store: TileReader, size: int) -> bytes:
    """The root over the first `size` entries. Raises: TileError."""
    return _Tiles(store, size).range_hash(0, size) if size else root([])


def inclusion_from_tiles(store: TileReader, index: int, size: int) -> list[bytes]:
    """The inclusion proof of entry `index` in the tree of `size`. Raises: TileError, ProofError."""
    return inclusion_path(_Tiles(store, size).range_hash, index, size)


def consistency_from_tiles(store: TileReader, size1: int, size2: int) -> list[bytes]:
    """The consistency proof from `size1` to `size2`. Raises: TileError, ProofError."""
    return consistency_path(_Tiles(store, size2).range_hash, size1, size2)


def entries(store: TileReader, size: int) -> Iterator[bytes]:
    """The leaf data of the first `size` entries, in order, one bundle in memory. Raises: TileError."""
    for index in range(-(-size // WIDTH)):
        yield from _bundle(store, index, min(WIDTH, size - index * WIDTH))


def join_bundle(leaf_datas: Sequence[bytes]) -> bytes:
    """The entry bundle of these entries, each at most MAX_ENTRY bytes."""
    return b"".join(struct.pack(">H", len(data)) + data for data in leaf_datas)


def split_bundle(data: bytes) -> Iterator[bytes]:
    """The entries of a bundle, one by one. Raises: TileError at the first length that reaches beyond the end."""
    at = 0
    while at < len(data):
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        if at + 2 > len(data) or end > len(data):
            raise TileError("its length reaches beyond the end of the bundle")
        yield data[at + 2 : end]
        at = end


class _Tiles:
    """Subtree hashes of one tree, read from tiles; each tile once."""

    def __init__(self, store: TileReader, size: int) -> None:
        self._store = store
        self._size = size
        self._read: dict[tuple[int, int], list[bytes]] = {}
        self.range_hash: RangeHash = self._range_hash

    def _range_hash(self, start: int, end: int) -> bytes:
        count = end - start
        if count & (count - 1):
            middle = start + split(count)
            return node_hash(self._range_hash(start, middle), self._range_hash(middle, end))
        # A complete subtree of 2^h leaves is 2^(h mod 8) neighbours in a tile of level h div 8.
        level, height = divmod(count.bit_length() - 1, 8)
        tile, inside = divmod(start >> 8 * level, WIDTH)
        return root(self._tile(level, tile)[inside : inside + (1 << height)])

    def _tile(self, level: int, index: int) -> list[bytes]:
        if (level, index) not in self._read:
            width = min(WIDTH, (self._size >> 8 * level) - index * WIDTH)
            self._read[level, index] = _tile(self._store, level, index, width)
        return self._read[level, index]


def _levels(size: int) -> int:
    return -(-size.bit_length() // 8)


def _chunks(items: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for at in range(0, len(items), WIDTH):
        yield items[at : at + WIDTH]


def _read(store: TileReader, level: int | None, index: int, width: int) -> tuple[str, bytes]:
    """A tile of at least `width`: the partial one, or the full one that has taken its place."""
    for path in dict.fromkeys((tile_path(level, index, width), tile_path(level, index))):
        data = store.read(path)
        if data is not None:
            return path, data
    raise TileError(f"{tile_path(level, index, width)} is missing")


def _tile(store: TileReader, level: int, index: int, width: int) -> list[bytes]:
    path, data = _read(store, level, index, width)
    found = parse_path(path)
    if found is None or len(data) != found.width * HASH_BYTES:
        raise TileError(f"{path} has {len(data)} bytes, not {HASH_BYTES} a hash")
    return [data[at : at + HASH_BYTES] for at in range(0, width * HASH_BYTES, HASH_BYTES)]


def _bundle(store: TileReader, index: int, width: int) -> list[bytes]:
    path, data = _read(store, None, index, width)
    found: list[bytes] = []
    try:
        found.extend(split_bundle(data))
    except TileError as error:
        raise TileError(f"{path}, entry {index * WIDTH + len(found)}: {error}") from None
    if len(found) < width:
        raise TileError(f"{path} holds {len(found)} entries, {width} are needed")
    return found[:width]


def _refuse_fork(store: TileReader, old_size: int) -> None:
    note = store.read("checkpoint")
    if note is None:
        return
    try:
        published = parse_checkpoint(parse_note(note.decode("utf-8"))[0]).size
    except (UnicodeDecodeError, NoteError) as error:
        raise TileError(f"checkpoint: cannot be read, so nothing may be appended: {error}") from None
    if published > old_size:
        raise TileError(
            f"checkpoint: the log has published {published} entries, appending after {old_size} would fork it;"
            " was the database restored from an old backup?"
        )
