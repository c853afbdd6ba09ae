"""A model got worse: going back is proposed, a person decides, and the next announced round starts from the earlier model."""

from __future__ import annotations

import json
import threading
from typing import Any

import numpy as np
import pytest
from django.db import connection

from evidence.models import Entry
from federation.models import GlobalModel, Rollback, Round
from federation.selectors.branches import left_behind, model_next
from federation.services.rollback import error_of_difference, rollback_decide
from portal.actors import SYSTEM, Actor
from portal.problems import Refused
from protocol.secure_aggregation import StudyLedger

State = Rollback.State


def train(world: Any, *scores: float | list[float]) -> None:
    """One finished round a score: what every hospital (or each) says of the model that came in."""
    for score in scores:
        for number, silo in enumerate(world.silos.values()):
            silo.auc = score[number] if isinstance(score, list) else score
        before = world.round.pk
        world.play(until=lambda w, before=before: w.round.pk > before)


@pytest.fixture
def world(network: Any) -> Any:
    """A study of four hospitals whose first model is made."""

    def make(**settings: Any) -> Any:
        made = network(4, **{"max_rounds": 12, "worse_by": 0.05} | settings)
        made.play(until=lambda w: w.round.number == 1)
        return made

    return make


@pytest.fixture
def admin(make_user: Any, actor_of: Any) -> Any:
    """admin(name) -> (person, actor): an admin of the network."""

    def make(name: str = "ada") -> tuple[Any, Actor]:
        person = make_user("admin", name=name)
        return person, actor_of(person)

    return make


def decide(
    who: tuple[Any, Actor], decision: str, reason: str = "Two hospitals see it too.", proposal: Any = None
) -> Any:
    person, actor = who
    proposal = proposal or Rollback.objects.get(state=State.OPEN)
    return rollback_decide(actor=actor, person=person, proposal=proposal, decision=decision, reason=reason)


def entries(kind: str) -> list[dict[str, Any]]:
    return [
        json.loads(bytes(each.record)) for each in Entry.objects.filter(type=kind, outcome="success").order_by("id")
    ]


def test_a_model_that_is_worse_by_more_than_the_margin_is_proposed_once_and_the_training_goes_on(world: Any):
    made = world()
    train(made, 0.7, 0.8, 0.751, [0.75, 0.8, 0.7, 0.7], 0.74)
    proposal = Rollback.objects.get()
    assert (proposal.model.number, proposal.back_to.number, proposal.round.number) == (3, 1, 4)
    assert proposal.drop == pytest.approx(0.8 - 0.7375, abs=1e-5)
    assert proposal.error == pytest.approx(np.std([0.75, 0.8, 0.7, 0.7]) / np.sqrt(3), abs=1e-4)
    assert proposal.state == State.OPEN and made.state == "running"
    assert made.round.model_digest == GlobalModel.objects.get(number=5).digest, "no machine goes back"
    (entry,) = entries("rollback.proposed")
    assert entry["refs"] == {"model": proposal.model.digest, "back_to": proposal.back_to.digest}
    assert entry["data"]["best_micro"] - entry["data"]["auc_micro"] > entry["data"]["margin_micro"] == 50_000
    assert entry["private"] is None


def test_nothing_is_proposed_within_the_margin_or_where_the_study_asks_for_nothing(world: Any):
    train(world(), 0.8, 0.7501, 0.7501)
    assert not Rollback.objects.exists()


def test_a_study_without_a_margin_gets_no_proposal(world: Any):
    train(world(worse_by=None), 0.9, 0.5)
    assert not Rollback.objects.exists()


def test_a_proposal_is_withdrawn_by_itself_when_a_later_model_is_as_good_again(world: Any):
    made = world()
    train(made, 0.8, 0.7, 0.72, 0.76)
    proposal = Rollback.objects.get()
    assert proposal.state == State.WITHDRAWN and proposal.again.number == 3
    (entry,) = entries("rollback.withdrawn")
    assert entry["data"]["again"] == 3 and entry["refs"]["proposed"] == entries("rollback.proposed")[0]["id"]
    train(made, 0.7)
    assert Rollback.objects.get(state=State.OPEN).model.number == 4, "worse again is proposed again"


def test_what_was_dismissed_is_not_proposed_again_until_a_model_was_as_good_and_got_worse(world: Any, admin: Any):
    made = world()
    train(made, 0.8, 0.7)
    decide(admin(), "dismiss", "One hospital changed its scanner.")
    train(made, 0.7, 0.6)
    assert Rollback.objects.get().state == State.DISMISSED
    train(made, 0.79, 0.7)
    assert Rollback.objects.get(state=State.OPEN).model.number == 5
    (entry,) = entries("rollback.decided")
    assert entry["data"]["decision"] == "dismiss" and entry["actor"]["role"] == "admin"
    assert "scanner" not in json.dumps(entry) and entry["private"] is not None


