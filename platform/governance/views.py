"""Pages of a study: the list, the study in words, the hospitals' decisions, its evidence, and the network's decision."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.contrib import messages
from django.db.models import Q
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods

from evidence.page_words import GROUPS
from evidence.viewing import note_view
from governance import pages_selectors, services
from governance.drafts import manifest_problems
from governance.forms import ReasonForm, ReviewForm
from governance.models import Manifest, Study, StudyState
from governance.states import ARROWS, EDITABLE
from organisations import words
from organisations.models import Organisation
from organisations.permissions import role_required
from portal.actors import Subject
from portal.denials import hidden
from portal.listing import Choice, Listing, csv_answer, listing
from portal.problems import Refused
from protocol.manifest import describe

READERS = ("admin", "steward", "researcher", "it", "auditor")


@require_GET
@role_required(*READERS)
def studies(request: HttpRequest) -> HttpResponse:
    """The studies that this person may see."""
    return render(
        request,
        "governance/studies.html",
        {"listing": _listing(request), "may_draft": request.person.has("researcher")},
    )


@require_GET
@role_required(*READERS)
def studies_csv(request: HttpRequest) -> HttpResponse:
    """The filtered list as CSV."""
    header = ("study", "title", "state", "organisation", "created (UTC)", "submitted (UTC)", "version")
    rows = (
        (
            each.pk,
            each.title,
            each.state,
            each.organisation.name,
            each.created_at,
            each.submitted_at or "",
            manifest.digest if (manifest := each.manifest) else "",
        )
        for each in _listing(request).page.paginator.object_list
    )
    return csv_answer("studies.csv", header, rows)


@require_GET
@role_required(*READERS)
def study(request: HttpRequest, pk: str) -> HttpResponse:
    """A study in plain words, with what this person can do about it."""
    found = study_for(request, pk)
    context = study_context(request, found, "overview")
    manifest: Manifest | None = context["manifest"]
    if manifest is not None:
        context["rows"] = pages_selectors.hospital_rows(manifest)
        context["said"] = describe(context["content"])
        context["changes"] = pages_selectors.changes_since_last(manifest)
    if found.state in EDITABLE and context["mine"]:
        context["problems"] = _problems(found)
    return render(request, "governance/study.html", context)


@require_GET
@role_required(*READERS)
def study_hospitals(request: HttpRequest, pk: str) -> HttpResponse:
    """What each hospital's policy says and what it decided, with its own signature."""
    found = study_for(request, pk)
    context = study_context(request, found, "hospitals")
    if context["manifest"] is not None:
        context["rows"] = pages_selectors.hospital_rows(context["manifest"])
    return render(request, "governance/study_hospitals.html", context)


@require_GET
@role_required(*READERS)
def study_evidence(request: HttpRequest, pk: str) -> HttpResponse:
    """Entries of the log about this study and its rounds."""
    found = study_for(request, pk)
    note_view(request.actor)
    context = study_context(request, found, "evidence")
    context["listing"] = listing(
        request,
        pages_selectors.study_entries(found),
        sorts={"time": "time", "type": "type", "index": "index", "subject": "subject_id"},
        default="-time",
        filters=(Choice("group", "About", GROUPS, lambda rows, value: rows.filter(type__startswith=f"{value}.")),),
        search=lambda rows, text: rows.filter(Q(type__icontains=text) | Q(subject_id__icontains=text)),
    )
    return render(request, "governance/study_evidence.html", context)


@require_GET
@role_required(*READERS)
def study_manifest(request: HttpRequest, pk: str, number: int) -> HttpResponse:
    """One version's manifest: exactly the bytes that hospitals approve."""
    manifest = get_object_or_404(Manifest, study=study_for(request, pk), number=number)
    answer = HttpResponse(manifest.data, content_type="application/json")
    answer["Content-Disposition"] = f'attachment; filename="{pk}-version-{number}.json"'
    return answer


@require_GET
@role_required(*READERS)
def study_decision(request: HttpRequest, pk: str, approval: UUID) -> HttpResponse:
    """A hospital's signed decision: the envelope as it came."""
    found = study_for(request, pk)
    for manifest in found.manifests.all():
        signed = manifest.approvals.filter(pk=approval).first()
        if signed is not None:
            answer = JsonResponse(signed.envelope)
            answer["Content-Disposition"] = f'attachment; filename="{signed.silo.name}-{signed.decision}.dsse.json"'
            return answer
    raise Http404("This study has no such decision.")


@require_http_methods(["GET", "POST"])
@role_required("admin")
def study_review(request: HttpRequest, pk: str, decision: str) -> HttpResponse:
    """The second step of the network's decision: it names study and version, and asks for the reason."""
    found = study_for(request, pk)
    manifest = found.manifest
    if manifest is None or found.state != StudyState.SUBMITTED:
        messages.info(request, "This study does not wait for the network's decision any more.")
        return redirect("governance:study", pk=pk)
    initial = {"decision": decision, "manifest": manifest.digest}
    form = ReviewForm(request.POST or None, initial=initial)
    if request.method == "POST" and form.is_valid():
        try:
            services.review_decide(actor=request.actor, reviewer=request.user, study=found, **form.cleaned_data)
        except Refused as refused:
            form.add_error("reason" if refused.code == "REASON" else None, refused.sentence)
        else:
            done = "approved; each hospital now decides for itself" if decision == "approve" else "rejected"
            messages.success(request, f"{found.title} is {done}.")
            return redirect("governance:study", pk=pk)
    context = study_context(request, found, "overview") | {
        "form": form,
        "decision": decision,
        "rows": pages_selectors.hospital_rows(manifest),
    }
    return render(request, "governance/study_review.html", context, status=422 if form.is_bound else 200)


