"""The node API's two signatures: authenticating the silo that asks, signing what it gets.

`authenticate` and `answer_headers` know nothing of Django's requests, so the ASGI functions (long poll) use them too;
`node_view` and `NodeAnswerMiddleware` are the same for ordinary views.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping
from datetime import timedelta
from functools import wraps
from typing import Any
from urllib.parse import quote

import structlog
from django.apps import apps
from django.conf import settings
from django.core.cache import cache
from django.core.exceptions import RequestDataTooBig, SuspiciousOperation
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt

from portal import access, events, problems
from portal.actors import Actor, Subject, silo_actor
from portal.keys import answer_key
from portal.problems import Refused
from protocol.signing import (
    ClockSkew,
    Envelope,
    SignatureError,
    UnknownKey,
    VerifiedRequest,
    sign_answer,
    verify_request,
)

log = structlog.get_logger(__name__)
API = "/api/v1/"
JSON_LIMIT = 2**20
_SIGNATURE_HEADERS = ("Content-Digest", "Signature-Input", "Signature")
_SEEN_EVERY = timedelta(seconds=5)


def authenticate(
    *,
    method: str,
    path: str,
    query: str,
    headers: Mapping[str, str],
    body: bytes = b"",
    body_sha256: bytes | None = None,
    states: Collection[str] = ("active",),
) -> Any:
    """The silo (organisations.Silo, with its organisation) that signed this request.

    Steps: 1 verify the signature with the key of a silo; 2 the silo is in one of `states`; 3 the request is new.
    Blocking (database and cache): from ASGI call it through sync_to_async(thread_sensitive=False) and close connections.

    Parameters: path, query: as on the wire (percent-encoded, query without "?"). headers: case-insensitive or lower-case.
    Raises: Refused with BAD_SIGNATURE, UNKNOWN_KEY, CLOCK_SKEW, SILO_PENDING, SILO_REVOKED or REPLAYED.
    """
    found: dict[str, Any] = {}
    silos = apps.get_model("organisations", "Silo")
    # Written out: every request of a silo asks this, and building the query with the ORM takes longer than running it.
    # The other columns are read when somebody asks for them.
    columns = "id, name, organisation_id, state, public_key, keyid, version, last_seen_at"
    by_key = f"SELECT {columns} FROM {silos._meta.db_table} WHERE keyid = %s AND keyid <> ''"

    def resolve(keyid: str) -> bytes | None:
        found["silo"] = silo = next(iter(silos.objects.raw(by_key, [keyid])), None)
        return silo.public if silo else None

    # 1
    try:
        verified = verified_request(
            method=method, path=path, query=query, headers=headers, body=body, body_sha256=body_sha256, resolve=resolve
        )
    except Refused as refused:
        _note_denial(found.get("silo"), refused.code)
        raise
    silo = found["silo"]
    # 2
    if silo.state not in states:
        code = "SILO_REVOKED" if silo.state == "revoked" else "SILO_PENDING"
        _note_denial(silo, code)
        raise Refused(
            code,
            "The key of this silo was revoked; the network's admin can invite it again."
            if code == "SILO_REVOKED"
            else "The network's admin has to compare and confirm this silo's fingerprint first.",
        )
    # 3
    try:
        refuse_replay(verified)
    except Refused as refused:
        _note_denial(silo, refused.code)
        raise
    _seen(silo)
    return silo


def verified_request(*, resolve: Callable[[str], bytes | None], **request: Any) -> VerifiedRequest:
    """`protocol.signing.verify_request` with our clock, its errors as refusals that a silo can read."""
    try:
        return verify_request(resolve=resolve, now=time.time(), skew=settings.SIGNATURE_SKEW_SECONDS, **request)
    except ClockSkew as error:
        raise Refused("CLOCK_SKEW", str(error)) from error
    except UnknownKey as error:
        raise Refused("UNKNOWN_KEY", "No silo is enrolled with this key. Run `silo enrol` with a token.") from error
    except SignatureError as error:
        raise Refused("BAD_SIGNATURE", f"{error}") from error


def refuse_replay(verified: VerifiedRequest) -> None:
    """Remember the nonce for as long as its time is accepted. Raises Refused(REPLAYED) where it is known already.

    In Valkey this is SET NX EX, so one of two that come at once wins in every process.
    """
    seconds = 2 * settings.SIGNATURE_SKEW_SECONDS + 60
    name = f"nonce:{verified.keyid}:{verified.nonce}"
    if settings.REDIS_ADDRESS is None:
        new = cache.add(name, 1, timeout=seconds)
    else:
        # Not through Django's cache: it builds a client for every call, which costs more than the call.
        new = events.client(settings.REDIS_ADDRESS).set(f"consilium:{name}", 1, nx=True, ex=seconds)
    if not new:
        raise Refused("REPLAYED", "A request with this nonce was received before; sign each request anew.")


def answer_headers(
    *,
    status: int,
    body: bytes = b"",
    body_sha256: bytes | None = None,
    request_headers: Mapping[str, str],
    method: str,
    path: str,
    query: str,
) -> dict[str, str]:
    """Headers that bind this answer to its request; none where the request carries no signature to bind it to."""
    if not all(name in request_headers or name.lower() in request_headers for name in _SIGNATURE_HEADERS):
        return {}
    try:
        return sign_answer(
            answer_key(),
            status=status,
            body=body,
            body_sha256=body_sha256,
            request_headers=request_headers,
            method=method,
            path=path,
            query=query,
        )
    except (SignatureError, ValueError):
        return {}  # the request's signature is not in our form, so there is nothing to bind the answer to


def target_of(request: HttpRequest) -> dict[str, str]:
    """Method, path and query of a Django request as they stood on the wire."""
    raw = getattr(request, "scope", {}).get("raw_path")
    path = raw.decode("latin-1") if raw else quote(request.path, safe="/:@!$&'()*+,;=~-._")
    return {"method": request.method or "", "path": path, "query": request.META.get("QUERY_STRING", "")}


def node_view(
    *methods: str, states: Collection[str] = ("active",), unsigned: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., HttpResponse]]:
    """Make a function a view of the node API: method, signature and state are checked, `request.silo` is set.

    The function returns a dict (sent as JSON) or an HttpResponse, and raises Refused.
    Parameters: methods: allowed HTTP methods. states: of the silo. unsigned: `request.silo` is None for a request
    without a signature, which then is let through (public reading of the log).
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., HttpResponse]:
        @wraps(function)
        def view(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
            if request.method not in methods:
                raise Refused("METHOD", f"This address takes {', '.join(methods)}.")
            if unsigned and "Signature-Input" not in request.headers:
                request.silo = None  # type: ignore[attr-defined]
            else:
                request.silo = authenticate(  # type: ignore[attr-defined]
                    **target_of(request), headers=request.headers, body=request.body, states=states
                )
            answer = function(request, *args, **kwargs)
            return answer if isinstance(answer, HttpResponse) else JsonResponse(answer)

        view.node_methods = methods  # type: ignore[attr-defined]
        return access.node(csrf_exempt(view))

    return decorate


def read_json(body: bytes, *, limit: int = JSON_LIMIT) -> dict[str, Any]:
    """The body as a JSON object: size, depth, duplicate keys and non-numbers are refused (TOO_LARGE, BAD_MESSAGE)."""
    if len(body) > limit:
        raise Refused("TOO_LARGE", f"This body has {len(body)} bytes; at most {limit} are read.")
    try:
        value = json.loads(body, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Refused(
            "BAD_MESSAGE", "The body is not JSON (or is nested too deep, or names a member twice)."
        ) from error
    if not isinstance(value, dict):
        raise Refused("BAD_MESSAGE", "The body must be a JSON object.")
    return value


def read_envelope(body: bytes, *, limit: int = JSON_LIMIT) -> Envelope:
    """The body as a DSSE envelope; nothing is verified here."""
    try:
        return Envelope.from_dict(read_json(body, limit=limit))
    except SignatureError as error:
        raise Refused("BAD_MESSAGE", str(error)) from error


class NodeAnswerMiddleware:
    """Below /api/v1/: refusals and errors become problem documents, and every answer is signed and bound to its request."""

    sync_capable = True
    async_capable = False

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Sign what comes back, whatever it is."""
        response = self.get_response(request)
        if not request.path.startswith(API):
            return response
        if response.status_code >= 400 and response.headers.get("Content-Type") != problems.PROBLEM_TYPE:
            response = problems.answer_for_status(response.status_code)
        if not response.streaming:
            signed = answer_headers(
                status=response.status_code,
                body=response.content,
                request_headers=request.headers,
                **target_of(request),
            )
            for name, value in signed.items():
                response.headers[name] = value
        return response

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        """Errors that say something to the silo; any other is Django's to log, and answers 500."""
        if not request.path.startswith(API):
            return None
        if isinstance(error, Refused):
            return problems.answer(error)
        if isinstance(error, Http404):
            return problems.answer(Refused("NOT_FOUND", "There is nothing at this address."))
        if isinstance(error, RequestDataTooBig):
            limit = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
            return problems.answer(Refused("TOO_LARGE", f"A body may have at most {limit} bytes."))
        if isinstance(error, SuspiciousOperation):
            return problems.answer(Refused("BAD_REQUEST", "The request is malformed."))
        return None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a member stands twice")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _note_denial(silo: Any, code: str) -> None:
    log.warning("node.refused", silo=silo.name if silo else None, code=code)
    if silo is not None:
        from portal.denials import record_once

        actor = silo_actor(silo.name, silo.organisation.slug)
        # The signature did not prove that it was this silo, or only that it may not: the log says how much was proved.
        if code in ("BAD_SIGNATURE", "CLOCK_SKEW"):
            actor = Actor(actor.id, actor.role, actor.org, "none")
        record_once(actor, Subject("silo", silo.name), code)


def _seen(silo: Any) -> None:
    """Last contact, at most one write in five seconds."""
    now = timezone.now()
    if silo.last_seen_at is None or now - silo.last_seen_at > _SEEN_EVERY:
        type(silo).objects.filter(pk=silo.pk).update(last_seen_at=now)
        silo.last_seen_at = now