def test_going_back_takes_effect_with_the_next_announced_round_and_later_models_get_new_numbers(world: Any, admin: Any):
    made = world(max_rounds=6)
    train(made, 0.7, 0.8, 0.6)  # model 1 is best, model 2 is worse; round 4 is open, on model 3
    assert made.round.number == 4
    decide(admin(), "go-back")
    assert made.round.model_digest == GlobalModel.objects.get(number=3).digest, "an open round comes to its end"
    train(made, 0.6)
    best = GlobalModel.objects.get(number=1)
    assert (made.round.number, made.round.model_digest) == (5, best.digest)
    task = next(each for each in made.silos["site-1"].assignments() if each["kind"] == "announce")
    assert task["states"] == best.states and len(task["states"]) >= 3
    assert task["origin"]["number"] == best.round.number == 1
    proposal = Rollback.objects.get()
    assert (proposal.first_round.number, proposal.newest) == (5, 4)
    assert left_behind(made.study) == {2, 3, 4}
    train(made, 0.8)
    assert made.round.model_digest == GlobalModel.objects.get(number=5).digest == model_next(made.study).digest
    assert GlobalModel.objects.get(number=5).round.model_digest == best.digest
    # Six rounds of training were approved; those of the models left behind count.
    train(made, 0.81)
    assert made.round.purpose == "evaluate" and GlobalModel.objects.count() == 7
    made.play()
    assert made.state == "completed"
    assert Rollback.objects.count() == 1, "a model of a round that was left behind is not held against anything"


def test_the_next_round_starts_from_the_earlier_model_though_the_open_one_fails(world: Any, admin: Any):
    made = world()
    train(made, 0.8, 0.6)
    decide(admin(), "go-back")
    for name in ("site-1", "site-2"):
        made.silos[name].stops_before = {"ready"}
    failing = made.round
    made.play()
    made.later(700)
    assert Round.objects.get(pk=failing.pk).stage == "failed"
    assert made.round.model_digest == GlobalModel.objects.get(number=0).digest
    assert (made.round.number, made.round.attempt) == (3, 2)


def test_rounds_that_were_left_behind_count_and_at_the_cap_the_earlier_model_is_evaluated(world: Any, admin: Any):
    made = world(max_rounds=4)
    train(made, 0.7, 0.8, 0.6)
    decide(admin(), "go-back")
    train(made, 0.6)
    best = GlobalModel.objects.get(number=1)
    assert (made.round.purpose, made.round.model_digest) == ("evaluate", best.digest)
    made.play()
    assert made.state == "completed" and made.round.result.model_number == 1


def test_scores_of_models_left_behind_do_not_end_the_training(world: Any, admin: Any):
    made = world(patience=2, worse_by=0.05, min_delta=0.0)
    train(made, 0.7, 0.8, 0.6)  # models 0, 1, 2; round 4 on model 3
    decide(admin(), "go-back")
    train(made, 0.6)
    assert made.round.purpose == "train", "two rounds without a gain, both left behind"
    train(made, 0.8)
    assert made.round.purpose == "train"


def test_too_few_hospitals_that_agree_pause_the_study_which_says_so_and_goes_on_with_enough(world: Any, admin: Any):
    from governance.models import Study
    from governance.services import study_resume

    made = world()
    train(made, 0.8, 0.6)
    decide(admin(), "go-back")
    train(made, 0.6)
    for name in ("site-1", "site-2"):
        made.silos[name].refuses = {"train": "A steward has to agree first."}
    assert made.round.model_digest == GlobalModel.objects.get(number=0).digest
    for name in ("site-1", "site-2"):
        made.silos[name].act()
    assert made.state == "paused"
    reason = Study.objects.get(pk=made.study.pk).paused_reason
    assert reason["code"] == "ROLLBACK_WAITS"
    assert "model 0" in reason["sentence"] and "A steward has to agree first." in reason["sentence"]
    assert made.round.attempt == 1, "announcing again would only be refused again"
    made.silos["site-1"].refuses = {}
    study_resume(actor=SYSTEM, study=Study.objects.get(pk=made.study.pk))
    assert made.round.attempt == 2 and made.state == "running"
    first = made.round
    for name in first.announced:
        # What a steward's resume writes at the hospital: without it no other list is unmasked for this model.
        StudyLedger(made.silos[name].journal, made.study.pk).resume(first.model_digest, "sha256:" + "e" * 64)
    train(made, 0.8)
    assert Round.objects.get(pk=first.pk).members == ["site-1", "site-3", "site-4"]
    assert made.round.model_digest == GlobalModel.objects.get(number=4).digest


