"""Take pictures of every page in light, dark and narrow, as every role. A tool for developers, not a test.

python tests/browser/look.py /tmp/pictures [only]      (seeds a portal of its own, serves it, and ends it)
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from browsing import accessibility_faults, chromium, new_page, seed_portal, served, sideways, sign_in


def main() -> None:
    """Seed, serve, look, end."""
    target = Path(sys.argv[1])
    only = re.compile(sys.argv[2] if len(sys.argv) > 2 else "")
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(os.environ.get("LOOK_HOME", folder))
        accounts = seed_portal(home)
        with served(home) as base, chromium() as browser:
            _look(browser, base, accounts, target, only)


def _look(browser: Any, base: str, accounts: dict[str, Any], target: Path, only: re.Pattern[str]) -> None:
    page = new_page(browser)
    _shoot(browser, page, base, {"signin": "/account/login/", "nobody-404": "/nothing/here/"}, target, only, None)
    for name, secret, pages in _tour(accounts):
        if not any(only.search(f"{name}-{each}") for each in pages):
            continue
        page = new_page(browser)
        sign_in(page, base, name, accounts["password"], secret)
        links = _links(page, base)
        wanted = {f"{name}-{key}": address.format(**links) for key, address in pages.items()}
        _shoot(browser, page, base, wanted, target, only, page.context.storage_state())
        page.context.close()


def _tour(accounts: dict[str, Any]) -> list[tuple[str, str | None, dict[str, str]]]:
    code = accounts["totp"]
    admin = {
        "waiting": "/", "hospitals": "/hospitals/", "hospital": "/hospitals/north/", "silo": "/silos/site-1/",
        "silo-silent": "/silos/site-4/", "confirm": "/silos/site-5/confirm/", "revoke": "/silos/site-1/revoke/",
        "invite": "/silos/invite/", "hospital-new": "/hospitals/new/", "studies": "/studies/", "study": "/studies/{waiting}/",
        "study-hospitals": "/studies/{running}/hospitals/", "review": "/studies/{waiting}/review/approve/",
        "pause": "/studies/{running}/pause/", "rounds": "/studies/{running}/rounds/",
        "round": "/studies/{running}/rounds/13.1/", "round-left-out": "/studies/{running}/rounds/12.1/",
        "round-unverified": "/studies/{running}/rounds/11.1/", "round-plain": "/studies/{done}/rounds/9.1/",
        "results-sketched": "/studies/{running}/results/", "round-failed": "/studies/{running}/rounds/5.2/",
        "results": "/studies/{done}/results/", "study-evidence": "/studies/{running}/evidence/", "paused": "/studies/{paused}/",
        "policies": "/policies/", "evidence": "/evidence/", "verify": "/evidence/verify/", "mfa": "/account/2fa/",
        "password": "/account/password/change/", "rollback": "{rollback}", "rollback-go": "{rollback}go-back/",
        "rollback-dismiss": "{rollback}dismiss/", "rollback-done": "{gone_back}",
    }  # fmt: skip
    return [
        ("ada", code, admin),
        ("steward-north", code, {"waiting": "/", "rollback-done": "{gone_back}",
                                 "study": "/studies/{asked}/", "hospitals": "/studies/{asked}/hospitals/",
                                 "propose": "/policies/propose/", "refused": "/silos/invite/"}),
        ("rosa", None, {"waiting": "/", "draft": "/studies/{draft}/", "edit": "/studies/{draft}/edit/",
                        "json": "/studies/{draft}/edit/json/", "new": "/studies/new/", "submit": "/studies/{draft}/submit/",
                        "rejected": "/studies/{rejected}/", "empty-rounds": "/studies/{draft}/rounds/",
                        "totp": "/account/2fa/totp/activate/", "results": "/studies/{done}/results/"}),
        ("ivan", None, {"waiting": "/"}),
        ("cora", code, {"waiting": "/", "questions": "/evidence/questions/", "entry": "{entry}",
                        "policy": "{policy}", "empty": "/studies/?q=nothing"}),
    ]  # fmt: skip


def _links(page: Any, base: str) -> dict[str, str]:
    """Study ids by what the seed calls them, and one entry and policy."""
    page.goto(f"{base}/studies/")
    titles = {"waiting": "Pneumonia", "running": "Pleural", "done": "Cardiomegaly", "asked": "Catheter", "paused": "Rib",
              "rejected": "Emphysema", "draft": "Nodules"}  # fmt: skip
    found = {"entry": "/evidence/", "policy": "/policies/"}
    for key, title in titles.items():
        link = page.locator("tbody th a", has_text=title)
        found[key] = link.first.get_attribute("href").split("/")[2] if link.count() else "none"
    for key, study in (("rollback", "running"), ("gone_back", "done")):
        page.goto(f"{base}/studies/{found[study]}/results/")
        link = page.locator(".note a", has_text="grounds")
        found[key] = link.first.get_attribute("href") if link.count() else "/"
    for key, place in (("entry", "/evidence/?q=study.approved"), ("policy", "/policies/")):
        if page.goto(f"{base}{place}").status == 200:
            link = page.locator("tbody td a, tbody th a")
            found[key] = link.first.get_attribute("href") if link.count() else found[key]
    return found


def _shoot(
    browser: Any, page: Any, base: str, wanted: dict[str, str], target: Path, only: re.Pattern[str], state: Any
) -> None:
    for narrow, dark, suffix in ((False, False, "light"), (False, True, "dark"), (True, False, "narrow")):
        looking = new_page(browser, narrow=narrow, dark=dark, state=state)
        for name, address in wanted.items():
            if not only.search(name):
                continue
            looking.faults.clear()
            answer = looking.goto(f"{base}{address}")
            looking.wait_for_load_state("load")
            if "propose" in name or "round" in name:
                looking.wait_for_timeout(700)
            faults = [each for each in looking.faults if answer.ok or "status of" not in each] + accessibility_faults(
                looking
            )
            looking.screenshot(path=str(target / f"{name}.{suffix}.png"), full_page=True)
            if wide := sideways(looking):
                faults.append(f"{wide} px too wide")
            said = f"{answer.status} {name}.{suffix}" + "".join(f"\n      {fault}" for fault in faults)
            sys.stdout.write(said + "\n")
            sys.stdout.flush()
        looking.context.close()


if __name__ == "__main__":
    main()
