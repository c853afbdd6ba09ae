"""What the masks cost, against the limit of the machine and against other systems.

    python -m benchmarks.secure_aggregation --json [--sizes 1000000,7000000] [--silos 4,8,16,32] [--word-bits 16,32]

One JSON line a case (d weights, n silos, words of word_bits). Everything but `threads_gain` runs on one core, the parts
in turn. A time is the sum over chunks (1,048,576 words) of the least of all turns, in seconds of that core, so that a
busy machine spoils little; ratios are of times of one run. The limit of a part is the AES-CTR key
stream that it needs, from the same library into a reused buffer, in the fastest of several block sizes.

    client_over_limit         masks of one silo: quantised words in, masked and packed words out; limit: n streams
    client_quantise_over_limit  the same from the float update on: clip, quantise, mask
    chunk_over_limit          as the silo makes its chunks: client, new memory for each chunk, and its SHA-256
    server_over_limit         sum of n - 1 updates and all masks off, one silo having fallen out; limit: 2 (n - 1) streams
                              and one read of the n - 1 updates
    threads_gain              client with one thread over client with one a core, on all `cores`
    bytes_per_weight          all that a silo sends in the round (upload_bytes.py), over d
    flower_client_over_ours   Flower's SecAgg+ client over ours, float update in, masked words out (peers.py)
    flower_masks_over_ours    quantised words in; flower_aes_client_over_ours: Flower with our generator in place of its own
    ckks_over_ours            CKKS encryption of d floats over our client, float update in
    .._seconds                of client, quantise (with clip), digest, server and key_stream (the client's limit)

The last four ratios are null without the environment that `make peers` makes.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from benchmarks.upload_bytes import bytes_sent, parameters_for
from protocol.secure_aggregation import Removal
from protocol.secure_aggregation.masking import Masks, cores, masked
from protocol.secure_aggregation.parameters import CHUNK_WORDS, Segment
from protocol.secure_aggregation.quantise import clip, quantise
from protocol.secure_aggregation.scales import FixedPoint
from protocol.secure_aggregation.words import lane, pack

BLOCKS = (128 << 10, 256 << 10, 512 << 10, 1 << 20)
PEERS = Path(__file__).parents[1] / ".venv-peers/bin/python"

UNTIMED = False
Run = Callable[[], Iterator[bool | None]]
"""Work in chunks; what lies between two of its yields is timed together, but for what ends in `yield UNTIMED`."""


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """This process, and what it starts, on one core; where the system cannot pin, on all."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def in_turn(parts: dict[str, Run], seconds: float, clock: Callable[[], float] = time.process_time) -> dict[str, float]:
    """Seconds of each part by `clock`: of each chunk the least of as many turns as fit into `seconds`, at least three."""
    times: dict[str, list[list[float]]] = {name: [] for name in parts}
    begun, turns = time.monotonic(), 0
    while turns < 3 or time.monotonic() - begun < seconds:
        turns += 1
        for name, part in parts.items():
            row, before = [], clock()
            for counts in part():
                if counts is not UNTIMED:
                    row.append(clock() - before)
                before = clock()
            times[name].append(row)
    return {name: sum(map(min, zip(*rows, strict=True))) for name, rows in times.items()}


def key_stream(size: int, streams: int, block: int, chunk: int) -> Run:
    """The limit: `streams` key streams of `size` bytes each, timed in chunks of so many bytes."""

    def run() -> Iterator[bool | None]:
        ciphers = [
            Cipher(algorithms.AES(bytes([number]) * 16), modes.CTR(bytes(16))).encryptor() for number in range(streams)
        ]
        zeros, room = memoryview(bytes(block)), bytearray(block + 16)
        for first in range(0, size, chunk):
            last = min(first + chunk, size)
            for low in range(first, last, block):
                source = zeros[: min(block, last - low)]
                for cipher in ciphers:
                    cipher.update_into(source, room)
            yield

    return run


