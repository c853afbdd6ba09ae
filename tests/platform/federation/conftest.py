"""Whole rounds against the services: silos played with the protocol's own state machine, real database, real files.

A `Network` holds the rows of an approved study and one `PlayedSilo` a hospital. A silo reads its assignments, does what
they say, and sends what the protocol gives it, through the same function that answers HTTP requests. Nothing is mocked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from django.db import transaction
from django.utils import timezone

from benchmarks.memory_journal import MemoryJournal
from portal.actors import Subject, silo_actor
from protocol import messages
from protocol.agreed_parameters import agreed_parameters
from protocol.canonical import b64, digest, unb64
from protocol.evaluation import encode_tail
from protocol.initial_model import initial_state
from protocol.manifest import freeze, parse_manifest
from protocol.model_state import ModelState, TensorSpec
from protocol.secure_aggregation import RoundParameters, SiloRound
from protocol.secure_aggregation.words import lane, packed_bytes, signed, unpack
from protocol.server_step import apply_whole, next_scales
from protocol.signing import Envelope, SigningKey
from tests.platform.federation.played_many import ManySteps

TABLE = (TensorSpec("layer.weight", (8, 16)), TensorSpec("layer.bias", (8,)), TensorSpec("norm.mean", (4,), "local"))
BINS = 8


class PlayedSilo:
    """One hospital's node. `dead`: it does nothing. `stops_before`: kinds of messages after which it dies instead."""

    def __init__(self, network: Network, name: str, key: SigningKey) -> None:
        self.network = network
        self.name = name
        self.key = key
        self.journal = MemoryJournal()
        self.dead = False
        self.stops_before: set[str] = set()
        self.refuses: dict[str, str] = {}
        self.auc: float | None = 0.8
        self.states: dict[str, ModelState] = {}
        self.rounds: dict[str, SiloRound] = {}
        self.announced: dict[str, dict[str, Any]] = {}
        self.words: dict[str, np.ndarray] = {}
        self.published: dict[str, dict[str, Any]] = {}
        self.verified: dict[str, bool] = {}
        self.sums: dict[str, np.ndarray] = {}
        self.sent: list[tuple[str, str]] = []
        self.answers: list[dict[str, Any]] = []
        self.given: dict[str, dict[str, dict[str, Any]]] = {}

    @property
    def row(self) -> Any:
        from organisations.models import Silo

        return Silo.objects.select_related("organisation").get(name=self.name)

    # --- transport ---------------------------------------------------------------------------------------------------

    def ask(self, method: str, path: str, *, body: bytes = b"", query: str = "") -> Any:
        from federation.api import answer_for

        return answer_for(silo=self.row, method=method, path=f"/api/v1/{path}", query=query, body=body)

    def post(self, key: str, kind: str, envelope: Envelope) -> dict[str, Any] | None:
        """Send a message; None where the silo dies before it."""
        if kind in self.stops_before:
            self.dead = True
            return None
        answer = json.loads(self.ask("POST", f"rounds/{key}/{kind}", body=json.dumps(envelope.as_dict()).encode()).body)
        self.sent.append((key, kind))
        self.answers.append(answer)
        return answer

    def assignments(self) -> list[dict[str, Any]]:
        from federation.selectors.assignments import assignments_for

        return assignments_for(self.row)[1]

    # --- acting ------------------------------------------------------------------------------------------------------

    def act(self) -> bool:
        """Do what the assignments say, once each; True where something was sent."""
        before = len(self.sent)
        for task in self.assignments():
            if self.dead:
                break
            step = getattr(self, f"on_{task['kind']}", None)
            if step is not None:
                step(task)
        return len(self.sent) > before

    def parameters(self, task: dict[str, Any]) -> RoundParameters:
        manifest, training = self.network.manifest, task["purpose"] == "train"
        state = self.states.get(task["model"]) if training else None
        return agreed_parameters(
            manifest,
            digest=task["manifest"],
            number=task["number"],
            attempt=task["attempt"],
            model=task["model"],
            words=task["model_length"] if training else 0,
            segments=manifest.fixed_point().segments(state.table, state.scales) if state else (),
        )

    def machine_for(self, task: dict[str, Any]) -> SiloRound:
        return SiloRound(self.parameters(task), silo=self.name, key=self.key, journal=self.journal)

    def on_announce(self, task: dict[str, Any]) -> None:
        key = task["round"]
        if key in self.announced:
            return
        self.announced[key] = task
        if task["model"] is not None and task["model"] not in self.states:
            body = self.ask("GET", f"models/{task['model']}").body
            self.states[task["model"]] = ModelState.from_bytes(body)
        machine = self.rounds[key] = self.machine_for(task)
        if task["purpose"] in self.refuses:
            self.refuse(key, self.refuses[task["purpose"]])
        elif task["purpose"] == "initial":
            state = self.first_state()
            self.states[state.digest] = state
            self.post(key, "state", machine.sign_state(state.digest, self.network.table))
        else:
            assert len(task["states"]) >= 3, "an announcement carries t signed states of its model"
            self.post(key, "keys", machine.keys())

    def first_state(self) -> ModelState:
        scales = self.network.manifest.fixed_point().initial(self.network.table)
        return initial_state(self.network.table, self.network.seed, scales=scales)

    def refuse(self, key: str, sentence: str) -> None:
        task = self.announced[key]
        message = messages.Refusal(
            ctx=self.parameters(task).attempt_ctx.hex(),
            silo=self.name,
            roster=None,
            reasons=(messages.Reason("COHORT_SMALL", sentence),),
        )
        self.post(key, "refusal", messages.seal(message, self.key))

    def heartbeat(self, key: str, stage: str = "training") -> None:
        message = messages.Heartbeat(
            ctx=self.parameters(self.announced[key]).attempt_ctx.hex(),
            silo=self.name,
            roster=None,
            stage=stage,
            at="2026-11-23T10:00:00Z",
        )
        body = json.dumps(messages.seal(message, self.key).as_dict()).encode()
        self.ask("POST", f"rounds/{key}/heartbeat", body=body)

    def on_roster(self, task: dict[str, Any]) -> None:
        machine = self.rounds[task["round"]]
        self.post(task["round"], "bundles", machine.accept_roster(map(Envelope.from_dict, task["keys"])))

    def on_bundles(self, task: dict[str, Any]) -> None:
        boxes = {sender: unb64(box) for sender, box in task["boxes"].items()}
        self.post(task["round"], "ready", self.rounds[task["round"]].accept_bundles(boxes))

    def on_ready(self, task: dict[str, Any]) -> None:
        key, machine = task["round"], self.rounds[task["round"]]
        self.take_ready(task)
        if "chunks" in self.stops_before:
            self.dead = True
            return
        words, tail = self.update(key, machine.parameters.words)
        self.words[key] = words
        machine.begin_update(words, tail)
        self.upload(key)
        self.post(key, "update", machine.finish_update())

    def take_ready(self, task: dict[str, Any]) -> None:
        self.rounds[task["round"]].accept_ready(map(Envelope.from_dict, task["ready"]))

    def of_model(self, key: str) -> tuple[Any, Any]:
        """Table and scales of the model that a round trains."""
        state = self.states[self.announced[key]["model"]]
        return state.table, state.scales

    def update(self, key: str, d: int) -> tuple[np.ndarray, np.ndarray]:
        """A silo's own small update: different for each silo and round."""
        rng = np.random.default_rng([d, *self.name.encode(), *key.encode()])
        fixed = self.network.manifest.fixed_point()
        (bound,) = {fixed.bound(bits) * 2**bits for _, bits in fixed.segments(*self.of_model(key))} if d else {1}
        bound = min(5000, int(self.network.update_bound * bound))
        words = rng.integers(-bound, bound, d).astype(lane(fixed.word_bits))
        bins = self.network.manifest.plan.evaluation.bins
        histograms = np.ones((2, bins), dtype=np.int64)
        if self.auc is None:
            histograms[1] = 0
        return words, encode_tail(loss=0.5, auc=self.auc, histograms=histograms)

    def upload(self, key: str) -> None:
        machine = self.rounds[key]
        there = json.loads(self.ask("GET", f"rounds/{key}/update").body)["chunks"]
        for k in range(machine.parameters.chunk_count):
            if k not in there:
                self.ask("PUT", f"rounds/{key}/update/{k}", body=machine.masked_chunk(k))

    def on_list(self, task: dict[str, Any]) -> None:
        machine = self.rounds[task["round"]]
        self.post(task["round"], "list", machine.sign_list(map(Envelope.from_dict, task["updates"])))

    def on_sketch(self, task: dict[str, Any]) -> None:
        machine = self.rounds[task["round"]]
        self.post(task["round"], "sketch", machine.show_sketch(map(Envelope.from_dict, task["lists"])))

    def on_second(self, task: dict[str, Any]) -> None:
        machine = self.rounds[task["round"]]
        self.post(task["round"], "second", machine.sign_second(map(Envelope.from_dict, task["sketches"])))

    def on_unmask(self, task: dict[str, Any]) -> None:
        machine = self.rounds[task["round"]]
        self.post(task["round"], "unmask", machine.unmask(*self.lists(task)))

    def lists(self, task: dict[str, Any]) -> list[list[Envelope]]:
        return [[Envelope.from_dict(each) for each in task[kind]] for kind in ("lists", "seconds")]

    def on_sum(self, task: dict[str, Any]) -> None:
        key, facts, machine = task["round"], task["sum"], self.rounds[task["round"]]
        assert list(machine.agree(*self.lists(task))) == facts["members"]
        self.published[key] = facts
        if self.post(key, "nonce", machine.open_nonce(facts["digest"])) is not None:
            self.fetch(key)

    def fetch(self, key: str) -> bytes:
        facts = self.published[key]
        body = b"".join(self.ask("GET", f"rounds/{key}/sum", query=f"chunk={k}").body for k in range(facts["chunks"]))
        assert digest(body) == facts["digest"], "the published sum has the digest that the portal signed"
        return body

    def on_check(self, task: dict[str, Any]) -> None:
        key = task["round"]
        self.post(key, "check", self.rounds[key].send_check(map(Envelope.from_dict, task["nonces"])))

    def on_state(self, task: dict[str, Any]) -> None:
        key, facts, body = task["round"], self.published[task["round"]], self.fetch(task["round"])
        manifest = self.network.manifest
        fixed = manifest.fixed_point()
        self.sums[key] = summed = words_of(body, facts["words"], fixed.word_bits)
        tail = np.frombuffer(body[packed_bytes(facts["words"], fixed.word_bits) :], dtype="<u8")
        checks, plain = map(Envelope.from_dict, task["checks"]), signed(summed, fixed.word_bits)
        self.verified[key] = self.rounds[key].verify_sum(checks, [plain], tail)
        before = self.states[self.announced[key]["model"]]
        vector = np.empty_like(before.vector)
        apply_whole(
            before.table,
            before.vector,
            summed,
            fixed.segments(before.table, before.scales),
            total_weight=facts["total_weight"],
            server_lr=manifest.plan.strategy.server_lr,
            word_bits=fixed.word_bits,
            out=vector,
        )
        weight = facts["total_weight"]
        scales = next_scales(fixed, before.table, before.scales, summed, total_weight=weight)
        state = ModelState(before.table, vector, scales)
        self.states[state.digest] = state
        self.post(key, "state", self.rounds[key].sign_state(state.digest))


