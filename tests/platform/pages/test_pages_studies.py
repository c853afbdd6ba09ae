"""Pages of studies: who sees what, drafts that explain themselves, decisions with a second step, no approval by the portal."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from evidence.models import Entry
from governance.models import Approval, Review, Study
from governance.services import review_decide, study_edit, study_submit

SILOS = ["site-1", "site-2", "site-3"]


@pytest.fixture
def study(make_hospital: Any, make_study: Any):
    """A draft that three hospitals could be asked for: (study, its owner's actor, hospitals)."""
    hospitals = {name: make_hospital(name) for name in SILOS}
    made, owner = make_study(SILOS)
    return made, owner, hospitals


@pytest.fixture
def submitted(study: Any):
    made, owner, hospitals = study
    study_submit(actor=owner, study=made)
    made.refresh_from_db()
    return made, owner, hospitals


def _text(answer: Any) -> str:
    return answer.content.decode()


def test_a_draft_is_seen_by_its_owner_alone(study: Any, make_user: Any, sign_in: Any, organisation: Any):
    made, _, _ = study
    assert sign_in(made.owner).get(f"/studies/{made.pk}/").status_code == 200
    for other in (make_user("admin"), make_user("auditor"), make_user("researcher", organisation)):
        assert sign_in(other).get(f"/studies/{made.pk}/").status_code == 404


def test_a_steward_of_another_hospital_finds_nothing_under_the_address(
    submitted: Any, make_user: Any, sign_in: Any, organisation: Any
):
    made, _, _ = submitted
    for address in ("", "hospitals/", "rounds/", "results/", "evidence/", "versions/1.json"):
        assert sign_in(make_user("steward", organisation)).get(f"/studies/{made.pk}/{address}").status_code == 404


def test_a_study_is_drafted_from_a_template_and_kept_incomplete(make_user: Any, sign_in: Any, organisation: Any):
    client = sign_in(make_user("researcher", organisation))
    answer = client.post("/studies/new/", {"title": "Effusion", "template": "chest"})
    assert answer.status_code == 302
    made = Study.objects.get()
    assert made.state == "draft" and made.draft["plan"]["network"]["name"] == "DenseNet"
    page = _text(client.get(f"/studies/{made.pk}/"))
    assert "before it can be submitted" in page


def test_a_manifests_error_stands_beside_the_field_that_it_belongs_to(study: Any, sign_in: Any):
    made, _, _ = study
    client = sign_in(made.owner)
    page = _text(client.get(f"/studies/{made.pk}/edit/"))
    fields = _form_values(page)
    fields |= {"fraction_bits": "30", "clip_norm": "100000", "end": "2020-01-01"}
    answer = client.post(f"/studies/{made.pk}/edit/", fields)
    body = _text(answer)
    assert answer.status_code == 422
    assert "could overflow" in body.partition('id="id_fraction_bits_error"')[2][:700] or "ends before" in body
    assert 'id="id_end_error"' in body
    assert Study.objects.get().draft["dates"]["end"] == "2020-01-01", "an incomplete draft is kept"


def test_the_checks_are_chosen_on_the_form(study: Any, sign_in: Any):
    made, _, _ = study
    client = sign_in(made.owner)
    fields = _form_values(_text(client.get(f"/studies/{made.pk}/edit/")))
    fields |= {"sketch": "on", "check_words": "optional", "drawn": "9"}
    body = _text(client.post(f"/studies/{made.pk}/edit/", fields))
    assert "from min_roster to the number of participants" in body.partition('id="id_drawn_error"')[2][:300]
    client.post(f"/studies/{made.pk}/edit/", fields | {"drawn": "3", "save": ""})
    chosen = Study.objects.get().draft["aggregation"]
    assert (chosen["sketch"], chosen["check_words"], chosen["drawn"]) == (True, "optional", 3)


def test_the_form_gives_back_the_draft_that_it_was_filled_from(study: Any, sign_in: Any):
    made, _, _ = study
    before = made.draft
    client = sign_in(made.owner)
    fields = _form_values(_text(client.get(f"/studies/{made.pk}/edit/")))
    answer = client.post(f"/studies/{made.pk}/edit/", fields | {"save": ""})
    assert answer.status_code == 302, _text(answer)
    assert Study.objects.get().draft == before


def test_json_that_is_none_is_refused_with_the_reason(study: Any, sign_in: Any):
    made, _, _ = study
    answer = sign_in(made.owner).post(f"/studies/{made.pk}/edit/json/", {"document": "{"})
    assert answer.status_code == 422 and "This is not JSON" in _text(answer)


def test_an_admin_approves_in_a_second_step_that_names_the_version(submitted: Any, make_user: Any, sign_in: Any):
    made, _, _ = submitted
    client = sign_in(make_user("admin"))
    overview = _text(client.get(f"/studies/{made.pk}/"))
    assert "<form" not in overview.partition("<main")[2], "one look must not decide"
    address = f"/studies/{made.pk}/review/approve/"
    step = _text(client.get(address))
    assert made.manifest.digest in step and made.title in step
    assert (
        client.post(address, {"decision": "approve", "manifest": made.manifest.digest, "reason": " "}).status_code
        == 422
    )
    assert not Review.objects.exists()
    answer = client.post(address, {"decision": "approve", "manifest": made.manifest.digest, "reason": "Clear purpose."})
    assert answer.status_code == 302
    made.refresh_from_db()
    assert made.state == "approved"
    assert "Clear purpose." in _text(client.get(f"/studies/{made.pk}/"))


def test_a_version_that_was_replaced_meanwhile_is_not_approved(submitted: Any, make_user: Any, sign_in: Any):
    made, owner, _ = submitted
    seen = made.manifest.digest
    study_edit(actor=owner, study=made, title=made.title, draft=made.draft | {"summary": "Another one."})
    study_submit(actor=owner, study=made)
    answer = sign_in(make_user("admin")).post(
        f"/studies/{made.pk}/review/approve/", {"decision": "approve", "manifest": seen, "reason": "Fine."}
    )
    assert answer.status_code == 422 and "submitted again" in _text(answer)
    assert not Review.objects.exists()


def test_nobody_is_offered_to_decide_on_their_own_study(study: Any, sign_in: Any):
    from organisations.models import Membership

    made, owner, _ = study
    Membership.objects.create(user=made.owner, organisation=None, role="admin")
    study_submit(actor=owner, study=made)
    client = sign_in(made.owner)
    assert "/review/approve/" not in _text(client.get(f"/studies/{made.pk}/"))
    answer = client.post(
        f"/studies/{made.pk}/review/approve/",
        {"decision": "approve", "manifest": made.manifest.digest, "reason": "Mine."},
    )
    assert answer.status_code == 422 and "own study" in _text(answer)


def test_the_portal_offers_no_hospitals_approval_and_shows_the_command_instead(
    submitted: Any, make_user: Any, sign_in: Any
):
    from organisations.models import Organisation

    made, _, hospitals = submitted
    admin = make_user("admin")
    from portal.actors import Actor

    actor = Actor(str(admin.pk), "admin", "network", "password+totp")
    review_decide(actor=actor, reviewer=admin, study=made, decision="approve", reason="Clear.")
    steward = sign_in(make_user("steward", Organisation.objects.get(slug="site-1")))
    for address in ("", "hospitals/"):
        page = _text(steward.get(f"/studies/{made.pk}/{address}"))
        assert f"silo approve FOLDER {made.pk} --passphrase-file FILE" in page
        assert "<form" not in page.partition("<main")[2]
    assert made.title in _text(steward.get("/"))
    hospitals["site-1"].node.send(
        "PUT", f"/api/v1/studies/{made.pk}/approval", hospitals["site-1"].statement(made.manifest).as_dict()
    )
    approval = Approval.objects.get()
    page = _text(steward.get(f"/studies/{made.pk}/hospitals/"))
    assert f"/studies/{made.pk}/decisions/{approval.pk}.json" in page
    signed = json.loads(steward.get(f"/studies/{made.pk}/decisions/{approval.pk}.json").content)
    assert signed == approval.envelope


def test_a_policys_refusal_stands_with_its_reason_and_what_would_change_it(
    make_hospital: Any, make_study: Any, make_user: Any, sign_in: Any
):
    for name in SILOS[:2]:
        make_hospital(name)
    make_hospital("site-3", policy={"permission": "DUO:0000007", "diseases": ["DOID:162"]})
    made, owner = make_study(SILOS)
    study_submit(actor=owner, study=made)
    page = _text(sign_in(make_user("admin")).get(f"/studies/{made.pk}/"))
    assert "only for research on cancer" in page
    assert page.count("What would change it:") == 1


def test_what_changed_since_the_last_version_is_shown_field_by_field(submitted: Any, sign_in: Any):
    made, owner, _ = submitted
    plan = made.draft["plan"] | {"local_epochs": 3}
    study_edit(actor=owner, study=made, title=made.title, draft=made.draft | {"plan": plan})
    study_submit(actor=owner, study=made)
    page = _text(sign_in(made.owner).get(f"/studies/{made.pk}/"))
    assert "What changed since version 1" in page
    assert re.search(r"Training: local_epochs.*<del[^>]*>2</del>.*<ins[^>]*>3</ins>", page, re.S)


def test_what_people_wrote_is_text_on_every_page(submitted: Any, sign_in: Any):
    made, owner, _ = submitted
    evil = '<script>alert("x")</script>'
    study_edit(actor=owner, study=made, title=evil, draft=made.draft | {"title": evil, "summary": evil})
    study_submit(actor=owner, study=made)
    client = sign_in(made.owner)
    for address in (
        "/",
        "/studies/",
        f"/studies/{made.pk}/",
        f"/studies/{made.pk}/hospitals/",
        f"/studies/{made.pk}/edit/",
    ):
        page = _text(client.get(address))
        assert evil not in page
        assert "&lt;script&gt;" in page


def test_withdrawing_says_what_happens_and_needs_a_reason(submitted: Any, sign_in: Any):
    made, _, _ = submitted
    client = sign_in(made.owner)
    address = f"/studies/{made.pk}/withdraw/"
    assert "The study ends for good" in _text(client.get(address))
    assert client.post(address, {"reason": ""}).status_code == 422
    assert client.post(address, {"reason": "A better one follows."}).status_code == 302
    made.refresh_from_db()
    assert made.state == "withdrawn"


def test_a_refused_act_says_why_and_changes_nothing(submitted: Any, sign_in: Any):
    made, _, _ = submitted
    answer = sign_in(made.owner).post(f"/studies/{made.pk}/start/")
    assert answer.status_code == 422 and "Refused" in _text(answer)
    made.refresh_from_db()
    assert made.state == "submitted"


def test_a_policy_is_proposed_in_words_and_signed_elsewhere(make_hospital: Any, make_user: Any, sign_in: Any):
    from organisations.models import Organisation

    make_hospital("site-1", policy=None)
    client = sign_in(make_user("steward", Organisation.objects.get(slug="site-1")))
    wanted = {
        "silo": "site-1", "permission": "DUO:0000006", "modifiers": ["DUO:0000022"], "only_countries": "de fr",
        "consent_default": "opt-in", "min_known": "0", "log_max_age_hours": "24", "min_participants": "3",
    }  # fmt: skip
    said = _text(client.post("/policies/propose/preview/", wanted))
    assert "health, medical or biomedical" in said
    answer = client.post("/policies/propose/", wanted)
    assert answer.status_code == 302, _text(answer)
    address = answer.headers["Location"]
    assert "silo policy FOLDER --file site-1-policy.json" in _text(client.get(address))
    document = json.loads(client.get(f"{address.rstrip('/')}.json").content)
    assert document["modifiers"] == [{"code": "DUO:0000022", "countries": ["DE", "FR"]}]
    assert document["limits"] == {"min_participants": 3}
    assert Entry.objects.filter(type="policy.proposed").count() == 1
    from governance.models import Policy

    assert not Policy.objects.exists(), "a proposal is no policy"


def test_a_condition_without_its_list_is_said_beside_the_field(make_hospital: Any, make_user: Any, sign_in: Any):
    from organisations.models import Organisation

    make_hospital("site-1", policy=None)
    client = sign_in(make_user("steward", Organisation.objects.get(slug="site-1")))
    wanted = {"silo": "site-1", "permission": "DUO:0000007", "modifiers": ["DUO:0000025"], "consent_default": "opt-out",
              "min_known": "0", "log_max_age_hours": "24"}  # fmt: skip
    answer = client.post("/policies/propose/", wanted)
    page = _text(answer)
    assert answer.status_code == 422
    assert all(f'id="id_{name}_error"' in page for name in ("diseases", "until", "legal_basis"))


def test_a_steward_cannot_propose_for_another_hospital(
    make_hospital: Any, make_user: Any, sign_in: Any, organisation: Any
):
    make_hospital("site-1", policy=None)
    client = sign_in(make_user("steward", organisation))
    wanted = {
        "silo": "site-1",
        "permission": "DUO:0000042",
        "consent_default": "opt-in",
        "min_known": "0",
        "log_max_age_hours": "24",
    }
    assert client.post("/policies/propose/", wanted).status_code == 422


def _form_values(page: str) -> dict[str, Any]:
    """What a browser would send back from the form on `page` unchanged."""
    from html.parser import HTMLParser

    class Reader(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.values: dict[str, list[str]] = {}
            self.area = self.select = ""

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            at = dict(attrs)
            name = at.get("name") or ""
            if tag == "textarea":
                self.area = name
                self.values[name] = [""]
            elif tag == "select":
                self.select = name
            elif tag == "option" and "selected" in at:
                self.values[self.select] = [at.get("value") or ""]
            elif tag == "input" and name and (at.get("type") not in ("checkbox", "radio") or "checked" in at):
                self.values.setdefault(name, []).append(
                    at.get("value") or ("on" if at.get("type") == "checkbox" else "")
                )

        def handle_endtag(self, tag: str) -> None:
            if tag == "textarea":
                self.area = ""

        def handle_data(self, data: str) -> None:
            if self.area:
                self.values[self.area][0] += data.removeprefix("\n")

    reader = Reader()
    reader.feed(page.partition("<main")[2])
    reader.values.pop("csrfmiddlewaretoken", None)
    return dict(reader.values)


@pytest.mark.parametrize(("state", "next_step"), [("approved", "submits it again"), ("running", "goes on without it")])
def test_a_hospital_whose_key_changed_stands_as_such_with_what_to_do(
    submitted: Any, make_user: Any, sign_in: Any, state: str, next_step: str
):
    made, _, hospitals = submitted
    Study.objects.filter(pk=made.pk).update(state=state)
    client = sign_in(made.owner)
    steward, nothing = sign_in(make_user("steward", _organisation("site-2"))), "No study waits for your hospital"
    assert "KEY_ROTATED" not in _text(client.get(f"/studies/{made.pk}/"))
    assert nothing not in _text(steward.get("/"))
    assert hospitals["site-2"].change_key().status_code == 200
    for address in ("", "hospitals/"):
        page = _text(client.get(f"/studies/{made.pk}/{address}"))
        assert page.count("<code>KEY_ROTATED</code>") == 1 and next_step in page
        assert 'href="/silos/site-2/"' in page
    assert nothing in _text(steward.get("/")), "with the former key there is nothing to decide on"


def _organisation(slug: str) -> Any:
    from organisations.models import Organisation

    return Organisation.objects.get(slug=slug)
