"""What others wrote comes out as text: in pages, spreadsheets, file names, headers, error pages and on the steward's terminal."""

from __future__ import annotations

import csv
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from governance.models import Approval, PolicyProposal, Study
from governance.services import review_decide, study_submit
from organisations.models import Organisation, Silo
from organisations.services import organisation_register
from portal.actors import SYSTEM
from portal.listing import csv_answer
from portal.problems import Refused
from protocol.manifest import ManifestError, freeze
from protocol.plain_text import first_unsafe, visible

HERE = Path(__file__).resolve().parents[3]

ATTACK = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7|add:7 }}{% now 'Y' %}"
STEERS = ["a\x1b[2Jb", "a\x9b2Jb", "a\x00b", "a\x07b", "a\u202eb", "a\u2066b", "a\u200fb", "a\u2028b", "a\nb", "a\rb"]


class _Tags(HTMLParser):
    """Collects what a browser would run: tags by name, and attributes by name."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name.startswith("on") or name == "style" or (value or "").strip().lower().startswith("javascript:"):
                self.handlers.append(f"{tag} {name}")
            if tag == "script" and name == "src":
                assert value.startswith("/static/"), value
        if tag == "script":
            assert any(name == "src" for name, _ in attrs), "a script stands in the page"


def _harmless(page: str) -> None:
    found = _Tags()
    found.feed(page)
    assert not found.handlers, found.handlers
    assert "<script>alert" not in page and "<img src=x" not in page
    assert "7|add" in page or "alert(1)" not in page, "the text was run as a template"


@pytest.fixture
def attacked(make_hospital: Any, make_study: Any, make_user: Any, actor_of: Any) -> Any:
    """A study in which every text that a person or a silo may write is an attack."""
    hospitals = [make_hospital(f"site-{number}") for number in (1, 2, 3)]
    Organisation.objects.update(name=ATTACK)
    study, actor = make_study(["site-1", "site-2", "site-3"], title=ATTACK, summary=ATTACK)
    manifest = study_submit(actor=actor, study=study)
    admin = make_user("admin", name="<b>admin</b>")
    review_decide(actor=actor_of(admin), reviewer=admin, study=study, decision="approve", reason=ATTACK)
    for hospital, decision in zip(hospitals, ("approve", "reject", "approve"), strict=True):
        envelope = hospital.statement(manifest, decision, reason=ATTACK)
        answer = hospital.node.send("PUT", f"/api/v1/studies/{study.pk}/approval", envelope.as_dict())
        assert answer.status_code == 200, answer.content
    Silo.objects.update(version="<i>1</i>")
    silo = Silo.objects.get(name="site-1")
    document = {**silo.policies.get(current=True).document, "legal_basis": ATTACK, "organisation": ATTACK}
    PolicyProposal.objects.create(silo=silo, document=document, proposed_by=admin)
    return study, actor, admin


def _run_with_attacks(study: Study) -> None:
    """A failed round with a refusal, a fault and a failure, all in the attacker's words."""
    import base64

    from federation.models import Round, RoundMessage, Seat

    item = Round.objects.create(
        study=study, manifest=study.manifest, manifest_digest=study.manifest.digest, key=f"{study.pk}.1.1", number=1,
        attempt=1, purpose="train", stage="failed", announced=["site-1", "site-2", "site-3"],
        deadline_at=timezone.now(), finished_at=timezone.now(), failure={"code": ATTACK, "sentence": ATTACK},
        faults=[{"silo": "site-2", "code": "X", "sentence": ATTACK}],
    )  # fmt: skip
    silo = Silo.objects.get(name="site-1")
    Seat.objects.create(round=item, silo=silo)
    payload = base64.b64encode(json.dumps({"reasons": [{"code": "X", "sentence": ATTACK}]}).encode()).decode()
    RoundMessage.objects.create(round=item, kind="refusal", silo=silo, envelope={"payload": payload}, digest="x")


