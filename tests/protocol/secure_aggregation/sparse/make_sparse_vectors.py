"""Writes sparse_vectors.json: `python -m tests.protocol.secure_aggregation.sparse.make_sparse_vectors`.

The same form as vectors.json: a section is a list of cases {"name", "in", "out"}; slow_sparse_answers.py comes from "in" to
"out", slow_sparse_round.py plays the last section. A second run writes the same file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.protocol.secure_aggregation import slow_reference as slow
from tests.protocol.secure_aggregation.make_vectors import lines, noise, spread
from tests.protocol.secure_aggregation.slow_round import keep_or_seal
from tests.protocol.secure_aggregation.sparse import slow_sparse as sparse
from tests.protocol.secure_aggregation.sparse import slow_sparse_round
from tests.protocol.secure_aggregation.sparse.slow_sparse_answers import ANSWERS, h

VECTORS = Path(__file__).with_name("sparse_vectors.json")

CTX = noise("sparse ctx").hex()
ROOT = slow.digest(b"roster's root")
PROMISED = {"colluding": "1/5", "lost": "1/10", "privacy": 40, "failure": 30}
SMALL = {"colluding": "1/10", "lost": "1/5", "privacy": 5, "failure": 20}
"""Bounds that nobody should promise: with them ten silos draw six each, of whom four rebuild a secret."""
THROWN = 30116
"""The number of a seed that throws a number away with 4,096 silos; found by trying."""
MANY_THROWN = 57
"""The number of a seed that throws away five of the first eight numbers; found by trying."""
GRAPH = 939
"""The number of a graph in which every silo that stays has four of its row there, in every stage, and two members of
L1 are no neighbours; found by trying."""


def names(n: int) -> list[str]:
    """Sorted by bytes: klinik-1, klinik-10, klinik-2, .."""
    return slow.by_name([f"klinik-{k}" for k in range(1, n + 1)])


def cases() -> dict[str, dict[str, dict[str, Any]]]:
    """{section: {name of the case: its inputs}}."""
    attempt = {
        "study": "thorax",
        "manifest": slow.digest(b"manifest"),
        "round": 3,
        "attempt": 1,
        "model": slow.digest(b"model"),
    }
    both = {"neighbours": 27, "threshold": 20}
    nine, some = names(9), [0, 3, 4, 8]
    values = {nine[k]: slow.digest(nine[k].encode()) for k in some}
    g = noise("sparse g").hex()
    return {
        "context": {
            "a later round": {**attempt, **both},
            "the first model": {**attempt, "round": 0, "model": None, **both},
            "another threshold": {**attempt, **both, "threshold": 21},
        },
        "least_set": {
            f"{n} silos, at least {m}": {"n": n, "min_participants": m} for n, m in ((64, 3), (65, 60), (66, 3))
        },
        "bounds": {f"{n} silos": {"n": n, **PROMISED} for n in (64, 65, 100, 128)}
        | {"ten silos, weak bounds": {"n": 10, **SMALL}},
        "stated": {
            f"{n} silos, all of them": {"participants": names(n), "values": dict.fromkeys(names(n), "summed")}
            for n in (3, 4, 7, 8, 9)
        }
        | {
            "four of nine": {"participants": nine, "values": values},
            "names are sorted as bytes": {"participants": nine[::-1], "values": values},
            "nobody": {"participants": names(5), "values": {}},
        },
        "entry": {
            f"of position {k} of nine": {"participants": nine, "values": values, "silo": nine[k]} for k in (0, 2, 4, 8)
        },
        "ready_value": {"": {"nonce": slow.digest(b"commitment"), "ready": slow.digest(b"ready")}},
        "message": _messages(),
        "check_nonces": {"": {"nonces": {name: noise(f"sparse nonce {name}").hex() for name in names(10)[::-1]}}},
        "draw": {
            "six of nine": {"seed": noise("sparse draw").hex(), "below": 9, "count": 6},
            "nine of nine": {"seed": noise("sparse draw").hex(), "below": 9, "count": 9},
            "255 of 4,095, a number is thrown away": {
                "seed": noise(f"sparse draw {THROWN}").hex(),
                "below": 4095,
                "count": 255,
            },
            "four of 3 × 2^30, most numbers are thrown away": {
                "seed": noise(f"sparse draw {MANY_THROWN}").hex(),
                "below": 3 * 2**30,
                "count": 4,
            },
        },
        "row": {
            f"of position {k} of 64": {
                "attempt": attempt,
                "participants": names(64),
                "silo": names(64)[k],
                "roster": ROOT,
                "g": g,
            }
            for k in (0, 30, 63)
        },
        "box_plaintext": {
            "to a silo of the own row": {
                "r": noise("sparse r").hex(),
                "self_share": noise("sparse share of b").hex(),
                "list_share": noise("sparse share of K").hex(),
            },
            "to a silo that drew the sender": {"r": noise("sparse r").hex(), "self_share": None, "list_share": None},
        },
        "box": {"to a silo of the own row": _box(holder=True), "to a silo that drew the sender": _box(holder=False)},
        "share_hash": {
            what: {
                "ctx": CTX,
                "what": what,
                "owner": "klinik-1",
                "holder": "klinik-10",
                "share": noise(f"sparse {what}").hex(),
            }
            for what in ("self share", "list share")
        },
        "list_box": {
            "of three senders": {
                "ctx": CTX,
                "list_key": noise("sparse K").hex(),
                "silo": "klinik-10",
                "roster": ROOT,
                "seeds": [noise(f"sparse pair {k}").hex() for k in range(3)],
            },
        },
    }


def _messages() -> dict[str, dict[str, Any]]:
    def d(label: str) -> str:
        return slow.digest(b"sparse " + label.encode())

    def r(label: str, length: int = 32) -> str:
        return slow.b64(noise(f"sparse {label}", length))

    a, b, c, _ = names(4)
    fields: dict[str, dict[str, Any]] = {
        "keys": {
            "hpke_public": slow.b64(slow.hpke_public(noise("mlkem", 64), noise("x25519"))),
            "graph": d("graph"),
        },
        "row": {"nonce": r("g")},
        "bundles": {
            "boxes": {b: r("box to the row", 1120 + 96 + 16), c: r("box", 1120 + 32 + 16)},
            "hashes": {b: [d("share of b"), d("share of K")]},
        },
        "ready": {
            "self_hash": d("b"),
            "list_hash": d("K"),
            "list_box": r("list", 2 * 32 + 16),
            "senders": [b, c],
            "nonce": d("nonce 2"),
        },
        "update": {"ready_set": d("R"), "chunks": [d("chunk 1"), d("tail")]},
        "list": {"ready_set": d("R"), "ready_size": 50, "members": d("L1"), "size": 48},
        "unmask": {"self_shares": {b: r("share of b")}, "list_shares": {c: r("share of K")}},
        "nonce": {"sum": d("sum"), "nonce": r("nonce 2")},
        "check": {"sum": d("sum"), "nonces": d("nonces"), "word": slow.b64((slow.P61 - 1).to_bytes(8, "big"))},
        "state": {"state": d("state"), "table": None},
    }
    return {
        stage: {
            "stage": stage,
            "ctx": CTX,
            "silo": a,
            "roster": None if stage == "keys" else ROOT,
            "fields": content,
            "signing_key": noise("signing key").hex(),
        }
        for stage, content in fields.items()
    }


def _box(*, holder: bool) -> dict[str, Any]:
    mlkem, x25519 = noise("mlkem", 64), noise("x25519")
    ends = {"sender": "klinik-2", "receiver": "klinik-10"}
    shares = {"self share": noise("sparse share of b"), "list share": noise("sparse share of K")} if holder else {}
    hashes = [sparse.share_hash(h(CTX), what, *ends.values(), share) for what, share in shares.items()]
    plaintext = sparse.box_plaintext(noise("sparse r"), shares.get("self share"), shares.get("list share"))
    before = {case["in"]["hashes"] is not None: case["in"]["box"] for case in _before().get("box", [])}
    info = sparse.box_info(h(CTX), *ends.values(), ROOT)
    sealed = keep_or_seal(before.get(holder), slow.hpke_key(mlkem, x25519), info, plaintext)
    keys = {"mlkem_seed": mlkem.hex(), "x25519_key": x25519.hex()}
    return {"ctx": CTX, "roster": ROOT, **keys, **ends, "hashes": hashes or None, "box": sealed}


def _before() -> dict[str, Any]:
    return json.loads(VECTORS.read_text()) if VECTORS.exists() else {}


def round_inputs(graph: int = GRAPH) -> dict[str, Any]:
    """Ten silos: one is absent, one falls out before its row is opened, one after `ready`; one signs no list and comes back.

    `graph`: draws other rows."""
    everybody = names(10)
    silos = {}
    for name in everybody:

        def own(label: str, length: int = 32, name: str = name) -> str:
            return noise(f"sparse round {name} {label}", length).hex()

        silos[name] = {
            "signing_key": own("signing key"),
            "mlkem_seed": own("mlkem", 64),
            "x25519_key": own("x25519"),
            "g": own(f"g {graph}"),
            "b": own("b"),
            "K": own("K"),
            "nonce": own("nonce 2"),
            "b_coefficients": [own(f"b {k}") for k in range(1, 4)],
            "K_coefficients": [own(f"K {k}") for k in range(1, 4)],
            "r": {peer: own(f"r {peer}") for peer in everybody if peer != name},
            "body": spread(f"sparse round {name} body", 12, 3000),
            "tail": [abs(word) for word in spread(f"sparse round {name} tail", 3, 2**40)],
        }
    table = [{"name": "conv.weight", "shape": [3, 3], "kind": "shared"}, {"name": "b", "shape": [3], "kind": "shared"}]
    weights = [slow.float32(word / 1000) for word in spread("sparse round state", 12, 2000)]
    return {
        "study": "thorax",
        "manifest": slow.digest(b"manifest of the round with many silos"),
        "round": 2,
        "attempt": 1,
        "model": slow.digest(slow.state(table, weights)),
        "min_participants": 3,
        "bounds": SMALL,
        "bits": 24,
        "segments": [[9, 12], [3, 10]],
        "server_lr": 0.9,
        "weights": {name: 2 + k % 3 for k, name in enumerate(everybody)},
        "state": {"table": table, "weights": weights},
        "missing": {"keys": ["klinik-4"], "row": ["klinik-10"], "update": ["klinik-7"], "list": ["klinik-2"]},
        "silos": silos,
    }


def whole_round() -> dict[str, Any]:
    given = round_inputs()
    before = boxes_of(_before()["round"]["out"]) if VECTORS.exists() else {}
    return {"in": given, "out": slow_sparse_round.play(given, slow_sparse_round.seal(given, before))}


def boxes_of(out: dict[str, Any]) -> slow_sparse_round.Boxes:
    return {silo: message["payload"]["boxes"] for silo, message in out["messages"]["bundles"].items()}


def write() -> None:
    sections: dict[str, Any] = {}
    for section, rows in cases().items():
        answer = ANSWERS[section]
        sections[section] = [{"name": name, "in": given, "out": answer(**given)} for name, given in rows.items()]
    sections["round"] = whole_round()
    VECTORS.write_text(lines(sections))


if __name__ == "__main__":
    write()
