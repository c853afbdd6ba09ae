"""Pages on which a researcher drafts a study: from a template, in the form or as JSON."""

from __future__ import annotations

import json
from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods

from governance import services, study_templates
from governance.drafts import manifest_problems
from governance.forms import StudyJsonForm
from governance.models import Study
from governance.states import EDITABLE
from governance.study_form import StudyForm
from governance.views import study_context, study_for
from organisations.models import Organisation
from organisations.permissions import role_required
from organisations.selectors import silos_active
from portal.actors import Subject
from portal.denials import hidden
from portal.problems import Refused


@require_http_methods(["GET", "POST"])
@role_required("researcher")
def study_new(request: HttpRequest) -> HttpResponse:
    """Choose a template; posting makes the draft."""
    places = Organisation.objects.filter(pk__in=request.person.organisation_ids("researcher"))
    chosen = study_templates.template(request.POST.get("template", ""))
    title = request.POST.get("title", "").strip()
    problem = ""
    if request.method == "POST":
        if chosen is None:
            problem = "Choose a template to start from."
        elif not title or len(title) > 200:
            problem = "Give the study a title of at most 200 characters."
        else:
            place = places.filter(slug=request.POST.get("organisation", "")).first() or places.first()
            draft = chosen.draft() | {"title": title}
            made = services.study_draft(
                actor=request.actor, owner=request.user, organisation=place, title=title, draft=draft
            )
            messages.success(request, "The draft is kept. Nobody else sees it until you submit it.")
            return redirect("governance:study_edit", pk=made.pk)
    context = {
        "templates": study_templates.TEMPLATES,
        "places": places,
        "problem": problem,
        "title": title,
        "chosen": chosen,
    }
    return render(request, "governance/study_new.html", context, status=422 if problem else 200)


@require_http_methods(["GET", "POST"])
@role_required("researcher")
def study_edit(request: HttpRequest, pk: str) -> HttpResponse:
    """The draft in a form. It may be saved incomplete; what still keeps it from being submitted stands by the fields."""
    found = study_for(request, pk)
    if (away := not_editable(request, found)) is not None:
        return away
    hospitals = [
        (silo.name, f"{silo.organisation.name} ({silo.name}, {silo.organisation.country})") for silo in silos_active()
    ]
    try:
        form = StudyForm(request.POST or None, hospitals=hospitals, base=found.draft)
    except (AttributeError, KeyError, TypeError, ValueError):
        # A draft made as JSON may hold anything, such as a list where the form wants an object.
        messages.info(request, "This draft has parts that the form can't show. Change it here.")
        return redirect("governance:study_json", pk=pk)
    if request.method == "POST" and form.is_valid():
        draft = form.draft()
        services.study_edit(actor=request.actor, study=found, title=form.cleaned_data["title"], draft=draft)
        problems = _problems(found, draft)
        if not problems:
            messages.success(request, "Saved. Nothing keeps this draft from being submitted.")
            if "submit" in request.POST:
                return redirect("governance:study_act", pk=pk, act="submit")
            return redirect("governance:study", pk=pk)
        form.add_manifest_errors(problems)
        messages.warning(request, "Saved, but it cannot be submitted yet.")
    context = study_context(request, found, "overview") | {"form": form, "hospitals": hospitals}
    return render(request, "governance/study_edit.html", context, status=422 if form.errors else 200)


@require_http_methods(["GET", "POST"])
@role_required("researcher")
def study_json(request: HttpRequest, pk: str) -> HttpResponse:
    """The draft as JSON, for what the form does not show and for drafts made by a script."""
    found = study_for(request, pk)
    if (away := not_editable(request, found)) is not None:
        return away
    shown = {"document": json.dumps(found.draft, indent=2, ensure_ascii=False)}
    form = StudyJsonForm(request.POST or None, initial=shown)
    problems: list[tuple[str, str]] = []
    if request.method == "POST" and form.is_valid():
        draft: dict[str, Any] = form.cleaned_data["document"]
        services.study_edit(actor=request.actor, study=found, title=draft["title"], draft=draft)
        problems = _problems(found, draft)
        if not problems:
            messages.success(request, "Saved. Nothing keeps this draft from being submitted.")
            return redirect("governance:study", pk=pk)
    context = study_context(request, found, "overview") | {"form": form, "problems": problems}
    return render(request, "governance/study_json.html", context, status=422 if form.errors or problems else 200)


def _problems(found: Study, draft: dict[str, Any]) -> list[tuple[str, str]]:
    try:
        return manifest_problems(study=found, draft=draft)
    except Refused as refused:
        return [("participants", refused.sentence)]


def not_editable(request: HttpRequest, found: Study) -> HttpResponse | None:
    """Where to send who may not change this draft; None for its owner, before the study begins."""
    if found.owner_id == request.user.pk and found.state in EDITABLE:
        return None
    if found.owner_id != request.user.pk:
        hidden(request, Subject("study", found.pk), "NOT_OWNER")
    messages.error(request, "Only its owner can change a draft, and only before the study begins.")
    return redirect("governance:study", pk=found.pk)