@pytest.mark.django_db
def test_no_page_runs_what_a_person_or_a_silo_wrote(attacked, sign_in, make_user):
    study, _, admin = attacked
    _run_with_attacks(study)
    Study.objects.filter(pk=study.pk).update(
        state="paused", paused_reason={"code": ATTACK, "sentence": ATTACK}, title=ATTACK
    )
    proposal = PolicyProposal.objects.get()
    pages = [
        "/", "/studies/", f"/studies/?q={ATTACK}&state={ATTACK}&sort={ATTACK}", "/hospitals/", f"/hospitals/?q={ATTACK}",
        "/hospitals/site-1/", "/silos/site-1/", "/silos/site-1/revoke/", "/silos/invite/?organisation=x&name=" + ATTACK,
        "/policies/", f"/policies/?q={ATTACK}", f"/policies/proposals/{proposal.pk}/", "/policies/propose/", "/evidence/",
        f"/evidence/?q={ATTACK}&outcome={ATTACK}", "/evidence/questions/", "/evidence/verify/", f"/nowhere/{ATTACK}",
        *(f"/studies/{study.pk}/{page}" for page in (
            "", "hospitals/", "evidence/", "rounds/", "rounds/live/", "rounds/1.1/", "rounds/1.1/live/", "results/",
            "resume/", "withdraw/", "pause/", "edit/", "edit/json/",
        )),
    ]  # fmt: skip
    for user in (
        admin,
        study.owner,
        make_user("steward", Organisation.objects.get(slug="site-1")),
        make_user("auditor"),
    ):
        client = sign_in(user)
        shown = 0
        for page in pages:
            answer = client.get(page)
            assert answer.status_code < 500, page
            _harmless(answer.content.decode())
            shown += b"alert(1)" in answer.content
            policy = answer.headers["Content-Security-Policy"]
            assert (
                "'unsafe" not in policy
                and "script-src 'self'" in policy
                and answer.headers["X-Frame-Options"] == "DENY"
            )
        assert shown >= 5, "the attack was not shown at all, so nothing was tested"


@pytest.mark.django_db
def test_forms_that_are_sent_back_run_nothing(attacked, sign_in):
    study, _, admin = attacked
    client = sign_in(admin)
    for page, form in (
        ("/hospitals/new/", {"name": ATTACK, "slug": ATTACK, "country": ATTACK, "contact_email": ATTACK}),
        ("/silos/invite/", {"organisation": ATTACK, "name": ATTACK}),
        ("/silos/site-1/revoke/", {"name": ATTACK, "reason": ATTACK}),
        ("/policies/propose/", {"silo": ATTACK, "legal_basis": ATTACK, "diseases": ATTACK, "only_users": ATTACK}),
        (f"/studies/{study.pk}/withdraw/", {"reason": "x" * 3000 + ATTACK}),
        ("/account/login/", {"login": ATTACK, "password": ATTACK}),
    ):
        answer = client.post(page, form)
        assert answer.status_code in (200, 302, 422), page
        _harmless(answer.content.decode())
    owner = sign_in(study.owner)
    for page, form in (
        ("/studies/new/", {"title": ATTACK, "template": ATTACK, "organisation": ATTACK}),
        (f"/studies/{study.pk}/edit/json/", {"document": ATTACK}),
    ):
        _harmless(owner.post(page, form).content.decode())


