"""The masks, against a slow second implementation written from the standards, and vectors that it gave.

HKDF: RFC 5869 with hmac. AES-CTR: NIST SP 800-38A with one AES block at a time. Words: Python integers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import canonical
from protocol.secure_aggregation import masking
from protocol.secure_aggregation.masking import Masks, masked
from protocol.secure_aggregation.parameters import CHUNK_WORDS
from protocol.secure_aggregation.prg import BLOCK_BYTES, Stream, add_masks, derive
from protocol.secure_aggregation.words import lane

CTX = bytes(range(32))
SEED = bytes(range(100, 132))

# --- the slow implementation -----------------------------------------------------------------------------------------


def slow_hkdf(secret: bytes, info: bytes, length: int) -> bytes:
    key = hmac.new(bytes(32), secret, hashlib.sha256).digest()
    out, block, counter = b"", b"", 1
    while len(out) < length:
        block = hmac.new(key, block + info + bytes([counter]), hashlib.sha256).digest()
        out, counter = out + block, counter + 1
    return out[:length]


def slow_stream(seed: bytes, label: str, ctx: bytes, start: int, stop: int) -> bytes:
    material = slow_hkdf(seed, f"consilium-secagg/1 prg {label}\n".encode() + ctx, 32)
    aes = Cipher(algorithms.AES(material[:16]), modes.ECB()).encryptor()  # one block at a time: the bare permutation
    first = int.from_bytes(material[16:], "big")
    out = bytearray()
    for block in range(start // 16, -(-stop // 16)):
        out += aes.update(((first + block) % 2**128).to_bytes(16, "big"))
    return bytes(out[start % 16 : start % 16 + stop - start])


def slow_masked(words: list[int], start: int, bits: int, plus: list[tuple], minus: list[tuple]) -> list[int]:
    size = bits // 8
    out = []
    for at, word in enumerate(words, start=start):
        for seed, label in plus:
            word += int.from_bytes(slow_stream(seed, label, CTX, at * size, at * size + size), "little")
        for seed, label in minus:
            word -= int.from_bytes(slow_stream(seed, label, CTX, at * size, at * size + size), "little")
        out.append(word % 2**bits)
    return out


# --- vectors that it gave --------------------------------------------------------------------------------------------

STREAM_VECTORS = [
    ("self", 0, "aa1ce8cee0b200805eaaafb56cdb4242da659102e3dba19564fc8cb4088b57bb"),
    ("pair", 0, "ddd79df52713a2ba3be2c8b19f6b99b2b297c05332b57bbe874deaf90182db8a"),
    ("tail", 0, "f50bd373ebfb3094e51f259596260e6eee3540a9bf7d1d6bcb5d338581343ab4"),
    ("pair", 16, "b297c05332b57bbe874deaf90182db8a"),
    ("pair", 4194304, "fdb686a2dc73ebee3382704d5e765fd3"),
    ("pair", 4194299, "a670b0163afdb686a2dc73ebee338270"),
    ("self", 1099511627779, "6008969a1c48b3d368802c5c104c3e3a"),
]


@pytest.mark.parametrize(("label", "start", "expected"), STREAM_VECTORS)
def test_stream_vectors(label, start, expected):
    stop = start + len(expected) // 2
    assert slow_stream(SEED, label, CTX, start, stop).hex() == expected
    assert Stream(SEED, label, CTX).read(start, stop).hex() == expected


def test_masked_update_vector():
    """Word i is i * 0x01010101; silo 1 of three: its own mask plus, silo 0's pair mask minus, silo 2's plus."""
    words = [i * 0x01010101 % 2**32 for i in range(8)]
    own, low, high = bytes([1]) * 32, bytes([2]) * 32, bytes([3]) * 32
    expected = "3102739c03752631cd5a6704e7c277abc84a1e6ccf67302b60ff3410430810b0"
    slow = slow_masked(words, 0, 32, [(own, "self"), (high, "pair")], [(low, "pair")])
    assert b"".join(word.to_bytes(4, "little") for word in slow).hex() == expected
    lanes = np.array(words, dtype="<u4")
    Masks.build(CTX, self_plus=[own], pair_plus=[high], pair_minus=[low]).apply(lanes, "body", 0)
    assert lanes.tobytes().hex() == expected


# Word i is i * 0x01010101, cut to its size, masked as above in its lane, and packed: the whole chunk of a silo.
CHUNK_VECTORS = [
    (32, "3102739c03752631cd5a6704e7c277abc84a1e6ccf67302b60ff3410430810b01d796e92"),
    (24, "310273037526cd5a67e7c277c84a1ecf673060ff344308101d796e"),
    (16, "3102739d04762833cf5c6907eac57cafcc4e"),
    (12, "3132d7048632cf9c76eac5f7cc0e"),
]


@pytest.mark.parametrize(("bits", "expected"), CHUNK_VECTORS)
def test_masked_chunk_vectors(world, bits, expected):
    """A mask costs a lane of key stream a word, whatever is kept of it."""
    parameters = dataclasses.replace(world(3, words=9, tail=0).parameters, word_bits=bits)
    own, low, high = bytes([1]) * 32, bytes([2]) * 32, bytes([3]) * 32
    words = [i * 0x01010101 for i in range(9)]
    ring = 8 * lane(bits).itemsize
    slow = slow_masked(words, 0, ring, [(own, "self"), (high, "pair")], [(low, "pair")])
    number = sum((word % 2**bits) << (bits * place) for place, word in enumerate(slow))
    assert number.to_bytes(-(-9 * bits // 8), "little").hex() == expected
    masks = Masks.build(CTX, self_plus=[own], pair_plus=[high], pair_minus=[low])
    lanes = np.array([word % 2**ring for word in words], dtype=lane(bits))
    assert masked(parameters, masks, 0, lanes.tobytes())[0].hex() == expected


# --- properties ------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(start=st.integers(0, 2**45), length=st.integers(0, 100), seed=st.binary(min_size=32, max_size=32))
def test_any_range_equals_the_slow_stream(start, length, seed):
    assert Stream(seed, "pair", CTX).read(start, start + length) == slow_stream(
        seed, "pair", CTX, start, start + length
    )


def test_counter_wraps_round_at_128_bits(monkeypatch):
    stream = Stream(SEED, "self", CTX)
    stream._counter = 2**128 - 2
    whole = stream.read(0, 80)
    assert whole[32:] == stream.read(32, 80)
    assert stream.read(37, 80) == whole[37:]


@settings(deadline=None, max_examples=50)
@given(
    bits=st.sampled_from([16, 32, 64]),
    start=st.integers(0, 50),
    count=st.integers(0, 30),
    plus=st.integers(0, 3),
    minus=st.integers(0, 3),
    data=st.data(),
)
def test_masks_equal_the_slow_masks(bits, start, count, plus, minus, data):
    words = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=count, max_size=count))
    seeds = [(bytes([number]) * 32, "self" if number % 2 else "tail") for number in range(plus + minus)]
    found = np.array(words, dtype=f"<u{bits // 8}")
    streams = [Stream(seed, label, CTX) for seed, label in seeds]
    add_masks(found, start, streams[:plus], streams[plus:])
    assert found.tolist() == slow_masked(words, start, bits, seeds[:plus], seeds[plus:])
    back = np.empty_like(found)
    add_masks(found, start, streams[plus:], streams[:plus], out=back)
    assert back.tolist() == words
    assert found.tolist() == slow_masked(words, start, bits, seeds[:plus], seeds[plus:])


def test_pieces_of_any_size_wear_the_same_mask_as_the_whole():
    """Across the borders of cache blocks and chunks."""
    length = 2 * BLOCK_BYTES // 4 + 777
    stream = Stream(SEED, "pair", CTX)
    whole = np.zeros(length, dtype="<u4")
    add_masks(whole, CHUNK_WORDS - 1000, [stream], [])
    assert whole.tobytes() == stream.read(4 * (CHUNK_WORDS - 1000), 4 * (CHUNK_WORDS - 1000 + length))
    for cut in (1, 3, 1000, BLOCK_BYTES // 4 - 1, BLOCK_BYTES // 4 + 1):
        parts = [np.zeros(cut, dtype="<u4"), np.zeros(length - cut, dtype="<u4")]
        add_masks(parts[1], CHUNK_WORDS - 1000 + cut, [stream], [])
        add_masks(parts[0], CHUNK_WORDS - 1000, [stream], [])
        assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("dtype", ["<u2", "<u4", "<u8"])
@pytest.mark.parametrize("threads", [2, 3, 64])
def test_threads_change_nothing(dtype, threads):
    words = np.arange(5 * BLOCK_BYTES // np.dtype(dtype).itemsize + 77, dtype="<u8").astype(dtype)
    streams = [Stream(bytes([number]) * 32, "pair", CTX) for number in range(3)]
    alone, shared = np.empty_like(words), words.copy()
    add_masks(words, 5, streams[:2], streams[2:], out=alone)
    add_masks(shared, 5, streams[:2], streams[2:], threads=threads)
    assert np.array_equal(alone, shared)


def test_no_stream_leaves_the_words_as_they_are():
    words = np.arange(10, dtype="<u4")
    out = np.zeros_like(words)
    add_masks(words, 0, [], [], out=out)
    assert np.array_equal(out, words)


def test_threads_are_as_many_as_the_cores_that_may_be_used(monkeypatch):
    monkeypatch.setattr(masking.os, "sched_getaffinity", lambda _: set(range(3)))
    assert masking.cores() == 3
    monkeypatch.delattr(masking.os, "sched_getaffinity")
    for count, expected in ((None, 1), (2, 2), (64, 8)):
        monkeypatch.setattr(masking.os, "cpu_count", lambda count=count: count)
        assert masking.cores() == expected


def test_labels_contexts_and_seeds_give_streams_with_nothing_in_common():
    streams = {
        Stream(seed, label, ctx).read(0, 64)
        for seed in (SEED, bytes(32))
        for label in ("self", "pair", "tail")
        for ctx in (CTX, bytes(32))
    }
    assert len(streams) == 12
    assert len({row[at : at + 16] for row in streams for at in range(0, 64, 16)}) == 48


def test_derive_is_rfc_5869():
    assert derive(SEED, "list", CTX, 45) == slow_hkdf(SEED, b"consilium-secagg/1 list\n" + CTX, 45)


def test_masked_chunk_leaves_the_words_alone_and_names_its_digest(world):
    parameters = world(4, words=5, tail=2).parameters
    masks = Masks.build(parameters.ctx, self_plus=[SEED])
    for k, words in enumerate((bytes(20), bytes(16))):
        chunk, digest = masked(parameters, masks, k, words)
        assert words == bytes(len(words))
        assert chunk == Stream(SEED, "self" if k == 0 else "tail", parameters.ctx).read(0, len(words))
        assert digest == canonical.digest(chunk)


def test_wrong_seeds_words_and_offsets_raise():
    for seed in (b"", SEED[:31], SEED + b"0"):
        with pytest.raises(ValueError, match="32 bytes"):
            Stream(seed, "self", CTX)
    with pytest.raises(ValueError, match="ctx must be 32 bytes"):
        Stream(SEED, "self", CTX[:31])
    with pytest.raises(ValueError, match="no byte -1"):
        Stream(SEED, "self", CTX).at(-1)
    for words in (np.zeros(4, dtype=">u4"), np.zeros(4, dtype="<i4"), np.zeros(4, dtype="<u1")):
        with pytest.raises(ValueError, match="little-endian"):
            add_masks(words, 0, [], [])
    read_only = np.frombuffer(bytes(16), dtype="<u4")
    for words in (np.zeros((2, 2), dtype="<u4"), np.zeros(8, dtype="<u4")[::2], read_only):
        with pytest.raises(ValueError, match="contiguous writable"):
            add_masks(words, 0, [], [])


def test_masks_go_only_into_a_row_like_the_words():
    words = np.zeros(4, dtype="<u4")
    for out in (np.zeros(4, dtype="<u8"), np.zeros(5, dtype="<u4"), np.zeros((1, 4), dtype="<u4")):
        with pytest.raises(ValueError, match="alike"):
            add_masks(words, 0, [], [], out=out)
    for out in (np.zeros(8, dtype="<u4")[::2], np.frombuffer(bytes(16), dtype="<u4")):
        with pytest.raises(ValueError, match="contiguous writable"):
            add_masks(words, 0, [], [], out=out)
    add_masks(np.frombuffer(bytes(16), dtype="<u4"), 0, [], [], out=words)


def test_stream_shows_no_secret():
    assert repr(Stream(SEED, "self", CTX)) == "Stream(secret)"
