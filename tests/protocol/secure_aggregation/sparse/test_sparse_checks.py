"""After the unmasking: nobody believes a sum that is not what the members sent, whoever chose the nonces."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protocol import canonical
from protocol.messages import Check, Nonce, State, seal
from protocol.secure_aggregation import StudyLedger, check_word, checks
from protocol.secure_aggregation.check_word import PRIME
from protocol.secure_aggregation.sparse import Claim, OpenedNonces, SparseCoordinator
from protocol.secure_aggregation.sparse.nonces import Opened
from protocol.secure_aggregation.sparse.trees import Tree
from protocol.signing import keyid

ME = "site-000"
SET_UP = ("keys", "row", "bundles", "ready", "update", "list")
LAST = ("nonce", "check", "verify")
OTHER = "sha256:" + "c" * 64
STATE = "sha256:" + "d" * 64


def summed(sparse, n: int = 12, **settings):
    return sparse(n, small=True, **settings).play(*SET_UP, "unmask").publish()


def forged(this, kind, name: str, **change):
    """The message that `name` sent, with other content, signed with its own key."""
    message = kind.parse(this.mail[kind.STAGE][name].payload)
    return seal(replace(message, **change), this.keys[message.silo])


def judge(this, name: str, checks=None):
    checks = list(this.mail["check"].values()) if checks is None else checks
    return this.machines[name].verify_sum(checks, [this.body.view("<i4")], this.tail)


# --- the way through -------------------------------------------------------------------------------------------------


def test_true_sum_is_verified_by_every_member_and_the_next_state_is_signed(sparse):
    this = summed(sparse).play(*LAST)
    assert this.verified == dict.fromkeys(this.silos, True)
    assert this.coordinator.check_sum(this.published, [this.body.view("<i4")], this.tail) is True
    message = State.parse(this.machines[ME].sign_state(STATE).payload)
    # The states of a model are read without knowing how its round was masked.
    assert message.ctx == this.parameters.attempt_ctx.hex() != this.parameters.ctx.hex()
    assert message.roster == this.coordinator.claim("roster").root


def test_no_state_is_signed_before_the_sum_was_verified(sparse, refused):
    this = summed(sparse).play("nonce", "check")
    refused("OUT_OF_STAGE", this.machines[ME].sign_state, STATE)


@pytest.mark.parametrize("when", ["before", "after"])
def test_silo_killed_at_any_write_goes_on_with_the_same_bytes_through_the_checks(sparse, world, when):
    steps = (*SET_UP, "unmask", "publish", *LAST)
    whole = summed(sparse, 8).play(*LAST).journals["site-002"].puts
    for at in range(whole - 7, whole + 1):
        this = sparse(8, small=True)
        journal = this.journals["site-002"]
        journal.kill_at = (at, when)
        for step in steps:
            if step == "publish":
                this.publish()
                continue
            this.close(step)
            for name in this.silos:
                try:
                    this.step(step, name)
                except world.Killed:
                    journal.kill_at = None
                    this.machines[name] = this.rebuild(name)
                    this.step(step, name)
        assert journal.kill_at is None
        assert this.verified == dict.fromkeys(this.silos, True)


def test_each_check_step_again_and_after_a_restart_gives_the_same_bytes(sparse):
    this = summed(sparse, 8).play(*LAST)
    for machine in (this.machines[ME], this.rebuild(ME)):
        this.machines[ME] = machine
        assert this.answer("nonce", ME) == this.mail["nonce"][ME]
        assert this.answer("check", ME) == this.mail["check"][ME]
        assert judge(this, ME) is True


def test_coordinator_fed_again_judges_the_sum_alike(sparse):
    this = summed(sparse).play("nonce", "check")
    mail = this.mail
    this.coordinator, this.closed = SparseCoordinator(this.parameters), set()
    for step in (*SET_UP, "unmask", "nonce", "check"):
        this.close(step)
        for envelope in mail[step].values():
            getattr(this.coordinator, f"take_{step}")(*([this.published] if step in LAST else []), envelope)
    assert this.coordinator.check_sum(this.published, [this.body.view("<i4")], this.tail) is True


# --- lies about the sum ----------------------------------------------------------------------------------------------


def test_another_sum_than_the_true_one_is_refused_by_every_member(sparse, refused):
    this = sparse(12, small=True).play(*SET_UP, "unmask").publish(add=1).play("nonce", "check")
    for name in this.silos:
        refused("SUM_NOT_TRUE", judge, this, name)
        refused("OUT_OF_STAGE", this.machines[name].sign_state, STATE)
    refused("SUM_NOT_TRUE", this.coordinator.check_sum, this.published, [this.body.view("<i4")], this.tail)


def test_a_second_sum_finds_no_nonce(sparse, refused):
    this = summed(sparse).play("nonce")
    refused("SECOND_SUM", this.machines[ME].open_nonce, OTHER)


def test_members_that_do_not_make_the_signed_root_are_refused(sparse, refused):
    this = summed(sparse)
    agree, names = this.machines[ME].agree, list(this.silos)
    for wrong in (names[1:], names[::-1], [*names, names[-1]], [*names, "site-999"], []):
        refused("OTHER_SET", agree, wrong)
    assert agree(names) == this.silos


def test_no_nonce_is_opened_for_a_sum_whose_members_were_not_agreed(sparse, refused):
    this = summed(sparse)
    refused("OUT_OF_STAGE", this.machines[ME].open_nonce, this.published)
    this = sparse(12).play(*SET_UP[:5])
    refused("OUT_OF_STAGE", this.machines[ME].agree, this.silos)


# --- lies about the nonces -------------------------------------------------------------------------------------------


def test_nonce_that_was_not_committed_to_before_the_upload_is_refused(sparse, refused):
    """A portal and a silo with it can't choose a nonce after they saw those of the others."""
    this = summed(sparse).play("nonce")
    this.close("check")
    opened = this.coordinator.opened_nonces
    send = this.machines[ME].send_check
    chosen = {**opened.nonces, "site-005": opened.nonces["site-005"]._replace(nonce=bytes(32))}
    refused("BAD_NONCE", send, OpenedNonces(chosen, opened.others))
    ready = {**opened.nonces, "site-005": Opened(OTHER, opened.nonces["site-005"].nonce)}
    refused("BAD_NONCE", send, OpenedNonces(ready, opened.others))
    refused("BAD_NONCE", send, OpenedNonces(opened.nonces, {"site-005": OTHER}))
    refused("BAD_NONCE", send, OpenedNonces(opened.nonces, {"site-999": OTHER}))
    refused("BAD_NONCE", this.coordinator.check_nonce, this.published, forged(this, Nonce, ME, nonce=bytes(32)))


