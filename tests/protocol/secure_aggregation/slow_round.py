"""One round from given secrets, by the slow reference: what each silo says, and what comes out of the sum."""

from __future__ import annotations

import base64
import json
from typing import Any

from cryptography.exceptions import InvalidTag

from tests.protocol.secure_aggregation import slow_reference as slow

Said = dict[str, bytes]  # silo: payload
Boxes = dict[str, dict[str, str]]  # sender: {receiver: base64}


def play(given: dict[str, Any], boxes: Boxes) -> dict[str, Any]:
    """`given` as in vectors.json, section "round": the attempt, each silo's secrets and words, and who is lost after `ready`."""
    silos = {name: _read(secrets) for name, secrets in given["silos"].items()}
    roster = slow.by_name(silos)
    index = {silo: i for i, silo in enumerate(roster)}
    ctx = slow.context(*(given[k] for k in ("study", "manifest", "round", "attempt", "model")))
    t = slow.threshold(len(roster))
    least = slow.least(len(roster), given["min_participants"])
    bits, weights = given["bits"], given["weights"]
    fraction_bits = slow.fractions_of(given["segments"])
    messages: dict[str, dict[str, Any]] = {}

    def say(stage: str, roster_digest: str | None, fields: dict[str, dict[str, Any]]) -> Said:
        said = {silo: slow.payload(stage, ctx, silo, roster_digest, fields[silo]) for silo in fields}
        messages[stage] = {}
        for silo, content in said.items():
            signed = slow.envelope(stage, content, silos[silo]["signing_key"])["signatures"][0]
            messages[stage][silo] = {"payload": json.loads(content), "digest": slow.digest(content), **signed}
        return said

    keys = say(
        "keys",
        None,
        {
            s: {"hpke_public": slow.b64(slow.hpke_public(silos[s]["mlkem_seed"], silos[s]["x25519_key"]))}
            for s in roster
        },
    )
    at = slow.set_digest(keys)  # the roster's digest
    say("bundles", at, {s: {"boxes": boxes[s]} for s in roster})

    def seed_of(i: str, j: str) -> bytes:
        i, j = slow.by_name([i, j])
        return slow.pair_seed(ctx, silos[i]["r"][j], silos[j]["r"][i])

    fields = {}
    for s in roster:
        seeds = [bytes(32) if other == s else seed_of(s, other) for other in roster]
        sealed = slow.seal_list(ctx, silos[s]["K"], s, at, seeds)
        fields[s] = {
            "list_digest": slow.digest(sealed),
            "list_box": slow.b64(sealed),
            "self_hash": slow.binding(ctx, "self", silos[s]["b"], s),
            "list_hash": slow.binding(ctx, "list", silos[s]["K"], s),
            "nonces": [slow.binding(ctx, f"nonce {k + 1}", silos[s]["nonces"][k], s) for k in (0, 1)],
            "senders": [other for other in roster if other != s],
        }
    ready = say("ready", at, fields)
    ready_set = slow.set_digest(ready)

    chunks, y = {}, {}
    first = [s for s in roster if s not in given["lost"]]
    for s in first:
        pairs = {index[j]: seed_of(s, j) for j in roster if j != s}
        y[s] = [
            slow.masked(ctx, silos[s][part], width, silos[s]["b"], pairs, index[s], part == "tail")
            for part, width in (("body", bits), ("tail", 64))
        ]
        chunks[s] = slow.chunks(y[s][0], bits, y[s][1])
    update = say(
        "update",
        at,
        {
            s: {"ready_set": ready_set, "members": roster, "chunks": [slow.digest(chunk) for chunk in chunks[s]]}
            for s in first
        },
    )

    fixed = {"members": first, "ready_set": ready_set, "updates": slow.set_digest(update)}
    lists = say("list", at, {s: {**fixed, "nonce": slow.b64(silos[s]["nonces"][0])} for s in first})
    first_list = slow.list_digest(first, ready_set, fixed["updates"])
    seed = slow.sketch_seed(ctx, first_list, {s: silos[s]["nonces"][0] for s in first})
    sums = {s: slow.sketch(seed, silos[s]["body"], fraction_bits) for s in first}
    sketches = say(
        "sketch",
        at,
        {
            s: {
                "first_list": first_list,
                "nonces": slow.set_digest(lists),
                "sums": slow.b64(b"".join(word.to_bytes(8, "little", signed=True) for word in sums[s])),
            }
            for s in first
        },
    )
    left_out = slow.rule(sums, weights, given["clip_norm"], fraction_bits)
    second = [s for s in first if s not in left_out]
    assert len(second) >= least
    say(
        "second",
        at,
        {s: {"members": second, "first_list": first_list, "sketches": slow.set_digest(sketches)} for s in second},
    )

    def share(of: str, key: str, to: str) -> str:
        return slow.b64(slow.share([silos[of][key], *silos[of][f"{key}_coefficients"]], index[to] + 1))

    outside = [s for s in roster if s not in second]
    say(
        "unmask",
        at,
        {
            s: {
                "self_shares": {of: share(of, "b", s) for of in second},
                "list_shares": {of: share(of, "K", s) for of in outside},
            }
            for s in second
        },
    )
    # The secrets come back from shares alone, as the portal would have them.
    told = {s: messages["unmask"][s]["payload"] for s in second[-t:]}

    def rebuilt(kind: str, of: str) -> bytes:
        return slow.interpolate({index[s] + 1: base64.b64decode(told[s][kind][of]) for s in told})

    b = {index[s]: rebuilt("self_shares", s) for s in second}
    assert all(rebuilt("list_shares", s) == silos[s]["K"] for s in outside)
    pairs_outside = {index[o]: {index[s]: seed_of(o, s) for s in second} for o in outside}
    body, tail = (
        slow.unmasked(ctx, {index[s]: y[s][part] for s in second}, width, b, pairs_outside, part == 1)
        for part, width in ((0, bits), (1, 64))
    )
    published = slow.chunks(body, bits, tail)
    whole = slow.digest(b"".join(published))
    body = [slow.signed(word, bits) for word in body]
    assert body == [sum(column) for column in zip(*(silos[s]["body"] for s in second), strict=True)]
    assert slow.sketch(seed, body, fraction_bits) == [sum(c) for c in zip(*(sums[s] for s in second), strict=True)]

    nonces = say("nonce", at, {s: {"sum": whole, "nonce": slow.b64(silos[s]["nonces"][1])} for s in second})
    check = slow.check_seed(ctx, whole, {s: silos[s]["nonces"][1] for s in second})
    words = {s: slow.check_word(ctx, check, silos[s]["body"], silos[s]["tail"]) for s in second}
    assert sum(words.values()) % slow.P61 == slow.check_word(ctx, check, body, tail)
    say(
        "check",
        at,
        {
            s: {"sum": whole, "nonces": slow.set_digest(nonces), "word": slow.b64(words[s].to_bytes(8, "big"))}
            for s in second
        },
    )

    total = sum(weights[s] for s in second)
    after = slow.next_weights(given["state"]["weights"], body, fraction_bits, given["server_lr"], total)
    new = slow.state(given["state"]["table"], after)
    say("state", at, {s: {"state": slow.digest(new), "table": None} for s in second})
    return {
        "ctx": ctx.hex(),
        "roster": at,
        "messages": messages,
        "chunks": {s: [chunk.hex() for chunk in chunks[s]] for s in first},
        "left_out": left_out,
        "sum": {"chunks": [chunk.hex() for chunk in published], "digest": whole, "body": body, "tail": tail},
        "state": {"bytes": new.hex(), "digest": slow.digest(new)},
    }


