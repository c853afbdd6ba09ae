"""The witness's side of tlog-witness: a request body in, a status and a body out; no HTTP in it.

A hospital opens no port, so it polls: the portal's answer *is* an add-checkpoint request, and what comes out here is
sent back. A witness cosigns a checkpoint only where the log has grown from the one that it saw last, so all witnesses
see one log.

    old <size seen last>
    <base64 hash>            consistency proof, at most 63 lines

    <signed checkpoint>

    200 cosignature lines        400 malformed              403 not signed by the log      404 unknown log
    409 "<size seen last>\\n"     422 the proof is wrong     (409 also for another root of the same size)
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from protocol.canonical import CanonicalError, b64, unb64
from protocol.transparency.note import (
    Checkpoint,
    NoteError,
    WitnessKey,
    cosign,
    open_checkpoint,
    parse_checkpoint,
    parse_note,
    parse_number,
)
from protocol.transparency.tree import HASH_BYTES, ProofError, verify_consistency

MAX_PROOF: Final = 63


class RequestError(Exception):
    """Not an add-checkpoint request; the answer is 400."""


@dataclass(frozen=True)
class AddCheckpoint:
    """A parsed request, nothing verified. old: entries seen last. proof: 32 bytes each. note: the signed checkpoint."""

    old: int
    proof: tuple[bytes, ...]
    note: str


class WitnessStore(Protocol):
    """What a witness remembers of each log, on disk before it answers."""

    def newest(self, origin: str) -> str | None:
        """The whole signed note that was cosigned last, None before the first."""

    def swap(self, origin: str, old: str | None, new: str) -> bool:
        """Replace `old` by `new`, durably. False, changing nothing, where the newest is no longer `old`."""

    def accuse(self, origin: str, first: str, second: str) -> None:
        """Keep two notes of one size and different roots, both signed by the log: proof that it misbehaved."""

    def accused(self, origin: str) -> bool:
        """Whether `accuse` was ever called for this log."""


def write_request(old: int, proof: Sequence[bytes], note: str) -> bytes:
    """The body of an add-checkpoint request. Raises: RequestError for what `parse_request` would refuse."""
    lines = [f"old {old}", *(b64(item) for item in proof)]
    body = ("\n".join(lines) + "\n\n" + note).encode("utf-8")
    parse_request(body)
    return body


def parse_request(body: bytes) -> AddCheckpoint:
    """Read a request. Raises: RequestError naming the line."""
    try:
        head, empty, note = body.decode("utf-8").partition("\n\n")
    except UnicodeDecodeError:
        raise RequestError("the request is not UTF-8") from None
    first, *lines = head.split("\n")
    if not empty or not first.startswith("old "):
        raise RequestError("line 1 must be `old` and a size, and an empty line must stand before the checkpoint")
    if len(lines) > MAX_PROOF:
        raise RequestError(f"more than {MAX_PROOF} proof lines")
    proof = []
    for number, line in enumerate(lines, 2):
        try:
            proof.append(unb64(line))
        except CanonicalError as error:
            raise RequestError(f"line {number}: {error}") from None
        if len(proof[-1]) != HASH_BYTES:
            raise RequestError(f"line {number}: a hash has {HASH_BYTES} bytes")
    try:
        old = parse_number(first.removeprefix("old "), "line 1")
        parse_checkpoint(parse_note(note)[0])
    except NoteError as error:
        raise RequestError(str(error)) from None
    return AddCheckpoint(old, tuple(proof), note)


def add_checkpoint(
    body: bytes, *, witness: WitnessKey, logs: Mapping[str, str], store: WitnessStore, now: int
) -> tuple[int, bytes]:
    """Cosign a checkpoint, or say why not.

    Verification:
      1. The request is in its form.                                                              else 400
      2. The log is one that this witness knows.                                                  else 404
      3. The log signed the checkpoint.                                                           else 403
      4. No other root of this size was cosigned: both notes are kept as proof, and the witness
         cosigns nothing more for this log until a person has looked.                             else 409
      5. `old` is not larger than the checkpoint.                                                 else 400
      6. `old` is the size cosigned last, 0 before the first.                                     else 409
      7. The log has grown from there: a proof by hashes, none from 0 or to the same tree.        else 422
      8. The note is kept before the answer is given; a checkpoint kept meanwhile wins.           else 409

    Parameters: logs: origin -> vkey. now: seconds since 1970, the time in the cosignature.
    Returns: the HTTP status and the body; a 409's content type is text/x.tlog.size.
    """
    # 1
    try:
        request = parse_request(body)
        origin = parse_checkpoint(parse_note(request.note)[0]).origin
    except RequestError as error:
        return 400, f"{error}\n".encode()
    # 2
    if origin not in logs:
        return 404, b"this witness does not know the log\n"
    # 3
    try:
        checkpoint = open_checkpoint(request.note, logs[origin])
    except NoteError as error:
        return 403, f"{error}\n".encode()
    # 4
    newest = store.newest(origin)
    seen = None if newest is None else parse_checkpoint(parse_note(newest)[0])
    if newest is not None and seen is not None and seen.size == checkpoint.size and seen.root != checkpoint.root:
        store.accuse(origin, newest, request.note)
    if store.accused(origin):
        return _conflict(seen)
    # 5
    if request.old > checkpoint.size:
        return 400, b"the old size is larger than the checkpoint\n"
    # 6
    if request.old != (seen.size if seen else 0):
        return _conflict(seen)
    # 7
    try:
        _check_growth(seen, checkpoint, request.proof)
    except ProofError as error:
        return 422, f"{error}\n".encode()
    # 8
    if not store.swap(origin, newest, request.note):
        kept = store.newest(origin)
        return _conflict(None if kept is None else parse_checkpoint(parse_note(kept)[0]))
    return 200, cosign(checkpoint, witness, now).encode()


def _check_growth(seen: Checkpoint | None, checkpoint: Checkpoint, proof: Sequence[bytes]) -> None:
    if seen is None or seen.size == 0:
        if proof:
            raise ProofError("a proof from size 0 must be empty")
        return
    verify_consistency(seen.size, checkpoint.size, proof, seen.root, checkpoint.root)


def _conflict(seen: Checkpoint | None) -> tuple[int, bytes]:
    return 409, b"%d\n" % (seen.size if seen else 0)


class FolderWitnessStore:
    """A witness's memory in a folder: `<sha256 of origin>.note`, and `.misbehaviour` with both notes.

    Swaps hold a lock file, so two processes of one witness can't both answer; writes are atomic and synced.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def newest(self, origin: str) -> str | None:
        """The whole signed note that was cosigned last, None before the first."""
        place = self._place(origin, "note")
        return place.read_text(encoding="utf-8") if place.exists() else None

    def swap(self, origin: str, old: str | None, new: str) -> bool:
        """Replace `old` by `new` under the lock; False where another process was faster."""
        with self._lock():
            if self.newest(origin) != old:
                return False
            self._write(self._place(origin, "note"), new)
            return True

    def accuse(self, origin: str, first: str, second: str) -> None:
        """Keep both notes, one after the other; the first accusation is never overwritten."""
        with self._lock():
            place = self._place(origin, "misbehaviour")
            if not place.exists():
                self._write(place, first + "\n" + second)

    def accused(self, origin: str) -> bool:
        """Whether the file with two notes is there."""
        return self._place(origin, "misbehaviour").exists()

    def _place(self, origin: str, kind: str) -> Path:
        return self.folder / f"{hashlib.sha256(origin.encode('utf-8')).hexdigest()}.{kind}"

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with (self.folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _write(self, place: Path, text: str) -> None:
        descriptor, temporary = tempfile.mkstemp(dir=self.folder, prefix=".")
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(place)
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
