"""A portal, or silos with it, that lie to one silo at each step: it refuses, and nothing is revealed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from protocol.secure_aggregation import NotEnoughShares
from protocol.secure_aggregation.sparse import Claim, Neighbour, wire
from protocol.secure_aggregation.sparse.messages import (
    SparseBundles,
    SparseKeys,
    SparseList,
    SparseReady,
    SparseRow,
    SparseUnmask,
    SparseUpdate,
)
from protocol.secure_aggregation.sparse.nonces import ready_value
from protocol.secure_aggregation.sparse.trees import Leaf, Tree

ME = "site-000"


def forged(this, name: str, kind, **content):
    """What a silo that lies signs with its own key."""
    return this.machines[name]._seal(kind, **content)


def values_of(this, what: str) -> dict[str, str]:
    return dict(this.coordinator._tree(what).values)


def leaves(this, tree: Tree, name: str = ME, also=()):
    """The entries that a silo needs, out of a portal's own tree."""
    near = {leaf.silo for leaf in this.coordinator.leaves_for("roster", name)} | set(also)
    return tree.claim, [tree.leaf(other) for other in sorted(near)]


def value_of(ready) -> str:
    """The value of a leaf of R, from the signed message."""
    return ready_value(ready.digest, SparseReady.parse(ready.payload).nonce)


def journal_of(this) -> dict[str, bytes]:
    return dict(this.journals[ME].rows)


# --- 2. roster -------------------------------------------------------------------------------------------------------


def test_roster_that_is_small_or_without_the_silo_or_with_another_key_is_refused(sparse, refused):
    this = sparse(12, min_roster=10).until("row")
    accept = this.machines[ME].accept_roster
    claim, own = this.coordinator.claim("roster"), this.coordinator.leaf("roster", ME)
    before = journal_of(this)
    refused("ROSTER_TOO_SMALL", accept, Claim(claim.root, 9), own)
    refused("BAD_PROOF", accept, Claim("sha256:" + "e" * 64, 12), own)
    refused("BAD_PROOF", accept, claim, replace(own, value=None))
    refused("BAD_PROOF", accept, claim, replace(own, path=own.path[:-1]))
    refused("BAD_PROOF", accept, claim, replace(own, silo="site-999"))
    refused("TOO_FEW_NEIGHBOURS", accept, claim, this.coordinator.leaf("roster", "site-001"))
    without = Tree(this.parameters, {name: value for name, value in values_of(this, "roster").items() if name != ME})
    refused("LEFT_OUT", accept, without.claim, without.leaf(ME))
    other = Tree(this.parameters, values_of(this, "roster") | {ME: "sha256:" + "f" * 64})
    refused("OTHER_MESSAGE", accept, other.claim, other.leaf(ME))
    assert journal_of(this) == before
    accept(claim, own)


def test_set_without_a_root_or_size_is_refused(refused):
    for root, size in (
        ("sha256:" + "E" * 64, 9),
        ("e" * 64, 9),
        (None, 9),
        ("sha256:" + "e" * 64, "9"),
        ("sha256:" + "e" * 64, True),
    ):
        refused("BAD_CLAIM", Claim, root, size)


@pytest.mark.parametrize(
    ("silo", "value"), [("\ud800", None), ("e\u0301", None), ("", None), (ME, "\ud800"), (ME, "e\u0301")]
)
def test_entry_that_no_set_can_hold_is_refused(refused, silo, value):
    refused("BAD_PROOF", Leaf, silo, value, ())
    refused("BAD_PROOF", wire.read_leaf, {"silo": silo, "value": value, "path": []})


def test_roster_below_two_thirds_is_refused(sparse, refused):
    this = sparse(12).until("row")
    own = this.coordinator.leaf("roster", ME)
    refused("SET_TOO_SMALL", this.machines[ME].accept_roster, Claim(this.coordinator.claim("roster").root, 8), own)


@pytest.mark.parametrize("size", [13, 70_000, 10**30])
def test_set_larger_than_the_study_is_refused_before_anything_is_kept(sparse, refused, size):
    """Later it would be in no message that can be signed, when the list has spent the round already."""
    this = sparse(12).until("row")
    before = journal_of(this)
    own = this.coordinator.leaf("roster", ME)
    refused("BAD_CLAIM", this.machines[ME].accept_roster, Claim(this.coordinator.claim("roster").root, size), own)
    assert journal_of(this) == before
    this.play("row", "bundles", "ready").close("update")
    claim, entries = this.set_for("ready", ME)
    refused("BAD_CLAIM", this.machines[ME].accept_ready, Claim(claim.root, size), entries)


