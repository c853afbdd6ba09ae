"""FOLDER/silo.log: one JSON object a line, with study, round and silo where they apply. No patient, no header value.

`silo run --json` and `silo receive --json` print what their process writes there, line by line.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import re
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import structlog

from silo_node.service.log_files import MOST_MB, RotatingFile

_UID: Final = re.compile(r"\b[0-2](?:\.\d+){5,}\b")
_MOST: Final = 2000
WAITING: Final = 1000
"""Lines that wait for the reader of standard output; above it they are left out there."""
LAST_SECONDS: Final = 0.5
"""How long the end of a process waits for that reader."""


def _guard(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
    """A last net: DICOM UIDs are struck out and long texts are cut, should a foreign error text carry them."""
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = _UID.sub("(uid)", value)[:_MOST]
    return event


class _Printed:
    """silo.log, and each line on standard output too, which holds up nobody.

    Where nobody reads that any more the work goes on without it; where its reader is slow, lines beyond WAITING are left
    out, and counted in the place where they would have been: `{"event": "output.dropped", "lines": ...}`.
    """

    def __init__(self, file: RotatingFile, silo: str) -> None:
        self._file, self._silo = file, silo
        self._lines: queue.Queue[str] = queue.Queue(WAITING)
        self._dropped = 0
        threading.Thread(target=self._print, name="output", daemon=True).start()

    def write(self, text: str) -> None:
        """Whole lines. One thread at a time (structlog)."""
        self._file.write(text)
        try:
            if self._dropped:
                self._lines.put_nowait(self._gap())
                self._dropped = 0
            self._lines.put_nowait(text)
        except queue.Full:
            self._dropped += 1

    def flush(self) -> None:
        """Nothing is held back."""

    def printed(self) -> None:
        """At the end of the process: wait for what is left to be printed, but not long."""
        with contextlib.suppress(queue.Full):
            if self._dropped:
                self._lines.put_nowait(self._gap())
        with self._lines.all_tasks_done:
            self._lines.all_tasks_done.wait_for(lambda: not self._lines.unfinished_tasks, LAST_SECONDS)

    def _gap(self) -> str:
        found = {"event": "output.dropped", "level": "warning", "lines": self._dropped, "silo": self._silo}
        return json.dumps({**found, "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z")}) + "\n"

    def _print(self) -> None:
        heard = True
        while True:
            # As in print_json: no name in it steers a terminal. Past Python's buffer, which would keep what a gone reader left.
            data = self._lines.get().replace("\x7f", "\\u007f").encode()
            try:
                while data and heard:
                    data = data[os.write(1, data) :]
            except OSError:
                heard = False
            self._lines.task_done()


_TO_PRINT: Final[list[_Printed]] = []


def configure(folder: Path, silo: str, most_mb: int = MOST_MB, *, printed: bool = False) -> None:
    """Write this process's log lines to FOLDER/silo.log (mode 0600), each with the silo's name.

    most_mb: of all pieces of it together; `[limits] logs_mb`. printed: also to standard output.
    """
    file: RotatingFile | _Printed = RotatingFile(folder / "silo.log", most_mb)
    if printed:
        file = _Printed(file, silo)
        _TO_PRINT.append(file)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _trace_without_values,
            _guard,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=file),  # type: ignore[arg-type]
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(silo=silo)


@atexit.register
def printed() -> None:
    """Before this process ends: what is to be printed is, unless nobody reads it."""
    for each in _TO_PRINT:
        each.printed()


def get() -> Any:
    """A logger; call with an event name and fields: `log.info("round.keys", round=round_id)`."""
    return structlog.get_logger()


def _trace_without_values(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
    """Where an error came from, as file and line; never its text or values, which may quote what was being read."""
    error = event.pop("error_at", None)
    if isinstance(error, BaseException):
        steps = []
        trace = error.__traceback__
        while trace is not None:
            steps.append(f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}")
            trace = trace.tb_next
        event["at"] = " ".join(steps[-6:])
        event["error"] = type(error).__name__
    return event
