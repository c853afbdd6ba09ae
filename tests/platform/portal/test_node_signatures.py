"""The node API's signatures: who asks is proved, what is answered is bound to the question, nothing counts twice."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from django.core.cache import cache
from django.test import Client

from evidence.models import Entry
from organisations.models import Silo
from portal.keys import answer_key
from portal.problems import PROBLEM_TYPE
from protocol.signing import SignatureError, SigningKey, sign_request, verify_answer

MANIFEST = "/api/v1/studies/st-none/manifest"
pytestmark = pytest.mark.django_db


@pytest.fixture
def key() -> SigningKey:
    return SigningKey.generate()


@pytest.fixture
def silo(organisation: Any, key: SigningKey) -> Silo:
    return Silo.objects.create(
        name="site-1", organisation=organisation, state="active", public_key=key.public, keyid=key.keyid
    )


def _problem(response: Any, status: int, code: str) -> dict[str, Any]:
    assert (response.status_code, response.headers["Content-Type"]) == (status, PROBLEM_TYPE), response.content
    content = json.loads(response.content)
    assert content["code"] == code and content["status"] == status
    assert set(content) == {"type", "title", "status", "detail", "code"} and content["detail"]
    return content


def test_a_signed_request_is_answered_with_a_signature_bound_to_it(silo, key, node):
    response = node(key).send("GET", MANIFEST)  # the answer is verified in there
    _problem(response, 404, "NOT_YOUR_STUDY")
    silo.refresh_from_db()
    assert silo.last_seen_at is not None


def test_an_answer_can_not_be_passed_off_as_the_answer_to_another_request(silo, key, node):
    response = node(key).send("GET", MANIFEST)
    other = sign_request(key, method="GET", path=MANIFEST)
    with pytest.raises(SignatureError):
        verify_answer(
            answer_key().public, status=response.status_code, headers=response.headers, body=response.content,
            request_headers=other, method="GET", path=MANIFEST, query="", now=time.time(),
        )  # fmt: skip


def test_a_request_without_a_signature_is_refused():
    _problem(Client().get(MANIFEST), 401, "BAD_SIGNATURE")


def test_a_key_that_no_silo_has_is_refused(silo, node):
    _problem(node(SigningKey.generate()).send("GET", MANIFEST), 401, "UNKNOWN_KEY")


@pytest.mark.parametrize("change", ["method", "path", "query", "body", "created", "nonce", "signature"])
def test_one_change_to_a_signed_request_breaks_it(silo, key, node, change):
    path, query, body, method = "/api/v1/studies/st-1/approval", "a=1", b'{"x":1}', "PUT"
    headers = sign_request(key, method=method, path=path, query=query, body=body)
    if change == "method":
        method = "GET"
    elif change == "path":
        path = "/api/v1/studies/st-2/approval"
    elif change == "query":
        query = "a=2"
    elif change == "body":
        body = b'{"x":2}'
    elif change == "created":
        stamp = headers["Signature-Input"].split("created=")[1].split(";")[0]
        headers["Signature-Input"] = headers["Signature-Input"].replace(stamp, str(int(stamp) + 1))
    elif change == "nonce":
        headers["Signature-Input"] = headers["Signature-Input"].replace('nonce="', 'nonce="A')
    else:
        headers["Signature"] = sign_request(key, method=method, path=path, query=query, body=body)["Signature"]
    if change == "method":
        path = MANIFEST.replace("st-none", "st-1")
        headers = sign_request(key, method="POST", path=path)
        body, query = b"", ""
    _problem(node(key).send_raw(method, path, body, headers, query=query), 401, "BAD_SIGNATURE")
    assert Entry.objects.get(type="auth.failed").actor_id == "silo:site-1"


def test_a_replayed_request_is_refused_and_recorded(silo, key, node):
    headers = sign_request(key, method="GET", path=MANIFEST)
    node(key).send_raw("GET", MANIFEST, b"", headers)
    _problem(node(key).send_raw("GET", MANIFEST, b"", headers), 409, "REPLAYED")
    entry = json.loads(bytes(Entry.objects.get(type="auth.failed").record))
    assert (entry["outcome"], entry["reasons"], entry["subject"]["id"]) == ("denied", ["REPLAYED"], "site-1")


def test_a_flood_of_refused_requests_does_not_fill_the_log(silo, key, node):
    headers = sign_request(key, method="GET", path=MANIFEST)
    for _ in range(20):
        node(key).send_raw("GET", MANIFEST, b"", headers)
    assert Entry.objects.filter(type="auth.failed").count() == 1


@pytest.mark.parametrize("shift", [-301, 301, 10_000])
def test_a_wrong_clock_is_refused_and_both_times_are_named(silo, key, node, shift):
    created = int(time.time()) + shift
    content = _problem(node(key).send("GET", MANIFEST, created=created, verify=False), 401, "CLOCK_SKEW")
    stamp = time.strftime("%Y-%m-%dT%H:%M", time.gmtime(created))
    assert stamp in content["detail"]
    assert time.strftime("%Y-%m-%dT", time.gmtime()) in content["detail"]


@pytest.mark.parametrize(("state", "code"), [("pending", "SILO_PENDING"), ("revoked", "SILO_REVOKED")])
def test_only_an_active_silo_is_served(silo, key, node, state, code):
    Silo.objects.update(state=state)
    _problem(node(key).send("GET", MANIFEST), 403, code)


def test_errors_that_django_finds_are_problems_and_signed_too(silo, key, node):
    _problem(node(key).send("GET", "/api/v1/nothing/here"), 404, "NOT_FOUND")
    _problem(node(key).send("DELETE", MANIFEST), 405, "METHOD")
    _problem(node(key).send("PUT", "/api/v1/silo/policy", b"x" * (5 * 2**20)), 413, "TOO_LARGE")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b'{"payloadType":1,"payloadType":2}',
        b'{"a":NaN}',
        b"[" * 100_000,
        b"\xff",
        b'{"payload":"x"}',
    ],
)
def test_a_body_that_is_no_envelope_is_refused_with_words(silo, key, node, body):
    _problem(node(key).send("PUT", "/api/v1/silo/policy", body), 422, "BAD_MESSAGE")


def test_the_replay_memory_outlives_the_time_in_which_a_request_is_accepted(silo, key, node, settings):
    headers = sign_request(key, method="GET", path=MANIFEST, created=int(time.time()) + 290)
    node(key).send_raw("GET", MANIFEST, b"", headers, verify=False)
    nonce = headers["Signature-Input"].split('nonce="')[1].split('"')[0]
    expires = cache._expire_info[cache.make_key(f"nonce:{key.keyid}:{nonce}")]
    assert expires - time.time() > 290 + settings.SIGNATURE_SKEW_SECONDS


def test_secrets_do_not_show_in_reprs(key):
    from organisations.enrolment import EnrolRequest

    request = EnrolRequest("the-token", b"\0" * 32, {}, "", "", "1.0")
    assert "the-token" not in repr(request)
