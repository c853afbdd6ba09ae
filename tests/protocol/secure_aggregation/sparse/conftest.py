"""A whole sparse round in memory, with the real coordinator and a portal that a test can make lie."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from functools import cache, partial

import numpy as np
import pytest

from protocol import canonical
from protocol.secure_aggregation.sparse import Parcel, SparseCoordinator, SparseParameters, SparseRound
from protocol.signing import Envelope, SigningKey

MODEL = "sha256:" + "a" * 64
MANIFEST = "sha256:" + "b" * 64
STEPS = ("keys", "row", "bundles", "ready", "update", "list", "unmask")
LAST = ("nonce", "check", "verify")
CLOSED_BEFORE = {"row": "roster", "bundles": "graph", "update": "ready", "list": "list", "check": "nonces"}


@cache
def key_of(number: int) -> SigningKey:
    return SigningKey.from_bytes(number.to_bytes(32, "big"))


class SparseWorld:
    """n hospitals in one attempt: c = n/6 may collude, n/6 may be lost, at weak bounds, so that h < n - 1.

    20 bits against failure, so that no honest round stops by chance in these tests.
    """

    steps = STEPS

    def __init__(
        self, journal: type, n: int = 12, *, words: int = 40, tail: int = 3, seed: int = 0, small: bool = False, **other
    ) -> None:
        self.silos = tuple(f"site-{number:03}" for number in range(n))
        self.keys = {name: key_of(number) for number, name in enumerate(self.silos, start=1)}
        settings = {
            "study": "st-abc",
            "manifest": MANIFEST,
            "round": 1,
            "attempt": 0,
            "model": MODEL,
            "participants": {name: key.public for name, key in self.keys.items()},
            "min_roster": 3,
            "min_participants": 3,
            "words": words,
            "tail": tail,
            "sparse_from": 4,
            "colluding": Fraction(1, 6),
            "lost": Fraction(1, 6),
            "privacy_bits": 3,
            "failure_bits": 20,
        }
        self.known = {name: other.pop(name) for name in ("known_partners", "min_known") if name in other}
        self.settings = settings | other
        self.journals = {name: journal() for name in self.silos}
        draw = np.random.default_rng(seed)
        # Check words are over whole numbers, so a sum that they hold must not wrap around.
        low, high, last = (-1000, 1000, 1000) if small else (0, 2**32, 2**64)
        self.updates = {
            name: (
                draw.integers(low, high, words).astype("<u4"),
                draw.integers(0, last, tail, dtype="<u8", endpoint=False),
            )
            for name in self.silos
        }
        self.attempt()

    def attempt(self, **other) -> None:
        """Begin another attempt, with the same journals."""
        self.settings |= other
        self.parameters = SparseParameters(**self.settings)
        self.hood = self.parameters.neighbourhood
        self.coordinator = SparseCoordinator(self.parameters)
        self.machines = {name: self.rebuild(name) for name in self.silos}
        self.mail: dict[str, dict[str, Envelope]] = {step: {} for step in (*STEPS, *LAST[:2])}
        self.verified: dict[str, bool] = {}
        self.parcels: dict[str, dict[str, Parcel]] = {name: {} for name in self.silos}
        self.chunks: dict[str, list[bytes]] = {}
        self.closed: set[str] = set()

    def rebuild(self, name: str) -> SparseRound:
        """The silo as it is after a crash: only its journal is left."""
        return SparseRound(self.parameters, silo=name, key=self.keys[name], journal=self.journals[name], **self.known)

    # --- what the portal gives a silo, and the silo's answer ---------------------------------------------------------

    def close(self, step: str) -> None:
        """Fix the set that must stand before this step."""
        what = CLOSED_BEFORE.get(step)
        if what is not None and what not in self.closed:
            getattr(self.coordinator, f"close_{what}")()
            self.closed.add(what)

    def set_for(self, what: str, name: str):
        return self.coordinator.claim(what), self.coordinator.leaves_for(what, name, self.known_names)

    @property
    def known_names(self) -> list[str]:
        known = self.known.get("known_partners", frozenset())
        return [name for name in self.silos if self.keys[name].keyid in known]

    def answer(self, step: str, name: str) -> Envelope:
        machine, portal = self.machines[name], self.coordinator
        if step == "keys":
            return machine.keys()
        if step == "row":
            return machine.accept_roster(portal.claim("roster"), portal.leaf("roster", name))
        if step == "bundles":
            return machine.accept_neighbours(portal.neighbours_for(name))
        if step == "ready":
            return machine.accept_bundles(self.parcels[name])
        if step == "update":
            machine.accept_ready(*self.set_for("ready", name))
            machine.begin_update(*self.updates[name])
            self.chunks[name] = [machine.masked_chunk(k) for k in range(self.parameters.chunk_count)]
            return machine.finish_update()
        if step == "list":
            return machine.sign_list(*self.set_for("list", name), portal.updates_for(name))
        if step == "unmask":
            return machine.unmask(portal.lists_for(name))
        if step == "nonce":
            machine.agree(portal.members("list"))
            return machine.open_nonce(self.published)
        return machine.send_check(portal.opened_nonces)

    def step(self, step: str, name: str) -> None:
        if step == "verify":
            checks = [self.mail["check"][each] for each in sorted(self.mail["check"])]
            self.verified[name] = self.machines[name].verify_sum(checks, [self.body.view("<i4")], self.tail)
            return
        envelope = self.mail[step][name] = self.answer(step, name)
        late = (self.published,) if step in LAST else ()
        taken = getattr(self.coordinator, f"take_{step}")(*late, envelope)
        if step == "bundles":
            for receiver, parcel in taken[1].items():
                self.parcels[receiver][name] = parcel

    def play(self, *steps: str, who: Iterable[str] | None = None) -> SparseWorld:
        """All of `who` (default: all silos) do these steps, one step after the other."""
        names = list(self.silos if who is None else who)
        for step in steps:
            self.close(step)
            for name in names:
                self.step(step, name)
        return self

    def until(self, step: str) -> SparseWorld:
        """Everybody does every step before this one, and the set that it needs is fixed."""
        self.play(*STEPS[: STEPS.index(step)])
        self.close(step)
        return self

    # --- the sum -----------------------------------------------------------------------------------------------------

    def publish(self, *, add: int = 0) -> SparseWorld:
        """Make the sum and its digest. add: what a portal that lies adds to the first word."""
        removal = self.coordinator.recover()
        chunks = []
        for k in range(self.parameters.chunk_count):
            kind, start, stop = self.parameters.chunk_range(k)
            dtype = "<u4" if kind == "body" else "<u8"
            total = np.zeros(stop - start, dtype=dtype)
            for name in removal.members:
                total += np.frombuffer(self.chunks[name][k], dtype=dtype)
            removal.subtract(k, total)
            chunks.append(total)
        self.body, self.tail = chunks
        self.body[0] += add
        self.published = canonical.digest(self.body.tobytes() + self.tail.tobytes())
        return self

    def assert_sum(self, names: Iterable[str]) -> None:
        """The unmasked sum is the plain sum over exactly `names`."""
        names = sorted(names)
        removal = self.coordinator.recover()
        assert list(removal.members) == names
        for k in range(self.parameters.chunk_count):
            kind, start, stop = self.parameters.chunk_range(k)
            place, dtype = (0, "<u4") if kind == "body" else (1, "<u8")
            total = np.zeros(stop - start, dtype=dtype)
            for name in names:
                total += np.frombuffer(self.chunks[name][k], dtype=dtype)
            removal.subtract(k, total)
            modulus = 2 ** (32 if kind == "body" else 64)
            plain = [sum(int(self.updates[name][place][at]) for name in names) % modulus for at in range(start, stop)]
            assert total.tolist() == plain


@pytest.fixture(scope="session")
def sparse(world):
    """Makes a SparseWorld, with the journal of the dense tests that can crash."""
    made = partial(SparseWorld, world.Journal)
    made.steps = STEPS
    return made
