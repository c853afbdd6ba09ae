"""`silo run`: waits for the portal's assignments, acts on each at once, answers. One thread acts; the others only wait.

Nothing in memory matters: after kill -9 the next start takes up every open round from its folder and the journal.
"""

from __future__ import annotations

import os
import queue
import signal
import sqlite3
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

from protocol.canonical import digest
from protocol.messages import Reason
from protocol.secure_aggregation.errors import ProtocolViolation
from protocol.server_step import ServerStepError
from silo_node import egress, gate, key_history, key_rotation, scanning, software
from silo_node.config import Config
from silo_node.consent.renewing import Renewing
from silo_node.egress import RETRY_STATUS
from silo_node.errors import (
    DiskFull,
    PortalError,
    PortalRefused,
    Refused,
    SiloError,
    Stopping,
    UsageError,
    is_disk_full,
)
from silo_node.evidence import records
from silo_node.files import write_bytes
from silo_node.health import liveness as health
from silo_node.health import status
from silo_node.health.watching import Watch
from silo_node.node import FolderLock, Node
from silo_node.pacs.watch import Watch as FolderWatch
from silo_node.rounds import error_feedback
from silo_node.rounds.announcement import Announcement
from silo_node.rounds.many_runner import ManyRunner
from silo_node.rounds.model_store import ModelStore
from silo_node.rounds.refusals import context_of, send_refusal
from silo_node.rounds.round_runner import RoundRunner
from silo_node.rounds.runs import Run, open_runs
from silo_node.service import logs, systemd
from silo_node.service.backoff import Backoff
from silo_node.service.listeners import ASSIGNMENTS, Heart, Keeper, Poller, Results, Ticker, start
from silo_node.service.supervisor import RECEIVER, Supervisor
from silo_node.steward import pauses
from silo_node.steward.reasons import reason

STEPS: Final = (
    *("roster", "neighbours", "bundles", "ready", "list", "sketch", "second"),
    *("unmask", "sum", "check", "state"),
)
AGAIN_SECONDS: Final = 1.0
LONGEST_AGAIN: Final = 15.0
"""After a step that could not be finished, the assignments are asked for again, later each time."""
KEY_AGAIN: Final = 300.0
"""Seconds at most until a new key that the portal refused is offered again: each refusal is an entry of its log."""
HOUR: Final = 3600.0
LAST_WORD: Final = 2.0
"""Seconds for which a silo that ends waits for the portal to take its checkpoint: a later one holds all that this one does."""
PASSING: Final = RETRY_STATUS | {401, 403}
"""Refusals that a person or time can lift: then the round waits. Any other ends this silo's part in it."""
_ENDS: Final = (SiloError, ProtocolViolation, ValueError, KeyError, TypeError, ServerStepError, OSError, sqlite3.Error)
"""What can go wrong in a step. Anything else is a fault of the program and ends it; the next start takes up the round."""


