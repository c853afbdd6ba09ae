"""A PACS, asked by DICOMweb: QIDO-RS for what it has, WADO-RS for one instance as it is stored. Only reads.

Nothing that the PACS sends is trusted: every answer is bounded in bytes and time, redirects are not followed, and of a
search only the attributes below are kept. The instance's bytes go to a file as they come; nothing is decoded here.

Source: DICOM PS3.18, chapters 10.4 (retrieve) and 10.6 (search).
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import IO, Any, Final

import requests
from dicomweb_client.api import DICOMwebClient
from requests.adapters import HTTPAdapter

from silo_node.config import Config, DicomWeb
from silo_node.errors import UsageError, is_disk_full
from silo_node.pacs.errors import InstanceRefused, PacsDenied, PacsError, PacsUnreachable

PAGE: Final = 500
MOST_SEARCH: Final = 32 * 2**20
"""Bytes of one page of a search."""
MOST_STUDIES: Final = 1_000_000
MOST_OF_STUDY: Final = 100_000
_CHUNK: Final = 2**16
_MOST_HEAD: Final = 2**14
"""Bytes of a part's own headers."""
_UID: Final = re.compile(r"[0-9.]{1,64}")
_AWAY: Final = (502, 503, 504)
_CUT: Final = (requests.packages.urllib3.exceptions.HTTPError, requests.RequestException, OSError)  # type: ignore[attr-defined]

# Its warnings quote what the server sent.
logging.getLogger("dicomweb_client").setLevel(logging.CRITICAL + 1)


@dataclass(frozen=True)
class Study:
    """One study that the query finds. `instances` None where the PACS does not count them."""

    uid: str = field(repr=False)
    patient: str | None = field(repr=False)
    instances: int | None


class _Bounded(HTTPAdapter):
    """Reads whole answers within `most` bytes and `seconds`, and lets no redirect be followed."""

    def __init__(self, seconds: float) -> None:
        super().__init__(max_retries=0)
        self._seconds = seconds

    def send(self, request: Any, stream: bool = False, **more: Any) -> requests.Response:  # type: ignore[override]
        response = super().send(request, stream=True, **more)
        if response.is_redirect or response.is_permanent_redirect:
            response.close()
            raise PacsError("PACS_ANSWER", "The PACS sends this silo elsewhere (a redirect): set its final address.")
        if not stream:
            try:
                body = b"".join(chunks(response, MOST_SEARCH, time.monotonic() + self._seconds))
            except InstanceRefused as error:
                raise PacsError("PACS_ANSWER", "The PACS's answer to a search is too large or too slow.") from error
            finally:
                response.close()
            response._content, response._content_consumed = body, True  # type: ignore[attr-defined]
        return response


def chunks(response: requests.Response, most: int, until: float) -> Iterator[bytes]:
    """The body as it comes. Raises: InstanceRefused `INSTANCE_TOO_BIG`, `PACS_SLOW`; what _CUT lists."""
    total = 0
    # read1 returns what is there: a server that drips one byte at a time can't hold the clock.
    while chunk := response.raw.read1(_CHUNK, decode_content=False):
        total += len(chunk)
        if total > most:
            raise InstanceRefused("INSTANCE_TOO_BIG")
        if time.monotonic() > until:
            raise InstanceRefused("PACS_SLOW")
        yield chunk