def test_second_roster_is_refused_so_a_row_is_drawn_once(sparse, refused):
    this = sparse(12).until("row")
    this.step("row", ME)
    other = Tree(
        this.parameters, {name: value for name, value in values_of(this, "roster").items() if name != "site-005"}
    )
    refused("SECOND_ROSTER", this.machines[ME].accept_roster, other.claim, other.leaf(ME))
    claim = this.coordinator.claim("roster")
    refused(
        "SECOND_ROSTER", this.machines[ME].accept_roster, Claim(claim.root, 11), this.coordinator.leaf("roster", ME)
    )
    assert this.answer("row", ME) == this.mail["row"][ME]


# --- 3. neighbours ---------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(sparse):
    """A world of 40 at the neighbours' step, and what the silo is shown when nobody lies."""
    this = sparse(40).until("bundles")
    return this, this.coordinator.neighbours_for(ME)


def test_a_neighbour_too_few_too_many_or_twice_is_refused(asked, refused):
    this, shown = asked
    accept = this.machines[ME].accept_neighbours
    row = set(this.coordinator._rows[ME])
    drawn = next(item for item in shown if item.leaf.silo in row)
    refused("TOO_FEW_NEIGHBOURS", accept, [item for item in shown if item is not drawn])
    stranger = next(name for name in this.silos[1:] if name not in {item.leaf.silo for item in shown} | row)
    leaf, (_, keys) = this.coordinator.leaf("roster", stranger), this.coordinator._keys[stranger]
    refused("NOT_NEIGHBOUR", accept, [*shown, type(drawn)(leaf, keys)])
    refused("NOT_NEIGHBOUR", accept, [*shown, type(drawn)(leaf, keys, this.coordinator._opened[stranger])])
    own = type(drawn)(this.coordinator.leaf("roster", ME), this.mail["keys"][ME], this.mail["row"][ME])
    refused("NOT_NEIGHBOUR", accept, [*shown, own])
    refused("TWICE", accept, [*shown, drawn])
    many = [item for item in shown if item.row is not None]
    refused("TOO_MANY_NEIGHBOURS", accept, shown + many * this.hood.most_in)
    accept(shown)


def test_an_absent_neighbour_must_be_proved_absent_and_draws_nobody(sparse, refused):
    this = sparse(20)
    gone = this.silos[5:7]
    for step in ("keys", "row"):
        this.play(step, who=[name for name in this.silos if name not in gone])
    this.close("bundles")
    name = next(name for name in this.silos if name not in gone and set(gone) & set(this.coordinator._rows[name]))
    shown, accept = this.coordinator.neighbours_for(name), this.machines[name].accept_neighbours
    at = next(place for place, item in enumerate(shown) if item.leaf.silo in gone)
    assert shown[at].keys is None
    row = next(item.row for item in shown if item.row is not None)

    def changed(at, item):
        return [*shown[:at], item, *shown[at + 1 :]]

    refused("NOT_NEIGHBOUR", accept, changed(at, replace(shown[at], row=row)))
    refused("OTHER_MESSAGE", accept, changed(at, replace(shown[at], keys=shown[at - 1].keys)))
    at = next(place for place, item in enumerate(shown) if item.leaf.silo not in gone)
    refused("OTHER_MESSAGE", accept, changed(at, replace(shown[at], keys=None)))
    hidden = replace(shown[at], keys=None, leaf=replace(shown[at].leaf, value=None))
    refused("BAD_PROOF", accept, changed(at, hidden))
    accept(shown)


