"""A rotation counts only with both keys' signatures, and only as the exact bytes that they signed."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import canonical
from protocol.canonical import b64
from protocol.key_rotation import (
    ROTATION_TYPE,
    KeyRotation,
    RotationError,
    parse_rotation,
    sign_rotation,
    verify_rotation,
)
from protocol.signing import SigningKey, sign_envelope

OLD, NEW, OTHER = SigningKey.generate(), SigningKey.generate(), SigningKey.generate()
ROTATION = KeyRotation("site-1", OLD.public, NEW.public, "2026-11-25T08:00:00Z")


def test_both_keys_sign_and_the_statement_is_read_again():
    assert verify_rotation(sign_rotation(ROTATION, old=OLD, new=NEW)) == ROTATION


@pytest.mark.parametrize("signers", [(OLD,), (NEW,), (OLD, OTHER), (OTHER, NEW)])
def test_one_signature_or_anothers_is_not_enough(signers):
    envelope = sign_envelope(ROTATION_TYPE, ROTATION.encode(), signers[0])
    for key in signers[1:]:
        envelope = envelope.joined(sign_envelope(ROTATION_TYPE, ROTATION.encode(), key))
    with pytest.raises(RotationError, match="both keys must sign"):
        verify_rotation(envelope)


def test_a_statement_of_another_type_is_no_rotation():
    envelope = sign_envelope("text/x", ROTATION.encode(), OLD).joined(sign_envelope("text/x", ROTATION.encode(), NEW))
    with pytest.raises(RotationError):
        verify_rotation(envelope)


def test_a_key_does_not_follow_itself():
    with pytest.raises(RotationError, match="another key"):
        sign_rotation(KeyRotation("site-1", OLD.public, OLD.public, ROTATION.time), old=OLD, new=OLD)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("schema", "consilium/key-rotation/2"),
        ("silo", "Site 1"),
        ("silo", 1),
        ("before", "?"),
        ("before", 1),
        ("after", b64(b"x" * 31)),
        ("after", b64(b"x" * 33)),
        ("time", 1),
        ("time", "2026-11-25"),
        ("time", "2026-13-25T08:00:00Z"),
        ("more", 1),
    ],
)
def test_a_malformed_field_is_refused(field, value):
    fields = canonical.decode(ROTATION.encode()) | {field: value}
    with pytest.raises(RotationError):
        parse_rotation(canonical.encode(fields))


@given(st.binary(max_size=300))
def test_any_bytes_are_the_same_rotation_or_an_error(data):
    with contextlib.suppress(RotationError):
        assert parse_rotation(data).encode() == data


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32).filter(lambda key: key != OLD.public))
def test_what_is_written_is_read_again(before, after):
    if before != after:
        rotation = KeyRotation("site-1", before, after, ROTATION.time)
        assert parse_rotation(rotation.encode()) == rotation
    with pytest.raises(RotationError):
        parse_rotation(ROTATION.encode() + before[:1])
