"""Settings are checked at start, and a wrong one is named with what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from portal.settings import environment

ROOT = Path(__file__).resolve().parents[3]


def _start(tmp_path: Path, module: str = "production", **variables: str) -> subprocess.CompletedProcess[str]:
    """`manage.py check` in a clean environment."""
    clean = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    secret = tmp_path / "secret"
    secret.write_text("0123456789abcdef" * 4)
    whole = {
        "DJANGO_SETTINGS_MODULE": f"portal.settings.{module}",
        "CONSILIUM_HOME": str(tmp_path / "home"),
        "CONSILIUM_SECRET_KEY_FILE": str(secret),
        "ALLOWED_HOSTS": "portal.example.org",
        "BROKER_URL": "redis://127.0.0.1:6379/0",
        **variables,
    }
    return subprocess.run(
        [sys.executable, str(ROOT / "manage.py"), "check", "--deploy"],
        env={**clean, **{name: value for name, value in whole.items() if value}},
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        check=False,
    )


def test_production_settings_pass_djangos_deployment_checks(tmp_path):
    done = _start(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "security." not in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"CONSILIUM_HOME": ""}, "CONSILIUM_HOME"),
        ({"CONSILIUM_SECRET_KEY_FILE": ""}, "CONSILIUM_SECRET_KEY_FILE"),
        ({"CONSILIUM_SECRET_KEY_FILE": "/nowhere/key"}, "/nowhere/key"),
        ({"ALLOWED_HOSTS": ""}, "ALLOWED_HOSTS"),
        ({"ALLOWED_HOSTS": "*"}, "ALLOWED_HOSTS"),
        ({"BROKER_URL": ""}, "BROKER_URL"),
        ({"BROKER_URL": "amqp://x"}, "BROKER_URL"),
        ({"BROKER_URL": "memory://"}, "BROKER_URL"),
        ({"DATABASE_URL": "mysql://x/y"}, "DATABASE_URL"),
        ({"DATABASE_URL": "sqlite://relative.db"}, "DATABASE_URL"),
        ({"CONSILIUM_NAME": "Two Words+"}, "CONSILIUM_NAME"),
        ({"CONSILIUM_DEBUG": "1"}, "CONSILIUM_DEBUG"),
        ({"CONSILIUM_DEBUG": "perhaps"}, "CONSILIUM_DEBUG"),
    ],
    ids=lambda value: str(value),
)
def test_a_wrong_setting_is_named_at_start(tmp_path, variables, named):
    done = _start(tmp_path, **variables)
    assert done.returncode != 0
    assert named in done.stderr.splitlines()[-1], done.stderr[-400:]


def test_postgresql_is_chosen_by_url():
    found = environment.database("postgresql://me:p%40ss@db.example:5433/consilium?sslmode=require", synchronous="FULL")
    assert found["ENGINE"].endswith("postgresql") and found["NAME"] == "consilium"
    assert (found["USER"], found["PASSWORD"], found["HOST"], found["PORT"]) == ("me", "p@ss", "db.example", "5433")
    assert found["OPTIONS"] == {"sslmode": "require"}


def test_postgresql_by_socket_folder():
    found = environment.database("postgresql://me@/consilium?host=/run/postgresql", synchronous="FULL")
    assert found["HOST"] == "/run/postgresql" and "host" not in found["OPTIONS"]


def test_the_embedded_brokers_socket_becomes_an_address_for_redis():
    assert environment.redis_address("redis+socket:///run/v.sock?virtual_host=2") == "unix:///run/v.sock?db=2"
    assert environment.redis_address("redis://h:1/0") == "redis://h:1/0"
    assert environment.redis_address("memory://") is None


def test_two_processes_that_start_at_once_agree_on_one_secret_key(tmp_path):
    path = tmp_path / "keys" / "secret.key"
    first = environment.secret_key(default=path)
    assert environment.secret_key(default=path) == first
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_a_short_secret_key_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "short"
    path.write_text("short")
    monkeypatch.setenv("CONSILIUM_SECRET_KEY_FILE", str(path))
    with pytest.raises(ImproperlyConfigured, match="50 characters"):
        environment.secret_key()


def test_sqlite_writers_wait_instead_of_failing(settings):
    options = settings.DATABASES["default"]["OPTIONS"]
    if "sqlite" not in settings.DATABASES["default"]["ENGINE"]:
        pytest.skip("another database is under test")
    assert options["transaction_mode"] == "IMMEDIATE" and options["timeout"] >= 10
    assert "journal_mode=WAL" in options["init_command"]
