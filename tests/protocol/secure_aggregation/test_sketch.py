"""The sketch, against a slow second implementation and vectors that it gave: linear, exact, honest about its range.

AES-CTR: NIST SP 800-38A with one AES block at a time. Sums: Python integers without limit.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import canonical
from protocol.secure_aggregation import sketch as module
from protocol.secure_aggregation.prg import derive
from protocol.secure_aggregation.sketch import BLOCK, SKETCH_WORDS, SketchError, prove_range, seed_of, sketch

SEED = bytes(range(32))
CTX = bytes(range(50, 82))
LIST = "sha256:" + "c" * 64


def slow_sketch(seed: bytes, segments: list[tuple[int, int]], words: list[int]) -> list[int]:
    aes = Cipher(algorithms.AES(seed[:16]), modes.ECB()).encryptor()  # one block at a time: the bare permutation
    first = int.from_bytes(seed[16:], "big")
    stream = b"".join(
        aes.update(((first + block) % 2**128).to_bytes(16, "big")) for block in range(-(-2 * len(words) // 16))
    )
    most = max(bits for _, bits in segments)
    shifts = [most - bits for count, bits in segments for _ in range(count)]
    sums = [0] * 256
    for k, (word, shift) in enumerate(zip(words, shifts, strict=True)):
        cell = int.from_bytes(stream[2 * k : 2 * k + 2], "little")
        sums[cell % 256] += (-1 if cell & 256 else 1) * word * 2**shift
    return sums


def example(count: int) -> list[int]:
    """Words of 32 bits that anybody can make again: SHA-256 of the position."""
    return [
        int.from_bytes(hashlib.sha256(f"word {k}".encode()).digest()[:4], "little", signed=True) for k in range(count)
    ]


# --- what it is ------------------------------------------------------------------------------------------------------

# From slow_sketch: (words, fraction_bits) of the segments, the first four sums, SHA-256 of all 256 as little-endian int64.
VECTORS = [
    ([(1, 0)], [0, 0, 0, 0],
     "576447d9ca2fbebe19304b7674c69337b00a1b26d0e1571d26623cf8dd22afa6"),
    ([(5000, 20)], [-4894920995, 3197205319, 7231631306, 5456272190],
     "33417de11b4ccaf11c8a2984bf1a2db1ebdbc85d4fab94d57f96dc3931b77dbc"),
    ([(100, 8), (900, 14), (3, 0)], [143532679, -3690087965, -1990828376, 71016557573],
     "bcd8906af6a23cbe41313ee30c2608c2cb8956490d0a8e50f9e69ca3a2d2fd78"),
    ([(32777, 3), (32768, 5)], [-43644630516, 15113230412, 4781920207, -35061082743],
     "30fb7696bb7a216dfeabb68fc1c8e712d22d1818f150660ba0972e44aeb54c9a"),
]  # fmt: skip


@pytest.mark.parametrize(("segments", "front", "digest"), VECTORS)
def test_known_sketches(segments, front, digest):
    words = example(sum(count for count, _ in segments))
    found = sketch(SEED, segments, [np.array(words, dtype="<i4")])
    assert found[:4].tolist() == front
    assert hashlib.sha256(found.astype("<i8").tobytes()).hexdigest() == digest
    assert found.tolist() == slow_sketch(SEED, segments, words)


@settings(deadline=None, max_examples=50)
@given(data=st.data(), seed=st.binary(min_size=32, max_size=32))
def test_sketch_is_that_of_the_slow_reference(data, seed):
    segments = data.draw(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 20)), min_size=1, max_size=4))
    count = sum(words for words, _ in segments)
    words = data.draw(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=count, max_size=count))
    cuts = sorted(data.draw(st.lists(st.integers(0, count), max_size=3)))
    chunks = np.split(np.array(words, dtype="<i4"), cuts)
    assert sketch(seed, segments, chunks).tolist() == slow_sketch(seed, segments, words)


def test_a_counter_at_its_end_goes_on_from_zero():
    seed = bytes(16) + b"\xff" * 16
    words = example(100)
    assert sketch(seed, [(100, 3)], [np.array(words, dtype="<i4")]).tolist() == slow_sketch(seed, [(100, 3)], words)


def test_sketch_of_many_blocks_does_not_depend_on_how_the_words_are_cut():
    words = np.random.default_rng(0).integers(-(2**31), 2**31, 3 * BLOCK + 77, dtype=np.int32)
    segments = [(BLOCK + 5, 10), (1, 4), (2 * BLOCK + 71, 12)]
    whole = sketch(SEED, segments, [words])
    pieces = sketch(SEED, segments, [words[:3], words[3 : 2 * BLOCK].reshape(-1, 1), words[2 * BLOCK :]])
    assert whole.tolist() == pieces.tolist() == slow_sketch(SEED, segments, words.tolist())


@pytest.mark.parametrize("extreme", [-(2**31), 2**31 - 1])
def test_the_largest_words_are_added_without_losing_a_digit(extreme):
    """Many blocks of the largest words, scaled up as far as 64 bits allow."""
    count = 4 * BLOCK
    segments = [(count - 1, 1), (1, 15)]
    assert prove_range(segments, 32) == 15
    words = np.full(count, extreme, dtype="<i4")
    assert sketch(SEED, segments, [words]).tolist() == slow_sketch(SEED, segments, words.tolist())


# --- what it is for --------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    silos=st.integers(1, 6),
    bits=st.sampled_from([12, 16, 32]),
    segments=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12)), min_size=1, max_size=4),
    draw=st.integers(0, 2**32),
)
def test_sum_of_the_sketches_is_the_sketch_of_the_sum(silos, bits, segments, draw):
    """As integers, with words whose sum fits: what a quantised update is proved to be."""
    count, most = sum(words for words, _ in segments), 2 ** (bits - 1) // silos
    rows = np.random.default_rng(draw).integers(-most, most, (silos, count), dtype=np.int64)
    each = [sketch(SEED, segments, [row.astype("<i4")], word_bits=bits) for row in rows]
    summed = sketch(SEED, segments, [rows.sum(axis=0).astype("<i4")], word_bits=bits)
    assert [sum(values) for values in zip(*(row.tolist() for row in each), strict=True)] == summed.tolist()


def test_norm_of_the_sketch_is_that_of_the_update_but_for_chance():
    """The sum of squares is right on average and spreads by sqrt(2/256), also where one scale is coarser than the other."""
    draw = np.random.default_rng(3)
    words = draw.integers(-1000, 1001, 20_000, dtype=np.int32)
    segments = [(15_000, 8), (5_000, 6)]
    values = np.concatenate([words[:15_000] * 1.0, words[15_000:] * 4.0])
    true = float(values @ values)
    found = [float((sketch(draw.bytes(32), segments, [words]).astype(float) ** 2).sum()) / true for _ in range(400)]
    assert np.mean(found) == pytest.approx(1, abs=5 * np.sqrt(2 / 256 / 400))
    assert np.std(found) == pytest.approx(np.sqrt(2 / 256), rel=0.2)


def test_all_cells_and_both_signs_are_used_evenly():
    ones = np.ones(1 << 20, dtype="<i4")
    rows = sketch(SEED, [(1 << 20, 0)], [ones])
    # Each sum of 4,096 signs has a spread of 64.
    assert np.abs(rows).max() < 6 * 64
    assert rows.std() == pytest.approx(64, rel=0.25)


def test_another_nonce_list_or_attempt_gives_another_sketch():
    nonces = {"site-01": b"a" * 32, "site-02": b"b" * 32}
    seed = seed_of(CTX, nonces, LIST)
    assert len(seed) == 32
    others = [
        seed_of(CTX, {"site-01": b"b" * 32, "site-02": b"a" * 32}, LIST),
        seed_of(CTX, {"site-01": b"a" * 32}, LIST),
        seed_of(CTX, nonces, "sha256:" + "d" * 64),
        seed_of(bytes(32), nonces, LIST),
    ]
    assert len({seed, *others}) == 5


def test_seed_is_the_same_in_whatever_order_the_nonces_came():
    nonces = {"site-01": b"a" * 32, "site-02": b"b" * 32, "site-10": b"c" * 32}
    assert seed_of(CTX, dict(reversed(nonces.items())), LIST) == seed_of(CTX, nonces, LIST)
    text = canonical.encode({"list": LIST, "nonces": {silo: canonical.b64(value) for silo, value in nonces.items()}})
    assert seed_of(CTX, nonces, LIST) == derive(hashlib.sha256(text).digest(), "sketch", CTX, 32)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("segments", "word_bits", "fits"),
    [
        ([(2**31, 20)], 32, True),  # 2^31 words below 2^31: 2^62
        ([(2**32, 20)], 32, False),
        ([(2**16, 4), (1, 20)], 32, False),  # 2^16 * 2^31 * 2^16 = 2^63
        ([(2**16 - 1, 4), (1, 20)], 32, True),
        ([(2**27, 4), (1, 20)], 16, True),
        ([(2**32, 4), (1, 20)], 16, False),
        ([(0, 0)], 32, True),
    ],
)
def test_sums_that_could_leave_64_bits_are_refused(segments, word_bits, fits):
    if fits:
        assert prove_range(segments, word_bits) == max(bits for _, bits in segments)
        return
    with pytest.raises(SketchError, match="64 bits"):
        prove_range(segments, word_bits)
    with pytest.raises(SketchError, match="64 bits"):
        sketch(SEED, segments, [], word_bits=word_bits)


@pytest.mark.parametrize(
    ("segments", "word_bits"), [([], 32), ([(-1, 3)], 32), ([(1, -1)], 32), ([(1, 1)], 1), ([(1, 1)], 33)]
)
def test_segments_and_word_sizes_that_are_none_are_refused(segments, word_bits):
    with pytest.raises(SketchError, match=r"segment|word_bits"):
        prove_range(segments, word_bits)


@pytest.mark.parametrize(
    ("value", "fits"), [(2**15 - 1, True), (2**15, False), (-(2**15), True), (-(2**15) - 1, False)]
)
def test_a_word_beyond_its_size_is_refused(value, fits):
    words = np.zeros(2 * BLOCK, dtype="<i4")
    words[BLOCK + 3] = value
    if fits:
        assert abs(sketch(SEED, [(2 * BLOCK, 0)], [words], word_bits=16)).sum() == abs(value)
    else:
        with pytest.raises(SketchError, match="does not fit 16 bits"):
            sketch(SEED, [(2 * BLOCK, 0)], [words], word_bits=16)


@pytest.mark.parametrize("found", [9, 11])
def test_a_body_of_another_length_is_refused(found):
    with pytest.raises(SketchError, match="words than the segments"):
        sketch(SEED, [(4, 1), (6, 2)], [np.zeros(found, dtype="<i4")])


@pytest.mark.parametrize("dtype", ["<u4", "<f4", ">i4", "<i8", "?"])
def test_words_of_another_type_are_refused(dtype):
    with pytest.raises(SketchError, match="signed integers"):
        sketch(SEED, [(4, 1)], [np.zeros(4, dtype=dtype)])


@pytest.mark.parametrize("length", [31, 33, 0])
def test_a_seed_of_another_length_is_refused(length):
    with pytest.raises(SketchError, match="32 bytes"):
        sketch(bytes(length), [(4, 1)], [np.zeros(4, dtype="<i4")])


def test_words_of_two_bytes_give_the_same_sketch():
    words = np.arange(-200, 200, dtype="<i2")
    assert np.array_equal(sketch(SEED, [(400, 1)], [words]), sketch(SEED, [(400, 1)], [words.astype("<i4")]))


def test_memory_does_not_grow_with_the_update():
    import tracemalloc

    def peak(blocks: int) -> int:
        piece = np.ones(BLOCK, dtype="<i4")
        tracemalloc.start()
        sketch(SEED, [(blocks * BLOCK, 1)], (piece for _ in range(blocks)))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(1)
    assert peak(40) < peak(4) + 64_000
    assert module.SKETCH_WORDS == SKETCH_WORDS == 256