def test_a_graph_nonce_that_does_not_fit_is_refused(asked, refused):
    this, shown = asked
    at = next(place for place, item in enumerate(shown) if item.row is not None)
    liar, root = shown[at].leaf.silo, this.coordinator.claim("roster").root
    accept = this.machines[ME].accept_neighbours

    def with_row(envelope):
        return [*shown[:at], replace(shown[at], row=envelope), *shown[at + 1 :]]

    refused("BAD_NONCE", accept, with_row(forged(this, liar, SparseRow, roster=root, nonce=b"\x01" * 32)))
    refused(
        "OTHER_ROSTER", accept, with_row(forged(this, liar, SparseRow, roster="sha256:" + "1" * 64, nonce=b"1" * 32))
    )
    other = next(item for item in shown if item.row is not None and item.leaf.silo != liar)
    refused("OTHER_MESSAGE", accept, with_row(other.row))
    refused("BAD_SIGNATURE", accept, with_row(replace(shown[at].row, payload=shown[at].row.payload + b" ")))
    # The portal's coordinator finds it too, and does not pass it on.
    fresh = forged(this, liar, SparseRow, roster=root, nonce=b"\x01" * 32)
    this.coordinator._trees.pop("graph")
    refused("BAD_NONCE", this.coordinator.take_row, fresh)


def test_key_that_another_silo_signed_or_that_cannot_be_used_is_refused(sparse, refused):
    bad = {"hpke_public": b"\xff" * 1216, "graph": "sha256:" + "2" * 64}
    for code in ("OTHER_MESSAGE", "BAD_KEY"):
        this = sparse(12).until("row")
        one = this.mail["keys"]["site-001"]
        keys = {
            name: one if code == "OTHER_MESSAGE" else forged(this, name, SparseKeys, roster=None, **bad)
            for name in this.silos[1:]
        }
        # The portal's own roster: every other silo stands in it with this key.
        tree = Tree(this.parameters, {name: keys.get(name, this.mail["keys"][ME]).digest for name in this.silos})
        machine = this.machines[ME]
        machine.accept_roster(tree.claim, tree.leaf(ME))
        row = machine._records.need("roster", "test")["row"]
        shown = [
            Neighbour(tree.leaf(name), keys[name]) for name in row if (name, code) != ("site-001", "OTHER_MESSAGE")
        ]
        refused(code, machine.accept_neighbours, shown)
    refused("BAD_KEY", sparse(12).coordinator.take_keys, keys["site-001"])


def test_too_few_of_the_row_present_is_refused(sparse, refused):
    """The rest may well be absent; but fewer than t holders could not give the secrets back."""
    this = sparse(12).until("row")
    values = values_of(this, "roster")
    for gone in this.silos[6:]:
        del values[gone]
    tree, machine = Tree(this.parameters, values), this.machines[ME]
    machine.accept_roster(Claim(tree.claim.root, 12), tree.leaf(ME))  # as large as the portal says
    row = machine._records.need("roster", "test")["row"]
    shown = [Neighbour(tree.leaf(name), this.mail["keys"][name] if name in values else None) for name in row]
    if len(set(row) & values.keys()) < this.hood.t:
        refused("TOO_FEW_NEIGHBOURS", machine.accept_neighbours, shown)
    else:
        assert len(set(row) & values.keys()) == 5 == this.hood.t


def test_other_neighbours_after_the_first_are_refused(asked, refused):
    this, shown = asked
    machine = this.machines[ME]
    machine.accept_neighbours(shown)
    fewer = [item for item in shown if item.leaf.silo in this.coordinator._rows[ME]]
    refused("SECOND_NEIGHBOURS", machine.accept_neighbours, [replace(item, row=None) for item in fewer])
    assert machine.accept_neighbours(reversed(shown)) == machine.accept_neighbours(shown)


# --- 4. bundles and the set R ----------------------------------------------------------------------------------------


def test_bundles_of_strangers_too_few_or_others_later_are_refused(asked, refused):
    this, _ = asked
    this.play("bundles")
    mine, accept = this.parcels[ME], this.machines[ME].accept_bundles
    stranger = next((name for name in this.silos[1:] if name not in mine), ME)
    refused("NOT_NEIGHBOUR", accept, mine | {stranger: next(iter(mine.values()))})
    few = dict(list(mine.items())[: this.hood.t - 1])
    refused("TOO_FEW_NEIGHBOURS", accept, few)
    accept(mine)
    refused("SECOND_BUNDLES", accept, dict(list(mine.items())[1:]))


def test_swapped_boxes_open_for_nobody(asked):
    """A box of another sender, receiver or attempt is garbage, so its sender is missing among those that were opened."""
    this, _ = asked
    this.play("bundles")
    mine = dict(this.parcels[ME])
    first, second = sorted(mine)[:2]
    mine[first] = replace(mine[first], box=mine[second].box)
    this.machines[ME].accept_bundles(mine)
    senders = this.machines[ME]._records.need("bundles", "test")["seeds"]
    assert first not in senders and second in senders