class Case:
    """One silo and the portal of a round with n silos, d weights and words of word_bits; the body only."""

    def __init__(self, d: int, n: int, word_bits: int) -> None:
        self.d, self.n, self.bits = d, n, word_bits
        self.parameters = parameters_for(d, n, word_bits)
        rng = np.random.default_rng(1)
        self.update = (rng.standard_normal(d) / np.sqrt(d)).astype(np.float32)
        self.words = rng.integers(0, 2**word_bits, d, dtype=np.uint32).astype(lane(word_bits))
        self.out = np.empty(min(d, CHUNK_WORDS), dtype=self.words.dtype)
        places = word_bits - 2 - n.bit_length()
        self.fixed = FixedPoint(word_bits=word_bits, fraction_bits=places, clip_norm=1.0, silos=n)
        seeds = [bytes([number]) * 32 for number in range(n)]
        ctx = self.parameters.ctx
        self.masks = Masks.build(ctx, self_plus=seeds[:1], pair_plus=seeds[1 : n // 2], pair_minus=seeds[n // 2 :])
        off = Masks.build(ctx, self_minus=seeds[1:], pair_plus=seeds[1 : n // 2], pair_minus=seeds[n // 2 :])
        names = tuple(self.parameters.participants)
        self.removal = Removal(self.parameters, names[1:], (), (), off)
        self.ranges = [self.parameters.chunk_range(k)[1:] for k in range(-(-d // CHUNK_WORDS))]
        sizes = [self.parameters.chunk_bytes(k) for k in range(len(self.ranges))]
        self.updates = [[rng.bytes(size) for size in sizes] for _ in names[1:]]
        if word_bits == 12 and d % 2:
            for chunks in self.updates:
                chunks[-1] = chunks[-1][:-1] + b"\0"

    def client(self, threads: int = 1) -> Iterator[bool | None]:
        """Mask and pack, into a reused buffer, what was just read, as a silo reads a chunk from its journal."""
        for start, stop in self.ranges:
            out, words = self.out[: stop - start], self.words[start:stop].copy()
            yield UNTIMED
            self.masks.apply(words, "body", start, out=out, threads=threads)
            pack(out, self.bits)
            yield

    def quantise(self) -> Iterator[bool | None]:
        """Clip and quantise."""
        quantise(
            clip(self.update, 1.0),
            self.fixed,
            (Segment(self.d, self.fixed.fraction_bits or 0),),
            weight=1,
            rng=np.random.default_rng(),
        )
        yield

    def chunks(self) -> Iterator[bool | None]:
        """As Upload.masked_chunk."""
        for k, (start, stop) in enumerate(self.ranges):
            masked(self.parameters, self.masks, k, memoryview(self.words[start:stop].view(np.uint8)), threads=1)
            yield

    def digest(self) -> Iterator[bool | None]:
        """SHA-256 of as many bytes as one update."""
        for chunk in self.updates[0]:
            hashlib.sha256(chunk).digest()
            yield

    def server(self) -> Iterator[bool | None]:
        """Sum and unmask and pack, chunk by chunk."""
        for k in range(len(self.ranges)):
            pack(self.removal.sum_chunk(k, (chunks[k] for chunks in self.updates)), self.bits)
            yield

    def read(self) -> Iterator[bool | None]:
        """One read of the n - 1 updates: a copy of each into a small buffer."""
        room = np.empty(256 << 10, dtype=np.uint8)
        for k in range(len(self.ranges)):
            for chunks in self.updates:
                row = np.frombuffer(chunks[k], dtype=np.uint8)
                for low in range(0, len(row), len(room)):
                    part = row[low : low + len(room)]
                    np.copyto(room[: len(part)], part)
            yield


class Peers:
    """The process in the other environment, or nobody."""

    def __init__(self, python: Path) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._encrypt: dict[int, float] = {}
        if python.exists():
            script = Path(__file__).with_name("peers.py")
            self._process = subprocess.Popen([python, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        else:
            print(f"{python} is not there: no figures of other systems; `make peers` makes it", file=sys.stderr)

    def ask(self, what: str, d: int, n: int) -> dict[str, float] | None:
        """One measurement, seconds."""
        if self._process is None:
            return None
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"what": what, "d": d, "n": n}) + "\n")
        self._process.stdin.flush()
        answer: dict[str, float] = json.loads(self._process.stdout.readline())
        return answer

    def encrypt(self, d: int) -> float | None:
        """Seconds of CKKS, the better of two; it knows no n, so each d is measured once."""
        if self._process is not None and d not in self._encrypt:
            self._encrypt[d] = min((self.ask("ckks", d, 0) or {})["encrypt"] for _ in range(2))
        return self._encrypt.get(d)

    def close(self) -> None:
        if self._process is not None:
            assert self._process.stdin
            self._process.stdin.close()
            self._process.wait()


def with_peers(case: Case, peers: Peers, ours: dict[str, float]) -> dict[str, float | None]:
    """Ratios of their times to `ours`, or to better ones of ours in turn with theirs, on the same core."""
    ours = {name: ours[name] for name in ("quantise", "client")}
    theirs: dict[str, dict[str, float]] = {"flower": {}, "flower_aes": {}}
    for _ in range(3):
        for name, seconds in in_turn({"quantise": case.quantise, "client": case.client}, 0).items():
            ours[name] = min(ours[name], seconds)
        for what, best in theirs.items():
            for part, seconds in (peers.ask(what, case.d, case.n) or {}).items():
                best[part] = min(best.get(part, seconds), seconds)
    encrypt, whole = peers.encrypt(case.d), sum(ours.values())
    flower, with_aes = theirs["flower"], theirs["flower_aes"]
    return {
        "flower_client_over_ours": _ratio(sum(flower.values()), whole) if flower else None,
        "flower_masks_over_ours": _ratio(flower["masks"], ours["client"]) if flower else None,
        "flower_aes_client_over_ours": _ratio(sum(with_aes.values()), whole) if with_aes else None,
        "ckks_over_ours": None if encrypt is None else _ratio(encrypt, whole),
    }


def measure(d: int, n: int, word_bits: int, *, seconds: float, peers: Peers) -> dict[str, Any]:
    """One line."""
    case = Case(d, n, word_bits)
    size = lane(word_bits).itemsize
    body, chunk = d * size, CHUNK_WORDS * size
    with one_core():
        limits: dict[str, Run] = {f"limit {block}": key_stream(body, n, block, chunk) for block in BLOCKS}
        limits |= {f"server limit {block}": key_stream(body, 2 * (n - 1), block, chunk) for block in BLOCKS[1:3]}
        parts = {"client": case.client, "quantise": case.quantise, "chunks": case.chunks, "digest": case.digest}
        best = in_turn(limits | parts | {"server": case.server, "read": case.read}, seconds)
        theirs = with_peers(case, peers, best)
        sent = bytes_sent(d, n, word_bits)
    limit = min(least for name, least in best.items() if name.startswith("limit"))
    server_limit = min(least for name, least in best.items() if name.startswith("server limit")) + best["read"]
    shared = in_turn({"one": case.client, "all": lambda: case.client(threads=cores())}, seconds / 4, time.perf_counter)
    return {
        "d": d,
        "n": n,
        "word_bits": word_bits,
        "client_over_limit": _ratio(best["client"], limit),
        "client_quantise_over_limit": _ratio(best["client"] + best["quantise"], limit),
        "chunk_over_limit": _ratio(best["chunks"], limit),
        "server_over_limit": _ratio(best["server"], server_limit),
        "threads_gain": _ratio(shared["one"], shared["all"]),
        "cores": cores(),
        "bytes_per_weight": round(sent / d, 4),
        **theirs,
        "client_seconds": round(best["client"], 6),
        "quantise_seconds": round(best["quantise"], 6),
        "digest_seconds": round(best["digest"], 6),
        "server_seconds": round(best["server"], 6),
        "key_stream_seconds": round(limit, 6),
    }


def _ratio(part: float, whole: float) -> float:
    return round(part / whole, 3)


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON line a case (default: the same, indented)")
    parser.add_argument("--sizes", default="1000000,7000000")
    parser.add_argument("--silos", default="4,8,16,32")
    parser.add_argument("--word-bits", default="16")
    parser.add_argument(
        "--seconds", type=float, default=10, help="for the turns of a case; a time is the least of them"
    )
    parser.add_argument("--peers", type=Path, default=PEERS, help="the Python of the other environment")
    options = parser.parse_args(argv)
    numbers = {
        name: [int(one) for one in getattr(options, name).split(",")] for name in ("sizes", "silos", "word_bits")
    }
    with one_core():
        peers = Peers(options.peers)
    try:
        for word_bits in numbers["word_bits"]:
            for d in numbers["sizes"]:
                for n in numbers["silos"]:
                    line = measure(d, n, word_bits, seconds=options.seconds, peers=peers)
                    print(json.dumps(line, indent=None if options.json else 2), flush=True)
    finally:
        peers.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