def test_no_set_of_nonces_can_be_picked_where_every_check_word_is_asked_for(sparse, refused):
    this = summed(sparse).play("nonce", who=[f"site-{number:03}" for number in range(11)])
    this.close("check")
    refused("CHECK_MISSING", this.answer, "check", ME)


def test_own_nonce_must_be_among_those_opened(sparse, refused):
    this = summed(sparse, unverified=True).play("nonce", who=[f"site-{number:03}" for number in range(1, 12)])
    this.close("check")
    this.machines[ME].agree(this.silos)
    this.machines[ME].open_nonce(this.published)
    refused("LEFT_OUT", this.machines[ME].send_check, this.coordinator.opened_nonces)


def test_nonce_of_a_silo_outside_the_list_is_refused(sparse, refused):
    this = sparse(20, small=True).play(*SET_UP[:4])
    this.close("update")
    gone = this.silos[-1]
    rest = [name for name in this.silos if name != gone]
    this.play("update", "list", "unmask", who=rest).publish().play("nonce", who=rest)
    own = this.journals[gone].rows["round/st-abc/1/0/keys"]
    assert own
    this.close("check")
    opened = this.coordinator.opened_nonces
    assert set(opened.others) == {gone}
    nonce = canonical.unb64(canonical.decode(own)["nonces"][1])
    nonces = {**opened.nonces, gone: Opened(this.mail["ready"][gone].digest, nonce)}
    refused("OUTSIDE_PARENT", this.machines[ME].send_check, OpenedNonces(nonces, {}))
    this.play("check", "verify", who=rest)
    assert this.verified == dict.fromkeys(rest, True)


