"""Whether the portal lives is answered to whoever asks, under whatever name; everything else keeps its host names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from django.test import Client

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def in_production(settings: Any) -> None:
    """What production.py sets and these addresses must not stumble over."""
    settings.ALLOWED_HOSTS = ["portal.example.org"]
    settings.SECURE_SSL_REDIRECT = True


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "elsewhere.example", "not a host"])
@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_health_is_answered_under_any_host_name(db: None, in_production: None, path: str, host: str):
    answer = Client().get(path, headers={"host": host})
    assert answer.status_code == 200, answer.content
    assert host.encode() not in answer.content
    assert answer.headers["Cache-Control"] == "no-store"


def test_what_is_missing_is_named(db: None, in_production: None, settings: Any, tmp_path: Path):
    settings.KEY_FOLDER = tmp_path
    answer = Client().get("/readyz", headers={"host": "10.0.0.1"})
    assert answer.status_code == 503 and answer.json() == {"status": "waiting", "missing": ["keys"]}


@pytest.mark.parametrize("path", ["/", "/healthz/", "/healthz/../", "/account/login/"])
def test_everything_else_still_refuses_an_unknown_host(db: None, in_production: None, path: str):
    assert Client().get(path, headers={"host": "127.0.0.1:8000"}).status_code == 400


def test_another_method_does_not_pass_the_host_check(db: None, in_production: None):
    assert Client().post("/healthz", headers={"host": "127.0.0.1:8000"}).status_code == 400


def test_the_container_asks_for_an_address_that_is_answered(db: None, in_production: None):
    """The health check of the compose file, with its own host and path."""
    compose = (ROOT / "docker" / "compose.portal.yml").read_text()
    (found,) = re.findall(r"urlopen\('http://([^/']+)(/[^']*)'", compose)
    assert Client().get(found[1], headers={"host": found[0]}).status_code == 200
