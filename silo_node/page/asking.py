"""What a view is given and what it gives back; a view is a plain function from `Ask` to one of the answers below."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from silo_node.config import Config
from silo_node.page.accounts import Accounts, Session, User


@dataclass(frozen=True)
class Ask:
    """One request. path: the parts named in the route. query, form: the last value of each name. session: None before
    sign-in. token: the session's cookie.
    """

    config: Config
    accounts: Accounts
    address: str
    path: Mapping[str, str]
    query: Mapping[str, str]
    form: Mapping[str, str]
    session: Session | None
    token: str

    @property
    def user(self) -> User:
        """Who asks; only for views that need somebody."""
        assert self.session is not None, "the route lets nobody in who is not signed in"
        return self.session.user


@dataclass(frozen=True)
class Shown:
    """A page: a template and what it shows."""

    template: str
    values: Mapping[str, Any] = field(default_factory=dict)
    status: int = 200


@dataclass(frozen=True)
class Sent:
    """Go on to another page of ours. cookie: a new session's token, "" to end it, None to leave it."""

    to: str
    cookie: str | None = None


@dataclass(frozen=True)
class File:
    """Something to keep. content: bytes, or an iterator of them for what is long."""

    name: str
    kind: str
    content: Any


Answer = Shown | Sent | File
View = Callable[[Ask], Answer]