class Pacs:
    """One PACS. Raises (everywhere): PacsUnreachable, PacsDenied, PacsError `PACS_ANSWER`."""

    def __init__(self, config: Config, settings: DicomWeb) -> None:
        self._settings = settings
        self._session = requests.Session()
        # No proxy, no .netrc and no authorities from the environment: the PACS is inside the hospital.
        self._session.trust_env = False
        self._session.verify = _authorities(config, settings)
        self._session.headers["Accept-Encoding"] = "identity"
        if settings.user:
            self._session.auth = (settings.user, _password(config, settings))
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, _Bounded(settings.instance_seconds))
        self._timeout = (min(settings.timeout_seconds, 10.0), settings.timeout_seconds)
        self._client = DICOMwebClient(settings.url, session=self._session, timeout=self._timeout)
        self._client.set_http_retry_params(retry=False)

    def close(self) -> None:
        """Close its connections."""
        self._session.close()

    def studies(self) -> Iterator[Study]:
        """What the query of the settings finds, each study once."""
        query = dict(self._settings.query)
        asked = query.pop("Modality", "")
        seen: set[str] = set()
        for modality in (asked,) if isinstance(asked, str) else asked:
            filters = {**query, **({"ModalitiesInStudy": modality} if modality else {})}

            def page(offset: int, filters: Mapping[str, Any] = filters) -> list[Any]:
                return self._client.search_for_studies(
                    search_filters=dict(filters), fields=["PatientID", "00201208"], limit=PAGE, offset=offset
                )

            for uid, row in self._pages(page, "0020000D", MOST_STUDIES):
                if uid not in seen:
                    seen.add(uid)
                    count = _value(row, "00201208")
                    yield Study(uid, _text(row, "00100020"), count if isinstance(count, int) else None)

    def images_of(self, study: str) -> list[tuple[str, str]]:
        """(series, SOP instance) of a study's images, of the modalities that are asked for."""
        asked = self._settings.query.get("Modality", ())
        modalities = (asked,) if isinstance(asked, str) else asked

        def page(offset: int) -> list[Any]:
            return self._client.search_for_instances(
                study_instance_uid=study, fields=["Modality", "SOPClassUID"], limit=PAGE, offset=offset
            )

        found = []
        for sop, row in self._pages(page, "00080018", MOST_OF_STUDY):
            modality, sop_class = _text(row, "00080060"), _text(row, "00080016")
            # A PACS may leave either out; then the file itself says it, at the scan.
            if modalities and modality is not None and modality not in modalities:
                continue
            if sop_class is None or is_image(sop_class):
                found.append((_uid(row, "0020000E"), sop))
        return found

    def get(self, study: str, series: str, sop: str, file: IO[bytes]) -> None:
        """Write one instance, as it is stored, into `file`. Raises also: InstanceRefused, with half of it written.

        The client's own retrieve_instance would hold the whole answer in memory, without a bound.
        """
        until = time.monotonic() + self._settings.instance_seconds
        with (
            _named(),
            self._session.get(
                f"{self._settings.url}/studies/{study}/series/{series}/instances/{sop}",
                headers={"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'},
                stream=True,
                timeout=self._timeout,
            ) as response,
        ):
            if response.status_code in (404, 410):
                raise InstanceRefused("PACS_GONE")
            response.raise_for_status()
            kind, boundary = _media_type(response.headers.get("Content-Type", ""))
            body = chunks(response, self._settings.max_mb * 2**20, until)
            try:
                if kind == "multipart/related" and boundary:
                    _copy_part(body, boundary, file)
                elif kind == "application/dicom":
                    for chunk in body:
                        file.write(chunk)
                else:
                    raise InstanceRefused("PACS_ANSWER")
            except _CUT as error:
                if isinstance(error, OSError) and is_disk_full(error):
                    raise
                raise InstanceRefused("PACS_CUT") from error

    def _pages(self, page: Callable[[int], list[Any]], key: str, most: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """(UID, row) of all pages. A PACS may give fewer rows than asked for; one that repeats itself has ended."""
        seen: set[str] = set()
        offset = 0
        while True:
            with _named():
                rows = page(offset)
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                raise PacsError("PACS_ANSWER", "The PACS's answer to a search is not a list of DICOM objects.")
            fresh = {uid: row for row in rows if (uid := _uid(row, key)) not in seen}
            yield from fresh.items()
            seen.update(fresh)
            offset += len(rows)
            if not fresh:
                return
            if len(seen) > most:
                raise PacsError("PACS_ANSWER", "The PACS finds too much: narrow `query` in silo.toml.")


def is_image(sop_class: str) -> bool:
    """Whether a SOP class is a storage class of images."""
    from pydicom.uid import UID

    return "Image Storage" in UID(sop_class).name


@contextmanager
def _named() -> Iterator[None]:
    """What requests and the client raise, as errors that say what to do. Their own texts quote addresses."""
    try:
        yield
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403):
            raise PacsDenied(
                f"The PACS refuses this silo's sign-in (HTTP {status}): check `user` and `password_file` under "
                "[dicomweb] in silo.toml, and that the account may read."
            ) from None
        if status in _AWAY:
            raise PacsUnreachable(f"The PACS is not ready (HTTP {status}).") from None
        raise PacsError("PACS_ANSWER", f"The PACS answers with HTTP {status}: check `url` and `query`.") from None
    except requests.exceptions.SSLError:
        raise PacsUnreachable("The PACS's certificate can't be verified: check `ca_bundle` and the address.") from None
    except requests.exceptions.Timeout:
        raise PacsUnreachable("The PACS does not answer in time.") from None
    except requests.exceptions.JSONDecodeError:
        raise PacsError("PACS_ANSWER", "The PACS's answer to a search is not JSON: check `url`.") from None
    except _CUT as error:
        if is_disk_full(error):
            raise
        raise PacsUnreachable(f"The PACS can't be reached ({type(error).__name__}): is it running?") from None
    except (ValueError, RecursionError) as error:
        raise PacsError("PACS_ANSWER", f"The PACS's answer can't be read ({type(error).__name__}).") from None


def _media_type(text: str) -> tuple[str, bytes]:
    """(type, boundary); the boundary is empty where there is none that may be used."""
    message = Message()
    message["Content-Type"] = text[:1000]
    boundary = message.get_param("boundary")
    good = isinstance(boundary, str) and 0 < len(boundary) <= 200 and boundary.isascii()
    return message.get_content_type(), str(boundary).encode() if good else b""


def _copy_part(body: Iterator[bytes], boundary: bytes, file: IO[bytes]) -> None:
    """Write the only part of a multipart body. Raises: InstanceRefused `PACS_ANSWER`, `PACS_CUT`."""
    head = b""
    while b"\r\n\r\n" not in head:
        chunk = next(body, None)
        if chunk is None:
            raise InstanceRefused("PACS_CUT")
        head += chunk
        if len(head) > _CHUNK + _MOST_HEAD:
            raise InstanceRefused("PACS_ANSWER")
    head, rest = head.split(b"\r\n\r\n", 1)
    # What stands before the first boundary is to be ignored (RFC 2046); a DICOM server sends nothing or a line end.
    before, _, fields = head.partition(b"--" + boundary)
    if before.strip() or not fields.startswith(b"\r\n") or b"application/dicom" not in fields.lower():
        raise InstanceRefused("PACS_ANSWER")
    end = b"\r\n--" + boundary
    while True:
        place = rest.find(end)
        if place >= 0:
            file.write(rest[:place])
            tail = rest[place + len(end) :]
            break
        # The end may lie across two chunks.
        file.write(rest[: -len(end)])
        rest = rest[-len(end) :]
        chunk = next(body, None)
        if chunk is None:
            raise InstanceRefused("PACS_CUT")
        rest += chunk
    for chunk in body:
        if len(tail) < _MOST_HEAD:
            tail += chunk
    if not tail.startswith(b"--"):
        raise InstanceRefused("PACS_ANSWER")  # a second part: more than was asked for


def _value(row: Mapping[str, Any], tag: str) -> Any:
    """The first value of an attribute in DICOM JSON, None where there is none."""
    element = row.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return values[0] if isinstance(values, list) and values else None


def _text(row: Mapping[str, Any], tag: str) -> str | None:
    value = _value(row, tag)
    return (value.strip(" \x00") or None) if isinstance(value, str) else None


def _uid(row: Mapping[str, Any], tag: str) -> str:
    """A UID; it becomes part of an address, so nothing else may pass."""
    text = _text(row, tag)
    if text is None or not _UID.fullmatch(text):
        raise PacsError("PACS_ANSWER", "The PACS's answer to a search holds something that is not a UID.")
    return text


def _authorities(config: Config, settings: DicomWeb) -> str | bool:
    path = config.folder / Path(settings.ca_bundle).expanduser() if settings.ca_bundle else config.ca_bundle
    if path is None:
        return True
    if not path.is_file():
        raise UsageError(f"[dicomweb] ca_bundle: {path} is not a file")
    return str(path)


def _password(config: Config, settings: DicomWeb) -> str:
    path = config.folder / Path(settings.password_file).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"[dicomweb] password_file: {path} can't be read ({type(error).__name__})") from None
    if not lines or not lines[0]:
        raise UsageError(f"[dicomweb] password_file: the first line of {path} must be the password")
    return lines[0]
