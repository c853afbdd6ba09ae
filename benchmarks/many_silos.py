"""Secure aggregation with many silos: whole rounds, every silo a state machine in this process, no transport.

    python -m benchmarks.many_silos --json [--silos 64,128,256,512,1000] [--words 100000] [--lost 0.05]
                                    [--plot docs/many-silos.svg --table docs/many-silos.md]

Silos vanish at random before random steps. The sum is checked against the plain sum of exactly the listed members.
Updates are made from a seed when they are needed; journals and waiting boxes lie on disk, masked chunks are added up as
they come. One JSON line a case:
    n, h, t, k                      silos; neighbours drawn; shares needed; mean neighbours of a silo
    lost, summed                    silos that vanished in the round; members of the sum
    silo_seconds_median, _max       CPU time of its own calls of the protocol in the whole round, over silos that stayed
    bytes_sent, bytes_received      median of one silo, as JSON (base64) and raw chunks, the update among them
    check_seconds_median            CPU time of one silo for what follows the sum, which grows with n: the members make the
                                    signed root, all nonces are those of R, one signature of each member, and h of the sum
    check_bytes_received            what one silo is given for that, the sum itself not among it
    coordinator_seconds             CPU time of all of the coordinator's calls and of adding up the chunks
    peak_rss_mb                     the largest resident set of this process so far (all silos and the coordinator)
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from benchmarks import many_silos_page
from protocol import canonical
from protocol.secure_aggregation import JournalConflict
from protocol.secure_aggregation.sparse import Claim, Leaf, Parcel, SparseCoordinator, SparseParameters, SparseRound
from protocol.secure_aggregation.words import lane
from protocol.signing import Envelope, SigningKey

STEPS = ("keys", "row", "bundles", "ready", "update", "list", "unmask")
T = TypeVar("T")


class DiskJournal:
    """One file a key. Not synced to disk: what a disk costs is not what this measures."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True)

    def _path(self, key: str) -> Path:
        return self._folder / key.replace("/", "!")

    def put(self, key: str, value: bytes) -> None:
        path = self._path(key)
        if path.exists():
            if path.read_bytes() != value:
                raise JournalConflict(key)
            return
        path.write_bytes(value)

    def get(self, key: str) -> bytes | None:
        try:
            return self._path(key).read_bytes()
        except FileNotFoundError:
            return None

    def forget(self, prefix: str) -> None:
        for path in self._folder.glob(prefix.replace("/", "!") + "*"):
            path.unlink()


class Meter:
    """Seconds and bytes of one party."""

    def __init__(self) -> None:
        self.seconds, self.sent, self.received = 0.0, 0, 0

    def run(self, call: Callable[..., T], *arguments: Any) -> T:
        begin = time.process_time()
        try:
            return call(*arguments)
        finally:
            self.seconds += time.process_time() - begin


def size(message: Envelope | Leaf | Any) -> int:
    """Bytes of a message, or of anything that goes out as JSON."""
    return len(json.dumps(message.as_dict(), separators=(",", ":")))


def claim_size(claim: Claim) -> int:
    return len(json.dumps({"root": claim.root, "size": claim.size}, separators=(",", ":")))


