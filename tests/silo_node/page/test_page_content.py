"""What the pages say is what the silo's folder says, and no more than each role may see."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from typer.testing import CliRunner

from silo_node.cli import app
from silo_node.errors import UsageError
from silo_node.evidence.egress_log import EgressLog
from silo_node.health import status as reports
from silo_node.page import checks, studies, words
from silo_node.page.app import make_app
from silo_node.page.sent import COLUMNS
from silo_node.steward import documents
from tests.silo_node.conftest import POLICY, ROOT
from tests.silo_node.imaging.conftest import write_dicom, write_table
from tests.silo_node.page.conftest import PageUnderTest


def scanned(page: PageUnderTest) -> None:
    data = page.silo.config.data
    for number in range(60):
        (data / f"Mustermann-{number:02}").write_bytes(b"not DICOM at all")
    names = [write_dicom(data / f"p{number}.dcm", patient=f"P-{number}").name for number in range(3)]
    write_table(data / "labels.csv", [(f"P-{number}", 1, "train", name) for number, name in enumerate(names)])
    done = page.silo.command("scan", str(page.silo.folder), "--json")
    assert done.returncode == 0, done.stdout


def test_files_are_named_to_hospital_it_only(page: PageUnderTest):
    scanned(page)
    it, steward = page.visitor("it").get("/images").text, page.visitor("steward").get("/images?problem=NOT_DICOM").text
    assert "Mustermann-00" in it and "Mustermann" not in steward
    for text in (it, steward):
        assert "NOT_DICOM" in text and ">60<" in text and ">63<" in text
        assert "P-1" not in text


def test_whose_images_do_not_come_from_the_pacs_is_shown_in_counts(page: PageUnderTest):
    assert "Not taken from the PACS" not in page.visitor("steward").get("/images").text
    page.silo.settings(
        (page.silo.folder / "silo.toml").read_text().split("[training]")[0]
        + '[receiver]\nport = 11112\nae_title = "SILO"\npeers = [{ ae_title = "PACS", host = "127.0.0.1" }]\n'
    )
    page.app = make_app(page.silo.config, page.accounts)
    counts = {"received": 5, "OPTED_OUT": 7, "NOT_CONSENTED": 41}
    (page.silo.folder / "receiver.json").write_text(json.dumps({"state": "listening", "counts": counts}))
    text = page.visitor("steward").get("/images").text
    assert "Not taken from the PACS" in text and "no consent of the patient permits any use now" in text
    assert ">41<" in text and ">7<" in text and ">5<" not in text
    (page.silo.folder / "pacs.db").write_bytes(b"no database" * 100)
    assert page.visitor("steward").get("/images").status_code == 200


def test_what_an_older_reader_took_from_a_header_is_not_shown(page: PageUnderTest):
    scanned(page)
    with closing(sqlite3.connect(page.silo.config.index_db)) as db, db:
        db.execute("UPDATE files SET modality = 'GEHEIM', transfer_syntax = '1.2.3.19480101' WHERE problem IS NULL")
    for role in ("it", "steward"):
        text = page.visitor(role).get("/images").text
        assert ">other<" in text and "GEHEIM" not in text and "19480101" not in text
    done = page.silo.command("doctor", str(page.silo.folder))
    assert "one that DICOM does not know (3 files)" in done.stdout and "19480101" not in done.stdout


def test_a_long_list_of_files_has_pages(page: PageUnderTest):
    scanned(page)
    visitor = page.visitor("it")
    first, second = visitor.get("/images").text, visitor.get("/images?page=2").text
    assert "Mustermann-49" in first and "Mustermann-50" not in first
    assert "Mustermann-50" in second and "Mustermann-49" not in second
    assert visitor.get("/images?page=-1").text.count("Mustermann-") == 50
    assert visitor.get("/images?page=999999999999").status_code == 200
    assert "Mustermann" not in visitor.get("/images?problem=' OR 1=1 --").text


def sent(page: PageUnderTest) -> None:
    log = EgressLog(page.silo.folder / "egress.db")
    for number in range(60):
        row = log.sending(
            kind="update", method="PUT", path="/api/v1/x", round_id=f"st-one.{number}.1", body=1000, head=1,
            digest=f"sha256:{number:064x}",
        )  # fmt: skip
        log.answered(row, kind="update", status=200, received=1, round_id=None)
    log.sending(kind="=cmd", method="PUT", path="/api/v1/x", round_id="st-two.1.1", body=7, head=1, digest="sha256:ff")
    log.close()


def test_every_message_that_left_is_listed_newest_first(page: PageUnderTest):
    sent(page)
    visitor = page.visitor("steward")
    text = visitor.get("/sent").text
    assert "st-two.1.1" in text and "perhaps sent" in text and "st-one.59.1" in text and "st-one.1.1" not in text
    assert "st-one.1.1" in visitor.get("/sent?page=2").text
    assert f"sha256:{59:064x}" in text


@pytest.mark.parametrize(
    ("query", "count"),
    [("", 63), ("kind=update", 60), ("study=st-two", 1), ("kind=update&study=st-two", 0), ("round=st-one.7.1", 1),
     ("since=2026-01-01", 63), ("until=2026-01-01", 0), ("kind=' OR 1=1 --", 0), ("other=1", 63)],
)  # fmt: skip
def test_the_list_and_its_csv_are_filtered_alike(page: PageUnderTest, query: str, count: int):
    # beside these: the enrolment and the policy that made the silo ready
    sent(page)
    visitor = page.visitor("it")
    assert f"<b>{count}</b> message" in visitor.get(f"/sent?{query}").text
    answer = visitor.get(f"/sent.csv?{query}")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert len(rows) == count and answer.headers["content-disposition"].startswith("attachment")
    if rows:
        assert tuple(rows[0]) == COLUMNS


def test_a_message_that_had_no_connection_to_leave_by_is_listed_and_in_no_sum(page: PageUnderTest):
    log = EgressLog(page.silo.folder / "egress.db")
    for number in range(3):
        row = log.sending(
            kind="keys",
            method="PUT",
            path="/api/v1/x",
            round_id="st-one.1.1",
            body=900,
            head=9,
            digest=f"sha256:{number}",
        )
        if number:
            log.not_sent(row, kind="keys", sent=909, round_id="st-one.1.1")
    log.close()
    text = page.visitor("it").get("/sent?kind=keys").text
    assert "<b>1</b> message, <b>900 bytes</b>" in text
    assert text.count("perhaps sent</") == 1 and text.count("not sent</") == 2
    rows = list(csv.DictReader(io.StringIO(page.visitor("it").get("/sent.csv?kind=keys").text)))
    assert [row["status"] for row in rows] == ["0", "0", ""]


def test_a_decision_is_listed_under_its_study(page: PageUnderTest):
    page.silo.portal.make_study()
    page.silo.decide()
    study = page.silo.portal.manifest.study
    assert "<b>1</b> message" in page.visitor("it").get(f"/sent?study={study}").text


def test_no_cell_of_the_csv_is_taken_for_a_formula(page: PageUnderTest):
    sent(page)
    assert "\n" + "=cmd" not in page.visitor("it").get("/sent.csv").text
    assert ",'=cmd," in page.visitor("it").get("/sent.csv").text


def test_consent_is_shown_in_counts_and_names_nobody(page: PageUnderTest):
    scanned(page)
    (page.silo.folder / "opt_out.csv").write_text("PatientID,date\nP-1,2026-01-01\nMISTYPED-9,2026-01-01\n")
    text = page.visitor("it").get("/consent").text
    assert "OPTED_OUT" in text and "1 on the opt-out list is not in the index" in text
    assert "P-1" not in text and "MISTYPED" not in text


def test_a_broken_opt_out_list_is_said_with_what_to_do(page: PageUnderTest):
    (page.silo.folder / "opt_out.csv").write_text("PatientID,date\nP-1,yesterday\n")
    text = page.visitor("it").get("/consent").text
    assert "OPT_OUT_MALFORMED" in text and "line 2" in text and "yesterday" not in text


def test_an_edited_policy_is_shown_in_words_and_against_each_study_and_nothing_is_kept(page: PageUnderTest):
    page.silo.portal.make_study()
    page.silo.decide()
    before = page.silo.config.policy.read_bytes()
    visitor = page.visitor("steward")
    visitor.get("/policy")
    edited = {**POLICY, "permission": "DUO:0000007", "diseases": ["DOID:162"]}
    text = visitor.post("/policy", policy=json.dumps(edited)).text
    assert "only for research on the named diseases: cancer" in text and "No longer said" in text
    assert "refuses" in text and "until now: permits" in text
    assert "silo policy" in text and page.silo.config.policy.read_bytes() == before


@pytest.mark.parametrize("text", ["{", "[]", '{"permission": 1}', '{"version": 1}', "[" * 100_000])
def test_a_policy_that_makes_no_sense_is_refused_and_stays_in_the_form(page: PageUnderTest, text: str):
    visitor = page.visitor("steward")
    visitor.get("/policy")
    answer = visitor.post("/policy", policy=text)
    assert answer.status_code == 400 and 'role="alert"' in answer.text
    assert text[:40].replace('"', "&#34;") in answer.text


def test_a_study_is_shown_with_what_changed_since_the_last_decision(page: PageUnderTest):
    page.silo.portal.make_study()
    page.silo.decide()
    page.silo.portal.make_study(title="Another title")
    text = page.visitor("steward").get(f"/studies/{page.silo.portal.manifest.study}").text
    assert "What changed since the last decision" in text and "Another title" in text and "A constant." in text
    assert "Nothing changed but: Title." in text
    assert "changed after it was approved" in text


def test_with_the_portal_away_the_kept_text_is_shown_and_said_to_be(page: PageUnderTest):
    page.silo.portal.make_study()
    page.silo.decide()
    path = page.silo.folder / "silo.toml"
    path.write_text(path.read_text().replace("retry = 5", "retry = 1"))
    page.silo.portal.close()
    text = PageUnderTest.visitor(page, "it").get(f"/studies/{page.silo.portal.manifest.study}").text
    assert "kept here" in text and "A constant" in text and "approved and in force" in text


@pytest.mark.parametrize("study", ["%2e%2e", "a/b", "st-%2e%2e", "x" * 100, "%00"])
def test_a_study_that_is_none_is_refused(page: PageUnderTest, study: str):
    assert page.visitor("steward").get(f"/studies/{study}").status_code in (404, 409)


def test_what_a_researcher_wrote_is_text_and_nothing_else(page: PageUnderTest):
    page.silo.portal.make_study(title="<script>alert(1)</script>", summary='"><img src=x onerror=alert(1)>')
    text = page.visitor("steward").get(f"/studies/{page.silo.portal.manifest.study}").text
    assert "<script>alert" not in text and "<img" not in text and "&lt;script&gt;" in text


def test_what_was_taken_back_is_no_budget_any_more(page: PageUnderTest):
    page.silo.portal.make_study()
    page.silo.decide()
    visitor = page.visitor("it")
    assert "0 of 2" in visitor.get("/budget").text and "not approved" not in visitor.get("/budget").text
    page.silo.decide("revoke", "The ethics board asked for it.")
    assert "0 of 2" not in visitor.get("/budget").text and "not approved" in visitor.get("/budget").text


def test_without_differential_privacy_the_budget_says_so(page: PageUnderTest):
    page.silo.portal.make_study()
    page.silo.decide()
    text = page.visitor("it").get("/budget").text
    assert "No study with differential privacy has run" in text and "0 of 2" in text


def test_the_settings_check_shows_results_in_words_and_only_when_asked(page: PageUnderTest, monkeypatch):
    asked = []

    def report(config):
        asked.append(config)
        return [
            {"name": "clock", "state": "fail", "found": "It is off by 10 minutes.", "change": "Start a time service."}
        ]

    monkeypatch.setattr(checks, "_report", report)
    visitor = page.visitor("it")
    assert "Not checked yet" in visitor.get("/check").text and asked == []
    assert visitor.post("/check").status_code == 303
    text = visitor.get("/check").text
    assert "off by 10 minutes" in text and "Start a time service." in text and "wrong" in text and len(asked) == 1


def test_a_question_is_answered_once_in_time_and_by_who_was_asked():
    now = [0.0]
    questions = studies.Questions(clock=lambda: now[0])
    number = questions.ask("decision", "anna", payload=b"1")
    for what, given, name in (("passkey", number, "anna"), ("decision", "other", "anna"), ("decision", number, "ben")):
        with pytest.raises(UsageError, match="over"):
            questions.take(what, given, name)
    assert questions.take("decision", number, "anna") == {"payload": b"1"}
    with pytest.raises(UsageError, match="over"):
        questions.take("decision", number, "anna")
    late = questions.ask("decision", "anna")
    now[0] += studies.WAIT_SECONDS + 1
    with pytest.raises(UsageError, match="over"):
        questions.take("decision", late, "anna")


def test_only_so_many_questions_wait():
    questions = studies.Questions()
    numbers = [questions.ask("decision", "anna") for _ in range(studies.MOST_WAITING + 1)]
    with pytest.raises(UsageError, match="over"):
        questions.take("decision", numbers[0], "anna")
    assert questions.take("decision", numbers[-1], "anna") == {}


def test_without_a_passkey_in_trust_nothing_can_be_decided_here(page: PageUnderTest):
    page.silo.portal.make_study()
    study = page.silo.portal.manifest.study
    visitor = page.visitor("steward")
    visitor.get(f"/studies/{study}")
    manifest = page.silo.portal.manifest_digest
    answer = visitor.post(f"/studies/{study}/decide", decision="approve", manifest=manifest, key="0" * 64)
    assert answer.status_code == 400 and "No passkey of yours" in answer.text
    assert documents.load_approvals(page.silo.config, study) == []


def test_the_settings_check_is_silo_doctors(page: PageUnderTest):
    visitor = page.visitor("it")
    assert visitor.post("/check").status_code == 303
    text = visitor.get("/check").text
    # Each name that the doctor gives, and what to do about the data folder that is empty.
    told = json.loads(page.silo.command("doctor", str(page.silo.folder), "--json").stdout)["checks"]
    assert [each["name"] for each in told if f'<span class="title">{each["name"]}</span>' not in text] == []
    assert [each["do"] for each in told if each["state"] == "fail" and each["name"] == "images"] != []


@pytest.mark.parametrize(
    ("text", "shown"),
    [("use `silo run` now", "use <code>silo run</code> now"), ("a ` alone", "a ` alone"),
     ("`<b>` & <i>", "<code>&lt;b&gt;</code> &amp; &lt;i&gt;"), ("turned\u202eround", "turned?round")],
)  # fmt: skip
def test_what_is_to_be_typed_stands_out_and_stays_text(text: str, shown: str):
    assert words.coded(text) == shown


def test_the_status_page_says_since_when_the_silos_key_is_in_force_and_asks_for_a_new_one(page):
    visitor = page.visitor("it")
    assert "in force since" in visitor.get("/").text
    assert "key is old" not in visitor.get("/").text
    pin = json.loads(page.silo.config.pin.read_text())
    pin["enrolled"] = "2020-01-01T00:00:00Z"
    page.silo.config.pin.write_text(json.dumps(pin))
    text = visitor.get("/").text
    assert "key is old" in text and "silo key rotate" in text


def test_the_status_page_reminds_of_what_ends_soon_as_silo_status_does(page):
    visitor = page.visitor("it")
    assert "data-use policy ends" not in visitor.get("/now").text
    soon = (datetime.now(UTC) + timedelta(days=9)).date().isoformat()
    page.silo.policy(limits={"expires": soon})
    [said] = reports.report(page.silo.config)["reminders"]
    for address in ("/", "/now"):
        text = visitor.get(address).text
        assert f"The data-use policy ends on {soon}" in text and "<code>silo policy edit</code>" in text
    assert said["sentence"].startswith(f"The data-use policy ends on {soon}")


def shown_commands() -> list[str]:
    """Each line that a page shows to be typed, for the silo in /nowhere."""
    found = []
    for template in sorted((ROOT / "silo_node/page/templates").glob("*.html")):
        for parts in re.findall(
            r'parts\.command\((?:"[\w-]+"|"[\w-]+" ~ loop\.index), (.+?)\) ?}}', template.read_text()
        ):
            words = (
                parts.replace("config.folder|quoted", '"/nowhere"')
                .replace("each.study", '"st-a"')
                .replace("study", '"st-a"')
            )
            found += "".join(json.loads(each) for each in re.findall(r'"(?:[^"\\]|\\.)*"', words)).splitlines()
    return found


def test_every_command_that_a_page_shows_can_be_typed_as_it_stands():
    commands = shown_commands()
    assert len(commands) >= 14 and any(each.startswith("silo consent check") for each in commands)
    for command in commands:
        done = CliRunner().invoke(app, shlex.split(command)[1:])
        assert done.exit_code == 2 and "/nowhere" in done.output and "can be typed" not in done.output, (
            command,
            done.output,
        )
