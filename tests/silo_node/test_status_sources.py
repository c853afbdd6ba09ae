"""What is wrong with the consents, the opt-out list and the PACS is in `silo status` within five seconds, before a round.

As in test_status_faults.py, the faults are planted while `silo run` runs: folders go, files break, servers are killed.
"""

from __future__ import annotations

import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from silo_node.consent import asked
from silo_node.consent.sources import ConsentError
from silo_node.health import doctor
from tests.silo_node.consent.fhir_examples import consent, gics
from tests.silo_node.pacs.conftest import Liar
from tests.silo_node.test_status_faults import over, problems, started, told

HOUR = 3600.0
SECRET = "anna-secret"


def add(silo: Any, text: str) -> None:
    """To silo.toml."""
    path = silo.folder / "silo.toml"
    path.write_text(f"{path.read_text()}\n{text}\n")


def ago(path: Any, hours: float) -> None:
    """As if last read then."""
    os.utime(path, (time.time() - hours * HOUR,) * 2)


@pytest.fixture
def consents(silo, tmp_path):
    """A folder with one consent, read once."""
    folder = tmp_path / "consents"
    folder.mkdir()
    (folder / "1.json").write_text(json.dumps(consent(gics(), SECRET)))
    add(silo, f'[consent]\nsource = "folder"\npath = "{folder}"')
    read(silo)
    return folder


def read(silo: Any) -> None:
    """As a round does before it begins."""
    assert silo.command("consent", "status", "--folder", str(silo.folder)).returncode in (0, 2, 3)


def test_status_says_that_the_folder_of_consents_is_gone(silo, consents):
    started(silo)
    planted = time.monotonic()
    consents.rename(consents.with_name("elsewhere"))
    assert "silo consent status" in told(silo, "CONSENT_MISSING", planted)["do"]
    assert set(problems(silo)) == {"CONSENT_MISSING"}, "what was read an hour ago still holds for long"
    consents.with_name("elsewhere").rename(consents)
    over(silo, "CONSENT_MISSING")


def test_status_says_that_a_consent_cant_be_read_and_names_nobody(silo, consents):
    started(silo)
    planted = time.monotonic()
    (consents / f"{SECRET}.json").write_text("{")
    found = told(silo, "CONSENT_MALFORMED", planted)
    assert "file 2" in found["sentence"] and SECRET not in (silo.folder / "status.json").read_text()
    (consents / f"{SECRET}.json").write_text(json.dumps(consent(gics(), SECRET, "2024-01-01")))
    over(silo, "CONSENT_MALFORMED")


def test_status_says_that_the_opt_out_list_is_broken_and_names_nobody(silo):
    path = silo.folder / "opt_out.csv"
    path.write_text(f"PatientID,date\n{SECRET},2026-01-01\n")
    started(silo)
    planted = time.monotonic()
    path.write_text(f"PatientID,date\n{SECRET},yesterday\n")
    assert "line 2" in told(silo, "OPT_OUT_MALFORMED", planted)["sentence"]
    assert SECRET not in (silo.folder / "status.json").read_text()
    path.write_text(f"PatientID,date\n{SECRET},2026-01-01\n")
    over(silo, "OPT_OUT_MALFORMED")


@pytest.mark.parametrize(("hours", "code"), [(20, "CONSENT_STALE_SOON"), (25, "CONSENT_STALE")])
def test_status_says_that_what_was_read_of_the_consents_is_old(silo, consents, hours, code):
    """The source has been away all the time; the kept reading grows old by itself."""
    (consents / "1.json").unlink()
    consents.rmdir()
    started_with_fault(silo, "CONSENT_MISSING")
    assert code not in problems(silo)
    planted = time.monotonic()
    ago(silo.config.consent_kept, hours)
    assert "UTC" in told(silo, code, planted)["sentence"]
    assert problems(silo)["CONSENT_MISSING"]["do"], "and why it could not be read since"
    ago(silo.config.consent_kept, 1)
    over(silo, code)


@pytest.mark.parametrize(("hours", "code"), [(20, "OPT_OUT_STALE_SOON"), (25, "OPT_OUT_STALE")])
def test_status_says_that_what_was_read_of_the_opt_out_list_is_old(silo, hours, code):
    path = silo.folder / "opt_out.csv"
    path.write_text(f"PatientID,date\n{SECRET},2026-01-01\n")
    read(silo)
    started(silo)
    planted = time.monotonic()
    path.unlink()
    told(silo, "OPT_OUT_MISSING", planted)
    planted = time.monotonic()
    ago(silo.config.consent_kept_list, hours)
    told(silo, code, planted)


def started_with_fault(silo: Any, code: str) -> None:
    """`silo run`, with one thing wrong from the start."""
    silo.start()
    path = silo.folder / "status.json"
    silo.until(lambda: path.exists() and code in problems(silo))


# --- servers


class Fhir:
    """A FHIR server with one consent, that can be killed and started again."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.pages: dict[str, Any] = {"/fhir/Consent?_count=1": ([consent(gics(), "1")], None)}
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/fhir/Consent?_count=1"

    def start(self) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                resources, following = outer.pages[self.path]
                links = [{"relation": "next", "url": following}] if following else []
                entries = [{"resource": each} for each in resources]
                body = {"resourceType": "Bundle", "type": "searchset", "link": links, "entry": entries}
                data = json.dumps(body).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self._http.server_port
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def kill(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def fhir(silo):
    """The source of this silo's consents, read once."""
    server = Fhir()
    add(silo, f'[consent]\nsource = "server"\nurl = "{server.url}"')
    read(silo)
    yield server
    server.kill()


