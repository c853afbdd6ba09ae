"""A data-use policy counts only as the hospital's steward signed it, and only forward in its versions."""

from __future__ import annotations

import json
from typing import Any

import pytest

from evidence.models import Entry
from governance.models import MatchPrediction, Policy, PolicyProposal
from governance.selectors import current_policy
from governance.services import policy_propose, study_submit
from organisations.models import Silo
from portal.actors import SYSTEM
from portal.problems import Refused
from protocol.policy import POLICY_TYPE
from protocol.signing import SigningKey, sign_envelope

pytestmark = pytest.mark.django_db
PATH = "/api/v1/silo/policy"


def _send(hospital: Any, envelope: Any) -> tuple[int, dict[str, Any]]:
    answer = hospital.node.send("PUT", PATH, envelope.as_dict())
    return answer.status_code, json.loads(answer.content)


def test_a_signed_policy_is_stored_as_it_came_and_recorded(make_hospital):
    hospital = make_hospital("site-1", policy=None)
    envelope = hospital.policy()
    status, content = _send(hospital, envelope)
    stored = Policy.objects.get()
    assert status == 200 and content == {"policy": envelope.digest, "version": 1}
    assert stored.envelope == envelope.as_dict() and stored.current
    entry = json.loads(bytes(Entry.objects.get(type="policy.changed").record))
    assert entry["actor"] == {"id": hospital.steward.keyid, "role": "steward", "org": "site-1", "auth": "signature"}
    assert entry["refs"]["policy"] == envelope.digest


def test_a_newer_policy_replaces_the_one_in_force_and_the_same_again_changes_nothing(make_hospital):
    hospital = make_hospital("site-1")
    second = hospital.policy(2, permission="DUO:0000006")
    assert _send(hospital, second)[0] == 200
    assert _send(hospital, second)[0] == 200
    assert Policy.objects.count() == 2
    assert current_policy(Silo.objects.get()).digest == second.digest


def test_an_old_policy_can_not_be_brought_back(make_hospital):
    hospital = make_hospital("site-1")
    first = Policy.objects.get().envelope
    _send(hospital, hospital.policy(2))
    answer = hospital.node.send("PUT", PATH, first)
    assert (answer.status_code, json.loads(answer.content)["code"]) == (409, "VERSION")
    assert current_policy(Silo.objects.get()).version == 2
    assert Entry.objects.filter(type="policy.changed", outcome="denied").count() == 1


@pytest.mark.parametrize("signer", ["silo", "stranger"])
def test_a_policy_that_no_steward_signed_is_refused(make_hospital, signer):
    hospital = make_hospital("site-1", policy=None)
    key = hospital.key if signer == "silo" else SigningKey.generate()
    forged = sign_envelope(POLICY_TYPE, hospital.policy().payload, key)
    status, content = _send(hospital, forged)
    assert (status, content["code"]) == (401, "BAD_SIGNATURE")
    assert not Policy.objects.exists()


def test_another_hospitals_policy_and_another_document_are_refused(make_hospital):
    first, second = make_hospital("site-1", policy=None), make_hospital("site-2", policy=None)
    assert _send(first, second.policy())[1]["code"] == "BAD_SIGNATURE"
    assert _send(first, first.policy(silo="site-2"))[1]["code"] == "BAD_MESSAGE"
    assert _send(first, first.policy(permission=5))[1]["code"] == "BAD_MESSAGE"
    other_type = sign_envelope("application/vnd.consilium.approval+json", first.policy().payload, first.steward)
    assert _send(first, other_type)[1]["code"] == "BAD_SIGNATURE"
    assert not Policy.objects.exists()


def test_a_new_policy_refreshes_what_the_hospital_will_say_to_open_studies(make_hospital, make_study):
    hospitals = [make_hospital(f"site-{n}") for n in (1, 2, 3)]
    study, owner = make_study(["site-1", "site-2", "site-3"])
    manifest = study_submit(actor=owner, study=study)
    before = MatchPrediction.objects.get(manifest=manifest, silo__name="site-1")
    assert (before.decision, before.reasons) == ("PERMIT", [])
    _send(hospitals[0], hospitals[0].policy(2, permission="DUO:0000007", diseases=["DOID:162"]))
    after = MatchPrediction.objects.get(manifest=manifest, silo__name="site-1")
    assert after.decision == "DENY" and after.policy.version == 2
    assert after.reasons[0]["code"] == "DS" and after.reasons[0]["sentence"] and after.reasons[0]["change"]
    assert Entry.objects.filter(type="match.decided").count() == 4


def test_a_proposal_means_nothing_until_the_hospital_signs(make_hospital, make_user, actor_of):
    hospital = make_hospital("site-1")
    silo = Silo.objects.select_related("organisation").get()
    document = json.loads(hospital.policy(1, permission="DUO:0000004").payload)
    user = make_user("steward", silo.organisation)
    proposal = policy_propose(actor=actor_of(user), silo=silo, document=document, proposed_by=user)
    assert proposal.document["version"] == 2
    assert current_policy(silo).version == 1
    _send(hospital, hospital.policy(2, permission="DUO:0000004"))
    proposal.refresh_from_db()
    assert proposal.state == PolicyProposal.State.ADOPTED
    with pytest.raises(Refused, match="BAD_MESSAGE"):
        policy_propose(actor=SYSTEM, silo=silo, document={"permission": 1.5}, proposed_by=user)
