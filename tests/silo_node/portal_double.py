"""A small portal for tests of the silo: the node API over real HTTP, with partners that live in this process.

It signs, logs, proves and sums as the portal does (`Coordinator`, tiles, proofs are the real ones), keeps everything it
receives, and can be told to lie (`tamper`), to fail (`fault`) or to lose a partner (`absent`). The silo under test runs
as it is, over sockets.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import numpy as np

from benchmarks.memory_journal import MemoryJournal
from protocol import canonical
from protocol.agreed_parameters import agreed_parameters
from protocol.canonical import b64, digest, unb64
from protocol.evaluation import encode_tail
from protocol.initial_model import initial_state
from protocol.key_rotation import verify_rotation
from protocol.manifest import freeze, parse_manifest
from protocol.messages import State, Update
from protocol.model_state import ModelState, TensorSpec
from protocol.secure_aggregation import Coordinator, SiloRound, threshold
from protocol.secure_aggregation import words as word_sizes
from protocol.secure_aggregation.errors import ProtocolViolation
from protocol.secure_aggregation.words import lane, pack, unpack
from protocol.server_step import apply, next_scales
from protocol.signing import Envelope, SignatureError, SigningKey, keyid, sign_answer, sign_envelope, verify_request
from protocol.transparency.note import Checkpoint, LogKey, sign_checkpoint
from protocol.transparency.proof import make_proof
from protocol.transparency.tiles import append, inclusion_from_tiles

TOKEN = "one-time-token"
ORDER = ("keys", "row", "bundles", "ready", "update", "list", "sketch", "second", "unmask", "nonce", "check", "state")
AFTER_LIST = ORDER[ORDER.index("sketch") :]
SUM_TYPE = "application/vnd.consilium.round.sum+json"
CHUNK = 4 << 20
_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
"""Of Linux; the module `socket` has no names for them."""


class MemoryTiles:
    """The portal log's files."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def read(self, path: str) -> bytes | None:
        return self.files.get(path)

    def write(self, path: str, data: bytes) -> None:
        self.files[path] = data


