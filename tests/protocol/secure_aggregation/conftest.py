"""A whole round in memory: n hospitals, a portal that relays what a test lets it relay, and a journal that can crash."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable

import numpy as np
import pytest

from benchmarks.memory_journal import MemoryJournal
from protocol.messages import Update
from protocol.secure_aggregation import Coordinator, ProtocolViolation, RoundParameters, SiloRound
from protocol.secure_aggregation.parameters import Segment, SketchTerms
from protocol.secure_aggregation.words import lane, pack, signed, unpack
from protocol.signing import Envelope, SigningKey

STEPS = ("keys", "bundles", "ready", "update", "list", "sketch", "second")
MODEL = "sha256:" + "a" * 64
MANIFEST = "sha256:" + "b" * 64
NAMES = tuple(f"site-{number:02}" for number in range(1, 13))
KEYS = {name: SigningKey.from_bytes(bytes([number]) * 32) for number, name in enumerate(NAMES, start=1)}


class Killed(Exception):
    """The process died at this point."""


class MortalJournal(MemoryJournal):
    """Kills its process before or after a chosen put."""

    def __init__(self) -> None:
        super().__init__()
        self.puts = 0
        self.kill_at: tuple[int, str] | None = None

    def put(self, key: str, value: bytes) -> None:
        self.puts += 1
        if self.kill_at == (self.puts, "before"):
            raise Killed(key)
        super().put(key, value)
        if self.kill_at == (self.puts, "after"):
            raise Killed(key)

    def copy(self) -> MortalJournal:
        return copy.deepcopy(self)


class World:
    """n hospitals in one attempt. Each step takes who acts and, where it matters, what the portal relays to whom."""

    names = NAMES
    keys = KEYS
    Journal = MortalJournal
    Killed = Killed

    def __init__(
        self, n: int = 4, *, words: int = 50, tail: int = 3, word_bits: int = 32, seed: int = 0, **other: object
    ) -> None:
        settings = {
            "study": "st-abc",
            "manifest": MANIFEST,
            "round": 1,
            "attempt": 0,
            "model": MODEL,
            "participants": {name: KEYS[name].public for name in NAMES[:n]},
            "min_roster": 3,
            "min_participants": 3,
            "words": words,
            "tail": tail,
            "word_bits": word_bits,
        }
        self.known: dict[str, object] = {key: other.pop(key) for key in ("known_partners", "min_known") if key in other}
        # sketch=<clip_norm>: with the sketch check, all weights 1 and one scale without binary places.
        clip_norm = other.pop("sketch", None)
        if clip_norm is not None:
            weights = dict.fromkeys(NAMES[:n], 1)
            settings["sketch"] = SketchTerms(weights, clip_norm, (Segment(words, 0),))
        # Sums of small words don't wrap round, as the manifest's proof of the range makes sure; masks need no such proof.
        high, top = (100, 100) if other.pop("small", clip_norm is not None) else (2**32, 2**64)
        self.settings = settings | other
        self.silos = NAMES[:n]
        self.journals = {name: MortalJournal() for name in self.silos}
        draw = np.random.default_rng(seed)
        self.updates = {
            name: (
                # The lanes are full: what lies above a word must not matter.
                draw.integers(0, high, words, dtype="<u4").astype(lane(word_bits)),
                draw.integers(0, top, tail, dtype="<u8", endpoint=False),
            )
            for name in self.silos
        }
        self.attempt()

    def attempt(self, **other: object) -> None:
        """Begin another attempt, with the same journals."""
        self.settings |= other
        self.parameters = RoundParameters(**self.settings)
        self.coordinator = Coordinator(self.parameters)
        self.machines = {name: self.rebuild(name) for name in self.silos}
        self.mail: dict[str, dict[str, Envelope]] = {kind: {} for kind in (*STEPS, "unmask", "nonce", "check")}
        self.chunks: dict[str, list[bytes]] = {}
        self.verified: dict[str, bool] = {}

    def rebuild(self, name: str) -> SiloRound:
        """The silo as it is after a crash: only its journal is left."""
        machine = SiloRound(self.parameters, silo=name, key=KEYS[name], journal=self.journals[name], **self.known)
        return machine

    # --- one step of one silo; what it needs is taken from the mail --------------------------------------------------

    def relayed(self, kind: str, names: Iterable[str] | None = None) -> list[Envelope]:
        """The messages of one kind, of all who sent one or of `names`."""
        found = self.mail[kind]
        return [found[name] for name in (found if names is None else names)]

    @property
    def roster(self):
        return self.coordinator.roster(self.relayed("keys"))

    def step_keys(self, name: str) -> None:
        self.mail["keys"][name] = self.machines[name].keys()

    def step_bundles(self, name: str) -> None:
        self.mail["bundles"][name] = self.machines[name].accept_roster(self.relayed("keys"))

    def step_ready(self, name: str) -> None:
        boxes = self.coordinator.boxes_for(self.roster, self.relayed("bundles"), name)
        self.mail["ready"][name] = self.machines[name].accept_bundles(boxes)

    def step_update(self, name: str) -> None:
        machine = self.machines[name]
        machine.accept_ready(self.relayed("ready"))
        machine.begin_update(*self.updates[name])
        self.chunks[name] = [machine.masked_chunk(k) for k in range(self.parameters.chunk_count)]
        self.mail["update"][name] = machine.finish_update()

    def step_list(self, name: str) -> None:
        self.mail["list"][name] = self.machines[name].sign_list(self.relayed("update"))

    def step_unmask(self, name: str) -> None:
        self.mail["unmask"][name] = self.machines[name].unmask(self.relayed("list"), self.relayed("second"))

    def step_sketch(self, name: str) -> None:
        self.mail["sketch"][name] = self.machines[name].show_sketch(self.relayed("list"))

    def step_second(self, name: str) -> None:
        self.mail["second"][name] = self.machines[name].sign_second(self.relayed("sketch"))

    def step_nonce(self, name: str) -> None:
        machine = self.machines[name]
        machine.agree(self.relayed("list"), self.relayed("second"))
        self.mail["nonce"][name] = machine.open_nonce(self.published)

    def step_check(self, name: str) -> None:
        self.mail["check"][name] = self.machines[name].send_check(self.relayed("nonce"))

    def step_verify(self, name: str) -> None:
        self.verified[name] = self.machines[name].verify_sum(self.relayed("check"), *self.shown)

    # --- the sum, as the portal publishes it -------------------------------------------------------------------------

    def publish(self, *, spoil: int = 0) -> World:
        """Make the sum public; `spoil` is added to its first word. Then play "nonce", "check", "verify"."""
        body, tail = self.sum(self.removal())
        if spoil:
            body[0] += spoil
        return self.show(body, tail)

    def show(self, body: np.ndarray, tail: np.ndarray) -> World:
        """Make these words of body and tail the published sum."""
        bits = self.parameters.word_bits
        self.published = "sha256:" + hashlib.sha256(body.tobytes() + tail.tobytes()).hexdigest()
        self.shown = ([signed(body.astype(lane(bits)), bits)], tail.astype("<u8"))
        return self

    def play(self, *steps: str, who: Iterable[str] | None = None) -> World:
        """All of `who` (default: all silos) do these steps, one step after the other."""
        names = list(self.silos if who is None else who)
        for step in steps:
            for name in names:
                getattr(self, f"step_{step}")(name)
        return self

    # --- what the portal computes ------------------------------------------------------------------------------------

    def check_all(self) -> None:
        """The coordinator checks every message as it would when it came in."""
        check, roster = self.coordinator, self.roster
        ready, updates, lists = self.relayed("ready"), self.relayed("update"), self.relayed("list")
        for name in self.mail["keys"]:
            assert check.check_keys(self.mail["keys"][name]) == name
        for name in self.mail["bundles"]:
            assert check.check_bundles(roster, self.mail["bundles"][name]) == name
        for name in self.mail["ready"]:
            assert check.check_ready(roster, self.mail["ready"][name]) == name
        for name, envelope in self.mail["update"].items():
            assert check.check_update(roster, ready, envelope) == name
            digests = ["sha256:" + hashlib.sha256(chunk).hexdigest() for chunk in self.chunks[name]]
            assert list(Update.parse(envelope.payload).chunks) == digests
        for name in self.mail["list"]:
            assert check.check_list(roster, ready, updates, self.mail["list"][name]) == name
        for name in self.mail["unmask"]:
            seconds = self.relayed("second")
            assert check.check_unmask(roster, ready, lists, self.mail["unmask"][name], seconds) == name

    def removal(self, names: Iterable[str] | None = None):
        """The masks that are left in the sum, from the unmask messages of `names`."""
        return self.coordinator.recover(
            self.roster,
            self.relayed("ready"),
            self.relayed("list"),
            self.relayed("unmask", names),
            self.relayed("second"),
        )

    def sum(self, removal) -> tuple[np.ndarray, np.ndarray]:
        """The sum of the members' chunks without masks: words of body and tail, unsigned."""
        body, tail = [], []
        for k in range(self.parameters.chunk_count):
            kind, bits = self.parameters.chunk_range(k)[0], self.parameters.bits(k)
            total = removal.sum_chunk(k, (self.chunks[name][k] for name in removal.members))
            (body if kind == "body" else tail).append(unpack(pack(total, bits), bits))
        empty = [np.zeros(0)]
        return np.concatenate(body or empty), np.concatenate(tail or empty)

    def plain(self, names: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """The plain sums, by integers without limit."""
        words = [self.updates[name] for name in names]
        body = [
            sum(int(row[0][i]) for row in words) % 2**self.parameters.word_bits for i in range(self.parameters.words)
        ]
        tail = [sum(int(row[1][i]) for row in words) % 2**64 for i in range(self.parameters.tail)]
        return np.array(body, dtype=np.uint64), np.array(tail, dtype=np.uint64)

    def assert_sum(self, names: Iterable[str], unmaskers: Iterable[str] | None = None) -> None:
        """The unmasked sum is the plain sum over exactly `names`."""
        names = sorted(names)
        removal = self.removal(unmaskers)
        assert list(removal.members) == names
        for found, wanted in zip(self.sum(removal), self.plain(names), strict=True):
            assert found.tolist() == wanted.tolist()


@pytest.fixture(scope="session")
def world() -> type[World]:
    """The class, so that each test builds its own."""
    return World


def _refused(code: str, call: Callable[..., object], *arguments: object) -> str:
    """The call raises a ProtocolViolation with this code; returns its sentence."""
    with pytest.raises(ProtocolViolation) as caught:
        call(*arguments)
    assert caught.value.code == code, caught.value
    return caught.value.sentence


@pytest.fixture(scope="session")
def refused() -> Callable[..., str]:
    """refused(code, call, *arguments): the call raises a ProtocolViolation with this code."""
    return _refused