class ManySilo(ManySteps, PlayedSilo):
    """A hospital's node in a study of many."""


class Network:
    """A study that enough hospitals approve, its rows, and the silos that play it."""

    def __init__(self, n: int = 4, *, table: tuple[TensorSpec, ...] = TABLE, **settings: Any) -> None:
        from governance.models import Approval, Manifest, MatchPrediction, Study
        from organisations.models import Organisation, Silo, User

        self.table = table
        self.seed = 7
        self.update_bound = settings.pop("update_bound", 1.0)
        names = [f"site-{number}" for number in range(1, n + 1)]
        keys = {name: SigningKey.generate() for name in names}
        kind = ManySilo if n >= settings.get("sparse_from", 64) else PlayedSilo
        self.silos = {name: kind(self, name, key) for name, key in keys.items()}
        home = Organisation.objects.create(slug="office", name="Network office", country="DE")
        owner = User.objects.create_user("researcher")
        self.study = Study.objects.create(title="A study", owner=owner, organisation=home, state="active")
        body = freeze(manifest_value(self.study.pk, keys, **settings))
        self.manifest = parse_manifest(body)
        self.digest = digest(body)
        row = Manifest.objects.create(study=self.study, digest=self.digest, body=body, number=1)
        for name, key in keys.items():
            hospital = Organisation.objects.create(slug=name, name=f"Hospital {name}", country="DE")
            silo = Silo.objects.create(
                name=name, organisation=hospital, state="active", public_key=key.public, keyid=key.keyid
            )
            MatchPrediction.objects.create(manifest=row, silo=silo, decision="PERMIT")
            with transaction.atomic():
                from evidence.services import record

                entry = record(
                    type="study.approved",
                    actor=silo_actor(name, name),
                    subject=Subject("study", self.study.pk, self.digest),
                )
                Approval.objects.create(
                    manifest=row,
                    silo=silo,
                    decision="approve",
                    envelope={},
                    digest=digest(name.encode()),
                    entry=entry,
                )
        self.activate = settings.get("activate", True)

    # --- what the portal sees ----------------------------------------------------------------------------------------

    def start(self) -> Any:
        """Publish the log, announce the first round."""
        from evidence.services import sequence
        from federation.services.activation import study_activate

        sequence()
        return study_activate(study=self.study)

    @property
    def rounds(self) -> list[Any]:
        from federation.models import Round

        return list(Round.objects.select_related("manifest", "study").filter(study=self.study).order_by("pk"))

    @property
    def round(self) -> Any:
        return self.rounds[-1]

    @property
    def state(self) -> str:
        from governance.models import Study

        return Study.objects.values_list("state", flat=True).get(pk=self.study.pk)

    def alive(self) -> list[PlayedSilo]:
        return [silo for silo in self.silos.values() if not silo.dead]

    # --- playing -----------------------------------------------------------------------------------------------------

    def play(self, *, until: Any = None, steps: int = 400) -> None:
        """Let every silo act, one after the other, until nobody has anything to do (or `until` says so)."""
        for _ in range(steps):
            moved = False
            for silo in self.alive():
                moved = silo.act() or moved
                if until is not None and until(self):
                    return
            if not moved:
                return
        raise AssertionError("the silos go on and on")

    def later(self, seconds: float) -> list[str]:
        """The sweep as it would run in so many seconds; who lives has sent a heartbeat just before."""
        from federation.models import Seat
        from federation.services.sweep import sweep

        now = timezone.now() + timedelta(seconds=seconds)
        alive = [silo.name for silo in self.alive()]
        Seat.objects.filter(round=self.round, silo__name__in=alive).update(seen_at=now)
        return sweep(now)

    def go_on(self, *, until: Any = None, tries: int = 12) -> None:
        """Play; where a silo is waited for in vain, let ten seconds pass; until nothing moves any more."""
        for _ in range(tries):
            self.play(until=until)
            if until is not None and until(self):
                return
            if not self.later(11):
                return

    def plain_sum(self, key: str, members: Iterable[str]) -> np.ndarray:
        """The ring sum of the members' words: what the masked sum must equal."""
        total = np.zeros_like(next(iter(self.silos.values())).words[key])
        for name in members:
            total += self.silos[name].words[key]
        return total

    def stored_sum(self, item: Any) -> np.ndarray:
        """The body of the published sum, from the chunk store."""
        from federation.services.facts import parameters_of
        from federation.storage import SUM, chunk_path

        parameters = parameters_of(item)
        body = [chunk_path(item.key, SUM, k).read_bytes() for k in range(parameters.chunk_count)]
        return words_of(b"".join(body), parameters.words, parameters.word_bits)


