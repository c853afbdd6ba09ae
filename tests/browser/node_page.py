"""The node's page, served by its own process on a free port, for the browser tests and for whoever wants to look.

python tests/browser/node_page.py /tmp/pictures        pictures of every page at 360 and 1440 px, light and dark
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from demo.processes import free_port
from silo_node.page.accounts import Accounts
from tests.browser.browsing import answering
from tests.silo_node.conftest import SiloUnderTest
from tests.silo_node.imaging.conftest import write_dicom, write_table

PASSWORD = "a long enough password"
USERS = {"it": ("it-nord", ""), "steward": ("dr-steward", "Dr. Steward")}


def prepare(silo: SiloUnderTest) -> str:
    """A user a role, and a free port in the settings; the page's address."""
    path = silo.folder / "silo.toml"
    port = free_port()
    path.write_text(path.read_text().replace("off = true", f"port = {port}"))
    accounts = Accounts(silo.folder)
    for role, (name, person) in USERS.items():
        accounts.add(name, role=role, person=person, password=PASSWORD)
    accounts.close()
    return f"http://localhost:{port}"


@contextmanager
def served(silo: SiloUnderTest, base: str) -> Iterator[str]:
    """`silo page` until the end; yields its address."""
    command = [sys.executable, "-m", "silo_node.cli", "page", "--folder", str(silo.folder)]
    asked = f"{base.replace('localhost', '127.0.0.1')}/sign-in"
    with answering(command, asked, log=silo.folder / "page.log"):
        yield base


def sign_in(page: Any, base: str, role: str) -> None:
    """Through the real form."""
    page.goto(f"{base}/sign-in")
    page.get_by_label("Name").fill(USERS[role][0])
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{base}/")


def authenticator(page: Any) -> Any:
    """A virtual security key with user verification, for this page only; returns its CDP session and id."""
    session = page.context.new_cdp_session(page)
    session.send("WebAuthn.enable")
    made = session.send(
        "WebAuthn.addVirtualAuthenticator",
        {
            "options": {
                "protocol": "ctap2",
                "transport": "internal",
                "hasResidentKey": True,
                "hasUserVerification": True,
                "isUserVerified": True,
                "automaticPresenceSimulation": True,
            }
        },
    )
    return session, made["authenticatorId"]


def pages(study: str) -> dict[str, tuple[str, str]]:
    """name -> (role, path) of every page that a picture is taken of."""
    return {
        "status": ("it", "/"),
        "images": ("it", "/images"),
        "images-one-problem": ("it", "/images?problem=NOT_DICOM"),
        "images-steward": ("steward", "/images"),
        "policy": ("steward", "/policy"),
        "consent": ("it", "/consent"),
        "studies": ("steward", "/studies"),
        "study": ("steward", f"/studies/{study}"),
        "study-it": ("it", f"/studies/{study}"),
        "passkeys": ("steward", "/passkeys"),
        "budget": ("it", "/budget"),
        "sent": ("it", "/sent"),
        "sent-empty": ("it", "/sent?kind=none"),
        "check": ("it", "/check"),
        "password": ("it", "/password"),
        "refused": ("it", "/passkeys"),
        "missing": ("it", "/nothing"),
    }


def _look(target: Path) -> None:
    import tempfile

    from tests.browser.browsing import accessibility_faults, chromium, new_page, sideways
    from tests.silo_node.portal_double import PortalDouble

    target.mkdir(parents=True, exist_ok=True)
    portal = PortalDouble()
    with tempfile.TemporaryDirectory() as folder:
        silo = SiloUnderTest(Path(folder) / "silo", portal)
        silo.enrol()
        base = prepare(silo)
        silo.policy()
        fill(silo)
        with served(silo, base), chromium() as browser:
            states = {}
            for role in USERS:
                page = new_page(browser)
                sign_in(page, base, role)
                if role == "it":
                    page.goto(f"{base}/check")
                    page.get_by_role("button", name="Check now").click()
                    page.get_by_text("Checked").wait_for()
                states[role] = page.context.storage_state()
            for width, dark in ((1440, False), (1440, True), (360, False)):
                for name, (role, path) in {**pages(portal.manifest.study), "sign-in": ("", "/sign-in")}.items():
                    page = new_page(browser, dark=dark, state=states.get(role))
                    page.set_viewport_size({"width": width, "height": 900})
                    page.goto(base + path)
                    faults = [*page.faults, *accessibility_faults(page)]
                    if wide := sideways(page):
                        faults.append(f"{wide} px too wide")
                    page.screenshot(path=str(target / f"{name}.{width}{'.dark' if dark else ''}.png"), full_page=True)
                    sys.stdout.write(f"{name} {width} {faults or ''}\n")
                    page.context.close()
        silo.close()
    portal.close()


def fill(silo: SiloUnderTest) -> None:
    """A study that is decided about, a folder with files that are no images, an opt-out list."""
    data = silo.config.data
    for number in range(3):
        (data / f"note-{number}").write_bytes(b"not DICOM at all")
    (data / "cut.dcm").write_bytes(b"\0" * 128 + b"DICM\x02\x00")
    names = [write_dicom(data / f"p{number}.dcm", patient=f"P-{number}").name for number in range(1, 6)]
    write_table(data / "labels.csv", [(f"P-{number}", 1, "train", name) for number, name in enumerate(names, 1)])
    scanned = silo.command("scan", str(silo.folder), "--json")
    assert scanned.returncode == 0, scanned.stdout + scanned.stderr
    (silo.folder / "opt_out.csv").write_text("PatientID,date\nP-1,2026-01-01\n")
    silo.portal.make_study()
    silo.decide()


if __name__ == "__main__":
    _look(Path(sys.argv[1]))
