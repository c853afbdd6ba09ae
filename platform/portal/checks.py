"""System checks: what would make the portal unsafe or unable to start is said at start, in words."""

from __future__ import annotations

import shutil
from typing import Any

from django.conf import settings
from django.core.checks import Error, Warning, register

_FREE_BYTES = 500 * 2**20


@register()
def access_is_enforced(app_configs: Any, **kwargs: Any) -> list[Error]:
    """Without this middleware, `role_required` would only be a note."""
    if "portal.access.AccessMiddleware" in settings.MIDDLEWARE:
        return []
    return [
        Error("portal.access.AccessMiddleware is missing from MIDDLEWARE: no view would check roles.", id="portal.E001")
    ]


@register()
def disk_has_room(app_configs: Any, **kwargs: Any) -> list[Warning]:
    """Chunks of updates need room below CONSILIUM_HOME."""
    free = shutil.disk_usage(settings.CONSILIUM_HOME).free
    if free >= _FREE_BYTES:
        return []
    return [Warning(f"Only {free // 2**20} MiB are free in {settings.CONSILIUM_HOME}.", id="portal.W001")]
