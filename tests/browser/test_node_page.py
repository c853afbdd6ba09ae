"""The node's page in a real browser: what it shows fits and stays at home, and a steward decides with a passkey."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from silo_node.steward import documents, policies, trust_changes
from tests.browser import node_page
from tests.browser.browsing import EXECUTABLE, accessibility_faults, chromium, new_page, sideways
from tests.silo_node.conftest import PASSPHRASE, SiloUnderTest, portal, silo  # noqa: F401

pytestmark = pytest.mark.skipif(not EXECUTABLE.exists(), reason="needs Debian's chromium")


@pytest.fixture
def base(silo: SiloUnderTest) -> Iterator[str]:  # noqa: F811
    address = node_page.prepare(silo)
    node_page.fill(silo)
    with node_page.served(silo, address):
        yield address


@pytest.fixture
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


def test_every_page_fits_names_its_parts_and_asks_no_other_host(browser: Any, base: str, silo: SiloUnderTest):  # noqa: F811
    found: dict[str, Any] = {}
    for width, dark in ((360, False), (360, True), (1440, False)):
        for role in node_page.USERS:
            page = new_page(browser, dark=dark)
            page.set_viewport_size({"width": width, "height": 900})
            asked: list[str] = []
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            node_page.sign_in(page, base, role)
            for name, (who, path) in node_page.pages(silo.portal.manifest.study).items():
                if who != role:
                    continue
                page.faults.clear()
                answer = page.goto(base + path)
                faults = [each for each in page.faults if answer.ok or "status of" not in each]
                faults += accessibility_faults(page)
                if sideways(page):
                    faults.append("scrolls sideways")
                if faults:
                    found[f"{name} {width}"] = faults
            assert [url for url in asked if not url.startswith(base + "/")] == []
            page.context.close()
    assert found == {}


def test_the_pages_can_be_used_by_keyboard(browser: Any, base: str):
    page = new_page(browser)
    page.goto(f"{base}/sign-in")
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.className") == "skip"
    node_page.sign_in(page, base, "it")
    page.locator("body").press("Tab")
    for wanted in ("/", "/", "/images"):  # after the link past the bar: the name, then the first two of the bar
        page.keyboard.press("Tab")
        assert page.evaluate("() => document.activeElement.getAttribute('href')") == wanted
    page.keyboard.press("Enter")
    page.wait_for_url(f"{base}/images")
    menu = page.locator("details[data-menu]")
    menu.locator("summary").press("Enter")
    assert menu.get_attribute("open") is not None
    page.keyboard.press("Escape")
    assert menu.get_attribute("open") is None


def test_an_open_status_page_shows_a_problem_within_five_seconds(browser: Any, base: str, silo: SiloUnderTest):  # noqa: F811
    page = new_page(browser)
    node_page.sign_in(page, base, "it")
    assert page.get_by_text("Nothing that this silo knows of").count() == 1
    silo.config.policy.unlink()
    page.get_by_text("POLICY_MISSING").wait_for(timeout=5000)


def test_a_steward_registers_a_passkey_and_decides_with_it(browser: Any, base: str, silo: SiloUnderTest):  # noqa: F811
    page = new_page(browser)
    node_page.authenticator(page)
    node_page.sign_in(page, base, "steward")
    study = silo.portal.manifest.study

    # A new passkey is a proposal only: it can't decide.
    page.goto(f"{base}/passkeys")
    page.get_by_role("button", name="Make a passkey").click()
    page.get_by_text("It counts for nothing yet").wait_for()
    page.goto(f"{base}/studies/{study}")
    assert page.get_by_role("button", name="Go on to sign").count() == 0

    # With the stewards' signatures it can. The page names what is signed before it asks for the passkey.
    signed_in_trust(silo)
    page.goto(f"{base}/studies/{study}")
    page.get_by_role("radio", name="Take an approval back").check()
    page.get_by_label("Reason").fill("the ethics board asked us to wait")
    page.get_by_role("button", name="Go on to sign").click()
    page.get_by_text("Exactly this is signed").wait_for()
    shown = page.locator("main").inner_text()
    assert silo.portal.manifest_digest in shown and "the ethics board asked us to wait" in shown
    assert [each["decision"] for each in silo.status()["approvals"]] == ["approve"]
    page.get_by_role("button", name="Take back the approval with my passkey").click()
    page.get_by_role("heading", name="Signed: taken back").wait_for()
    assert sorted(each["decision"] for each in silo.status()["approvals"]) == ["approve", "revoke"]
    assert "APPROVAL" not in page.locator("main").inner_text()

    # And the approval again, with a narrower limit; it reached the portal.
    page.goto(f"{base}/studies/{study}")
    page.get_by_role("radio", name="Approve").check()
    page.get_by_text("Narrower limits").click()
    page.get_by_label("Rounds at most").fill("1")
    page.get_by_role("button", name="Go on to sign").click()
    page.get_by_role("button", name="Approve with my passkey").click()
    page.get_by_role("heading", name="Signed: approved").wait_for()
    sent = [request for request in silo.portal.received if request.path.endswith("/approval")]
    assert len(sent) == 3
    last = documents.statements(silo.config, study)
    assert max(last, key=lambda each: each.time).limits.max_rounds == 1
    assert page.faults == []


def test_without_the_persons_verification_nothing_is_signed(browser: Any, base: str, silo: SiloUnderTest):  # noqa: F811
    page = new_page(browser)
    session, number = node_page.authenticator(page)
    node_page.sign_in(page, base, "steward")
    page.goto(f"{base}/passkeys")
    page.get_by_role("button", name="Make a passkey").click()
    page.get_by_text("It counts for nothing yet").wait_for()
    signed_in_trust(silo)
    page.goto(f"{base}/studies/{silo.portal.manifest.study}")
    page.get_by_role("radio", name="Take an approval back").check()
    page.get_by_label("Reason").fill("no")
    page.get_by_role("button", name="Go on to sign").click()
    session.send("WebAuthn.setUserVerified", {"authenticatorId": number, "isUserVerified": False})
    page.get_by_role("button", name="with my passkey").click()
    page.get_by_text("Nothing was signed.").wait_for()
    assert [each["decision"] for each in silo.status()["approvals"]] == ["approve"]


def test_a_steward_signs_policy_and_trust_with_a_passkey(browser: Any, base: str, silo: SiloUnderTest):  # noqa: F811
    page = new_page(browser)
    page.set_viewport_size({"width": 360, "height": 900})
    node_page.authenticator(page)
    node_page.sign_in(page, base, "steward")
    page.goto(f"{base}/passkeys")
    page.get_by_role("button", name="Make a passkey").click()
    page.get_by_text("It counts for nothing yet").wait_for()
    signed_in_trust(silo)

    # The policy: edited, seen in words, named exactly, signed.
    page.goto(f"{base}/policy")
    text = page.get_by_label("Policy as JSON")
    text.fill(json.dumps({**json.loads(text.input_value()), "permission": "DUO:0000006"}))
    page.get_by_role("button", name="Show it in words").click()
    page.get_by_role("button", name="Go on to sign").click()
    page.get_by_text("Exactly this is signed").wait_for()
    assert documents.read_envelope(silo.config.policy).digest not in page.locator("main").inner_text()
    assert accessibility_faults(page) == [] and not sideways(page)
    page.get_by_role("button", name="Sign the policy with my passkey").click()
    page.get_by_text("It is in force here now").wait_for()
    assert accessibility_faults(page) == [] and not sideways(page)
    assert policies.content(silo.config)["permission"] == "DUO:0000006"

    # The next trust.json: a further steward, signed and put in force.
    trust_changes.new_key(silo.config, person="Ben Example", passphrase=b"the passphrase of another")
    page.goto(f"{base}/passkeys")
    assert accessibility_faults(page) == [] and not sideways(page)
    page.get_by_role("button", name="Go on to sign the draft").click()
    page.get_by_role("button", name="Sign the draft with my passkey").click()
    page.get_by_text("Signed by enough people").wait_for()
    page.goto(f"{base}/passkeys")
    page.get_by_role("button", name="Put version 3 in force").click()
    page.get_by_role("heading", name="In force: who decides").wait_for()
    assert "Ben Example" in {key.person for key in documents.load_trust(silo.config).keys.values()}
    assert [each for each in page.faults if "status of" not in each] == []


def signed_in_trust(silo: SiloUnderTest) -> None:  # noqa: F811
    """The steward signs the draft with the new passkey, and puts it in force."""
    trust_changes.sign(silo.config, passphrase=PASSPHRASE)
    node = silo.node()
    trust_changes.apply(node)
    node.close()