def test_ready_set_that_does_not_fit_is_refused(sparse, refused):
    this = sparse(20).until("update")
    accept, values = this.machines[ME].accept_ready, values_of(this, "ready")
    claim, shown = this.set_for("ready", ME)
    before = journal_of(this)
    refused("SET_TOO_SMALL", accept, Claim(claim.root, this.parameters.least_set - 1), shown)
    refused("TOO_FEW_NEIGHBOURS", accept, claim, [leaf for leaf in shown if leaf.silo != shown[-1].silo])
    refused("TWICE", accept, claim, [*shown, shown[-1]])
    refused("BAD_PROOF", accept, claim, [replace(leaf, value=None) if leaf.silo != ME else leaf for leaf in shown])
    without = Tree(this.parameters, {name: value for name, value in values.items() if name != ME})
    refused("LEFT_OUT", accept, *leaves(this, without))
    other = Tree(this.parameters, values | {ME: "sha256:" + "0" * 64})
    refused("OTHER_MESSAGE", accept, *leaves(this, other))
    row = this.coordinator._rows[ME]
    few = Tree(this.parameters, {name: value for name, value in values.items() if name not in row[: this.hood.h - 2]})
    claim_few, shown_few = leaves(this, few)
    refused("TOO_FEW_NEIGHBOURS", accept, Claim(claim_few.root, 20), shown_few)
    assert journal_of(this) == before
    accept(claim, shown)
    refused("SECOND_SET", accept, Claim(claim.root, 19), shown)


def test_ready_set_with_a_silo_whose_bundle_was_not_opened_is_refused(sparse, refused):
    this = sparse(20).play("keys", "row", "bundles")
    lost = sorted(this.parcels[ME])[0]
    parcels = {name: parcel for name, parcel in this.parcels[ME].items() if name != lost}
    this.parcels[ME] = parcels
    this.play("ready")
    everybody = Tree(this.parameters, {name: value_of(this.mail["ready"][name]) for name in this.silos})
    refused("NOT_OPENED", this.machines[ME].accept_ready, *leaves(this, everybody))


def test_too_few_known_partners_are_refused_also_when_the_portal_proves_none(sparse, refused):
    this = sparse(40).until("update")
    near = {leaf.silo for leaf in this.coordinator.leaves_for("ready", ME)}
    far = [name for name in this.silos if name not in near]
    known = [far[0], *sorted(near - {ME})[:2]]
    this.known = {"known_partners": frozenset(this.keys[name].keyid for name in known), "min_known": 3}
    this.machines[ME] = this.rebuild(ME)
    claim = this.coordinator.claim("ready")
    refused("TOO_FEW_KNOWN", this.machines[ME].accept_ready, claim, this.coordinator.leaves_for("ready", ME))
    without = Tree(this.parameters, {name: value for name, value in values_of(this, "ready").items() if name != far[0]})
    refused("TOO_FEW_KNOWN", this.machines[ME].accept_ready, *leaves(this, without, also=known))
    this.play("update")
    this.close("list")
    gone = Tree(this.parameters, {name: value for name, value in values_of(this, "list").items() if name != far[0]})
    updates = this.coordinator.updates_for(ME)
    refused("TOO_FEW_KNOWN", this.machines[ME].sign_list, *leaves(this, gone, also=known), updates)
    this.play("list", "unmask")
    this.assert_sum(this.silos)


# --- 5. update -------------------------------------------------------------------------------------------------------


def test_never_two_vectors_under_one_mask(sparse, refused):
    this = sparse(12).until("list")
    words, tail = this.updates[ME]
    other = words.copy()
    other[0] += 1
    for machine in (this.machines[ME], this.rebuild(ME)):
        refused("SECOND_UPDATE", machine.begin_update, other, tail)
        assert [machine.masked_chunk(k) for k in range(2)] == this.chunks[ME]
    this.attempt(words=0)  # the same attempt, as an evaluation: the tail would go out twice
    refused("OTHER_LENGTH", this.machines[ME].finish_update)
    this.attempt(words=40, model="sha256:" + "9" * 64)
    refused("OTHER_MODEL", this.machines[ME].masked_chunk, 0)


