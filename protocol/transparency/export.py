"""The check of a whole exported log, from its files alone: nothing is fetched, only the policy's keys are believed.

    checkpoint     the newest signed checkpoint
    policy         whose signatures count (log_policy.py), in its one spelling
    tile/..        entry bundles and hash tiles (tiles.py)
    proofs/        any number of NAME.tlog-proof with their record in NAME.json

Every byte of every file is accounted for: each is covered by a hash that leads to the signed root, by a signature, or
has only one spelling; a file that nothing covers is a fault. Faults are collected, so that one run names all that is
wrong.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from protocol.transparency.log_policy import LogPolicy, LogPolicyError, parse_log_policy
from protocol.transparency.note import Checkpoint, Cosignature, NoteError
from protocol.transparency.proof import parse_proof
from protocol.transparency.record import RecordError, check_record
from protocol.transparency.tiles import (
    WIDTH,
    TileError,
    TilePath,
    parse_path,
    paths,
    root_at,
    split_bundle,
    tile_path,
)
from protocol.transparency.tree import HASH_BYTES, ProofError, leaf_hash, root, verify_inclusion

MAX_FAULTS: Final = 1000
"""More are counted in the last one: a log that is wrong everywhere need not fill the disk with reasons."""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong. where: the file. entry: its index, None where it is no entry's. what: a sentence."""

    where: str
    entry: int | None
    what: str

    def __str__(self) -> str:
        return f"{self.where}{'' if self.entry is None else f', entry {self.entry}'}: {self.what}"


@dataclass(frozen=True)
class TypeRow:
    """How often a type of record occurs, and the times of the first and the last as written."""

    type: str
    count: int
    first: str
    last: str


@dataclass(frozen=True)
class Report:
    """What a log that was checked holds. proofs: how many proof files were checked. private: records whose payload is
    kept outside the log."""

    checkpoint: Checkpoint
    cosignatures: tuple[Cosignature, ...]
    types: tuple[TypeRow, ...]
    proofs: int
    private: int


