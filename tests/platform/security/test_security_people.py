"""People and their browsers: forged forms, sessions without a second factor, one's own study, two admins, hosts, redirects."""

from __future__ import annotations

import asyncio
import threading
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.test import Client

from evidence.models import Entry
from governance.models import Review
from governance.services import review_decide, study_submit
from organisations.models import Membership, Organisation, Silo
from organisations.services import silo_confirm, silo_invite
from portal.access import declared
from portal.actors import SYSTEM
from portal.problems import Refused
from portal.settings import environment
from protocol.signing import SigningKey, fingerprint

EVIL = (
    "https://evil.example/",
    "//evil.example",
    "/\\evil.example",
    "\\\\evil.example",
    "javascript:alert(1)",
    "%2F%2Fevil",
)


@pytest.mark.django_db
def test_no_form_is_taken_without_its_token(addresses, make_user, sign_in, organisation):
    """Every page that takes POST, as a person in all roles: a forged form from elsewhere changes nothing."""
    user = make_user("admin")
    for role in ("steward", "researcher", "it"):
        Membership.objects.create(user=user, organisation=organisation, role=role)
    Membership.objects.create(user=user, role="auditor")
    client = sign_in(user)
    forged = Client(enforce_csrf_checks=True)
    forged.cookies = client.cookies
    before = Entry.objects.count(), Organisation.objects.count()
    for address, name, view in addresses:
        access = declared(view, name)
        if access is None or access.kind == "node":
            continue
        answer = forged.post(address, {"name": "x", "slug": "x", "country": "DE", "reason": "x"})
        assert answer.status_code == 403, f"{address}: {answer.status_code}"
    assert (Entry.objects.count(), Organisation.objects.count()) == before


@pytest.mark.django_db
def test_another_sites_form_is_refused_even_with_a_token(make_user, sign_in):
    client = sign_in(make_user("admin"))
    page = client.get("/hospitals/new/").content.decode()
    token = page.split('name="csrfmiddlewaretoken" value="')[1].split('"')[0]
    strict = Client(enforce_csrf_checks=True)
    strict.cookies = client.cookies
    form = {"csrfmiddlewaretoken": token, "name": "Lake", "slug": "lake", "country": "AT"}
    assert strict.post("/hospitals/new/", form, headers={"Origin": "https://evil.example"}).status_code == 403
    assert strict.post("/hospitals/new/", form, headers={"Origin": "null"}).status_code == 403
    assert strict.post("/hospitals/new/", form, headers={"Origin": "http://testserver"}).status_code == 302


@pytest.mark.django_db
@pytest.mark.parametrize("role", ["admin", "steward", "auditor"])
def test_nothing_is_done_in_a_session_without_a_second_factor(addresses, make_user, sign_in, organisation, role):
    client = sign_in(make_user(role, organisation if role == "steward" else None), second_factor=False)
    before = Entry.objects.count()
    for address, name, view in addresses:
        access = declared(view, name)
        if access is not None and access.kind == "roles":
            answer = client.post(address, {"name": "x", "slug": "x", "country": "DE", "reason": "x"})
            if role in access.roles:
                assert answer.status_code == 302 and answer.headers["Location"].startswith("/account/2fa/"), address
            else:
                assert answer.status_code == 403, address
    assert not Organisation.objects.filter(slug="x").exists()
    assert (
        not Entry.objects.exclude(type__in=("auth.login", "auth.failed")).exists() and before <= Entry.objects.count()
    )


@pytest.mark.django_db
def test_the_second_factor_of_one_person_is_not_that_of_the_next_in_the_same_session(make_user, sign_in):
    """The session says who proved what; signing another person in does not inherit it."""
    client = sign_in(make_user("admin"))
    session = client.session
    session["_auth_user_id"] = str(make_user("admin", name="another").pk)
    session.save()
    assert client.get("/hospitals/new/").status_code == 302


@pytest.mark.django_db
def test_a_role_that_is_taken_away_is_gone_from_open_sessions(make_user, sign_in):
    user = make_user("admin")
    client = sign_in(user)
    assert client.get("/hospitals/new/").status_code == 200
    Membership.objects.filter(user=user).delete()
    assert client.get("/hospitals/new/").status_code == 403
    user.is_active = False
    user.save()
    assert client.get("/").status_code == 302


