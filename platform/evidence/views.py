"""Pages of the log: its entries, one entry with its proof, export, how to check all of it offline, and the questions."""

import json
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

from django.db import transaction
from django.db.models import Q, QuerySet
from django.http import FileResponse, Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views.decorators.http import require_GET, require_POST

from evidence import page_words, selectors, services
from evidence.models import Entry
from evidence.viewing import note_view
from portal.access import role_required
from portal.keys import log_vkey
from portal.listing import Choice, Listing, csv_answer, listing

_READERS = ("admin", "auditor", "steward", "researcher", "it")


@require_GET
@role_required(*_READERS)
def entries(request: HttpRequest) -> HttpResponse:
    """All entries, filtered, sorted and paged."""
    note_view(request.actor)
    context = {
        "listing": _listing(request),
        "checkpoint": selectors.newest_checkpoint(),
        "waiting": selectors.waiting_count(),
        "may_export": request.person.has("admin", "auditor"),
    }
    return render(request, "evidence/entries.html", context)


@require_GET
@role_required("admin", "auditor")
def entries_csv(request: HttpRequest) -> HttpResponse:
    """The filtered entries as CSV; recorded as an export."""
    rows = _listing(request).page.paginator.object_list
    with transaction.atomic():
        services.record(
            type="audit.exported",
            actor=request.actor,
            subject=services.Subject("log", "entries.csv"),
            data={"entries": rows.count()},
        )
    header = ("index", "time", "type", "outcome", "reasons", "actor", "role", "subject", "id", "version", "record")
    return csv_answer("entries.csv", header, _csv_rows(rows))


@require_GET
@role_required(*_READERS)
def entry(request: HttpRequest, pk: UUID) -> HttpResponse:
    """One entry: what it says, its bytes, and its proof."""
    note_view(request.actor)
    found = get_object_or_404(Entry, pk=pk)
    try:
        _, proof = services.proof_for(found)
    except services.NotPublished:
        proof = None
    may_read_private = request.person.has("admin", "auditor")
    context = {
        "entry": found,
        "says": page_words.type_word(found.type),
        "content": selectors.content(found),
        "record": json.dumps(selectors.content(found), indent=2, ensure_ascii=False),
        "proof": proof,
        "leaf_hash": bytes(found.leaf_hash).hex(),
        "private": found.private if may_read_private else None,
        "may_read_private": may_read_private,
    }
    return render(request, "evidence/entry.html", context)


@require_GET
@role_required(*_READERS)
def entry_record(request: HttpRequest, pk: UUID) -> HttpResponse:
    """The record's bytes, exactly as they stand in the log."""
    note_view(request.actor)
    found = get_object_or_404(Entry, pk=pk)
    return _download(bytes(found.record), f"{found.pk}.json", "application/json")


@require_GET
@role_required(*_READERS)
def entry_proof(request: HttpRequest, pk: UUID) -> HttpResponse:
    """The entry's proof in the newest checkpoint."""
    note_view(request.actor)
    found = get_object_or_404(Entry, pk=pk)
    try:
        _, proof = services.proof_for(found)
    except services.NotPublished as error:
        raise Http404("This entry is not in a checkpoint yet; it will be within seconds.") from error
    return _download(proof.encode(), f"{found.pk}.tlog-proof", "text/plain; charset=utf-8")


@require_GET
@role_required(*_READERS)
def verify(request: HttpRequest) -> HttpResponse:
    """The newest checkpoint, the export, and how to check both without the portal."""
    context = {
        "checkpoint": selectors.newest_checkpoint(),
        "waiting": selectors.waiting_count(),
        "vkey": log_vkey(),
        "may_export": request.person.has("admin", "auditor"),
    }
    return render(request, "evidence/verify.html", context)


@require_GET
@role_required(*_READERS)
def checkpoint(request: HttpRequest) -> HttpResponse:
    """The newest signed checkpoint, verbatim."""
    newest = selectors.newest_checkpoint()
    if newest is None:
        raise Http404("Nothing is published yet.")
    return _download(newest.note.encode(), "checkpoint", "text/plain; charset=utf-8")


@require_GET
@role_required(*_READERS)
def policy_file(request: HttpRequest) -> HttpResponse:
    """The policy file that a verifier needs: the log's key."""
    return _download(f"log {log_vkey()}\nquorum none\n".encode(), "policy", "text/plain; charset=utf-8")


@require_POST
@role_required("admin", "auditor")
def export(request: HttpRequest) -> HttpResponse:
    """The whole published log as a ZIP of the folder that `consilium-verify` checks; recorded as an export."""
    if selectors.newest_checkpoint() is None:
        return redirect(reverse("evidence:verify"))
    archive = tempfile.TemporaryFile()  # noqa: SIM115 - FileResponse closes it
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "log"
        services.export_log(target, actor=request.actor)
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
            for path in sorted(target.rglob("*")):
                if path.is_file():
                    zipped.write(path, f"consilium-log/{path.relative_to(target)}")
    archive.seek(0)
    return FileResponse(archive, as_attachment=True, filename="consilium-log.zip")


@require_GET
@role_required("auditor", "admin")
def questions(request: HttpRequest) -> HttpResponse:
    """What an auditor asks, and where each answer is."""
    found = [
        {
            "question": each,
            "pages": [(name, _entries_href(name)) for name in each.types],
            "page": reverse(each.page) if each.page else "",
        }
        for each in page_words.QUESTIONS
    ]
    return render(request, "evidence/questions.html", {"questions": found})


def _entries_href(name: str) -> str:
    if name == "denied":
        return f"{reverse('evidence:entries')}?outcome=denied"
    return f"{reverse('evidence:entries')}?q={name}"


def _listing(request: HttpRequest) -> Listing:
    return listing(
        request,
        Entry.objects.all(),
        sorts={"time": "time", "type": "type", "index": "index", "subject": "subject_id"},
        default="-time",
        filters=(
            Choice("group", "About", page_words.GROUPS, lambda rows, value: rows.filter(type__startswith=f"{value}.")),
            Choice(
                "outcome",
                "Outcome",
                (("success", "done"), ("denied", "denied"), ("failure", "failed")),
                lambda rows, value: rows.filter(outcome=value),
            ),
        ),
        search=_search,
        export_path=reverse("evidence:entries_csv") if request.person.has("admin", "auditor") else None,
    )


def _search(rows: QuerySet[Entry], text: str) -> QuerySet[Entry]:
    wanted = Q(type__startswith=text) | Q(subject_id__icontains=text) | Q(actor_id__icontains=text)
    # Only numbers that a log can have: other digits ("²") or thousands of them would be an error, not a search.
    if text.isascii() and text.isdigit() and len(text) <= 18:
        wanted |= Q(index=int(text))
    return rows.filter(wanted)


def _csv_rows(rows: QuerySet[Entry]) -> Iterator[tuple[object, ...]]:
    for each in rows.iterator():
        record = selectors.content(each)
        yield (
            each.index,
            record["time"],
            each.type,
            each.outcome,
            " ".join(record["reasons"]),
            each.actor_id,
            record["actor"]["role"],
            each.subject_kind,
            each.subject_id,
            record["subject"]["version"],
            bytes(each.record).decode(),
        )


def _download(body: bytes, name: str, kind: str) -> HttpResponse:
    return HttpResponse(body, content_type=kind, headers={"Content-Disposition": f'attachment; filename="{name}"'})
