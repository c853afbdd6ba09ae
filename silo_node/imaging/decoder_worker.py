"""The process in which pictures are decoded: `python -m silo_node.imaging.decoder_worker BYTES SECONDS`.

Decoders are C libraries, and files come from everywhere. Whatever happens here ends this process and no other: memory is
limited by RLIMIT_AS, a file's time by an alarm whose default action ends the process even inside C code.

    in    one JSON line a file: {"path", "known", "size": [H, W], "window"}; "known" as in known.py
    out   one JSON line: {"code"} or {"kind", "bytes"}, the latter followed by the picture's bytes
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any, BinaryIO


def main(memory: int, seconds: float) -> None:
    """Answer until the input ends: with its parent."""
    # Standard output belongs to the answers alone: C libraries print to it, and may quote a header.
    answers = os.fdopen(os.dup(1), "wb")
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from silo_node.imaging import decode  # before the limit: loading libraries takes address space, but little memory

    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + memory, held + memory))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for line in sys.stdin.buffer:
        _answer(answers, json.loads(line), seconds, decode)


def _answer(answers: BinaryIO, job: dict[str, Any], seconds: float, decode: Any) -> None:
    from silo_node.imaging.errors import PixelError
    from silo_node.imaging.known import Known

    signal.setitimer(signal.ITIMER_REAL, seconds)
    body = b""
    try:
        known = Known(**job["known"])
        picture = decode.read(Path(job["path"]), size=tuple(job["size"]), window=job["window"], known=known)
        body = picture.tobytes()
        answer = {"kind": picture.dtype.name, "bytes": len(body)}
    except PixelError as error:
        answer = {"code": error.code}
    signal.setitimer(signal.ITIMER_REAL, 0)
    answers.write(json.dumps(answer).encode() + b"\n" + body)
    answers.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
