"""Writes vectors.json: `python -m tests.protocol.secure_aggregation.make_vectors`.

A section of the file is a list of cases {"name", "in", "out"}; slow_answers.py comes from "in" to "out", slow_round.py plays
the last section. Everything random comes from hashes, so that a second run writes the same file; HPKE boxes are random and
are taken over from the file as it is.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tests.protocol.secure_aggregation import slow_reference as slow
from tests.protocol.secure_aggregation import slow_round
from tests.protocol.secure_aggregation.slow_answers import ANSWERS, h, text

VECTORS = Path(__file__).with_name("vectors.json")


def noise(label: str, length: int = 32) -> bytes:
    return hashlib.shake_256(b"consilium vectors, " + label.encode()).digest(length)


def spread(label: str, count: int, bound: int) -> list[int]:
    """Whole numbers in −bound .. bound."""
    raw = noise(label, 8 * count)
    return [int.from_bytes(raw[8 * k : 8 * k + 8], "big") % (2 * bound + 1) - bound for k in range(count)]


CTX = noise("ctx").hex()
ROSTER = slow.digest(b"roster")
BITS = (32, 24, 16, 12)
NAMES = ["klinik-1", "klinik-10", "klinik-2", "klinik-3"]  # sorted by bytes


def cases() -> dict[str, dict[str, dict[str, Any]]]:
    """{section: {name of the case: its inputs}}."""
    model, manifest = slow.digest(b"model"), slow.digest(b"manifest")
    attempt = {"study": "thorax", "manifest": manifest, "round": 3, "attempt": 1, "model": model}
    seed, b = noise("seed").hex(), noise("b").hex()
    nonces = {name: noise(f"nonce {name}").hex() for name in reversed(NAMES)}
    edges = {bits: [0, 1, -1, 2 ** (bits - 1) - 1, -(2 ** (bits - 1)), *spread(f"{bits}", 8, 2**10)] for bits in BITS}
    tail = text([0, 1, 2**32, 2**64 - 1, 12345678901234567890])
    masks = {
        f"{label}, {bits} bits, {where}": {
            "ctx": CTX,
            "seed": seed,
            "label": label,
            "bits": bits,
            "start": start,
            "count": 11,
        }
        for label, bits in [*((label, bits) for label in ("self", "pair") for bits in BITS), ("tail", 64)]
        for where, start in (("from the first", 0), ("from the middle of a block", 16 * 7 + 1))
    }
    unmasking = {}
    for bits in (*BITS, 64):
        size, end = 9, "tail" if bits == 64 else f"{bits} bits"
        sent = {str(i): text([w % 2**bits for w in spread(f"y {i} {bits}", size, 2**60)]) for i in (0, 2, 3)}
        unmasking[f"index 1 outside, {end}"] = {
            "ctx": CTX,
            "sent": sent,
            "bits": bits,
            "b": {str(i): noise(f"b {i}").hex() for i in (0, 2, 3)},
            "outside": {"1": {str(i): noise(f"pair 1 {i}").hex() for i in (0, 2, 3)}},
            "tail": bits == 64,
        }
    segments = [[300, 12], [100, 9]]
    words = spread("words of the sketch", 400, 2**11)
    table = [
        {"kind": "shared", "name": "conv", "shape": [2, 3]},
        {"kind": "local", "name": "count", "shape": []},
        {"kind": "shared", "name": "bias", "shape": [2]},
    ]
    weights = [0.0, -0.0, 1.0, -1.5, float(slow.float32(0.1)), 2.0**-149, float(slow.float32(3.4e38)), 2.0**-10]
    return {
        "context": {
            "a later round": attempt,
            "the first model": {**attempt, "round": 0, "model": None},
            "a second attempt": {**attempt, "attempt": 2},
        },
        "threshold": {f"{n} silos, at least {m}": {"n": n, "min_participants": m} for n, m in _sizes()},
        "derive": {
            f"{length} bytes": {"ctx": CTX, "secret": seed, "label": label, "length": length}
            for label, length in (("list", 16), ("pair seed", 32))
        },
        "binding": {
            what: {"ctx": CTX, "what": what, "secret": noise(what).hex(), "silo": NAMES[1]}
            for what in ("self", "list", "nonce 1", "nonce 2")
        },
        "set_digest": {
            "one": {"payloads": {"klinik-1": "{}"}},
            "names sort as bytes": {"payloads": {name: f'{{"silo":"{name}"}}' for name in reversed(NAMES)}},
        },
        "message": _messages(),
        "box_plaintext": {
            "from index 2 to index 0": {
                "i": 2,
                "j": 0,
                "self_share": noise("share of b").hex(),
                "list_share": noise("share of K").hex(),
                "r": noise("r").hex(),
            }
        },
        "box": {"from index 2 to index 0": _box()},
        "shares": {
            f"n = {n}, t = {slow.threshold(n)}": {
                "secret": noise(f"secret {n}").hex(),
                "coefficients": [noise(f"coefficient {n} {k}").hex() for k in range(1, slow.threshold(n))],
                "n": n,
            }
            for n in (3, 4, 7)
        }
        | {"zeros and 255s": {"secret": "00" * 16 + "ff" * 16, "coefficients": ["ff" * 32, "00" * 32], "n": 3}},
        "interpolate": {
            f"t = {len(xs)}, x = {xs}": {"shares": {str(x): noise(f"share {x}").hex() for x in xs}}
            for xs in ([1, 2, 3], [2, 4, 3], [7, 1, 3, 6, 2])
        },
        "pair_seed": {"": {"ctx": CTX, "r_ij": noise("r ij").hex(), "r_ji": noise("r ji").hex()}},
        "list_box": {
            "of index 1, index 3 sent no bundle": {
                "ctx": CTX,
                "list_key": noise("K").hex(),
                "silo": NAMES[1],
                "roster": ROSTER,
                "seeds": [noise("pair 0").hex(), "00" * 32, noise("pair 2").hex(), "00" * 32],
            }
        },
        "material": {label: {"ctx": CTX, "seed": seed, "label": label} for label in ("self", "pair", "tail", "check")},
        "stream": {
            "first bytes": {"material": noise("m", 32).hex(), "start": 0, "length": 40},
            "from the middle of a block": {"material": noise("m", 32).hex(), "start": 16 * 1000 + 5, "length": 40},
            "the counter passes 2^128": {"material": noise("m", 16).hex() + "ff" * 15 + "fe", "start": 0, "length": 64},
            "the start lies beyond counter 2^128": {
                "material": noise("m", 16).hex() + "ff" * 15 + "fe",
                "start": 16 * 5 + 3,
                "length": 20,
            },
            "the start lies beyond a carry into the upper half": {
                "material": noise("m", 16).hex() + "00" * 8 + "ff" * 8,
                "start": 16 * 5 + 3,
                "length": 20,
            },
            "the counter carries into the upper half": {
                "material": noise("m", 16).hex() + "00" * 8 + "ff" * 8,
                "start": 0,
                "length": 48,
            },
        },
        "mask": masks,
        "masked": {
            f"index 1 of 0, 1, 3, {bits} bits": {
                "ctx": CTX,
                "words": tail if bits == 64 else text(edges[bits]),
                "bits": bits,
                "b": b,
                "pairs": {"0": noise("pair 0").hex(), "3": noise("pair 3").hex()},
                "i": 1,
                "tail": bits == 64,
            }
            for bits in (*BITS, 64)
        },
        "pack": {f"{bits} bits, edges, an odd number": {"words": text(edges[bits]), "bits": bits} for bits in BITS}
        | {
            "12 bits, an even number": {"words": text(edges[12][:4]), "bits": 12},
            "12 bits, one word": {"words": ["-2"], "bits": 12},
            "the tail": {"words": tail, "bits": 64},
        },
        "chunks": {
            f"{bits} bits, a last chunk of {count - slow.CHUNK} words": {
                "count": count,
                "multiplier": 2654435761,
                "bits": bits,
                "tail": tail,
            }
            for bits, count in ((12, slow.CHUNK + 5), (24, slow.CHUNK + 1))
        }
        | {
            "one short chunk": {"count": 7, "multiplier": 2654435761, "bits": 16, "tail": tail},
            "no tail": {"count": 7, "multiplier": 2654435761, "bits": 16, "tail": []},
            "the tail alone": {"count": 0, "multiplier": 1, "bits": 32, "tail": tail},
            "one whole chunk": {"count": slow.CHUNK, "multiplier": 2654435761, "bits": 32, "tail": tail},
        },
        "evaluation": {
            "both classes": {"loss": 0.6931471805599453, "auc": 0.8125, "counts": [[5, 3, 1, 0], [0, 2, 2, 6]]},
            "halves go to the even number": {"loss": 2.5 / 2**20, "auc": 1.5 / 2**30, "counts": [[1, 0], [0, 1]]},
            "equal remainders go to the first": {"loss": 1.0, "auc": 0.5, "counts": [[1, 1, 1], [1, 1, 1]]},
            "one class, a loss beyond the cap": {"loss": 1e9, "auc": None, "counts": [[7, 2, 0, 4], [0, 0, 0, 0]]},
            "nothing scored": {"loss": None, "auc": None, "counts": [[0, 0], [0, 0]]},
        },
        "first_list": {
            "": {"members": NAMES[:3], "ready_set": slow.digest(b"ready"), "updates": slow.digest(b"update")}
        },
        "sketch_seed": {"": {"ctx": CTX, "first_list": slow.digest(b"L1"), "nonces": nonces}},
        "sketch": {
            "two segments": {"seed": noise("sketch").hex(), "words": words, "segments": segments},
            "the most fraction bits last": {
                "seed": noise("sketch").hex(),
                "words": words,
                "segments": [[1, 3], [399, 4]],
            },
        },
        "rule": _rules(),
        "unmasked": unmasking,
        "check_seed": {"": {"ctx": CTX, "sum": slow.digest(b"sum"), "nonces": nonces}},
        "coefficients": {
            where: {"ctx": CTX, "seed": seed, "start": start, "count": 5}
            for where, start in (("from the first", 0), ("from the middle of a block", 1001))
        },
        "check_word": {
            "negative words and a large tail": {"ctx": CTX, "seed": seed, "body": edges[32], "tail": tail},
            "nothing": {"ctx": CTX, "seed": seed, "body": [0, 0], "tail": ["0"]},
        },
        "state": {
            "edges of single": {"table": table, "weights": weights},
            "scales follow the sum": {"table": table, "weights": weights, "scales": [-32, 20]},
        },
        "next_weights": {
            "rounding": {
                "weights": [0.0, 1.0, -1.0, float(slow.float32(0.1)), 2.0**24, 1.0, 0.5, float(slow.float32(1e-38))],
                "words": [1, -1, 2**24 + 1, -(2**31) + 1, 1, 3, 2**31 - 1, -3],
                "segments": [[4, 20], [4, 11]],
                "server_lr": 0.7,
                "total_weight": 31,
            }
        },
        "scales": _scales(),
        "first_values": {
            "convolution": {"name": "conv.weight", "shape": [2, 3, 3, 3], "seed": 2**53 - 1},
            "linear": {"name": "head.weight", "shape": [1, 7], "seed": 0},
            "bias": {"name": "head.bias", "shape": [3], "seed": 5},
            "scale of a normalisation layer": {"name": "norm.weight", "shape": [3], "seed": 5},
            "a scalar": {"name": "temperature", "shape": [], "seed": 5},
        },
        "draw": {
            f"{count} of {len(NAMES)}": {"silos": NAMES, "count": count, "model": model, "round": 3} for count in (1, 3)
        },
    }


def _scales() -> dict[str, dict[str, Any]]:
    """Tensors that grow, fall by one power at most, keep their scale under a sum of zeros, and stop at clip_norm's."""
    given = {
        "clip_norm": 2.0,
        "weights": [3, 1, 2, 2],
        "sizes": [256, 257, 30000, 10, 10],
        "scales": [-6, -6, -9, -3, 1],
        "maxima": [900, 900, 1, 0, 9000],
        "members": [3, 1, 2],
    }
    wide = {**given, "scales": [-32, 1, 1, -32, 1], "maxima": [1, 1, 1, 1, 1]}
    edge = {**given, "scales": [0, 0, 0, 0, 0], "maxima": [2**7, 2**9, 2**9 + 1, 2**9, 2**8], "weights": [1] * 4}
    return {
        "16 bits": {"bits": 16, **given},
        "12 bits": {"bits": 12, **given, "maxima": [100, 100, 1, 0, 900]},
        "32 bits, too far apart for a sketch": {"bits": 32, **wide},
        "powers of two and one more": {"bits": 16, **edge, "members": [1, 1, 1, 1]},
        "clip_norm is a float64": {"bits": 24, **given, "clip_norm": 0.1, "scales": [-6, -6, -9, -3, -3]},
    }


