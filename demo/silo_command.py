"""The `silo` command without a new Python for each: a process that has loaded it once forks for every call.

A fork server (the standard library's) has one thread and nothing else loaded, so forking it is safe; the child runs the
same `main` as the installed command, with its own environment and working folder.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from demo.processes import ProcessFailed

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "demo.silo_command",
        "silo_node.cli",
        "silo_node.steward.approvals",
        "silo_node.scanning",
        "silo_node.imaging.index",
    ]
)


def call_silo(
    arguments: Sequence[str], *, env: Mapping[str, str], cwd: Path, ok: Sequence[int] = (0,)
) -> tuple[int, str]:
    """Runs `silo ARGUMENTS`; returns its code and what it printed. A code not in `ok` raises ProcessFailed with that."""
    # The code comes by a pipe: `Process.exitcode` is unreliable where several threads start and join processes.
    receiver, sender = _context.Pipe(duplex=False)
    with tempfile.NamedTemporaryFile("w+") as file, receiver:
        child = _context.Process(target=_run, args=(list(arguments), dict(env), str(cwd), file.name, sender))
        child.start()
        sender.close()
        try:
            code = int(receiver.recv())
        except EOFError:
            code = -1  # it died before it could say
        child.join()
        output = Path(file.name).read_text()
    if code not in ok:
        raise ProcessFailed(f"silo {' '.join(arguments)} ended with code {code}:\n{output}")
    return code, output


def _run(arguments: list[str], env: dict[str, str], cwd: str, output: str, sender: Connection) -> None:
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    sys.argv = ["silo", *arguments]
    from silo_node.cli import main

    code = 1
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sender.send(code)
