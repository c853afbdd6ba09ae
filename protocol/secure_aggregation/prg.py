"""The masks: AES-128 in counter mode, key and first counter from HKDF-SHA256 over seed, label and ctx.

A stream is a fixed, practically endless row of bytes; any chunk of an update wears the same range of it, so chunks can
be masked and unmasked in any order, by several workers, and again after a crash. Words are little-endian.

Speed comes from blocks that stay in the cache: 256 KiB of key stream are made in a reused buffer and added in place,
all streams of one block before the next block. The limit is the key stream itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from protocol.secure_aggregation.parameters import PROTOCOL

Label = Literal["self", "pair", "tail", "check"]
Words = NDArray[np.unsignedinteger[Any]]

SEED_BYTES: Final = 32
BLOCK_BYTES: Final = 256 << 10
_AES_BLOCK: Final = 16
_ZEROS: Final = bytes(BLOCK_BYTES)


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


def add_masks(words: Words, start: int, plus: Sequence[Stream], minus: Sequence[Stream]) -> None:
    """Add `plus` and subtract `minus` from `words` in place, modulo 2^32 or 2^64.

    Parameters:
        words: contiguous, writable "<u4" or "<u8" array; words[0] is word `start` of the whole body or tail.
        start: >= 0.

    Uses 512 KiB beside `words`, whatever its size. Touches nothing else, so threads may work on different arrays.

    Raises:
        ValueError: another type of word, or an array that is not contiguous and writable.
    """
    if words.dtype not in (np.dtype("<u4"), np.dtype("<u8")):
        raise ValueError(f"words must be little-endian and of 4 or 8 bytes, not {words.dtype}")
    if words.ndim != 1 or not words.flags.c_contiguous or not words.flags.writeable:
        raise ValueError("words must be one contiguous writable row")
    size = words.dtype.itemsize
    ciphers = [(stream.at(start * size), True) for stream in plus] + [
        (stream.at(start * size), False) for stream in minus
    ]
    block = BLOCK_BYTES // size
    # update_into asks for room of one AES block more than it writes.
    room = bytearray(BLOCK_BYTES + _AES_BLOCK)
    mask = np.frombuffer(room, dtype=words.dtype, count=block)
    zeros = memoryview(_ZEROS)
    for low in range(0, len(words), block):
        part = words[low : low + block]
        source = zeros[: len(part) * size]
        used = mask[: len(part)]
        for cipher, positive in ciphers:
            cipher.update_into(source, room)
            (np.add if positive else np.subtract)(part, used, out=part)