@pytest.mark.django_db
def test_an_admin_who_is_also_the_researcher_does_not_decide_on_the_own_study(make_hospital, make_study, sign_in):
    for number in (1, 2, 3):
        make_hospital(f"site-{number}")
    study, actor = make_study(["site-1", "site-2", "site-3"])
    manifest = study_submit(actor=actor, study=study)
    Membership.objects.create(user=study.owner, role="admin")
    client = sign_in(study.owner)
    form = {"reason": "I like it.", "decision": "approve", "manifest": manifest.digest}
    answer = client.post(f"/studies/{study.pk}/review/approve/", form)
    assert answer.status_code == 422 and "Nobody decides on their own study" in answer.content.decode()
    study.refresh_from_db()
    assert study.state == "submitted" and not Review.objects.exists()
    assert Entry.objects.filter(type="study.approved", outcome="denied").exists()


def _at_once(*acts: Any) -> list[str]:
    """Run the acts in threads that start together; "done" or the refusal's code of each."""
    gate, found = threading.Barrier(len(acts)), ["" for _ in acts]

    def run(number: int) -> None:
        gate.wait(10)
        try:
            acts[number]()
            found[number] = "done"
        except Refused as refused:
            found[number] = refused.code
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(acts))]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    return sorted(found)


@pytest.mark.django_db(transaction=True)
def test_of_two_admins_of_whom_one_admits_and_one_revokes_both_cannot_be_overtaken(
    make_user, actor_of, organisation, new_hospital
):
    """Whatever the order: the silo that was revoked stays revoked."""
    one, two = make_user("admin"), make_user("admin")
    silo, token = silo_invite(actor=SYSTEM, organisation=organisation, name="site-9")
    hospital = new_hospital("site-9")
    assert hospital.node.send("POST", "/api/v1/silo/enrol", hospital.enrol_body(token)).status_code == 200
    from organisations.services import silo_revoke

    said = _at_once(
        lambda: silo_confirm(actor=actor_of(one), user=one, silo=silo, fingerprint=fingerprint(hospital.key.public)),
        lambda: silo_revoke(actor=actor_of(two), silo=silo, reason="Another key was used."),
    )
    assert said in (["OUT_OF_STAGE", "done"], ["done", "done"])
    assert Silo.objects.get(pk=silo.pk).state == "revoked"


@pytest.mark.django_db(transaction=True)
def test_an_approval_and_a_rejection_at_once_leave_one_decision(make_hospital, make_study, make_user, actor_of):
    for number in (1, 2, 3):
        make_hospital(f"site-{number}")
    study, actor = make_study(["site-1", "site-2", "site-3"])
    study_submit(actor=actor, study=study)
    one, two = make_user("admin"), make_user("admin")
    said = _at_once(
        lambda: review_decide(actor=actor_of(one), reviewer=one, study=study, decision="approve", reason="Yes."),
        lambda: review_decide(actor=actor_of(two), reviewer=two, study=study, decision="reject", reason="No."),
    )
    assert said == ["OUT_OF_STAGE", "done"]
    decision = Review.objects.get().decision
    study.refresh_from_db()
    assert study.state == {"approve": "approved", "reject": "rejected"}[decision]


def _stays(location: str) -> bool:
    """Whether a browser that follows `location` stays at the portal (browsers read a backslash as a slash)."""
    there = urlsplit(urljoin("https://portal.example/account/login/", location.replace("\\", "/")))
    return (there.scheme, there.netloc) == ("https", "portal.example")


@pytest.mark.django_db
@pytest.mark.parametrize("target", EVIL)
def test_no_sign_in_or_sign_out_leads_to_another_site(make_user, target):
    make_user(None, name="x")
    for address, form in (("/account/login/", {"next": target}), (f"/account/login/?next={target}", {})):
        client = Client()
        answer = client.post(address, {"login": "x", "password": "a long password for tests", **form})
        assert answer.status_code == 302 and _stays(answer.headers["Location"]), (address, answer.headers)
        answer = client.post(f"/account/logout/?next={target}", {"next": target})
        assert answer.status_code == 302 and _stays(answer.headers["Location"])


@pytest.mark.django_db
@pytest.mark.parametrize(
    "path", ["//evil.example/studies", "//evil.example//studies/", "/\\evil.example/studies", "/studies"]
)
def test_no_added_slash_and_no_sign_in_page_leads_to_another_site(path):
    answer = Client().generic("GET", path)
    assert _stays(answer.headers.get("Location", "/"))


