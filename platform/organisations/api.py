"""Enrolment, the one request that is signed with a key which the portal does not know yet."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.csrf import csrf_exempt

from organisations.enrolment import parse_enrol
from organisations.services import silo_enrol, silo_rotate
from organisations.trust import trust_receive
from portal import access
from portal.answers import node_view, read_envelope, read_json, refuse_replay, target_of, verified_request
from portal.keys import answer_key, log_vkey
from portal.problems import Refused
from protocol.canonical import b64
from protocol.signing import keyid


@access.node
@csrf_exempt
def enrol(request: HttpRequest) -> HttpResponse:
    """POST /api/v1/silo/enrol: a token and a key that proves itself by signing this request."""
    if request.method != "POST":
        raise Refused("METHOD", "This address takes POST.")
    enrolment = parse_enrol(read_json(request.body, limit=256 * 1024))
    own = keyid(enrolment.public)
    verified = verified_request(
        **target_of(request),
        headers=request.headers,
        body=request.body,
        resolve=lambda number: enrolment.public if number == own else None,
    )
    refuse_replay(verified)
    silo = silo_enrol(request=enrolment)
    answer: dict[str, Any] = {
        "silo": silo.name,
        "organisation": silo.organisation.name,
        "state": silo.state,
        "portal": {
            "name": settings.CONSILIUM_NAME,
            "answer_public": b64(answer_key().public),
            "log_vkey": log_vkey(),
        },
    }
    return JsonResponse(answer)


enrol.node_methods = ("POST",)  # as node_view says it, for the API's description


@node_view("PUT")
def trust(request: HttpRequest) -> dict[str, Any]:
    """PUT /api/v1/silo/trust: the versions of the hospital's trust.json after the first, oldest first."""
    body = read_json(request.body)
    if set(body) != {"versions"} or not isinstance(body["versions"], list):
        raise Refused("BAD_MESSAGE", "The body must have exactly one member, versions, a list.")
    taken = trust_receive(silo=request.silo, versions=body["versions"])
    return {"trust": taken.digest, "version": taken.version}


@node_view("PUT")
def key(request: HttpRequest) -> dict[str, Any]:
    """PUT /api/v1/silo/key: the next key of the silo, vouched for by the present one."""
    silo = silo_rotate(silo=request.silo, envelope=read_envelope(request.body))
    return {"key": silo.keyid, "state": silo.state}
