"""Decodes files in processes of their own, so that a crash, a hang or a bomb costs one file and not the silo.

    with DecoderPool(size=(64, 64)) as pool:
        for path, found in pool.decode(files):      # found: a picture, or a code of index.PROBLEMS

A file that is not the one of which the index speaks is no picture (known.py).

A worker that dies is replaced, the file it was at is refused, and the others of its hands are given to the next one. The
workers are started afresh (never forked: a fork after torch has run hangs), are told what to do by a pipe, and end with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from silo_node.imaging.known import Indexed, Known

MEMORY = 2 * 2**30  # bytes that one file may take; a picture of 64 million pixels takes 1.5 GB
SECONDS = 20.0  # that one file may take
_GRACE = 10.0  # after which a worker that does not even heed its alarm is ended
_STARTING = 120.0  # until a worker has loaded its libraries on a busy machine
_AHEAD = 8  # files given to a worker before its first answer: it never waits for us
_NAMES = 2**15  # bytes of their names, which wait in its pipe: full, we would wait for it, and it for us
_FEW = 64  # files for which a second worker is not worth its start
_ROOT = str(Path(__file__).resolve().parents[2])

Found = tuple[Path, "NDArray[Any] | str"]


class DecoderPool:
    """Workers that decode to one size.

    workers: None for as many as there are processors, at most 4. memory: bytes, seconds: for one file.
    """

    def __init__(
        self,
        *,
        size: tuple[int, int],
        window: str = "full",
        workers: int | None = None,
        memory: int = MEMORY,
        seconds: float = SECONDS,
    ) -> None:
        self._workers = workers or min(4, len(os.sched_getaffinity(0)))
        self._job = {"size": list(size), "window": window}
        self._size = size
        self._limits = (memory, seconds)
        self._idle: list[_Worker] = []

    def __enter__(self) -> DecoderPool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._idle:
            worker.close()

    def decode(self, files: Sequence[Indexed]) -> Iterator[Found]:
        """Each file once, in the order in which they are done: its picture [H, W], or why there is none, as a code.

        Raises OSError where no worker can be started.
        """
        waiting: deque[Indexed] = deque(files)
        done: queue.SimpleQueue[Found | BaseException | None] = queue.SimpleQueue()
        count = min(self._workers, max(1, len(files) // _FEW))
        threads = [
            threading.Thread(target=self._serve, args=(waiting, done), name="decoder", daemon=True)
            for _ in range(count if files else 0)
        ]
        for thread in threads:
            thread.start()
        running = len(threads)
        try:
            while running:
                found = done.get()
                if found is None:
                    running -= 1
                elif isinstance(found, BaseException):
                    raise found
                else:
                    yield found
        finally:
            waiting.clear()
            for thread in threads:
                thread.join()

    def _serve(self, waiting: deque[Indexed], done: queue.SimpleQueue[Found | BaseException | None]) -> None:
        """One thread: keep one worker busy until nothing waits."""
        hands: deque[Indexed] = deque()
        worker: _Worker | None = None
        try:
            while True:
                while _has_room(hands) and (file := _next(waiting)) is not None:
                    hands.append(file)
                    if worker is not None:
                        worker.ask(file)
                if not hands:
                    break
                if worker is None:
                    worker = self._take()
                    for file in hands:
                        worker.ask(file)
                answer = worker.answer(self._size)
                done.put((hands.popleft().path, answer))
                if worker.ended:
                    worker = None
            if worker is not None:
                self._idle.append(worker)
        except BaseException as error:  # noqa: BLE001 - raised again where the answers are waited for
            done.put(error)
        done.put(None)

    def _take(self) -> _Worker:
        while self._idle:
            worker = self._idle.pop()
            if worker.lives:
                return worker
            worker.close()
        return _Worker(self._job, *self._limits)


def _has_room(hands: deque[Indexed]) -> bool:
    """Whether one more file may be given; JSON takes up to six bytes for one of a name."""
    names = (name for file in hands for name in (file.path, file.root))
    return len(hands) < _AHEAD and 6 * sum(len(os.fsencode(name)) for name in names) < _NAMES


def _next(waiting: deque[Indexed]) -> Indexed | None:
    try:
        return waiting.popleft()
    except IndexError:
        return None


class _Worker:
    """One process and its pipe."""

    def __init__(self, job: dict[str, Any], memory: int, seconds: float) -> None:
        self._job, self._patience = job, seconds + _GRACE
        self._fresh = True
        self.ended = False
        here = os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH")]))
        # One thread a process: the pool is what uses several processors, and each thread of theirs takes address space.
        threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "silo_node.imaging.decoder_worker", str(memory), str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **threads, "PYTHONPATH": here},
            bufsize=0,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        self._poll = select.poll()  # not select(): it fails where a silo holds many files open
        self._poll.register(self._out, select.POLLIN)
        self._held = b""

    @property
    def lives(self) -> bool:
        """Whether nobody has ended it while it waited."""
        return self._process.poll() is None

    def ask(self, file: Indexed) -> None:
        """Give it a file; a worker that has died meanwhile says so when it is asked for the answer."""
        with contextlib.suppress(BrokenPipeError):
            job = {**self._job, "path": str(file.path), "known": vars(Known.of(file))}
            self._in.write(json.dumps(job).encode() + b"\n")

    def answer(self, size: tuple[int, int]) -> NDArray[Any] | str:
        """What it says about the file that it was given first; a code where that ended it."""
        patience = self._patience + (_STARTING if self._fresh else 0.0)
        try:
            while b"\n" not in self._held:
                self._receive(patience)
            line, _, self._held = self._held.partition(b"\n")
            said = json.loads(line)
            self._fresh = False
            if "code" in said:
                return str(said["code"])
            while len(self._held) < said["bytes"]:
                self._receive(patience)
            body, self._held = self._held[: said["bytes"]], self._held[said["bytes"] :]
            return np.frombuffer(body, dtype=said["kind"]).reshape(size)
        except (EOFError, TimeoutError) as error:
            return self._end(isinstance(error, TimeoutError))

    def _receive(self, patience: float) -> None:
        if not self._poll.poll(patience * 1000):
            raise TimeoutError
        piece = os.read(self._out.fileno(), 2**20)
        if not piece:
            raise EOFError
        self._held += piece

    def _end(self, hangs: bool) -> str:
        """Why it ended, as a code. Raises OSError where it never began."""
        if hangs:
            self._process.kill()
        self.close()
        if hangs or self._process.returncode == -signal.SIGALRM:
            return "PIXELS_SLOW"
        if self._fresh and self._process.returncode > 0:
            raise OSError("the decoder process does not start")
        return "PIXELS_CRASHED"

    def close(self) -> None:
        """End it."""
        self.ended = True
        self._process.kill()
        self._process.wait()
        self._in.close()
        self._out.close()
