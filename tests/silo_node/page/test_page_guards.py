"""What stands before every view: hosts, headers, cookies, form tokens, sizes, and the pause after wrong passwords."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from silo_node.config import Config
from silo_node.errors import Refused, UsageError
from silo_node.page import accounts as module
from silo_node.page import views_decide
from silo_node.page.accounts import SESSION_SECONDS, Accounts
from silo_node.page.app import MOST_FORM, make_app
from tests.silo_node.page.conftest import BASE, PASSWORD, PageUnderTest, Visitor

TEMPLATES = Path(module.__file__).parent / "templates"


@pytest.mark.parametrize("host", ["evil.example", "localhost:80", "127.0.0.1.evil.example:8765", "", "localhost"])
def test_a_name_that_is_not_ours_is_not_answered(page: PageUnderTest, host: str):
    answer = page.visitor().client.get("/sign-in", headers={"Host": host})
    assert answer.status_code == 421
    assert "form" not in answer.text
    assert "content-security-policy" in answer.headers


@pytest.mark.parametrize("host", ["localhost:8765", "127.0.0.1:8765", "LOCALHOST:8765"])
def test_our_own_names_are_answered(page: PageUnderTest, host: str):
    assert page.visitor().client.get("/sign-in", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("path", ["/sign-in", "/", "/nothing", "/static/node.css", "/static/none.css"])
def test_every_answer_carries_the_strict_headers(page: PageUnderTest, path: str):
    headers = page.visitor().client.get(path).headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "same-origin"
    assert "no-store" in headers["cache-control"] or path == "/static/node.css"


def test_no_template_holds_inline_code_or_another_hosts_address():
    for path in TEMPLATES.glob("*.html"):
        text = path.read_text()
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:|https?://|\|safe", text), path.name
        assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", text)), path.name


def test_the_session_cookie_is_hidden_from_scripts_and_other_sites(page: PageUnderTest):
    cookie = page.visitor().sign_in("it-nord").headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and f"Max-Age={SESSION_SECONDS}" in cookie


def test_with_a_certificate_the_cookie_needs_tls(silo):
    text = (silo.folder / "silo.toml").read_text()
    (silo.folder / "silo.toml").write_text(
        text.replace("off = true", 'host = "0.0.0.0"\nname = "silo.h.internal"\ntls_cert = "c.pem"\ntls_key = "k.pem"')
    )
    accounts = Accounts(silo.folder)
    accounts.add("it-nord", role="it", person="", password=PASSWORD)
    visitor = Visitor(make_app(silo.config, accounts))
    visitor.client.base_url = "https://silo.h.internal:8765"
    visitor.get("/sign-in")
    answer = visitor.post("/sign-in", {"Origin": "https://silo.h.internal:8765"}, name="it-nord", password=PASSWORD)
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("__Host-") and "; Secure" in cookie
    assert "strict-transport-security" in answer.headers
    accounts.close()


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_form_of_another_site_changes_nothing(page: PageUnderTest, headers: dict[str, str]):
    visitor = page.visitor("it")
    assert visitor.post("/sign-out", headers).status_code == 403
    assert visitor.get("/").status_code == 200


@pytest.mark.parametrize("token", ["", "x", "another-sessions"])
def test_a_form_without_this_sessions_token_changes_nothing(page: PageUnderTest, token: str):
    visitor = page.visitor("it")
    other = page.visitor("steward").token
    assert visitor.post("/sign-out", form_token=other if token == "another-sessions" else token).status_code == 403
    assert visitor.get("/").status_code == 200


def test_the_sign_in_form_needs_its_token_too(page: PageUnderTest):
    visitor = page.visitor()
    visitor.get("/sign-in")
    answer = visitor.post("/sign-in", form_token="other", name="it-nord", password=PASSWORD)
    assert answer.status_code == 403 and "consilium_node" not in answer.headers.get("set-cookie", "")


def test_a_form_that_is_too_long_is_not_read(page: PageUnderTest):
    visitor = page.visitor("it")
    assert visitor.post("/policy", policy="x" * MOST_FORM).status_code == 413


@pytest.mark.parametrize("digits", ["9" * 5000, "0" * 5000])
def test_a_number_of_many_digits_is_no_fault_of_the_program(page: PageUnderTest, digits: str):
    """Python refuses to read a number of more than 4,300 digits."""
    page.silo.portal.make_study()
    study = page.silo.portal.manifest.study
    visitor = page.visitor("steward")
    assert visitor.get(f"/images?page={digits}").status_code == 200
    assert visitor.get(f"/sent?page={digits}").status_code == 200
    with pytest.raises(UsageError, match="max rounds"):
        views_decide._number({"max_rounds": digits}, "max_rounds")
    visitor.get(f"/studies/{study}")
    assert visitor.post(f"/studies/{study}/decide", decision="approve", max_rounds=digits).status_code == 400


def test_only_forms_are_read(page: PageUnderTest):
    visitor = page.visitor("it")
    answer = visitor.client.post("/policy", json={"form_token": visitor.token}, headers={"Origin": BASE})
    assert answer.status_code == 413
    many = "&".join(f"a{number}=1" for number in range(100))
    form = {"Content-Type": "application/x-www-form-urlencoded", "Origin": BASE}
    assert visitor.client.post("/policy", content=many, headers=form).status_code == 413
    assert visitor.client.post("/policy", content=b"a=%ff\xff", headers=form).status_code == 413


def test_after_signing_in_one_goes_on_to_a_page_of_ours_only(page: PageUnderTest):
    for then, to in (
        ("/sent", "/sent"),
        ("//evil.example", "/"),
        ("https://evil.example", "/"),
        ("/\\evil.example", "/"),
    ):
        visitor = page.visitor()
        visitor.get("/sign-in")
        answer = visitor.post("/sign-in", name="it-nord", password=PASSWORD, then=then)
        assert answer.headers["location"] == to


def test_signing_out_ends_the_session_at_the_server(page: PageUnderTest):
    visitor = page.visitor("it")
    token = visitor.client.cookies["consilium_node"]
    assert visitor.post("/sign-out").status_code == 303
    visitor.client.cookies.set("consilium_node", token)
    assert visitor.get("/").status_code == 303


def test_a_new_password_ends_every_session_with_the_old_one(page: PageUnderTest):
    one, other = page.visitor("it"), page.visitor("it")
    one.get("/password")
    answer = one.post("/password", old=PASSWORD, new="another long password", again="another long password")
    assert answer.status_code == 303
    assert one.get("/").status_code == other.get("/").status_code == 303
    assert page.visitor().sign_in("it-nord").status_code == 403
    assert page.visitor().sign_in("it-nord", "another long password").status_code == 303


@pytest.mark.parametrize(
    ("old", "new", "again"),
    [
        ("wrong", "another long password", "another long password"),
        (PASSWORD, "short", "short"),
        (PASSWORD, "a" * 12, "b" * 12),
    ],
)
def test_a_password_is_changed_only_with_the_old_one_and_twice_the_same(
    page: PageUnderTest, old: str, new: str, again: str
):
    visitor = page.visitor("it")
    assert visitor.post("/password", old=old, new=new, again=again).status_code == 403
    assert visitor.get("/").status_code == 200


def test_a_fault_shows_no_text_of_its_own(page: PageUnderTest, monkeypatch):
    from silo_node.page import reading

    def broken(config):
        raise RuntimeError("PATIENT-4711")

    monkeypatch.setattr(reading, "consent", broken)
    answer = page.visitor("it").get("/consent")
    assert answer.status_code == 500 and "4711" not in answer.text


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.waited: list[float] = []

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clocked(tmp_path):
    clock = Clock()
    accounts = Accounts(tmp_path, clock=clock, wait=clock.waited.append)
    accounts.add("it-nord", role="it", person="", password=PASSWORD)
    yield accounts, clock
    accounts.close()


@pytest.mark.parametrize("name", ["it-nord", "nobody-there"])
def test_wrong_passwords_are_followed_by_a_pause_that_doubles(clocked, name: str):
    accounts, clock = clocked
    for _ in range(module.FREE_TRIES):
        with pytest.raises(Refused, match="do not fit"):
            accounts.sign_in(name, "wrong")
    for pause in (5.0, 10.0, 20.0):
        with pytest.raises(Refused, match="Too many"):
            accounts.sign_in(name, PASSWORD)  # the right one does not help either
        clock.now += pause - 0.1
        with pytest.raises(Refused, match="Too many"):
            accounts.sign_in(name, PASSWORD)
        clock.now += 0.2
        with pytest.raises(Refused, match="do not fit"):
            accounts.sign_in(name, "wrong")


def wrong(accounts: Accounts, name: str, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(Refused, match="do not fit"):
            accounts.sign_in(name, "wrong")


def test_one_accounts_pause_is_no_others_and_no_other_name_can_cause_it(clocked):
    accounts, _ = clocked
    accounts.add("dr-x", role="steward", person="Dr. X", password=PASSWORD)
    # A name without an account whose short digest is that of an account's.
    short = module._digest("dr-x")[: module.UNKNOWN_BYTES]
    alike = next(name for name in map(str, range(10**7)) if module._digest(name)[: module.UNKNOWN_BYTES] == short)
    for name in ("it-nord", alike):
        wrong(accounts, name, module.FREE_TRIES)
        with pytest.raises(Refused, match="Too many"):
            accounts.sign_in(name, PASSWORD)
    assert accounts.session(accounts.sign_in("dr-x", PASSWORD)).user.name == "dr-x"


def test_guesses_at_many_names_take_bounded_room(clocked, monkeypatch):
    monkeypatch.setattr(module, "UNKNOWN_BYTES", 1)
    accounts, clock = clocked
    for number in range(1500):
        clock.now += module.LONGEST_PAUSE
        wrong(accounts, f"nobody-{number}")
    wrong(accounts, "it-nord")
    (rows,) = accounts._db.execute("SELECT count(*) FROM tries").fetchone()
    assert 200 < rows <= 257


def test_many_wrong_passwords_slow_everybody_down_and_lock_nobody_else_out(clocked):
    accounts, clock = clocked
    for number in range(int(module.MANY_WRONG) + 1):
        assert clock.waited == []
        wrong(accounts, f"nobody-{number}")
    wrong(accounts, "yet-another")
    assert clock.waited == [module.SLOWER]
    assert accounts.session(accounts.sign_in("it-nord", PASSWORD)) is not None
    assert clock.waited == [module.SLOWER] * 2
    clock.now += (module.MANY_WRONG + 2) * module.FORGET_ONE
    accounts.sign_in("it-nord", PASSWORD)
    assert clock.waited == [module.SLOWER] * 2


def test_only_so_many_wait_for_their_turn_whatever_the_name(clocked):
    accounts, _ = clocked
    wrong(accounts, "nobody-there", module.FREE_TRIES)
    for _ in range(module.MOST_AT_ONCE):
        accounts._turns.acquire()
    for name in ("it-nord", "nobody-there"):
        with pytest.raises(Refused) as caught:
            accounts.sign_in(name, PASSWORD)
        assert caught.value.code == "SIGN_IN_BUSY"
    accounts._turns.release()
    assert accounts.sign_in("it-nord", PASSWORD)


def test_each_try_hashes_one_password_whether_name_pause_and_password_are_right_or_not(clocked, monkeypatch):
    """So no answer's time tells whether there is an account, or whether the password in a pause was the right one."""
    accounts, _ = clocked
    hashed = []
    monkeypatch.setattr(module, "_scrypt", lambda password, salt: hashed.append((len(password), len(salt))) or b"")

    def codes(name: str, password: str) -> str:
        with pytest.raises(Refused) as caught:
            accounts.sign_in(name, password)
        return caught.value.code

    for name in ("it-nord", "nobody-there", "", "x" * 5000):
        hashed.clear()
        found = [codes(name, PASSWORD) for _ in range(module.FREE_TRIES + 2)]
        assert found == ["SIGN_IN_WRONG"] * module.FREE_TRIES + ["SIGN_IN_PAUSED"] * 2
        assert hashed == [(len(PASSWORD), 16)] * len(found)
    hashed.clear()
    codes("nobody-else", "p" * 100_000)
    assert hashed == [(module.MOST_PASSWORD + 1, 16)]


