"""sparse_vectors.json against the slow reference, and against our code: two implementations of docs/wire-many.md agree.

The second holds only as long as slow_sparse.py is written from the page and not from the code.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
import secrets
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocol import canonical
from protocol.messages import seal
from protocol.secure_aggregation import sealing, shamir, words
from protocol.secure_aggregation.sparse import (
    OpenedNonces,
    Parcel,
    SparseCoordinator,
    SparseParameters,
    SparseRound,
    boxes,
    graph,
    nonces,
)
from protocol.secure_aggregation.sparse.bounds import neighbours
from protocol.secure_aggregation.sparse.boxes import Content
from protocol.secure_aggregation.sparse.messages import SPARSE
from protocol.secure_aggregation.sparse.nonces import Opened
from protocol.secure_aggregation.sparse.trees import Tree
from protocol.signing import Envelope, SigningKey
from tests.protocol.secure_aggregation import slow_reference as slow
from tests.protocol.secure_aggregation.dice import Dice, speaking
from tests.protocol.secure_aggregation.slow_answers import h
from tests.protocol.secure_aggregation.sparse import make_sparse_vectors, slow_sparse_round
from tests.protocol.secure_aggregation.sparse import slow_sparse as sparse_reference
from tests.protocol.secure_aggregation.sparse.slow_sparse_answers import ANSWERS

VECTORS = json.loads(make_sparse_vectors.VECTORS.read_text())
PAGE = Path(__file__).parents[4] / "docs" / "wire-many.md"
CASES = [
    pytest.param(section, case, id=f"{section}: {case['name']}")
    for section in VECTORS
    if section != "round"
    for case in VECTORS[section]
]


# --- our code, from "in" to "out" ------------------------------------------------------------------------------------


def parameters(participants: list[str], **other: Any) -> SparseParameters:
    digest = "sha256:" + "0" * 64
    settings: dict[str, Any] = {
        "study": "thorax",
        "manifest": digest,
        "round": 0,
        "attempt": 0,
        "model": digest,
        "participants": {silo: k.to_bytes(32, "big") for k, silo in enumerate(participants)},
        "min_roster": 3,
        "min_participants": 3,
        "words": 0,
        "tail": 1,
    }
    return SparseParameters(**settings | other)


def few(participants: list[str]) -> SparseParameters:
    """Of silos too few for any promise."""
    none = {"colluding": Fraction(0), "lost": Fraction(0), "privacy_bits": 1, "failure_bits": 1}
    return parameters(participants, sparse_from=3, **none)


def context(neighbours: int, threshold: int, **fields: Any) -> str:
    agreed = parameters(make_sparse_vectors.names(64), **fields)
    hood = dataclasses.replace(agreed.neighbourhood, h=neighbours, t=threshold)
    agreed.__dict__["neighbourhood"] = hood
    return agreed.ctx.hex()


def least_set(n: int, min_participants: int) -> int:
    return parameters(make_sparse_vectors.names(n), min_participants=min_participants).least_set


def bounds(n: int, colluding: str, lost: str, privacy: int, failure: int) -> dict[str, int]:
    found = neighbours(
        n, colluding=Fraction(colluding), lost=Fraction(lost), privacy_bits=privacy, failure_bits=failure
    )
    return {"neighbours": found.h, "threshold": found.t, "most_in": found.most_in}


def stated(participants: list[str], values: dict[str, str]) -> dict[str, Any]:
    return Tree(few(participants), values).claim.as_dict()


def entry(participants: list[str], values: dict[str, str], silo: str) -> dict[str, Any]:
    agreed = few(participants)
    tree = Tree(agreed, values)
    leaf = tree.leaf(silo)
    leaf.check(agreed, tree.claim.root)
    return leaf.as_dict()


def ready_value(nonce: str, ready: str) -> str:
    return nonces.ready_value(ready, nonce)


def message(stage: str, fields: dict[str, Any], signing_key: str, **head: Any) -> dict[str, Any]:
    codecs = {field.name: field.metadata["codec"] for field in dataclasses.fields(SPARSE[stage])}
    said = SPARSE[stage](**head, **{name: codecs[name].read(value) for name, value in fields.items()})
    envelope = seal(said, SigningKey.from_bytes(h(signing_key)))
    return {"payload": envelope.payload.decode(), "envelope": envelope.as_dict()}


def check_nonces(nonces: dict[str, str]) -> str:
    return OpenedNonces({silo: Opened("", h(nonce)) for silo, nonce in nonces.items()}, {}).digest


def draw(seed: str, below: int, count: int) -> list[int]:
    return graph.draw(h(seed), below, count)


def row(attempt: dict[str, Any], participants: list[str], silo: str, roster: str, g: str) -> dict[str, Any]:
    seeds = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "draw", lambda seed, n, count, draw=graph.draw: seeds.append(seed) or draw(seed, n, count))
        drawn = graph.row(parameters(participants, **attempt), roster, silo, h(g))
    return {"seed": seeds[0].hex(), "row": list(drawn)}


def box_plaintext(r: str, self_share: str | None, list_share: str | None) -> str:
    """Sealed by our code, opened by the reference."""
    private, ctx, roster = sealing.generate_private(), bytes(32), "sha256:" + "0" * 64
    content = Content(h(r), *(share and h(share) for share in (self_share, list_share)))
    box = boxes.seal(content, public=sealing.public_of(private), ctx=ctx, roster=roster, sender="a", receiver="b")
    key = slow.hpke_key(private[:64], private[64:])
    return slow.open_box(key, sparse_reference.box_info(ctx, "a", "b", roster), box).hex()


def box(
    ctx: str,
    roster: str,
    mlkem_seed: str,
    x25519_key: str,
    sender: str,
    receiver: str,
    hashes: list[str] | None,
    box: str,
) -> dict[str, str]:
    """Sealed by the reference, opened by our code."""
    private = h(mlkem_seed) + h(x25519_key)
    content = boxes.open_parcel(
        Parcel(base64.b64decode(box), hashes and tuple(hashes)),
        private=sealing.load_private(private),
        ctx=h(ctx),
        roster=roster,
        sender=sender,
        receiver=receiver,
        holder=hashes is not None,
    )
    return {
        "hpke_public": base64.b64encode(sealing.public_of(private)).decode(),
        "info": boxes._info(h(ctx), roster, sender, receiver).hex(),
        "plaintext": (content.half + (content.self_share or b"") + (content.list_share or b"")).hex(),
    }


def share_hash(ctx: str, what: str, owner: str, holder: str, share: str) -> str:
    return boxes.share_hash(what.removesuffix(" share"), h(share), ctx=h(ctx), owner=owner, holder=holder)


def list_box(ctx: str, list_key: str, silo: str, roster: str, seeds: list[str]) -> str:
    sealed = sealing.seal_list(b"".join(map(h, seeds)), key=h(list_key), ctx=h(ctx), roster=roster, silo=silo)
    return base64.b64encode(sealed).decode()


OURS: dict[str, Callable[..., Any]] = {
    answer.__name__: answer
    for answer in (
        *(context, least_set, bounds),
        *(stated, entry, ready_value),
        *(message, check_nonces),
        *(draw, row),
        *(box_plaintext, box, share_hash, list_box),
    )
}


# --- one derivation at a time ----------------------------------------------------------------------------------------


def test_every_section_has_an_answer_of_both() -> None:
    assert set(VECTORS) - {"round"} == set(ANSWERS) == set(OURS)


@pytest.mark.parametrize(("section", "case"), CASES)
def test_slow_reference_gives_the_known_answer_with_many_silos(section: str, case: dict[str, Any]) -> None:
    assert ANSWERS[section](**case["in"]) == case["out"]


@pytest.mark.parametrize(("section", "case"), CASES)
def test_our_code_gives_the_known_answer_with_many_silos(section: str, case: dict[str, Any]) -> None:
    assert OURS[section](**case["in"]) == case["out"]


def test_sparse_vectors_are_those_of_make_sparse_vectors() -> None:
    file = {
        section: {case["name"]: case["in"] for case in rows} for section, rows in VECTORS.items() if section != "round"
    }
    assert file == make_sparse_vectors.cases()
    assert VECTORS["round"]["in"] == make_sparse_vectors.round_inputs()


def test_every_stage_with_many_silos_has_a_vector_and_stands_on_the_page() -> None:
    assert {case["in"]["stage"] for case in VECTORS["message"]} == set(SPARSE)
    assert VECTORS["round"]["out"]["messages"].keys() == set(SPARSE)
    named = set(re.findall(r"^\| ([a-z]+) \|", PAGE.read_text(), re.MULTILINE))
    assert set(SPARSE) - {"nonce", "state"} <= named


def test_draws_of_the_file_throw_numbers_away() -> None:
    """Else a reader that never throws one away would pass."""
    for case in VECTORS["draw"]:
        if "thrown away" in case["name"]:
            given = case["in"]
            assert _without_throwing(h(given["seed"]), given["below"], given["count"]) != case["out"]


def _without_throwing(seed: bytes, below: int, count: int) -> list[int]:
    stream = hashlib.shake_256(seed).digest(4 * count)
    places: dict[int, int] = {}
    drawn = []
    for s in range(count):
        j = s + int.from_bytes(stream[4 * s : 4 * s + 4], "big") % (below - s)
        drawn.append(places.get(j, j))
        places[j] = places.get(s, s)
    return drawn


def test_sparse_reference_borrows_nothing_from_the_code_that_it_checks() -> None:
    for module in ("slow_sparse", "slow_sparse_answers", "slow_sparse_round", "make_sparse_vectors"):
        source = Path(__file__).with_name(f"{module}.py").read_text()
        assert re.findall(r"^\s*(?:from|import) (?:protocol|silo_node|numpy)\b", source, re.MULTILINE) == []


# --- the whole round, by our state machines --------------------------------------------------------------------------


def drawn_by(name: str) -> bytes:
    """What a silo draws in the round, in the order in which our code asks for it."""
    given, out = VECTORS["round"]["in"], VECTORS["round"]["out"]
    secret = given["silos"][name]
    rows = [secret["b"], secret["K"], secret["g"], secret["nonce"]]
    for pair in zip(secret["b_coefficients"], secret["K_coefficients"], strict=True):
        rows += pair  # b and K are shared side by side
    sent = out["messages"]["bundles"].get(name, {"payload": {"boxes": {}}})["payload"]["boxes"]
    return b"".join(map(h, [*rows, *(secret["r"][peer] for peer in sorted(sent))]))


def known_box(plain: bytes, public: bytes, info: bytes) -> bytes:
    """In place of HPKE: the vector's box for a plaintext, once the reference has opened it and found that plaintext."""
    if not info:  # a key that is tried before it is taken
        return ENCRYPT(plain, public, info)
    given, out = VECTORS["round"]["in"], VECTORS["round"]["out"]
    sender, receiver = info.decode(errors="replace").split("\n")[1:3]
    secret = given["silos"][receiver]
    keys = h(secret["mlkem_seed"]), h(secret["x25519_key"])
    assert public == slow.hpke_public(*keys)
    found = base64.b64decode(out["messages"]["bundles"][sender]["payload"]["boxes"][receiver])
    assert slow.open_box(slow.hpke_key(*keys), info, found) == plain
    return found