def test_second_check_word_under_other_nonces_is_never_sent(sparse, refused):
    this = summed(sparse, unverified=True).play("nonce")
    this.close("check")
    opened = this.coordinator.opened_nonces
    this.machines[ME].send_check(opened)
    fewer = {name: each for name, each in opened.nonces.items() if name != "site-011"}
    value = Tree(this.parameters, this.coordinator._tree("ready").values).values["site-011"]
    refused("SECOND_CHECK", this.machines[ME].send_check, OpenedNonces(fewer, {"site-011": value}))


# --- lies about the check words --------------------------------------------------------------------------------------


def test_check_word_that_is_false_or_missing_or_twice_throws_the_sum_away(sparse, refused):
    this = summed(sparse).play("nonce", "check")
    mail = this.mail["check"]
    others = [envelope for name, envelope in mail.items() if name != "site-001"]
    refused("CHECK_MISSING", judge, this, ME, others)
    refused("TWICE", judge, this, ME, [*mail.values(), mail["site-001"]])
    refused("OTHER_MESSAGE", judge, this, ME, [mail["site-001"]])
    refused("SUM_NOT_TRUE", judge, this, ME, [*others, forged(this, Check, "site-001", word=bytes(8))])
    refused("OTHER_SUM", judge, this, ME, [*others, forged(this, Check, "site-001", sum=OTHER)])
    refused("OTHER_SET", judge, this, ME, [*others, forged(this, Check, "site-001", nonces=OTHER)])
    high = forged(this, Check, "site-001", word=PRIME.to_bytes(8, "big"))
    refused("BAD_CHECK", judge, this, ME, [*others, high])
    refused("BAD_CHECK", this.coordinator.check_check, this.published, high)
    refused("OTHER_ROSTER", judge, this, ME, [*others, forged(this, Check, "site-001", roster=OTHER)])
    assert judge(this, ME) is True


def test_sum_stands_unverified_only_where_the_manifest_says_so(sparse, refused):
    away = "site-011"
    this = summed(sparse, unverified=True)
    rest = [name for name in this.silos if name != away]
    this.play("nonce", "check", "verify", who=rest)
    assert this.verified == dict.fromkeys(rest, False)
    assert this.coordinator.check_sum(this.published, [this.body.view("<i4")], this.tail) is False
    assert this.machines[ME].sign_state(STATE)


def test_sum_is_not_called_verified_where_a_nonce_was_left_out(sparse, refused):
    """Otherwise a portal that need not wait for all could try one set of nonces after another."""
    this = summed(sparse, unverified=True)
    rest = [name for name in this.silos if name != "site-011"]
    this.play("nonce", who=rest)
    this.close("check")
    this.play("check", who=rest)
    # The silo with the portal sends its check word without having opened its nonce.
    liar = this.machines["site-011"]
    liar.agree(this.silos)
    liar.open_nonce(this.published)
    liar._records.write("check", {"complete": True})
    opened = this.coordinator.opened_nonces
    seed = check_word.seed_of(this.parameters.ctx, this.published, {n: each.nonce for n, each in opened.nonces.items()})
    body, tail = this.updates["site-011"]
    word = checks.own_word(this.parameters, seed, [body.view("<i4")], [tail])
    root = this.coordinator.claim("roster").root
    sent = liar._seal(Check, roster=root, sum=this.published, nonces=opened.digest, word=check_word.to_bytes(word))
    assert this.coordinator.take_check(this.published, sent) == "site-011"
    assert judge(this, ME, [*this.mail["check"].values(), sent]) is False
    assert this.coordinator.check_sum(this.published, [this.body.view("<i4")], this.tail) is False
    refused("SUM_NOT_TRUE", this.coordinator.check_sum, this.published, [this.body.view("<i4") + 1], this.tail)


def test_sum_is_judged_once(sparse, refused):
    this = summed(sparse, unverified=True).play("nonce", "check")
    assert judge(this, ME) is True
    refused("SECOND_CHECK", judge, this, ME, [this.mail["check"][name] for name in this.silos[:11]])


def test_too_few_nonces_are_refused_even_where_a_sum_may_stand_unverified(sparse, refused):
    this = summed(sparse, unverified=True).play("nonce", who=[f"site-{number:03}" for number in range(8)])
    this.close("check")
    refused("TOO_FEW_SIGNATURES", this.answer, "check", ME)