def test_the_same_update_wears_other_masks_in_every_attempt(sparse):
    this = sparse(12, words=4096).until("list")
    first = np.frombuffer(this.chunks[ME][0], "<u4")
    this.attempt(attempt=1)
    this.until("list")
    second = np.frombuffer(this.chunks[ME][0], "<u4")
    assert np.count_nonzero(first == second) < 5


# --- 6. the list -----------------------------------------------------------------------------------------------------


def test_list_that_does_not_fit_is_refused(sparse, refused):
    this = sparse(20)
    late = this.silos[9]
    this.until("ready")
    this.play("ready", who=[name for name in this.silos if name != late])
    this.close("update")
    this.play("update", who=[name for name in this.silos if name != late])
    this.close("list")
    name = next(other for other in this.silos if late in this.coordinator._rows[other])
    sign, values = this.machines[name].sign_list, values_of(this, "list")
    claim, shown = this.set_for("list", name)
    updates = this.coordinator.updates_for(name)
    before = dict(this.journals[name].rows)
    refused("SET_TOO_SMALL", sign, Claim(claim.root, this.parameters.least_set - 1), shown, updates)
    refused("OUTSIDE_PARENT", sign, Claim(claim.root, 20), shown, updates)
    wider = Tree(this.parameters, values | {late: "summed"})
    refused("OUTSIDE_PARENT", sign, *leaves(this, wider, name), updates)
    other = Tree(this.parameters, values | {shown[1].silo: "maybe"})
    refused("BAD_MESSAGE", sign, *leaves(this, other, name), updates)
    without = Tree(this.parameters, {one: value for one, value in values.items() if one != name})
    refused("LEFT_OUT", sign, *leaves(this, without, name), updates)
    refused("TOO_FEW_NEIGHBOURS", sign, claim, shown[1:] if shown[0].silo != name else shown[:-1], updates)
    row = set(this.coordinator._rows[name])
    few = Tree(this.parameters, {one: value for one, value in values.items() if one not in sorted(row)[: len(row) - 3]})
    claim_few, shown_few = leaves(this, few, name)
    refused("TOO_FEW_NEIGHBOURS", sign, Claim(claim_few.root, 19), shown_few, updates)
    refused("OTHER_MESSAGE", sign, claim, shown, updates[1:])
    refused("OTHER_MESSAGE", sign, claim, shown, [*updates, updates[0]])
    assert dict(this.journals[name].rows) == before
    sign(claim, shown, updates)


def test_update_under_the_masks_of_another_ready_set_keeps_its_shares(sparse, refused):
    """The portal told one silo another R, with few neighbours: nobody who holds its shares signs for it."""
    this = sparse(12).until("list")
    owner = next(iter(this.coordinator._drew[ME]))
    lie = forged(
        this,
        owner,
        SparseUpdate,
        roster=this.coordinator.claim("roster").root,
        ready_set="sha256:" + "3" * 64,
        chunks=("sha256:" + "4" * 64,) * 2,
    )
    updates = [lie if one == this.mail["update"][owner] else one for one in this.coordinator.updates_for(ME)]
    refused("OTHER_SET", this.machines[ME].sign_list, *this.set_for("list", ME), updates)


def test_one_list_a_round_over_all_attempts(sparse, refused):
    this = sparse(12).until("list")
    this.step("list", ME)
    smaller = Tree(
        this.parameters, {name: value for name, value in values_of(this, "list").items() if name != "site-004"}
    )
    updates = [one for one in this.coordinator.updates_for(ME) if one != this.mail["update"]["site-004"]]
    for machine in (this.machines[ME], this.rebuild(ME)):
        refused("SECOND_LIST", machine.sign_list, *leaves(this, smaller), updates)
    this.attempt(attempt=1)
    refused("ROUND_SPENT", this.machines[ME].keys)


# --- 7. unmask -------------------------------------------------------------------------------------------------------


