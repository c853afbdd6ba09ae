"""Child processes that never outlive their parent.

Each child is started in a session of its own (so that a terminal's Ctrl-C reaches only the parent, which then ends the
children in order) and asks the kernel for SIGTERM when the parent dies (Linux, through setpriv), so that even a killed
parent leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

SETPRIV = shutil.which("setpriv")


class ProcessFailed(RuntimeError):
    """A child ended by itself, or did not become ready; the message carries the end of its log."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Process:
    """One long-running child with its log file. Make it in the main thread: the kernel takes the end of the thread that
    made a child for the death of its parent.
    """

    def __init__(self, name: str, command: Sequence[str], *, log: Path, env: Mapping[str, str], cwd: Path) -> None:
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        prefix = [SETPRIV, "--pdeathsig", "TERM", "--"] if SETPRIV else []
        with log.open("ab") as sink:
            self._child = subprocess.Popen(
                [*prefix, *command],
                stdout=sink,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=dict(env),
                cwd=cwd,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child.poll() is None

    def check(self) -> None:
        """Raises ProcessFailed when the child has ended."""
        if not self.running:
            raise ProcessFailed(
                f"{self.name} ended with code {self._child.returncode}; the end of {self.log}:\n{self.tail()}"
            )

    def tail(self, lines: int = 25) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def kill(self) -> None:
        """SIGKILL to this one process, as a crash would; its own children end through their parent-death signal."""
        self._child.kill()
        self._child.wait()

    def terminate(self) -> None:
        if self.running:
            self._child.terminate()

    def wait(self, seconds: float) -> int | None:
        """The exit code, or None when it still runs after `seconds`."""
        try:
            return self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def end(self, seconds: float = 10.0) -> None:
        """SIGTERM, up to `seconds` of grace, then SIGKILL to the child's whole session."""
        self.terminate()
        if self.wait(seconds) is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()


def end_all(processes: Sequence[Process], seconds: float = 10.0) -> None:
    """Ends all at once: the signal goes to every one before any is waited for."""
    for process in processes:
        process.terminate()
    until = time.monotonic() + seconds
    for process in processes:
        process.end(max(0.1, until - time.monotonic()))


def call(
    command: Sequence[str], *, env: Mapping[str, str], cwd: Path, stdin: str | None = None, ok: Sequence[int] = (0,)
) -> tuple[int, str]:
    """Runs a short command; returns its code and what it printed. A code not in `ok` raises ProcessFailed with that."""
    done = subprocess.run(command, env=dict(env), cwd=cwd, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode not in ok:
        raise ProcessFailed(f"{' '.join(command)} ended with code {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.returncode, done.stdout + (done.stderr if done.returncode else "")
