"""Policies, manifests and approvals for nodes."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, HttpResponse

from governance.models import Study
from governance.selectors import manifest_for
from governance.services import approval_receive, policy_receive
from portal.answers import node_view, read_envelope
from portal.problems import Refused


@node_view("PUT")
def policy(request: HttpRequest) -> dict[str, Any]:
    """PUT /api/v1/silo/policy: the hospital's data-use policy, signed by its steward."""
    stored = policy_receive(silo=request.silo, envelope=read_envelope(request.body))
    return {"policy": stored.digest, "version": stored.version}


@node_view("GET")
def manifest(request: HttpRequest, study: str) -> HttpResponse:
    """GET /api/v1/studies/{study}/manifest: the exact bytes to decide on (`?digest=` for an earlier version)."""
    found = manifest_for(silo=request.silo, study_id=study, digest=request.GET.get("digest"))
    if found is None:
        raise Refused("NOT_YOUR_STUDY", "There is no such study for this silo.")
    return HttpResponse(found.data, content_type="application/json", headers={"X-Manifest-Digest": found.digest})


@node_view("PUT")
def approval(request: HttpRequest, study: str) -> dict[str, Any]:
    """PUT /api/v1/studies/{study}/approval: a steward's signed approval, rejection or revocation."""
    row = Study.objects.filter(pk=study).first()
    if row is None:
        raise Refused("NOT_YOUR_STUDY", "There is no such study for this silo.")
    stored = approval_receive(silo=request.silo, study=row, envelope=read_envelope(request.body))
    return {
        "approval": stored.digest,
        "decision": stored.decision,
        "complete": stored.complete,
        "entry": str(stored.entry_id),
    }