def _sizes() -> list[tuple[int, int]]:
    return [(3, 3), (4, 3), (5, 3), (6, 3), (7, 6), (10, 3)]


def _messages() -> dict[str, dict[str, Any]]:
    def d(label: str) -> str:
        return slow.digest(label.encode())

    def r(label: str, length: int) -> str:
        return slow.b64(noise(label, length))

    fields: dict[str, dict[str, Any]] = {
        "keys": {"hpke_public": slow.b64(slow.hpke_public(noise("mlkem", 64), noise("x25519")))},
        "bundles": {"boxes": {name: r(name, 1120 + 98 + 16) for name in NAMES[1:3]}},
        "ready": {
            "list_digest": d("list"),
            "list_box": r("list", 32 * 4 + 16),
            "self_hash": d("self"),
            "list_hash": d("K"),
            "nonces": [d("nonce 1"), d("nonce 2")],
            "senders": NAMES[1:],
        },
        "update": {"ready_set": d("ready"), "members": NAMES, "chunks": [d("chunk 1"), d("chunk 2"), d("tail")]},
        "list": {"members": NAMES[:3], "ready_set": d("ready"), "updates": d("updates"), "nonce": r("nonce 1", 32)},
        "sketch": {
            "first_list": d("L1"),
            "nonces": d("lists"),
            "sums": slow.b64(
                b"".join(s.to_bytes(8, "little", signed=True) for s in spread("sums", 256, 2**40)),
            ),
        },
        "second": {"members": NAMES[:3], "first_list": d("L1"), "sketches": d("sketches")},
        "unmask": {
            "self_shares": {name: r(f"b {name}", 32) for name in NAMES[:3]},
            "list_shares": {NAMES[3]: r("K", 32)},
        },
        "nonce": {"sum": d("sum"), "nonce": r("nonce 2", 32)},
        "check": {"sum": d("sum"), "nonces": d("nonces"), "word": slow.b64((slow.P61 - 1).to_bytes(8, "big"))},
        "state": {"state": d("state"), "table": None},
    }
    out = {
        stage: {
            "stage": stage,
            "ctx": CTX,
            "silo": NAMES[0],
            "roster": None if stage == "keys" else ROSTER,
            "fields": content,
            "signing_key": noise("signing key").hex(),
        }
        for stage, content in fields.items()
    }
    table = [{"name": "conv.weight", "shape": [2, 3], "kind": "shared"}, {"name": "b", "shape": [], "kind": "shared"}]
    first = {**out["state"], "roster": None, "fields": {"state": d("first state"), "table": table}}
    return {**out, "state, the first model": first}


