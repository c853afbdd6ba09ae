"""Pages of data-use policies: those in force, one of them in words, and proposing a new one."""

from __future__ import annotations

import json
from typing import Any

from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from governance import pages_selectors, services
from governance.models import Policy, PolicyProposal
from governance.policy_form import PolicyForm
from organisations.models import Silo
from organisations.permissions import role_required
from organisations.selectors import silos_active
from portal.actors import Subject
from portal.denials import hidden
from portal.listing import Choice, Listing, csv_answer, listing
from portal.problems import Refused
from protocol import canonical
from protocol.policy import PolicyError, describe_policy, parse_policy

_READERS = ("admin", "steward", "researcher", "auditor", "it")
_PROPOSERS = ("steward", "admin")


@require_GET
@role_required(*_READERS)
def policies(request: HttpRequest) -> HttpResponse:
    """Every hospital's policies, the one in force first."""
    proposals = PolicyProposal.objects.filter(state=PolicyProposal.State.OPEN).select_related("silo__organisation")
    if not request.person.has("admin", "auditor"):
        proposals = proposals.filter(silo__in=pages_selectors.silos_of(request.person, "steward", "it"))
    context = {
        "listing": _listing(request),
        "proposals": proposals,
        "may_propose": request.person.has(*_PROPOSERS),
        "without": [silo for silo in silos_active() if not silo.policies.filter(current=True).exists()],
    }
    return render(request, "governance/policies.html", context)


@require_GET
@role_required(*_READERS)
def policies_csv(request: HttpRequest) -> HttpResponse:
    """The filtered list as CSV."""
    header = ("hospital", "silo", "version", "in force", "permission", "received (UTC)", "digest")
    rows = (
        (
            each.silo.organisation.name,
            each.silo.name,
            each.version,
            "yes" if each.current else "no",
            each.document.get("permission", ""),
            each.received_at,
            each.digest,
        )
        for each in _listing(request).page.paginator.object_list
    )
    return csv_answer("policies.csv", header, rows)


@require_GET
@role_required(*_READERS)
def policy(request: HttpRequest, digest: str) -> HttpResponse:
    """One policy in words, with its signature to download."""
    found = get_object_or_404(Policy.objects.select_related("silo__organisation"), digest=f"sha256:{digest}")
    context = {
        "policy": found,
        "said": _said(found.document)[0],
        "document": json.dumps(found.document, indent=2, ensure_ascii=False),
        "signers": [each["keyid"] for each in found.envelope.get("signatures", [])],
        "older": Policy.objects.filter(silo=found.silo).exclude(pk=found.pk).order_by("-version"),
    }
    return render(request, "governance/policy.html", context)


@require_GET
@role_required(*_READERS)
def policy_envelope(request: HttpRequest, digest: str) -> HttpResponse:
    """The signed envelope as it came."""
    found = get_object_or_404(Policy, digest=f"sha256:{digest}")
    answer = JsonResponse(found.envelope)
    answer["Content-Disposition"] = f'attachment; filename="{found.silo.name}-policy-{found.version}.dsse.json"'
    return answer


@require_http_methods(["GET", "POST"])
@role_required(*_PROPOSERS)
def policy_propose(request: HttpRequest) -> HttpResponse:
    """A plain form; the result is a document that the hospital signs at its own node."""
    form = _form(request, request.POST or None)
    if request.method == "POST" and form.is_valid():
        silo = form.cleaned_data["silo"]
        try:
            proposal = services.policy_propose(
                actor=request.actor, silo=silo, document=form.document(version=1), proposed_by=request.user
            )
        except Refused as refused:
            form.add_error(None, refused.sentence)
        else:
            return redirect(reverse("governance:policy_proposal", args=[proposal.pk]))
    context = {"form": form, "silos": form.fields["silo"].queryset}
    return render(request, "governance/policy_propose.html", context, status=422 if form.is_bound else 200)


@require_POST
@role_required(*_PROPOSERS)
def policy_preview(request: HttpRequest) -> HttpResponse:
    """What the form says so far, in words: a part of the page that is asked for while one fills in."""
    form = _form(request, request.POST)
    said, problem = _said(form.document(version=1)) if form.is_valid() else ([], "")
    return render(request, "governance/_policy_preview.html", {"said": said, "problem": problem, "form": form})


@require_GET
@role_required("steward", "admin", "it")
def policy_proposal(request: HttpRequest, pk: int) -> HttpResponse:
    """A proposal in words and as JSON, with the command that signs it."""
    found = _proposal(request, pk)
    context = {
        "proposal": found,
        "said": _said(found.document)[0],
        "document": json.dumps(found.document, indent=2, ensure_ascii=False),
        "command": f"silo policy FOLDER --file {found.silo.name}-policy.json --passphrase-file FILE --send",
    }
    return render(request, "governance/policy_proposal.html", context)


@require_GET
@role_required("steward", "admin", "it")
def policy_proposal_json(request: HttpRequest, pk: int) -> HttpResponse:
    """The proposal's document to take to the hospital's node."""
    found = _proposal(request, pk)
    answer = HttpResponse(json.dumps(found.document, indent=2, ensure_ascii=False), content_type="application/json")
    answer["Content-Disposition"] = f'attachment; filename="{found.silo.name}-policy.json"'
    return answer


def _proposal(request: HttpRequest, pk: int) -> PolicyProposal:
    rows = PolicyProposal.objects.select_related("silo__organisation", "proposed_by")
    if not request.person.has("admin"):
        rows = rows.filter(silo__in=pages_selectors.silos_of(request.person, "steward", "it"))
    found = rows.filter(pk=pk).first()
    if found is None:
        if PolicyProposal.objects.filter(pk=pk).exists():
            hidden(request, Subject("proposal", str(pk)))
        raise Http404("There is no such proposal for you.")
    return found


def _form(request: HttpRequest, data: Any) -> PolicyForm:
    mine = Silo.objects.all() if request.person.has("admin") else pages_selectors.silos_of(request.person, "steward")
    first = mine.order_by("name").first()
    initial = {"silo": request.GET.get("silo") or (first.name if first else None), "permission": "DUO:0000006"}
    return PolicyForm(data, initial=initial, silos=mine.order_by("name"), others=list(silos_active()))


def _said(document: dict[str, Any]) -> tuple[list[str], str]:
    """(the policy in words, what is wrong with it)."""
    try:
        return list(describe_policy(parse_policy(canonical.encode(document)))), ""
    except (PolicyError, canonical.CanonicalError) as error:
        return [], str(error)


def _listing(request: HttpRequest) -> Listing:
    return listing(
        request,
        Policy.objects.select_related("silo__organisation"),
        sorts={"hospital": "silo__organisation__name", "version": "version", "received": "received_at"},
        default="hospital",
        filters=(
            Choice(
                "force",
                "In force",
                (("yes", "in force"), ("no", "earlier")),
                lambda rows, value: rows.filter(current=value == "yes"),
            ),
        ),
        search=lambda rows, text: (
            rows.filter(silo__name__icontains=text) | rows.filter(silo__organisation__name__icontains=text)
        ),
        export_path=reverse("governance:policies_csv"),
    )
