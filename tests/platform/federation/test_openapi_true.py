"""What the API's description says about bodies is what silos get: a whole study is played, each answer held against it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from portal.openapi import document

jsonschema = pytest.importorskip("jsonschema")
DOCUMENT = document()


def _check(value: Any, name: str) -> None:
    schema = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    jsonschema.Draft202012Validator(schema).validate(value)


def test_every_schema_is_a_schema():
    for schema in DOCUMENT["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_every_assignment_and_answer_of_a_study_fits_its_description(network):
    from federation.selectors.assignments import assignments_answer

    world = network(4, max_rounds=1, sketch=True)
    seen: dict[str, Any] = {}

    def look(world: Any) -> bool:
        for silo in world.silos.values():
            found = json.loads(assignments_answer(silo.row, fresh=True)[1])
            if any(task["kind"] not in seen for task in found["assignments"]):
                _check(found, "Assignments")
            seen.update({task["kind"]: task for task in found["assignments"]})
        return False

    world.play(until=look)
    assert world.state == "completed"
    # A round is hardly ever seen closed: the next one is announced at once. The last one is, and its study completed.
    rounds = {"announce", "roster", "bundles", "ready", "list", "sketch", "second", "unmask", "sum", "check", "state"}
    assert set(seen) == rounds | {"closed", "completed"}
    for silo in world.silos.values():
        for answer in silo.answers:
            _check(answer, "MessageTaken")
    pieces = json.loads(world.silos["site-1"].ask("GET", f"rounds/{world.rounds[1].key}/update").body)
    _check(pieces, "Pieces")


def test_what_a_hospital_gets_before_the_first_round_fits_too(make_hospital, make_study, new_hospital, db):
    from governance.services import review_decide, study_pause, study_submit
    from organisations.models import Organisation, User
    from organisations.services import silo_invite
    from portal.actors import SYSTEM, Actor

    place = Organisation.objects.create(slug="site-9", name="Nine", country="DE")
    hospital = new_hospital("site-9")
    _, token = silo_invite(actor=SYSTEM, organisation=place, name="site-9")
    body = hospital.enrol_body(token)
    _check(body, "Enrolment")
    _check(hospital.node.send("POST", "/api/v1/silo/enrol", body).json(), "Enrolled")
    sites = [make_hospital(f"site-{number}", policy=None) for number in (1, 2, 3)]
    versions = {"versions": [sites[0].next_trust().as_dict()]}
    _check(versions, "TrustVersions")
    _check(sites[0].node.send("PUT", "/api/v1/silo/trust", versions).json(), "TrustTaken")
    for each in sites:
        policy = each.policy().as_dict()
        _check(policy, "Envelope")
        _check(each.node.send("PUT", "/api/v1/silo/policy", policy).json(), "PolicyTaken")
    study, owner = make_study([each.name for each in sites])
    manifest = study_submit(actor=owner, study=study)
    admin = User.objects.create_user("an-admin")
    review_decide(actor=Actor(str(admin.pk), "admin"), reviewer=admin, study=study, decision="approve", reason="Good.")
    waiting = sites[0].node.send("GET", "/api/v1/silo/assignments").json()
    _check(waiting, "Assignments")
    assert [task["kind"] for task in waiting["assignments"]] == ["study"]
    for each in sites:
        address = f"/api/v1/studies/{study.pk}/approval"
        _check(each.node.send("PUT", address, each.statement(manifest).as_dict()).json(), "DecisionTaken")
    refused = sites[0].node.send("GET", "/api/v1/studies/st-none/manifest").json()
    _check(refused, "Problem")
    study_pause(actor=SYSTEM, study=study, reason="A question.")
    study.refresh_from_db()
    _check({"version": "1", "now": "2026-11-23T10:00:00Z", "assignments": [
        {"kind": "paused", "study": study.pk, "reason": study.paused_reason}]}, "Assignments")  # fmt: skip
