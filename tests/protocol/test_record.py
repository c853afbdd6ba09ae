"""The form of a record, and what binds a payload that is kept outside the log."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.canonical import CanonicalError, encode
from protocol.transparency.record import RecordError, check_record, private_digest

GOOD: dict[str, Any] = {
    "v": 1,
    "id": "0193a5f0-1234-7abc-8def-0123456789ab",
    "time": "2026-11-23T10:00:00.000Z",
    "type": "study.approved",
    "actor": {"id": "u-1", "role": "admin", "org": "north", "auth": "totp"},
    "subject": {"kind": "study", "id": "st-abc", "version": None},
    "outcome": "success",
    "reasons": ["CODE"],
    "refs": {"manifest": "sha256:" + "0" * 64},
    "data": {"n": 3},
    "private": None,
}


def test_a_record_is_read() -> None:
    assert check_record(encode(GOOD)) == GOOD
    assert check_record(encode(GOOD | {"private": "sha256:" + "a" * 64, "reasons": [], "refs": {}}))


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"v": 2}, "v:"),
        ({"v": True}, "v:"),
        ({"id": "0193a5f0-1234-4abc-8def-0123456789ab"}, "id:"),
        ({"id": 7}, "id:"),
        ({"time": "2026-11-23T10:00:00Z"}, "time:"),
        ({"time": "2026-13-23T10:00:00.000Z"}, "time:"),
        ({"time": "0000-01-01T00:00:00.000Z"}, "time:"),
        ({"time": 5}, "time:"),
        ({"type": "Study"}, "type:"),
        ({"type": "study..approved"}, "type:"),
        ({"outcome": "maybe"}, "outcome:"),
        ({"outcome": []}, "outcome:"),
        ({"reasons": "CODE"}, "reasons:"),
        ({"reasons": [1]}, "reasons:"),
        ({"refs": []}, "refs:"),
        ({"refs": {"a": {}}}, "refs:"),
        ({"data": None}, "data:"),
        ({"private": "md5:00"}, "private:"),
        ({"actor": None}, "actor:"),
        ({"actor": {"id": "u"}}, "actor:"),
        ({"actor": GOOD["actor"] | {"role": True}}, "actor.role"),
        ({"subject": GOOD["subject"] | {"more": 1}}, "subject:"),
        ({"subject": GOOD["subject"] | {"version": []}}, "subject.version"),
        ({"extra": 1}, "the record"),
    ],
)
def test_another_form_is_refused_with_the_field(change: dict[str, Any], where: str) -> None:
    with pytest.raises(RecordError, match=where):
        check_record(encode(GOOD | change))


def test_a_record_is_a_canonical_object_without_floats_and_of_limited_size() -> None:
    for data in (b"", b"[]", b"1", encode(GOOD) + b"\n", encode(GOOD | {"data": {"x": 0.5}}, floats=True)):
        with pytest.raises(RecordError):
            check_record(data)
    with pytest.raises(RecordError, match="at most 65535"):
        check_record(encode(GOOD | {"data": {"x": "y" * 65_535}}))


def test_a_refusal_never_shows_the_value() -> None:
    with pytest.raises(RecordError) as caught:
        check_record(encode(GOOD | {"type": "Jane Doe"}))
    assert "Jane" not in str(caught.value)


def test_private_payloads_are_bound_by_salt_and_domain() -> None:
    salt = bytes(range(32))
    expected = sha256(b"audit/private/v1\n" + salt + b'{"reason":"x"}').hexdigest()
    assert private_digest(salt, {"reason": "x"}) == "sha256:" + expected
    assert private_digest(bytes(32), {"reason": "x"}) != private_digest(salt, {"reason": "x"})
    with pytest.raises(RecordError, match="32 bytes"):
        private_digest(b"short", {})
    with pytest.raises(CanonicalError):
        private_digest(salt, 0.5)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text("ab:.", max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=2),
    max_leaves=4,
)


@given(st.dictionaries(st.sampled_from(sorted(GOOD)), json_values, max_size=4), st.sampled_from(sorted(GOOD)))
def test_records_of_anything_never_fail_with_another_error(change: dict[str, Any], dropped: str) -> None:
    for value in (GOOD | change, {key: item for key, item in GOOD.items() if key != dropped}, change):
        try:
            check_record(encode(value))
        except RecordError as error:
            assert str(error)
