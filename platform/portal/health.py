"""Is the portal alive, is it ready? For load balancers, for containers and for the demo's start."""

from __future__ import annotations

from collections.abc import Callable

import redis
from django.conf import settings
from django.db import DatabaseError, connection
from django.http import HttpRequest, HttpResponse, JsonResponse

from portal.access import public
from portal.keys import ANSWER_KEY


@public
def healthz(request: HttpRequest) -> JsonResponse:
    """The process answers."""
    return JsonResponse({"status": "ok"})


@public
def readyz(request: HttpRequest) -> JsonResponse:
    """Database, broker and keys are there: 200; otherwise 503 naming what is missing (and nothing more)."""
    missing = []
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError:
        missing.append("database")
    if settings.REDIS_ADDRESS is not None:
        try:
            redis.Redis.from_url(settings.REDIS_ADDRESS, socket_timeout=2).ping()
        except redis.RedisError:
            missing.append("broker")
    if not (settings.KEY_FOLDER / ANSWER_KEY).exists():
        missing.append("keys")
    status = 503 if missing else 200
    return JsonResponse({"status": "waiting" if missing else "ok", "missing": missing}, status=status)


class HealthMiddleware:
    """Answers these two before anything looks at the Host header: who checks health asks by address, not by name.

    Nothing of the request goes into the answer, so a forged Host changes nothing. Other methods go on to the checks.
    """

    sync_capable = True
    async_capable = False

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response
        self.views = {"/healthz": healthz, "/readyz": readyz}

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """The answer, or what comes next."""
        view = self.views.get(request.path_info)
        if view is None or request.method not in ("GET", "HEAD"):
            return self.get_response(request)
        return view(request)
