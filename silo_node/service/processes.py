"""Child processes of `silo run`, none of which outlives it.

Three nets, because each has a hole: a clean stop ends every child by its process group; PR_SET_PDEATHSIG makes the kernel
end a child when its parent dies by SIGKILL; and at its start a silo shuts down what an earlier one left (broker.py).
Children are started from the main thread only: the kernel sends the parent-death signal when the *thread* that started
the child ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from silo_node.service.log_files import MOST_MB, RotatingFile

LONGEST_LINE: Final = 1 << 16
"""Bytes of output that are written at once."""
_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with_parent(parent: int | None = None, number: int = signal.SIGKILL) -> None:
    """Ask the kernel to send this process `number` when its parent dies. Where there is no such call: nothing.

    parent: the pid expected; where it is gone already the process ends at once.
    """
    if _LIBC is None:
        return
    if _LIBC.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


class Child:
    """One child in a process group of its own.

    log: where its output goes, at most `log_mb` MB of it (log_files.py). death_signal: what the kernel sends it when this
    process dies. stop_signal: how it is asked to end. on_exit: called from a thread when it ends by itself.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        log_mb: int = MOST_MB,
        environment: Mapping[str, str] | None = None,
        death_signal: int = signal.SIGTERM,
        stop_signal: int = signal.SIGTERM,
        on_exit: Callable[[Child], None] | None = None,
    ) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("children are started from the main thread: see the module's text")
        self.name = name
        self.started = time.monotonic()
        self._stopping = False
        self._stop_signal = stop_signal
        parent = os.getpid()

        def before_exec() -> None:
            os.setpgid(0, 0)
            die_with_parent(parent, death_signal)

        self.process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(os.environ) | dict(environment or {}),
            preexec_fn=before_exec,
        )
        self._keeping = threading.Thread(
            target=self._keep_output, args=(RotatingFile(log, log_mb),), name=f"output-{name}", daemon=True
        )
        self._keeping.start()
        threading.Thread(target=self._watch, args=(on_exit,), name=f"watch-{name}", daemon=True).start()

    @property
    def running(self) -> bool:
        """Whether it lives."""
        return self.process.poll() is None

    def terminate(self) -> None:
        """Ask it to end; returns at once."""
        self._stopping = True
        self._signal(self._stop_signal)

    def stop(self, seconds: float = 5.0) -> None:
        """End it and everything in its process group: kindly, then after `seconds` by force."""
        self.terminate()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self.process.wait()
        # Its own children, where it died before them.
        self._signal(signal.SIGKILL)
        self._keeping.join(1.0)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def _keep_output(self, log: RotatingFile) -> None:
        """Into the log until the last process that could write is gone; not straight into it, because it is cut by size."""
        stream = self.process.stdout
        if stream is not None:
            while line := stream.readline(LONGEST_LINE):
                # A log that can't be written must not stop the child, which would wait for room in the pipe.
                with contextlib.suppress(OSError):
                    log.write(line)
            stream.close()
        log.close()

    def _watch(self, on_exit: Callable[[Child], None] | None) -> None:
        self.process.wait()
        if on_exit is not None and not self._stopping:
            on_exit(self)


def stop_all(children: Sequence[Child], seconds: float = 5.0) -> None:
    """Stop children together: all are asked first, then waited for."""
    for child in children:
        child.terminate()
    for child in children:
        child.stop(seconds)


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs one of our modules with this interpreter."""
    return [sys.executable, "-m", module, *arguments]
