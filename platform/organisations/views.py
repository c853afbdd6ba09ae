"""Pages about hospitals and their silos: list, register, invite, confirm, revoke."""

from django.conf import settings
from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views.decorators.debug import sensitive_variables
from django.views.decorators.http import require_GET, require_http_methods

from organisations import pages_selectors, selectors, services, words
from organisations.forms import ConfirmForm, HospitalForm, InviteForm, RevokeForm
from organisations.models import Organisation, Silo
from organisations.permissions import role_required
from portal.listing import Choice, Listing, csv_answer, listing
from portal.problems import Refused

_EVERYONE = ("admin", "steward", "researcher", "it", "auditor")


@require_GET
@role_required(*_EVERYONE)
def hospitals(request: HttpRequest) -> HttpResponse:
    """Hospitals with their silos."""
    context = {"listing": _listing(request), "may_manage": request.person.has("admin")}
    return render(request, "organisations/hospitals.html", context)


@require_GET
@role_required(*_EVERYONE)
def hospitals_csv(request: HttpRequest) -> HttpResponse:
    """The filtered list as CSV."""
    header = ("hospital", "country", "non-profit", "silo", "state", "last contact (UTC)", "software", "fingerprint")
    rows = (
        (
            row.organisation.name,
            row.organisation.country,
            "yes" if row.organisation.non_profit else "no",
            row.silo.name if row.silo else "",
            row.silo.state if row.silo else "",
            row.silo.last_seen_at if row.silo else "",
            row.silo.version if row.silo else "",
            selectors.silo_fingerprint(row.silo) if row.silo else "",
        )
        for row in _listing(request).page.paginator.object_list
    )
    return csv_answer("hospitals.csv", header, rows)


@require_GET
@role_required(*_EVERYONE)
def hospital(request: HttpRequest, slug: str) -> HttpResponse:
    """One hospital: its silos, and its people for those who may know them."""
    organisation = get_object_or_404(Organisation, slug=slug)
    inside = organisation.pk in request.person.organisation_ids()
    people = organisation.memberships.select_related("user").order_by("role") if inside or _network(request) else None
    rows = [row for row in pages_selectors.silo_rows(Organisation.objects.filter(pk=organisation.pk)) if row.silo]
    context = {
        "organisation": organisation,
        "rows": rows,
        "people": people,
        "may_see_people": people is not None,
        "may_manage": request.person.has("admin"),
    }
    return render(request, "organisations/hospital.html", context)


@require_http_methods(["GET", "POST"])
@role_required("admin")
def hospital_new(request: HttpRequest) -> HttpResponse:
    """Register a hospital."""
    form = HospitalForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            organisation = services.organisation_register(actor=request.actor, **form.cleaned_data)
        except Refused as refused:
            form.add_error(
                {"SLUG": "slug", "SLUG_TAKEN": "slug", "COUNTRY": "country"}.get(refused.code), refused.sentence
            )
        else:
            messages.success(request, f"{organisation.name} is registered. Its silo comes next.")
            return redirect(f"{reverse('organisations:silo_invite')}?organisation={organisation.slug}")
    return render(request, "organisations/hospital_new.html", {"form": form}, status=_status(form))


@sensitive_variables("token")
@require_http_methods(["GET", "POST"])
@role_required("admin")
def silo_invite(request: HttpRequest) -> HttpResponse:
    """Make a one-time token; the answer to the form is the only place where it is ever shown."""
    initial = {key: request.GET[key] for key in ("organisation", "name") if key in request.GET}
    form = InviteForm(request.POST or None, initial=initial)
    if request.method == "POST" and form.is_valid():
        try:
            silo, token = services.silo_invite(actor=request.actor, **form.cleaned_data)
        except Refused as refused:
            form.add_error("name", refused.sentence)
        else:
            command = f"silo enrol FOLDER --token {token}"
            return render(request, "organisations/silo_token.html", {"silo": silo, "token": token, "command": command})
    context = {"form": form, "token_hours": settings.ENROLMENT_TOKEN_HOURS, "none": not Organisation.objects.exists()}
    return render(request, "organisations/silo_invite.html", context, status=_status(form))


@require_GET
@role_required(*_EVERYONE)
def silo(request: HttpRequest, name: str) -> HttpResponse:
    """One silo: state, contact, key."""
    found = _silo(name)
    context = {
        "silo": found,
        "contact": pages_selectors.contact_of(found),
        "fingerprint": selectors.silo_fingerprint(found),
        "keys": pages_selectors.keys_of(found),
        "ours": found.organisation_id in request.person.organisation_ids("it", "steward"),
        "may_manage": request.person.has("admin"),
    }
    return render(request, "organisations/silo.html", context)


@require_http_methods(["GET", "POST"])
@role_required("admin")
def silo_confirm(request: HttpRequest, name: str) -> HttpResponse:
    """Admit a silo: the admin enters the fingerprint that the hospital reads out."""
    found = _silo(name)
    form = ConfirmForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            services.silo_confirm(
                actor=request.actor, user=request.user, silo=found, fingerprint=form.cleaned_data["fingerprint"]
            )
        except Refused as refused:
            form.add_error("fingerprint", refused.sentence)
        else:
            messages.success(request, f"{found.name} of {found.organisation.name} is admitted to the network.")
            return redirect("organisations:silo", name=found.name)
    return render(request, "organisations/silo_confirm.html", {"form": form, "silo": found}, status=_status(form))


@require_http_methods(["GET", "POST"])
@role_required("admin")
def silo_revoke(request: HttpRequest, name: str) -> HttpResponse:
    """End a silo's key, after a second step that names it."""
    found = _silo(name)
    form = RevokeForm(request.POST or None, silo=found)
    if request.method == "POST" and form.is_valid():
        try:
            services.silo_revoke(actor=request.actor, silo=found, reason=form.cleaned_data["reason"])
        except Refused as refused:
            form.add_error(None, refused.sentence)
        else:
            messages.success(request, f"The key of {found.name} is revoked; nothing signed with it is taken any more.")
            return redirect("organisations:silo", name=found.name)
    return render(request, "organisations/silo_revoke.html", {"form": form, "silo": found}, status=_status(form))


def _listing(request: HttpRequest) -> Listing:
    return listing(
        request,
        pages_selectors.silo_rows(),
        sorts={
            "hospital": lambda row: row.organisation.name.casefold(),
            "silo": lambda row: row.silo.name if row.silo else "",
            "state": lambda row: row.silo.state if row.silo else "",
            "seen": lambda row: row.silo.last_seen_at.timestamp() if row.silo and row.silo.last_seen_at else 0.0,
        },
        default="hospital",
        filters=(
            Choice(
                "state",
                "State",
                words.choices("silo"),
                lambda rows, value: [r for r in rows if r.silo and r.silo.state == value],
            ),
            Choice(
                "contact",
                "Contact",
                (("in touch", "in touch"), ("silent", "silent"), ("never", "never yet")),
                lambda rows, value: [row for row in rows if row.contact == value],
            ),
        ),
        search=lambda rows, text: [
            row
            for row in rows
            if text.casefold() in row.organisation.name.casefold() or (row.silo and text.casefold() in row.silo.name)
        ],
        export_path=reverse("organisations:hospitals_csv"),
    )


def _silo(name: str) -> Silo:
    return get_object_or_404(Silo.objects.select_related("organisation", "confirmed_by"), name=name)


def _network(request: HttpRequest) -> bool:
    return request.person.has("admin", "auditor")


def _status(form: object) -> int:
    return 422 if getattr(form, "is_bound", False) else 200