def test_shares_are_revealed_only_for_t_signatures_on_the_list_that_the_silo_signed(sparse, refused):
    this = sparse(20).until("list")
    machine, row = this.machines[ME], this.coordinator._rows[ME]
    this.play("list", who=[name for name in this.silos if name != ME])
    lists = this.coordinator.lists_for(ME)
    refused("OUT_OF_STAGE", machine.unmask, lists)
    this.step("list", ME)
    before = journal_of(this)
    refused("TOO_FEW_SIGNATURES", machine.unmask, lists[: this.hood.t - 1])
    refused("TWICE", machine.unmask, [*lists, lists[0]])
    stranger = next(name for name in this.silos if name not in row and name != ME)
    refused("NOT_NEIGHBOUR", machine.unmask, [*lists, this.mail["list"][stranger]])
    refused("NOT_NEIGHBOUR", machine.unmask, [*lists, this.mail["list"][ME]])
    said = type(machine)._facts(machine, this.coordinator.claim("list"), machine._records.need("ready", "test"))
    for change in (
        {"members": "sha256:" + "5" * 64},
        {"size": 19},
        {"ready_set": "sha256:" + "5" * 64},
        {"ready_size": 19},
    ):
        content = {"ready_set": said["ready_set"], "ready_size": 20, "members": said["members"][0], "size": 20} | change
        lie = forged(this, row[0], SparseList, roster=said["roster"], **content)
        refused("TWO_LISTS", machine.unmask, [lie, *lists[1:]])
    assert journal_of(this) == before
    shares = machine.unmask(lists)
    assert machine.unmask(lists[: this.hood.t]) == shares


def test_messages_of_another_round_attempt_model_or_roster_are_refused_everywhere(sparse, refused):
    """Everything that was signed in attempt 0 is replayed in attempt 1, and in a round for another model."""
    this = sparse(12).until("list")
    old = this.mail, dict(this.parcels)
    for change in ({"attempt": 1}, {"round": 2}, {"round": 3, "model": "sha256:" + "8" * 64}):
        this.attempt(**change)
        portal, mail = this.coordinator, old[0]
        refused("OTHER_ROUND", portal.take_keys, mail["keys"][ME])
        this.until("bundles")
        shown = portal.neighbours_for(ME)
        at = next(place for place, item in enumerate(shown) if item.row is not None)
        liar = shown[at].leaf.silo
        fake = [*shown[:at], replace(shown[at], row=mail["row"][liar]), *shown[at + 1 :]]
        refused("OTHER_ROUND", this.machines[ME].accept_neighbours, fake)
        this.play("bundles")
        sender = next(name for name in this.parcels[ME] if name in old[1][ME])
        this.parcels[ME] = this.parcels[ME] | {sender: old[1][ME][sender]}
        this.play("ready")
        opened = this.machines[ME]._records.need("bundles", "test")["seeds"]
        assert sender not in opened
        this.close("update")
        live = [name for name in this.silos if portal.leaf("ready", name).value is not None]
        this.play("update", who=live)
        this.close("list")
        name = live[-1]
        updates = portal.updates_for(name)
        owner = SparseUpdate.parse(updates[0].payload).silo
        refused(
            "OTHER_ROUND",
            this.machines[name].sign_list,
            *this.set_for("list", name),
            [mail["update"][owner], *updates[1:]],
        )


# --- the coordinator's checks ----------------------------------------------------------------------------------------


def test_coordinator_takes_nothing_out_of_stage_or_from_outside(sparse, refused):
    this = sparse(12)
    portal = this.coordinator
    refused("OUT_OF_STAGE", portal.claim, "roster")
    this.play("keys", who=this.silos[:8])
    refused("ROSTER_TOO_SMALL", portal.close_roster)
    this.play("keys", who=this.silos[8:11])
    this.close("row")
    refused("OUT_OF_STAGE", portal.take_keys, this.mail["keys"][ME])
    refused("OUT_OF_STAGE", portal.close_roster)
    root = portal.claim("roster").root
    refused("OUTSIDE_PARENT", portal.take_row, forged(this, "site-011", SparseRow, roster=root, nonce=b"1" * 32))
    this.play("row", who=this.silos[:8])
    refused("SET_TOO_SMALL", portal.close_graph)
    this.play("row", who=this.silos[8:11])
    this.close("bundles")
    refused("OUT_OF_STAGE", portal.take_row, this.mail["row"][ME])