def _box() -> dict[str, Any]:
    mlkem, x25519 = noise("mlkem", 64), noise("x25519")
    plaintext = slow.box_plaintext(2, 0, noise("share of b"), noise("share of K"), noise("r"))
    before = _before().get("box", [{"in": {"box": None}}])[0]["in"]["box"]
    sealed = slow_round.keep_or_seal(before, slow.hpke_key(mlkem, x25519), slow.box_info(h(CTX), ROSTER), plaintext)
    keys = {"mlkem_seed": mlkem.hex(), "x25519_key": x25519.hex()}
    return {"ctx": CTX, "roster": ROSTER, **keys, "sender": 2, "receiver": 0, "box": sealed}


def _rules() -> dict[str, dict[str, Any]]:
    """Three silos on the median, one at a bound. All words have 0 fraction bits, so that ROUND is a quarter of their number."""

    def around(middle: list[int], one: list[int], **more: Any) -> dict[str, Any]:
        rows = {"b": one, "a": middle, "c": middle, "d": middle}
        sums = {silo: {str(37 * k): value for k, value in enumerate(row)} for silo, row in rows.items()}
        return {
            "sums": sums,
            "weights": dict.fromkeys(rows, 1),
            "clip_norm": 1000.0,
            "segments": [[175, 0]],
            **more,
        }

    clip = {"clip_norm": 7.5}  # 1.69 × (56.25 + 175/4) = 169
    two = {"clip_norm": 0.1, "segments": [[16, 2], [1, 0]], "weights": dict.fromkeys("abcd", 3)}
    # 1.69 × (0.01 × 16 + (16/4 + 16/4) / 9) = 1.77262..: at weight 3, 9 q = 15.95..
    return {
        "at the clip bound": around([10], [13], **clip),
        "over the clip bound": around([10], [13, 1], **clip),
        "under the clip bound with weight 3 and two fractions": around([3, 2], [3, 2, 1, 1], **two),
        "over the clip bound with weight 3 and two fractions": around([3, 2], [4], **two),
        # Three tenths would be a bound of 169; the float64 lies below.
        "clip_norm is a float64": around(
            [10], [13], clip_norm=0.3, segments=[[364, 0]], weights=dict.fromkeys("abcd", 10)
        ),
        "at the large bound": around([2], [10]),
        "over the large bound": around([2], [10, -1]),
        "at the small bound": around([1000], [10]),
        "under the small bound": around([1000], [9, 3, -3]),
        # q = 4, 4, 9, and the last: the median is 6.5 and its bound 162.5
        "median of the two in the middle, inside": {
            **around([2], [5]),
            "sums": {"a": {"0": 2}, "b": {"0": -2}, "c": {"1": 3}, "d": {"2": 12, "3": 4}},
        },
        "median of the two in the middle, over": {
            **around([2], [5]),
            "sums": {"a": {"0": 2}, "b": {"0": -2}, "c": {"1": 3}, "d": {"2": 12, "3": 5}},
        },
        "nothing came": around([0], [0]),
        "an odd number, weights differ": {
            **around([2], [5]),
            "sums": {"a": {"0": 8}, "b": {"0": 90, "9": 1}, "c": {"1": -3}},
            "weights": {"a": 4, "b": 6, "c": 1},
            # q = 4, 225.02.., 9: the median is 9 and its bound 225
        },
    }


