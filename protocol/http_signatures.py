"""Signed HTTP requests and answers: a strict profile of RFC 9421 with Ed25519 and RFC 9530 content digests.

Hospitals' proxies end TLS, so each request and each answer carries its own signature. One label, one list of
components, one set of parameters; whatever else RFC 9421 allows is refused, so verification stays short and fast.

    Content-Digest:   sha-256=:<base64>:                                     (an empty body has one too)
    Signature-Input:  consilium=("@method" "@path" "@query" "content-digest");created=..;nonce="..";keyid="..";
                      alg="ed25519";tag="consilium-request"                  (in one line)
    Signature:        consilium=:<base64>:

An answer covers "@status" and "content-digest", and of its request "@method", "@path", "@query" and the signature
itself (`;req`), so that it can't be passed off as the answer to another request. Its tag is "consilium-answer".

Paths and queries are those on the wire: percent-encoded, the query without its question mark. Replays are the
caller's business: remember (keyid, nonce) of each verified request for twice the allowed skew.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final, NamedTuple

from protocol.canonical import CanonicalError, b64, unb64
from protocol.keys import BadSignature, ClockSkew, SigningKey, UnknownKey, keyid, verify

LABEL: Final = "consilium"
REQUEST_TAG: Final = "consilium-request"
ANSWER_TAG: Final = "consilium-answer"
SKEW_SECONDS: Final = 300

_REQUEST_COMPONENTS: Final = '("@method" "@path" "@query" "content-digest")'
_ANSWER_COMPONENTS: Final = (
    f'("@status" "content-digest" "@method";req "@path";req "@query";req "signature";req;key="{LABEL}")'
)
# Values are free of quotes and backslashes, so the text of a parameter is its value.
_PARAMETER = re.compile(r';(created|nonce|keyid|alg|tag)=(?:"([!#-\[\]-~]{1,200})"|([0-9]{1,12}))')
_SIGNATURE = re.compile(LABEL + r"=(:([A-Za-z0-9+/]{86}==):)")
_NONCE = re.compile(r"[A-Za-z0-9+/=_-]{16,100}")
_KEYID = re.compile(r"[0-9a-f]{64}")
_METHOD = re.compile(r"[A-Z]{1,20}")
_PATH = re.compile(r"/[!-~]*")
_QUERY = re.compile(r"[!-~]*")


class VerifiedRequest(NamedTuple):
    """Who signed a request, and what makes it the only one.

    keyid: 64 hex digits. nonce: the sender's, unique for its key. created: seconds since 1970, by the sender's clock.
    """

    keyid: str
    nonce: str
    created: int


class _Parameters(NamedTuple):
    text: str
    """Components and parameters exactly as received: the value of "@signature-params"."""
    keyid: str
    nonce: str
    created: int


def content_digest(body: bytes = b"", body_sha256: bytes | None = None) -> str:
    """The Content-Digest header's value (RFC 9530) for `body`, or for the body whose SHA-256 is known already."""
    if body_sha256 is None:
        body_sha256 = hashlib.sha256(body).digest()
    elif body:
        raise ValueError("give the body or its SHA-256, not both")
    elif len(body_sha256) != 32:
        raise ValueError(f"a SHA-256 has 32 bytes, not {len(body_sha256)}")
    return f"sha-256=:{b64(body_sha256)}:"


def sign_request(
    key: SigningKey,
    *,
    method: str,
    path: str,
    query: str = "",
    body: bytes = b"",
    body_sha256: bytes | None = None,
    created: int | None = None,
    nonce: str | None = None,
) -> dict[str, str]:
    """The three headers that make a request verifiable.

    Parameters: path, query: as on the wire. body or body_sha256: the whole body, or its 32 byte SHA-256 where it was
    hashed before. created: seconds since 1970, None for now. nonce: 16 to 100 characters of base64 or base64url, None
    for 128 random bits.
    Returns: Content-Digest, Signature-Input, Signature.
    Raises: ValueError for a target or nonce that can't be signed.
    """
    digest = content_digest(body, body_sha256)
    parameters = _write_parameters(_REQUEST_COMPONENTS, key, REQUEST_TAG, created, nonce)
    base = _request_base(_target(method, path, query), digest, parameters)
    return _headers(key, digest, parameters, base)