def test_a_pause_begins_after_the_same_time_for_a_name_without_an_account(tmp_path):
    """Only an account's pause is noted in the silo's log: the time that this takes is waited for the others."""
    clock = Clock()
    accounts = Accounts(tmp_path, clock=clock, wait=clock.waited.append)
    accounts.add("it-nord", role="it", person="", password=PASSWORD)
    took = 0.3
    accounts._note = lambda event: time.sleep(took)
    wrong(accounts, "nobody-there", module.FREE_TRIES)
    wrong(accounts, "it-nord", module.FREE_TRIES)
    without, of_account = clock.waited
    assert of_account <= module.NOTED - took < without <= module.NOTED
    accounts.close()


def test_the_right_password_forgets_the_wrong_ones(clocked):
    accounts, _ = clocked
    for _ in range(3):
        for _ in range(module.FREE_TRIES - 1):
            with pytest.raises(Refused, match="do not fit"):
                accounts.sign_in("it-nord", "wrong")
        assert accounts.session(accounts.sign_in("it-nord", PASSWORD)).user.role == "it"


def test_a_session_is_over_after_its_hours_and_with_its_account(clocked):
    accounts, clock = clocked
    token = accounts.sign_in("it-nord", PASSWORD)
    clock.now += SESSION_SECONDS - 1
    assert accounts.session(token) is not None
    clock.now += 2
    assert accounts.session(token) is None
    again = accounts.sign_in("it-nord", PASSWORD)
    accounts.remove("it-nord")
    assert accounts.session(again) is None


