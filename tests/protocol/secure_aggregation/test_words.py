"""Words on the wire, against a slow second implementation with one Python integer for all of them, and its vectors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.secure_aggregation import words as module
from protocol.secure_aggregation.words import (
    WORD_BITS,
    add_packed,
    is_whole,
    lane,
    pack,
    packed_bytes,
    signed,
    unpack,
)

SIZES = st.sampled_from([64, *WORD_BITS])


def slow_pack(words: list[int], bits: int) -> bytes:
    """Word i takes bits i * bits and following of one long little-endian number."""
    number = sum((word % 2**bits) << (bits * place) for place, word in enumerate(words))
    return number.to_bytes(-(-len(words) * bits // 8), "little")


# Words 1, -2, 0x123456789a and so on, cut to their size; the last vector of each size has an odd last word.
VECTORS = [
    (32, [1, -2, 0x89ABCDEF], "01000000feffffffefcdab89"),
    (24, [1, -2, 0xABCDEF], "010000feffffefcdab"),
    (16, [1, -2, 0xCDEF], "0100feffefcd"),
    (12, [1, -2], "01e0ff"),
    (12, [1, -2, 0xDEF], "01e0ffef0d"),
    (12, [0xABC], "bc0a"),
    (64, [1, -2], "0100000000000000feffffffffffffff"),
    *((bits, [], "") for bits in (64, *WORD_BITS)),
]


@pytest.mark.parametrize(("bits", "words", "expected"), VECTORS)
def test_packed_vectors(bits, words, expected):
    lanes = np.array([word % 2 ** (8 * lane(bits).itemsize) for word in words], dtype=lane(bits))
    assert slow_pack(words, bits).hex() == expected
    assert bytes(pack(lanes, bits)).hex() == expected
    assert unpack(bytes.fromhex(expected), bits).tolist() == [word % 2**bits for word in words]
    assert packed_bytes(len(words), bits) == len(expected) // 2


def test_lanes_hold_their_words_and_masks_can_be_added_in_them():
    assert [(bits, lane(bits).str, is_whole(bits)) for bits in (64, *WORD_BITS)] == [
        (64, "<u8", True),
        (32, "<u4", True),
        (24, "<u4", False),
        (16, "<u2", True),
        (12, "<u2", False),
    ]
    for bits in (0, 8, 31, 48):
        for call in (lane, is_whole, lambda size: packed_bytes(1, size), lambda size: unpack(b"", size)):
            with pytest.raises(ValueError, match="word_bits must be"):
                call(bits)


@settings(deadline=None)
@given(bits=SIZES, words=st.lists(st.integers(0, 2**64 - 1), max_size=40))
def test_pack_equals_the_slow_one_and_unpack_gives_the_words_back(bits, words):
    lanes = np.array([word % 2 ** (8 * lane(bits).itemsize) for word in words], dtype=lane(bits))
    before = lanes.copy()
    packed = bytes(pack(lanes, bits))
    assert packed == slow_pack(words, bits)
    assert np.array_equal(lanes, before)
    back = unpack(packed, bits)
    assert (back.dtype, back.tolist()) == (lane(bits), [word % 2**bits for word in words])


@pytest.mark.parametrize("bits", WORD_BITS)
@pytest.mark.parametrize("more", [-1, 0, 1, 2, 3])
def test_rows_longer_than_a_pass_are_packed_as_a_whole(bits, more):
    count = 2 * module._BLOCK + more
    lanes = np.random.default_rng(bits).integers(0, 2**31, count).astype(lane(bits))
    packed = pack(lanes, bits)
    assert bytes(packed) == slow_pack(lanes.tolist(), bits)
    assert np.array_equal(pack(unpack(packed, bits), bits), packed)
    total = lanes.copy()
    add_packed(total, packed, bits)
    assert [word % 2**bits for word in total.tolist()] == [2 * word % 2**bits for word in lanes.tolist()]


@given(bits=st.sampled_from(WORD_BITS), words=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=20), data=st.data())
def test_signed_is_twos_complement_whatever_lies_above_the_word(bits, words, data):
    words = [(word + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1) for word in words]
    above = 2 ** (8 * lane(bits).itemsize - bits)
    dirt = data.draw(st.lists(st.integers(0, above - 1), min_size=len(words), max_size=len(words)))
    lanes = np.array([word % 2**bits + 2**bits * more for word, more in zip(words, dirt, strict=True)], lane(bits))
    values = signed(lanes, bits)
    assert (values.dtype, values.tolist()) == (np.dtype("<i4"), words)


@settings(deadline=None)
@given(bits=SIZES, rows=st.lists(st.lists(st.integers(0, 2**64 - 1), min_size=7, max_size=7), max_size=5))
def test_packed_rows_add_up_in_the_ring_of_the_word(bits, rows):
    total = np.zeros(7, dtype=lane(bits))
    for row in rows:
        add_packed(total, slow_pack(row, bits), bits)
    assert bytes(pack(total, bits)) == slow_pack([sum(column) for column in zip(*rows, strict=True)] or [0] * 7, bits)


@pytest.mark.parametrize(
    ("bits", "lengths"), [(64, (1, 7, 9)), (32, (1, 3, 5)), (24, (1, 2, 4)), (16, (1, 3)), (12, (1, 4, 7))]
)
def test_lengths_that_no_row_has_are_refused(bits, lengths):
    for length in lengths:
        with pytest.raises(ValueError, match=f"{length} bytes are no row of {bits}-bit words"):
            unpack(bytes(length), bits)
        with pytest.raises(ValueError, match=f"not {length}"):
            add_packed(np.zeros(2, dtype=lane(bits)), bytes(length), bits)
    with pytest.raises(ValueError, match="are 8 bytes, not 12"):
        add_packed(np.zeros(2, dtype="<u4"), bytes(12), 32)


@pytest.mark.parametrize("padding", [0x10, 0x80, 0xF0])
@pytest.mark.parametrize("before", [b"", bytes(3)])
def test_bits_beside_an_odd_last_word_are_refused(before, padding):
    unpack(before + bytes([0xFF, 0x0F]), 12)
    with pytest.raises(ValueError, match="must be zero"):
        unpack(before + bytes([0xFF, padding]), 12)
    with pytest.raises(ValueError, match="must be zero"):
        add_packed(np.zeros(1 + len(before) * 2 // 3, dtype="<u2"), before + bytes([0, padding]), 12)


def test_other_arrays_are_refused():
    for bits in (64, *WORD_BITS):
        good = np.zeros(8, dtype=lane(bits))
        for bad in (
            good.astype(f"<i{good.itemsize}"),
            good.reshape(2, 4),
            good[::2],
            good.astype(f">u{good.itemsize}"),
        ):
            for call in (pack, signed, lambda lanes, size: add_packed(lanes, b"", size)):
                with pytest.raises(ValueError, match="contiguous row"):
                    call(bad, bits)
    with pytest.raises(ValueError, match="no 32-bit value"):
        signed(np.zeros(1, dtype="<u8"), 64)


def test_whole_lanes_are_not_copied():
    lanes = np.arange(4, dtype="<u2")
    assert np.shares_memory(np.asarray(pack(lanes, 16)), lanes)
    packed = bytearray(8)
    assert np.shares_memory(unpack(packed, 16), np.frombuffer(packed, dtype=np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        unpack(packed, 16)[0] = 1