class ExportError(Exception):
    """The export is not what its policy's log signed. faults: at least one, in the order of the check."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("; ".join(map(str, faults[:3])))
        self.faults = tuple(faults)


def check_export(folder: str | os.PathLike[str], *, policy: str | None = None, previous: str | None = None) -> Report:
    """Check an exported log.

    Verification:
      1. The policy is one: the given text, or the folder's file in the one spelling that an export has.
      2. The checkpoint is signed by the policy's log and cosigned by its quorum; with the folder's own policy, no
         signature line is by anybody else.
      3. Each entry's bytes hash to its place in the level 0 tile, and each is a record, with an id of its own.
      4. Each hash of a higher tile is the root of the full tile below it.
      5. The tiles lead to the checkpoint's root.
      6. Every other file is an earlier partial tile with the same beginning, or a proof with its record.
      7. Each proof is signed like the checkpoint, leads to its root, and is about the same entry and an earlier state.
      8. The log begins with what `previous` saw.

    Parameters: policy: text of the auditor's own policy, None for the folder's. previous: a signed checkpoint kept from
    before.
    Returns: what the log holds. Raises: ExportError with all faults; OSError where the disk refuses.
    """
    check = _Check(Path(folder), policy)
    report = check.run(previous)
    if report is None or check.faults:
        raise ExportError(check.faults)
    return report


@dataclass
class _Check:
    """One run: what was found so far."""

    folder: Path
    given_policy: str | None
    faults: list[Fault] = field(default_factory=list)
    leaves: list[bytes] = field(default_factory=list)  # as the level 0 tiles say, one an entry
    ids: dict[str, int] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    times: dict[str, tuple[str, str]] = field(default_factory=dict)
    private: int = 0

    def run(self, previous: str | None) -> Report | None:
        # 1
        policy = self._policy()
        if policy is None:
            return None
        # 2
        try:
            note = self._text("checkpoint")
            checkpoint, cosignatures = policy.open(note, only_known=self.given_policy is None)
        except (LogPolicyError, NoteError, TileError) as error:
            self._fault("checkpoint", None, str(error))
            return None
        # 3, 4, 5
        if not self._tiles(checkpoint):
            return None
        # 6, 7
        proofs = self._others(policy, checkpoint)
        # 8
        if previous is not None:
            self._previous(policy, checkpoint, previous)
        rows = tuple(TypeRow(name, count, *self.times[name]) for name, count in sorted(self.counts.items()))
        return Report(checkpoint, cosignatures, rows, proofs, self.private)

    def read(self, path: str) -> bytes | None:
        """A file of the export, never through a link: a link may lead to bytes that change after the check."""
        place = self.folder
        for part in path.split("/"):
            place = place / part
            if place.is_symlink():
                return None
        return place.read_bytes() if place.is_file() else None

    def _fault(self, where: str, entry: int | None, what: str) -> None:
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(Fault(where, entry, what))
        elif len(self.faults) == MAX_FAULTS:
            self.faults.append(Fault(where, entry, f"{what}; and more, only the first {MAX_FAULTS} are named"))

    def _text(self, path: str) -> str:
        data = self.read(path)
        if data is None:
            raise TileError("the file is missing")
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise TileError(f"not UTF-8 at byte {error.start}") from None

    def _policy(self) -> LogPolicy | None:
        try:
            text = self._text("policy") if self.given_policy is None else self.given_policy
            policy = parse_log_policy(text)
            if self.given_policy is None and policy.export_text != text:
                raise LogPolicyError(
                    "policy: not in the one spelling of an export (no comments, no URLs, single spaces, witnesses"
                    " called by their key's name); to use a policy of your own, give it with --policy"
                )
        except (LogPolicyError, TileError) as error:
            self._fault("policy", None, str(error))
            return None
        return policy

    def _tiles(self, checkpoint: Checkpoint) -> bool:
        """Whether every file was there; faults inside them are noted and the check goes on."""
        size = checkpoint.size
        missing = next((path for path in paths(size) if self.read(path) is None), None)
        if missing is not None:
            first = _first_entry(missing)
            self._fault(missing, first, "the file is missing")
            return False
        # 3
        for index in range(-(-size // WIDTH)):
            width = min(WIDTH, size - index * WIDTH)
            hashes = self._hashes(0, index, width)
            self._bundle(index, width, hashes)
            self.leaves += hashes
        # 4
        level, below = 1, self.leaves
        while below := [root(below[at : at + WIDTH]) for at in range(0, len(below) // WIDTH * WIDTH, WIDTH)]:
            for index in range(-(-len(below) // WIDTH)):
                expected = below[index * WIDTH : (index + 1) * WIDTH]
                for place, found in enumerate(self._hashes(level, index, len(expected))):
                    if found != expected[place]:
                        span = WIDTH**level
                        start = (index * WIDTH + place) * span
                        path = tile_path(level, index, len(expected))
                        self._fault(
                            path, start, f"hash {place} is not the root over entries {start} to {start + span - 1}"
                        )
            level += 1
        # 5
        try:
            if root_at(self, size) != checkpoint.root:
                self._fault("checkpoint", None, f"the tiles do not lead to the signed root of {size} entries")
        except TileError as error:
            self._fault("checkpoint", None, f"the root of {size} entries cannot be computed: {error}")
        return True

    def _hashes(self, level: int, index: int, width: int) -> list[bytes]:
        """The hashes of a tile that is there; where its length is wrong, that is a fault and zeros fill it up."""
        path = tile_path(level, index, width)
        data = self.read(path) or b""
        if len(data) != width * HASH_BYTES:
            entry = (index * WIDTH + min(len(data) // HASH_BYTES, width)) * WIDTH**level
            self._fault(path, entry, f"the tile has {len(data)} bytes, {width * HASH_BYTES} are needed")
            data = data[: width * HASH_BYTES].ljust(width * HASH_BYTES, b"\0")
        return [data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)]

    def _bundle(self, index: int, width: int, hashes: Sequence[bytes]) -> None:
        path = tile_path(None, index, width)
        data = self.read(path) or b""
        entry = index * WIDTH
        try:
            for found in split_bundle(data):
                if entry == index * WIDTH + width:
                    self._fault(path, entry, f"an entry too many: the bundle must hold {width}")
                    return
                expected = hashes[entry - index * WIDTH]
                if leaf_hash(found) != expected:
                    # What follows may be out of step, if it is the length that was changed; the rest is not looked at.
                    tile = tile_path(0, index, width)
                    self._fault(path, entry, f"its bytes hash to {leaf_hash(found).hex()}, {tile} has {expected.hex()}")
                    return
                self._record(path, entry, found)
                entry += 1
        except TileError as error:
            self._fault(path, entry, str(error))
            return
        if entry < index * WIDTH + width:
            self._fault(path, entry, f"the entry is missing: the bundle must hold {width}")

    def _record(self, path: str, entry: int, data: bytes) -> None:
        try:
            record = check_record(data)
        except RecordError as error:
            self._fault(path, entry, f"not a record: {error}")
            return
        first = self.ids.setdefault(record["id"], entry)
        if first != entry:
            self._fault(path, entry, f"has the id of entry {first}")
        self.counts[record["type"]] += 1
        earliest, _ = self.times.get(record["type"], (record["time"], ""))
        self.times[record["type"]] = earliest, record["time"]
        self.private += record["private"] is not None

    def _others(self, policy: LogPolicy, checkpoint: Checkpoint) -> int:
        """Checks every file that the tree itself does not need; how many of them are proofs."""
        needed = {"checkpoint", "policy", *paths(checkpoint.size)}
        proofs = 0
        for place in sorted(self.folder.rglob("*")):
            path = place.relative_to(self.folder).as_posix()
            if path in needed or (place.is_dir() and not place.is_symlink()):
                continue
            tile = parse_path(path)
            stem, dot, ending = path.rpartition(".")
            beside = f"{stem}.json" if ending == "tlog-proof" else f"{stem}.tlog-proof"
            if tile is not None and self.read(path) is not None:
                self._leftover(path, tile, checkpoint.size)
            elif not (dot and path.startswith("proofs/") and ending in ("json", "tlog-proof")):
                self._fault(path, None, "not a file of an exported log: nothing vouches for it")
            elif self.read(path) is None or self.read(beside) is None:
                self._fault(path, None, "a proof and its record must stand side by side, as plain files")
            elif ending == "tlog-proof":
                proofs += 1
                self._proof(path, beside, policy, checkpoint)
        return proofs

    def _leftover(self, path: str, tile: TilePath, size: int) -> None:
        """A partial tile of an earlier checkpoint must be the beginning of the one that took its place."""
        count = size >> 8 * (tile.level or 0)
        width = min(WIDTH, count - tile.index * WIDTH)
        if tile.width >= width:
            self._fault(path, None, f"reaches beyond the {size} entries of the checkpoint")
            return
        data, whole = self.read(path) or b"", self.read(tile_path(tile.level, tile.index, width)) or b""
        try:
            found = sum(1 for _ in split_bundle(data)) if tile.level is None else len(data) / HASH_BYTES
        except TileError:
            found = 0
        if found != tile.width or not whole.startswith(data):
            self._fault(path, _first_entry(path), "is not the beginning of the tile that took its place")

    def _proof(self, path: str, beside: str, policy: LogPolicy, checkpoint: Checkpoint) -> None:
        entry = None
        try:
            proof = parse_proof(self._text(path))
            entry = proof.index
            seen, _ = policy.open(proof.note, only_known=self.given_policy is None)
            leaf = leaf_hash(self.read(beside) or b"")
            verify_inclusion(leaf, proof.index, seen.size, proof.hashes, seen.root)
        except (LogPolicyError, NoteError, ProofError, TileError) as error:
            self._fault(path, entry, f"with {beside}: {error}")
            return
        if seen.origin != checkpoint.origin:
            self._fault(path, None, f"proves an entry of another log, {seen.origin}")
        elif proof.index < checkpoint.size and leaf != self.leaves[proof.index]:
            self._fault(path, proof.index, "proves another record than the log holds: the log signed two histories")
        elif seen.size <= checkpoint.size and root(self.leaves[: seen.size]) != seen.root:
            self._fault(
                path, proof.index, f"leads to another root of {seen.size} entries: the log signed two histories"
            )

    def _previous(self, policy: LogPolicy, checkpoint: Checkpoint, previous: str) -> None:
        try:
            # Without a quorum: the auditor kept it, and its root is compared with entries that witnesses saw.
            seen = policy.open_without_witnesses(previous)
        except (LogPolicyError, NoteError) as error:
            self._fault("previous checkpoint", None, str(error))
            return
        if seen.origin != checkpoint.origin:
            self._fault("previous checkpoint", None, f"belongs to another log, {seen.origin}")
        elif seen.size > checkpoint.size:
            self._fault("checkpoint", checkpoint.size, f"the log had {seen.size} entries before: it lost some")
        elif root(self.leaves[: seen.size]) != seen.root:
            self._fault("previous checkpoint", None, f"the first {seen.size} entries are not those seen before")


def _first_entry(path: str) -> int | None:
    tile = parse_path(path)
    return None if tile is None else tile.index * WIDTH ** ((tile.level or 0) + 1)