def test_status_says_that_the_fhir_server_is_away_once_anybody_has_asked_it(silo, fhir):
    started(silo)
    fhir.kill()
    planted = time.monotonic()
    read(silo)
    found = told(silo, "CONSENT_SERVER", planted)
    assert "ConnectError" in found["sentence"] and "token_file" in found["do"]
    fhir.start()
    read(silo)
    over(silo, "CONSENT_SERVER")


def test_status_says_that_the_fhir_server_is_away_although_nobody_asks(silo, fhir):
    """Here at the start of `silo run`; later once a minute."""
    fhir.kill()
    planted = time.monotonic() + 3.0
    silo.start()
    silo.until(lambda: (silo.folder / "status.json").exists())
    silo.until(lambda: problems(silo).get("CONSENT_SERVER"), seconds=5.0 + planted - time.monotonic())
    fhir.start()


def test_the_fhir_server_is_asked_once_a_minute_for_one_page(silo, fhir):
    fhir.pages = {
        "/fhir/Consent?_count=1": ([consent(gics(), "1")], "/fhir/Consent?page=2"),
        "/fhir/Consent?page=2": ([consent(gics(), "2")], None),
    }
    fhir.asked.clear()
    started(silo)
    silo.until(lambda: fhir.asked)
    time.sleep(10)
    assert fhir.asked == ["/fhir/Consent?_count=1"]
    os.utime(silo.config.consent_asked, (time.time() - 61,) * 2)
    silo.until(lambda: len(fhir.asked) > 1, seconds=5)
    assert fhir.asked == 2 * ["/fhir/Consent?_count=1"]


def test_a_fault_in_a_later_page_is_not_taken_back_by_the_first(silo, fhir):
    first = ([consent(gics(), "1")], "/fhir/Consent?page=2")
    fhir.pages = {"/fhir/Consent?_count=1": first, "/fhir/Consent?page=2": ([{"resourceType": "Consent"}, 5], None)}
    read(silo)
    assert asked.last(silo.config).code == "CONSENT_MALFORMED"
    asked.ask(silo.config)
    assert asked.last(silo.config).code == "CONSENT_MALFORMED"
    fhir.pages["/fhir/Consent?page=2"] = ([consent(gics(), "2")], None)
    asked.ask(silo.config)
    assert asked.last(silo.config) is None


def test_status_says_that_the_pacs_was_away_at_the_last_fetch(silo):
    (silo.folder.parent / "data" / "labels.csv").write_text(f"PatientID,label\n{SECRET},1\n")
    pacs = Liar()
    pacs.instances = []
    add(silo, f'[dicomweb]\nurl = "{pacs.url}"\nfree_mb = 0\ntimeout_seconds = 2')
    assert silo.command("fetch", str(silo.folder)).returncode == 0
    started(silo)
    address, handler = pacs.server.server_address, pacs.server.RequestHandlerClass
    pacs.server.shutdown()
    pacs.server.server_close()
    assert silo.command("fetch", str(silo.folder)).returncode != 0
    planted = time.monotonic()
    assert "silo.toml" in told(silo, "PACS_UNREACHABLE", planted)["do"]
    pacs.server = ThreadingHTTPServer(address, handler)
    threading.Thread(target=pacs.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    assert silo.command("fetch", str(silo.folder)).returncode == 0
    over(silo, "PACS_UNREACHABLE")
    pacs.server.shutdown()
    pacs.server.server_close()


# --- the doctor


def examined(silo: Any) -> doctor.Check:
    [found] = list(doctor.consent(silo.config))
    return found


def test_the_doctor_says_how_long_the_last_reading_of_the_consents_holds(silo, consents):
    assert examined(silo).state == doctor.OK
    (consents / "1.json").unlink()
    consents.rmdir()
    check = examined(silo)
    assert check.state == doctor.WARN and "Until" in check.found and "silo consent status" in check.do
    ago(silo.config.consent_kept, 23)
    check = examined(silo)
    assert check.state == doctor.WARN and "from" in check.found and "before the time that is named" in check.do
    ago(silo.config.consent_kept, 25)
    check = examined(silo)
    assert check.state == doctor.FAIL and "more than 24 hours ago" in check.found
    silo.config.consent_kept.unlink()
    assert examined(silo).state == doctor.FAIL


def test_the_doctor_asks_the_fhir_server_for_one_page_and_changes_nothing(silo, fhir):
    fhir.asked.clear()
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (silo.folder / "consent").iterdir())
    assert examined(silo).state == doctor.OK and len(fhir.asked) == 1
    fhir.kill()
    check = examined(silo)
    assert check.state == doctor.WARN and "ConnectError" in check.found and "token_file" in check.do
    ago(silo.config.consent_kept, 25)
    assert examined(silo).state == doctor.FAIL
    fhir.start()
    os.utime(silo.config.consent_kept, ns=(dict(before)["fhir.json"],) * 2)
    assert sorted((path.name, path.stat().st_mtime_ns) for path in (silo.folder / "consent").iterdir()) == before
    asked.note(silo.config, ConsentError("CONSENT_SERVER", "page 7 could not be had."))
    check = examined(silo)
    assert check.state == doctor.WARN and "page 7" in check.found
