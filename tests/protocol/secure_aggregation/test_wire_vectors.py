"""vectors.json against the slow reference, and against our code: two implementations of docs/wire.md give the same bytes.

The second holds only as long as slow_reference.py is written from the page and not from the code.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocol import server_step
from protocol.evaluation import BLINDS, encode_tail
from protocol.initial_model import initial_tensor
from protocol.messages import KINDS, seal
from protocol.model_state import ModelState, TensorSpec, table_from_list
from protocol.participation import draw
from protocol.secure_aggregation import (
    Coordinator,
    ListView,
    ProtocolViolation,
    Removal,
    RoundParameters,
    SiloRound,
    check_word,
    prg,
    sealing,
    sets,
    shamir,
    sketch,
    words,
)
from protocol.secure_aggregation.masking import Masks, masked
from protocol.secure_aggregation.parameters import Segment, SketchTerms
from protocol.secure_aggregation.scales import FixedPoint
from protocol.signing import Envelope, SigningKey
from tests.protocol.secure_aggregation import make_vectors, slow_round
from tests.protocol.secure_aggregation import slow_reference as slow
from tests.protocol.secure_aggregation.dice import Dice, speaking
from tests.protocol.secure_aggregation.slow_answers import ANSWERS, h, numbers, text, values

VECTORS = json.loads(make_vectors.VECTORS.read_text())
PAGE = Path(__file__).parents[3] / "docs" / "wire.md"
CASES = [
    pytest.param(section, case, id=f"{section}: {case['name']}")
    for section in VECTORS
    if section != "round"
    for case in VECTORS[section]
]
NOT_IN_A_SUM = {"refusal", "metrics", "heartbeat"}
"""Stages beside the round, of which docs/wire.md says nothing."""


# --- our code, from "in" to "out" ------------------------------------------------------------------------------------


def parameters(n: int = 3, **other: Any) -> RoundParameters:
    digest = "sha256:" + "0" * 64
    settings: dict[str, Any] = {
        "study": "thorax",
        "manifest": digest,
        "round": 0,
        "attempt": 0,
        "model": digest,
        "participants": {f"silo-{k}": bytes([k]) * 32 for k in range(n)},
        "min_roster": 3,
        "min_participants": 2,
        "words": 0,
        "tail": 1,
    }
    return RoundParameters(**settings | other)


def lanes(row: list[int], bits: int) -> words.Lanes:
    dtype = words.lane(bits)
    return np.array([word % 2 ** (8 * dtype.itemsize) for word in row], dtype=dtype)


def unpacked(chunk: words.Packed, bits: int) -> list[str]:
    return text(words.unpack(chunk, bits).tolist())


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def context(**fields: Any) -> str:
    return parameters(**fields).ctx.hex()


def threshold(n: int, min_participants: int) -> dict[str, int]:
    agreed = parameters(n, min_participants=min_participants)
    return {"t": agreed.threshold(n), "least": agreed.smallest_set(n)}


def derive(ctx: str, secret: str, label: str, length: int) -> str:
    return prg.derive(h(secret), label, h(ctx), length).hex()


def binding(ctx: str, what: str, secret: str, silo: str) -> str:
    return sealing.binding(what, h(secret), ctx=h(ctx), silo=silo)


def set_digest(payloads: dict[str, str]) -> str:
    return sets.set_digest({silo: Envelope("x", content.encode(), ()) for silo, content in payloads.items()})


def message(stage: str, fields: dict[str, Any], signing_key: str, **head: Any) -> dict[str, Any]:
    codecs = {field.name: field.metadata["codec"] for field in dataclasses.fields(KINDS[stage])}
    said = KINDS[stage](**head, **{name: codecs[name].read(value) for name, value in fields.items()})
    envelope = seal(said, SigningKey.from_bytes(h(signing_key)))
    return {"payload": envelope.payload.decode(), "envelope": envelope.as_dict()}


def first_list(members: list[str], ready_set: str, updates: str) -> str:
    return ListView(tuple(members), ready_set, updates).digest


def box_plaintext(i: int, j: int, self_share: str, list_share: str, r: str) -> str:
    """Sealed by our code, opened by the reference."""
    private, ctx, roster = sealing.generate_private(), bytes(32), "sha256:" + "0" * 64
    bundle = sealing.Bundle(h(self_share), h(list_share), h(r))
    box = sealing.seal_bundle(bundle, public=sealing.public_of(private), ctx=ctx, roster=roster, sender=i, receiver=j)
    return slow.open_box(slow.hpke_key(private[:64], private[64:]), slow.box_info(ctx, roster), box).hex()


def box(
    ctx: str, roster: str, mlkem_seed: str, x25519_key: str, sender: int, receiver: int, box: str
) -> dict[str, str]:
    """Sealed by the reference, opened by our code."""
    private = h(mlkem_seed) + h(x25519_key)
    opened = sealing.open_bundle(
        base64.b64decode(box), private=private, ctx=h(ctx), roster=roster, sender=sender, receiver=receiver
    )
    return {
        "hpke_public": base64.b64encode(sealing.public_of(private)).decode(),
        "info": sealing._bundle_info(h(ctx), roster).hex(),
        "plaintext": (bytes([sender + 1, receiver + 1]) + b"".join(opened)).hex(),
    }


def shares(secret: str, coefficients: list[str], n: int) -> list[str]:
    drawn = b"".join(map(h, coefficients))
    split = shamir.split(h(secret), threshold=len(coefficients) + 1, shares=n, token_bytes=Dice(drawn))
    return [split[x].hex() for x in range(1, n + 1)]


def interpolate(shares: dict[str, str]) -> str:
    return shamir.interpolate({int(x): h(share) for x, share in shares.items()}).hex()


def pair_seed(ctx: str, r_ij: str, r_ji: str) -> str:
    return sealing.pair_seed(h(r_ij), h(r_ji), h(ctx)).hex()


def list_box(ctx: str, list_key: str, silo: str, roster: str, seeds: list[str]) -> dict[str, str]:
    sealed = sealing.seal_list(b"".join(map(h, seeds)), key=h(list_key), ctx=h(ctx), roster=roster, silo=silo)
    return {"list_box": base64.b64encode(sealed).decode(), "list_digest": digest_of(sealed)}


def material(ctx: str, seed: str, label: Any) -> str:
    made = prg.Stream(h(seed), label, h(ctx))
    return (made._key + made._counter.to_bytes(16, "big")).hex()


def stream(material: str, start: int, length: int) -> str:
    made = prg.Stream(bytes(32), "self", bytes(32))
    made._key, made._counter = h(material)[:16], int(material[32:], 16)
    return made.read(start, start + length).hex()


def mask(ctx: str, seed: str, label: Any, bits: int, start: int, count: int) -> list[str]:
    row = np.zeros(count, dtype=words.lane(bits))
    prg.add_masks(row, start, [prg.Stream(h(seed), label, h(ctx))], [])
    return unpacked(words.pack(row, bits), bits)


def masked_chunk(ctx: str, words: list[str], bits: int, b: str, pairs: dict[str, str], i: int, tail: bool) -> list[str]:
    masks = Masks.build(
        h(ctx),
        self_plus=[h(b)],
        pair_plus=[h(seed) for j, seed in pairs.items() if int(j) > i],
        pair_minus=[h(seed) for j, seed in pairs.items() if int(j) < i],
    )
    chunk, _ = masked(_of_length(len(words), bits), masks, 0, lanes(numbers(words), bits).tobytes())
    return unpacked(chunk, bits)


def _of_length(count: int, bits: int) -> RoundParameters:
    """One chunk: of the body, or at 64 bits of the tail."""
    return parameters(tail=count) if bits == 64 else parameters(words=count, tail=0, word_bits=bits)


def pack(words: list[str], bits: int) -> str:
    return bytes(pack_lanes(lanes(numbers(words), bits), bits)).hex()


pack_lanes = words.pack


def chunks(count: int, multiplier: int, bits: int, tail: list[str]) -> dict[str, Any]:
    agreed = parameters(words=count, tail=len(tail), word_bits=bits)
    rows = {"body": np.arange(count, dtype="<u8") * np.uint64(multiplier), "tail": lanes(numbers(tail), 64)}
    cut = []
    for k in range(agreed.chunk_count):
        kind, start, stop = agreed.chunk_range(k)
        cut.append(bytes(pack_lanes(rows[kind][start:stop].astype(words.lane(agreed.bits(k))), agreed.bits(k))))
        assert len(cut[k]) == agreed.chunk_bytes(k)
    return {
        "lengths": [len(chunk) for chunk in cut],
        "digests": [digest_of(chunk) for chunk in cut],
        "whole": digest_of(b"".join(cut)),
    }


def evaluation(loss: float | None, auc: float | None, counts: list[list[int]]) -> list[int]:
    return encode_tail(loss=loss, auc=auc, histograms=counts)[:-BLINDS].tolist()


def sketch_seed(ctx: str, first_list: str, nonces: dict[str, str]) -> str:
    return sketch.seed_of(h(ctx), values(nonces), first_list).hex()


def sketch_sums(seed: str, words: list[int], segments: list[list[int]]) -> list[int]:
    return sketch.sketch(h(seed), segments, [np.array(words, dtype="<i4")]).tolist()


REASONS = {sketch.OVER_BOUND: "clip", sketch.ABOVE_OTHERS: "large", sketch.BELOW_OTHERS: "small"}


def rule(
    sums: dict[str, dict[str, int]], weights: dict[str, int], clip_norm: float, segments: list[list[int]]
) -> dict[str, str]:
    rows = {silo: np.array([cells.get(str(k), 0) for k in range(256)], dtype="<i8") for silo, cells in sums.items()}
    verdict = sketch.judge(rows, weights, clip_norm=clip_norm, segments=segments)
    assert sorted([*verdict.members, *verdict.excluded]) == sorted(sums)
    return {silo: REASONS[reason] for silo, reason in verdict.excluded.items()}


def unmasked(
    ctx: str, sent: dict[str, list[str]], bits: int, b: dict[str, str], outside: dict[str, dict[str, str]], tail: bool
) -> list[str]:
    pairs = [(int(i) < int(j), h(seed)) for j, seeds in outside.items() for i, seed in seeds.items()]
    masks = Masks.build(
        h(ctx),
        self_minus=map(h, b.values()),
        pair_minus=[seed for added, seed in pairs if added],
        pair_plus=[seed for added, seed in pairs if not added],
    )
    removal = Removal(_of_length(len(sent["0"]), bits), tuple(sent), (), (), masks)
    packed = [pack_lanes(lanes(numbers(row), bits), bits) for row in sent.values()]
    return unpacked(pack_lanes(removal.sum_chunk(0, packed), bits), bits)


def check_seed(ctx: str, sum: str, nonces: dict[str, str]) -> str:
    return check_word.seed_of(h(ctx), sum, values(nonces)).hex()


def coefficients(ctx: str, seed: str, start: int, count: int) -> list[str]:
    word = check_word.CheckWord(h(seed), h(ctx))
    word._next(start)
    return text(word._next(count).tolist())


def check(ctx: str, seed: str, body: list[int], tail: list[str]) -> str:
    word = check_word.CheckWord(h(seed), h(ctx))
    word.body(np.array(body, dtype="<i4"))
    word.tail(lanes(numbers(tail), 64))
    return str(word.value)


def state(table: list[dict[str, Any]], weights: list[float], scales: list[int] | None = None) -> dict[str, str]:
    following = None if scales is None else tuple(scales)
    made = ModelState(table_from_list(table), np.array(weights, dtype="<f4"), following)
    return {"bytes": made.to_bytes().hex(), "digest": made.digest}


def next_weights(
    weights: list[float], words: list[int], segments: list[list[int]], server_lr: float, total_weight: int
) -> list[float]:
    scales = tuple(Segment(count, bits) for count, bits in segments)
    vector = np.array(weights, dtype="<f4")
    server_step.apply(vector, lanes(words, 32), scales, total_weight=total_weight, server_lr=server_lr, out=vector)
    return vector.tolist()


def scales_of(
    bits: int,
    clip_norm: float,
    weights: list[int],
    sizes: list[int],
    scales: list[int],
    maxima: list[int],
    members: list[int],
) -> dict[str, Any]:
    fixed = FixedPoint(bits, None, clip_norm, len(weights), max(weights), min(weights))
    table = tuple(TensorSpec(f"tensor-{k}", (size,), "shared") for k, size in enumerate(sizes))
    fractions = [bits for words, bits in fixed.segments(table, scales) for _ in range(words)]
    ends = np.cumsum(sizes) - 1
    places = [fractions[end] for end in ends]
    (first, *others) = fixed.initial(table) or ()
    assert set(others) == {first}
    after = fixed.next_scales(table, tuple(scales), maxima, total_weight=sum(members)) or ()
    largest = fixed.word_bounds([Segment(size, places[k]) for k, size in enumerate(sizes)], members)
    return {"first": first, "fraction_bits": places, "next": list(after), "largest": list(largest)}


def first_values(name: str, shape: list[int], seed: int) -> list[float]:
    return initial_tensor(TensorSpec(name, tuple(shape), "shared"), seed).ravel().tolist()


def drawn(silos: list[str], count: int, model: str, round: int) -> list[str]:
    return list(draw(silos, count=count, model=model, round_number=round))


OURS: dict[str, Callable[..., Any]] = {
    "scales": scales_of,
    "draw": drawn,
    "masked": masked_chunk,
    "sketch": sketch_sums,
    "check_word": check,
    **{
        answer.__name__: answer
        for answer in (
            *(context, threshold, derive, binding, set_digest, message, first_list),
            *(box_plaintext, box, shares, interpolate, pair_seed, list_box),
            *(material, stream, mask, pack, chunks, evaluation),
            *(sketch_seed, rule, unmasked),
            *(check_seed, coefficients, state, next_weights, first_values),
        )
    },
}


# --- one derivation at a time ----------------------------------------------------------------------------------------


def test_every_section_has_an_answer_of_both() -> None:
    assert set(VECTORS) - {"round"} == set(ANSWERS) == set(OURS)


@pytest.mark.parametrize(("section", "case"), CASES)
def test_slow_reference_gives_the_known_answer(section: str, case: dict[str, Any]) -> None:
    assert ANSWERS[section](**case["in"]) == case["out"]


@pytest.mark.parametrize(("section", "case"), CASES)
def test_our_code_gives_the_known_answer(section: str, case: dict[str, Any]) -> None:
    assert OURS[section](**case["in"]) == case["out"]


def test_vectors_are_those_of_make_vectors() -> None:
    file = {
        section: {case["name"]: case["in"] for case in rows} for section, rows in VECTORS.items() if section != "round"
    }
    assert file == make_vectors.cases()
    assert VECTORS["round"]["in"] == make_vectors.round_inputs()


def test_every_stage_of_a_sum_has_a_vector_and_stands_on_the_page() -> None:
    stages = set(KINDS) - NOT_IN_A_SUM
    assert {case["in"]["stage"] for case in VECTORS["message"]} == stages
    assert VECTORS["round"]["out"]["messages"].keys() == stages
    assert set(re.findall(r"^\| ([a-z]+) \|", PAGE.read_text(), re.MULTILINE)) - {"stage"} == stages


def test_reference_borrows_nothing_from_the_code_that_it_checks() -> None:
    for module in ("slow_reference", "slow_answers", "slow_round", "make_vectors"):
        source = Path(__file__).with_name(f"{module}.py").read_text()
        assert re.findall(r"^\s*(?:from|import) (?:protocol|silo_node|numpy)\b", source, re.MULTILINE) == []


# --- the whole round, by our state machines --------------------------------------------------------------------------


class KnownBoxes:
    """In place of HPKE: the vector's box for a plaintext, once the reference has opened it and found that plaintext."""

    def __init__(self, silos: dict[str, Any], boxes: dict[str, dict[str, str]]) -> None:
        self.keys = {}
        self.boxes = {}
        for silo, secret in silos.items():
            seeds = h(secret["mlkem_seed"]), h(secret["x25519_key"])
            self.keys[slow.hpke_public(*seeds)] = slow.hpke_key(*seeds)
            self.boxes[slow.hpke_public(*seeds)] = [
                base64.b64decode(row[silo]) for row in boxes.values() if silo in row
            ]
        self.roster = sorted(silos)

    def encrypt(self, plain: bytes, public: bytes, info: bytes) -> bytes:
        # The sender's place among those who write to this receiver; plain says both indices, from 1.
        sender, receiver = plain[0] - 1, plain[1] - 1
        box = self.boxes[public][sender - (sender > receiver)]
        assert slow.open_box(self.keys[public], info, box) == plain
        return box


