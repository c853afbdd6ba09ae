"""A model got worse: the page with the grounds, and the second step of the admin's decision."""

from __future__ import annotations

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_http_methods

from federation.models import Rollback
from federation.rollback_report import rollback_report, rollbacks_of
from federation.services.rollback import rollback_decide
from governance.forms import ReasonForm
from governance.models import Study
from governance.views import READERS, study_context, study_for
from organisations.permissions import role_required
from portal.problems import Refused


@require_GET
@role_required(*READERS)
def rollback(request: HttpRequest, pk: str, number: int) -> HttpResponse:
    """One proposal with its grounds, and what became of it."""
    study = study_for(request, pk)
    proposal = _proposal(study, number)
    found = study_context(request, study, "results")
    may_decide = request.person.has("admin") and not found["mine"] and proposal.state == Rollback.State.OPEN
    context = found | {"proposal": proposal, "report": rollback_report(proposal), "may_decide": may_decide}
    return render(request, "federation/rollback.html", context)


@require_http_methods(["GET", "POST"])
@role_required("admin")
def decide(request: HttpRequest, pk: str, number: int, decision: str) -> HttpResponse:
    """The second step of the decision: it says what happens, and asks for the reason."""
    study = study_for(request, pk)
    proposal = _proposal(study, number)
    if proposal.state != Rollback.State.OPEN:
        messages.info(request, "This proposal does not wait for a decision any more.")
        return redirect("federation:rollback", pk=pk, number=number)
    form = ReasonForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        reason = form.cleaned_data["reason"]
        try:
            rollback_decide(
                actor=request.actor, person=request.user, proposal=proposal, decision=decision, reason=reason
            )
        except Refused as refused:
            form.add_error("reason" if refused.code == "REASON" else None, refused.sentence)
        else:
            done = "stays where it is" if decision == "dismiss" else "goes back with the next round"
            messages.success(request, f"{study.title} {done}.")
            return redirect("federation:rollback", pk=pk, number=number)
    context = study_context(request, study, "results") | {
        "proposal": proposal,
        "report": rollback_report(proposal),
        "decision": decision,
        "form": form,
    }
    return render(request, "federation/rollback_decide.html", context, status=422 if form.is_bound else 200)


def _proposal(study: Study, number: int) -> Rollback:
    return get_object_or_404(rollbacks_of(study), pk=number)
