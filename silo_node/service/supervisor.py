"""The processes of `silo run`: broker, workers, receiver, page. Started from the main thread, restarted when they die."""

from __future__ import annotations

import queue
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from kombu.exceptions import OperationalError

from silo_node import tasks
from silo_node.config import Config
from silo_node.errors import SiloError, UsageError
from silo_node.page import start
from silo_node.service import broker, logs
from silo_node.service.backoff import Backoff
from silo_node.service.processes import Child, python, stop_all

WORKERS: Final = ("training", "control")
RECEIVER: Final = "receiver"
"""Takes images from the PACS, where the settings say so; needs no broker."""
EARLY_SECONDS: Final = 10.0
"""A child that dies sooner than this after its start is started again after a pause that doubles."""
LONGEST_PAUSE: Final = 60.0
CONTROL_LATER: Final = 15.0
PAGE_LATER: Final = 1.0


class Supervisor:
    """events: where `("exit", name)` is put when a child died, and `("restart", name)` when its pause is over."""

    def __init__(self, config: Config, events: queue.SimpleQueue[tuple[str, Any]]) -> None:
        self._config = config
        self._events = events
        self._children: dict[str, Child] = {}
        self._pauses: dict[str, Backoff] = {}
        self._page_problem: SiloError | None = None
        self._embedded = not config.settings.broker.url
        self.app = tasks.make_app(config)

    def start(self) -> None:
        """Start everything. Raises: BrokerError."""
        if self._embedded:
            self._start_broker()
        else:
            broker.clear(self._config)
        self._start_worker("training")
        # The control worker has nothing to do in the first seconds, in which the portal may already be waiting for us.
        self._start_later("control", CONTROL_LATER)
        if not self._config.settings.page.off:
            self._start_later("page", PAGE_LATER)
        if self._config.settings.receiver is not None:
            self._start_worker(RECEIVER)

    def _start_later(self, name: str, seconds: float) -> None:
        timer = threading.Timer(seconds, self._events.put, [("restart", name)])
        timer.daemon = True
        timer.start()

    def send(self, name: str, *arguments: str) -> bool:
        """Queue a task; False where the broker is away: the caller sends it again."""
        try:
            tasks.send(self.app, name, *arguments)
        except OperationalError as error:
            logs.get().warning("task.not_sent", task=name, why=type(error).__name__)
            return False
        return True

    def died(self, name: str) -> None:
        """A child is gone: start it again, at once or after a pause. Main thread only."""
        child = self._children.pop(name, None)
        lived = time.monotonic() - child.started if child is not None else 0.0
        backoff = self._pauses.setdefault(name, Backoff(1.0, LONGEST_PAUSE))
        pause = backoff.pause()
        if lived > EARLY_SECONDS:
            backoff.reset()
            pause = 0.0
        if name == "page":
            self._page_problem = self._why_no_page(child, lived)
        logs.get().error("process.died", process=name, lived=round(lived, 1), again_in=round(pause, 1))
        if child is not None:
            child.stop(0.5)
        self._start_later(name, pause)

    def page_problem(self) -> list[SiloError]:
        """Why the page is not served; over when one has been up for a while. For any thread."""
        child, problem = self._children.get("page"), self._page_problem
        up = child is not None and child.running and time.monotonic() - child.started > EARLY_SECONDS
        return [] if up or problem is None else [problem]

    def _why_no_page(self, child: Child | None, lived: float) -> SiloError | None:
        """What a page that ended at once found, looked at again here; None for one that had been up."""
        if child is None or lived > EARLY_SECONDS:
            return None
        try:
            start.check(self._config)
        except UsageError as error:
            return error
        return SiloError(
            "PAGE_CRASHED",
            f"The node's page ended right after its start (code {child.process.returncode}); it is tried again by itself.",
        )

    def restart(self, name: str) -> None:
        """Start a child again; with the broker also the workers, whose connections and tasks went with it."""
        if name in self._children:
            return
        if name == "page":
            self._start_page()
            return
        if name != "broker":
            self._start_worker(name)
            return
        workers = [self._children.pop(worker) for worker in WORKERS if worker in self._children]
        stop_all(workers, 1.0)
        self._start_broker()
        for worker in WORKERS:
            self._start_worker(worker)

    def pids(self) -> dict[str, int]:
        """Name -> process id of the children that live."""
        return {name: child.process.pid for name, child in self._children.items() if child.running}

    def stop(self) -> None:
        """End all children; workers first, so that they find their broker while they end."""
        stop_all([self._children[name] for name in (*WORKERS, RECEIVER, "page") if name in self._children], 3.0)
        if "broker" in self._children:
            stop_all([self._children["broker"]], 3.0)
        self._children.clear()

    def _start_broker(self) -> None:
        self._children["broker"] = broker.start_embedded(self._config, self._exited("broker"))

    def _start_worker(self, name: str) -> None:
        training = self._config.settings.training
        self._children[name] = Child(
            name,
            python("silo_node.pacs.receiver", str(self._config.folder))
            if name == RECEIVER
            else python("silo_node.service.worker", name, str(self._config.folder)),
            log=self._config.folder / f"worker-{name}.log",
            log_mb=self._config.settings.limits.logs_mb,
            environment={
                "PYTHONUNBUFFERED": "1",
                "OMP_NUM_THREADS": str(training.threads),
                "SILO_NICE": str(training.nice),
                # Without it some sums on a graphics card depend on chance (torch.use_deterministic_algorithms).
                "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
            },
            # Nothing that a worker holds is lost: a cold stop, and no waiting for a training that nobody wants any more.
            death_signal=signal.SIGKILL,
            stop_signal=signal.SIGQUIT,
            on_exit=self._exited(name),
        )

    def _start_page(self) -> None:
        self._children["page"] = Child(
            "page",
            python("silo_node.page.serve", str(self._config.folder)),
            log=self._config.folder / "page.log",
            log_mb=self._config.settings.limits.logs_mb,
            on_exit=self._exited("page"),
        )

    def _exited(self, name: str) -> Callable[[Child], None]:
        def tell(child: Child) -> None:
            # Only when it is still the one in use: a restart may have replaced it already.
            if self._children.get(name) is child or name not in self._children:
                self._events.put(("exit", name))

        return tell
