"""The node API for rounds and models as Django views; see api.py for what it does."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse

from federation.api import answer_for
from federation.selectors.assignments import assignments_answer
from portal.answers import node_view


def _node(request: HttpRequest, **_: str) -> HttpResponse:
    """Everything below rounds/ and models/."""
    answer = answer_for(
        silo=request.silo,  # type: ignore[attr-defined]
        method=request.method or "",
        path=request.path,
        query=request.META.get("QUERY_STRING", ""),
        body=request.body,
    )
    return HttpResponse(answer.body, content_type=answer.content_type, headers=answer.headers)


message = node_view("GET", "POST")(_node)
piece = node_view("PUT")(_node)
model = node_view("GET")(_node)


@node_view("GET")
def assignments(request: HttpRequest) -> HttpResponse:
    """The silo's open assignments at once; waiting for news is the long poll's (longpoll.py), which answers first."""
    fresh = not request.GET.get("after")
    body = assignments_answer(request.silo, fresh=fresh)[1]  # type: ignore[attr-defined]
    return HttpResponse(body, content_type="application/json")
