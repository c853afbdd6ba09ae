"""Consent in rounds: who takes part, who no longer does, what is kept of it, and the proof of it afterwards."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from contextlib import closing

import pytest

from protocol import canonical
from protocol.transparency import verify
from silo_node import scanning
from silo_node.consent import registry
from silo_node.errors import UsageError
from silo_node.evidence import records
from silo_node.imaging import cache
from silo_node.rounds.runs import Run
from tests.silo_node.consent.fhir_examples import LONG, consent, gics, mii, pcf
from tests.silo_node.test_gate_cohort import PATIENTS
from tests.silo_node.test_gate_cohort import door as images_and_opt_out  # noqa: F401

ASKED = [patient for patient in PATIENTS if patient != "PAT-0001"]  # who is on no opt-out list
OPT_IN = {"consent_default": "opt-in", "legal_basis": None}


class Hospital:
    """A silo before the gate, with a folder of consents."""

    def __init__(self, door) -> None:
        self.door, self.silo = door, door.silo
        self.folder = self.silo.folder / "consents"
        self.folder.mkdir()
        self.set('source = "folder"\npath = "consents"\n')

    def set(self, text: str) -> None:
        toml = self.silo.folder / "silo.toml"
        toml.write_text(toml.read_text().split("[consent]")[0] + "\n[consent]\n" + text)
        self.door.node.close()
        self.door.node = self.silo.node()

    def says(self, who: str, provision, date: str = "2024-01-01", **changes) -> None:
        body = consent(provision, who, date, **changes)
        (self.folder / f"{body['id']}.json").write_text(json.dumps(body))

    def all_consent(self) -> None:
        for number, patient in enumerate(PATIENTS):
            self.says(patient, (gics(), mii(), pcf())[number % 3])

    def policy(self, **changes) -> None:
        """Another policy, and the steward's approval under it."""
        self.silo.policy(**changes)
        self.silo.decide("revoke", "The policy has changed.")
        self.silo.decide()

    def round(self, number: int):
        """A round's gate, and its notes in the log."""
        announcement = self.door.announcement(number)
        permission = self.door.ask(announcement)
        records.note_cohort(self.door.node, announcement, permission)
        Run(self.silo.config.runs, announcement.id).write("announce", {})
        return announcement.id, permission.cohort

    def log(self, kind: str):
        return self.door.node.evidence.records(kind)


@pytest.fixture
def door(images_and_opt_out):  # noqa: F811
    return images_and_opt_out


@pytest.fixture
def hospital(door):
    return Hospital(door)


def test_with_opt_in_only_who_consented_takes_part(hospital):
    hospital.all_consent()
    hospital.says("PAT-0002", gics("deny"), "2026-01-01")
    hospital.says("PAT-0003", gics(), "2026-01-01", status="rejected")
    (hospital.folder / "c-PAT-0004-2024-01-01.json").unlink()
    hospital.policy(**OPT_IN)
    cohort = hospital.door.ask().cohort
    assert set(cohort.patients) == set(ASKED) - {"PAT-0002", "PAT-0003", "PAT-0004"}
    assert cohort.excluded == {"NO_CONSENT": 3, "OPTED_OUT": 1}


def test_with_opt_out_only_who_refused_stays_away(hospital):
    hospital.says("PAT-0002", gics("deny"))
    assert set(hospital.door.ask().cohort.patients) == set(ASKED) - {"PAT-0002"}


@pytest.mark.parametrize("changes", [OPT_IN, {"legal_basis": None}])
def test_without_a_source_and_without_a_basis_nobody_takes_part(door, changes):
    door.silo.policy(**changes)
    with pytest.raises(Exception, match="CONSENT_NO_SOURCE"):
        door.silo.decide()


def test_a_consent_that_cannot_be_assigned_stops_opt_out_and_not_opt_in(hospital):
    hospital.all_consent()
    hospital.says("x", gics("deny"), patient={"identifier": {"system": "urn:other", "value": "1"}})
    assert hospital.door.refused() == "CONSENT_UNASSIGNED"
    (hospital.folder / "c-x-2024-01-01.json").unlink()
    hospital.policy(**OPT_IN)
    hospital.says("x", gics("deny"), patient={"identifier": {"system": "urn:other", "value": "1"}})
    assert len(hospital.door.ask().cohort.patients) == 11