class Round:
    """One round of n silos, of whom `lost` (a fraction) vanish before steps drawn at random."""

    def __init__(self, n: int, *, words: int, lost: float, seed: int, folder: Path, sparse_from: int = 64) -> None:
        draw = random.Random(seed)
        self.names = [f"silo-{number:04}" for number in range(n)]
        self.keys = {name: SigningKey.from_bytes(draw.randbytes(32)) for name in self.names}
        self.parameters = SparseParameters(
            study="bench",
            manifest="sha256:" + "b" * 64,
            round=1,
            attempt=0,
            model="sha256:" + "a" * 64,
            participants={name: key.public for name, key in self.keys.items()},
            min_roster=3,
            min_participants=3,
            words=words,
            tail=16,
            sparse_from=sparse_from,
        )
        gone = draw.sample(self.names, round(lost * n))
        self.vanishes = {name: draw.randrange(len(STEPS)) for name in gone}
        self.seed, self.folder = seed, folder
        self.silos = {
            name: SparseRound(
                self.parameters, silo=name, key=self.keys[name], journal=DiskJournal(folder / "journals" / name)
            )
            for name in self.names
        }
        (folder / "parcels").mkdir()
        self.meters = {name: Meter() for name in self.names}
        self.checkers = {name: Meter() for name in self.names}
        self.meter = Meter()
        self.coordinator = SparseCoordinator(self.parameters)
        self.chunk_bytes = sum(self.parameters.chunk_bytes(k) for k in range(self.parameters.chunk_count))

    def alive(self, step: str) -> list[str]:
        return [name for name in self.names if self.vanishes.get(name, len(STEPS)) > STEPS.index(step)]

    def update(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The words and tail of a silo, the same every time."""
        draw = np.random.default_rng([self.seed, self.names.index(name)])
        # Check words are over whole numbers: a sum that wraps round would not fit them.
        words = draw.integers(-1000, 1000, self.parameters.words).astype(np.uint32)
        return words, draw.integers(0, 2**40, self.parameters.tail, dtype=np.uint64)

    def say(self, name: str, take: Callable[[Envelope], T], call: Callable[..., Envelope], *arguments: Any) -> T:
        """One silo's step; its message goes to the coordinator."""
        meter = self.meters[name]
        envelope = meter.run(call, *arguments)
        meter.sent += size(envelope)
        return self.meter.run(take, envelope)

    def play(self) -> None:
        """All steps up to `unmask`."""
        self._join()
        self._exchange()
        self._upload()
        self._reveal()

    def _join(self) -> None:
        for name in self.alive("keys"):
            self.say(name, self.coordinator.take_keys, self.silos[name].keys)
        claim = self.meter.run(self.coordinator.close_roster)
        for name in self.alive("row"):
            leaf = self.meter.run(self.coordinator.leaf, "roster", name)
            self.meters[name].received += claim_size(claim) + size(leaf)
            self.say(name, self.coordinator.take_row, self.silos[name].accept_roster, claim, leaf)
        self.meter.run(self.coordinator.close_graph)

    def _exchange(self) -> None:
        for name in self.alive("bundles"):
            near = self.meter.run(self.coordinator.neighbours_for, name)
            self.meters[name].received += sum(map(size, near))
            _, parcels = self.say(name, self.coordinator.take_bundles, self.silos[name].accept_neighbours, near)
            for receiver, parcel in parcels.items():
                with (self.folder / "parcels" / receiver).open("ab") as file:
                    file.write(canonical.encode({"sender": name, **parcel.as_dict()}) + b"\n")
        for name in self.alive("ready"):
            lines = (self.folder / "parcels" / name).read_bytes().splitlines()
            self.meters[name].received += sum(map(len, lines))
            rows = [json.loads(line) for line in lines]
            parcels = {
                row["sender"]: Parcel(canonical.unb64(row["box"]), row["hashes"] and tuple(row["hashes"]))
                for row in rows
            }
            self.say(name, self.coordinator.take_ready, self.silos[name].accept_bundles, parcels)
        self.meter.run(self.coordinator.close_ready)

    def _accept(self, name: str, what: str) -> tuple[Claim, list[Leaf]]:
        claim, leaves = self.coordinator.claim(what), self.meter.run(self.coordinator.leaves_for, what, name)
        self.meters[name].received += claim_size(claim) + sum(map(size, leaves))
        return claim, leaves

    def _upload(self) -> None:
        """Chunks are added up as they come; those of silos outside the list are taken off again."""
        self.sums = [np.zeros(self.parameters.chunk_bytes(k), dtype="u1") for k in range(self.parameters.chunk_count)]
        self.added: set[str] = set()
        for name in self.alive("update"):
            silo, meter = self.silos[name], self.meters[name]
            meter.run(silo.accept_ready, *self._accept(name, "ready"))
            words = self.update(name)
            meter.run(silo.begin_update, *words)
            chunks = [meter.run(silo.masked_chunk, k) for k in range(self.parameters.chunk_count)]
            meter.sent += self.chunk_bytes
            self.say(name, self.coordinator.take_update, silo.finish_update)
            self.add(chunks)
            self.added.add(name)
        self.meter.run(self.coordinator.close_list)

    def add(self, chunks: list[bytes], sign: int = 1) -> None:
        begin = time.process_time()
        for k, chunk in enumerate(chunks):
            dtype = "<u4" if self.parameters.chunk_range(k)[0] == "body" else "<u8"
            total, words = self.sums[k].view(dtype), np.frombuffer(chunk, dtype)
            (np.add if sign > 0 else np.subtract)(total, words, out=total)
        self.meter.seconds += time.process_time() - begin

    def _reveal(self) -> None:
        for name in self.alive("list"):
            updates = self.meter.run(self.coordinator.updates_for, name)
            self.meters[name].received += sum(map(size, updates))
            self.say(name, self.coordinator.take_list, self.silos[name].sign_list, *self._accept(name, "list"), updates)
        for name in self.alive("unmask"):
            lists = self.meter.run(self.coordinator.lists_for, name)
            self.meters[name].received += sum(map(size, lists))
            self.say(name, self.coordinator.take_unmask, self.silos[name].unmask, lists)

    def check(self) -> int:
        """Recover the sum and compare it with the plain one. Returns: members. Raises: RuntimeError where it differs."""
        removal = self.meter.run(self.coordinator.recover)
        if set(removal.members) != self.added:
            raise RuntimeError("the list is not of all who uploaded; nobody should have been left out here")
        for k, total in enumerate(self.sums):
            self.meter.run(removal.subtract, k, total.view(lane(self.parameters.bits(k))))
        body = np.zeros(self.parameters.words, dtype=np.uint32)
        tail = np.zeros(self.parameters.tail, dtype=np.uint64)
        for name in removal.members:
            words, last = self.update(name)
            body += words
            tail += last
        if b"".join(total.tobytes() for total in self.sums) != body.tobytes() + tail.tobytes():
            raise RuntimeError("the unmasked sum is not the plain sum")
        self._verify(removal.members, body.view("<i4"), tail)
        return len(removal.members)

    def _verify(self, members: tuple[str, ...], body: np.ndarray, tail: np.ndarray) -> None:
        """All members check the sum; who vanished before it signed the list has come back and takes it."""
        published = canonical.digest(body.tobytes() + tail.tobytes())
        for name in members:
            silo, meter = self.silos[name], self.checkers[name]
            if self.vanishes.get(name, len(STEPS)) <= STEPS.index("list"):
                claim, leaves = self.coordinator.claim("list"), self.coordinator.leaves_for("list", name)
                meter.run(silo.accept_list, claim, leaves, self.coordinator.lists_for(name))
            meter.run(silo.agree, members)
            nonce = meter.run(silo.open_nonce, published)
            meter.sent += size(nonce)
            self.meter.run(self.coordinator.take_nonce, published, nonce)
        self.meter.run(self.coordinator.close_nonces)
        opened = self.coordinator.opened_nonces
        checks = []
        for name in members:
            checks.append(self.checkers[name].run(self.silos[name].send_check, opened))
            self.checkers[name].sent += size(checks[-1])
            self.meter.run(self.coordinator.take_check, published, checks[-1])
        given = size(opened) + sum(map(size, checks))
        for name in members:
            self.checkers[name].received += given
            if not self.checkers[name].run(self.silos[name].verify_sum, checks, [body], tail):
                raise RuntimeError(f"{name} did not verify the sum")
        if not self.meter.run(self.coordinator.check_sum, published, [body], tail):
            raise RuntimeError("the coordinator did not verify the sum")

    def figures(self) -> dict[str, Any]:
        """What the module's docstring names."""
        summed = self.check()
        stayed = [self.meters[name] for name in self.names if name not in self.vanishes]
        checkers = [meter for meter in self.checkers.values() if meter.received]
        hood = self.parameters.neighbourhood
        degrees = [
            len(self.coordinator.leaves_for("ready", name)) - 1 for name in self.names if name not in self.vanishes
        ]
        return {
            "n": len(self.names),
            "h": hood.h,
            "t": hood.t,
            "k": round(statistics.fmean(degrees), 1),
            "lost": len(self.vanishes),
            "summed": summed,
            "words": self.parameters.words,
            "silo_seconds_median": round(statistics.median(meter.seconds for meter in stayed), 4),
            "silo_seconds_max": round(max(meter.seconds for meter in stayed), 4),
            "bytes_sent": round(statistics.median(meter.sent for meter in stayed)),
            "bytes_received": round(statistics.median(meter.received for meter in stayed)),
            "check_seconds_median": round(statistics.median(meter.seconds for meter in checkers), 4),
            "check_bytes_received": round(statistics.median(meter.received for meter in checkers)),
            "coordinator_seconds": round(self.meter.seconds, 2),
            "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        }


def case(n: int, *, words: int, lost: float, seed: int = 1) -> dict[str, Any]:
    """One whole round, checked. Raises: RuntimeError, ProtocolViolation."""
    with tempfile.TemporaryDirectory(prefix="consilium-many-") as folder:
        this = Round(n, words=words, lost=lost, seed=seed, folder=Path(folder))
        this.play()
        return this.figures()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON line a case (default: the same, indented)")
    parser.add_argument("--silos", default="64,128,256,512,1000")
    parser.add_argument("--words", type=int, default=100_000)
    parser.add_argument("--lost", type=float, default=0.05, help="fraction of the silos that vanish")
    parser.add_argument("--plot", type=Path, help="write an SVG of seconds and neighbours against silos")
    parser.add_argument("--table", type=Path, help="write the figures into this page, between its two marks")
    options = parser.parse_args(argv)
    cases = []
    for n in options.silos.split(","):
        cases.append(case(int(n), words=options.words, lost=options.lost))
        print(json.dumps(cases[-1], indent=None if options.json else 2), flush=True)
    if options.plot is not None:
        options.plot.write_text(many_silos_page.plot(cases), encoding="utf-8")
    if options.table is not None:
        page = options.table.read_text(encoding="utf-8")
        options.table.write_text(many_silos_page.with_table(page, cases), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
