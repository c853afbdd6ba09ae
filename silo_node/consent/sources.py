"""Where consents come from on disk: a folder, or one file, of JSON resources, Bundles and NDJSON.

What can't be read is a problem, with the file counted in the order of names and, in NDJSON, the line; never by its name
or content. Whoever loads for a round refuses a source with problems as a whole: what was skipped may be a "no".
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from silo_node.consent import fhir, fhir_json
from silo_node.consent.rules import IGNORED
from silo_node.errors import SiloError
from silo_node.imaging import bounded

MAX_FILES: Final = 1_000_000
MAX_RESOURCES: Final = 5_000_000
SUFFIXES: Final = (".json", ".ndjson")
_OTHER_FORMS: Final = (".xml", ".ttl", ".jsonl", ".gz", ".zip", ".bz2", ".xz", ".zst", ".7z", ".tar", ".tgz")
"""In which exports come too, and which may hold somebody's "no"."""
_BUNDLES: Final = ("collection", "searchset", "transaction", "batch")
"""Not "history", which holds what no longer counts."""


class ConsentError(SiloError):
    """The consents can't be had as a whole. Codes `CONSENT_*`; the sentence may leave the hospital."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """where: "file 3, line 5" or "page 2", counted from 1. path: for the hospital's own terminal only."""

    where: str
    what: str
    path: Path | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{self.where} {self.what}"


@dataclass
class Found:
    """What a source holds. consents: reduced Consent resources. patients: key ("Patient/1", or a Bundle's fullUrl) -> id
    and identifiers. doubtful: consents that can't be read, of a patient who is known. others: resources of other
    types, which say nothing here. passed_over: files of a folder that are taken for no export at all, such as a README."""

    consents: list[dict[str, Any]] = field(default_factory=list, repr=False)
    patients: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)
    problems: list[Problem] = field(default_factory=list)
    doubtful: list[Problem] = field(default_factory=list)
    files: int = 0
    others: int = 0
    passed_over: int = 0

    def resource(self, body: object, where: str, *, url: object = None, path: Path | None = None) -> None:
        """Take one resource that is no Bundle."""
        kind = body.get("resourceType") if isinstance(body, Mapping) else None
        if not isinstance(body, Mapping) or not isinstance(kind, str):
            self.problem(where, "has something that is no FHIR resource", path)
        elif kind == "Consent":
            self.consents.append(fhir.reduced(body))
            record = fhir.parse(body)
            if record.fault is not None and record.status not in IGNORED:
                if record.subject is None:
                    self.problem(where, f"is a consent that nobody can assign: {record.fault}", path)
                else:
                    self.doubtful.append(Problem(where, f"counts as a refusal of its patient: {record.fault}", path))
        elif kind == "Patient":
            if isinstance(body.get("id"), str):
                kept = {"id": body["id"], "identifier": _identifiers(body)}
                for key in {f"Patient/{body['id']}", *([url] if isinstance(url, str) else [])}:
                    if self.patients.setdefault(key, kept) != kept:
                        self.problem(where, "gives a patient that another one has too, with other identifiers", path)
        elif kind == "Bundle":
            self.problem(where, "has a Bundle inside a Bundle", path)
        else:
            self.others += 1

    def bundle(self, body: Mapping[str, Any], where: str, *, path: Path | None = None) -> None:
        """Take a Bundle, except its links."""
        entries = body.get("entry", [])
        if body.get("type") not in _BUNDLES or not isinstance(entries, list):
            self.problem(where, f"is a Bundle of another type than {', '.join(_BUNDLES)}", path)
            return
        for number, entry in enumerate(entries, 1):
            at = f"{where}, entry {number}"
            if not isinstance(entry, Mapping) or _method(entry) not in (None, "PUT", "POST"):
                self.problem(at, "is no entry that adds a resource", path)
            else:
                self.resource(entry.get("resource"), at, url=entry.get("fullUrl"), path=path)

    def problem(self, where: str, what: str, path: Path | None = None) -> None:
        """Note what can't be read."""
        self.problems.append(Problem(where, what, path))

    def distinct(self) -> list[dict[str, Any]]:
        """The consents; the same resource (with an id) found twice counts once."""
        seen: set[str] = set()
        kept = []
        for body in self.consents:
            text = json.dumps(body, sort_keys=True)
            if "id" not in body or text not in seen:
                kept.append(body)
            seen.add(text)
        return kept

    def packed(self) -> bytes:
        """The consents, and the patients that they need, as one Bundle in an order of its own: the same content gives the
        same bytes. `read` reads it."""
        entries = [{"resource": body} for body in self.distinct()]
        for key, patient in self.patients.items():
            resource = {"resourceType": "Patient", **patient}
            entries.append({"fullUrl": key, "resource": resource})
        entries.sort(key=lambda entry: json.dumps(entry, sort_keys=True))
        return json.dumps({"resourceType": "Bundle", "type": "collection", "entry": entries}, sort_keys=True).encode()


