"""Reads a CSV file strictly: UTF-8 (a byte-order mark is allowed), comma or semicolon, one header line.

Errors name the file and the line, never a cell's content: a cell may hold a patient id.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from silo_node.imaging import bounded
from silo_node.imaging.errors import TableError

MAX_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True)
class Line:
    """One data line: its number in the file (the header is line 1) and its cells by column, stripped."""

    number: int
    cells: Mapping[str, str]


@dataclass(frozen=True)
class Table:
    """A file's columns in order, as written, its lines, and "sha256:<hex>" of the bytes that were read."""

    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    digest: str


def read(path: Path, *, code: str, what: str, root: Path | None = None) -> Table:
    """The table in `path`. `code` prefixes the error codes (`LABELS`), `what` names the file in sentences. `root`: a real path
    in which the file must really lie; None where a link may lead anywhere.

    Raises TableError `<code>_MISSING` (no such file), `<code>_MALFORMED` (encoding, quotes, empty file, a line with
    another number of cells than the header, two columns of one name).
    """
    return parse(content(path, code=code, what=what, root=root), code=code, what=what)


def content(path: Path, *, code: str, what: str, root: Path | None = None) -> bytes:
    """The bytes of the file, for `parse`; parameters as in `read`. Raises TableError."""
    try:
        # A pipe would be waited for, a device never ends.
        with os.fdopen(bounded.handle_of(path, root), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            raw = file.read(MAX_BYTES + 1) if size <= MAX_BYTES else b""
    except OSError as error:
        reason = error.strerror or "unknown reason"
        then = " and scan again" if code == "LABELS" else ", and check that the user of `silo run` may read it"
        raise TableError(f"{code}_MISSING", f"{what} cannot be read ({reason}): put it in place{then}.") from error
    if max(size, len(raw)) > MAX_BYTES:
        raise TableError(
            f"{code}_MALFORMED", f"{what} is larger than {MAX_BYTES // 2**20} MiB: check that it is the right file."
        )
    return raw


def parse(raw: bytes, *, code: str, what: str) -> Table:
    """The table in `raw`; parameters as in `read`. Raises TableError `<code>_MALFORMED`."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise malformed(code, what, line, "is not UTF-8 text: save the file as CSV in UTF-8") from error
    if not text.strip():
        raise TableError(f"{code}_MALFORMED", f"{what} is empty: it needs at least its header line.")
    header = text.splitlines()[0]
    delimiter = ";" if ";" in header and "," not in header else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns: tuple[str, ...] = ()
    lines: list[Line] = []
    start = 1
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if not columns:
                columns = _columns(cells, code, what)
            elif any(cells):
                if len(cells) != len(columns):
                    raise malformed(code, what, start, f"has {len(cells)} cells where the header has {len(columns)}")
                lines.append(Line(start, dict(zip(columns, cells, strict=True))))
            start = reader.line_num + 1
    except csv.Error as error:
        raise malformed(code, what, start, "is not well-formed CSV: check its quotation marks") from error
    return Table(columns, tuple(lines), "sha256:" + hashlib.sha256(raw).hexdigest())


def malformed(code: str, what: str, line: int, fault: str) -> TableError:
    """A TableError `<code>_MALFORMED` that names the line."""
    return TableError(f"{code}_MALFORMED", f"{what}, line {line} {fault}.")


def _columns(cells: list[str], code: str, what: str) -> tuple[str, ...]:
    if any("\x00" in cell for cell in cells) or not all(cells):
        raise malformed(code, what, 1, "has a column without a name")
    if len(set(cells)) != len(cells):
        raise malformed(code, what, 1, "names a column twice")
    return tuple(cells)