def _read(secrets: dict[str, Any]) -> dict[str, Any]:
    """A silo of the vectors with its hex as bytes; its words as they are."""
    plain = {k: bytes.fromhex(secrets[k]) for k in ("signing_key", "mlkem_seed", "x25519_key", "b", "K")}
    rows = {k: [bytes.fromhex(row) for row in secrets[k]] for k in ("b_coefficients", "K_coefficients", "nonces")}
    r = {peer: bytes.fromhex(value) for peer, value in secrets["r"].items()}
    return {**plain, **rows, "r": r, "body": secrets["body"], "tail": secrets["tail"]}


def seal(given: dict[str, Any], before: Boxes) -> Boxes:
    """The boxes of all silos. A box is random: where `before` has one that opens to the right plaintext, it stays."""
    silos = {name: _read(secrets) for name, secrets in given["silos"].items()}
    roster = slow.by_name(silos)
    ctx = slow.context(*(given[k] for k in ("study", "manifest", "round", "attempt", "model")))
    publics = {s: slow.b64(slow.hpke_public(silos[s]["mlkem_seed"], silos[s]["x25519_key"])) for s in roster}
    at = slow.set_digest({s: slow.payload("keys", ctx, s, None, {"hpke_public": publics[s]}) for s in roster})
    info = slow.box_info(ctx, at)
    boxes: Boxes = {}
    for i, s in enumerate(roster):
        boxes[s] = {}
        for j, to in enumerate(roster):
            if s == to:
                continue
            plaintext = slow.box_plaintext(
                i,
                j,
                slow.share([silos[s]["b"], *silos[s]["b_coefficients"]], j + 1),
                slow.share([silos[s]["K"], *silos[s]["K_coefficients"]], j + 1),
                silos[s]["r"][to],
            )
            key = slow.hpke_key(silos[to]["mlkem_seed"], silos[to]["x25519_key"])
            boxes[s][to] = keep_or_seal(before.get(s, {}).get(to), key, info, plaintext)
    return boxes


def keep_or_seal(before: str | None, key: Any, info: bytes, plaintext: bytes) -> str:
    """Base64 of a box that opens to `plaintext`: the one from `before` if it does."""
    try:
        if before and slow.open_box(key, info, base64.b64decode(before)) == plaintext:
            return before
    except InvalidTag:
        pass  # of another round: replaced
    return slow.b64(slow.seal_box(key, info, plaintext))
