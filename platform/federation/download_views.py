"""A study's models as files, for its owner and the network's admins: safetensors, and the raw state beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from asgiref.sync import sync_to_async
from django.http import Http404, HttpRequest, StreamingHttpResponse
from django.shortcuts import get_object_or_404
from django.views.decorators.http import require_GET

from federation.models import GlobalModel
from federation.pages_selectors import models_of
from federation.services.export import safetensors_blocks, safetensors_size
from federation.services.models import PIECE
from federation.storage import model_path
from governance.views import study_for
from organisations.permissions import role_required
from portal.actors import Subject
from portal.denials import hidden
from protocol.model_state import StateError


@require_GET
@role_required("researcher", "admin")
def model(request: HttpRequest, pk: str, number: int) -> StreamingHttpResponse:
    """The raw state: the bytes whose SHA-256 is the digest in the log. A study can start from it again."""
    found = _model(request, pk, number)
    path = model_path(found.digest)
    return _file(_blocks(path), path.stat().st_size, f"{pk}-model-{number}.consilium")


@require_GET
@role_required("researcher", "admin")
def model_safetensors(request: HttpRequest, pk: str, number: int) -> StreamingHttpResponse:
    """The model as safetensors; its metadata name the study, the number and the digest of the raw state."""
    found = _model(request, pk, number)
    try:
        size = safetensors_size(found)
    except StateError as error:
        raise Http404("The file of this model can't be read on this portal.") from error
    return _file(safetensors_blocks(found), size, f"{pk}-model-{number}.safetensors")


def _model(request: HttpRequest, pk: str, number: int) -> GlobalModel:
    study = study_for(request, pk)
    if study.owner_id != request.user.pk and not request.person.has("admin"):
        hidden(request, Subject("study", pk), "NOT_OWNER")
        raise Http404("Models are for the study's owner and the network's admins.")
    found = get_object_or_404(models_of(study), number=number)
    if not model_path(found.digest).is_file():
        raise Http404("The file of this model is not on this portal any more.")
    return found


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(PIECE):
            yield block


def _file(blocks: Iterator[bytes], size: int, name: str) -> StreamingHttpResponse:
    answer = StreamingHttpResponse(_in_threads(blocks), content_type="application/octet-stream")
    answer["Content-Length"] = str(size)
    answer["Content-Disposition"] = f'attachment; filename="{name}"'
    return answer


async def _in_threads(blocks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """The blocks one at a time: under ASGI, Django would read a plain iterator to its end before it sends anything."""
    step = sync_to_async(next, thread_sensitive=False)
    while (block := await step(blocks, None)) is not None:
        yield block