def test_coordinator_refuses_messages_that_do_not_fit_their_sets(sparse, refused):
    this = sparse(20).until("bundles")
    portal, root = this.coordinator, this.coordinator.claim("roster").root
    this.play("bundles")
    bundles = SparseBundles.parse(this.mail["bundles"][ME].payload)
    first = next(iter(bundles.hashes))
    few = {name: box for name, box in bundles.boxes.items() if name != first}
    refused(
        "BAD_MESSAGE",
        portal.take_bundles,
        forged(this, ME, SparseBundles, roster=root, boxes=few, hashes=bundles.hashes),
    )
    bare = {name: pair for name, pair in bundles.hashes.items() if name != first}
    refused(
        "BAD_MESSAGE",
        portal.take_bundles,
        forged(this, ME, SparseBundles, roster=root, boxes=bundles.boxes, hashes=bare),
    )
    this.play("ready")
    ready = {name: getattr(SparseReady.parse(this.mail["ready"][ME].payload), name) for name in READY}
    near = {*portal._rows[ME], *portal._drew[ME]}
    stranger = next((name for name in this.silos[1:] if name not in near), ME)
    more = tuple(sorted({*ready["senders"], stranger}))
    refused("NOT_NEIGHBOUR", portal.take_ready, forged(this, ME, SparseReady, roster=root, **ready | {"senders": more}))
    short = ready | {"list_box": ready["list_box"][:-32]}
    refused("BAD_MESSAGE", portal.take_ready, forged(this, ME, SparseReady, roster=root, **short))
    this.close("update")
    this.play("update")
    content = {"roster": root, "ready_set": portal.claim("ready").root, "chunks": ("sha256:" + "4" * 64,)}
    refused("BAD_MESSAGE", portal.take_update, forged(this, ME, SparseUpdate, **content))
    other = content | {"ready_set": "sha256:" + "5" * 64}
    refused("OTHER_SET", portal.take_update, forged(this, ME, SparseUpdate, **other))
    this.close("list")
    this.play("list")
    said = {"roster": root, "ready_set": portal.claim("ready").root, "ready_size": 20, "members": root, "size": 20}
    refused("TWO_LISTS", portal.take_list, forged(this, ME, SparseList, **said))
    this.play("unmask")
    none = forged(this, ME, SparseUnmask, roster=root, self_shares={}, list_shares={})
    refused("OTHER_SET", portal.take_unmask, none)


READY = ("self_hash", "list_hash", "list_box", "senders", "nonce")


def test_wrong_shares_name_their_sender_and_only_it(sparse):
    this = sparse(20).play(*sparse.steps)
    portal, liars = this.coordinator, this.silos[2:4]
    for liar in liars:
        message = portal._unmask[liar]
        lie = {name: bytes(32) for name in message.self_shares}
        root = portal.claim("roster").root
        portal.take_unmask(forged(this, liar, SparseUnmask, roster=root, self_shares=lie, list_shares={}))
    assert portal.recover().bad_senders == liars
    this.assert_sum(this.silos)


def test_fewer_than_t_good_shares_stop_and_name_the_liars(sparse):
    this = sparse(20).play(*sparse.steps)
    portal = this.coordinator
    row = portal._rows[ME]
    for name in row[2 : this.hood.h - this.hood.t + 1]:
        del portal._unmask[name]
    liars = row[:2]
    for liar in liars:
        lie = {name: bytes(32) for name in portal._unmask[liar].self_shares}
        root = portal.claim("roster").root
        portal.take_unmask(forged(this, liar, SparseUnmask, roster=root, self_shares=lie, list_shares={}))
    with pytest.raises(NotEnoughShares, match=f"{this.hood.t - 1} shares") as caught:
        portal.recover()
    assert set(caught.value.bad) <= set(liars) and caught.value.bad


def test_dealer_of_wrong_shares_and_unreadable_list_are_named(sparse, refused):
    this = sparse(20)
    gone = this.silos[8]
    for step in sparse.steps:
        late = sparse.steps.index(step) > 3
        this.play(step, who=[name for name in this.silos if not (late and name == gone)])
    portal = this.coordinator
    honest = portal._ready[gone]
    portal._ready[gone] = replace(honest, list_box=bytes(len(honest.list_box)))
    assert gone in refused("LIST_UNREADABLE", portal.recover)
    portal._ready[gone] = replace(honest, list_hash="sha256:" + "7" * 64)
    assert gone in refused("BAD_DEALER", portal.recover)
    portal._ready[gone] = honest
    this.assert_sum(name for name in this.silos if name != gone)
