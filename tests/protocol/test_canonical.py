"""Canonical JSON: one document, one spelling, or a refusal that says where."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from protocol.canonical import (
    MAX_DEPTH,
    MAX_INTEGER,
    CanonicalError,
    b64,
    decode,
    digest,
    encode,
    is_digest,
    unb64,
)

VECTORS = Path(os.environ.get("VECTORS", Path(__file__).parents[2].parent / "shared" / "vectors")) / "jcs"
NAMES = ("arrays", "french", "structures", "unicode", "values", "weird")
BEYOND_OUR_LIMITS = {"unicode", "weird"}  # text that is not NFC: the form allows it, we do not

text = st.text(st.characters(codec="utf-8")).map(lambda value: __import__("unicodedata").normalize("NFC", value))
numbers = st.integers(-MAX_INTEGER, MAX_INTEGER)
documents = st.recursive(
    st.none() | st.booleans() | numbers | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.parametrize("name", NAMES)
def test_published_vector_has_its_published_bytes(name: str) -> None:
    if not VECTORS.is_dir():
        pytest.skip(f"no vectors at {VECTORS}; set VECTORS")
    value = json.loads((VECTORS / "input" / f"{name}.json").read_text("utf-8"))
    expected = bytes.fromhex((VECTORS / "outhex" / f"{name}.txt").read_text())
    if name in BEYOND_OUR_LIMITS:
        assert rfc8785.dumps(value) == expected
        with pytest.raises(CanonicalError, match="normal form C"):
            encode(value, floats=True)
    else:
        assert encode(value, floats=True) == expected
        assert decode(expected, floats=True) == value


@given(documents)
def test_what_is_written_is_read_back_as_it_was(value: object) -> None:
    assert decode(encode(value)) == value


@given(documents)
def test_the_form_agrees_with_a_slow_obvious_writer(value: object) -> None:
    assert encode(value) == _slow(value).encode()


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_finite_float_is_read_back_exactly_or_refused(value: float) -> None:
    try:
        data = encode({"x": value}, floats=True)
    except CanonicalError:
        assert MAX_INTEGER < abs(value) < 1e21
    else:
        assert decode(data, floats=True)["x"] == value


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda value: json.dumps(value).encode()))
def test_decode_of_anything_gives_a_value_or_its_own_error(data: bytes) -> None:
    for floats in (False, True):
        try:
            value = decode(data, floats=floats)
        except CanonicalError:
            continue
        assert encode(value, floats=floats) == data


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b'{"a":1,"a":1}', "duplicate key"),
        (b'{"a":{"b":1,"b":2}}', "duplicate key"),
        (b'{"b":1,"a":2}', "canonical form"),
        (b'{"a": 1}', "canonical form"),
        (b"1 ", "canonical form"),
        (b"-0", "canonical form"),
        (b'"\\u0061"', "canonical form"),
        (b'"\\/"', "canonical form"),
        (b"1.0", "floating point"),
        (b"1e3", "floating point"),
        (b"NaN", "not JSON"),
        (b"[Infinity]", "not JSON"),
        (b"-Infinity", "not JSON"),
        (b"9007199254740992", "beyond"),
        (b"-9007199254740992", "beyond"),
        (b"9" * 5000, "beyond every limit"),
        (b"[" * 100_000, "beyond every limit"),
        (b"[" * (MAX_DEPTH + 2) + b"]" * (MAX_DEPTH + 2), "nested deeper"),
        (b'"\xff"', "not UTF-8 at byte 1"),
        (b'"\\ud800"', "surrogate"),
        (b"\xef\xbb\xbf1", "not JSON"),
        ('"A\u030a"'.encode(), "normal form C"),
        (b"", "not JSON"),
        (b"{", "not JSON"),
    ],
)
def test_bytes_that_are_not_their_own_canonical_form_are_refused(data: bytes, why: str) -> None:
    with pytest.raises(CanonicalError, match=why):
        decode(data)


def test_a_float_that_is_not_in_its_form_is_refused_where_floats_are_allowed() -> None:
    assert decode(b"0.1", floats=True) == 0.1
    for data in (b"1.0", b"0.10", b"1e2", b"1E30"):
        with pytest.raises(CanonicalError, match="canonical form"):
            decode(data, floats=True)


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"plan": {"batch": 2**53}}, r"\$\.plan\.batch: integer"),
        ({"plan": [1, -(2**53)]}, r"\$\.plan\[1\]: integer"),
        ({"a": 0.5}, r"\$\.a: a floating point"),
        ({"a": b"bytes"}, r"\$\.a: bytes has no"),
        ({"a": {1: 2}}, r"\$\.a: key is int"),
        ({"a": "A\u030a"}, r"\$\.a: text is not"),
        ({"A\u030a": 1}, r"\$ \(a key\): text is not"),
        ({"with space": {3}}, r"\$\.\?: set has no"),
        (["\udfff"], r"\$\[0\]: text holds a lone"),
    ],
)
def test_a_refusal_names_the_path_and_never_the_value(value: object, where: str) -> None:
    with pytest.raises(CanonicalError, match=where) as caught:
        encode(value)
    assert "9007199254740992" not in str(caught.value)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e20, -9007199254740992.0])
def test_floats_without_a_stable_spelling_are_refused(value: float) -> None:
    with pytest.raises(CanonicalError):
        encode({"x": value}, floats=True)


def test_tuples_are_written_as_lists_and_bools_are_not_numbers() -> None:
    assert encode((True, False, None, 1)) == b"[true,false,null,1]"


def test_digest_has_one_form() -> None:
    assert digest(b"abc") == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert is_digest(digest(b""))
    for wrong in ("", "sha256:" + "A" * 64, "sha256:" + "a" * 63, digest(b"") + "\n", "sha512:" + "a" * 64, None, 3):
        assert not is_digest(wrong)


@given(st.binary(max_size=50))
def test_base64_has_one_spelling(data: bytes) -> None:
    assert unb64(b64(data)) == data


@pytest.mark.parametrize(
    "wrong", ["AA", "AA=", "AB==", "AA==\n", " AA==", "_-==", "AA==AA==", "ä===", "A", None, b"AA=="]
)
def test_other_spellings_of_base64_are_refused(wrong: object) -> None:
    with pytest.raises(CanonicalError):
        unb64(wrong)


def _slow(value: object) -> str:
    """RFC 8785 for our values, written as the RFC says it."""
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: key.encode("utf-16-be"))
        return "{" + ",".join(f"{_slow(key)}:{_slow(value[key])}" for key in keys) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_slow, value)) + "]"
    if isinstance(value, str):
        escapes = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
        return '"' + "".join(escapes.get(c, f"\\u{ord(c):04x}" if c < " " else c) for c in value) + '"'
    return {None: "null", True: "true", False: "false"}.get(value, str(value)) if not _is_int(value) else str(value)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
