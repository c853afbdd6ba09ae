"""Ed25519 keys and DSSE envelopes: what is signed, by whom, as what."""

from __future__ import annotations

import base64
import json
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import keys, pkcs8
from protocol.signing import (
    BadSignature,
    Envelope,
    KeyFileError,
    MalformedEnvelope,
    SignatureError,
    SigningKey,
    UnknownKey,
    fingerprint,
    keyid,
    pae,
    sign_envelope,
    verify,
    verify_envelope,
)

TYPE = "application/vnd.consilium.test+json"
ALICE, BOB = SigningKey.from_bytes(b"a" * 32), SigningKey.from_bytes(b"b" * 32)
KNOWN = {ALICE.keyid: ALICE.public, BOB.keyid: BOB.public}

# RFC 8032, section 7.1: TEST 1, TEST 2, TEST 3. (seed, public, message, signature)
RFC_8032 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
]


@pytest.mark.parametrize(("seed", "public", "message", "signature"), RFC_8032)
def test_published_vectors(seed: str, public: str, message: str, signature: str) -> None:
    key = SigningKey.from_bytes(bytes.fromhex(seed))
    assert key.public.hex() == public
    assert key.sign(bytes.fromhex(message)).hex() == signature
    verify(key.public, bytes.fromhex(signature), bytes.fromhex(message))


def test_wrong_message_wrong_signature_wrong_key_and_wrong_lengths_are_refused() -> None:
    signature = ALICE.sign(b"message")
    flipped = bytes([signature[0] ^ 1]) + signature[1:]
    for public, wrong, message in [
        (ALICE.public, signature, b"messagf"),
        (ALICE.public, flipped, b"message"),
        (BOB.public, signature, b"message"),
        (ALICE.public, signature[:-1], b"message"),
        (ALICE.public, signature + b"\0", b"message"),
        (ALICE.public, b"", b"message"),
        (ALICE.public[:-1], signature, b"message"),
        (ALICE.public + b"\0", signature, b"message"),
        (b"\xff" * 32, signature, b"message"),
    ]:
        with pytest.raises(BadSignature):
            verify(public, wrong, message)


def test_a_key_of_small_order_signs_nothing() -> None:
    # With the identity as "key", R = S*B fits every message: the library itself accepts it, we must not.
    identity = b"\x01" + bytes(31)
    signature = identity + bytes(32)
    with pytest.raises(BadSignature, match="small order"):
        verify(identity, signature, b"any message")
    with pytest.raises(BadSignature, match="small order"):
        verify(bytes(31) + b"\x80", signature, b"any message")


def test_the_list_of_small_order_points_is_the_curves_own() -> None:
    """Every point whose double's double's double is the identity, on -x2 + y2 = 1 + d x2 y2 over 2^255 - 19."""
    p = 2**255 - 19
    d = -121665 * pow(121666, -1, p) % p
    ys = {1, p - 1, 0}  # orders 1, 2 and 4
    # Order 8: the double has y = 0, so x2 = -y2, and the curve gives d y4 + 2 y2 - 1 = 0.
    root = _square_root(1 + d, p)
    for square in ((-1 + root) * pow(d, -1, p) % p, (-1 - root) * pow(d, -1, p) % p):
        y = _square_root(square, p)
        if y * y % p == square:
            ys |= {y, p - y}
    assert all(_order_divides_eight(y, p, d) for y in ys)
    encodings = {y.to_bytes(32, "little") for y in ys} | {(y + p).to_bytes(32, "little") for y in ys if y + p < 2**255}
    assert encodings == set(keys._SMALL_ORDER)


