"""The masks: AES-128 in counter mode, key and first counter from HKDF-SHA256 over seed, label and ctx.

A stream is a fixed, practically endless row of bytes; any chunk of an update wears the same range of it, so chunks can
be masked and unmasked in any order, by several workers, and again after a crash. Words are little-endian.

Speed comes from blocks that stay in the cache: 256 KiB of key stream are made in a reused buffer and added, all streams
of one block before the next block. The limit is the key stream itself (benchmarks/secure_aggregation.py).
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Literal

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from protocol.secure_aggregation.parameters import PROTOCOL
from protocol.secure_aggregation.words import Lanes

Label = Literal["self", "pair", "tail", "check"]

SEED_BYTES: Final = 32
BLOCK_BYTES: Final = 256 << 10
_AES_BLOCK: Final = 16
_LANES: Final = (np.dtype("<u2"), np.dtype("<u4"), np.dtype("<u8"))
# Never written, so all its pages are the system's one page of zeros: 4 KiB of cache instead of 256.
_ZEROS: Final = mmap.mmap(-1, BLOCK_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ)


def derive(secret: bytes, label: str, ctx: bytes, length: int) -> bytes:
    """HKDF-SHA256 without salt; info is protocol, label and ctx (32 bytes), so no two uses share output.

    Raises:
        ValueError: ctx is not 32 bytes.
    """
    if len(ctx) != 32:
        raise ValueError(f"ctx must be 32 bytes, not {len(ctx)}")
    info = f"{PROTOCOL} {label}\n".encode() + ctx
    return HKDF(algorithm=SHA256(), length=length, salt=None, info=info).derive(secret)


class Stream:
    """One mask: the key stream of one seed under one label.

    Parameters:
        seed: 32 bytes.
        label: "self" and "pair" for the body, "tail" for the tail of either; "check" for check_word.py.
        ctx: 32 bytes, the attempt's context.

    Raises:
        ValueError: seed or ctx has another length.
    """

    __slots__ = ("_counter", "_key")

    def __init__(self, seed: bytes, label: Label, ctx: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise ValueError(f"a seed must be {SEED_BYTES} bytes, not {len(seed)}")
        material = derive(seed, f"prg {label}", ctx, 32)
        self._key = material[:16]
        self._counter = int.from_bytes(material[16:], "big")

    def __repr__(self) -> str:
        return "Stream(secret)"

    def at(self, offset: int) -> CipherContext:
        """A cipher whose next byte of key stream is byte `offset` (>= 0) of this stream."""
        if offset < 0:
            raise ValueError(f"a stream has no byte {offset}")
        block, skip = divmod(offset, _AES_BLOCK)
        counter = (self._counter + block) % (1 << 128)
        # CTR is what a mask needs: a key stream, every key used for one stream only. Integrity comes from signatures.
        cipher = Cipher(algorithms.AES(self._key), modes.CTR(counter.to_bytes(_AES_BLOCK, "big"))).encryptor()
        cipher.update(_ZEROS[:skip])
        return cipher

    def read(self, start: int, stop: int) -> bytes:
        """Bytes start to stop of the stream, for lists and tests; masks go through `add_masks`."""
        return self.at(start).update(bytes(stop - start))


def add_masks(
    words: Lanes,
    start: int,
    plus: Sequence[Stream],
    minus: Sequence[Stream],
    *,
    out: Lanes | None = None,
    threads: int = 1,
) -> None:
    """Add `plus` and subtract `minus`, modulo 2^16, 2^32 or 2^64.

    Parameters:
        words: contiguous "<u2", "<u4" or "<u8" array; words[0] is word `start` of the whole body or tail.
        start: >= 0.
        out: contiguous, writable, of the type and length of `words`; None adds in place.
        threads: at most so many share the work; the cipher and numpy let others run meanwhile. The result is the same.

    Uses 256 KiB a thread, whatever the size of `words`.

    Raises:
        ValueError: another type of word, another `out`, or an array that is not contiguous and writable.
    """
    into = words if out is None else out
    if words.dtype not in _LANES or (into.dtype, into.shape) != (words.dtype, words.shape):
        raise ValueError(
            f"words must be little-endian, of 2, 4 or 8 bytes, and alike, not {words.dtype} into {into.dtype}"
        )
    if words.ndim != 1 or not (words.flags.c_contiguous and into.flags.c_contiguous and into.flags.writeable):
        raise ValueError("words must be one contiguous writable row")
    block = BLOCK_BYTES // words.dtype.itemsize
    blocks = -(-len(words) // block)
    if threads < 2 or blocks < 2:
        _add(words, start, plus, minus, into)
        return
    share = -(-blocks // threads) * block

    def add(low: int) -> None:
        _add(words[low : low + share], start + low, plus, minus, into[low : low + share])

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(add, range(0, len(words), share)))


def _add(words: Lanes, start: int, plus: Sequence[Stream], minus: Sequence[Stream], out: Lanes) -> None:
    size = words.dtype.itemsize
    steps: list[tuple[CipherContext, np.ufunc]] = [(stream.at(start * size), np.add) for stream in plus]
    steps += [(stream.at(start * size), np.subtract) for stream in minus]
    block = BLOCK_BYTES // size
    # update_into asks for room of one AES block more than it writes.
    room = bytearray(BLOCK_BYTES + _AES_BLOCK)
    mask = np.frombuffer(room, dtype=words.dtype, count=block)
    zeros, target = memoryview(_ZEROS), out.view(np.uint8).data
    apart = bool(steps) and not np.may_share_memory(words, out)
    for low in range(0, len(words), block):
        part, into, rest = words[low : low + block], out[low : low + block], steps
        first, length = low * size, len(part) * size
        source, used = zeros[:length], mask[: len(part)]
        if apart and low + block < len(words):
            # The first stream goes straight where the words go, so that fetching that place from memory hides behind the
            # cipher's arithmetic. The last block has no room after it.
            cipher, add = steps[0]
            cipher.update_into(source, target[first : first + length + _AES_BLOCK])
            add(part, into, out=into)
            part, rest = into, steps[1:]
        for cipher, add in rest:
            cipher.update_into(source, room)
            add(part, used, out=into)
            part = into
        if not steps:
            into[:] = part