@pytest.fixture
def silos(world: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, SiloRound]:
    """The machines of the vector's round; what they draw at random is what the vector says."""
    given = VECTORS["round"]["in"]
    drawn = {}
    for name, secret in given["silos"].items():
        once = (secret["b"], secret["K"], *secret["nonces"], *secret["b_coefficients"], *secret["K_coefficients"])
        drawn[name] = Dice(b"".join(map(h, (*once, *(secret["r"][peer] for peer in sorted(secret["r"]))))))
    speaks: list[str] = []
    token_bytes = lambda length: drawn[speaks[-1]](length)  # noqa: E731
    monkeypatch.setattr(secrets, "token_bytes", token_bytes)
    monkeypatch.setitem(shamir.split.__kwdefaults__, "token_bytes", token_bytes)
    monkeypatch.setattr(
        sealing,
        "generate_private",
        lambda: h(given["silos"][speaks[-1]]["mlkem_seed"] + given["silos"][speaks[-1]]["x25519_key"]),
    )
    boxes = KnownBoxes(given["silos"], make_vectors.boxes_of(VECTORS["round"]["out"]))
    monkeypatch.setattr(sealing, "encrypt", boxes.encrypt)

    keys = {name: SigningKey.from_bytes(h(secret["signing_key"])) for name, secret in given["silos"].items()}
    segments = tuple(Segment(*segment) for segment in given["segments"])
    agreed = RoundParameters(
        **{name: given[name] for name in ("study", "manifest", "round", "attempt", "model", "min_participants")},
        participants={name: key.public for name, key in keys.items()},
        min_roster=3,
        words=sum(segment.words for segment in segments),
        tail=len(next(iter(given["silos"].values()))["tail"]),
        word_bits=given["bits"],
        sketch=SketchTerms(given["weights"], given["clip_norm"], segments),
    )
    machines = {name: SiloRound(agreed, silo=name, key=keys[name], journal=world.Journal()) for name in keys}
    for name, machine in machines.items():
        # The dice are the speaker's.
        for call in ("keys", "accept_roster"):
            monkeypatch.setattr(machine, call, speaking(name, speaks, getattr(machine, call)))
    return machines


