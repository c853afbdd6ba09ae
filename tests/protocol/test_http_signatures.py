"""HTTP message signatures: a strict profile of RFC 9421, agreeing both ways with a library that is not ours."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from types import SimpleNamespace

import http_message_signatures as library
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from http_message_signatures import algorithms
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.canonical import b64
from protocol.http_signatures import (
    VerifiedRequest,
    content_digest,
    sign_answer,
    sign_request,
    verify_answer,
    verify_request,
)
from protocol.signing import BadSignature, ClockSkew, SignatureError, SigningKey, UnknownKey

SILO, PORTAL = SigningKey.from_bytes(b"s" * 32), SigningKey.from_bytes(b"p" * 32)
NOW = 1_700_000_000
NONCE = "0123456789abcdefABCDEF"
TARGET = {"method": "PUT", "path": "/api/v1/rounds/st-abc.3.1/update/0", "query": "a=1&b=%20x"}
BODY = b"\x00\x01 body"


def known(name: str) -> bytes | None:
    return SILO.public if name == SILO.keyid else None


def signed(**changes: object) -> dict[str, str]:
    return sign_request(SILO, **{**TARGET, "body": BODY, "created": NOW, "nonce": NONCE, **changes})  # type: ignore[arg-type]


def check(headers: dict[str, str], **changes: object) -> VerifiedRequest:
    given = {**TARGET, "headers": headers, "body": BODY, "resolve": known, "now": NOW + 10.5, **changes}
    return verify_request(**given)  # type: ignore[arg-type]


def test_a_request_is_who_signed_it_and_its_nonce() -> None:
    assert check(signed()) == VerifiedRequest(SILO.keyid, NONCE, NOW)


def test_the_headers_are_exactly_these_bytes() -> None:
    headers = signed(body=b"")
    assert headers["Content-Digest"] == "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"
    assert headers["Signature-Input"] == (
        'consilium=("@method" "@path" "@query" "content-digest")'
        f';created={NOW};nonce="{NONCE}";keyid="{SILO.keyid}";alg="ed25519";tag="consilium-request"'
    )
    assert re.fullmatch(r"consilium=:[A-Za-z0-9+/]{86}==:", headers["Signature"])


def test_header_names_are_read_in_any_case() -> None:
    for change in (str.lower, str.upper, str.title):
        assert check({change(name): value for name, value in signed().items()}).keyid == SILO.keyid


def test_a_body_hashed_before_is_not_hashed_again() -> None:
    digest = hashlib.sha256(BODY).digest()
    headers = signed(body=b"", body_sha256=digest)
    assert headers == signed()
    assert check(headers, body=b"", body_sha256=digest).nonce == NONCE
    with pytest.raises(BadSignature, match="Content-Digest"):
        check(headers, body=b"", body_sha256=bytes(32))
    with pytest.raises(ValueError, match="not both"):
        check(headers, body_sha256=digest)
    with pytest.raises(ValueError, match="32 bytes"):
        content_digest(body_sha256=b"short")


def test_the_time_and_a_fresh_nonce_are_added_where_none_is_given() -> None:
    one, two = sign_request(SILO, method="GET", path="/"), sign_request(SILO, method="GET", path="/")
    now = datetime.now(UTC).timestamp()
    found = [
        verify_request(method="GET", path="/", query="", headers=headers, resolve=known, now=now)
        for headers in (one, two)
    ]
    assert found[0].nonce != found[1].nonce and abs(found[0].created - now) < 5


@pytest.mark.parametrize(
    "change",
    [
        {"method": "POST"},
        {"path": "/api/v1/rounds/st-abc.3.1/update/1"},
        {"query": "a=1"},
        {"query": ""},
        {"body": BODY + b"x"},
        {"body": b""},
    ],
)
def test_a_request_with_anything_changed_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(BadSignature):
        check(signed(), **change)


@pytest.mark.parametrize("change", [{"method": "put"}, {"path": "no-slash"}, {"path": "/with space"}, {"query": "a b"}])
def test_a_target_that_cannot_stand_on_the_wire_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(BadSignature):
        check(signed(), **change)
    with pytest.raises(ValueError, match=r"method|path|query"):
        signed(**change)


@pytest.mark.parametrize(("change", "why"), [({"nonce": "short"}, "nonce"), ({"created": -1}, "created")])
def test_a_nonce_or_time_out_of_form_cannot_be_signed(change: dict[str, object], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        signed(**change)


@pytest.mark.parametrize("header", ["Content-Digest", "Signature-Input", "Signature"])
def test_each_header_is_needed(header: str) -> None:
    headers = signed()
    del headers[header]
    with pytest.raises(BadSignature, match=f"{header} is missing"):
        check(headers)


INPUT = signed()["Signature-Input"]


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "consilium=",
        INPUT.replace("consilium=", "sig1=", 1),
        INPUT + ", other=()",
        "other=(), " + INPUT,
        INPUT.replace(' "content-digest"', ""),
        INPUT.replace('"@method" "@path"', '"@path" "@method"'),
        INPUT.replace('";alg', '"; alg'),
        INPUT.replace(f";created={NOW}", ""),
        INPUT.replace(f"created={NOW}", f'created="{NOW}"'),
        INPUT.replace(f"created={NOW}", f"created=-{NOW}"),
        INPUT.replace(f"created={NOW}", f"created={NOW}.5"),
        INPUT.replace(f'nonce="{NONCE}"', "nonce=5"),
        INPUT.replace(NONCE, "short"),
        INPUT.replace(NONCE, "with\\escape-0123456789"),
        INPUT.replace(SILO.keyid, SILO.keyid.upper()),
        INPUT.replace("ed25519", "hmac-sha256"),
        INPUT.replace("consilium-request", "consilium-answer"),
        INPUT + ';alg="ed25519"',
        INPUT + ";expires=1",
        INPUT + " ",
        INPUT.replace(";nonce", ";nonce=?1;nonce"),
    ],
)
def test_a_signature_input_of_another_form_is_refused(wrong: str) -> None:
    with pytest.raises(BadSignature):
        check(signed() | {"Signature-Input": wrong})


@pytest.mark.parametrize("extra", [f';nonce="{NONCE}x"', f";created={NOW}", ";expires=1", ';tag="consilium-request"'])
def test_a_parameter_too_many_is_refused_even_where_it_is_signed(extra: str) -> None:
    """Two readers might take different ones of two nonces; then a replay would pass one of them."""
    text = INPUT.removeprefix("consilium=") + extra
    base = (
        f'"@method": {TARGET["method"]}\n"@path": {TARGET["path"]}\n"@query": ?{TARGET["query"]}\n'
        f'"content-digest": {content_digest(BODY)}\n"@signature-params": '
    )
    plain = SILO.sign((base + INPUT.removeprefix("consilium=")).encode())
    assert signed()["Signature"] == f"consilium=:{b64(plain)}:"
    forged = f"consilium=:{b64(SILO.sign((base + text).encode()))}:"
    with pytest.raises(BadSignature, match="Signature-Input"):
        check(signed() | {"Signature-Input": f"consilium={text}", "Signature": forged})


@pytest.mark.parametrize("wrong", ["", "consilium=::", "sig1=:AAAA:", "consilium=:" + "A" * 88 + ":", "x"])
def test_a_signature_of_another_form_is_refused(wrong: str) -> None:
    with pytest.raises(BadSignature, match="Signature"):
        check(signed() | {"Signature": wrong})
    # The last character before the padding holds four unused bits; only one spelling is taken.
    text = signed()["Signature"]
    with pytest.raises(BadSignature, match="spelling"):
        check(signed() | {"Signature": text[:-4] + chr(ord(text[-4]) + 1) + "==:"})


@pytest.mark.parametrize(
    "wrong", ["sha-512=:AAAA:", content_digest(BODY) + ", sha-512=:AAAA:", content_digest(BODY) + " ", "sha-256=x"]
)
def test_a_content_digest_of_another_form_is_refused(wrong: str) -> None:
    with pytest.raises(BadSignature, match="Content-Digest"):
        check(signed() | {"Content-Digest": wrong})


def test_a_wrong_clock_is_told_with_both_times() -> None:
    for now in (NOW + 301, NOW - 301):
        with pytest.raises(ClockSkew, match="2023-11-14T22:13:20Z") as caught:
            check(signed(), now=now)
        assert datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") in str(caught.value)
    for now in (NOW + 300, NOW - 300):
        check(signed(), now=now)
    with pytest.raises(ClockSkew):
        check(signed(), now=float("nan"))
    with pytest.raises(ClockSkew, match="999999999999 seconds after 1970"):
        check(signed(created=999_999_999_999))


def test_an_unknown_key_and_anothers_key_are_refused() -> None:
    with pytest.raises(UnknownKey, match=SILO.keyid):
        check(signed(), resolve=lambda name: None)
    with pytest.raises(ValueError, match="another key"):
        check(signed(), resolve=lambda name: PORTAL.public)
    stolen = sign_request(PORTAL, **TARGET, body=BODY, created=NOW, nonce=NONCE)  # type: ignore[arg-type]
    renamed = stolen["Signature-Input"].replace(PORTAL.keyid, SILO.keyid)
    with pytest.raises(BadSignature):
        check(stolen | {"Signature-Input": renamed})


@given(st.text(max_size=300) | st.text('consilium=();:"@methodpathqueryctrd-0123456789 ,', max_size=200))
@settings(max_examples=200)
def test_headers_of_anything_never_fail_with_another_error(text: str) -> None:
    for header in ("Content-Digest", "Signature-Input", "Signature"):
        with pytest.raises(SignatureError):
            check(signed() | {header: text})
    with pytest.raises(SignatureError):
        check(signed() | {"Signature-Input": INPUT[: len(text)] + text})


# Answers


REQUEST = signed()


def answered(**changes: object) -> dict[str, str]:
    given = {
        **TARGET,
        "status": 409,
        "body": b"no",
        "request_headers": REQUEST,
        "created": NOW,
        "nonce": NONCE,
        **changes,
    }
    return sign_answer(PORTAL, **given)  # type: ignore[arg-type]


def check_answer(headers: dict[str, str], public: bytes = PORTAL.public, **changes: object) -> None:
    given = {
        **TARGET,
        "status": 409,
        "headers": headers,
        "body": b"no",
        "request_headers": REQUEST,
        "now": NOW,
        **changes,
    }
    verify_answer(public, **given)  # type: ignore[arg-type]


def test_an_answer_fits_its_request() -> None:
    check_answer(answered())
    digest = hashlib.sha256(b"no").digest()
    check_answer(answered(body=b"", body_sha256=digest), body=b"", body_sha256=digest)


@pytest.mark.parametrize(
    "change",
    [
        {"status": 200},
        {"status": 99},
        {"body": b"yes"},
        {"method": "GET"},
        {"path": "/other"},
        {"query": ""},
        {"request_headers": signed(nonce=NONCE + "x")},
        {"request_headers": {}},
        {"public": SILO.public},
        {"now": NOW + 301},
    ],
)
def test_an_answer_with_anything_changed_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(SignatureError):
        check_answer(answered(), **change)


def test_a_request_is_no_answer_and_an_answer_no_request() -> None:
    with pytest.raises(BadSignature):
        check_answer(REQUEST)
    with pytest.raises(BadSignature):
        check(answered())


def test_what_cannot_be_signed_as_an_answer() -> None:
    with pytest.raises(BadSignature, match="Signature is missing"):
        answered(request_headers={})
    with pytest.raises(ValueError, match="no HTTP status"):
        answered(status=600)


# The other library, both ways


class Keys(library.HTTPSignatureKeyResolver):
    def resolve_public_key(self, key_id: str) -> Ed25519PublicKey:
        return Ed25519PublicKey.from_public_bytes({SILO.keyid: SILO, PORTAL.keyid: PORTAL}[key_id].public)

    def resolve_private_key(self, key_id: str) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes({SILO.keyid: b"s" * 32, PORTAL.keyid: b"p" * 32}[key_id])


def as_message(headers: dict[str, str]) -> SimpleNamespace:
    url = f"https://portal.example.org{TARGET['path']}?{TARGET['query']}"
    return SimpleNamespace(method=TARGET["method"], url=url, headers=dict(headers))


def as_answer(headers: dict[str, str], request: dict[str, str]) -> SimpleNamespace:
    return SimpleNamespace(
        status_code=409, headers=dict(headers), request=as_message(request), url="https://x.example/"
    )


def library_verifier() -> library.HTTPMessageVerifier:
    return library.HTTPMessageVerifier(signature_algorithm=algorithms.ED25519, key_resolver=Keys())


def library_signer() -> library.HTTPMessageSigner:
    return library.HTTPMessageSigner(signature_algorithm=algorithms.ED25519, key_resolver=Keys())


@pytest.mark.parametrize("query", [TARGET["query"], ""])
def test_the_other_library_verifies_our_request(query: str) -> None:
    headers = sign_request(SILO, **(TARGET | {"query": query}), body=BODY)
    message = as_message(headers)
    message.url = message.url.partition("?")[0] + ("?" + query if query else "")
    (result,) = library_verifier().verify(message, expect_tag="consilium-request", body=BODY)
    assert result.parameters["keyid"] == SILO.keyid
    message.headers["Content-Digest"] = content_digest(b"other")
    with pytest.raises(library.InvalidSignature):
        library_verifier().verify(message, expect_tag="consilium-request", body=b"other")


def test_we_verify_the_other_librarys_request() -> None:
    message = as_message({})
    library_signer().sign(
        message,
        key_id=SILO.keyid,
        created=datetime.fromtimestamp(NOW, UTC),
        nonce=NONCE,
        label="consilium",
        tag="consilium-request",
        body=BODY,
        covered_component_ids=("@method", "@path", "@query", "content-digest"),
    )
    assert check(message.headers) == VerifiedRequest(SILO.keyid, NONCE, NOW)


def test_the_other_library_verifies_our_answer() -> None:
    request = sign_request(SILO, **TARGET, body=BODY)
    headers = answered(request_headers=request, created=None, nonce=None)
    (result,) = library_verifier().verify(as_answer(headers, request), expect_tag="consilium-answer", body=b"no")
    assert result.parameters["keyid"] == PORTAL.keyid
    other = sign_request(SILO, **TARGET, body=BODY)
    with pytest.raises(library.InvalidSignature):
        library_verifier().verify(as_answer(headers, other), expect_tag="consilium-answer", body=b"no")


def test_we_verify_the_other_librarys_answer() -> None:
    message = as_answer({}, REQUEST)
    library_signer().sign(
        message,
        key_id=PORTAL.keyid,
        created=datetime.fromtimestamp(NOW, UTC),
        nonce=NONCE,
        label="consilium",
        tag="consilium-answer",
        body=b"no",
        covered_component_ids=(
            '"@status"',
            '"content-digest"',
            '"@method";req',
            '"@path";req',
            '"@query";req',
            '"signature";req;key="consilium"',
        ),
    )
    check_answer(message.headers)
