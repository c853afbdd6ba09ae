"""From "in" to "out" of a case in vectors.json, by the slow reference: one function a section, named like it.

Bytes are hex, or base64 where the protocol sends base64; numbers that can pass 2^53 are decimal strings.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any

from tests.protocol.secure_aggregation import slow_reference as slow

h = bytes.fromhex


def values(row: dict[Any, str]) -> dict[Any, bytes]:
    return {k: h(v) for k, v in row.items()}


def numbers(row: Sequence[str]) -> list[int]:
    return [int(number) for number in row]


def text(row: Sequence[int]) -> list[str]:
    return [str(number) for number in row]


def by_index(row: dict[str, Any]) -> dict[int, Any]:
    return {int(k): v for k, v in row.items()}


def context(**fields: Any) -> str:
    return slow.context(**fields).hex()


def threshold(n: int, min_participants: int) -> dict[str, int]:
    return {"t": slow.threshold(n), "least": slow.least(n, min_participants)}


def derive(ctx: str, secret: str, label: str, length: int) -> str:
    return slow.derive(h(ctx), h(secret), label, length).hex()


def binding(ctx: str, what: str, secret: str, silo: str) -> str:
    return slow.binding(h(ctx), what, h(secret), silo)


def set_digest(payloads: dict[str, str]) -> str:
    return slow.set_digest({silo: content.encode() for silo, content in payloads.items()})


def message(stage: str, ctx: str, silo: str, roster: str | None, fields: dict[str, Any], signing_key: str) -> Any:
    content = slow.payload(stage, h(ctx), silo, roster, fields)
    return {"payload": content.decode(), "envelope": slow.envelope(stage, content, h(signing_key))}


def box(
    ctx: str, roster: str, mlkem_seed: str, x25519_key: str, sender: int, receiver: int, box: str
) -> dict[str, str]:
    key, info = slow.hpke_key(h(mlkem_seed), h(x25519_key)), slow.box_info(h(ctx), roster)
    public = slow.hpke_public(h(mlkem_seed), h(x25519_key))
    opened = slow.open_box(key, info, base64.b64decode(box))
    assert opened[:2] == bytes([sender + 1, receiver + 1])
    return {"hpke_public": slow.b64(public), "info": info.hex(), "plaintext": opened.hex()}


def box_plaintext(i: int, j: int, self_share: str, list_share: str, r: str) -> str:
    return slow.box_plaintext(i, j, h(self_share), h(list_share), h(r)).hex()


def shares(secret: str, coefficients: list[str], n: int) -> list[str]:
    return [slow.share([h(secret), *map(h, coefficients)], x).hex() for x in range(1, n + 1)]


def interpolate(shares: dict[str, str]) -> str:
    return slow.interpolate(values(by_index(shares))).hex()


def pair_seed(ctx: str, r_ij: str, r_ji: str) -> str:
    return slow.pair_seed(h(ctx), h(r_ij), h(r_ji)).hex()


def list_box(ctx: str, list_key: str, silo: str, roster: str, seeds: list[str]) -> dict[str, str]:
    sealed = slow.seal_list(h(ctx), h(list_key), silo, roster, [h(seed) for seed in seeds])
    return {"list_box": slow.b64(sealed), "list_digest": slow.digest(sealed)}


def material(ctx: str, seed: str, label: str) -> str:
    return slow.material(h(ctx), h(seed), label).hex()


def stream(material: str, start: int, length: int) -> str:
    return slow.stream(h(material), start, length).hex()


def mask(ctx: str, seed: str, label: str, bits: int, start: int, count: int) -> list[str]:
    return text(slow.mask(h(ctx), h(seed), label, bits, start, count))


def masked(ctx: str, words: list[str], bits: int, b: str, pairs: dict[str, str], i: int, tail: bool) -> list[str]:
    return text(slow.masked(h(ctx), numbers(words), bits, h(b), values(by_index(pairs)), i, tail))


def pack(words: list[str], bits: int) -> str:
    return slow.pack(numbers(words), bits).hex()


def chunks(count: int, multiplier: int, bits: int, tail: list[str]) -> dict[str, Any]:
    body = [(k * multiplier) % 2**bits for k in range(count)]
    cut = slow.chunks(body, bits, numbers(tail))
    return {
        "lengths": [len(chunk) for chunk in cut],
        "digests": [slow.digest(chunk) for chunk in cut],
        "whole": slow.digest(b"".join(cut)),
    }


def evaluation(loss: float | None, auc: float | None, counts: list[list[int]]) -> list[int]:
    return slow.evaluation(loss, auc, counts)


def first_list(members: list[str], ready_set: str, updates: str) -> str:
    return slow.list_digest(members, ready_set, updates)


def sketch_seed(ctx: str, first_list: str, nonces: dict[str, str]) -> str:
    return slow.sketch_seed(h(ctx), first_list, values(nonces)).hex()


def sketch(seed: str, words: list[int], segments: list[list[int]]) -> list[int]:
    return slow.sketch(h(seed), words, slow.fractions_of(segments))


def rule(
    sums: dict[str, dict[str, int]], weights: dict[str, int], clip_norm: float, segments: list[list[int]]
) -> dict[str, str]:
    """`sums`: {silo: {cell: its sum}}, the other cells are 0."""
    rows = {silo: [cells.get(str(k), 0) for k in range(256)] for silo, cells in sums.items()}
    return slow.rule(rows, weights, clip_norm, slow.fractions_of(segments))


def unmasked(
    ctx: str,
    sent: dict[str, list[str]],
    bits: int,
    b: dict[str, str],
    outside: dict[str, dict[str, str]],
    tail: bool,
) -> list[str]:
    pairs = {j: values(by_index(seeds)) for j, seeds in by_index(outside).items()}
    rows = {i: numbers(row) for i, row in by_index(sent).items()}
    return text(slow.unmasked(h(ctx), rows, bits, values(by_index(b)), pairs, tail))


def check_seed(ctx: str, sum: str, nonces: dict[str, str]) -> str:
    return slow.check_seed(h(ctx), sum, values(nonces)).hex()


def coefficients(ctx: str, seed: str, start: int, count: int) -> list[str]:
    return text(slow.coefficients(h(ctx), h(seed), start, count))


def check_word(ctx: str, seed: str, body: list[int], tail: list[str]) -> str:
    return str(slow.check_word(h(ctx), h(seed), body, numbers(tail)))


def state(table: list[dict[str, Any]], weights: list[float], scales: list[int] | None = None) -> dict[str, str]:
    new = slow.state(table, weights, scales)
    return {"bytes": new.hex(), "digest": slow.digest(new)}


def next_weights(
    weights: list[float], words: list[int], segments: list[list[int]], server_lr: float, total_weight: int
) -> list[float]:
    """Singles, written as the decimal numbers they are."""
    return slow.next_weights(weights, words, slow.fractions_of(segments), server_lr, total_weight)


def scales(
    bits: int,
    clip_norm: float,
    weights: list[int],
    sizes: list[int],
    scales: list[int],
    maxima: list[int],
    members: list[int],
) -> dict[str, Any]:
    """`weights`: of all participants; `members`: those of the silos in the sum; `maxima`: largest |word| a tensor."""
    fractions = slow.fraction_bits(scales, sizes, bits, len(weights), max(weights))
    return {
        "first": slow.first_scale(clip_norm, sum(sizes)),
        "fraction_bits": fractions,
        "next": slow.next_scales(scales, sizes, maxima, fractions, sum(members), clip_norm),
        "largest": [
            slow.largest_sum(slow.levels(bits, len(weights), max(weights)) - f, f, members, clip_norm)
            for f in fractions
        ],
    }


def first_values(name: str, shape: list[int], seed: int) -> list[float]:
    return slow.first_values(name, shape, seed)


def draw(silos: list[str], count: int, model: str, round: int) -> list[str]:
    return slow.draw(silos, count, model, round)


ANSWERS: dict[str, Callable[..., Any]] = {
    answer.__name__: answer
    for answer in (
        *(context, threshold, derive, binding, set_digest, message, first_list),
        *(box_plaintext, box, shares, interpolate, pair_seed, list_box),
        *(material, stream, mask, masked, pack, chunks, evaluation),
        *(sketch_seed, sketch, rule, unmasked),
        *(check_seed, coefficients, check_word, state, next_weights),
        *(scales, first_values, draw),
    )
}
