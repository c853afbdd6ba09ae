"""The page on which a researcher chooses where a draft's model starts: from a seed, or from a model trained before."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import messages
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_POST

from federation import conf
from federation.models import UploadedModel
from federation.services.incoming import piece_keep, pieces_forget, pieces_open
from federation.services.models import PIECE
from federation.services.pretrained import pretrained_clear, pretrained_set
from governance.draft_views import not_editable
from governance.models import Study
from governance.views import study_context, study_for
from organisations.permissions import role_required
from portal.problems import Refused
from protocol.initial_model import MAX_SEED


class ModelForm(forms.Form):
    """A model's file. `pieces`: how many were sent before (upload.js); then the file itself is not in the form."""

    file = forms.FileField(
        required=False,
        label="Model file",
        help_text="safetensors with float32 tensors, or the raw state of a model of this portal.",
        widget=forms.ClearableFileInput(attrs={"accept": ".safetensors,.consilium"}),
    )
    pieces = forms.IntegerField(required=False, min_value=1, widget=forms.HiddenInput)

    def clean(self) -> dict[str, Any]:
        data = super().clean()
        if not self.errors and not data.get("file") and not data.get("pieces"):
            self.add_error("file", "Choose a file.")
        return data


class SeedForm(forms.Form):
    """Back to random numbers."""

    seed = forms.IntegerField(min_value=0, max_value=MAX_SEED, label="Seed", initial=20261123)


@require_http_methods(["GET", "POST"])
@role_required("researcher")
def first_model(request: HttpRequest, pk: str) -> HttpResponse:
    """Shows where the draft starts; posting a file or a seed changes it."""
    study = study_for(request, pk)
    if (away := not_editable(request, study)) is not None:
        return away
    back = request.method == "POST" and "seed" in request.POST
    form = ModelForm(*((request.POST, request.FILES) if request.method == "POST" and not back else ()))
    seed_form = SeedForm(request.POST if back else None)
    if back and seed_form.is_valid():
        try:
            pretrained_clear(actor=request.actor, study=study, seed=seed_form.cleaned_data["seed"])
        except Refused as refused:
            seed_form.add_error("seed", refused.sentence)
        else:
            messages.success(request, "The draft starts from random numbers again.")
            return redirect("federation:first_model", pk=pk)
    if form.is_bound and form.is_valid():
        try:
            _take(request, study, form)
        except Refused as refused:
            form.add_error("file", refused.sentence)
        else:
            messages.success(request, "The model is stored, and the draft starts from it.")
            return redirect("federation:first_model", pk=pk)
    context = study_context(request, study, "overview") | _start(study)
    context |= {"form": form, "seed_form": seed_form, "limit": conf.model_bytes(), "piece": PIECE}
    return render(
        request, "federation/first_model.html", context, status=422 if form.errors or seed_form.errors else 200
    )


@require_POST
@role_required("researcher")
def first_model_piece(request: HttpRequest, pk: str, index: int) -> HttpResponse:
    """A piece of a file that is larger than one request may be; the form follows when all are there."""
    study = study_for(request, pk)
    if (away := not_editable(request, study)) is not None:
        return away
    try:
        piece_keep(study=study.pk, index=index, data=request.body)
    except Refused as refused:
        return JsonResponse({"code": refused.code, "sentence": refused.sentence}, status=refused.status)
    return JsonResponse({"piece": index})


def _take(request: HttpRequest, study: Study, form: ModelForm) -> None:
    count = form.cleaned_data["pieces"]
    if not count:
        pretrained_set(actor=request.actor, study=study, file=form.cleaned_data["file"])
        return
    try:
        with pieces_open(study=study.pk, count=count) as file:
            pretrained_set(actor=request.actor, study=study, file=file)
    finally:
        pieces_forget(study=study.pk)


def _start(study: Study) -> dict[str, Any]:
    """What the draft starts from: `seed`, or `digest` with what was `uploaded` under it."""
    plan = study.draft.get("plan")
    initial = plan.get("initial") if isinstance(plan, dict) else None
    initial = initial if isinstance(initial, dict) else {}
    digest = str(initial.get("model", "")) if initial.get("kind") == "pretrained" else ""
    return {
        "digest": digest,
        "seed": initial.get("seed"),
        "uploaded": UploadedModel.objects.filter(study=study, digest=digest).first(),
    }
