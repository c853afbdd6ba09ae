"""A whole network on one machine, built through the doors that people use: pages, the `silo` command, signed requests."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.hospital import Hospital
from demo.people import PageError, Person, values
from demo.portal import Portal
from demo.processes import end_all
from demo.study import policy

COUNTRIES = ("DE", "FR", "NL", "SE", "AT", "IT", "ES", "PL", "DK", "FI")


class StudyStopped(RuntimeError):
    """A study came to an end, or to a stop, before what was waited for; the message carries the portal's reasons."""


@dataclass(frozen=True)
class Account:
    """What a person types at the portal's sign-in page."""

    role: str
    username: str
    password: str
    totp_seed: str | None


class Network:
    """A portal, one silo for each folder of `data` (hospital name -> DICOM folder), and the people who decide."""

    def __init__(
        self,
        folder: Path,
        data: Mapping[str, Path],
        *,
        port: int | None = None,
        min_cohort: int = 1,
        networks: tuple[str, ...] = ("Classifier",),
        lean: bool = False,
        portal_env: Mapping[str, str] | None = None,
        silo_env: Mapping[str, str] | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.folder = folder
        self.portal = Portal(folder / "portal", port=port, extra_env=portal_env)
        self.min_cohort = min_cohort
        self.networks = networks
        self.lean = lean  # without the accounts and pages that a benchmark does not need
        self.say = say
        self.accounts: dict[str, Account] = {}
        self.hospitals = [
            Hospital(
                name=name,
                title=_title(name),
                country=COUNTRIES[number % len(COUNTRIES)],
                folder=folder / "silos" / name,
                data=path,
                portal=self.portal.address,
                extra_env=({"SILO_PAGE_OFF": "true"} if lean else {}) | dict(silo_env or {}),
            )
            for number, (name, path) in enumerate(data.items())
        ]
        self._people: dict[str, Person] = {}

    # -- Building it ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Portal and admin; hospitals registered, their silos enrolled, confirmed, scanned, with a signed policy, running."""
        with ThreadPoolExecutor(2 * max(2, os.cpu_count() or 2)) as pool:
            made = {hospital.name: pool.submit(hospital.init) for hospital in self.hospitals}
            self.portal.start_broker()
            self.portal.start_web()  # it needs no database until somebody asks for a page
            self._make_accounts([("admin", "admin", None)], prepare=True)
            self.portal.start_worker()
            self.portal.wait_web()
            self.say(f"the portal answers at {self.portal.address}")
            admin = self.person("admin")

            def enrol(hospital: Hospital, token: str) -> None:
                made[hospital.name].result()
                hospital.enrol(token)
                hospital.scan()

            enrolled = {}
            for hospital in self.hospitals:
                enrolled[hospital.name] = pool.submit(enrol, hospital, self._register(admin, hospital))
            people = pool.submit(self._make_accounts, self._others())
            for hospital in self.hospitals:
                enrolled[hospital.name].result()
                hospital.start()
                self._confirm(admin, hospital)
            self.say(f"{len(self.hospitals)} hospitals are registered; two people compared each silo's fingerprint")
            list(pool.map(self._make_ready, self.hospitals))
            self.say("every hospital has scanned its folder and signed its data-use policy")
            people.result()

    def _others(self) -> list[tuple[str, str, str | None]]:
        """(role, user name, hospital) of everybody but the admin."""
        found: list[tuple[str, str, str | None]] = [("researcher", "researcher", self.hospitals[0].name)]
        if not self.lean:
            found += [("auditor", "auditor", None)]
            found += [("steward", f"steward.{hospital.name}", hospital.name) for hospital in self.hospitals]
        return found

    def _make_accounts(self, wanted: list[tuple[str, str, str | None]], *, prepare: bool = False) -> None:
        plan = []
        for role, username, hospital in wanted:
            password = secrets.token_urlsafe(12)
            file = self.folder / "passwords" / username
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file.touch(mode=0o600)
            file.write_text(password)
            plan.append(
                {
                    "username": username,
                    "password_file": str(file),
                    "role": role,
                    "organisation": _slug(hospital) if hospital else None,
                    "totp": role in ("admin", "steward", "auditor"),
                }
            )
        printed = self.portal.accounts(plan, prepare=prepare)
        for row, (role, username, _) in zip(printed, wanted, strict=True):
            password = (self.folder / "passwords" / username).read_text()
            self.accounts[username] = Account(role, username, password, row["totp_seed"])

    def person(self, username: str) -> Person:
        """A signed-in session of an account, at the real sign-in page."""
        if username not in self._people:
            account = self.accounts[username]
            person = Person(self.portal.address, username, account.password, account.totp_seed)
            person.sign_in()
            self._people[username] = person
        return self._people[username]

    def _register(self, admin: Person, hospital: Hospital) -> str:
        admin.submit(
            "/hospitals/new/",
            {
                "name": hospital.title,
                "slug": _slug(hospital.name),
                "country": hospital.country,
                "contact_email": "",
                "non_profit": "on",
            },
        )
        page = admin.submit("/silos/invite/", {"organisation": _slug(hospital.name), "name": hospital.name})
        return values(page)["token"]

    def _confirm(self, admin: Person, hospital: Hospital) -> None:
        admin.submit(f"/silos/{hospital.name}/confirm/", {"fingerprint": hospital.fingerprint})

    def _make_ready(self, hospital: Hospital) -> None:
        hospital.send_policy(
            policy(silo=hospital.name, organisation=hospital.title, min_cohort=self.min_cohort, networks=self.networks)
        )

    # -- A study -------------------------------------------------------------------------------------------------------

    def run_study(self, draft: Mapping[str, Any]) -> str:
        """Drafts, submits, approves in the portal and at every hospital; answers the study's id. It then runs by itself."""
        study = self.submit(draft)
        self.approve_in_portal(study)
        declined = self.hospitals_decide(study)
        if declined:
            raise StudyStopped(f"hospitals declined: {declined}")
        return study

    def submit(self, draft: Mapping[str, Any]) -> str:
        """The researcher's part."""
        researcher = self.person("researcher")
        page = researcher.submit("/studies/new/", {"template": "chest", "title": draft["title"]})
        study = page.url.path.split("/")[2]
        if not study.startswith("st-"):
            raise PageError(f"the draft was not taken; the page is {page.url.path}")
        researcher.submit(f"/studies/{study}/edit/json/", {"document": json.dumps(draft)})
        researcher.submit(f"/studies/{study}/submit/", {})
        self.say(f"study {study} is submitted; its manifest cannot change any more")
        return study

    def approve_in_portal(self, study: str) -> None:
        """The network admin's part, with a reason; the session has the second factor."""
        self.person("admin").submit(
            f"/studies/{study}/review/approve/",
            {"reason": "Purpose, cohort and protection are in order; the ethics reference was checked."},
        )
        self.say("the network's admin approved it, with a reason")

    def hospitals_decide(self, study: str) -> dict[str, str]:
        """Each hospital approves at its own node, or declines where its own rules forbid it; answers the reasons of those."""
        declined: dict[str, str] = {}

        def decide(hospital: Hospital) -> None:
            why = hospital.decide(study)
            if why is not None:
                declined[hospital.name] = why
                hospital.decide(study, reject=why)

        with ThreadPoolExecutor(max(2, os.cpu_count() or 2)) as pool:
            list(pool.map(decide, self.hospitals))
        return declined

    def report(self, study: str) -> dict[str, Any]:
        """What the portal knows of a study, as the researcher may see it."""
        return self.person("researcher").json(f"/studies/{study}/report.json")

    def wait_for(
        self,
        study: str,
        done: Callable[[dict[str, Any]], bool],
        *,
        seconds: float,
        each: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """Follows the study until `done(report)`; raises StudyStopped, or ProcessFailed for a dead process."""
        until = time.monotonic() + seconds
        while True:
            self.check()
            report = self.report(study)
            if each:
                each(report)
            if done(report):
                return report
            if report["state"] in ("paused", "stopped", "rejected", "withdrawn", "expired", "completed"):
                raise StudyStopped(
                    f"study {study} is {report['state']}: {report.get('reason') or 'no reason was given'}"
                )
            if time.monotonic() > until:
                raise StudyStopped(
                    f"study {study} is still {report['state']} after {seconds:.0f} s: {json.dumps(report)[-2000:]}"
                )
            time.sleep(0.5)

    # -- Watching and ending -------------------------------------------------------------------------------------------

    def portal_pids(self) -> list[int]:
        return [process.pid for process in (self.portal.web, self.portal.worker) if process is not None]

    def pids(self) -> list[int]:
        return self.portal_pids() + [
            hospital.process.pid for hospital in self.hospitals if hospital.process is not None
        ]

    def check(self) -> None:
        """Raises ProcessFailed when a process that should run has ended."""
        self.portal.check()
        for hospital in self.hospitals:
            if hospital.process is not None:
                hospital.process.check()

    def stop(self) -> None:
        """Ends every process; silos first, so that they can still tell the portal."""
        for person in self._people.values():
            person.close()
        self._people.clear()
        end_all([hospital.process for hospital in self.hospitals if hospital.process is not None])
        self.portal.stop()


def _slug(name: str) -> str:
    return name.replace("_", "-")


def _title(name: str) -> str:
    return "Hospital " + name.replace("_", " ").replace("-", " ")
