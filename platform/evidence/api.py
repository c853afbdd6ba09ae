"""The log for nodes and for everybody: read-only files, and each silo's own checkpoints as leaves."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse

from evidence.sequencer import CHECKPOINT_FILE, store
from evidence.silo_checkpoints import silo_checkpoint_receive
from portal.answers import node_view, read_json
from portal.problems import Refused
from protocol.transparency.tiles import parse_path

_ANY_STATE = ("pending", "active", "revoked")


@node_view("GET", "HEAD", states=_ANY_STATE, unsigned=True)
def checkpoint(request: HttpRequest) -> HttpResponse:
    """The newest signed checkpoint."""
    return _file(CHECKPOINT_FILE, "no-cache")


@node_view("GET", "HEAD", states=_ANY_STATE, unsigned=True)
def tile(request: HttpRequest, rest: str) -> HttpResponse:
    """A hash tile or an entry bundle; both never change once published."""
    path = f"tile/{rest}"
    if parse_path(path) is None:
        raise Refused("NOT_FOUND", "This is not the address of a tile.")
    return _file(path, "public, max-age=31536000, immutable")


@node_view("POST")
def silo_checkpoint(request: HttpRequest) -> dict[str, str]:
    """A silo's own log checkpoint, written into the portal's log."""
    body = read_json(request.body, limit=64 * 1024)
    note = body.get("note")
    if set(body) != {"note"} or not isinstance(note, str):
        raise Refused("BAD_MESSAGE", 'The body must be {"note": "<signed checkpoint>"}.')
    entry = silo_checkpoint_receive(silo=request.silo, note=note)
    return {"entry": str(entry.pk)}


def _file(path: str, caching: str) -> HttpResponse:
    data = store().read(path)
    if data is None:
        raise Refused("NOT_FOUND", "There is no such file in the log.")
    kind = "text/plain; charset=utf-8" if path == CHECKPOINT_FILE else "application/octet-stream"
    return HttpResponse(data, content_type=kind, headers={"Cache-Control": caching})