def test_a_source_that_is_away_for_an_hour_is_replaced_by_its_last_good_reading(hospital):
    hospital.says("PAT-0002", gics("deny"))
    before = hospital.door.ask()
    hospital.folder.rename(hospital.silo.folder / "away")
    after = hospital.door.ask()
    assert after.cohort.patients == before.cohort.patients
    assert after.opt_out == before.opt_out
    kept = hospital.silo.config.consent_kept
    os.utime(kept, (time.time() - 25 * 3600,) * 2)
    assert hospital.door.refused() == "CONSENT_STALE"
    hospital.set('source = "folder"\npath = "consents"\nmax_age_hours = 1\n')
    os.utime(kept, (time.time() - 2 * 3600,) * 2)
    assert hospital.door.refused() == "CONSENT_STALE"


def test_a_source_that_was_never_read_well_stops_the_rounds(hospital):
    (hospital.folder / "Musterfrau.json").write_text("{")
    assert hospital.door.refused() == "CONSENT_MALFORMED"
    hospital.folder.rename(hospital.silo.folder / "away")
    assert hospital.door.refused() == "CONSENT_MISSING"
    hospital.set('source = "server"\nurl = "http://127.0.0.1:1/fhir/Consent"\n')
    assert hospital.door.refused() == "CONSENT_SERVER"
    hospital.set('source = "server"\nurl = "http://127.0.0.1:1/fhir/Consent"\ntoken_file = "none"\n')
    assert hospital.door.refused() == "CONSENT_TOKEN"


def test_a_source_that_silo_toml_no_longer_names_is_missed(hospital):
    hospital.says("PAT-0002", gics("deny"))
    hospital.door.ask()
    hospital.set("")
    assert "PAT-0002" not in hospital.door.ask().cohort.patients
    os.utime(hospital.silo.config.consent_kept, (time.time() - 25 * 3600,) * 2)
    assert hospital.door.refused() == "CONSENT_STALE"


def test_a_map_that_cannot_be_read_stops_the_rounds(hospital):
    hospital.says("17", gics("deny"))
    hospital.set('source = "folder"\npath = "consents"\nmap = "map.csv"\n')
    assert hospital.door.refused() == "CONSENT_MAP_MISSING"
    (hospital.silo.folder / "map.csv").write_text("reference,PatientID\nPatient/17,PAT-0002\n")
    assert "PAT-0002" not in hospital.door.ask().cohort.patients


def test_a_withdrawal_between_two_rounds(hospital):
    """In the first round, not in the second; the pixels are gone, the log says so and names nobody, both are provable."""
    hospital.all_consent()
    hospital.policy(**OPT_IN)
    first, cohort = hospital.round(1)
    assert "PAT-0005" in cohort.patients
    pictures = cache.Cache(hospital.silo.config.cache, "sha256:" + "ab" * 32, size=(8, 8))
    items = [*cohort.train, *cohort.test]
    pictures.fill(items)
    scanning.erase_opted_out(hospital.silo.config)
    assert not scanning.erase_wanted(hospital.silo.config)
    [recorded] = hospital.log("consent.recorded")
    assert hospital.log("consent.withdrawn") == []

    hospital.says("PAT-0005", gics("deny"), "2026-06-01")
    second, cohort = hospital.round(2)
    assert "PAT-0005" not in cohort.patients
    assert "PAT-0005" in cohort.withdrawn
    [withdrawn] = hospital.log("consent.withdrawn")
    assert withdrawn["reasons"] == ["DENIED"]
    assert withdrawn["private"].startswith("sha256:")
    assert recorded["subject"]["version"] != withdrawn["subject"]["version"]

    assert scanning.erase_wanted(hospital.silo.config)
    assert scanning.erase_opted_out(hospital.silo.config) == 1
    pictures.open([item for item in items if item.patient != "PAT-0005"])
    with pytest.raises(KeyError):
        pictures.open([item for item in items if item.patient == "PAT-0005"])

    hospital.door.node.evidence.sequence()
    logs = b"".join(path.read_bytes() for path in (hospital.silo.folder / "log").rglob("*") if path.is_file())
    assert b"PAT-" not in logs
    for round_id, member in ((first, True), (second, False)):
        path = hospital.silo.folder / "proof.json"
        done = hospital.silo.command("consent", "prove", "PAT-0005", round_id, "--out", str(path), "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["member"] is member
        assert b"PAT-" not in path.read_bytes()
        assert verify.main(["membership", str(path), "--vkey", json.loads(done.stdout)["vkey"]]) == 0


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (lambda h: h.says("PAT-0005", None, "2026-06-01", status="inactive"), "INACTIVE"),
        (lambda h: h.says("PAT-0005", gics(period={**LONG, "end": "2025-01-01"})), "PERIOD"),
        (lambda h: (h.folder / "c-PAT-0005-2024-01-01.json").unlink(), "DEFAULT_DENY"),
        (lambda h: (h.silo.folder / "opt_out.csv").write_text("PatientID,date\nPAT-0005,2026-01-01\n"), "OPTED_OUT"),
    ],
)  # fmt: skip
def test_whatever_ends_a_permission_is_a_withdrawal(hospital, end, code):
    hospital.all_consent()
    hospital.policy(**OPT_IN)
    hospital.door.ask()
    end(hospital)
    cohort = hospital.door.ask().cohort
    assert "PAT-0005" not in cohort.patients and "PAT-0005" in cohort.withdrawn
    hospital.door.ask()
    assert [each["reasons"] for each in hospital.log("consent.withdrawn")] == [[code]]


