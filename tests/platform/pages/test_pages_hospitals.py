"""Pages of hospitals and silos: tokens that are shown once, fingerprints that nobody confirms by copying, second steps."""

from __future__ import annotations

import re
from typing import Any

import pytest

from organisations.models import Organisation, Silo
from protocol.signing import fingerprint


@pytest.fixture
def admin(make_user: Any, sign_in: Any):
    return sign_in(make_user("admin"))


def _enrol(new_hospital: Any, admin: Any, organisation: Organisation) -> Any:
    answer = admin.post("/silos/invite/", {"organisation": organisation.slug, "name": "site-9"})
    token = re.search(r'id="token">([^<]+)<', answer.content.decode()).group(1)
    hospital = new_hospital("site-9")
    assert hospital.node.send("POST", "/api/v1/silo/enrol", hospital.enrol_body(token)).status_code == 200
    return hospital


def test_a_hospital_is_registered_from_the_form_and_leads_on_to_the_invitation(admin: Any, db: None):
    answer = admin.post(
        "/hospitals/new/", {"name": "Lake Hospital", "slug": "lake", "country": "at", "non_profit": "on"}
    )
    assert answer.status_code == 302 and answer.headers["Location"].endswith("/silos/invite/?organisation=lake")
    assert Organisation.objects.get(slug="lake").country == "AT"


def test_a_wrong_country_is_said_beside_its_field(admin: Any, db: None):
    answer = admin.post("/hospitals/new/", {"name": "Lake", "slug": "lake", "country": "1!"})
    assert answer.status_code == 422
    assert 'id="id_country_error"' in answer.content.decode()
    assert not Organisation.objects.exists()


def test_the_token_is_shown_once_and_nowhere_again(admin: Any, organisation: Organisation):
    answer = admin.post("/silos/invite/", {"organisation": "north", "name": "site-9"})
    token = re.search(r'id="token">([^<]+)<', answer.content.decode()).group(1)
    assert answer.headers["Cache-Control"] == "no-store"
    for address in ("/silos/site-9/", "/hospitals/", "/hospitals/north/", "/", "/silos/invite/"):
        assert token not in admin.get(address).content.decode()
    silo = Silo.objects.get()
    assert token not in {str(value) for value in vars(silo).values()}


def test_a_pending_fingerprint_is_not_shown_so_that_nobody_confirms_by_copying(
    admin: Any, organisation: Organisation, new_hospital: Any
):
    hospital = _enrol(new_hospital, admin, organisation)
    for address in ("/silos/site-9/", "/silos/site-9/confirm/", "/", "/hospitals/"):
        assert hospital.key.keyid not in "".join(admin.get(address).content.decode().split())
    assert "site-9" in admin.get("/").content.decode()


def test_a_silo_is_admitted_only_with_the_fingerprint_that_the_hospital_reads_out(
    admin: Any, organisation: Organisation, new_hospital: Any
):
    hospital = _enrol(new_hospital, admin, organisation)
    wrong = fingerprint(new_hospital("other").key.public)
    answer = admin.post("/silos/site-9/confirm/", {"fingerprint": wrong})
    assert answer.status_code == 422 and "not the fingerprint" in answer.content.decode()
    assert Silo.objects.get().state == "pending"
    answer = admin.post("/silos/site-9/confirm/", {"fingerprint": fingerprint(hospital.key.public).upper()})
    assert answer.status_code == 302
    assert Silo.objects.get().state == "active"
    assert fingerprint(hospital.key.public) in admin.get("/silos/site-9/").content.decode()


def test_revoking_needs_the_silos_name_typed_by_hand(admin: Any, make_hospital: Any):
    make_hospital("site-1")
    answer = admin.post("/silos/site-1/revoke/", {"reason": "stolen disk", "name": "site-2"})
    assert answer.status_code == 422
    assert Silo.objects.get().state == "active"
    assert admin.post("/silos/site-1/revoke/", {"reason": "stolen disk", "name": "site-1"}).status_code == 302
    assert Silo.objects.get().state == "revoked"


def test_people_of_a_hospital_are_shown_to_it_and_to_the_network_only(
    make_user: Any, sign_in: Any, organisation: Organisation
):
    make_user("it", organisation, name="ivan-of-north")
    other = Organisation.objects.create(slug="east", name="East", country="DE")
    inside = sign_in(make_user("researcher", organisation)).get("/hospitals/north/").content.decode()
    outside = sign_in(make_user("researcher", other)).get("/hospitals/north/").content.decode()
    assert "ivan-of-north" in inside
    assert "ivan-of-north" not in outside


def test_every_list_can_be_exported(admin: Any, make_hospital: Any):
    make_hospital("site-1")
    body = b"".join(admin.get("/hospitals.csv?q=site-1").streaming_content).decode()
    assert body.splitlines()[0].startswith("hospital,country")
    assert "site-1" in body.splitlines()[1]
    assert len(body.splitlines()) == 2


def test_a_silos_page_lists_every_key_that_it_had_with_its_dates_and_why_it_ended(
    admin: Any, organisation: Organisation, new_hospital: Any
):
    hospital = _enrol(new_hospital, admin, organisation)
    assert "Its keys" not in admin.get("/silos/site-9/").content.decode(), "nobody confirms by copying"
    admin.post("/silos/site-9/confirm/", {"fingerprint": fingerprint(hospital.key.public)})
    keys = [hospital.key.keyid]
    assert hospital.change_key().status_code == 200
    keys.append(hospital.key.keyid)
    admin.post("/silos/site-9/revoke/", {"reason": "stolen disk", "name": "site-9"})
    hospital = _enrol(new_hospital, admin, organisation)
    keys.append(hospital.key.keyid)
    assert "Its keys" not in admin.get("/silos/site-9/").content.decode()
    admin.post("/silos/site-9/confirm/", {"fingerprint": fingerprint(hospital.key.public)})
    page = admin.get("/silos/site-9/").content.decode()
    part = page.partition("<h2>Its keys</h2>")[2].partition("</section>")[0]
    assert re.findall(r'title="([0-9a-f]{64})"', part) == keys[::-1]
    ends = [re.sub("<[^>]+>", "", each).strip() for each in re.findall(r'"How it ended">(.*?)</td>', part, re.S)]
    assert ends == ["in force", "revoked", "followed by the next"]
    until = [re.sub("<[^>]+>", "", each).strip() for each in re.findall(r'"Until">(.*?)</td>', part, re.S)]
    assert until[0] == "now" and "now" not in until[1:] and len(until) == 3


def test_an_invitation_that_is_made_again_ends_the_key_that_waited(
    admin: Any, organisation: Organisation, new_hospital: Any
):
    from organisations.pages_selectors import keys_of

    _enrol(new_hospital, admin, organisation)
    assert [each.ended for each in keys_of(Silo.objects.get())] == ["to confirm"]
    _enrol(new_hospital, admin, organisation)
    assert [each.ended for each in keys_of(Silo.objects.get())] == ["to confirm", "replaced"]
