"""Boxes, lists and bindings: they open for whom and where they were made for, and nowhere else."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, MLKEM768X25519PrivateKey, Suite

from protocol.secure_aggregation import sealing
from protocol.secure_aggregation.sealing import Bundle, SealingError

CTX = bytes(range(32))
ROSTER = "sha256:" + "a" * 64
PRIVATE = sealing.generate_private()
PUBLIC = sealing.public_of(PRIVATE)
BUNDLE = Bundle(b"s" * 32, b"l" * 32, b"h" * 32)
WHERE = {"ctx": CTX, "roster": ROSTER, "sender": 2, "receiver": 0}


def test_box_round_trip_and_size():
    box = sealing.seal_bundle(BUNDLE, public=PUBLIC, **WHERE)
    assert len(box) == 1088 + 32 + 98 + 16  # ML-KEM ciphertext, X25519 share, content, tag
    assert sealing.open_bundle(box, private=PRIVATE, **WHERE) == BUNDLE
    assert sealing.seal_bundle(BUNDLE, public=PUBLIC, **WHERE) != box


@pytest.mark.parametrize(
    "change", [{"ctx": bytes(32)}, {"roster": "sha256:" + "b" * 64}, {"sender": 1}, {"receiver": 1}, {"private": None}]
)
def test_box_opens_nowhere_else(change):
    box = sealing.seal_bundle(BUNDLE, public=PUBLIC, **WHERE)
    where = {**WHERE, "private": PRIVATE} | change
    where["private"] = where["private"] or sealing.generate_private()
    with pytest.raises(SealingError):
        sealing.open_bundle(box, **where)


def test_damaged_box_is_refused():
    box = sealing.seal_bundle(BUNDLE, public=PUBLIC, **WHERE)
    for bad in (b"", box[:-1], box + b"\0", box[:100], bytes(len(box)), b"\xff" * len(box)):
        with pytest.raises(SealingError, match="cannot be opened"):
            sealing.open_bundle(bad, private=PRIVATE, **WHERE)
    for at in (0, 1087, 1088, 1119, 1120, len(box) - 1):
        bad = bytearray(box)
        bad[at] ^= 1
        with pytest.raises(SealingError, match="cannot be opened"):
            sealing.open_bundle(bytes(bad), private=PRIVATE, **WHERE)


def test_box_of_another_length_inside_is_refused():
    """A peer seals something else than a bundle under all the right names."""
    mlkem, x25519 = sealing._split_private(PRIVATE)
    suite = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_128_GCM)
    for plain in (b"", b"\x03\x01" + bytes(95), b"\x03\x01" + bytes(97)):
        box = suite.encrypt(
            plain, MLKEM768X25519PrivateKey(mlkem, x25519).public_key(), sealing._bundle_info(CTX, ROSTER)
        )
        with pytest.raises(SealingError, match="another form"):
            sealing.open_bundle(box, private=PRIVATE, **WHERE)


def test_public_keys_that_cannot_be_used_are_refused():
    sealing.check_public(PUBLIC)
    for bad in (b"", PUBLIC[:-1], PUBLIC + b"\0", b"\xff" * 1216, PUBLIC[:1184] + bytes(32)):
        with pytest.raises(SealingError):
            sealing.check_public(bad)
    with pytest.raises(SealingError, match="96 bytes"):
        sealing.public_of(PRIVATE[:-1])


def test_pair_seed_needs_both_halves_in_order():
    seed = sealing.pair_seed(b"a" * 32, b"b" * 32, CTX)
    others = [
        sealing.pair_seed(b"b" * 32, b"a" * 32, CTX),
        sealing.pair_seed(b"a" * 32, b"c" * 32, CTX),
        sealing.pair_seed(b"c" * 32, b"b" * 32, CTX),
        sealing.pair_seed(b"a" * 32, b"b" * 32, bytes(32)),
    ]
    assert len(seed) == 32
    assert len({seed, *others}) == 5


def test_list_opens_only_with_its_key_context_roster_and_silo():
    where = {"key": b"k" * 32, "ctx": CTX, "roster": ROSTER, "silo": "site-1"}
    seeds = bytes(range(256))
    box = sealing.seal_list(seeds, **where)
    assert len(box) == sealing.list_box_bytes(8)
    assert sealing.open_list(box, **where) == seeds
    for change in ({"key": bytes(32)}, {"ctx": bytes(32)}, {"roster": "sha256:" + "b" * 64}, {"silo": "site-2"}):
        with pytest.raises(SealingError, match="cannot be opened"):
            sealing.open_list(box, **(where | change))
    with pytest.raises(SealingError):
        sealing.open_list(box[:-1], **where)


def test_binding_binds_use_context_silo_and_secret():
    kinds = {
        sealing.binding(what, secret, ctx=ctx, silo=silo)
        for what in ("self", "list", "nonce 1", "nonce 2")
        for secret in (bytes(32), b"1" * 32)
        for ctx in (bytes(32), CTX)
        for silo in ("a", "b")
    }
    assert len(kinds) == 32