def test_a_withdrawal_counts_even_where_too_few_remain_for_a_round(hospital):
    hospital.all_consent()
    hospital.policy(**OPT_IN)
    hospital.door.ask()
    for patient in ASKED[:8]:
        hospital.says(patient, gics("deny"), "2026-06-01")
    assert hospital.door.refused() == "COHORT_TOO_SMALL"
    assert len(hospital.log("consent.withdrawn")) == 8


def test_who_consents_again_is_recorded_and_takes_part_again(hospital):
    hospital.all_consent()
    hospital.policy(**OPT_IN)
    hospital.says("PAT-0005", gics("deny"), "2026-01-01")
    assert "PAT-0005" not in hospital.door.ask().cohort.patients
    hospital.says("PAT-0005", gics(), "2026-06-01")
    cohort = hospital.door.ask().cohort
    assert "PAT-0005" in cohort.patients and "PAT-0005" not in cohort.withdrawn
    assert (len(hospital.log("consent.recorded")), hospital.log("consent.withdrawn")) == (2, [])


def test_nothing_new_is_nothing_recorded(hospital):
    hospital.all_consent()
    hospital.door.ask()
    before = len(hospital.log(None))
    hospital.door.ask()
    assert len(hospital.log(None)) == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('source = "ftp"\n', "consent.source"),
        ('source = "folder"\n', "needs path"),
        ('source = "server"\npath = "x"\n', "needs url"),
        ('path = "x"\n', "source must say"),
        ('source = "server"\nurl = "http://fhir.example.org/Consent"\n', "must start with https"),
        ('source = "server"\nurl = "https://fhir.example.org/Patient"\n', "must be a search"),
        ('source = "server"\nurl = "https://me:secret@fhir.example.org/Consent"\n', "must be a search"),
        ("max_age_hours = 25\n", "max_age_hours"),
        ('codes = ["8"]\n', "system|code"),
        ("codes = []\npurposes = []\n", "at least one"),
        ('map = "a.csv"\nidentifier_system = "urn:x"\n', "choose one"),
        ("unknown = 1\n", "check its spelling"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(silo, text, words):
    toml = silo.folder / "silo.toml"
    toml.write_text(toml.read_text() + "\n[consent]\n" + text)
    with pytest.raises(UsageError) as caught:
        assert silo.config
    assert words in caught.value.sentence


# ---- commands


def run(silo, *arguments: str, code: int = 0) -> str:
    done = silo.command("consent", *arguments)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_consents_are_imported_checked_and_counted(silo, tmp_path):
    source = tmp_path / "export"
    source.mkdir()
    for number, provision in enumerate((gics(), mii(), gics("deny"))):
        (source / f"Musterfrau{number}.json").write_text(json.dumps(consent(provision, f"PAT-000{number}")))
    assert "DEFAULT_PERMIT" in run(silo, "check", "PAT-0002", code=1)
    assert "nothing was put in place" in run(silo, "import", str(source), "--dry-run")
    assert not silo.config.consent_imported.exists()
    said = run(silo, "import", str(source))
    assert "3 files, 3 consents of 3 patients" in said and "In place" in said
    assert "Musterfrau" not in said and "PAT-" not in said
    assert "DENY DENIED: The newest consent denies this use." in run(silo, "check", "PAT-0002", code=1)
    found = json.loads(run(silo, "status", "--json"))
    assert found["decisions"] == {"DENIED": 1, "PERMITTED": 2}
    assert (found["consents"], found["default"]) == (3, "PERMIT")
    assert found["source"].startswith("what was imported on 20")
    said = run(silo, "status")
    assert "PAT-" not in said and "1 patients  DENIED" in said
    opt_out = tmp_path / "list.csv"
    opt_out.write_text("PatientID,date\nPAT-0000,2026-01-01\n")
    assert "1 patients have opted out" in run(silo, "import", str(opt_out))
    assert json.loads(run(silo, "check", "PAT-0000", "--json", code=1))["code"] == "OPTED_OUT"


def test_an_import_with_one_bad_file_changes_nothing_and_names_it_only_when_asked(silo, tmp_path):
    source = tmp_path / "export"
    source.mkdir()
    (source / "a.json").write_text(json.dumps(consent(gics(), "1")))
    (source / "Musterfrau.json").write_text("{")
    said = run(silo, "import", str(source), code=2)
    assert "file 1 is not JSON" in said and "Musterfrau" not in said and "Nothing was imported" in said
    assert "Musterfrau" in run(silo, "import", str(source), "--files", code=2)
    assert not silo.config.consent_imported.exists()
    (source / "Musterfrau.json").unlink()
    (source / "a.json").unlink()
    assert "There is no Consent in it" in run(silo, "import", str(source), code=2)


def test_cases_are_answered_one_a_line_and_differences_told(silo, tmp_path):
    path = tmp_path / "cases.json"
    case = {"name": "one", "consents": [consent(gics())], "opt_out": [], "expect": "PERMIT"}
    query = {"codes": [list(next(iter(registry.query_of(silo.config).codes)))], "purposes": []}
    content = {
        "query": query,
        "now": "2026-11-23T00:00:00Z",
        "default": "DENY",
        "cases": [case, {**case, "name": "two"}],
    }
    path.write_text(json.dumps(content))
    said = run(silo, "check", "--cases", str(path), "--json").splitlines()
    assert [json.loads(line) for line in said] == [{"name": name, "decision": "PERMIT"} for name in ("one", "two")]
    case["opt_out"] = ["Patient/1"]
    path.write_text(json.dumps({**content, "cases": [case]}))
    assert "one: the file expects PERMIT, the rules say DENY" in run(silo, "check", "--cases", str(path), code=1)


def test_a_mistyped_id_does_not_read_like_an_answer(hospital):
    """Neither whether somebody may be used, nor whether somebody was."""
    hospital.all_consent()
    round_id, _ = hospital.round(1)
    silo, path = hospital.silo, hospital.silo.folder / "proof.json"
    assert "No image" not in run(silo, "check", "PAT-0002")
    assert json.loads(run(silo, "check", "PAT-0002", "--json"))["images"] == 1
    said = run(silo, "check", "PAT-002", code=1)
    assert said.startswith("No image of that id is known here: check how it is written. For such an id it would be:")
    found = json.loads(run(silo, "check", "PAT-002", "--json", code=1))
    assert (found["images"], found["code"]) == (0, "DEFAULT_PERMIT")

    said = run(silo, "prove", "PAT-002", round_id, "--out", str(path), code=1)
    assert "was not in the cohort" in said and "No image of that id is known here" in said
    done = silo.command("consent", "prove", "PAT-002", round_id, "--out", str(path), "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["member"], found["images"]) == (1, False, 0)
    assert verify.main(["membership", str(path), "--vkey", found["vkey"]]) == 0
    assert "No image" not in run(silo, "prove", "PAT-0001", round_id)  # who opted out, and is no member
    silo.config.index_db.unlink()
    assert "has not been scanned" in run(silo, "check", "PAT-0002", code=1)
    assert "No image" not in run(silo, "prove", "PAT-0002", round_id)  # a member had images then


def test_a_round_that_this_silo_does_not_know_is_told(ready):
    assert "ROUND_UNKNOWN" in run(ready, "prove", "PAT-0001", "st-x.1.1", code=2)


def test_what_was_erased_or_changed_beside_the_log_proves_nothing(hospital):
    round_id, _ = hospital.round(1)
    database = hospital.silo.folder / "evidence.db"

    def damage(statement: str, code: int) -> str:
        with closing(sqlite3.connect(database)) as db, db:
            assert db.execute(statement).rowcount == 1
        return run(hospital.silo, "prove", "PAT-0002", round_id, code=code)

    where = "WHERE CAST(record AS TEXT) LIKE '%data.accessed%'"
    changed = canonical.encode({"subjects": ["ab" * 32] * 11}).hex()
    assert "PROOF_FAILS" in damage(f"UPDATE entry SET private = x'{changed}' {where}", 3)
    assert "PSEUDONYMS_ERASED" in damage(f"UPDATE entry SET private = NULL, salt = NULL {where}", 3)


def test_a_round_that_opened_no_image_has_no_proof(ready, portal):
    from tests.silo_node.test_gate import Door

    at = Door(ready, portal)
    announcement = at.announcement()
    records.note_cohort(at.node, announcement, at.ask(announcement))
    at.node.close()
    assert "NO_IMAGE_OPENED" in run(ready, "prove", "PAT-0001", announcement.id, code=3)