ENCRYPT = sealing.encrypt


@pytest.fixture
def agreed() -> SparseParameters:
    given = VECTORS["round"]["in"]
    weak = given["bounds"]
    keys = {name: SigningKey.from_bytes(h(secret["signing_key"])) for name, secret in given["silos"].items()}
    return SparseParameters(
        **{name: given[name] for name in ("study", "manifest", "round", "attempt", "model", "min_participants")},
        participants={name: key.public for name, key in keys.items()},
        min_roster=3,
        words=sum(count for count, _ in given["segments"]),
        tail=len(next(iter(given["silos"].values()))["tail"]),
        word_bits=given["bits"],
        sparse_from=4,
        colluding=Fraction(weak["colluding"]),
        lost=Fraction(weak["lost"]),
        privacy_bits=weak["privacy"],
        failure_bits=weak["failure"],
    )


@pytest.fixture
def silos(agreed: SparseParameters, world: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, SparseRound]:
    """The machines of the vector's round; what they draw at random is what the vector says."""
    given = VECTORS["round"]["in"]["silos"]
    dice = {name: Dice(drawn_by(name)) for name in given}
    speaks: list[str] = []
    token_bytes = lambda length: dice[speaks[-1]](length)  # noqa: E731
    monkeypatch.setattr(secrets, "token_bytes", token_bytes)
    monkeypatch.setitem(shamir.split.__kwdefaults__, "token_bytes", token_bytes)
    private = lambda: h(given[speaks[-1]]["mlkem_seed"] + given[speaks[-1]]["x25519_key"])  # noqa: E731
    monkeypatch.setattr(sealing, "generate_private", private)
    monkeypatch.setattr(sealing, "encrypt", known_box)

    machines = {}
    for name, secret in given.items():
        key = SigningKey.from_bytes(h(secret["signing_key"]))
        machines[name] = SparseRound(agreed, silo=name, key=key, journal=world.Journal())
        for call in ("keys", "accept_neighbours"):  # the dice are the speaker's
            monkeypatch.setattr(machines[name], call, speaking(name, speaks, getattr(machines[name], call)))
    return machines


