"""The node's page as an application in this process, and somebody who opens it in each role."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from silo_node.page import accounts, entries
from silo_node.page.app import make_app
from tests.silo_node.conftest import SiloUnderTest

PASSWORD = "a long enough password"
BASE = "http://localhost:8765"


class Visitor:
    """A browser as far as a test needs one: cookies, and the form token of the page that it saw last."""

    def __init__(self, app: Any) -> None:
        self.client = TestClient(app, base_url=BASE, follow_redirects=False, raise_server_exceptions=False)
        self.token = ""

    def get(self, path: str, **more: Any) -> Any:
        answer = self.client.get(path, **more)
        found = re.search(r'name="form_token" value="([^"]+)"', answer.text)
        self.token = found[1] if found else self.token
        return answer

    def post(self, path: str, headers: dict[str, str] | None = None, **fields: str) -> Any:
        data = {"form_token": self.token, **fields}
        return self.client.post(path, data=data, headers={"Origin": BASE, **(headers or {})})

    def sign_in(self, name: str, password: str = PASSWORD) -> Any:
        self.get("/sign-in")
        answer = self.post("/sign-in", name=name, password=password)
        if answer.status_code == 303:
            self.get("/")
        return answer


class PageUnderTest:
    """The page of a silo, with one user a role."""

    def __init__(self, silo: SiloUnderTest) -> None:
        self.silo = silo
        self.accounts = entries.opened(silo.config)
        self.accounts.add("it-nord", role="it", person="", password=PASSWORD)
        self.accounts.add("dr-steward", role="steward", person="Dr. Steward", password=PASSWORD)
        self.app = make_app(silo.config, self.accounts)

    def visitor(self, role: str = "nobody") -> Visitor:
        found = Visitor(self.app)
        if role != "nobody":
            assert found.sign_in({"it": "it-nord", "steward": "dr-steward"}[role]).status_code == 303
        return found


@pytest.fixture(autouse=True)
def cheap_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred sign-ins in these tests need not cost 32 MB and a tenth of a second each."""
    monkeypatch.setitem(accounts._SCRYPT, "n", 16)


@pytest.fixture
def page(silo: SiloUnderTest) -> Iterator[PageUnderTest]:
    under_test = PageUnderTest(silo)
    yield under_test
    under_test.accounts.close()