def read(path: Path, *, ours: bool = False) -> Found:
    """Everything in a folder (with its subfolders; no links) or a file. ours: a file that `packed` made, of any size.

    Raises: ConsentError CONSENT_MISSING where there is none, or it can't be read.
    """
    found = Found()
    try:
        if path.is_dir():
            root = path.resolve()
            for number, file in enumerate(_files(root, found), 1):
                _file(file, found, f"file {number}", root=root)
        else:
            _file(path, found, "file 1", limit=not ours)
    except OSError as error:
        reason = error.strerror or "unknown reason"
        raise ConsentError(
            "CONSENT_MISSING",
            f"The consents cannot be read ({reason}): check [consent] in silo.toml, that the drive is mounted, and that the user "
            "of `silo run` may read them.",
        ) from error
    return found


def kept(data: bytes) -> Found:
    """What `packed` made."""
    found = Found(files=1)
    _value(data, found, "file 1", None, limit=False)
    return found


def whole(found: Found) -> Found:
    """`found`, where nothing in it is a problem. Raises: ConsentError CONSENT_MALFORMED, which names the first ones."""
    if found.problems:
        first = "; ".join(str(problem) for problem in found.problems[:3])
        raise ConsentError(
            "CONSENT_MALFORMED",
            f"{len(found.problems)} consent resources or files cannot be read, so none is used: {first}. Files are counted "
            "in the order of their names; `silo consent import PATH --dry-run --files` names them and changes nothing.",
        )
    return found


def _files(folder: Path, found: Found) -> Iterator[Path]:
    names: list[str] = []
    for here, folders, files in os.walk(folder, onerror=_raise, followlinks=False):
        folders.sort()
        for name in [*folders, *files]:
            full = Path(here, name)
            if full.is_symlink():
                found.problem("the folder", "has a link in it: put the file itself there", full)
            elif name in folders:
                continue
            elif full.suffix.lower() in SUFFIXES:
                names.append(str(full))
            elif full.suffix.lower() in _OTHER_FORMS:
                found.problem(
                    "the folder",
                    "has a file that is not read, and may hold consents: export it as JSON, not packed",
                    full,
                )
            else:
                found.passed_over += 1
        if len(names) > MAX_FILES:
            raise ConsentError("CONSENT_MALFORMED", f"The folder of consents has more than {MAX_FILES} files.")
    return map(Path, sorted(names))


def _raise(error: OSError) -> None:
    raise error


def _file(path: Path, found: Found, where: str, *, root: Path | None = None, limit: bool = True) -> None:
    """root: a real path in which the file must really lie. What is opened is asked, not the name: a link may have come."""
    found.files += 1
    try:
        handle = bounded.handle_of(path, root)
    except bounded.Outside:
        found.problem(where, "is a link that leads out of the folder: put the file itself there", path)
        return
    except OSError as error:
        if isinstance(error, bounded.NotAFile) or error.errno == errno.ENXIO:  # a socket
            found.problem(where, "is no file", path)
            return
        raise
    with os.fdopen(handle, "rb") as file:
        if path.suffix.lower() == ".ndjson":
            for number, line in enumerate(_lines(file), 1):
                if line.strip():
                    _value(line, found, f"{where}, line {number}", path)
        else:
            most = fhir_json.MAX_BYTES + 1 if limit else -1
            _value(file.read(most), found, where, path, limit=limit)
    if len(found.consents) > MAX_RESOURCES:
        raise ConsentError("CONSENT_MALFORMED", f"There are more than {MAX_RESOURCES} consents.")


def _lines(file: Any) -> Iterator[bytes]:
    while line := file.readline(fhir_json.MAX_BYTES + 1):
        yield line


def _value(data: bytes, found: Found, where: str, path: Path | None, *, limit: bool = True) -> None:
    try:
        value = fhir_json.decode(data, limit=limit)
    except fhir_json.JsonFault as error:
        found.problem(where, str(error), path)
        return
    if not isinstance(value, Mapping) or value.get("resourceType") != "Bundle":
        found.resource(value, where, path=path)
        return
    if next_link(value) is not None:
        found.problem(where, "is one page of a search that has more: fetch all pages", path)
    found.bundle(value, where, path=path)


def next_link(bundle: Mapping[str, Any]) -> object:
    """The `next` link of a search's page, unchecked; None without one."""
    links = bundle.get("link", [])
    named = [link for link in links if isinstance(link, Mapping)] if isinstance(links, list) else []
    return next((link.get("url", "") for link in named if link.get("relation") == "next"), None)


def _method(entry: Mapping[str, Any]) -> object:
    request = entry.get("request")
    return request.get("method") if isinstance(request, Mapping) else None


def _identifiers(body: Mapping[str, Any]) -> list[dict[str, str]]:
    pairs: Iterable[fhir.Coding] = fhir.identifiers(body.get("identifier"))
    return [{"system": system, "value": value} for system, value in sorted(set(pairs))]