def verify_request(
    *,
    method: str,
    path: str,
    query: str,
    headers: Mapping[str, str],
    body: bytes = b"",
    body_sha256: bytes | None = None,
    resolve: Callable[[str], bytes | None],
    now: float,
    skew: int = SKEW_SECONDS,
) -> VerifiedRequest:
    """Check a request as received.

    Verification:
      1. The three headers are there, in the one form that we write.
      2. The request was made within `skew` seconds of now.
      3. The key is one that `resolve` knows.
      4. Content-Digest is that of the body.
      5. The signature is over method, target, digest and parameters as received.

    Parameters: path, query: as on the wire. body or body_sha256: what arrived. resolve: keyid -> 32 public bytes or
    None. now: seconds since 1970.
    Raises: BadSignature (1, 4, 5), ClockSkew (2), UnknownKey (3).
    """
    # 1
    parameters, signature = _read(headers, _REQUEST_COMPONENTS, REQUEST_TAG)
    digest = _header(headers, "Content-Digest")
    try:
        target = _target(method, path, query)
    except ValueError as error:
        raise BadSignature(str(error)) from None
    # 2
    _check_clock(parameters.created, now, skew, "request")
    # 3
    public = resolve(parameters.keyid)
    if public is None:
        raise UnknownKey(f"no key {parameters.keyid} is known here")
    # 4
    _check_digest(digest, content_digest(body, body_sha256))
    # 5
    _check_key(public, parameters.keyid)
    verify(public, signature, _request_base(target, digest, parameters.text))
    return VerifiedRequest(parameters.keyid, parameters.nonce, parameters.created)


def sign_answer(
    key: SigningKey,
    *,
    status: int,
    body: bytes = b"",
    body_sha256: bytes | None = None,
    request_headers: Mapping[str, str],
    method: str,
    path: str,
    query: str,
    created: int | None = None,
    nonce: str | None = None,
) -> dict[str, str]:
    """The three headers that bind an answer to the request it answers.

    Parameters: status: 100 to 599. request_headers, method, path, query: the request's, as received.
    Raises: BadSignature where the request has no signature in our form: such a request gets an unsigned answer;
    ValueError for a status, target or nonce that can't be signed.
    """
    request_signature, _ = _read_signature(request_headers)
    digest = content_digest(body, body_sha256)
    parameters = _write_parameters(_ANSWER_COMPONENTS, key, ANSWER_TAG, created, nonce)
    base = _answer_base(_status(status), _target(method, path, query), request_signature, digest, parameters)
    return _headers(key, digest, parameters, base)


def verify_answer(
    public: bytes,
    *,
    status: int,
    headers: Mapping[str, str],
    body: bytes = b"",
    body_sha256: bytes | None = None,
    request_headers: Mapping[str, str],
    method: str,
    path: str,
    query: str,
    now: float,
    skew: int = SKEW_SECONDS,
) -> None:
    """Check that `public` gave this answer to exactly this request.

    Verification:
      1. The three headers are there, in the one form that we write, and so is the request's signature.
      2. The answer was made within `skew` seconds of now.
      3. The key is the one expected.
      4. Content-Digest is that of the body.
      5. The signature is over status, digest, parameters, and the request's target and signature.

    Parameters: public: 32 bytes. request_headers: those that were sent. The others as in `verify_request`.
    Raises: BadSignature (1, 4, 5), ClockSkew (2), UnknownKey (3).
    """
    # 1
    parameters, signature = _read(headers, _ANSWER_COMPONENTS, ANSWER_TAG)
    digest = _header(headers, "Content-Digest")
    request_signature, _ = _read_signature(request_headers)
    try:
        first_line, target = _status(status), _target(method, path, query)
    except ValueError as error:
        raise BadSignature(str(error)) from None
    # 2
    _check_clock(parameters.created, now, skew, "answer")
    # 3
    if keyid(public) != parameters.keyid:
        raise UnknownKey(f"the answer is signed by {parameters.keyid}, expected {keyid(public)}")
    # 4
    _check_digest(digest, content_digest(body, body_sha256))
    # 5
    verify(public, signature, _answer_base(first_line, target, request_signature, digest, parameters.text))


def _target(method: str, path: str, query: str) -> tuple[str, str, str]:
    """The derived components of a request's first line. Raises: ValueError for what could never stand on the wire."""
    if _METHOD.fullmatch(method) is None:
        raise ValueError("the method must be upper case letters")
    if _PATH.fullmatch(path) is None:
        raise ValueError("the path must start with / and be percent-encoded, as on the wire")
    if _QUERY.fullmatch(query) is None:
        raise ValueError("the query must be percent-encoded, as on the wire")
    return method, path, "?" + query


def _status(status: int) -> str:
    if not 100 <= status <= 599:
        raise ValueError(f"{status} is no HTTP status")
    return str(status)


def _request_base(target: tuple[str, str, str], digest: str, parameters: str) -> bytes:
    method, path, query = target
    return (
        f'"@method": {method}\n"@path": {path}\n"@query": {query}\n"content-digest": {digest}\n'
        f'"@signature-params": {parameters}'
    ).encode("ascii")