def _square_root(square: int, p: int) -> int:
    """A root where there is one, for a prime of the form 8k + 5."""
    root = pow(square, (p + 3) // 8, p)
    return root if root * root % p == square % p else root * pow(2, (p - 1) // 4, p) % p


def _order_divides_eight(y: int, p: int, d: int) -> bool:
    square = (y * y - 1) * pow(d * y * y + 1, -1, p) % p
    x = _square_root(square, p)
    assert x * x % p == square, "not a point of the curve"
    for _ in range(3):
        t = d * x * x * y * y % p
        x, y = 2 * x * y * pow(1 + t, -1, p) % p, (y * y + x * x) * pow(1 - t, -1, p) % p
    return (x, y) == (0, 1)


def test_keyid_and_fingerprint() -> None:
    assert keyid(ALICE.public) == ALICE.keyid and len(ALICE.keyid) == 64
    assert fingerprint(ALICE.public).replace(" ", "") == ALICE.keyid
    assert [len(group) for group in fingerprint(ALICE.public).split(" ")] == [4] * 16
    with pytest.raises(BadSignature, match="32 bytes"):
        keyid(b"short")


def test_repr_shows_only_the_keyid() -> None:
    assert repr(ALICE) == f"SigningKey({ALICE.keyid})"


def test_a_seed_has_32_bytes() -> None:
    for length in (0, 31, 33):
        with pytest.raises(ValueError, match="32 bytes"):
            SigningKey.from_bytes(b"x" * length)


@pytest.mark.parametrize("passphrase", [None, b"correct horse"])
def test_a_saved_key_is_read_back_and_is_its_owners_only(tmp_path: Path, passphrase: bytes | None) -> None:
    path = tmp_path / "steward.key"
    key = SigningKey.generate()
    key.save(path, passphrase)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SigningKey.load(path, passphrase).public == key.public
    assert key.sign(b"x")[:8] not in path.read_bytes()


def test_a_passphrase_is_stretched_with_scrypt_and_openssl_opens_the_file(tmp_path: Path) -> None:
    path = tmp_path / "steward.key"
    ALICE.save(path, b"correct horse")
    for word in (b"BEGIN ENCRYPTED PRIVATE KEY", b"END ENCRYPTED PRIVATE KEY"):
        assert word in path.read_bytes()
    der = base64.b64decode("".join(path.read_text().splitlines()[1:-1]))
    assert bytes.fromhex("2b06010401da47040b") in der  # scrypt's object identifier
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl command here")
    command = [openssl, "pkey", "-in", str(path), "-passin", "pass:correct horse", "-pubout", "-outform", "DER"]
    done = subprocess.run(command, capture_output=True, check=True, timeout=30)
    assert done.stdout[-32:] == ALICE.public


def test_lengths_beyond_one_byte_are_written_as_der_wants() -> None:
    assert pkcs8._tagged(0x04, b"x" * 127)[:2] == b"\x04\x7f"
    assert pkcs8._tagged(0x04, b"x" * 128)[:3] == b"\x04\x81\x80"
    assert pkcs8._tagged(0x04, b"x" * 300)[:4] == b"\x04\x82\x01\x2c"
    assert (pkcs8._integer(5), pkcs8._integer(128), pkcs8._integer(2**14)) == (b"\2\1\5", b"\2\2\0\x80", b"\2\2\x40\0")


def test_a_key_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "silo.key"
    ALICE.save(path)
    with pytest.raises(KeyFileError, match="never overwritten"):
        BOB.save(path)
    assert SigningKey.load(path).public == ALICE.public


def test_key_files_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    path = tmp_path / "silo.key"
    ALICE.save(path, b"right")
    with pytest.raises(KeyFileError, match="passphrase is wrong"):
        SigningKey.load(path, b"wrong")
    with pytest.raises(KeyFileError, match="needs a passphrase"):
        SigningKey.load(path)
    with pytest.raises(KeyFileError, match="cannot be read"):
        SigningKey.load(tmp_path / "absent")
    with pytest.raises(KeyFileError, match="cannot be written"):
        ALICE.save(tmp_path / "absent" / "silo.key")
    with pytest.raises(KeyFileError, match="empty"):
        ALICE.save(tmp_path / "other.key", b"")
    (tmp_path / "text.key").write_text("no key")
    with pytest.raises(KeyFileError, match="no PKCS8"):
        SigningKey.load(tmp_path / "text.key")
    ALICE.save(tmp_path / "open.key")
    with pytest.raises(KeyFileError, match="cannot be opened"):
        SigningKey.load(tmp_path / "open.key", b"needless")
    pem = X25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "x25519.key").write_bytes(pem)
    with pytest.raises(KeyFileError, match="another kind"):
        SigningKey.load(tmp_path / "x25519.key")


def test_pae_is_dsses() -> None:
    # The example of the DSSE specification (secure-systems-lab/dsse, protocol.md).
    expected = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert pae("http://example.com/HelloWorld", b"hello world") == expected
    assert pae("é", b"") == "DSSEv1 2 é 0 ".encode()


def test_an_envelope_survives_json() -> None:
    envelope = sign_envelope(TYPE, b'{"a":1}', ALICE)
    again = Envelope.from_dict(json.loads(json.dumps(envelope.as_dict())))
    assert again == envelope
    assert again.digest == "sha256:015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"
    assert verify_envelope(again, payload_type=TYPE, keys=KNOWN) == {ALICE.keyid}


@given(st.binary(max_size=200), st.integers(0, 10_000), st.integers(0, 7))
@settings(max_examples=60)
def test_one_changed_bit_of_payload_or_signature_is_refused(payload: bytes, at: int, bit: int) -> None:
    envelope = sign_envelope(TYPE, payload, ALICE)
    signature = envelope.signatures[0][1]
    whole = bytearray(payload + signature)
    whole[at % len(whole)] ^= 1 << bit
    changed = Envelope(TYPE, bytes(whole[: len(payload)]), ((ALICE.keyid, bytes(whole[len(payload) :])),))
    with pytest.raises(BadSignature):
        verify_envelope(changed, payload_type=TYPE, keys=KNOWN)


def test_a_signature_of_one_type_is_no_signature_of_another() -> None:
    envelope = sign_envelope(TYPE, b"x", ALICE)
    with pytest.raises(SignatureError, match="expected"):
        verify_envelope(envelope, payload_type="application/other", keys=KNOWN)
    with pytest.raises(BadSignature):
        verify_envelope(
            Envelope("application/other", b"x", envelope.signatures), payload_type="application/other", keys=KNOWN
        )
    # Lengths are part of what is signed, so type and payload can't trade a boundary.
    shifted = Envelope(TYPE + "x", b"", envelope.signatures)
    with pytest.raises(BadSignature):
        verify_envelope(shifted, payload_type=TYPE + "x", keys=KNOWN)


def test_a_threshold_counts_distinct_known_keys() -> None:
    by_alice, by_bob = sign_envelope(TYPE, b"x", ALICE), sign_envelope(TYPE, b"x", BOB)
    stranger = SigningKey.from_bytes(b"c" * 32)
    by_both = Envelope(TYPE, b"x", by_alice.signatures + by_bob.signatures)
    twice = Envelope(TYPE, b"x", by_alice.signatures * 2)
    assert verify_envelope(by_both, payload_type=TYPE, keys=KNOWN, threshold=2) == set(KNOWN)
    for envelope in (by_alice, twice):
        with pytest.raises(UnknownKey, match="1 of 2"):
            verify_envelope(envelope, payload_type=TYPE, keys=KNOWN, threshold=2)
    with pytest.raises(UnknownKey, match="0 of 1"):
        verify_envelope(sign_envelope(TYPE, b"x", stranger), payload_type=TYPE, keys=KNOWN)
    # A stranger's signature beside a good one does no harm; a bad one by a known key rejects all.
    with_stranger = Envelope(TYPE, b"x", by_alice.signatures + sign_envelope(TYPE, b"x", stranger).signatures)
    assert verify_envelope(with_stranger, payload_type=TYPE, keys=KNOWN) == {ALICE.keyid}
    with_bad = Envelope(TYPE, b"x", (*by_alice.signatures, (BOB.keyid, by_alice.signatures[0][1])))
    with pytest.raises(BadSignature, match=BOB.keyid):
        verify_envelope(with_bad, payload_type=TYPE, keys=KNOWN)


def test_no_condition_is_no_verification() -> None:
    envelope = sign_envelope(TYPE, b"x", ALICE)
    for threshold in (0, -1):
        with pytest.raises(ValueError, match="verifies nothing"):
            verify_envelope(envelope, payload_type=TYPE, keys=KNOWN, threshold=threshold)
    with pytest.raises(UnknownKey):
        verify_envelope(envelope, payload_type=TYPE, keys={})


def test_a_key_filed_under_anothers_id_is_noticed() -> None:
    with pytest.raises(ValueError, match="another key"):
        verify_envelope(sign_envelope(TYPE, b"x", ALICE), payload_type=TYPE, keys={ALICE.keyid: BOB.public})


def test_a_payload_type_with_spaces_cannot_be_signed() -> None:
    for wrong in ("", "a b", "é", "a" * 201):
        with pytest.raises(MalformedEnvelope, match="payload type"):
            sign_envelope(wrong, b"", ALICE)


GOOD = sign_envelope(TYPE, b"x", ALICE).as_dict()
SIG = GOOD["signatures"][0]


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        (None, "envelope"),
        ([], "envelope"),
        ({}, "envelope"),
        (GOOD | {"extra": 1}, "envelope"),
        (GOOD | {"payloadType": 3}, "payloadType"),
        (GOOD | {"payloadType": ""}, "payloadType"),
        (GOOD | {"payload": "eA"}, "envelope.payload"),
        (GOOD | {"payload": None}, "envelope.payload"),
        (GOOD | {"signatures": []}, "signatures"),
        (GOOD | {"signatures": {}}, "signatures"),
        (GOOD | {"signatures": [SIG] * 65}, "signatures"),
        (GOOD | {"signatures": [SIG, SIG]}, "stands twice"),
        (GOOD | {"signatures": [SIG | {"cert": ""}]}, r"signatures\[0\]"),
        (GOOD | {"signatures": [{"keyid": "AB" * 32, "sig": SIG["sig"]}]}, r"\[0\].keyid"),
        (GOOD | {"signatures": [{"keyid": None, "sig": SIG["sig"]}]}, r"\[0\].keyid"),
        (GOOD | {"signatures": [{"keyid": SIG["keyid"], "sig": 5}]}, r"\[0\].sig"),
    ],
)
def test_a_malformed_envelope_is_refused_with_its_field(wrong: object, where: str) -> None:
    with pytest.raises(MalformedEnvelope, match=where):
        Envelope.from_dict(wrong)


junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=5)
    | st.sampled_from([TYPE, SIG["sig"], SIG["keyid"], "eA=="]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["payloadType", "payload", "signatures", "keyid", "sig"]), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(junk)
def test_the_parser_never_fails_with_another_error(value: object) -> None:
    try:
        Envelope.from_dict(value)
    except MalformedEnvelope as error:
        assert str(error).startswith("envelope")