_ACTS: dict[str, dict[str, Any]] = {
    "submit": {"service": services.study_submit, "reason": False, "to": "submitted"},
    "start": {"service": services.study_start, "reason": False, "to": "active"},
    "pause": {"service": services.study_pause, "reason": True, "to": "paused"},
    "resume": {"service": services.study_resume, "reason": False, "to": "running"},
    "withdraw": {"service": services.study_withdraw, "reason": True, "to": "withdrawn"},
}


@require_http_methods(["GET", "POST"])
@role_required("admin", "researcher")
def study_act(request: HttpRequest, pk: str, act: str) -> HttpResponse:
    """The second step of what an owner or an admin does to a study: says what will happen, then does it."""
    found = study_for(request, pk)
    rule = _ACTS[act]
    form = ReasonForm(request.POST or None) if rule["reason"] else None
    refusal = None
    if request.method == "POST" and (form is None or form.is_valid()):
        reason = {"reason": form.cleaned_data["reason"]} if form else {}
        try:
            rule["service"](actor=request.actor, study=found, **reason)
        except Refused as refused:
            refusal = refused.sentence
        else:
            found.refresh_from_db()
            messages.success(request, f"{found.title} is now: {words.word_for('study', found.state).word}.")
            return redirect("governance:study", pk=pk)
    context = study_context(request, found, "overview") | {"act": act, "form": form, "refusal": refusal}
    if act == "submit":
        context["problems"] = _problems(found)
    status = 422 if refusal or (form is not None and form.is_bound) else 200
    return render(request, "governance/study_act.html", context, status=status)


def study_for(request: HttpRequest, pk: str) -> Study:
    """The study, if this person may see it; 404 otherwise, so that nobody learns which ids exist."""
    found = pages_selectors.visible_studies(request.person).filter(pk=pk).first()
    if found is None:
        if Study.objects.filter(pk=pk).exists():
            hidden(request, Subject("study", pk))
        raise Http404("There is no such study for you.")
    return found


def study_context(request: HttpRequest, found: Study, tab: str) -> dict[str, Any]:
    """What the header and the tabs of every study page need."""
    manifest = found.manifest
    person = request.person
    mine = found.owner_id == request.user.pk
    steers = mine or person.has("admin")
    arrows = ARROWS[found.state]
    own = pages_selectors.silos_of(person, "steward", "it")
    return {
        "study": found,
        "tab": tab,
        "manifest": manifest,
        "content": pages_selectors.manifest_content(manifest) if manifest else None,
        "review": pages_selectors.newest_review(manifest) if manifest else None,
        "mine": mine,
        "own_silos": [silo.name for silo in own],
        "path": _path(found.state),
        "may_review": person.has("admin") and not mine and found.state == StudyState.SUBMITTED,
        "may_edit": mine and found.state in EDITABLE,
        "may_start": steers and found.state == StudyState.APPROVED,
        "may_pause": steers and found.state in (StudyState.ACTIVE, StudyState.RUNNING),
        "may_resume": steers
        and found.state == StudyState.PAUSED
        and (person.has("admin") or not found.paused_by_admin),
        "as_admin": person.has("admin"),
        "may_withdraw": steers and StudyState.WITHDRAWN in arrows,
    }


def _problems(found: Study) -> list[tuple[str, str]]:
    try:
        return manifest_problems(study=found, draft=found.draft)
    except Refused as refused:
        return [("participants", refused.sentence)]


def _path(state: str) -> list[tuple[str, str]]:
    """(word, done|now|next) of the way from draft to released; empty for a study that left it."""
    names = list(pages_selectors.PATH)
    place = "running" if state == "paused" else state
    if place not in names:
        return []
    here = names.index(place)
    labels = {"submitted": "network decides", "approved": "hospitals decide"}
    return [
        (labels.get(name, name), "done" if number < here else "now" if number == here else "next")
        for number, name in enumerate(names)
    ]


def _listing(request: HttpRequest) -> Listing:
    organisations = [(each.slug, each.name) for each in Organisation.objects.all()]
    return listing(
        request,
        pages_selectors.visible_studies(request.person),
        sorts={"title": "title", "state": "state", "hospital": "organisation__name", "created": "created_at"},
        default="-created",
        filters=(
            Choice("state", "State", words.choices("study"), lambda rows, value: rows.filter(state=value)),
            Choice("hospital", "Hospital", organisations, lambda rows, value: rows.filter(organisation__slug=value)),
        ),
        search=lambda rows, text: rows.filter(Q(title__icontains=text) | Q(pk__icontains=text)),
        export_path=reverse("governance:studies_csv"),
    )
