"""What the portal hands a silo comes back from JSON the same, and anything else is refused in words."""

from __future__ import annotations

import copy

import pytest

from protocol import canonical
from protocol.secure_aggregation.sparse import Claim, wire

ME = "site-000"


def as_json(value):
    return canonical.decode(canonical.encode(value))


@pytest.fixture
def this(sparse):
    this = sparse(12, small=True).play("keys", "row", who=[f"site-{number:03}" for number in range(11)])
    this.close("bundles")
    this.play("bundles", "ready", "update", "list", "unmask", who=this.silos[:11])
    this.publish().play("nonce", who=this.silos[:10]).close("check")
    return this


def test_everything_comes_back_the_same(this):
    claim, leaves = this.set_for("list", ME)
    assert wire.read_claim(as_json(claim.as_dict())) == claim
    assert wire.read_leaves(as_json([leaf.as_dict() for leaf in leaves])) == leaves
    near = this.coordinator.neighbours_for(ME)
    assert wire.read_neighbours(as_json([item.as_dict() for item in near])) == near
    parcels = this.parcels[ME]
    assert wire.read_parcels(as_json({name: item.as_dict() for name, item in parcels.items()})) == parcels
    opened = this.coordinator.opened_nonces
    assert wire.read_opened(as_json(opened.as_dict())) == opened
    assert opened.others.keys() == {this.silos[10]}
    assert wire.read_names(list(this.silos)) == list(this.silos)


def test_anything_else_is_refused(this, refused):
    claim, leaves = this.set_for("list", ME)
    leaf = leaves[0].as_dict()
    for wrong in (None, [], {}, {"root": claim.root}):
        refused("BAD_MESSAGE", wire.read_claim, wrong)
    refused("BAD_CLAIM", wire.read_claim, {"root": "x", "size": 1})
    for change in ({"silo": 3}, {"value": 3}, {"path": 3}, {"path": ["!"]}):
        refused("BAD_MESSAGE", wire.read_leaves, [leaf | change])
    refused("BAD_MESSAGE", wire.read_leaves, 3)
    near = this.coordinator.neighbours_for(ME)[0].as_dict()
    for change in ({"keys": {}}, {"row": 3}, {"leaf": None}):
        refused("BAD_MESSAGE", wire.read_neighbours, [near | change])
    box = canonical.b64(b"x")
    for wrong in (3, {ME: 3}, {ME: {"box": box}}, {ME: {"box": box, "hashes": ["a", "b"]}}):
        refused("BAD_MESSAGE", wire.read_parcels, wrong)
    refused("BAD_MESSAGE", wire.read_parcels, {ME: {"box": box, "hashes": [claim.root]}})
    opened = this.coordinator.opened_nonces.as_dict()
    short = copy.deepcopy(opened)
    short["nonces"][ME][1] = canonical.b64(b"x" * 31)
    for wrong in (3, {}, {"nonces": {}, "others": {ME: "x"}}, {"nonces": {ME: ["x", "y"]}, "others": {}}, short):
        refused("BAD_MESSAGE", wire.read_opened, wrong)
    for wrong in ("names", [3]):
        refused("BAD_MESSAGE", wire.read_names, wrong)
    assert isinstance(wire.read_claim(claim.as_dict()), Claim)
