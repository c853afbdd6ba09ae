"""One round with many silos from given secrets, by the slow reference: what each silo says, what comes out of the sum.

The order of the steps and what the portal hands over ("handed") were written with the code in sight; the derivations, in
slow_sparse.py, were not.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from tests.protocol.secure_aggregation import slow_reference as slow
from tests.protocol.secure_aggregation.slow_round import keep_or_seal
from tests.protocol.secure_aggregation.sparse import slow_sparse as sparse

Boxes = dict[str, dict[str, str]]  # sender: {receiver: base64}


class Round:
    """The attempt up to the graph. `given` as in sparse_vectors.json, section "round"."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given = given
        self.silos = {name: _read(secrets) for name, secrets in given["silos"].items()}
        self.participants = slow.by_name(self.silos)
        self.position = {silo: i for i, silo in enumerate(self.participants)}
        self.n = len(self.participants)
        bounds = given["bounds"]
        hood = sparse.bounds(
            self.n, Fraction(bounds["colluding"]), Fraction(bounds["lost"]), bounds["privacy"], bounds["failure"]
        )
        self.h, self.t, self.most_in = hood["neighbours"], hood["threshold"], hood["most_in"]
        attempt = {name: given[name] for name in ("study", "manifest", "round", "attempt", "model")}
        self.attempt_ctx = slow.context(**attempt)
        self.ctx = sparse.context(**attempt, neighbours=self.h, threshold=self.t)
        self.least = sparse.least_set(self.n, given["min_participants"])

        self.messages: dict[str, dict[str, Any]] = {}
        roster = self.staying(self.participants, "keys")
        keys = self.say(
            "keys",
            None,
            {
                s: {
                    "hpke_public": slow.b64(slow.hpke_public(self.silos[s]["mlkem_seed"], self.silos[s]["x25519_key"])),
                    "graph": slow.binding(self.ctx, "graph", self.silos[s]["g"], s),
                }
                for s in roster
            },
        )
        self.roster = {s: sparse.roster_value(keys[s]) for s in roster}
        self.root: str = self.stated(self.roster)["root"]
        self.graph = self.staying(roster, "row")
        self.say("row", self.root, {s: {"nonce": slow.b64(self.silos[s]["g"])} for s in self.graph})
        self.rows = {}
        for s in self.graph:
            seed = sparse.row_seed(self.ctx, s, self.root, self.silos[s]["g"])
            self.rows[s] = [self.participants[k] for k in sparse.row(seed, self.position[s], self.n, self.h)]
        self.drew = {s: [o for o in self.graph if s in self.rows[o]] for s in self.graph}
        assert max(map(len, self.drew.values())) <= self.most_in
        near = sparse.neighbours({self.position[s]: [self.position[o] for o in self.rows[s]] for s in self.graph})
        self.near = {self.participants[i]: [self.participants[k] for k in row] for i, row in near.items()}

    def staying(self, who: Iterable[str], stage: str) -> list[str]:
        """Those of `who` that speak in this stage."""
        left = [s for s in who if s not in self.given["missing"].get(stage, [])]
        assert stage in ("list", "unmask") or len(left) >= self.least
        return left

    def stated(self, values: dict[str, str]) -> dict[str, Any]:
        return sparse.stated(self.participants, values)

    def say(self, stage: str, root: str | None, fields: dict[str, dict[str, Any]]) -> dict[str, bytes]:
        ctx = self.attempt_ctx if stage == "state" else self.ctx
        said = {silo: sparse.payload(stage, ctx, silo, root, fields[silo]) for silo in fields}
        self.messages[stage] = {}
        for silo, content in said.items():
            signed = sparse.envelope(stage, content, self.silos[silo]["signing_key"])["signatures"][0]
            self.messages[stage][silo] = {"payload": json.loads(content), "digest": slow.digest(content), **signed}
        return said

    def envelope(self, stage: str, silo: str) -> dict[str, Any]:
        content = slow.jcs(self.messages[stage][silo]["payload"])
        return sparse.envelope(stage, content, self.silos[silo]["signing_key"])

    def share(self, owner: str, key: str, holder: str) -> bytes:
        x = self.rows[owner].index(holder) + 1
        return slow.share([self.silos[owner][key], *self.silos[owner][f"{key}_coefficients"]], x)

    def pair_seed(self, i: str, j: str) -> bytes:
        i, j = slow.by_name([i, j])
        return slow.pair_seed(self.ctx, self.silos[i]["r"][j], self.silos[j]["r"][i])

    def in_roster(self, silos: Iterable[str]) -> list[str]:
        return [s for s in silos if s in self.roster]


