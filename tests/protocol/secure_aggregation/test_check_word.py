"""The check word against a slow reference: for every vector, in any blocks, and linear, so that sums can be compared."""

from __future__ import annotations

import hashlib
import hmac
import json

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.secure_aggregation.check_word import PRIME, CheckWord, add_up, seed_of, to_bytes

CTX = bytes(range(32))
SEED = hashlib.sha256(b"seed").digest()


def reference(seed: bytes, body: list[int], tail: list[int]) -> int:
    """One coefficient at a time, one block of AES at a time, HKDF written out (RFC 5869)."""
    extracted = hmac.digest(bytes(32), seed, "sha256")
    info = b"consilium-secagg/1 prg check\n" + CTX
    material = hmac.digest(extracted, info + b"\x01", "sha256")
    aes = Cipher(algorithms.AES(material[:16]), modes.ECB()).encryptor()
    counter = int.from_bytes(material[16:], "big")
    total = 0
    for k, word in enumerate([*body, *tail]):
        block = aes.update(((counter + k // 2) % 2**128).to_bytes(16, "big"))
        eight = block[8 * (k % 2) : 8 * (k % 2) + 8]
        total += (int.from_bytes(eight, "little") & (2**61 - 1)) * word
    return total % (2**61 - 1)


def word_of(body: list[int], tail: list[int], cut: int = 0, seed: bytes = SEED) -> int:
    word = CheckWord(seed, CTX)
    for part in (body[:cut], body[cut:]):
        word.body(np.array(part, dtype=np.int32))
    word.tail(np.array(tail, dtype=np.uint64))
    return word.value


SIGNED = st.one_of(st.sampled_from([0, 1, -1, 2**31 - 1, -(2**31)]), st.integers(-(2**31), 2**31 - 1))
UNSIGNED = st.one_of(st.sampled_from([0, 1, 2**64 - 1]), st.integers(0, 2**64 - 1))


@settings(deadline=None)
@given(body=st.lists(SIGNED, max_size=40), tail=st.lists(UNSIGNED, max_size=5), data=st.data())
def test_word_is_that_of_the_reference_in_whatever_blocks_it_comes(body, tail, data):
    cut = data.draw(st.integers(0, len(body)))
    assert word_of(body, tail, cut) == reference(SEED, body, tail)


@pytest.mark.parametrize("value", [2**31 - 1, -(2**31)])
@pytest.mark.parametrize("length", [1023, 1024, 1025, (1 << 15) + 1])
def test_nothing_overflows_in_the_longest_rows_of_the_largest_words(value, length):
    assert word_of([value] * length, []) == reference(SEED, [value] * length, [])


@settings(deadline=None)
@given(rows=st.lists(st.lists(st.integers(-(2**27), 2**27), min_size=9, max_size=9), min_size=2, max_size=6))
def test_words_of_all_add_up_to_the_word_of_the_sum(rows):
    summed = [sum(column) for column in zip(*rows, strict=True)]
    words = [to_bytes(word_of(row, [len(row), 7])) for row in rows]
    assert add_up(words) == word_of(summed, [9 * len(rows), 7 * len(rows)])


def test_one_changed_word_of_body_or_tail_changes_the_check_word():
    body, tail = [5, -6, 7, 0], [1, 2]
    whole = word_of(body, tail)
    for k in range(4):
        assert word_of([x + (i == k) for i, x in enumerate(body)], tail) != whole
    assert word_of(body, [1, 3]) != whole
    assert word_of(body, tail, seed=hashlib.sha256(b"other").digest()) != whole


def test_a_word_that_is_no_residue_is_refused():
    assert add_up([to_bytes(PRIME - 1), to_bytes(2)]) == 1
    with pytest.raises(ValueError, match="below"):
        add_up([to_bytes(PRIME)])


def test_seed_names_sum_attempt_and_every_nonce():
    nonces = {"site-b": bytes([2]) * 32, "site-a": bytes([1]) * 32}
    published = "sha256:" + "a" * 64
    text = json.dumps(
        {
            "ctx": CTX.hex(),
            "nonces": [
                ["site-a", "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="],
                ["site-b", "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI="],
            ],
            "sum": published,
        },
        separators=(",", ":"),
    )
    assert seed_of(CTX, published, nonces) == hashlib.sha256(text.encode()).digest()
    seeds = {
        seed_of(CTX, published, nonces),
        seed_of(bytes(32), published, nonces),
        seed_of(CTX, "sha256:" + "b" * 64, nonces),
        seed_of(CTX, published, {"site-a": nonces["site-a"]}),
    }
    assert len(seeds) == 4