class Refusal(Exception):
    """A problem document."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(code)
        self.status, self.code, self.detail = status, code, detail


@dataclass
class Partner:
    """Another hospital's silo, played with the protocol's own state machine."""

    name: str
    key: SigningKey = field(default_factory=SigningKey.generate)
    journal: MemoryJournal = field(default_factory=MemoryJournal)
    machine: SiloRound | None = None


@dataclass
class Received:
    """One request of the silo under test."""

    method: str
    path: str
    body: bytes
    at: float


class PlayedRound:
    """One attempt at the portal: messages by kind and silo, chunks by silo."""

    MACHINE = SiloRound

    def __init__(self, double: PortalDouble, number: int, attempt: int, purpose: str, model: str | None) -> None:
        self.double, self.number, self.attempt, self.purpose, self.model = double, number, attempt, purpose, model
        manifest = double.manifest
        self.id = f"{manifest.study}.{number}.{attempt}"
        state = double.states[model] if purpose == "train" else None
        segments = manifest.fixed_point().segments(state.table, state.scales) if state else ()
        self.parameters = agreed_parameters(
            manifest,
            digest=double.manifest_digest,
            number=number,
            attempt=attempt,
            model=model,
            words=sum(size for size, _ in segments),
            segments=segments,
        )
        without = ("row",) if self.parameters.sketch else ("row", "sketch", "second")
        without += () if purpose == "train" else ("state",)
        self.order = ("state",) if purpose == "initial" else tuple(kind for kind in ORDER if kind not in without)
        self.coordinator = Coordinator(self.parameters)
        self.stage = "state" if purpose == "initial" else "keys"
        self.mail: dict[str, dict[str, Envelope]] = {kind: {} for kind in (*ORDER, "refusal", "metrics", "heartbeat")}
        self.chunks: dict[str, dict[int, bytes]] = {}
        self.fixed: dict[str, list[Envelope]] = {}
        self.members: list[str] = []
        self.sum: dict[str, Any] | None = None
        self.signed_sum: dict[str, Any] | None = None
        self.summed: list[bytes] = []
        self.next_state: ModelState | None = None
        self.reason: str | None = None

    # --- who, what ---------------------------------------------------------------------------------------------------

    def expected(self) -> set[str]:
        """Whose answer is waited for in this stage."""
        if self.stage == self.order[0]:
            asked = set(self.parameters.participants)
        elif self.stage in ("bundles", "ready", "update"):
            asked = set(self.mail[self.order[self.order.index(self.stage) - 1]])
        else:
            asked = set(self.members)
        return asked - set(self.mail["refusal"]) - self.double.absent_from(self.stage)

    def roster(self) -> Any:
        return self.coordinator.roster(self._sorted("keys"))

    def _sorted(self, kind: str) -> list[Envelope]:
        return [self.mail[kind][silo] for silo in sorted(self.mail[kind])]

    def members_of(self, kind: str) -> list[Envelope]:
        """Those that came in time; before the stage was left, those that are there."""
        return self.fixed.get(kind) or self._sorted(kind)

    def deliver(self, kind: str, silo: str, envelope: Envelope) -> None:
        """A message of a silo: checked as the portal does, stored once."""
        held = self.mail[kind].get(silo)
        if held is not None:
            if held.payload != envelope.payload and kind not in ("heartbeat", "refusal"):
                raise Refusal(409, "MESSAGE_DIFFERS", "another message is stored")
            return
        if kind in ORDER and kind != self.stage:
            late = self.stage in self.order and ORDER.index(self.stage) > ORDER.index(kind)
            if not (late and kind in ("list", *AFTER_LIST)):
                raise Refusal(409, "OUT_OF_STAGE", f"the round is in {self.stage}")
        try:
            self._check(kind, envelope)
        except (ProtocolViolation, SignatureError) as error:
            raise Refusal(422, "BAD_MESSAGE", str(error)) from error
        self.mail[kind][silo] = envelope
        if kind == self.stage or kind == "refusal":
            self.advance()

    def _check(self, kind: str, envelope: Envelope) -> None:
        if kind == "keys":
            self.coordinator.check_keys(envelope)
        elif kind == "bundles":
            self.coordinator.check_bundles(self.roster(), envelope)
        elif kind == "ready":
            self.coordinator.check_ready(self.roster(), envelope)
        elif kind == "update":
            sender = self.coordinator.check_update(self.roster(), self._sorted("ready"), envelope)
            signed = Update.parse(envelope.payload).chunks
            stored = self.chunks.get(sender, {})
            if any(digest(stored[k]) != signed[k] for k in range(self.parameters.chunk_count)):
                raise Refusal(409, "CHUNK_DIFFERS", "the stored chunks are not those that the update signs")
        elif kind == "list":
            self.coordinator.check_list(self.roster(), self._sorted("ready"), self.members_of("update"), envelope)
        elif kind == "sketch":
            self.coordinator.check_sketch(*self._sets("ready", "list"), envelope)
        elif kind == "second":
            self.coordinator.check_second(*self._sets("ready", "list", "sketch"), envelope)
        elif kind == "unmask":
            self.coordinator.check_unmask(*self._sets("ready", "list"), envelope, self.members_of("second"))
        elif kind == "nonce":
            self.coordinator.check_nonce(*self._sets("ready"), self._final(), self.published, envelope)
        elif kind == "check":
            self.coordinator.check_check(self.roster(), self._final(), self.published, self._nonces(), envelope)

    def _sets(self, *kinds: str) -> tuple[Any, ...]:
        return self.roster(), *(self.members_of(kind) for kind in kinds)

    def _final(self) -> Any:
        return self.coordinator.final(*self._sets("ready", "list"), self.members_of("second"))

    def _nonces(self) -> Any:
        return self.coordinator.nonces(*self._sets("ready"), self._final(), self.published, self.members_of("nonce"))

    @property
    def published(self) -> str:
        """Digest of the published sum."""
        assert self.sum is not None
        return str(self.sum["digest"])

    def words(self) -> tuple[list[Any], Any]:
        """The published sum: its body as signed words in blocks, its tail."""
        bits = self.parameters.word_bits
        body = [word_sizes.signed(unpack(piece, bits), bits) for piece in self.summed[:-1]]
        return body, np.frombuffer(self.summed[-1], "<u8")

    # --- going on ----------------------------------------------------------------------------------------------------

    def advance(self) -> None:
        while self.stage in self.order and self.expected() <= set(self.mail[self.stage]) and self.mail[self.stage]:
            left = self.stage
            self.fixed[left] = self._sorted(left)
            self._leave(left)
            after = (*self.order, "finished")
            if self.stage == left:
                self.stage = after[after.index(left) + 1]
            self.double.changed()
            self.partners_act()

    def _leave(self, stage: str) -> None:
        if stage == "update":
            self.members = sorted(self.mail["update"])
        elif stage == "sketch":
            _, verdict = self.coordinator.judge(*self._sets("ready", "list", "sketch"))
            self.members = list(verdict.members)
        elif stage == "unmask":
            self._sum()
            if self.parameters.sketch is not None and not self.double.lying:
                self.coordinator.sketch_of_sum(*self._sets("ready", "list", "sketch"), self.words()[0])
        elif stage == "check" and not self.double.lying:
            nonces, checks = self._nonces(), self.members_of("check")
            try:
                self.coordinator.check_sum(self.roster(), self._final(), self.published, nonces, checks, *self.words())
            except ProtocolViolation as error:
                self.stage, self.reason = "failed", error.code
        elif stage == "state":
            self._finish()

    def partners_act(self) -> None:
        for partner in self.double.partners.values():
            if (
                self.stage in self.order
                and partner.name in self.expected()
                and partner.name not in self.mail[self.stage]
            ):
                self.deliver(self.stage, partner.name, self._answer(partner))
                return self.partners_act()
        return None

    def _answer(self, partner: Partner) -> Envelope:
        if self.stage == "state":
            return self._state_of(partner)
        if self.stage == "keys":
            partner.machine = self.MACHINE(self.parameters, silo=partner.name, key=partner.key, journal=partner.journal)
            return partner.machine.keys()
        machine = partner.machine
        assert machine is not None
        if self.stage == "bundles":
            return machine.accept_roster(self._sorted("keys"))
        if self.stage == "ready":
            return machine.accept_bundles(
                self.coordinator.boxes_for(self.roster(), self._sorted("bundles"), partner.name)
            )
        if self.stage == "update":
            machine.accept_ready(self._sorted("ready"))
            words = np.full(self.parameters.words, self.double.partner_word, dtype=lane(self.parameters.word_bits))
            bins = self.double.manifest.plan.evaluation.bins
            machine.begin_update(words, encode_tail(loss=None, auc=None, histograms=np.zeros((2, bins), np.int64)))
            self.chunks[partner.name] = {k: machine.masked_chunk(k) for k in range(self.parameters.chunk_count)}
            return machine.finish_update()
        if self.stage == "list":
            return machine.sign_list(self.members_of("update"))
        if self.stage == "sketch":
            return machine.show_sketch(self.members_of("list"))
        if self.stage == "second":
            return machine.sign_second(self.members_of("sketch"))
        if self.stage == "unmask":
            return machine.unmask(self.members_of("list"), self.members_of("second"))
        if self.stage == "nonce":
            machine.agree(self.members_of("list"), self.members_of("second"))
            return machine.open_nonce(self.published)
        assert self.stage == "check"
        return machine.send_check(self.members_of("nonce"))

    def _state_of(self, partner: Partner) -> Envelope:
        if self.purpose == "initial":
            machine = self.MACHINE(self.parameters, silo=partner.name, key=partner.key, journal=partner.journal)
            return machine.sign_state(self.double.first.digest, self.double.first.table)
        assert partner.machine is not None and self.next_state is not None
        if not self.double.lying:
            assert partner.machine.verify_sum(self.members_of("check"), *self.words()) is not None
        return partner.machine.sign_state(self.next_state.digest)

    def _sum(self) -> None:
        removal = self._removal()
        self.summed = []
        for k in range(self.parameters.chunk_count):
            total = removal.sum_chunk(k, (self.chunks[silo][k] for silo in self.members))
            self.summed.append(bytes(pack(total, self.parameters.bits(k))))
        self.publish()

    def _removal(self) -> Any:
        return self.coordinator.recover(*self._sets("ready", "list", "unmask"), self.members_of("second"))

    def publish(self) -> None:
        """Bind the portal to the sum as it lies here."""
        self.double.sums[self.number] = self.summed
        weight = self.double.manifest.total_weight(self.members)
        self.sum = {
            "digest": digest(b"".join(self.summed)),
            "words": self.parameters.words,
            "tail": self.parameters.tail,
            "chunks": self.parameters.chunk_count,
            "members": self.members,
            "total_weight": weight,
        }
        payload = canonical.encode({"schema": "consilium/round/sum/1", "ctx": self.parameters.ctx.hex(), **self.sum})
        self.signed_sum = sign_envelope(SUM_TYPE, payload, self.double.answer_key).as_dict()
        if self.purpose == "train":
            state, fixed = self.double.states[self.model], self.double.manifest.fixed_point()
            summed = np.concatenate([unpack(piece, self.parameters.word_bits) for piece in self.summed[:-1]])
            vector = apply(
                state.vector,
                summed,
                fixed.segments(state.table, state.scales),
                total_weight=weight,
                server_lr=self.double.manifest.plan.strategy.server_lr,
                word_bits=self.parameters.word_bits,
            )
            scales = next_scales(fixed, state.table, state.scales, summed, total_weight=weight)
            self.next_state = ModelState(state.table, vector, scales)

    def _finish(self) -> None:
        least = threshold(len(self.parameters.participants if self.purpose == "initial" else self.mail["keys"]))
        state = self.double.first if self.purpose == "initial" else self.next_state
        assert state is not None
        said = {silo: State.parse(env.payload).state for silo, env in self.mail["state"].items()}
        agreed = [silo for silo, value in sorted(said.items()) if value == state.digest]
        assert len(agreed) >= least, said
        self.double.states[state.digest] = state
        self.double.origins[state.digest] = {
            "manifest": self.double.manifest_digest,
            "number": self.number,
            "attempt": self.attempt,
            "model": self.model,
        }
        self.double.signatures[state.digest] = [self.mail["state"][silo].as_dict() for silo in agreed]

    # --- what the silo under test is told ----------------------------------------------------------------------------

    def assignments(self, silo: str) -> list[dict[str, Any]]:
        double = self.double
        if self.stage in ("finished", "failed"):
            return [{"kind": "closed", "round": self.id, "outcome": self.stage, "reason": self.reason}]
        if silo in self.mail["refusal"]:
            return []
        found: list[dict[str, Any]] = []
        last = "state" if self.purpose == "initial" else "update"
        setup = self.purpose == "initial" or self.stage in ("keys", "row", "bundles", "ready", "update")
        if setup and silo not in self.mail[last]:
            found.append(
                {
                    "kind": "announce",
                    "round": self.id,
                    "study": double.manifest.study,
                    "manifest": double.manifest_digest,
                    "number": self.number,
                    "attempt": self.attempt,
                    "model": self.model,
                    "purpose": self.purpose,
                    "deadline": "2099-01-01T00:00:00Z",
                    "record": b64(double.approval_record),
                    "proof": double.proof(),
                    "states": double.signatures.get(self.model or "", []),
                    "origin": double.origins.get(self.model, double.first_origin) if self.model else None,
                    "model_length": self.parameters.words,
                    "participants_approved": sorted(self.parameters.participants),
                }
            )
        if (self.stage in self.mail and silo in self.mail[self.stage]) or self.purpose == "initial":
            return found
        task = self._told(silo)
        return [*found, {**task, "round": self.id}] if task else found

    def _told(self, silo: str) -> dict[str, Any] | None:
        """The assignment of the stage itself."""
        dicts = lambda envelopes: [envelope.as_dict() for envelope in envelopes]  # noqa: E731
        if self.stage == "bundles":
            return {"kind": "roster", "keys": dicts(self._sorted("keys"))}
        if self.stage == "ready":
            boxes = self.coordinator.boxes_for(self.roster(), self._sorted("bundles"), silo)
            return {"kind": "bundles", "boxes": {sender: b64(box) for sender, box in boxes.items()}}
        if self.stage == "update":
            return {"kind": "ready", "ready": dicts(self._sorted("ready"))}
        if silo not in self.members:
            return None
        lists = {"lists": dicts(self.members_of("list")), "seconds": dicts(self.members_of("second"))}
        told: dict[str, dict[str, Any]] = {
            "list": {"kind": "list", "updates": dicts(self.members_of("update"))},
            "sketch": {"kind": "sketch", "lists": lists["lists"]},
            "second": {"kind": "second", "sketches": dicts(self.members_of("sketch"))},
            "unmask": {"kind": "unmask", **lists},
            "nonce": {"kind": "sum", "sum": self.sum, "portal_signature": self.signed_sum, **lists},
            "check": {"kind": "check", "nonces": dicts(self.members_of("nonce"))},
            "state": {"kind": "state", "checks": dicts(self.members_of("check"))},
        }
        return told.get(self.stage)


class PortalDouble:
    """The portal. `silo`: the name of the silo under test; `partners`: the others, played here."""

    def __init__(self, *, silo: str = "site-1", partners: int = 3, parameters: int = 1000, rounds: int = 2) -> None:
        self.silo = silo
        self.public: bytes | None = None
        self.trust: dict[str, Any] | None = None
        self.partners = {f"site-{n}": Partner(f"site-{n}") for n in range(2, 2 + partners)}
        self.parameters_count, self.rounds = parameters, rounds
        self.answer_key = SigningKey.generate()
        self.log_key = LogKey("test.example/audit", SigningKey.generate())
        self.tiles, self.log_size, self.note = MemoryTiles(), 0, ""
        self.partner_word = 1 << 10
        self.states: dict[str | None, ModelState] = {}
        self.signatures: dict[str, list[dict[str, Any]]] = {}
        self.origins: dict[str | None, dict[str, Any]] = {}
        self.sums: dict[int, list[bytes]] = {}
        self.played: list[PlayedRound] = []
        self.policies: list[dict[str, Any]] = []
        self.approvals: list[dict[str, Any]] = []
        self.silo_notes: list[str] = []
        self.received: list[Received] = []
        self.absent: dict[str, str] = {}
        """silo -> the kind before which it falls silent."""
        self.away: dict[str, set[str]] = {}
        """silo -> the kinds in which it is not waited for."""
        self.lying = False
        """While true, portal and partners look at no sum themselves."""
        self.tamper: Callable[[dict[str, Any]], dict[str, Any]] = lambda assignment: assignment
        self.fault: Callable[[str, str], int | None] = lambda method, path: None
        """(method, path) -> an HTTP status to answer unsigned, 0 to cut the connection, None to work."""
        self.answer_tamper: Callable[[str, bytes], bytes] = lambda path, body: body
        """Changes a body after it was signed."""
        self.clock_shift = 0.0
        self.pending = self.in_round = False
        self.holding = False
        """While true, no round follows the last one."""
        self.back_to: str | None = None
        """The model from which the next round starts, in place of the newest."""
        self.manifest_bytes = b""
        self.version = 0
        self.condition = threading.Condition(threading.RLock())
        self.log_append({"type": "log.genesis"})
        self.open: set[socket.socket] = set()
        """Connections of the silo."""
        self._serve(0)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def _serve(self, port: int) -> None:
        handler = type("Handler", (_Handler,), {"double": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    # --- faults ------------------------------------------------------------------------------------------------------

    def die(self) -> None:
        """As killed: the kernel cuts every connection and refuses new ones."""
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.close()
        for each in list(self.open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def live(self) -> None:
        """Started again, at the same address."""
        self._serve(self.server.server_address[1])

    def deaf(self) -> None:
        """The network towards the portal loses every packet, and says nothing: no connection is cut or refused."""
        # A filter of one BPF instruction, "return 0": the kernel takes none of the socket's packets, not even to answer.
        drop = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
        program = struct.pack("HP", 1, ctypes.addressof(drop))
        for each in (self.server.socket, *list(self.open)):
            each.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)

    def hear(self) -> None:
        """The network is back."""
        for each in (self.server.socket, *list(self.open)):
            with contextlib.suppress(OSError):
                each.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)

    # --- study -------------------------------------------------------------------------------------------------------

    def make_study(self, **changes: Any) -> str:
        """Freeze a study of the constant network; `changes` replace top-level members, of `aggregation` those it names."""
        aggregation = changes.pop("aggregation", {})
        today = datetime.now(UTC).date()
        everybody = {self.silo: self.public, **{name: each.key.public for name, each in self.partners.items()}}
        document: dict[str, Any] = {
            "schema": "consilium/manifest/1",
            "study": "st-abcdefghijklmnop",
            "title": "A constant",
            "summary": "Adds a constant to every weight.",
            "purpose": {
                "kind": "hmb",
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
                "network": {"name": "constant", "args": {"parameters": self.parameters_count}},
                "input": {"size": [64, 64], "channels": 1, "window": "full"},
                "transforms": [],
                "task": "binary",
                "loss": "bce",
                "optimiser": {"name": "sgd", "lr": 0.1, "weight_decay": 0.0},
                "batch": 32,
                "local_epochs": 1,
                "strategy": {"name": "fedavg", "server_lr": 1.0},
                "personalisation": "none",
                "frozen": [],
                "stopping": {"max_rounds": self.rounds, "patience": None, "min_delta": 0.0, "worse_by": None},
                "evaluation": {"bins": 8},
                "initial": {"kind": "seed", "seed": 1},
            },
            "aggregation": {
                "protocol": "consilium-secagg/1",
                "min_roster": 3,
                "min_participants": 3,
                "word_bits": 32,
                "fraction_bits": 16,
                "clip_norm": 100.0,
                "error_feedback": False,
                "sketch": False,
                "check_words": "required",
                "sparse_from": 64,
                "drawn": None,
                **aggregation,
            },
            "privacy": {"mode": "none"},
            "participants": [
                {"silo": name, "organisation": f"Hospital {name}", "country": "DE", "public": b64(public), "weight": 1}
                for name, public in sorted(everybody.items())
            ],
            "limits": {"round_seconds": 600, "unmask_seconds": 86400},
            "dates": {"start": today.isoformat(), "end": (today + timedelta(days=30)).isoformat()},
            "log": {"vkey": self.log_key.vkey},
            "witnesses": {"vkeys": [], "false": 0},
            **changes,
        }
        self.manifest_bytes = freeze(document)
        self.manifest = parse_manifest(self.manifest_bytes)
        self.manifest_digest = digest(self.manifest_bytes)
        table = (TensorSpec("constant", (self.parameters_count,), "shared"),)
        self.first = initial_state(table, 1, scales=self.manifest.fixed_point().initial(table))
        self.changed()
        return self.manifest.study

    @property
    def first_origin(self) -> dict[str, Any]:
        """Where the first model is made."""
        return {"manifest": self.manifest_digest, "number": 0, "attempt": 1, "model": None}

    def approved(self, envelope: dict[str, Any]) -> None:
        """Log an approval as the portal does."""
        self.approvals.append(envelope)
        opened = Envelope.from_dict(envelope)
        statement = json.loads(opened.payload)
        kind = "study.approved" if statement["decision"] == "approve" else "study.rejected"
        index = self.log_append(
            {
                "type": kind,
                "outcome": "success",
                "refs": {"manifest": statement["manifest"], "approval": opened.digest},
                "data": {"silo": self.silo},
            }
        )
        if kind == "study.approved":
            self.approval_record, self.approval_index = self.entries[index], index

    def play(self, *what: Any) -> PlayedRound:
        """A round in the protocol that the manifest asks for."""
        if self.manifest.sparse:
            from tests.silo_node.portal_many import PlayedMany

            return PlayedMany(self, *what)
        return PlayedRound(self, *what)

    def begin(self) -> None:
        """Announce the first round; the others follow by themselves."""
        with self.condition:
            self.played.append(self.play(0, 1, "initial", None))
            self.changed()
            self.played[-1].partners_act()

    def follow(self) -> None:
        """After a finished round: the next one."""
        last = self.played[-1]
        if self.holding or last.stage != "finished" or last.purpose == "evaluate":
            return
        model, self.back_to = self.back_to or next(reversed(self.states)), None
        purpose = "train" if last.number < self.rounds else "evaluate"
        self.played.append(self.play(last.number + 1, 1, purpose, model))
        self.changed()
        self.played[-1].partners_act()

    def go_on(self, *, hold: bool = False) -> None:
        """Announce the round that was held back. hold: none follows it."""
        with self.condition:
            self.holding = False
            self.follow()
            self.holding = hold

    def again(self) -> None:
        """Give the newest round up and announce its next attempt."""
        with self.condition:
            last = self.played[-1]
            last.stage = "failed"
            self.played.append(self.play(last.number, last.attempt + 1, last.purpose, last.model))
            self.changed()
            self.played[-1].partners_act()

    def absent_from(self, kind: str) -> set[str]:
        silent = {name for name, before in self.absent.items() if ORDER.index(before) <= ORDER.index(kind)}
        return silent | {name for name, kinds in self.away.items() if kind in kinds}

    def changed(self) -> None:
        with self.condition:
            self.version += 1
            self.condition.notify_all()

    def wait(self, ready: Callable[[], Any], seconds: float = 30.0) -> Any:
        """Wait for something to become true here; it is looked at whenever something changes."""
        end = time.monotonic() + seconds
        with self.condition:
            while not (found := ready()):
                if not self.condition.wait(timeout=end - time.monotonic()) and time.monotonic() > end:
                    raise AssertionError(f"not within {seconds} s; rounds: {[(r.id, r.stage) for r in self.played]}")
            return found

    def round(self, number: int, attempt: int = 1) -> PlayedRound | None:
        return next((r for r in self.played if (r.number, r.attempt) == (number, attempt)), None)

    def finished(self, number: int) -> bool:
        return any(r.number == number and r.stage == "finished" for r in self.played)

    def refused(self) -> list[tuple[str, str]]:
        """(code, sentence) of every refusal of the silo under test."""
        return [
            (reason["code"], reason["sentence"])
            for played in self.played
            for envelope in [played.mail["refusal"].get(self.silo)]
            if envelope is not None
            for reason in json.loads(envelope.payload)["reasons"]
        ]

    # --- log ---------------------------------------------------------------------------------------------------------

    entries: list[bytes]

    def log_append(self, record: dict[str, Any]) -> int:
        data = canonical.encode(record)
        self.entries = [*getattr(self, "entries", []), data]
        self.log_size, root = append(self.tiles, self.log_size, [data])
        self.note = sign_checkpoint(Checkpoint(self.log_key.origin, self.log_size, root), self.log_key)
        return self.log_size - 1

    def rewrite_log(self) -> None:
        """Another history of the same length, signed by the same key: its first entry says something else."""
        self.entries = [canonical.encode({"type": "log.genesis", "data": {"told": "otherwise"}}), *self.entries[1:]]
        self.tiles = MemoryTiles()
        self.log_size, root = append(self.tiles, 0, self.entries)
        self.note = sign_checkpoint(Checkpoint(self.log_key.origin, self.log_size, root), self.log_key)

    def proof(self) -> str:
        hashes = inclusion_from_tiles(self.tiles, self.approval_index, self.log_size)
        return make_proof(self.approval_index, hashes, self.note)

    # --- requests ----------------------------------------------------------------------------------------------------

    def answer(
        self, method: str, path: str, query: dict[str, str], body: bytes, silo: str
    ) -> tuple[bytes, dict[str, str]]:
        parts = path.removeprefix("/api/v1/").split("/")
        match (method, *parts):
            case ("GET", "silo", "assignments"):
                return self._assignments(query, silo), {}
            case ("PUT", "silo", "policy"):
                self.policies.append(json.loads(body))
                return b"{}", {}
            case ("PUT", "silo", "trust"):
                self.trust = json.loads(body)["versions"][-1]
                return b"{}", {}
            case ("GET", "studies", _, "manifest"):
                return self.manifest_bytes, {}
            case ("PUT", "studies", _, "approval"):
                self.approved(json.loads(body))
                self.changed()
                return b"{}", {}
            case ("GET", "log", "checkpoint"):
                return self.note.encode(), {}
            case ("GET", "log", "tile", *rest):
                data = self.tiles.read("/".join(["tile", *rest]))
                if data is None:
                    raise Refusal(404, "NOT_FOUND", "no such tile")
                return data, {}
            case ("POST", "log", "silo-checkpoint"):
                self.silo_notes.append(json.loads(body)["note"])
                self.changed()
                return b"{}", {}
            case ("GET", "models", name):
                data = self.states["sha256:" + name].to_bytes()
                k = int(query.get("chunk", "0"))
                return data[k * CHUNK : (k + 1) * CHUNK], {"X-Chunks": str(-(-len(data) // CHUNK))}
            case (_, "rounds", round_id, *rest):
                return self._round(method, round_id, rest, query, body, silo), {}
        raise Refusal(404, "NOT_FOUND", path)

    def _round(
        self, method: str, round_id: str, rest: list[str], query: dict[str, str], body: bytes, silo: str
    ) -> bytes:
        with self.condition:
            played = next((r for r in self.played if r.id == round_id), None)
            if played is None:
                raise Refusal(404, "NOT_YOUR_STUDY", round_id)
            if method == "GET" and rest == ["entries"]:
                return played.entries(query["set"], unquote(query["silos"]).split(","))
            if method == "GET" and rest == ["sum"]:
                return played.summed[int(query["chunk"])]
            if method == "GET" and rest == ["update"]:
                return json.dumps({"chunks": sorted(played.chunks.get(silo, {}))}).encode()
            if method == "PUT":
                if played.stage != "update":
                    raise Refusal(409, "OUT_OF_STAGE", played.stage)
                held = played.chunks.setdefault(silo, {})
                if held.setdefault(int(rest[1]), body) != body:
                    raise Refusal(409, "CHUNK_DIFFERS", "other bytes are stored")
                self.changed()
                return b"{}"
            played.deliver(rest[0], silo, Envelope.from_dict(json.loads(body)))
            self.follow()
            self.changed()
            return b"{}"

    def _assignments(self, query: dict[str, str], silo: str) -> bytes:
        end = time.monotonic() + float(query.get("wait", "0"))
        with self.condition:
            while str(self.version) == query.get("after") and (left := end - time.monotonic()) > 0:
                self.condition.wait(left)
            found: list[dict[str, Any]] = []
            if self.manifest_bytes and not self.approvals:
                found.append(
                    {
                        "kind": "study",
                        "study": self.manifest.study,
                        "manifest": self.manifest_digest,
                        "title": self.manifest.title,
                        "state": "approved",
                    }
                )
            if self.manifest_bytes and self.manifest.public_keys().get(silo, self.public) != self.public:
                study = {"study": self.manifest.study, "title": self.manifest.title, "state": "running"}
                found = [{"kind": "other_key", **study, "manifest": self.manifest_digest}]
            elif self.played:
                found += [self.tamper(each) for each in self.played[-1].assignments(silo)]
            return json.dumps({"version": str(self.version), "now": "", "assignments": found}).encode()

    def enrol(self, body: dict[str, Any]) -> bytes:
        if body["token"] != TOKEN:
            raise Refusal(403, "TOKEN", "The token is not valid.")
        self.public, self.trust = unb64(body["public"]), body["trust"]
        return json.dumps(
            {
                "silo": self.silo,
                "organisation": "Hospital site-1",
                "state": "active",
                "portal": {
                    "name": "test.example",
                    "answer_public": b64(self.answer_key.public),
                    "log_vkey": self.log_key.vkey,
                },
            }
        ).encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    double: PortalDouble

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(6, 1, 1)  # TCP_NODELAY
        self.double.open.add(self.connection)

    def finish(self) -> None:
        self.double.open.discard(self.connection)
        super().finish()

    def log_message(self, *_: Any) -> None:
        pass

    def _serve(self) -> None:
        double = self.double
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path, _, raw_query = self.path.partition("?")
        fault = double.fault(self.command, path)
        if fault == 0:
            self.close_connection = True
            self.connection.shutdown(2)
            return
        if fault is not None:
            self._send(fault, b"<html>a proxy speaks</html>", {})
            return
        if self.headers.get("Signature") is None:
            self._send(404, b"", {})  # a person, or `silo doctor`, looks who is there
            return
        query = dict(pair.split("=", 1) for pair in raw_query.split("&") if pair)
        status, extra = 200, {}
        try:
            enrolling = path == "/api/v1/silo/enrol"
            public = unb64(json.loads(body)["public"]) if enrolling else double.public
            if f'keyid="{keyid(public)}"' not in self.headers["Signature-Input"]:
                raise Refusal(401, "UNKNOWN_KEY", "No silo has this key.")
            try:
                verify_request(
                    method=self.command,
                    path=path,
                    query=raw_query,
                    headers=self.headers,
                    body=body,
                    resolve=lambda _: public,
                    now=time.time() + double.clock_shift,
                )
            except SignatureError as error:
                code = "CLOCK_SKEW" if type(error).__name__ == "ClockSkew" else "BAD_SIGNATURE"
                raise Refusal(401, code, str(error)) from error
            double.received.append(Received(self.command, path, body, time.monotonic()))
            if double.pending and not enrolling:
                raise Refusal(403, "SILO_PENDING", "The silo's fingerprint is not confirmed yet.")
            if enrolling:
                content = double.enrol(json.loads(body))
            elif path == "/api/v1/silo/key" and double.in_round:
                raise Refusal(409, "ROUND_OPEN", "This silo takes part in a round. Try again when it is over.")
            elif path == "/api/v1/silo/key":
                double.public = verify_rotation(Envelope.from_dict(json.loads(body))).after
                content = json.dumps({"key": keyid(double.public), "state": "active"}).encode()
            else:
                content, extra = double.answer(self.command, path, query, body, double.silo)
        except Refusal as refusal:
            status = refusal.status
            content = json.dumps(
                {"type": "x", "title": "no", "status": status, "detail": refusal.detail, "code": refusal.code}
            ).encode()
        signed = sign_answer(
            double.answer_key,
            status=status,
            body=content,
            request_headers=self.headers,
            method=self.command,
            path=path,
            query=raw_query,
            created=int(time.time() + double.clock_shift),
        )
        self._send(status, double.answer_tamper(path, content), {**signed, **extra})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = _serve