class Sync:
    """The main loop of one silo."""

    def __init__(self, node: Node, *, say: Callable[[str], None] = lambda line: None) -> None:
        self.node = node
        self._say = say
        self._events: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._models = ModelStore(node.config.models)
        self._supervisor = Supervisor(node.config, self._events)
        self._heart = Heart(node, self._beats)
        self._keeper = Keeper(node)
        self._runners: dict[str, RoundRunner] = {}
        self._closed: list[tuple[RoundRunner, str]] = []
        self._done: set[tuple[str, str]] = set()
        self._restored = False
        self._without: set[str] = set()
        self._pauses = Backoff(AGAIN_SECONDS, LONGEST_AGAIN)
        self._key_pauses = Backoff(AGAIN_SECONDS, KEY_AGAIN)
        self.stopped = False
        self.rekeyed = False
        """Whether `run` ended because the silo has a new key, and everything begins anew with that."""
        self._status = status.Live(node.config)
        self._handlers: dict[str, Callable[[Any], None]] = {
            "assignments": self._assignments,
            "result": self._result,
            "problem": self._problem,
            "exit": self._supervisor.died,
            "restart": self._restart,
            "task": self._supervisor.send,
            "train": self._train_again,
            "lost": lambda _: self._train_all_again(),
            "again": lambda _: self._ask_again(),
            "hour": lambda _: self._hour(),
            "turn": lambda _: health.turned(node.config),
            "alive": lambda _: systemd.notify("WATCHDOG=1"),
            "settings": lambda _: self._reload(),
            "key": lambda _: self._new_key(),
            "failed": self._failed,
        }

    def run(self) -> None:
        """Until SIGTERM, SIGINT or `stop`."""
        log = logs.get()
        try:
            self._supervisor.start()
            software.note(self.node)
            watch = Watch(self.node, self._status, self._supervisor.page_problem)
            poller = Poller(self.node, self._events, failed=watch.poll_failed)
            results = Results(self.node, self._events)
            for name, target in (
                ("watch-here", watch.here),
                ("watch-portal", watch.portal),
                ("watch-sources", watch.sources),
                ("watch-consents", watch.consent_server),
                ("renew-consents", Renewing(self.node).run),
                ("poll", poller.run),
                ("results", results.run),
                ("heart", self._heart.run),
                ("keeper", self._keeper.run),
                ("hour", Ticker(self.node, self._events, "hour", HOUR).run),
                ("turn", Ticker(self.node, self._events, "turn", health.EVERY).run),
                ("folder", FolderWatch(self.node, self._events).run),
            ):
                start(name, target, self._events)
            due = systemd.watchdog_seconds()
            if due is not None:
                # Through the queue, so that what is proved alive is the thread that acts.
                start("alive", Ticker(self.node, self._events, "alive", due).run, self._events)
            health.turned(self.node.config)
            systemd.notify("READY=1")
            log.info("silo.started", pid=os.getpid(), portal=self.node.config.portal)
            self._status.update(state="connecting")
            self._new_key()
            if scanning.is_due(self.node.config):
                self._supervisor.restart("control")
                self._supervisor.send("scan")
            while not self.rekeyed:
                name, value = self._events.get()
                if name == "stop":
                    break
                self._handlers[name](value)
                self._clean()
        finally:
            if not self.rekeyed or self.stopped:
                systemd.notify("STOPPING=1")
            self.node.stop.set()
            last_word = threading.Thread(target=self._keeper.turn, kwargs={"patience": 0, "timeout": LAST_WORD})
            last_word.start()
            self._supervisor.stop()
            last_word.join()
            self._status.update(state="stopped")
            log.info("silo.stopped")

    def stop(self) -> None:
        """Ask `run` to end; safe in a signal handler (SimpleQueue is re-entrant). Raises: Stopping, into a request there."""
        again, self.stopped = self.stopped, True
        self.node.stop.set()
        self._events.put(("stop", None))
        if not again:
            egress.interrupt()

    def reload(self) -> None:
        """Ask `run` to read silo.toml again; safe in a signal handler."""
        self._events.put(("settings", None))

    def _reload(self) -> None:
        """SIGHUP: limits, hours and which networks are allowed change at once; the rest needs a new start."""
        config = self.node.config
        try:
            found = Config.load(config.folder).settings
        except UsageError as error:
            self._problem(error)  # the settings in force stay
            return
        old = config.settings
        config.settings = old.model_copy(
            update={
                "limits": found.limits,
                "hours": found.hours,
                "training": old.training.model_copy(
                    update={name: getattr(found.training, name) for name in ("allow_constant", "networks")}
                ),
            }
        )
        waiting = sorted(
            name for name in type(found).model_fields if getattr(found, name) != getattr(config.settings, name)
        )
        logs.get().info("settings.read", after_a_new_start=waiting)
        self._say("settings read again" + (f"; after a new start: {', '.join(waiting)}" if waiting else ""))

    def _failed(self, thread: str) -> None:
        """Nothing in memory matters: a new start, by systemd or a person, takes up every round. Raises: SiloError."""
        raise SiloError("SILO_FAILED", f"The thread `{thread}` has failed; silo.log says where. Start the silo again.")

    def _hour(self) -> None:
        """What has to be done from time to time."""
        self._supervisor.send("tidy")
        if scanning.is_due(self.node.config):
            self._supervisor.send("scan")

    def _new_key(self) -> None:
        """Take a key that waits, once no round is open. Where the portal is away or says no, it is tried again."""
        if not key_history.next_path(self.node.config).exists():
            return
        try:
            if self._runners or key_rotation.take_up(self.node) is None:
                self._later(("key", None))
                return
        except Stopping:
            return
        except (SiloError, OSError, sqlite3.Error) as error:
            if not isinstance(error, SiloError):
                if not is_disk_full(error):
                    raise
                error = DiskFull("No room to take the silo's new key.")
            self._problem(error)
            self._later(("key", None), self._key_pauses if isinstance(error, PortalRefused) else None)
            return
        self._say("the silo's new key is in force")
        self.rekeyed = True

    # --- what the portal says ----------------------------------------------------------------------------------------

    def _assignments(self, body: Mapping[str, Any]) -> None:
        self._status.contact()
        self._pauses.reset()
        items = body.get("assignments") if isinstance(body, Mapping) else None
        if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
            self._problem(SiloError("BAD_ANSWER", "The portal's assignments can't be read."))
            return
        if not self._restored:
            self._restored = True
            self._restore(items)
        self._status.studies(items)
        self._other_key(items)
        # What is over ends first, so that nothing is done for it any more.
        for item in sorted(items, key=lambda item: item.get("kind") != "closed"):
            self._act(item)

    def _other_key(self, items: list[Mapping[str, Any]]) -> None:
        """Studies that go on without this hospital, because they name the key that its silo had before."""
        now = {str(item.get("study")) for item in items if item.get("kind") == "other_key"}
        for study in self._without - now:
            self._status.over(study)
        for study in sorted(now):
            self._problem(key_history.former(), about=study)
        self._without = now

    def _act(self, item: Mapping[str, Any]) -> None:
        kind, round_id = str(item.get("kind")), str(item.get("round"))
        if kind == "completed":
            error_feedback.forget(self.node.config.feedback, str(item.get("study")))
        if (round_id, kind) in self._done:
            return
        try:
            if kind == "announce":
                self._announce(item)
            elif kind == "closed":
                self._close(round_id, item)
            elif kind in STEPS:
                self._step(kind, round_id, item)
            else:
                return
        except Stopping:
            return
        except (PortalError, PortalRefused, DiskFull) as error:
            self._problem(error)
            self._later(("again", None))
            return
        self._done.add((round_id, kind))

    def _announce(self, item: Mapping[str, Any]) -> None:
        try:
            announcement = Announcement.parse(item)
        except Refused as error:
            self._problem(error)
            return
        before = self._runners.get(announcement.study)
        if before is not None and before.id != announcement.id:
            old = before.announcement
            if (announcement.number, announcement.attempt) < (old.number, old.attempt):
                self._refuse(announcement, None, Refused("OLD_ROUND", f"This silo has already joined {old.id}."))
                return
            # A round that ended well has given another model.
            self._closed.append((before, "finished" if announcement.model != old.model else "failed"))
            del self._runners[announcement.study]
        self._forget_older(announcement, before)
        self._begin(announcement)

    def _forget_older(self, announcement: Announcement, before: RoundRunner | None) -> None:
        """Folders of older attempts of this study, such as those that were refused and never began."""
        for run in open_runs(self.node.config.runs):
            other = run.id.rsplit(".", 2)[0] != announcement.study
            if not other and run.id != announcement.id and (before is None or run.id != before.id):
                records.forget_round(self.node, run)

    def _begin(self, announcement: Announcement) -> None:
        """Ask the gate; begin the round or refuse it."""
        run = Run(self.node.config.runs, announcement.id)
        refused = run.read("refused")
        if refused is not None:
            said = [Reason(each["code"], each["sentence"]) for each in refused["reasons"]]
            send_refusal(self.node, announcement, context_of(announcement), said)
            return
        runner = None
        try:
            self._resume(announcement)
            permission = gate.check(announcement, self._manifest(announcement), node=self.node)
            # The mode follows from the approved manifest alone, never from what the portal asks for.
            kind = ManyRunner if permission.manifest.sparse else RoundRunner
            runner = kind(self.node, self._models, announcement, permission, start_training=self._start_training)
            # What an earlier runner of this attempt did, this one has to be told again; the journal gives the same answers.
            self._done = {done for done in self._done if done[0] != announcement.id}
            records.note_cohort(self.node, announcement, permission)
            self._runners[announcement.study] = runner
            runner.start()
        except _ENDS as error:
            self._end(announcement, runner, error)
        else:
            self._status.over(announcement.study)
            self._heart.begin()
            logs.get().info(
                "round.begun", study=announcement.study, round=announcement.id, purpose=announcement.purpose
            )
            self._say(f"round {announcement.id}: begun ({announcement.purpose})")
            self._status.update(state="in a round", round=announcement.id)

    def _resume(self, announcement: Announcement) -> None:
        """A steward may have signed meanwhile that a paused study goes on."""
        try:
            if pauses.take_up(self.node, announcement) is not None:
                logs.get().info("study.resumed", study=announcement.study)
                self._say(f"study {announcement.study}: goes on, as a steward has signed")
        except Refused as error:
            self._problem(error, about=announcement.study)  # the gate says that the study is paused

    def _step(self, kind: str, round_id: str, item: Mapping[str, Any]) -> None:
        runner = next((runner for runner in self._runners.values() if runner.id == round_id), None)
        if runner is None or runner.over:
            return
        try:
            getattr(runner, f"on_{kind}")(item)
        except _ENDS as error:
            self._end(runner.announcement, runner, error)

    def _close(self, round_id: str, item: Mapping[str, Any]) -> None:
        for study, runner in list(self._runners.items()):
            if runner.id == round_id:
                self._closed.append((runner, str(item.get("outcome"))))
                del self._runners[study]
                return
        # Looked up among the folders that are there: the portal's word never becomes a path.
        for run in open_runs(self.node.config.runs):
            if run.id == round_id:
                records.forget_round(self.node, run)

    # --- what training says ------------------------------------------------------------------------------------------

    def _result(self, round_id: str) -> None:
        runner = next((runner for runner in self._runners.values() if runner.id == round_id), None)
        if runner is None or runner.over:
            return
        try:
            try:
                runner.on_trained()
            except _ENDS as error:
                self._end(runner.announcement, runner, error)
        except Stopping:
            return
        except (PortalError, PortalRefused, DiskFull) as error:
            self._problem(error)
            self._later(("result", round_id))

    def _start_training(self, round_id: str) -> None:
        if Run(self.node.config.runs, round_id).result() is not None:
            # Trained before a restart: the result waits to be taken up.
            self._events.put(("result", round_id))
        elif not self._supervisor.send("train", round_id):
            self._later(("train", round_id))

    def _train_again(self, round_id: str) -> None:
        """A task that could not be sent, or was lost with its broker or worker, is made again from the round's folder."""
        for runner in self._runners.values():
            if runner.id == round_id and not runner.over and Run(self.node.config.runs, round_id).result() is None:
                self._start_training(round_id)

    def _train_all_again(self) -> None:
        """What broker or worker may have lost. One that is in the worker's hands all the same is not made twice: the second
        task finds the result."""
        for runner in list(self._runners.values()):
            self._train_again(runner.id)

    # --- processes ---------------------------------------------------------------------------------------------------

    def _restart(self, name: str) -> None:
        try:
            self._supervisor.restart(name)
        except SiloError as error:
            self._problem(error, about=status.HERE)
            self._supervisor.died(name)
            return
        if name not in ("control", RECEIVER):
            self._train_all_again()

    def _restore(self, items: list[Mapping[str, Any]]) -> None:
        """Take up the rounds that an earlier process left open; the portal's list says which are over."""
        closed = {str(item.get("round")) for item in items if item.get("kind") == "closed"}
        announced = {str(item.get("study")): str(item.get("round")) for item in items if item.get("kind") == "announce"}
        for run in open_runs(self.node.config.runs):
            raw = run.read("announce")
            if run.id in closed or (raw and announced.get(raw["study"], run.id) != run.id):
                records.forget_round(self.node, run)
            elif raw is not None and run.read("refused") is None:
                logs.get().info("round.resumed", round=run.id)
                self._act({**raw, "kind": "announce"})

    # --- helpers -----------------------------------------------------------------------------------------------------

    def _manifest(self, announcement: Announcement) -> bytes:
        path = self.node.config.studies / announcement.study / f"{announcement.manifest.removeprefix('sha256:')}.json"
        if path.exists():
            return path.read_bytes()
        data = self.node.egress.get(
            f"/api/v1/studies/{announcement.study}/manifest",
            kind="manifest",
            query={"digest": announcement.manifest},
            round_id=announcement.id,
        ).body
        if digest(data) == announcement.manifest:
            write_bytes(path, data)
        return data

    def _end(self, announcement: Announcement, runner: RoundRunner | None, error: Exception) -> None:
        """What to do about an error in a round: try again later (then it is raised), or take no further part."""
        if isinstance(error, Stopping | PortalError):
            raise error
        if isinstance(error, PortalRefused) and error.status in PASSING:
            raise error
        if isinstance(error, ProtocolViolation) or (isinstance(error, Refused) and error.code == pauses.OLDER):
            try:
                pauses.note(self.node, announcement, error)
            except DiskFull as full:
                self._problem(full)  # the note is for people; the journal goes on saying no without it
        if is_disk_full(error) and not isinstance(error, SiloError):
            error = DiskFull("The silo's disk is full.")
        self._refuse(announcement, runner, error)

    def _refuse(self, announcement: Announcement, runner: RoundRunner | None, error: Exception) -> None:
        why = reason(error)
        self._say(f"round {announcement.id}: refused - {why.sentence}")
        self._status.problem(why.code, why.sentence, about=announcement.study)
        if not isinstance(error, (Refused, ProtocolViolation)):
            logs.get().error("round.failed", round=announcement.id, error_at=error)
        if runner is not None:
            # The digests of what the others and the portal signed say who is to be asked.
            runner.refuse([why], runner.proof() if isinstance(error, ProtocolViolation) else {})
        else:
            send_refusal(self.node, announcement, context_of(announcement), [why])
        self._status.update(state="idle", round=None)

    def _clean(self) -> None:
        """End rounds that are over. After the acting, because the next round may be waiting behind it."""
        closed, self._closed = self._closed, []
        for runner, outcome in closed:
            try:
                records.note_round(self.node, runner, outcome)
            except DiskFull as error:
                # What a round was is not forgotten: noted, and its secrets destroyed, once there is room.
                self._problem(error)
                self._closed.append((runner, outcome))
                self._later(("again", None))
                continue
            if runner.verified is False:
                self._problem(
                    SiloError("SUM_UNVERIFIED", f"The sum of {runner.id} stands without a member's check word."),
                    about=runner.announcement.study,
                )
            runner.destroy()
            self._done = {key for key in self._done if key[0] != runner.id}
            self._models.keep_only(records.models_in_use(self._runners.values(), runner))
            logs.get().info(
                "round.ended",
                study=runner.announcement.study,
                round=runner.id,
                outcome="refused" if runner.stage == "refused" else outcome,
                verified=runner.verified,
            )
            self._say(f"round {runner.id}: {outcome}")
        if closed and not self._runners:
            self._status.update(state="idle", round=None)
            if scanning.erase_wanted(self.node.config):
                self._supervisor.send("erase")

    def _beats(self) -> list[Callable[[], None]]:
        return [runner.heartbeat for runner in list(self._runners.values()) if not runner.over]

    def _problem(self, error: SiloError, *, about: str = status.PORTAL) -> None:
        if self._status.problem(error.code, error.sentence, about=about):
            logs.get().warning("problem", code=error.code, sentence=error.sentence)
            self._say(f"{error.code}: {error.sentence}")

    def _later(self, event: tuple[str, Any], between: Backoff | None = None) -> None:
        timer = threading.Timer((between or self._pauses).pause(), self._events.put, [event])
        timer.daemon = True
        timer.start()

    def _ask_again(self) -> None:
        try:
            body = self.node.egress.get(ASSIGNMENTS, kind="poll", query={"wait": 0}, patience=0).json()
        except Stopping:
            return
        except (PortalError, PortalRefused, DiskFull) as error:
            self._problem(error)
            self._later(("again", None))
            return
        self._assignments(body)


def run(node: Node, *, say: Callable[[str], None] = lambda line: None) -> bool:
    """`silo run`: hold the folder's lock and work until told to stop, or until the silo has a new key.

    Returns: whether to begin anew, in a new process: with another key. Raises: AlreadyRunning, UsageError, BrokerError,
    UpgradeNeeded.
    """
    if node.pin is None:
        raise UsageError("this silo is not enrolled")
    lock = FolderLock(node.config.folder)
    try:
        # Opened now, so that files of a newer version end the start and not a round.
        _ = node.journal, node.evidence, node.egress_log
        page = node.config.settings.page
        shown = "is off" if page.off else f"at {page.origin}/"
        say(f"{node.config.name} works for {node.config.portal}; its page {shown}; Ctrl-C or SIGTERM ends it.")
        sync = Sync(node, say=say)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: sync.stop())
        signal.signal(signal.SIGHUP, lambda *_: sync.reload())
        sync.run()
        return sync.rekeyed and not sync.stopped
    finally:
        lock.release()
