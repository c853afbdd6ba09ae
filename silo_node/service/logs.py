"""FOLDER/silo.log: one JSON object a line, with study, round and silo where they apply. No patient, no header value.

`silo run --json` and `silo receive --json` print what their process writes there, line by line.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any, Final

import structlog

from silo_node.service.log_files import MOST_MB, RotatingFile

_UID: Final = re.compile(r"\b[0-2](?:\.\d+){5,}\b")
_MOST: Final = 2000


def _guard(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
    """A last net: DICOM UIDs are struck out and long texts are cut, should a foreign error text carry them."""
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = _UID.sub("(uid)", value)[:_MOST]
    return event


class _Printed:
    """silo.log, and each line on standard output too. Where nobody reads that any more, the work goes on without it."""

    def __init__(self, file: RotatingFile) -> None:
        self._file = file
        self._heard = True

    def write(self, text: str) -> None:
        """Whole lines."""
        self._file.write(text)
        if not self._heard:
            return
        # As in print_json: no name in it steers a terminal. Past Python's buffer, which would keep what a gone reader left.
        data = text.replace("\x7f", "\\u007f").encode()
        try:
            while data:
                data = data[os.write(sys.stdout.fileno(), data) :]
        except OSError:
            self._heard = False

    def flush(self) -> None:
        """Nothing is held back."""


def configure(folder: Path, silo: str, most_mb: int = MOST_MB, *, printed: bool = False) -> None:
    """Write this process's log lines to FOLDER/silo.log (mode 0600), each with the silo's name.

    most_mb: of all pieces of it together; `[limits] logs_mb`. printed: also to standard output.
    """
    file = RotatingFile(folder / "silo.log", most_mb)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _trace_without_values,
            _guard,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=_Printed(file) if printed else file),  # type: ignore[arg-type]
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(silo=silo)


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