@pytest.mark.django_db
@pytest.mark.parametrize("host", ["evil.example", "testserver.evil.example", "testserver@evil.example", "a b"])
def test_another_host_name_is_refused_and_not_repeated(host):
    client = Client(raise_request_exception=False)
    for address in ("/", "/account/login/", "/healthz", "/api/v1/log/checkpoint", "/static/consilium/mark.svg?"):
        answer = client.get(address, headers={"Host": host})
        if address.startswith("/static/"):
            continue  # files that are the same for everybody
        # Whether the portal lives is answered to whoever asks; nothing of the request is in that answer.
        assert answer.status_code == (200 if address == "/healthz" else 400), address
        assert b"evil" not in answer.content and "Location" not in answer.headers


@pytest.mark.django_db
def test_headers_of_a_forwarding_proxy_do_not_choose_the_host():
    answer = Client().get("/", headers={"X-Forwarded-Host": "evil.example", "Forwarded": "host=evil.example"})
    assert answer.headers["Location"] == "/account/login/?next=/"


@pytest.mark.django_db
def test_the_limit_of_sign_ins_follows_the_address_that_the_proxy_saw(make_user, settings):
    """Behind a proxy all share its address: without this one attacker uses up everybody's limit (production's setting)."""
    settings.ALLAUTH_TRUSTED_PROXY_COUNT = 1
    settings.ACCOUNT_RATE_LIMITS = {"login": "3/m/ip", "login_failed": "30/m/ip,5/300s/key"}
    make_user(None, name="x")

    def tries(forwarded: str) -> int:
        form = {"login": "nobody", "password": "wrong password here"}
        return Client().post("/account/login/", form, headers={"X-Forwarded-For": forwarded}).status_code

    # What the client claims stands before what the proxy appended, and does not count.
    assert [tries(f"203.0.113.{number}, 192.0.2.66") for number in range(4)] == [200, 200, 200, 429]
    assert tries("192.0.2.7") == 200


def test_the_number_of_proxies_is_a_number(monkeypatch):
    monkeypatch.delenv("CONSILIUM_PROXIES", raising=False)
    assert environment.number("CONSILIUM_PROXIES", 1) == 1
    monkeypatch.setenv("CONSILIUM_PROXIES", "2")
    assert environment.number("CONSILIUM_PROXIES", 1) == 2
    for wrong in ("-1", "many", "²", "100"):
        monkeypatch.setenv("CONSILIUM_PROXIES", wrong)
        with pytest.raises(ImproperlyConfigured):
            environment.number("CONSILIUM_PROXIES", 1)


@pytest.mark.parametrize("who", ["nobody", "stranger", "another hospital's steward", "steward without second factor"])
def test_the_live_stream_of_a_study_is_closed_to_who_may_not_see_it(
    wire, make_hospital, make_study, make_user, sign_in, actor_of, who
):
    for number in (1, 2, 3, 4):
        make_hospital(f"site-{number}")
    study, actor = make_study(["site-1", "site-2", "site-3"])
    study_submit(actor=actor, study=study)
    admin = make_user("admin")
    review_decide(actor=actor_of(admin), reviewer=admin, study=study, decision="approve", reason="Good.")
    headers = {}
    if who != "nobody":
        role, slug = {"stranger": (None, None), "another hospital's steward": ("steward", "site-4")}.get(
            who, ("steward", "site-1")
        )
        user = make_user(role, Organisation.objects.get(slug=slug) if slug else None)
        client = sign_in(user, second_factor=who != "steward without second factor")
        headers = {"Cookie": f"sessionid={client.cookies['sessionid'].value}"}
    status, body = asyncio.run(wire("GET", f"/studies/{study.pk}/events", headers=headers).go())
    assert (status, body) == (204, b"")


@pytest.mark.django_db
def test_a_silos_key_opens_no_page_and_a_session_no_address_of_the_node_api(
    addresses, make_user, sign_in, organisation
):
    from protocol.signing import sign_request

    key = SigningKey.generate()
    Silo.objects.create(
        name="site-1", organisation=organisation, state="active", public_key=key.public, keyid=key.keyid
    )
    admin = sign_in(make_user("admin"))
    for address, name, view in addresses:
        access = declared(view, name)
        if access is None or access.kind == "public":
            continue
        if access.kind == "node":
            if not address.startswith("/api/v1/log/"):
                assert admin.get(address).status_code in (401, 405)
                assert admin.put(address, b"{}", content_type="application/json").status_code in (401, 405)
        else:
            signed = Client().get(address, headers=sign_request(key, method="GET", path=address))
            assert signed.status_code == 302 and signed.headers["Location"].startswith("/account/login"), address
