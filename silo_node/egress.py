"""The one way out: the only module of a silo that sends anything, to the one portal whose key was pinned at enrolment.

Each request is signed, counted and logged before it leaves (egress_log.py); each answer is believed only when the pinned
portal key signed it for exactly this request. Nothing here decides what may be sent: that is the gate's and the round's.

Requests that can be repeated without harm are tried again when the network fails or the portal is overloaded, with
growing pauses that a stop request ends at once, until `limits.retry` seconds have passed.
"""

from __future__ import annotations

import hashlib
import json
import re
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import httpx

from protocol.signing import BadSignature, ClockSkew, SignatureError, SigningKey, sign_request, verify_answer
from silo_node import __version__, proxy
from silo_node.config import Config
from silo_node.errors import AnswerNotGenuine, ClockWrong, PortalRefused, PortalUnreachable, Stopping, UsageError
from silo_node.evidence.egress_log import EgressLog
from silo_node.pin import Pin
from silo_node.service import silence
from silo_node.service.backoff import Backoff
from silo_node.steward.reasons import plain

RETRY_STATUS: Final = frozenset({429, 500, 502, 503, 504, 507})
"""Statuses that may pass: overload, a restart, a disk that somebody is making room on."""
FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 5.0
MAX_ANSWER: Final = 64 << 20
"""Bytes of the longest answer that is read."""
_NO_CONNECTION: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
"""Of these the request itself never left: no connection stood, or a proxy made none to the portal."""
_HERE: Final = threading.local()
"""waits: whether this thread waits for an answer."""
_ANY_TIME: Final = 10**11
_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass(frozen=True)
class Answer:
    """A genuine answer. status: 2xx. headers: names in lower case. body: bytes as received."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON. Raises: AnswerNotGenuine where it is none (the portal is broken, or of another version)."""
        try:
            return _json(self.body)
        except (ValueError, RecursionError):
            raise AnswerNotGenuine("the portal's answer is not JSON: is it of another version?") from None


def interrupt() -> None:
    """In a signal handler: the request for whose answer the interrupted thread waits ends. Raises: Stopping, if it waits."""
    if getattr(_HERE, "waits", False):
        raise Stopping


class Egress:
    """A connection to the portal that stays open; one for the poll, one for the work.

    Safe to use from several threads. `stop` ends pauses between tries. probed: whether a network that goes silent while an
    answer is waited for ends the wait (silence.py).
    """

    def __init__(
        self,
        config: Config,
        key: SigningKey,
        pin: Pin | None,
        log: EgressLog,
        *,
        stop: threading.Event | None = None,
        probed: bool = False,
    ) -> None:
        self._base = config.portal
        self._key = key
        self._pin = pin
        self._log = log
        self._stop = stop or threading.Event()
        self._config = config
        self._extensions = {"trace": silence.heard} if probed else {}
        self._copies = config.folder / "sent" if config.settings.keep_copies else None
        self._client = httpx.Client(
            transport=httpx.HTTPTransport(
                verify=_authorities(config),
                limits=httpx.Limits(max_connections=4, max_keepalive_connections=4, keepalive_expiry=120),
                proxy=proxy.of(config),
            ),
            timeout=httpx.Timeout(30.0, connect=10.0),
            headers={"User-Agent": f"consilium-silo/{__version__}", "Accept-Encoding": "identity", "Accept": "*/*"},
            follow_redirects=False,
        )

    def get(self, path: str, *, kind: str, query: Mapping[str, str | int] | None = None, **more: Any) -> Answer:
        """GET; see `request`."""
        return self.request("GET", path, kind=kind, query=query, **more)

    def put(self, path: str, body: bytes, *, kind: str, **more: Any) -> Answer:
        """PUT; see `request`."""
        return self.request("PUT", path, kind=kind, body=body, **more)

    def post(self, path: str, value: Any, *, kind: str, **more: Any) -> Answer:
        """POST of a JSON value; see `request`."""
        body = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
        return self.request("POST", path, kind=kind, body=body, content_type="application/json", **more)

    def put_json(self, path: str, value: Any, *, kind: str, **more: Any) -> Answer:
        """PUT of a JSON value; see `request`."""
        body = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
        return self.request("PUT", path, kind=kind, body=body, content_type="application/json", **more)

    def request(
        self,
        method: str,
        path: str,
        *,
        kind: str,
        query: Mapping[str, str | int] | None = None,
        body: bytes = b"",
        body_sha256: bytes | None = None,
        content_type: str = "application/octet-stream",
        round_id: str | None = None,
        repeat: bool = True,
        patience: float | None = None,
        wait: float = 0.0,
        timeout: float = 30.0,
    ) -> Answer:
        """Send one signed request and return its verified answer.

        Parameters: path: as on the wire. kind: a word for the log, such as "update". body_sha256: where it is known
        already. round_id: whose bytes these are. repeat: whether trying again is harmless. patience: seconds of trying
        (None: the setting). wait: seconds that the portal may hold the answer back. timeout: seconds after which a silent
        network counts as down.
        Raises: PortalRefused (signed no), PortalUnreachable, AnswerNotGenuine, ClockWrong, Stopping.
        """
        text = urlencode(query) if query else ""
        digest = body_sha256 or hashlib.sha256(body).digest()
        end = time.monotonic() + (self._config.settings.limits.retry if patience is None else patience)
        pauses = Backoff(FIRST_PAUSE, LONGEST_PAUSE)
        while True:
            try:
                return self._once(method, path, text, kind, body, digest, content_type, round_id, wait, timeout)
            except PortalUnreachable as error:
                last: Exception = error
                again = repeat
            except PortalRefused as error:
                last = error
                again = repeat and (error.status in RETRY_STATUS or error.code == "REPLAYED")
            left = end - time.monotonic()
            if not again or left <= 0:
                raise last
            if self._stop.wait(min(pauses.pause(), left)):
                raise Stopping

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _once(
        self,
        method: str,
        path: str,
        query: str,
        kind: str,
        body: bytes,
        digest: bytes,
        content_type: str,
        round_id: str | None,
        wait: float,
        timeout: float,
    ) -> Answer:
        headers = sign_request(self._key, method=method, path=path, query=query, body_sha256=digest)
        if body:
            headers["Content-Type"] = content_type
        head = len(method) + len(path) + len(query) + sum(len(a) + len(b) + 4 for a, b in headers.items())
        row = self._log.sending(
            kind=kind,
            method=method,
            path=path,
            round_id=round_id,
            body=len(body),
            head=head,
            digest="sha256:" + digest.hex(),
        )
        if self._copies is not None and body:
            self._keep_copy(row, kind, body)
        url = f"{self._base}{path}?{query}" if query else self._base + path
        try:
            limits = httpx.Timeout(timeout + wait, connect=min(timeout, 10.0))
            _HERE.waits = True
            with self._client.stream(
                method, url, content=body or None, headers=headers, timeout=limits, extensions=self._extensions
            ) as response:
                content = _read(response)
        except httpx.HTTPError as error:
            if isinstance(error, _NO_CONNECTION):
                self._log.not_sent(row, kind=kind, sent=len(body) + head, round_id=round_id)
            raise _unreachable(self._base, error) from error
        finally:
            _HERE.waits = False
        self._log.answered(row, kind=kind, status=response.status_code, received=len(content), round_id=round_id)
        self._believe(response, content, headers, method, path, query)
        if response.is_success:
            return Answer(response.status_code, response.headers, content)
        raise _problem(response.status_code, content)

    def _believe(
        self, response: httpx.Response, content: bytes, sent: Mapping[str, str], method: str, path: str, query: str
    ) -> None:
        if self._pin is None:
            return
        status = response.status_code
        # The answer is bound to this very request, so its own clock proves nothing; where the portal complains about
        # the clock, its words are wanted whatever its clock says.
        skew = {"skew": _ANY_TIME} if status == 401 else {}
        try:
            verify_answer(
                self._pin.answer_public,
                status=status,
                headers=response.headers,
                body=content,
                request_headers=sent,
                method=method,
                path=path,
                query=query,
                now=time.time(),
                **skew,
            )
        except ClockSkew as error:
            raise ClockWrong(f"the portal's clock and this machine's differ too much: {error}") from None
        except SignatureError as error:
            if status >= 500 or (status in (407, 408, 429) and isinstance(error, BadSignature)):
                # A proxy in between answers so while the portal is away; it can't sign, and is not believed.
                raise PortalUnreachable(f"something on the way to {self._base} answered {status}") from None
            raise AnswerNotGenuine(
                f"{method} {path}: the answer ({status}) is not signed by the portal key pinned at enrolment: {error}"
            ) from None

    def _keep_copy(self, row: int | None, kind: str, body: bytes) -> None:
        if self._copies is not None:
            self._copies.mkdir(mode=0o700, exist_ok=True)
            (self._copies / f"{row:08d}-{kind}").write_bytes(body)