def _before() -> dict[str, Any]:
    return json.loads(VECTORS.read_text()) if VECTORS.exists() else {}


def round_inputs() -> dict[str, Any]:
    """Seven silos: one falls out after `ready`, the rule leaves out one; t = 5 remain, the least that may be summed."""
    names = ["klinik-1", "klinik-10", "klinik-2", "klinik-3", "klinik-4", "klinik-5", "klinik-6"]
    t = slow.threshold(len(names))
    silos = {}
    for name in names:

        def own(label: str, length: int = 32, name: str = name) -> str:
            return noise(f"round {name} {label}", length).hex()

        silos[name] = {
            "signing_key": own("signing key"),
            "mlkem_seed": own("mlkem", 64),
            "x25519_key": own("x25519"),
            "b": own("b"),
            "K": own("K"),
            "b_coefficients": [own(f"b {k}") for k in range(1, t)],
            "K_coefficients": [own(f"K {k}") for k in range(1, t)],
            "r": {peer: own(f"r {peer}") for peer in names if peer != name},
            "nonces": [own("nonce 1"), own("nonce 2")],
            "body": spread(f"round {name} body", 36, 30000 if name == "klinik-3" else 3000),
            "tail": [abs(word) for word in spread(f"round {name} tail", 5, 2**40)],
        }
    table = [
        {"name": "conv.weight", "shape": [4, 7], "kind": "shared"},
        {"name": "bias", "shape": [8], "kind": "shared"},
    ]
    weights = [slow.float32(word / 1000) for word in spread("round state", 36, 2000)]
    return {
        "study": "thorax",
        "manifest": slow.digest(b"manifest of the round"),
        "round": 2,
        "attempt": 1,
        "model": slow.digest(slow.state(table, weights)),
        "min_participants": 3,
        "bits": 24,
        "segments": [[28, 12], [8, 10]],
        "clip_norm": 4.0,
        "server_lr": 0.9,
        "weights": {name: 2 + k % 3 for k, name in enumerate(names)},
        "state": {"table": table, "weights": weights},
        "lost": ["klinik-10"],
        "silos": silos,
    }


def whole_round() -> dict[str, Any]:
    given = round_inputs()
    before = boxes_of(_before()["round"]["out"]) if VECTORS.exists() else {}
    return {"in": given, "out": slow_round.play(given, slow_round.seal(given, before))}


def boxes_of(out: dict[str, Any]) -> slow_round.Boxes:
    return {silo: message["payload"]["boxes"] for silo, message in out["messages"]["bundles"].items()}


def write() -> None:
    sections: dict[str, Any] = {}
    for section, rows in cases().items():
        answer = ANSWERS[section]
        sections[section] = [{"name": name, "in": given, "out": answer(**given)} for name, given in rows.items()]
    sections["round"] = whole_round()
    VECTORS.write_text(lines(sections))


def lines(sections: dict[str, Any]) -> str:
    """One line a case: a diff shows which one changed."""
    parts = []
    for section, rows in sections.items():
        if section == "round":
            parts.append(f'"round": {json.dumps(rows)}')
        else:
            parts.append(f'"{section}": [\n' + ",\n".join(json.dumps(row) for row in rows) + "\n]")
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    write()
