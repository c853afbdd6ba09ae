"""The portal as an ASGI application: long polls and event streams are plain functions, everything else is Django.

A waiting silo then costs a coroutine: 300 sleeping Django views held 305 threads, plain ASGI functions 11.
"""

import os
import re

from django.core.asgi import get_asgi_application
from django.utils.module_loading import import_string

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "portal.settings.demo")
django_application = get_asgi_application()

from portal.limits import limit_body  # noqa: E402 - settings must be there first

# (method, path) -> ASGI function. The first that matches answers.
DISPATCH = [
    ("GET", re.compile(r"/api/v1/silo/assignments"), import_string("federation.longpoll.application")),
    ("POST", re.compile(r"/api/v1/rounds/.+"), import_string("federation.node_app.application")),
    ("PUT", re.compile(r"/api/v1/rounds/.+"), import_string("federation.node_app.application")),
    ("GET", re.compile(r"/api/v1/(?:rounds|models)/.+"), import_string("federation.node_app.application")),
    ("GET", re.compile(r"/studies/[^/]+/events"), import_string("federation.stream.application")),
]


async def dispatch(scope, receive, send):
    """One request."""
    if scope["type"] == "http":
        for method, path, function in DISPATCH:
            if scope["method"] == method and path.fullmatch(scope["path"]):
                await function(scope, receive, send)
                return
    await django_application(scope, receive, send)


application = limit_body(dispatch)