# --- a silo that was away --------------------------------------------------------------------------------------------


def away_at_the_list(sparse):
    """site-000 sent its update, and came back when the others had signed the list and told their shares."""
    this = sparse(20, small=True).play(*SET_UP[:5])
    this.play("list", "unmask", who=this.silos[1:]).publish()
    return this, (*this.set_for("list", ME), this.coordinator.lists_for(ME))


def test_member_that_was_away_takes_the_list_and_checks_the_sum(sparse):
    this, given = away_at_the_list(sparse)
    this.machines[ME].accept_list(*given)
    assert StudyLedger(this.journals[ME], "st-abc").spent(1) is not None
    this.machines[ME] = this.rebuild(ME)
    this.machines[ME].accept_list(*given)
    this.play(*LAST)
    assert this.verified == dict.fromkeys(this.silos, True)


def test_member_that_took_the_list_reveals_no_share(sparse, refused):
    this, given = away_at_the_list(sparse)
    this.machines[ME].accept_list(*given)
    refused("OUT_OF_STAGE", this.machines[ME].unmask, given[2])


def test_list_is_taken_only_as_t_of_the_own_row_signed_it(sparse, refused):
    this, (claim, leaves, lists) = away_at_the_list(sparse)
    accept = this.machines[ME].accept_list
    refused("TOO_FEW_SIGNATURES", accept, claim, leaves, lists[: this.hood.t - 1])
    stranger = next(name for name in this.silos if name not in this.coordinator._rows[ME] and name != ME)
    refused("NOT_NEIGHBOUR", accept, claim, leaves, [this.mail["list"][stranger]])
    refused("TWICE", accept, claim, leaves, [lists[0], lists[0]])
    refused("BAD_PROOF", accept, Claim(OTHER, claim.size), leaves, lists)
    refused("TWO_LISTS", accept, Claim(claim.root, claim.size - 1), leaves, lists)


def test_silo_that_signed_one_list_takes_no_other(sparse, refused):
    this = sparse(20, small=True).play(*SET_UP)
    given = (*this.set_for("list", ME), this.coordinator.lists_for(ME))
    this.machines[ME].accept_list(*given)  # the one it signed: nothing happens
    other = Claim(given[0].root, given[0].size - 1)
    refused("TWO_LISTS", this.machines[ME].accept_list, other, given[1], given[2])


def test_known_partners_are_asked_for_also_by_a_silo_that_was_away(sparse, refused):
    this, given = away_at_the_list(sparse)
    this.known = {"known_partners": frozenset({keyid(bytes(32))}), "min_known": 1}
    refused("TOO_FEW_KNOWN", this.rebuild(ME).accept_list, *given)


# --- out of order ----------------------------------------------------------------------------------------------------


def test_coordinator_takes_nothing_out_of_order(sparse, refused):
    this = summed(sparse)
    with pytest.raises(Exception, match="nonces are not fixed"):
        _ = this.coordinator.opened_nonces
    this.play("nonce")
    this.close("check")
    refused("OUT_OF_STAGE", this.coordinator.take_nonce, this.published, this.mail["nonce"][ME])
    refused("OTHER_SUM", this.coordinator.check_nonce, OTHER, this.mail["nonce"][ME])
    for step in ("list", "unmask"):
        assert getattr(this.coordinator, f"check_{step}")(this.mail[step][ME]) == ME
    assert this.coordinator.check_nonce(this.published, this.mail["nonce"][ME]) == ME


def test_coordinator_knows_when_enough_may_reveal_and_did(sparse):
    this = sparse(20).play(*SET_UP[:5])
    this.close("list")
    assert not this.coordinator.can_unmask(this.coordinator.able())
    assert this.coordinator.can_unmask(this.coordinator.able(this.silos))
    assert this.coordinator.able(this.silos[: this.hood.t]) == set()
    this.play("list")
    assert this.coordinator.able() == set(this.silos)
    told = 0
    while not this.coordinator.enough():
        this.play("unmask", who=[this.silos[told]])
        told += 1
    assert this.hood.t <= told <= 20
    this.play("unmask", who=[this.silos[0]])  # again: counted once
    this.assert_sum(this.silos)