def _read(response: httpx.Response) -> bytes:
    parts, size = [], 0
    for part in response.iter_raw():
        parts.append(part)
        size += len(part)
        if size > MAX_ANSWER:
            raise AnswerNotGenuine(f"the answer is longer than {MAX_ANSWER} bytes; it was not read to its end")
    return b"".join(parts)


def _unreachable(base: str, error: httpx.HTTPError) -> PortalUnreachable:
    """The first thing on the way that is known to be wrong."""
    if isinstance(error, httpx.ProxyError):
        said = plain(str(error)) or "no reason"
        return PortalUnreachable(f"the proxy does not let this silo through to {base}: {said}", "PROXY_REFUSES")
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLCertVerificationError):
            return PortalUnreachable(
                f"the certificate that {base} shows is not accepted: {plain(seen.verify_message)}", "PORTAL_CERTIFICATE"
            )
        seen = seen.__cause__ or seen.__context__
    # httpx's own words can be empty ("") for a cut connection; its class says more.
    return PortalUnreachable(
        f"no answer from {base} ({type(error).__name__}: {error}): check network, proxy and CA bundle"
    )


def _problem(status: int, content: bytes) -> PortalRefused | ClockWrong:
    """A typed error from a problem document (RFC 9457)."""
    try:
        document = _json(content)
        code, sentence = str(document["code"]), str(document.get("detail") or document["title"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        code, sentence = f"HTTP_{status}", f"the portal answered {status} without saying why"
    if code == "CLOCK_SKEW":
        return ClockWrong(plain(sentence))
    return PortalRefused(status, plain(code), plain(sentence))


def _json(body: bytes) -> Any:
    """JSON in UTF-8. A lone surrogate is refused: no file or message can hold it. Raises: ValueError, RecursionError."""
    text = body.decode("utf-8")
    value = json.loads(text)
    if _SURROGATE.search(text):
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def _authorities(config: Config) -> ssl.SSLContext | bool:
    bundle: Path | None = config.ca_bundle
    if bundle is None:
        # Without TLS there is nothing to verify, and loading the authorities costs 20 ms at every start.
        return not config.portal.startswith("http://")
    try:
        return ssl.create_default_context(cafile=str(bundle))
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"ca_bundle: {bundle} can't be used: {error}") from None