def _answer_base(
    status: str, target: tuple[str, str, str], request_signature: str, digest: str, parameters: str
) -> bytes:
    method, path, query = target
    return (
        f'"@status": {status}\n"content-digest": {digest}\n'
        f'"@method";req: {method}\n"@path";req: {path}\n"@query";req: {query}\n'
        f'"signature";req;key="{LABEL}": {request_signature}\n"@signature-params": {parameters}'
    ).encode("ascii")


def _write_parameters(components: str, key: SigningKey, tag: str, created: int | None, nonce: str | None) -> str:
    if created is None:
        created = int(time.time())
    if nonce is None:
        nonce = secrets.token_urlsafe(16)
    if not 0 <= created < 10**12:
        raise ValueError("created must be seconds since 1970")
    if _NONCE.fullmatch(nonce) is None:
        raise ValueError("a nonce is 16 to 100 characters of base64 or base64url")
    return f'{components};created={created};nonce="{nonce}";keyid="{key.keyid}";alg="ed25519";tag="{tag}"'


def _headers(key: SigningKey, digest: str, parameters: str, base: bytes) -> dict[str, str]:
    return {
        "Content-Digest": digest,
        "Signature-Input": f"{LABEL}={parameters}",
        "Signature": f"{LABEL}=:{b64(key.sign(base))}:",
    }


def _header(headers: Mapping[str, str], name: str) -> str:
    """A header by its name in any case. The two usual spellings first: most mappings need no search."""
    value = headers.get(name) or headers.get(name.lower())
    if value is None:
        value = next((text for key, text in headers.items() if key.lower() == name.lower()), None)
    if value is None:
        raise BadSignature(f"the header {name} is missing")
    return value


def _read_signature(headers: Mapping[str, str]) -> tuple[str, bytes]:
    """The signature as text between and including its colons, and as 64 bytes."""
    match = _SIGNATURE.fullmatch(_header(headers, "Signature"))
    if match is None:
        raise BadSignature(f"Signature: must be {LABEL}=:<base64 of 64 bytes>:")
    try:
        return match[1], unb64(match[2])
    except CanonicalError as error:
        raise BadSignature(f"Signature: {error}") from None


def _read(headers: Mapping[str, str], components: str, tag: str) -> tuple[_Parameters, bytes]:
    _, signature = _read_signature(headers)
    name, _, text = _header(headers, "Signature-Input").partition("=")
    if name != LABEL or not text.startswith(components):
        raise BadSignature(f"Signature-Input: must be {LABEL}={components} and its parameters")
    found: dict[str, str] = {}
    at = len(components)
    while at < len(text):
        match = _PARAMETER.match(text, at)
        if match is None or match[1] in found:
            raise BadSignature("Signature-Input: a parameter is not allowed, not in its form, or stands twice")
        # Only `created` is a number, only the others are quoted.
        if (match[1] == "created") == (match[2] is not None):
            raise BadSignature(f"Signature-Input: {match[1]} has the wrong type")
        found[match[1]] = match[2] or match[3]
        at = match.end()
    if len(found) != 5:
        raise BadSignature("Signature-Input: created, nonce, keyid, alg and tag are all needed")
    if found["alg"] != "ed25519" or found["tag"] != tag:
        raise BadSignature(f'Signature-Input: alg must be "ed25519" and tag "{tag}"')
    if _KEYID.fullmatch(found["keyid"]) is None or _NONCE.fullmatch(found["nonce"]) is None:
        raise BadSignature("Signature-Input: keyid must be 64 hex digits, nonce 16 to 100 characters of base64")
    return _Parameters(text, found["keyid"], found["nonce"], int(found["created"])), signature


def _check_clock(created: int, now: float, skew: int, what: str) -> None:
    if not abs(created - now) <= skew:  # written so that a `now` that is no number refuses
        raise ClockSkew(
            f"the {what} was made at {_clock(created)} by the sender's clock, it is {_clock(now)} here;"
            f" at most {skew} seconds are allowed: set the clock"
        )


def _clock(seconds: float) -> str:
    # Twelve digits reach beyond datetime's last year.
    if not 0 <= seconds <= 253402300799:
        return f"{seconds:.0f} seconds after 1970"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _check_digest(received: str, computed: str) -> None:
    # One form only: exactly one sha-256 member, as `content_digest` writes it.
    if received != computed:
        raise BadSignature("Content-Digest is not the SHA-256 of the body")


def _check_key(public: bytes, name: str) -> None:
    if keyid(public) != name:
        raise ValueError(f"the key filed under {name} is another key")
