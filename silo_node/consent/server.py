"""A FHIR server's search for consents, page by page: the hospital's own server, never through a proxy.

The `next` link is followed on the same origin only, redirects not at all; pages, bytes and time are bounded. A page that
can't be used ends the search: half an answer may lack somebody's "no".
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

import httpx

from silo_node.consent import fhir_json
from silo_node.consent.sources import ConsentError, Found, next_link

MAX_PAGES: Final = 20_000
SECONDS: Final = 600.0
"""For the whole search."""
_PATIENCE: Final = httpx.Timeout(30.0, connect=10.0)


def search(url: str, *, token: str | None, ca_bundle: Path | None, pages: int | None = None) -> Found:
    """All that the search `url` finds.

    Parameters: token: sent as Bearer, None for none. ca_bundle: PEM file, None for the system's authorities. pages: after
    how many to end, None for all: half an answer is for looking only whether there is one.
    Raises: ConsentError CONSENT_SERVER, whose sentence names neither address nor content.
    """
    headers = {"Accept": "application/fhir+json"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    verify: Any = True
    if ca_bundle is not None:
        import ssl

        try:
            verify = ssl.create_default_context(cafile=str(ca_bundle))
        except OSError:
            raise _fault("the file of authorities (ca_bundle) cannot be read") from None
    found, seen, end = Found(), set[str](), time.monotonic() + SECONDS
    at: str | None = url
    with httpx.Client(
        headers=headers, verify=verify, timeout=_PATIENCE, trust_env=False, follow_redirects=False
    ) as client:
        while at is not None and len(seen) != pages:
            if at in seen or len(seen) >= MAX_PAGES:
                raise _fault("its pages go round in a circle, or there are too many of them")
            seen.add(at)
            at = _page(client, at, found, f"page {len(seen)}", end)
    return found


def _page(client: httpx.Client, url: str, found: Found, where: str, end: float) -> str | None:
    body = _json(client, url, where, end)
    if not isinstance(body, Mapping) or body.get("resourceType") != "Bundle" or body.get("type") != "searchset":
        raise _fault(f"{where} is no page of a search")
    entries = body.get("entry", [])
    for entry in entries if isinstance(entries, list) else []:
        resource = entry.get("resource") if isinstance(entry, Mapping) else None
        if isinstance(resource, Mapping) and resource.get("resourceType") == "OperationOutcome" and _failed(resource):
            raise _fault(f"{where} says that the search failed in part")
    found.bundle(body, where)
    link = next_link(body)
    if link is None:
        return None
    if not isinstance(link, str) or not link:
        raise _fault(f"{where} has a next link that is none")
    try:
        following = urljoin(url, link)
        following.encode()  # half a surrogate pair is in no address
        elsewhere = _origin(following) != _origin(url)
    except ValueError:
        raise _fault(f"{where} has a next link that is none") from None
    if elsewhere:
        raise _fault(f"{where} leads to another server; a search stays on its own")
    return following


def _json(client: httpx.Client, url: str, where: str, end: float) -> Any:
    data = bytearray()
    try:
        with client.stream("GET", url) as answer:
            if answer.status_code != 200:
                raise _fault(f"{where} was answered with HTTP {answer.status_code}{_advice(answer.status_code)}")
            for part in answer.iter_bytes():
                data += part
                if len(data) > fhir_json.MAX_BYTES:
                    raise _fault(f"{where} is larger than {fhir_json.MAX_BYTES // 2**20} MiB")
                if time.monotonic() > end:
                    raise _fault(f"the search took longer than {SECONDS:.0f} s")
        return fhir_json.decode(bytes(data))
    except fhir_json.JsonFault as error:
        raise _fault(f"{where} {error}") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        # Without its text, which holds the address.
        raise _fault(f"{where}: {type(error).__name__}; is it running, and may this machine reach it?") from error


def _failed(outcome: Mapping[str, Any]) -> bool:
    issues = outcome.get("issue")
    if not isinstance(issues, list):
        return True
    return any(
        not isinstance(issue, Mapping) or issue.get("severity") not in ("warning", "information") for issue in issues
    )


def _advice(status: int) -> str:
    if status in (401, 403):
        return ": check token_file in [consent]"
    if 300 <= status < 400:
        return ": it redirects, put the final address into [consent] url"
    return ""


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    return parts.scheme, parts.hostname, port or {"http": 80, "https": 443}.get(parts.scheme)


def _fault(what: str) -> ConsentError:
    return ConsentError("CONSENT_SERVER", f"The FHIR server's consents can't be had: {what}.")
