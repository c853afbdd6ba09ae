"""The page as an ASGI application: what every request passes before a view sees it.

  1. The Host is ours (headers.py).
  2. The address is in routes.py, with this method.
  3. Who asks may open it: without a session to the sign-in page, with another role a refusal.
  4. What changes something: sent by a page of ours (Origin, Sec-Fetch-Site), small, and with the form token.
Only then the view runs, in a thread. An error of ours becomes a page with its sentence; another one a page without any.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, quote

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount
from starlette.routing import Route as Path_
from starlette.staticfiles import StaticFiles

from protocol.plain_text import visible
from silo_node import __version__
from silo_node.config import Config
from silo_node.errors import PortalError, SiloError, UsageError
from silo_node.page import start, words
from silo_node.page.accounts import SESSION_SECONDS, Accounts, Session
from silo_node.page.asking import Answer, Ask, File, Sent, Shown, View
from silo_node.page.headers import Guard
from silo_node.page.routes import ROUTES, Route
from silo_node.service import logs

MOST_FORM: Final = 400_000
"""Bytes of a form: a policy of the largest size, as it is written in a form."""
_HERE: Final = Path(__file__).parent
_SIGN_IN_COOKIE: Final = "sign_in_form"


def make_app(config: Config, accounts: Accounts) -> Guard:
    """The whole page for one silo."""
    page = _Pages(config, accounts)
    app = Starlette(
        routes=[
            *(Path_(route.path, page.endpoint(route), methods=_methods(route)) for route in ROUTES),
            Path_("/metrics", page.metrics, methods=["GET"]),
            Mount("/static", _Static(directory=_HERE / "static")),
        ],
        exception_handlers={HTTPException: page.no_such, Exception: page.fault},
    )
    return Guard(app, config.settings.page)


class _Static(StaticFiles):
    """Our own files; a browser may keep them for an hour."""

    def file_response(self, *given: Any, **more: Any) -> Response:
        response = super().file_response(*given, **more)
        response.headers["cache-control"] = "max-age=3600"
        return response


def _methods(route: Route) -> list[str]:
    return [name for name, view in (("GET", route.get), ("POST", route.post)) if view is not None]


class _Pages:
    def __init__(self, config: Config, accounts: Accounts) -> None:
        self._config = config
        self._accounts = accounts
        self._metrics_token = start.metrics_token(config)
        self._origin = config.settings.page.origin
        self._secure = bool(config.settings.page.tls_cert)
        self._cookie = "__Host-consilium_node" if self._secure else "consilium_node"
        self._templates = Environment(
            loader=PackageLoader("silo_node.page"),
            autoescape=select_autoescape(default=True, default_for_string=True),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            # What others wrote is shown as text that steers nothing.
            finalize=lambda value: visible(value) if type(value) is str else value,
        )
        self._templates.globals.update(words=words, version=__version__)
        self._templates.filters.update(words.FILTERS)

    def endpoint(self, route: Route) -> Callable[[Request], Awaitable[Response]]:
        """The steps 3 and 4, then the view."""

        async def answer(request: Request) -> Response:
            token = request.cookies.get(self._cookie, "")
            session = await run_in_threadpool(self._accounts.session, token) if token else None
            # 3
            role = session.user.role if session is not None else "nobody"
            if role not in route.roles:
                if session is None:
                    return self._to_sign_in(request)
                return self._refusal(
                    request, session, 403, "This page is for stewards.",
                    "A steward signs in with an account of their own: `silo page user add NAME --role steward`.",
                )  # fmt: skip
            # 4
            form: dict[str, str] = {}
            view: View | None = route.get
            if request.method == "POST":
                view = route.post
                why = self._foreign(request)
                if why is None:
                    try:
                        form = await _form(request)
                    except ClientDisconnect:
                        return Response(status_code=400)
                    except ValueError as error:
                        return self._refusal(request, session, 413, "The form could not be read.", str(error))
                    why = self._without_token(request, session, form)
                if why is not None:
                    return self._refusal(request, session, 403, "Nothing was changed.", why)
            assert view is not None
            ask = Ask(
                self._config,
                self._accounts,
                str(request.url.path),
                {name: str(value) for name, value in request.path_params.items()},
                dict(request.query_params),
                form,
                session,
                token,
            )
            try:
                found = await run_in_threadpool(view, ask)
                return await run_in_threadpool(self._response, request, session, found)
            except SiloError as error:
                return self._refusal(request, session, _status(error), error.sentence, code=error.code)

        return answer

    def _response(self, request: Request, session: Session | None, answer: Answer) -> Response:
        if isinstance(answer, Sent):
            response: Response = RedirectResponse(answer.to, status_code=303)
            if answer.cookie == "":
                response.delete_cookie(self._cookie, path="/", secure=self._secure, httponly=True, samesite="strict")
            elif answer.cookie is not None:
                self._set(response, self._cookie, answer.cookie)
            return response
        if isinstance(answer, File):
            name = {"content-disposition": f'attachment; filename="{answer.name}"'}
            return StreamingResponse(answer.content, media_type=answer.kind, headers=name)
        values = dict(answer.values)
        form = session.form if session is not None else secrets.token_urlsafe(32)
        text = self._templates.get_template(answer.template).render(
            config=self._config,
            user=session.user if session else None,
            form_token=form,
            here=request.url.path,
            **values,
        )
        response = HTMLResponse(text, status_code=answer.status)
        if session is None:
            # Before there is a session, the form's token is held against a cookie that no other site can set or read.
            self._set(response, _SIGN_IN_COOKIE, form)
        return response

    def _set(self, response: Response, name: str, value: str) -> None:
        response.set_cookie(
            name, value, max_age=SESSION_SECONDS, path="/", secure=self._secure, httponly=True, samesite="strict"
        )

    async def metrics(self, request: Request) -> Response:
        """For the hospital's Prometheus, which has a token instead of a session; no such address without one."""
        if self._metrics_token is None:
            return await self.no_such(request, HTTPException(404))
        given = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(given, b"Bearer " + self._metrics_token):
            return Response(status_code=401, headers={"www-authenticate": "Bearer"})
        from silo_node.health import metrics

        try:
            found = await run_in_threadpool(metrics.text, self._config)
        except SiloError as error:
            return Response(f"{error.code}\n", status_code=503, media_type="text/plain")
        return Response(found, media_type=metrics.CONTENT_TYPE)

    def _foreign(self, request: Request) -> str | None:
        """Why a form does not come from a page of ours; None where it does."""
        origin = request.headers.get("origin")
        ours = f"{'https' if self._secure else 'http'}://{request.headers['host'].lower()}"
        if request.headers.get("sec-fetch-site", "same-origin") != "same-origin" or (origin or ours).lower() != ours:
            return "The form was sent by a page of another address: open this page anew and try again."
        return None

    def _without_token(self, request: Request, session: Session | None, form: dict[str, str]) -> str | None:
        wanted = session.form if session is not None else request.cookies.get(_SIGN_IN_COOKIE, "")
        given = form.pop("form_token", "")
        if not wanted or not hmac.compare_digest(given.encode(), wanted.encode()):
            return "The form is from an earlier session: open the page anew and try again."
        return None

    def _to_sign_in(self, request: Request) -> Response:
        if request.url.path in ("/now",):
            return Response(status_code=401)
        then = request.url.path if request.method == "GET" and request.url.path != "/" else ""
        return RedirectResponse("/sign-in" + (f"?then={quote(then)}" if then else ""), status_code=303)

    def _refusal(
        self, request: Request, session: Session | None, status: int, title: str, change: str = "", code: str = ""
    ) -> Response:
        values = {"title": title, "change": change, "code": code}
        return self._response(request, session, Shown("refusal.html", values, status))

    async def no_such(self, request: Request, error: Exception) -> Response:
        """An address or a method that is not in the table."""
        token = request.cookies.get(self._cookie, "")
        session = await run_in_threadpool(self._accounts.session, token) if token else None
        status = error.status_code if isinstance(error, HTTPException) else 404
        title = "There is no such page." if status == 404 else "This can't be done here."
        return self._refusal(request, session, status, title, "Go on from one of the pages above.")

    async def fault(self, request: Request, error: Exception) -> Response:
        """A fault of the program: named in the log by its class only, since its text may hold what must not leave."""
        logs.get().error("page.fault", where=request.url.path.split("/")[1], why=type(error).__name__)
        return self._refusal(
            request, None, 500, "Something went wrong here.", "The silo goes on working. silo.log names the fault."
        )


def _status(error: SiloError) -> int:
    if isinstance(error, PortalError):
        return 503
    return 400 if isinstance(error, UsageError) else 409


async def _form(request: Request) -> dict[str, str]:
    """A form's fields, each once. Raises: ValueError."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise ValueError("It is not a form of this page.")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MOST_FORM:
            raise ValueError(f"It is longer than {MOST_FORM} bytes.")
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=64, errors="strict")
    except ValueError:
        raise ValueError("It holds more fields than any of ours, or is not UTF-8.") from None
    return dict(pairs)
