"""Signing in at the real pages: password, second factor, lockout, and what the log keeps of it."""

from __future__ import annotations

import time

import pytest
from allauth.mfa.models import Authenticator
from allauth.mfa.totp.internal.auth import format_hotp_value, generate_totp_secret, hotp_value
from django.core.management import call_command
from django.test import Client

from evidence.models import Entry
from organisations.models import User
from organisations.services import account_create, role_grant
from portal.actors import SYSTEM
from portal.problems import Refused

pytestmark = pytest.mark.django_db
PASSWORD = "seven green bottles stand"
LOGIN = "/account/login/"


@pytest.fixture
def seed() -> str:
    return generate_totp_secret()


@pytest.fixture
def admin(seed) -> User:
    user = account_create(actor=SYSTEM, username="anna", password=PASSWORD, email="anna@example.org", totp_secret=seed)
    role_grant(actor=SYSTEM, user=user, role="admin")
    return user


def _code(seed: str) -> str:
    return format_hotp_value(hotp_value(seed, int(time.time()) // 30))


def _login(client: Client, password: str = PASSWORD, name: str = "anna"):
    return client.post(LOGIN, {"login": name, "password": password})


def test_the_password_alone_does_not_sign_an_admin_in(admin):
    client = Client()
    answer = _login(client)
    assert answer.status_code == 302 and answer.headers["Location"].startswith("/account/2fa/authenticate")
    assert "_auth_user_id" not in client.session
    assert not Entry.objects.filter(type="auth.login").exists()


def test_password_and_code_sign_in_and_the_log_says_how(admin, seed):
    client = Client()
    _login(client)
    before = client.session.session_key
    assert client.post("/account/2fa/authenticate/", {"code": _code(seed)}).status_code == 302
    assert client.session["_auth_user_id"] == str(admin.pk)
    assert client.session.session_key != before
    entry = Entry.objects.get(type="auth.login")
    assert entry.actor_id == str(admin.pk) and b"password+totp" in bytes(entry.record)
    assert b"anna" not in bytes(entry.record)


def test_a_code_counts_once(admin, seed):
    code = _code(seed)
    first, second = Client(), Client()
    for client in (first, second):
        _login(client)
    first.post("/account/2fa/authenticate/", {"code": code})
    second.post("/account/2fa/authenticate/", {"code": code})
    assert "_auth_user_id" in first.session and "_auth_user_id" not in second.session


def test_after_five_wrong_passwords_the_right_one_is_refused_too(admin):
    for _ in range(5):
        assert _login(Client(), "wrong password here").status_code == 200
    assert _login(Client()).status_code in (200, 429)
    assert Entry.objects.filter(type="auth.failed").count() == 1  # one a minute, whatever is tried
    assert b"wrong password" not in b"".join(bytes(entry.record) for entry in Entry.objects.all())


def test_a_name_without_an_account_is_not_kept(db):
    _login(Client(), name="my-secret-password-typed-here")
    entry = Entry.objects.get(type="auth.failed")
    assert b"secret" not in bytes(entry.record) and entry.private is None


def test_the_second_factors_seed_is_encrypted_in_the_database(admin, seed):
    assert seed not in str(Authenticator.objects.get(user=admin).data)


def test_nobody_signs_up(db):
    assert Client().get("/account/signup/").status_code == 403
    assert Client().post("/account/signup/", {"username": "x", "password1": PASSWORD}).status_code == 403
    assert not User.objects.exists()


@pytest.mark.parametrize("password", ["short", "password12345", "111111111111"])
def test_weak_passwords_are_refused_for_new_accounts(db, password):
    with pytest.raises(Refused, match="ACCOUNT"):
        account_create(actor=SYSTEM, username="bert", password=password)
    assert not User.objects.exists()


def test_the_command_makes_an_account_with_a_seed_that_signs_in(tmp_path, capsys, db):
    import json

    file = tmp_path / "password"
    file.write_text(PASSWORD)
    call_command("create_account", "anna", "--password-file", str(file), "--role", "admin", "--totp")
    made = json.loads(capsys.readouterr().out)
    client = Client()
    _login(client)
    client.post("/account/2fa/authenticate/", {"code": _code(made["totp_seed"])})
    assert client.session["_auth_user_id"] == made["user"]


def test_every_page_forbids_inline_code(db):
    policy = Client().get(LOGIN).headers["Content-Security-Policy"]
    assert "unsafe" not in policy and "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