@pytest.mark.parametrize(
    "value", ["=1+1", "+1", "-1+2", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1", "＋1", "－1", "＠x"]
)
def test_no_cell_of_an_export_is_a_formula(value):
    body = b"".join(csv_answer("x.csv", ("a", value), [(value, 1), (None, value)])).decode()
    for row in csv.reader(io.StringIO(body, newline="")):
        for cell in row:
            assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")), row
    assert f"'{value}" in next(csv.reader(io.StringIO(body.split("\r\n", 1)[1], newline="")))[0]


@pytest.mark.django_db
def test_a_title_that_is_a_formula_is_text_in_the_export(make_study, sign_in):
    study, _ = make_study(["site-1"], title="=cmd|' /C calc'!A0")
    body = b"".join(sign_in(study.owner).get("/studies.csv")).decode()
    assert "'=cmd|" in body and ",=cmd" not in body


@pytest.mark.django_db
def test_every_file_name_is_plain(attacked, sign_in):
    """No quote, slash, line end or control character in a file name: ids, names of silos and numbers only."""
    import re

    study, _, admin = attacked
    client = sign_in(admin)
    policy = Silo.objects.get(name="site-1").policies.get(current=True).digest.removeprefix("sha256:")
    approval = Approval.objects.first()
    for page in (
        "/studies.csv", "/hospitals.csv", "/policies.csv", f"/studies/{study.pk}/rounds.csv",
        f"/studies/{study.pk}/results.csv", f"/studies/{study.pk}/versions/1.json", f"/policies/{policy}.dsse.json",
        f"/studies/{study.pk}/decisions/{approval.pk}.json", f"/policies/proposals/{PolicyProposal.objects.get().pk}.json",
        f"/evidence/entries/{approval.entry_id}/record.json", "/evidence/verify/policy",
    ):  # fmt: skip
        answer = client.get(page)
        assert answer.status_code == 200, page
        assert re.fullmatch(r'attachment; filename="[A-Za-z0-9._-]+"', answer.headers["Content-Disposition"]), page
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("name", ["a\r\nSet-Cookie: x=1", 'a"\nb', "x\x00"])
def test_a_header_that_would_be_two_is_never_sent(name):
    with pytest.raises(ValueError):
        csv_answer(name + "\n", ("a",), [])


@pytest.mark.django_db
def test_errors_tell_nothing_of_the_inside(make_user, sign_in, monkeypatch, settings):
    """A fault in a view: page and problem document carry neither its words, nor a path, nor a setting."""
    from portal import answers

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("the password of the database is swordfish")

    monkeypatch.setattr("organisations.pages_selectors.silo_rows", fail)
    monkeypatch.setattr(answers, "authenticate", fail)
    client = sign_in(make_user("admin"))
    client.raise_request_exception = False
    headers = {"Signature-Input": "x", "Signature": "x", "Content-Digest": "x"}
    for answer in (client.get("/hospitals/"), client.get("/api/v1/studies/st-x/manifest", headers=headers)):
        text = answer.content.decode()
        assert answer.status_code == 500
        for secret in (
            "swordfish",
            "RuntimeError",
            "Traceback",
            str(Path(__file__).resolve().parents[3]),
            "site-packages",
            settings.SECRET_KEY,
        ):
            assert secret not in text
    for address in ("/nowhere/", "/api/v1/nowhere", "/evidence/entries/nothing/"):
        text = client.get(address).content.decode()
        assert "urlpatterns" not in text and "Traceback" not in text and "resolver" not in text.lower()


@pytest.mark.django_db
@pytest.mark.parametrize("query", ["²", "9" * 30, "9" * 5000, "٣", "\x00", "%00", "'; DROP TABLE x; --"])
def test_nothing_that_is_typed_into_a_search_is_an_error(make_user, sign_in, query):
    client = sign_in(make_user("admin"))
    for page in ("/evidence/", "/studies/", "/hospitals/", "/policies/"):
        for name in ("q", "sort", "page", "state", "group", "outcome"):
            assert client.get(page, {name: query}).status_code == 200, (page, name)


@pytest.mark.django_db
@pytest.mark.parametrize(
    "document",
    [
        '{"title":"x","a":' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"title":"x","a":' + "[" * 900 + "]" * 900 + "}",
        '{"title":"x","a":"\\ud800"}',
        '{"title":"\\ud800x"}',
        '{"title":"x","a":NaN}',
        '{"title":"x","a":1e999}',
        '{"title":"x","a":' + "9" * 5000 + "}",
    ],
)
def test_a_draft_that_could_not_be_stored_or_shown_is_refused(make_study, sign_in, document):
    study, _ = make_study(["site-1"])
    client = sign_in(study.owner)
    before = study.draft
    assert client.post(f"/studies/{study.pk}/edit/json/", {"document": document}).status_code == 422
    study.refresh_from_db()
    assert study.draft == before


@pytest.mark.django_db
@pytest.mark.parametrize(
    "part", [{"participants": [1]}, {"purpose": []}, {"limits": 5}, {"dates": 7}, {"plan": []}, {"aggregation": 4}]
)
def test_a_draft_of_any_shape_can_be_opened_again(make_study, sign_in, part):
    study, _ = make_study(["site-1"])
    client = sign_in(study.owner)
    client.post(f"/studies/{study.pk}/edit/json/", {"document": json.dumps({"title": "x", **part})})
    for page in ("", "edit/json/"):
        assert client.get(f"/studies/{study.pk}/{page}").status_code == 200
    assert client.get(f"/studies/{study.pk}/edit/", follow=True).status_code == 200
    assert client.post(f"/studies/{study.pk}/submit/").status_code == 422


# -- the steward's terminal ----------------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.parametrize("text", STEERS)
def test_a_study_whose_words_would_steer_a_terminal_can_not_be_submitted(make_hospital, make_study, text):
    for number in (1, 2, 3):
        make_hospital(f"site-{number}")
    study, actor = make_study(["site-1", "site-2", "site-3"], title=text)
    with pytest.raises(Refused) as refused:
        study_submit(actor=actor, study=study)
    assert refused.value.code == "MANIFEST" and "title" in refused.value.sentence
    assert text not in refused.value.sentence


@pytest.mark.django_db
def test_no_field_of_a_manifest_that_people_read_takes_such_words(make_hospital, make_study):
    for number in (1, 2, 3):
        make_hospital(f"site-{number}")
    study, actor = make_study(["site-1", "site-2", "site-3"])
    good = json.loads(study_submit(actor=actor, study=study).data)
    bad = "a\x1b]0;b"
    ethics = {"ref": bad, "expires": "2099-01-01"}
    partner = {**good["participants"][0], "organisation": bad}
    for change in (
        {"summary": bad},
        {"purpose": {**good["purpose"], "ethics": ethics}},
        {"participants": [partner, *good["participants"][1:]]},
    ):
        with pytest.raises(ManifestError):
            freeze({**good, **change})
    assert freeze({**good, "summary": "First line.\r\n\tSecond line."})


@pytest.mark.django_db
@pytest.mark.parametrize("name", STEERS[:8])
def test_a_hospital_whose_name_would_steer_a_terminal_is_not_registered(name):
    with pytest.raises(Refused) as refused:
        organisation_register(actor=SYSTEM, slug="lake", name=name, country="AT")
    assert refused.value.code == "NAME" and not Organisation.objects.exists()


@pytest.mark.parametrize("text", STEERS)
def test_what_a_steward_reads_before_signing_steers_no_terminal(monkeypatch, text):
    """A portal that lies could send what a manifest never holds, as a reason or in an error: the last gate is the console."""
    from silo_node.commands import decide as commands_decide
    from silo_node.commands import terminal

    shown = io.StringIO()
    monkeypatch.setattr(terminal.out, "_file", shown)
    reason = SimpleNamespace(sentence=text, change=text)
    proposal = SimpleNamespace(
        words=[("Study", text), (text, "words")],
        manifest="sha256:0",
        found=SimpleNamespace(decision="REVIEW", reasons=[reason], obligations=[reason]),
    )
    commands_decide._show(proposal)
    terminal.out.print(text, markup=False)
    assert first_unsafe(shown.getvalue(), lines=True) is None and "\r" not in shown.getvalue()
    assert "Study" in shown.getvalue() and "words" in shown.getvalue()


@given(st.text())
def test_visible_text_steers_nothing_and_leaves_the_rest_alone(text):
    shown = visible(text)
    assert len(shown) == len(text) and first_unsafe(shown, lines=True) is None
    for before, after in zip(text, shown, strict=True):
        assert before == after or (after == "?" and first_unsafe(before) is not None)


def test_the_position_of_what_steers_is_told():
    assert first_unsafe("Zürich – «Ärzte» 東京 😀\u00a0x") is None
    assert first_unsafe("ab\ncd\x1b") == 2
    assert first_unsafe("ab\ncd\x1b", lines=True) == 5