def words_of(body: bytes, d: int, word_bits: int) -> np.ndarray:
    """The body words (lanes) of a published sum. A full chunk has an even number of words, so chunks join up."""
    return unpack(body[: packed_bytes(d, word_bits)], word_bits)


def manifest_value(study: str, keys: dict[str, SigningKey], **settings: Any) -> dict[str, Any]:
    """A manifest for these silos. `settings`: max_rounds, patience, min_delta, min_participants, initial, weights, .."""
    weights = settings.get("weights", {})
    today = timezone.now().date()
    return {
        "schema": "consilium/manifest/1",
        "study": study,
        "title": "A study",
        "summary": "",
        "purpose": {
            "kind": "general",
            "diseases": [],
            "methods": False,
            "commercial": False,
            "all_non_profit": True,
            "genetic": False,
            "ethics": None,
            "countries": ["DE"],
            "accepts": [],
        },
        "cohort": {"modalities": ["CR", "DX"], "min_patients": 1},
        "plan": {
            "network": {"name": "constant", "args": {"parameters": 136}},
            "input": {"size": [64, 64], "channels": 1, "window": "full"},
            "transforms": [],
            "task": "binary",
            "loss": "bce",
            "optimiser": {"name": "adam", "lr": 0.001, "weight_decay": 0.0},
            "batch": 32,
            "local_epochs": 1,
            "strategy": {"name": "fedavg", "server_lr": 1.0},
            "personalisation": "none",
            "frozen": [],
            "stopping": {
                "max_rounds": settings.get("max_rounds", 2),
                "patience": settings.get("patience"),
                "min_delta": settings.get("min_delta", 0.0),
                "worse_by": settings.get("worse_by"),
            },
            "evaluation": {"bins": settings.get("bins", BINS)},
            "initial": settings.get("initial", {"kind": "seed", "seed": 7}),
        },
        "aggregation": {
            "protocol": "consilium-secagg/1",
            "min_roster": settings.get("min_roster", 3),
            "min_participants": settings.get("min_participants", 3),
            "word_bits": settings.get("word_bits", 32),
            "fraction_bits": settings.get("fraction_bits", 16),
            "clip_norm": settings.get("clip_norm", 10.0),
            "error_feedback": settings.get("error_feedback", False),
            "sketch": settings.get("sketch", False),
            "check_words": settings.get("check_words", "required"),
            "sparse_from": settings.get("sparse_from", 64),
            "drawn": settings.get("drawn"),
        },
        "privacy": {"mode": "none"},
        "participants": [
            {
                "silo": name,
                "organisation": f"Hospital {name}",
                "country": "DE",
                "public": b64(key.public),
                "weight": weights.get(name, 1),
            }
            for name, key in sorted(keys.items())
        ],
        "limits": {
            "round_seconds": settings.get("round_seconds", 600),
            "unmask_seconds": settings.get("unmask_seconds", 86400),
        },
        "dates": {"start": str(today), "end": str(today + timedelta(days=365))},
        "log": {"vkey": log_vkey()},
        "witnesses": {"vkeys": [], "false": 0},
    }


def log_vkey() -> str:
    from portal.keys import log_vkey as vkey

    return vkey()


@pytest.fixture
def eager() -> Iterator[None]:
    """Celery's tasks run where they are sent, after the commit."""
    from portal.celery import app

    before = app.conf.task_always_eager, app.conf.task_eager_propagates
    app.conf.task_always_eager, app.conf.task_eager_propagates = True, True
    yield
    app.conf.task_always_eager, app.conf.task_eager_propagates = before


@pytest.fixture
def network(transactional_db: Any, portal_home: Any, eager: None) -> Any:
    """network(n, **settings) -> a started Network."""

    def make(n: int = 4, **settings: Any) -> Network:
        world = Network(n, **settings)
        world.start()
        return world

    return make