def seal(given: dict[str, Any], before: Boxes) -> Boxes:
    """The boxes of all silos. A box is random: where `before` has one that opens to the right plaintext, it stays."""
    this = Round(given)
    boxes: Boxes = {}
    for s in this.graph:
        boxes[s] = {}
        for to in this.in_roster(this.near[s]):
            shares = (this.share(s, "b", to), this.share(s, "K", to)) if to in this.rows[s] else (None, None)
            boxes[s][to] = keep_or_seal(
                before.get(s, {}).get(to),
                slow.hpke_key(this.silos[to]["mlkem_seed"], this.silos[to]["x25519_key"]),
                sparse.box_info(this.ctx, s, to, this.root),
                sparse.box_plaintext(this.silos[s]["r"][to], *shares),
            )
    return boxes


def play(given: dict[str, Any], boxes: Boxes) -> dict[str, Any]:
    """`given`: the attempt, each silo's secrets and words, and who is missing from a stage on ("list": for that one and
    "unmask" only). "handed" in what comes back: digests of the JCS of what the portal hands each silo."""
    this = Round(given)
    silos, ctx, root, t = this.silos, this.ctx, this.root, this.t
    handed: dict[str, dict[str, str]] = {s: {} for s in this.graph}

    def hand(silo: str, what: str, value: Any) -> None:
        handed[silo][what] = slow.digest(slow.jcs(value))

    def entries(silo: str, values: dict[str, str]) -> list[dict[str, Any]]:
        """Its own and those of its neighbours in the roster."""
        wanted = slow.by_name([silo, *this.in_roster(this.near[silo])])
        return [sparse.entry(this.participants, values, other) for other in wanted]

    # bundles
    hashes: dict[str, dict[str, list[str]]] = {}
    for s in this.graph:
        hashes[s] = {
            o: [
                sparse.share_hash(ctx, "self share", s, o, this.share(s, "b", o)),
                sparse.share_hash(ctx, "list share", s, o, this.share(s, "K", o)),
            ]
            for o in this.in_roster(this.rows[s])
        }
        hand(
            s,
            "neighbours",
            [
                {
                    "leaf": sparse.entry(this.participants, this.roster, o),
                    "keys": this.envelope("keys", o) if o in this.roster else None,
                    "row": this.envelope("row", o) if o in this.drew[s] else None,
                }
                for o in this.near[s]
            ],
        )
        assert len(this.in_roster(this.rows[s])) >= t
    this.say("bundles", root, {s: {"boxes": boxes[s], "hashes": hashes[s]} for s in this.graph})

    # ready
    fields = {}
    ready_now = this.staying(this.graph, "ready")
    for s in ready_now:
        senders = [o for o in this.graph if s in boxes[o]]
        parcels = {o: {"box": boxes[o][s], "hashes": hashes[o].get(s)} for o in senders}
        hand(s, "parcels", parcels)
        fields[s] = {
            "self_hash": slow.binding(ctx, "self", silos[s]["b"], s),
            "list_hash": slow.binding(ctx, "list", silos[s]["K"], s),
            "list_box": slow.b64(slow.seal_list(ctx, silos[s]["K"], s, root, [this.pair_seed(s, o) for o in senders])),
            "senders": senders,
            "nonce": slow.binding(ctx, "nonce 2", silos[s]["nonce"], s),
        }
    said = this.say("ready", root, fields)
    ready_digests = {s: slow.digest(said[s]) for s in said}
    in_r = {s: sparse.ready_value(fields[s]["nonce"], ready_digests[s]) for s in said}
    r = this.stated(in_r)

    # update
    chunks, y = {}, {}
    bits = given["bits"]
    summed = this.staying(in_r, "update")
    for s in in_r:
        hand(s, "ready", entries(s, in_r))
        assert sum(o in in_r for o in this.rows[s]) >= t
    for s in summed:
        pairs = {this.position[o]: this.pair_seed(s, o) for o in this.near[s] if o in in_r}
        y[s] = [
            slow.masked(ctx, silos[s][part], width, silos[s]["b"], pairs, this.position[s], part == "tail")
            for part, width in (("body", bits), ("tail", 64))
        ]
        chunks[s] = slow.chunks(y[s][0], bits, y[s][1])
    this.say(
        "update",
        root,
        {s: {"ready_set": r["root"], "chunks": [slow.digest(chunk) for chunk in chunks[s]]} for s in summed},
    )

    # list
    in_list = dict.fromkeys(summed, sparse.SUMMED)
    l1 = this.stated(in_list)
    signers = this.staying(summed, "list")
    both = {"ready_set": r["root"], "ready_size": r["size"], "members": l1["root"], "size": l1["size"]}
    for s in summed:
        hand(s, "list", entries(s, in_list))
        hand(s, "updates", [this.envelope("update", o) for o in this.drew[s] if o in summed])
        assert sum(o in summed for o in this.rows[s]) >= t
    this.say("list", root, dict.fromkeys(signers, both))

    # unmask
    able = [s for s in signers if sum(o in signers for o in this.rows[s]) >= t]
    shown = {}
    for s in able:
        hand(s, "lists", [this.envelope("list", o) for o in this.rows[s] if o in signers])
        owners = [o for o in this.drew[s] if o in in_r]
        shown[s] = {
            "self_shares": {o: slow.b64(this.share(o, "b", s)) for o in owners if o in summed},
            "list_shares": {o: slow.b64(this.share(o, "K", s)) for o in owners if o not in summed},
        }
    this.say("unmask", root, shown)

    # The secrets come back from shares alone, as the portal would have them.
    def rebuilt(kind: str, owner: str) -> bytes:
        came = {
            x: base64.b64decode(shown[holder][kind][owner])
            for x, holder in enumerate(this.rows[owner], start=1)
            if holder in shown
        }
        assert len(came) >= t
        return slow.interpolate(dict(list(came.items())[-t:]))

    b = {this.position[s]: rebuilt("self_shares", s) for s in summed}
    outside = [s for s in in_r if s not in summed]
    assert all(rebuilt("list_shares", s) == silos[s]["K"] for s in outside)
    left = {
        this.position[o]: {this.position[s]: this.pair_seed(o, s) for s in this.near[o] if s in summed} for o in outside
    }
    body, tail = (
        sparse.unmasked(ctx, {this.position[s]: y[s][part] for s in summed}, width, b, left, part == 1)
        for part, width in ((0, bits), (1, 64))
    )
    published = slow.chunks(body, bits, tail)
    whole = slow.digest(b"".join(published))
    body = [slow.signed(word, bits) for word in body]
    assert body == [sum(column) for column in zip(*(silos[s]["body"] for s in summed), strict=True)]

    # nonce, check
    nonces = {s: silos[s]["nonce"] for s in summed}
    this.say("nonce", root, {s: {"sum": whole, "nonce": slow.b64(nonces[s])} for s in summed})
    opened = {
        "nonces": {s: [ready_digests[s], slow.b64(nonces[s])] for s in summed},
        "others": {s: in_r[s] for s in outside},
    }
    again = {
        s: sparse.ready_value(slow.binding(ctx, "nonce 2", nonces[s], s), ready_digests[s]) for s in summed
    } | opened["others"]
    assert this.stated(again) == r
    for s in summed:
        hand(s, "opened", opened)
    check = slow.check_seed(ctx, whole, nonces)
    words = {s: slow.check_word(ctx, check, silos[s]["body"], silos[s]["tail"]) for s in summed}
    assert sum(words.values()) % slow.P61 == slow.check_word(ctx, check, body, tail)
    named = sparse.check_nonces(nonces)
    this.say(
        "check",
        root,
        {s: {"sum": whole, "nonces": named, "word": slow.b64(words[s].to_bytes(8, "big"))} for s in summed},
    )

    # state
    total = sum(given["weights"][s] for s in summed)
    fraction_bits = slow.fractions_of(given["segments"])
    after = slow.next_weights(given["state"]["weights"], body, fraction_bits, given["server_lr"], total)
    new = slow.state(given["state"]["table"], after)
    this.say("state", root, {s: {"state": slow.digest(new), "table": None} for s in summed})
    return {
        "ctx": ctx.hex(),
        "pair_seeds": {s: {o: this.pair_seed(s, o).hex() for o in fields[s]["senders"]} for s in ready_now},
        "check_seed": check.hex(),
        "neighbours": {s: {"row": this.rows[s], "drew": this.drew[s]} for s in this.graph},
        "sets": {"roster": this.stated(this.roster), "ready": r, "list": l1},
        "values": {"roster": this.roster, "ready": in_r, "list": in_list},
        "messages": this.messages,
        "handed": handed,
        "chunks": {s: [chunk.hex() for chunk in chunks[s]] for s in summed},
        "sum": {"chunks": [chunk.hex() for chunk in published], "digest": whole, "body": body, "tail": tail},
        "state": {"bytes": new.hex(), "digest": slow.digest(new)},
    }


def _read(secrets: dict[str, Any]) -> dict[str, Any]:
    """A silo of the vectors with its hex as bytes; its words as they are."""
    plain = {k: bytes.fromhex(secrets[k]) for k in ("signing_key", "mlkem_seed", "x25519_key", "g", "b", "K", "nonce")}
    rows = {k: [bytes.fromhex(row) for row in secrets[k]] for k in ("b_coefficients", "K_coefficients")}
    r = {peer: bytes.fromhex(value) for peer, value in secrets["r"].items()}
    return {**plain, **rows, "r": r, "body": secrets["body"], "tail": secrets["tail"]}