def test_neither_password_nor_token_stands_in_the_file(clocked, tmp_path):
    accounts, _ = clocked
    token = accounts.sign_in("it-nord", PASSWORD)
    held = b"".join(path.read_bytes() for path in tmp_path.glob("page.db*"))
    assert PASSWORD.encode() not in held and token.encode() not in held
    assert (tmp_path / "page.db").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("name", "role", "person", "password"),
    [("A B", "it", "", PASSWORD), ("x", "admin", "", PASSWORD), ("x", "steward", "", PASSWORD), ("x", "it", "P", PASSWORD),
     ("x", "it", "", "short"), ("x", "it", "", "x" * 2000), ("it-nord", "it", "", PASSWORD)],
)  # fmt: skip
def test_an_account_that_makes_no_sense_is_refused(clocked, name: str, role: str, person: str, password: str):
    with pytest.raises(UsageError):
        clocked[0].add(name, role=role, person=person, password=password)


@pytest.mark.parametrize(
    "text",
    ['host = "0.0.0.0"', 'host = "10.0.0.5"\nname = "x.internal"', 'host = "::"',
     'host = "10.0.0.5"\ntls_cert = "a"\ntls_key = "b"',
     'name = "x.internal"', 'tls_cert = "a"', 'host = "silo.internal"', "port = 0", 'name = "A/B"', "extra = 1"],
)  # fmt: skip
def test_the_page_is_not_opened_to_other_machines_by_accident(silo, text: str):
    path = silo.folder / "silo.toml"
    path.write_text(path.read_text().replace("off = true", text))
    with pytest.raises(UsageError, match="page"):
        Config.load(silo.folder, {})