def test_our_silos_and_portal_play_the_known_round_byte_for_byte(silos: dict[str, SiloRound]) -> None:
    given, out = VECTORS["round"]["in"], VECTORS["round"]["out"]
    said: dict[str, list[Envelope]] = {}

    def hear(stage: str, who: Any, say: Callable[[str], Envelope]) -> None:
        """All of `who` speak; each says what the vector says."""
        who = list(who)
        said[stage] = [say(name) for name in who]
        assert who == list(out["messages"][stage])
        for name, envelope in zip(who, said[stage], strict=True):
            known = out["messages"][stage][name]
            assert envelope.payload == slow.jcs(known["payload"])
            assert envelope.as_dict()["signatures"] == [{"keyid": known["keyid"], "sig": known["sig"]}]
            assert envelope.digest == known["digest"]

    agreed = next(iter(silos.values())).parameters
    portal = Coordinator(agreed)
    assert agreed.ctx.hex() == out["ctx"]
    hear("keys", silos, lambda name: silos[name].keys())
    roster = portal.roster(said["keys"])
    assert roster.digest == out["roster"]
    hear("bundles", silos, lambda name: silos[name].accept_roster(said["keys"]))
    hear("ready", silos, lambda name: silos[name].accept_bundles(portal.boxes_for(roster, said["bundles"], name)))

    first = [name for name in silos if name not in given["lost"]]
    sent = {}
    for name in first:
        silos[name].accept_ready(said["ready"])
        secret = given["silos"][name]
        silos[name].begin_update(lanes(secret["body"], given["bits"]), lanes(secret["tail"], 64))
        sent[name] = [silos[name].masked_chunk(k) for k in range(agreed.chunk_count)]
        assert [chunk.hex() for chunk in sent[name]] == out["chunks"][name]
    hear("update", first, lambda name: silos[name].finish_update())
    hear("list", first, lambda name: silos[name].sign_list(said["update"]))
    hear("sketch", first, lambda name: silos[name].show_sketch(said["list"]))

    _, verdict = portal.judge(roster, said["ready"], said["list"], said["sketch"])
    assert {silo: REASONS[reason] for silo, reason in verdict.excluded.items()} == out["left_out"]
    for name in out["left_out"]:
        with pytest.raises(ProtocolViolation, match="leaves out"):
            silos[name].sign_second(said["sketch"])
    members = verdict.members
    hear("second", members, lambda name: silos[name].sign_second(said["sketch"]))
    hear("unmask", members, lambda name: silos[name].unmask(said["list"], said["second"]))

    removal = portal.recover(roster, said["ready"], said["list"], said["unmask"], said["second"])
    summed = [
        bytes(words.pack(removal.sum_chunk(k, [sent[name][k] for name in members]), agreed.bits(k)))
        for k in range(agreed.chunk_count)
    ]
    assert [chunk.hex() for chunk in summed] == out["sum"]["chunks"]
    published = digest_of(b"".join(summed))
    assert published == out["sum"]["digest"]

    hear("nonce", members, lambda name: silos[name].open_nonce(published))
    hear("check", members, lambda name: silos[name].send_check(said["nonce"]))
    body = np.array(words.unpack(summed[0], given["bits"]))
    signed, tail = words.signed(body, given["bits"]), words.unpack(summed[1], 64)
    assert (signed.tolist(), tail.tolist()) == (out["sum"]["body"], out["sum"]["tail"])
    for name in members:
        assert silos[name].verify_sum(said["check"], [signed], tail)

    total = sum(given["weights"][name] for name in members)
    after = next_weights(given["state"]["weights"], signed.tolist(), given["segments"], given["server_lr"], total)
    assert state(given["state"]["table"], after) == out["state"]
    hear("state", members, lambda name: silos[name].sign_state(out["state"]["digest"]))


def test_slow_reference_plays_the_known_round() -> None:
    out = VECTORS["round"]["out"]
    assert slow_round.play(VECTORS["round"]["in"], make_vectors.boxes_of(out)) == out
