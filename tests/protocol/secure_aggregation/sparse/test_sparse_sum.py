"""The sum is exact, whoever vanishes at whatever step, as long as enough remain; else the round stops cleanly."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import canonical
from protocol.secure_aggregation import NotEnoughShares, ProtocolViolation, StudyLedger, StudyPaused
from protocol.secure_aggregation.sparse import SparseCoordinator
from protocol.signing import Envelope

STEPS = ("keys", "row", "bundles", "ready", "update", "list", "unmask")


def shrink(rows, members: set[str], t: int) -> set[str]:
    """Without those of whose row fewer than t are left, until nobody is."""
    while small := {name for name in members if len(members & set(rows[name])) < t}:
        members = members - small
    return members


def stops_at(this, alive) -> str | None:
    """Where a round must stop, counted here from the rows alone: the first step after which nobody can go on."""
    rows = this.coordinator._rows
    inside, t, least = set(alive("ready")), this.hood.t, this.parameters.least_set

    ready = shrink(rows, inside, t)
    if len(ready) < least:
        return "ready"
    summed = shrink(rows, ready & set(alive("update")), t)
    if len(summed) < least:
        return "list"
    signed = summed & set(alive("list"))
    told = {name for name in signed & set(alive("unmask")) if len(signed & set(rows[name])) >= t}
    if any(len(told & set(rows[name])) < t for name in ready):
        return "unmask"
    return None


@settings(max_examples=40, deadline=None)
@given(data=st.data(), n=st.integers(6, 11), seed=st.integers(0, 2**32 - 1))
def test_sum_is_exact_or_the_round_stops_cleanly(sparse, data, n, seed):
    """Any number of silos may vanish before any step. Whether the round must succeed is counted independently."""
    this = sparse(n, words=data.draw(st.sampled_from([0, 1, 17])), tail=2, seed=seed)
    lasting = ["never"] * data.draw(st.sampled_from([4, 30]), label="lasting")
    gone = {name: data.draw(st.sampled_from([*STEPS, *lasting]), label=name) for name in this.silos}

    def alive(step: str) -> list[str]:
        return [name for name in this.silos if gone[name] == "never" or STEPS.index(gone[name]) > STEPS.index(step)]

    least, early = this.parameters.least_set, False
    refused: set[str] = set()
    try:
        for step in STEPS:
            early = early or len(alive(step)) < (least if step in ("keys", "row") else 0)
            this.close(step)
            for name in alive(step):
                members = {"update": "ready", "list": "list", "unmask": "list"}.get(step)
                if name in refused or (members and this.coordinator.leaf(members, name).value is None):
                    continue
                try:
                    this.step(step, name)
                except ProtocolViolation as error:
                    # For want of neighbours, or too many of them, a silo refuses and counts as vanished from here on.
                    assert error.code in ("TOO_FEW_NEIGHBOURS", "TOO_MANY_NEIGHBOURS", "TOO_FEW_SIGNATURES"), error
                    assert step in ("bundles", "ready", "unmask")
                    refused.add(name)
                    gone[name] = step
        this.assert_sum(this.coordinator._tree("list").values)
    except (ProtocolViolation, NotEnoughShares):
        assert early or stops_at(this, alive) is not None
    else:
        assert not early
        assert stops_at(this, alive) is None


def test_round_without_drop_out(sparse):
    this = sparse(12).play(*STEPS)
    this.assert_sum(this.silos)
    assert this.coordinator.recover().bad_senders == ()


@pytest.mark.parametrize("step", STEPS)
def test_two_of_twenty_may_vanish_at_any_step(sparse, step):
    this = sparse(20)
    gone = this.silos[3:5]
    for each in STEPS:
        this.play(each, who=[name for name in this.silos if name not in gone or STEPS.index(each) < STEPS.index(step)])
    late = STEPS.index(step) > STEPS.index("update")
    this.assert_sum(this.silos if late else [name for name in this.silos if name not in gone])


def test_evaluation_only_round_has_a_tail_and_no_body(sparse):
    this = sparse(12, words=0, tail=9).play(*STEPS)
    this.assert_sum(this.silos)


def test_a_silo_hears_and_says_as_much_as_its_neighbourhood_not_as_all(sparse):
    """Twice the silos at the same h: every message of a silo names at most its neighbours."""
    this = sparse(60, privacy_bits=1, failure_bits=20, colluding=0, lost=0)
    assert this.hood.h < 30
    this.play("keys", "row", "bundles", "ready")
    for name in this.silos:
        near = this.coordinator.neighbours_for(name)
        assert len(near) <= this.hood.h + this.hood.most_in
        assert {item.leaf.silo for item in near} == set(this.parcels[name])


def test_silo_whose_bundle_two_could_not_open_is_left_out_and_named(sparse):
    this = sparse(20).play("keys", "row", "bundles")
    bad = this.silos[7]
    near = sorted(name for name in this.silos if bad in this.parcels[name])
    for name in near[:2]:
        box = this.parcels[name][bad]
        this.parcels[name][bad] = type(box)(b"garbage" * 200, box.hashes)
    this.play("ready")
    assert this.coordinator.close_ready() == {bad: tuple(near[:2])}
    this.closed.add("ready")
    live = [name for name in this.silos if name != bad]
    this.play("update", "list", "unmask", who=live)
    this.assert_sum(live)


def test_shares_that_do_not_fit_their_hashes_are_not_opened(sparse):
    this = sparse(20).play("keys", "row", "bundles")
    owner = this.silos[0]
    holder = this.coordinator._rows[owner][0]
    parcel = this.parcels[holder][owner]
    this.parcels[holder][owner] = type(parcel)(parcel.box, tuple(reversed(parcel.hashes)))
    this.play("ready")
    assert set(this.coordinator.close_ready()) in ({owner}, {holder})


def test_a_box_without_the_shares_it_should_have_is_not_opened(sparse):
    this = sparse(20).play("keys", "row", "bundles")
    owner = this.silos[0]
    holder = this.coordinator._rows[owner][0]
    this.parcels[holder][owner] = type(this.parcels[holder][owner])(this.parcels[holder][owner].box, None)
    this.play("ready")
    assert set(this.coordinator.close_ready()) in ({owner}, {holder})


def test_silo_of_whose_row_too_few_are_ready_is_left_out_too(sparse):
    """It would refuse the set; left in, its secrets could not be rebuilt."""
    this = sparse(40).play("keys", "row", "bundles")
    rows, t = this.coordinator._rows, this.hood.t
    for name in this.silos:  # one whose missing neighbours leave enough to all others
        gone = rows[name][: this.hood.h - t + 1]
        live = {other for other in this.silos if other not in gone}
        if live - shrink(rows, live, t) == {name}:
            break
    this.play("ready", who=sorted(live))
    assert this.coordinator.close_ready() == {name: ()}
    this.closed.add("ready")
    this.play("update", "list", "unmask", who=sorted(live - {name}))
    this.assert_sum(live - {name})


@pytest.mark.parametrize("when", ["before", "after"])
def test_silo_killed_at_any_write_goes_on_with_the_same_bytes(sparse, world, when):
    """One silo dies at each of its writes, is rebuilt from the journal alone, and repeats the step."""
    whole = sparse(8).play(*STEPS)
    count = whole.journals["site-002"].puts
    assert count > 10
    for at in range(1, count + 1):
        this = sparse(8)
        journal = this.journals["site-002"]
        journal.kill_at = (at, when)
        deaths = 0
        for step in STEPS:
            this.close(step)
            for name in this.silos:
                try:
                    this.step(step, name)
                except world.Killed:
                    deaths += 1
                    journal.kill_at = None
                    this.machines[name] = this.rebuild(name)
                    this.step(step, name)
        assert deaths == 1
        this.assert_sum(this.silos)


def test_each_step_again_gives_the_same_bytes_also_after_a_crash(sparse):
    this = sparse(8).play(*STEPS)
    for name in this.silos[:3]:
        for machine in (this.machines[name], this.rebuild(name)):
            this.machines[name] = machine
            for step in STEPS:
                assert this.answer(step, name) == this.mail[step][name]
    rows = this.journals["site-000"].rows
    del rows["round/st-abc/1/0/update"]  # killed after the last chunk, before the last message
    assert this.rebuild("site-000").finish_update() == this.mail["update"]["site-000"]


def test_coordinator_fed_again_from_stored_messages_is_the_same(sparse):
    this = sparse(12)
    for step in STEPS:
        who = [name for name in this.silos if not (name == "site-004" and STEPS.index(step) > 3)]
        this.play(step, who=who)
    mail = this.mail
    this.coordinator, this.closed = SparseCoordinator(this.parameters), set()
    for step in STEPS:
        this.close(step)
        for name in mail[step]:
            getattr(this.coordinator, f"take_{step}")(mail[step][name])
    this.assert_sum(name for name in this.silos if name != "site-004")


def test_destroy_leaves_no_secret_and_what_was_spent_stays(sparse, refused):
    this = sparse(8).play(*STEPS)
    for name in this.silos:
        this.machines[name].destroy()
        assert all(key.startswith("study/") for key in this.journals[name].rows)
        assert this.machines[name]._masks is None
        refused("ROUND_OVER", this.machines[name].keys)
        refused("OUT_OF_STAGE", this.machines[name].masked_chunk, 0)
        assert StudyLedger(this.journals[name], "st-abc").spent(1) is not None


def test_newer_attempt_erases_the_secrets_of_the_older(sparse, refused):
    this = sparse(8).play("keys", "row", "bundles", "ready")
    old = this.machines["site-000"]
    this.attempt(attempt=1)
    this.play(*STEPS)
    this.assert_sum(this.silos)
    assert not [key for key in this.journals["site-000"].rows if key.startswith("round/st-abc/1/0/")]
    refused("OLD_ROUND", old.keys)


def test_three_signed_lists_for_one_model_state_pause_the_study(sparse):
    this = sparse(8)
    for number in (1, 2, 3):
        this.attempt(round=number)
        this.play(*STEPS[:6])
    this.attempt(round=4)
    with pytest.raises(StudyPaused, match="3 lists"):
        this.machines["site-000"].keys()


def test_nobody_is_summed_again_on_one_model_state(sparse, refused):
    """Two sums over different silos of one model state differ by the update of those in one of them only, and a silo that
    sees its neighbours alone cannot tell whether all silos are the same."""
    this = sparse(12).play(*STEPS)
    this.attempt(round=2)
    this.until("list")
    name = this.silos[1]
    refused(
        "OTHER_LIST_UNMASKED",
        this.machines[name].sign_list,
        *this.set_for("list", name),
        this.coordinator.updates_for(name),
    )


def test_what_the_portal_hands_on_can_be_written_as_json(sparse):
    """As a transport will carry it; envelopes and bytes come back the same."""
    this = sparse(12)
    this.play("keys", "row", who=this.silos[:11]).close("bundles")
    shown = this.coordinator.neighbours_for("site-000")
    rows = canonical.decode(canonical.encode([item.as_dict() for item in shown]))
    for item, row in zip(shown, rows, strict=True):
        assert [canonical.unb64(step) for step in row["leaf"]["path"]] == list(item.leaf.path)
        assert (row["leaf"]["silo"], row["leaf"]["value"]) == (item.leaf.silo, item.leaf.value)
        assert (row["keys"] and Envelope.from_dict(row["keys"])) == item.keys
        assert (row["row"] and Envelope.from_dict(row["row"])) == item.row
    this.play("bundles", who=this.silos[:11])
    for parcel in this.parcels["site-000"].values():
        row = canonical.decode(canonical.encode(parcel.as_dict()))
        assert canonical.unb64(row["box"]) == parcel.box
        assert (row["hashes"] and tuple(row["hashes"])) == parcel.hashes