def digest_of(value: Any) -> str:
    return canonical.digest(canonical.encode(value))


def dicts(items: Any) -> list[Any]:
    return [item.as_dict() for item in items]


def test_our_silos_and_portal_play_the_known_round_with_many_silos_byte_for_byte(
    agreed: SparseParameters, silos: dict[str, SparseRound]
) -> None:
    given, out = VECTORS["round"]["in"], VECTORS["round"]["out"]
    portal, handed = SparseCoordinator(agreed), out["handed"]

    def hear(stage: str, say: Callable[[str], Envelope], *late: str) -> dict[str, Any]:
        """Those speak that do so in the vector; each says what the vector says, and the portal takes it."""
        taken = {}
        for name, known in out["messages"][stage].items():
            envelope = say(name)
            assert envelope.payload == slow.jcs(known["payload"])
            assert envelope.as_dict()["signatures"] == [{"keyid": known["keyid"], "sig": known["sig"]}]
            assert envelope.digest == known["digest"]
            if stage != "state":
                taken[name] = getattr(portal, f"take_{stage}")(*late, envelope)
        return taken

    def check_set(what: str) -> None:
        tree = portal._tree(what)
        assert (tree.claim.as_dict(), tree.values) == (out["sets"][what], out["values"][what])

    def bundles(name: str) -> Envelope:
        near = portal.neighbours_for(name)
        assert digest_of(dicts(near)) == handed[name]["neighbours"]
        return silos[name].accept_neighbours(near)

    def ready(name: str) -> Envelope:
        parcels = {sender: row[name] for sender, (_, row) in boxed.items() if name in row}
        assert digest_of({sender: item.as_dict() for sender, item in parcels.items()}) == handed[name]["parcels"]
        said = silos[name].accept_bundles(parcels)
        seeds = silos[name]._records.need("bundles", "")["seeds"]
        assert {sender: canonical.unb64(seed).hex() for sender, seed in seeds.items()} == out["pair_seeds"][name]
        return said

    sent = {}

    def update(name: str) -> Envelope:
        secret = given["silos"][name]
        body = np.array([word % 2**32 for word in secret["body"]], dtype="<u4")
        silos[name].begin_update(body, np.array(secret["tail"], dtype="<u8"))
        sent[name] = [silos[name].masked_chunk(k) for k in range(agreed.chunk_count)]
        assert [chunk.hex() for chunk in sent[name]] == out["chunks"][name]
        return silos[name].finish_update()

    def listed(name: str) -> tuple[Any, Any]:
        leaves = portal.leaves_for("list", name)
        assert digest_of(dicts(leaves)) == handed[name]["list"]
        return portal.claim("list"), leaves

    def sign_list(name: str) -> Envelope:
        updates = portal.updates_for(name)
        assert digest_of(dicts(updates)) == handed[name]["updates"]
        return silos[name].sign_list(*listed(name), updates)

    def unmask(name: str) -> Envelope:
        lists = portal.lists_for(name)
        assert digest_of(dicts(lists)) == handed[name]["lists"]
        return silos[name].unmask(lists)

    assert agreed.ctx.hex() == out["ctx"]
    hear("keys", lambda name: silos[name].keys())
    root = portal.close_roster()
    check_set("roster")
    hear("row", lambda name: silos[name].accept_roster(root, portal.leaf("roster", name)))
    portal.close_graph()
    for name, near in out["neighbours"].items():
        assert (list(portal._rows[name]), sorted(portal._drew[name])) == (near["row"], near["drew"])
    boxed = hear("bundles", bundles)
    hear("ready", ready)
    assert portal.close_ready() == {}
    check_set("ready")
    for name in portal.members("ready"):
        leaves = portal.leaves_for("ready", name)
        assert digest_of(dicts(leaves)) == handed[name]["ready"]
        silos[name].accept_ready(portal.claim("ready"), leaves)
    hear("update", update)
    portal.close_list()
    check_set("list")
    hear("list", sign_list)
    hear("unmask", unmask)

    removal = portal.recover()
    members = portal.members("list")
    summed = [
        bytes(words.pack(removal.sum_chunk(k, [sent[name][k] for name in members]), agreed.bits(k)))
        for k in range(agreed.chunk_count)
    ]
    assert [chunk.hex() for chunk in summed] == out["sum"]["chunks"]
    published = canonical.digest(b"".join(summed))
    assert published == out["sum"]["digest"]

    for name in given["missing"]["list"]:
        silos[name].accept_list(*listed(name), portal.lists_for(name))
    for name in members:
        silos[name].agree(members)
    hear("nonce", lambda name: silos[name].open_nonce(published), published)
    portal.close_nonces()
    opened = portal.opened_nonces
    assert {digest_of(opened.as_dict())} == {handed[name]["opened"] for name in members}
    hear("check", lambda name: silos[name].send_check(opened), published)
    body = words.signed(np.array(words.unpack(summed[0], given["bits"])), given["bits"])
    tail = words.unpack(summed[1], 64)
    assert (body.tolist(), tail.tolist()) == (out["sum"]["body"], out["sum"]["tail"])
    said = [silos[name].send_check(opened) for name in members]
    for name in members:
        assert silos[name]._records.need("check", "")["seed"] == canonical.b64(h(out["check_seed"]))
        assert silos[name].verify_sum(said, [body], tail)
    hear("state", lambda name: silos[name].sign_state(out["state"]["digest"]))


def test_slow_reference_plays_the_known_round_with_many_silos() -> None:
    out = VECTORS["round"]["out"]
    assert slow_sparse_round.play(VECTORS["round"]["in"], make_sparse_vectors.boxes_of(out)) == out