def test_of_two_admins_who_decide_at_once_one_wins(world: Any, admin: Any):
    made = world()
    train(made, 0.8, 0.6)
    people = [admin("ada"), admin("bob")]
    proposal, gate, found = Rollback.objects.get(), threading.Barrier(2), []

    def act(who: tuple[Any, Actor], decision: str) -> None:
        try:
            gate.wait(10)
            found.append(decide(who, decision, proposal=Rollback.objects.get(pk=proposal.pk)).state)
        except Refused as refused:
            found.append(refused.code)
        finally:
            connection.close()

    threads = [threading.Thread(target=act, args=pair) for pair in zip(people, ("go-back", "dismiss"), strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert "OUT_OF_STAGE" in found and len(set(found)) == 2
    proposal.refresh_from_db()
    assert proposal.state in found and proposal.decided_by in [person for person, _ in people]
    assert len(entries("rollback.decided")) == 1
    assert Entry.objects.filter(type="rollback.decided", outcome="denied").count() == 1


def test_only_an_admin_who_does_not_own_the_study_decides_and_says_why(
    world: Any, admin: Any, make_user: Any, actor_of: Any
):
    from organisations.models import Organisation

    made = world()
    train(made, 0.8, 0.6)
    researcher = make_user("researcher", Organisation.objects.get(slug="office"), name="rosa")
    owner = admin("owner")
    for who, decision, reason, code in (
        ((researcher, actor_of(researcher)), "dismiss", "I may not.", "ROLE"),
        ((researcher, owner[1]), "dismiss", "In another's name.", "OWN_STUDY"),
        (admin("ada"), "go-back", "  ", "REASON"),
        (owner, "erase", "What?", "BAD_MESSAGE"),
    ):
        with pytest.raises(Refused) as caught:
            decide(who, decision, reason)
        assert caught.value.code == code
    type(made.study).objects.filter(pk=made.study.pk).update(owner=owner[0])
    with pytest.raises(Refused, match="their own study"):
        decide(owner, "dismiss")
    assert Rollback.objects.get().state == State.OPEN
    assert Entry.objects.filter(type="rollback.decided", outcome="denied").count() == 5


def test_a_study_whose_training_is_over_does_not_go_back(world: Any, admin: Any):
    made = world(max_rounds=2)
    train(made, 0.8, 0.6)
    assert made.round.purpose == "evaluate"
    ada = admin()
    with pytest.raises(Refused, match="Training is over"):
        decide(ada, "go-back")
    made.play()
    assert made.state == "completed"
    with pytest.raises(Refused, match="The study is over"):
        decide(ada, "go-back")
    assert decide(ada, "dismiss").state == State.DISMISSED


def test_a_failed_rounds_scores_propose_nothing(world: Any):
    made = world()
    train(made, 0.8)
    for silo in made.silos.values():
        silo.auc = 0.5
    made.silos["site-2"].stops_before = {"check"}
    made.go_on(until=lambda w: any(each.stage == "check" for each in w.rounds))
    made.later(90_000)
    failed = next(each for each in made.rounds if each.number == 2)
    assert failed.stage == "failed" and failed.result.auc_mean == pytest.approx(0.5)
    assert not Rollback.objects.exists()


def test_one_hospitals_false_scores_make_a_proposal_and_no_more(world: Any):
    made = world()
    train(made, 0.8, [0.8, 0.8, 0.8, 0.0])
    assert Rollback.objects.get().state == State.OPEN
    train(made, 0.8)
    assert Rollback.objects.get().state == State.WITHDRAWN
    assert left_behind(made.study) == frozenset()


@pytest.mark.parametrize(
    ("word", "value", "why"),
    [
        (0, 2, "counts more silos than are in the sum"),
        (2, 2, "counts more silos than are in the sum"),
        (3, 2**31, "out of range"),
        (4, 2**31, "do not fit together"),
    ],
)
def test_a_tail_whose_words_can_not_be_of_that_many_members_fails_the_round(
    world: Any, word: int, value: int, why: str
):
    """The count of evaluations, that of AUCs, and their sums are held against the members that are in the sum."""
    made = world()
    lying, honest = made.silos["site-1"], made.silos["site-1"].update

    def update(key: str, d: int) -> tuple[np.ndarray, np.ndarray]:
        words, tail = honest(key, d)
        tail[word] = value
        return words, tail

    lying.update = update
    before = made.round.pk
    made.play(until=lambda w: w.round.pk > before)
    failed = Round.objects.get(pk=before)
    assert failed.stage == "failed" and failed.failure["code"] == "SUM_NOT_VALID"
    assert why in failed.failure["sentence"]
    assert not hasattr(failed, "result") and GlobalModel.objects.count() == 1


def test_the_error_is_withheld_where_a_spread_is(world: Any):
    from federation.models import RoundResult

    one = RoundResult(auc_mean=0.8, auc_std=0.06, silos_with_auc=5)
    assert error_of_difference(one, RoundResult(auc_mean=0.7, auc_std=None, silos_with_auc=2)) is None
    assert error_of_difference(one, RoundResult(auc_mean=0.7, auc_std=0.08, silos_with_auc=5)) == pytest.approx(0.05)
