"""What every page's template may use."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.http import HttpRequest


def portal(request: HttpRequest) -> dict[str, Any]:
    """`portal_name` and `person` (portal.access.Person, None before the access check ran)."""
    return {"portal_name": settings.CONSILIUM_NAME, "person": getattr(request, "person", None)}
