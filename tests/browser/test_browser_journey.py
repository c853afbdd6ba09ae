"""The portal in a real browser: every page without a fault, narrow and dark, by keyboard, and the acts that people do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol.initial_model import initial_state
from protocol.model_state import TensorSpec
from tests.browser import browsing

pytestmark = pytest.mark.skipif(
    not browsing.EXECUTABLE.exists(), reason=f"no Chromium at {browsing.EXECUTABLE}: apt-get install chromium"
)

PAGES = {
    "ada": (
        "/", "/hospitals/", "/hospitals/north/", "/hospitals/new/", "/silos/site-1/", "/silos/site-5/confirm/",
        "/silos/invite/", "/studies/", "/studies/{waiting}/", "/studies/{running}/hospitals/", "/studies/{running}/rounds/",
        "/studies/{running}/rounds/13.1/", "/studies/{running}/rounds/5.2/", "/studies/{done}/results/",
        "/studies/{waiting}/review/approve/", "/studies/{running}/evidence/", "/policies/", "/evidence/",
        "/evidence/verify/", "/evidence/questions/", "/account/2fa/",
    ),
    "steward-north": ("/", "/policies/propose/", "/studies/{asked}/"),
    "rosa": ("/", "/studies/new/", "/studies/{draft}/", "/studies/{draft}/edit/", "/studies/{draft}/edit/json/",
             "/studies/{draft}/first-model/"),
}  # fmt: skip
STUDIES = {
    "waiting": "Pneumonia",
    "running": "Pleural",
    "done": "Cardiomegaly",
    "asked": "Catheter",
    "draft": "Nodules",
}


@pytest.fixture(scope="module")
def portal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, Any]]]:
    """A served portal with hospitals, studies and rounds: (address, accounts)."""
    home = tmp_path_factory.mktemp("portal")
    accounts = browsing.seed_portal(home)
    with browsing.served(home) as base:
        yield base, accounts


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsing.chromium() as found:
        yield found


@pytest.fixture(scope="module")
def sessions(portal: Any, browser: Any) -> dict[str, Any]:
    """Cookies of people who signed in through the real pages, with a code where their role needs one."""
    base, accounts = portal
    found = {}
    for name in PAGES:
        page = browsing.new_page(browser)
        secret = None if name == "rosa" else accounts["totp"]
        browsing.sign_in(page, base, name, accounts["password"], secret)
        found[name] = page.context.storage_state()
        page.context.close()
    return found


def _open(browser: Any, sessions: dict[str, Any], name: str, **look: Any) -> Any:
    return browsing.new_page(browser, state=sessions[name], **look)


def _ids(page: Any, base: str) -> dict[str, str]:
    page.goto(f"{base}/studies/")
    links = {key: page.locator("tbody th a", has_text=title) for key, title in STUDIES.items()}
    return {key: link.first.get_attribute("href").split("/")[2] if link.count() else "" for key, link in links.items()}


@pytest.mark.parametrize("look", [{}, {"narrow": True}, {"dark": True}], ids=["wide", "360-px", "dark"])
@pytest.mark.parametrize("name", list(PAGES))
def test_no_page_has_a_fault_or_scrolls_sideways(portal: Any, browser: Any, sessions: Any, name: str, look: Any):
    base, _ = portal
    page = _open(browser, sessions, name, **look)
    ids = _ids(page, base)
    for address in PAGES[name]:
        answer = page.goto(base + address.format(**ids))
        assert answer.status == 200, address
        assert browsing.accessibility_faults(page) == [], address
        assert browsing.sideways(page) == 0, f"{address} is wider than its window"
        assert page.faults == [], address
    page.context.close()


def test_a_model_larger_than_a_request_is_uploaded_in_pieces(portal: Any, browser: Any, sessions: Any, tmp_path: Path):
    base, _ = portal
    state = initial_state((TensorSpec("conv.weight", (2300, 1000)),), 5)
    state.save(tmp_path / "model.consilium")
    (tmp_path / "model.pt").write_bytes(b"\x80\x04 not a model" * 400_000)
    page = _open(browser, sessions, "rosa")
    page.goto(f"{base}/studies/{_ids(page, base)['draft']}/first-model/")
    pieces = []
    page.on("request", lambda request: pieces.append(request.url) if request.method == "POST" else None)
    page.locator("input[type=file]").set_input_files(tmp_path / "model.consilium")
    page.get_by_role("button", name="Upload and start from it").click()
    page.get_by_text("The model is stored, and the draft starts from it.").wait_for()
    assert page.get_by_text(state.digest).count() and len(pieces) == 4, pieces
    assert browsing.accessibility_faults(page) == [] and page.faults == []
    page.locator("input[type=file]").set_input_files(tmp_path / "model.pt")
    page.get_by_role("button", name="Upload and start from it").click()
    page.get_by_text("neither safetensors nor a raw state").first.wait_for()
    page.goto(page.url)
    page.get_by_role("button", name="Start from the seed").click()
    page.get_by_text("The draft starts from random numbers again.").wait_for()
    page.context.close()


def test_a_wrong_code_lets_nobody_in(portal: Any, browser: Any):
    base, accounts = portal
    page = browsing.new_page(browser)
    page.goto(f"{base}/account/login/")
    page.get_by_label("User name or e-mail").fill("cora")
    page.get_by_label("Password").fill(accounts["password"])
    page.keyboard.press("Enter")
    page.wait_for_url("**/2fa/authenticate/**")
    page.locator("input[name=code]").fill("000000")
    page.keyboard.press("Enter")
    page.get_by_role("alert").wait_for()
    page.goto(f"{base}/evidence/")
    assert "/evidence/" not in page.url and page.get_by_role("heading", name="Evidence").count() == 0
    page.context.close()


def test_the_first_tab_stop_skips_to_the_content(portal: Any, browser: Any, sessions: Any):
    base, _ = portal
    page = _open(browser, sessions, "ada")
    page.goto(f"{base}/studies/")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.evaluate("document.activeElement.getBoundingClientRect().top") >= 0, "it shows once it has the focus"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('main') !== null")
    page.context.close()


def test_times_are_in_the_readers_zone_with_utc_on_hover(portal: Any, browser: Any, sessions: Any):
    base, _ = portal
    page = _open(browser, sessions, "ada")
    page.goto(f"{base}/evidence/")
    shown = page.locator("time").first
    at = shown.get_attribute("datetime")
    expected = page.evaluate("at => new Date(at).toLocaleTimeString('en-GB', {hour: '2-digit', minute: '2-digit'})", at)
    assert expected in shown.inner_text()
    assert shown.get_attribute("title").endswith("UTC")
    page.context.close()


def test_the_lanes_of_an_open_round_refresh_themselves(portal: Any, browser: Any, sessions: Any):
    base, _ = portal
    page = _open(browser, sessions, "ada")
    ids = _ids(page, base)
    page.goto(f"{base}/studies/{ids['running']}/rounds/13.1/")
    with page.expect_response("**/rounds/13.1/live/") as answer:
        pass
    assert answer.value.status == 200
    page.locator("#round-live .lane svg[role=img]").nth(2).wait_for()
    assert page.faults == []
    page.context.close()


def test_a_policy_is_previewed_in_words_while_one_fills_it_in(portal: Any, browser: Any, sessions: Any):
    base, _ = portal
    page = _open(browser, sessions, "steward-north")
    page.goto(f"{base}/policies/propose/")
    page.get_by_label("Only not-for-profit organisations may use the data. (not-for-profit", exact=False).check()
    page.locator("#preview", has_text="not-for-profit").wait_for()
    assert not page.get_by_label("Only in these countries").is_visible()
    page.get_by_label("The data may be used only in the named countries", exact=False).check()
    page.get_by_label("Only in these countries").fill("de")
    page.get_by_role("button", name="Make the document").click()
    page.wait_for_url("**/policies/proposals/*/")
    assert "silo policy FOLDER" in page.inner_text("main")
    page.context.close()


def test_an_admin_approves_a_study_and_a_hospital_is_then_asked(portal: Any, browser: Any, sessions: Any):
    base, _ = portal
    page = _open(browser, sessions, "ada")
    ids = _ids(page, base)
    page.goto(f"{base}/")
    page.get_by_role("link", name="Pneumonia on portable chest X-rays").click()
    page.get_by_role("link", name="Approve version").click()
    page.get_by_label("Reason").fill("Clear purpose; no image leaves a hospital.")
    page.get_by_role("button", name="Approve version").click()
    page.wait_for_url(f"**/studies/{ids['waiting']}/")
    assert "each hospital now decides for itself" in page.inner_text("main")
    steward = _open(browser, sessions, "steward-north")
    steward.goto(f"{base}/")
    steward.get_by_role("link", name="Pneumonia on portable chest X-rays").click()
    assert f"silo approve FOLDER {ids['waiting']}" in steward.inner_text("main")
    assert steward.faults == [] and page.faults == []
    steward.context.close()
    page.context.close()


def test_a_page_prints_without_its_bars_and_buttons(portal: Any, browser: Any, sessions: Any):
    base, _ = portal
    page = _open(browser, sessions, "ada", dark=True)
    ids = _ids(page, base)
    page.goto(f"{base}/studies/{ids['done']}/results/")
    page.emulate_media(media="print")
    hidden = "e => [...document.querySelectorAll('.bar nav, .acts, .tabs')].every(e => getComputedStyle(e).display === 'none')"
    assert page.evaluate(hidden)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)", (
        "dark screens print on white"
    )
    page.context.close()


def test_the_security_policy_allows_no_inline_code(portal: Any, browser: Any, sessions: Any):
    base, _ = portal
    page = _open(browser, sessions, "ada")
    answer = page.goto(f"{base}/")
    policy = answer.headers["content-security-policy"]
    assert "unsafe" not in policy and "default-src 'none'" in policy
    page.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s); }"
    )
    assert page.evaluate("window.ran") is None
    page.context.close()
