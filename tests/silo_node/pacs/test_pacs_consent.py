"""Nothing comes from the PACS of whom no study could use any image now; and what came before goes again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from protocol.signing import Envelope
from silo_node import scanning
from silo_node.config import Config
from silo_node.consent import changes, registry
from silo_node.health import status
from silo_node.keys import Keys
from silo_node.node import Node
from silo_node.pacs import admission, fetch
from silo_node.pacs.receiver import LATER, Server
from silo_node.steward import approvals, documents
from tests.silo_node.conftest import PASSPHRASE, POLICY
from tests.silo_node.consent.fhir_examples import consent, gics, mii, pcf
from tests.silo_node.consent.test_consent_sources import Server as FhirServer
from tests.silo_node.consent.test_consent_sources import fhir_server  # noqa: F401
from tests.silo_node.imaging.conftest import write_dicom
from tests.silo_node.pacs.conftest import ROOT, Hospital, Orthanc
from tests.silo_node.pacs.test_pacs_receiver import counts, listen, send  # noqa: F401

pytestmark = pytest.mark.timeout(180)
FOLDER = '[consent]\nsource = "folder"\npath = "consents"\n'
SEARCH = "/fhir/Consent"
KEPT_OUT = 0xB006
Listen = Callable[[Config], Server]


class Ward(Hospital):
    """A hospital with consents, in a folder unless a test says otherwise."""

    def __init__(self, hospital: Hospital) -> None:
        self.folder, self.data = hospital.folder, hospital.data
        self.consents = self.folder / "consents"
        self.consents.mkdir()
        self.table = FOLDER

    def config(self, tables: str = "", limits: str = "") -> Config:
        return super().config(tables + self.table, limits)

    def says(self, who: str, provision: Any, date: str = "2024-01-01", **changes: Any) -> None:
        body = consent(provision, who, date, **changes)
        (self.consents / f"{body['id']}.json").write_text(json.dumps(body))

    def policy(self, config: Config, **changes: Any) -> None:
        """A policy in force, signed by this hospital's first steward."""
        if not config.trust.exists():
            Keys.create(config)
            approvals.make_steward(config, person="Dr. Steward", passphrase=PASSPHRASE)
        node = Node(config, None)
        envelope, _ = approvals.sign_policy(node, {**POLICY, **changes}, passphrase=PASSPHRASE)
        documents.save_policy(config, Envelope.from_dict(envelope.as_dict()))
        node.close()

    def here(self) -> set[str]:
        """Patients of whom an image is here."""
        return {str(dcmread(path).PatientID) for path in self.inbox()}


@pytest.fixture
def ward(hospital: Hospital) -> Ward:
    return Ward(hospital)


@pytest.fixture
def films(orthanc: Orthanc, chest: list[Path]) -> list[str]:
    """The patients of the six films that the PACS holds, a film each."""
    chosen = {str(dcmread(path, stop_before_pixels=True).PatientID): path for path in chest[:6]}
    assert len(chosen) == 6
    orthanc.store(list(chosen.values()))
    return list(chosen)


def test_only_whom_a_consent_permits_some_use_is_fetched(orthanc: Orthanc, ward: Ward, films: list[str]) -> None:
    nested, by_purpose, without, denied, expired, rejected = films
    ward.says(nested, mii())
    ward.says(by_purpose, pcf())
    ward.says(denied, gics())
    ward.says(denied, gics("deny"), "2025-01-01")
    ward.says(expired, gics(period={"start": "2020-01-01", "end": "2021-01-01"}))
    ward.says(rejected, gics(), status="rejected")
    config = ward.asks_orthanc(orthanc)
    report, error = fetch.fetch(config)
    assert (error, report.state, report.studies, report.got, report.missing) == (None, "done", 6, 2, 0)
    assert report.skipped == {"NOT_CONSENTED": 4} and ward.here() == {nested, by_purpose}
    assert status.report(config)["pacs"]["fetch"]["skipped"] == {"NOT_CONSENTED": 4}
    # Nothing of the others was so much as listed.
    assert not any(patient.encode() in file.read_bytes() for patient in (without, denied, expired, rejected)
                   for file in ward.folder.glob("pacs.db*"))  # fmt: skip
    meaning = "(no consent of the patient permits any use now)"
    for command, said in (
        ("fetch", f"NOT_CONSENTED: 4 studies left out {meaning}"),
        ("status", f"PACS: NOT_CONSENTED: 4 studies not fetched, 0 images that were sent not kept {meaning}"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "silo_node.cli", command, str(ward.folder)],
            cwd=ROOT, env={**os.environ, "COLUMNS": "200"}, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0 and said in done.stdout, done.stdout + done.stderr


def test_who_opted_out_stays_out_whatever_the_consent_says(orthanc: Orthanc, ward: Ward, films: list[str]) -> None:
    for patient in films[:2]:
        ward.says(patient, gics())
    ward.opts_out(films[0])
    report, error = fetch.fetch(ward.asks_orthanc(orthanc))
    assert error is None and report.skipped == {"OPTED_OUT": 1, "NOT_CONSENTED": 4} and ward.here() == {films[1]}


def test_a_consent_that_comes_later_brings_the_images_and_one_that_is_withdrawn_takes_them_away(
    orthanc: Orthanc, ward: Ward, films: list[str]
) -> None:
    first, second, third, *_ = films
    ward.says(first, gics())
    ward.says(third, gics())
    config = ward.asks_orthanc(orthanc)
    fetch.fetch(config)
    assert ward.here() == {first, third}
    ward.says(second, gics())
    report, _ = fetch.fetch(config)
    assert report.got == 1 and ward.here() == {first, second, third}
    ward.says(first, gics("deny"), "2025-01-01")
    (ward.consents / f"c-{third}-2024-01-01.json").unlink()
    ward.policy(config, consent_default="opt-in", legal_basis=None)
    report, _ = fetch.fetch(config)
    assert report.got == 0 and ward.here() == {second} and report.skipped == {"NOT_CONSENTED": 5}
    ward.says(first, gics(), "2025-06-01")  # has thought better of it
    report, _ = fetch.fetch(config)
    assert report.got == 1 and ward.here() == {first, second}


def test_what_is_still_wanted_of_who_withdraws_is_not_wanted_any_more(
    orthanc: Orthanc, ward: Ward, films: list[str]
) -> None:
    for patient in films:
        ward.says(patient, gics())
    report, _ = fetch.fetch(ward.asks_orthanc(orthanc, "max_instances = 2"))
    assert (report.got, report.missing) == (2, 4)
    away = set(films) - ward.here()
    for patient in away:
        ward.says(patient, None, "2025-01-01", status="inactive")
    report, _ = fetch.fetch(ward.asks_orthanc(orthanc))
    assert (report.got, report.missing, report.skipped) == (0, 0, {"NOT_CONSENTED": 4})
    assert ward.here().isdisjoint(away)


def test_without_a_source_of_consents_only_the_opt_out_list_counts(
    orthanc: Orthanc, ward: Ward, films: list[str]
) -> None:
    ward.table = ""
    ward.opts_out(films[0])
    config = ward.asks_orthanc(orthanc)
    report, error = fetch.fetch(config)
    assert error is None and report.got == 5 and report.skipped == {"OPTED_OUT": 1}
    ward.policy(config)  # opt-out, with its legal basis
    report, error = fetch.fetch(config)
    assert error is None and report.skipped == {"OPTED_OUT": 1} and len(ward.inbox()) == 5


def test_an_opt_in_policy_without_any_source_fetches_nothing_and_says_what_to_set(
    orthanc: Orthanc, ward: Ward, films: list[str]
) -> None:
    ward.table = ""
    config = ward.asks_orthanc(orthanc)
    ward.policy(config, consent_default="opt-in", legal_basis=None)
    report, error = fetch.fetch(config)
    assert error is not None and error.code == "CONSENT_NO_SOURCE" and "[consent]" in str(report.sentence)
    assert ward.inbox() == []


def test_with_an_opt_out_policy_who_has_no_record_is_fetched_and_whoever_refused_is_not(
    orthanc: Orthanc, ward: Ward, films: list[str]
) -> None:
    ward.says(films[0], gics("deny"))
    config = ward.asks_orthanc(orthanc)
    ward.policy(config)
    report, error = fetch.fetch(config)
    assert error is None and report.skipped == {"NOT_CONSENTED": 1} and ward.here() == set(films[1:])
    ward.says("x", gics("deny"), patient={"identifier": {"system": "urn:other", "value": "1"}})
    _, error = fetch.fetch(config)
    assert error is not None and error.code == "CONSENT_UNASSIGNED", "it may be anybody's no"
    assert ward.here() == set(films[1:])


def test_a_policy_that_is_over_fetches_nobody_without_a_record_and_deletes_nobody(
    orthanc: Orthanc, ward: Ward, films: list[str]
) -> None:
    ward.says(films[0], gics())
    config = ward.asks_orthanc(orthanc)
    ward.policy(config)
    fetch.fetch(config)
    config.policy.rename(ward.folder / "away.json")
    report, error = fetch.fetch(config)
    assert error is None and report.skipped == {"NOT_CONSENTED": 5} and ward.here() == set(films)


def test_a_whole_search_is_asked_once_a_run_not_once_a_patient(
    orthanc: Orthanc, ward: Ward, films: list[str], fhir_server: FhirServer  # noqa: F811
) -> None:  # fmt: skip
    fhir_server.page(SEARCH, *(consent(gics(), patient) for patient in films[:3]), following="?page=2")
    fhir_server.page(f"{SEARCH}?page=2", *(consent(gics("deny"), patient) for patient in films[3:]))
    ward.table = f'[consent]\nsource = "server"\nurl = "{fhir_server.address}{SEARCH}"\n'
    report, error = fetch.fetch(ward.asks_orthanc(orthanc))
    assert error is None and report.skipped == {"NOT_CONSENTED": 3} and ward.here() == set(films[:3])
    assert [path for path, _ in fhir_server.asked] == [SEARCH, f"{SEARCH}?page=2"]


def test_a_fhir_server_that_is_down_fetches_nothing_and_deletes_nothing(
    orthanc: Orthanc, ward: Ward, films: list[str], fhir_server: FhirServer  # noqa: F811
) -> None:  # fmt: skip
    ward.table = f'[consent]\nsource = "server"\nurl = "{fhir_server.address}{SEARCH}"\n'
    config = ward.asks_orthanc(orthanc)
    report, error = fetch.fetch(config)
    assert error is not None and error.code == "CONSENT_SERVER" and "HTTP 404" in str(report.sentence)
    assert (report.studies, ward.inbox()) == (0, [])
    fhir_server.page(SEARCH, *(consent(gics(), patient) for patient in films[:3]))
    fetch.fetch(config)
    fhir_server.answers.clear()
    # For a day the last good reading counts, as it does in rounds.
    report, error = fetch.fetch(config)
    assert error is None and report.skipped == {"NOT_CONSENTED": 3}
    os.utime(config.consent_kept, (time.time() - 25 * 3600,) * 2)
    report, error = fetch.fetch(config)
    assert error is not None and error.code == "CONSENT_STALE" and report.studies == 0
    assert ward.here() == set(films[:3]) and scanning.erase_opted_out(config) == 0
    assert "CONSENT_STALE" in {each["code"] for each in status.report(config)["problems"]}


def test_the_last_good_reading_deletes_nothing_when_a_consent_runs_out(
    orthanc: Orthanc, ward: Ward, films: list[str]
) -> None:
    """Its source may say by now that it was prolonged; but an opt-out counts at once."""
    for patient in films[:2]:
        ward.says(patient, gics(period={"start": "2020-01-01", "end": "2030-01-01"}))
    config = ward.asks_orthanc(orthanc)
    ward.policy(config, consent_default="opt-in", legal_basis=None)
    fetch.fetch(config)
    ward.consents.rename(ward.folder / "away")
    later = datetime(2031, 1, 1, tzinfo=UTC)
    found = admission.load(config, later)
    assert [found.against(patient) for patient in films[:2]] == ["NOT_CONSENTED"] * 2 and found.gone(films) == set()
    ward.opts_out(films[0])
    assert admission.load(config, later).gone(films) == {films[0]}
    (ward.folder / "away").rename(ward.consents)
    ward.opts_out()
    assert admission.load(config, later).gone(films) == set(films)


def test_a_source_without_a_single_consent_deletes_nothing(orthanc: Orthanc, ward: Ward, films: list[str]) -> None:
    ward.says(films[0], gics())
    config = ward.asks_orthanc(orthanc)
    ward.policy(config, consent_default="opt-in", legal_basis=None)
    fetch.fetch(config)
    (ward.consents / f"c-{films[0]}-2024-01-01.json").rename(ward.folder / "away.json")
    report, error = fetch.fetch(config)
    assert error is None and report.skipped == {"NOT_CONSENTED": 6} and ward.here() == {films[0]}


def test_who_opted_out_loses_their_images_even_while_the_consents_cannot_be_read(
    orthanc: Orthanc, ward: Ward, films: list[str]
) -> None:
    for patient in films[:2]:
        ward.says(patient, gics())
    config = ward.asks_orthanc(orthanc)
    fetch.fetch(config)
    ward.opts_out(films[0])
    (ward.consents / "bad.json").write_text("{")
    os.utime(config.consent_kept, (time.time() - 25 * 3600,) * 2)
    _, error = fetch.fetch(config)
    assert error is not None and error.code == "CONSENT_STALE" and ward.here() == {films[1]}


def test_what_came_before_a_withdrawal_goes_when_a_round_ends(ward: Ward, listen: Listen, tmp_path: Path) -> None:  # noqa: F811
    for patient in ("P1", "P2"):
        ward.says(patient, gics())
    config = ward.receives()
    ward.policy(config, consent_default="opt-in", legal_basis=None)
    server = listen(config)
    for patient in ("P1", "P2"):
        assert send(server, write_dicom(tmp_path / f"{patient}.dcm", patient=patient)) == 0x0000
    assert scanning.erase_wanted(config) and scanning.erase_opted_out(config) == 0
    assert not scanning.erase_wanted(config)
    ward.says("P1", gics("deny"), "2025-01-01")
    node = Node(config, None)
    changes.note(node, registry.load(config, datetime.now(UTC), False))  # as the gate does before a round
    node.close()
    assert scanning.erase_wanted(config)
    ward.consents.rename(ward.folder / "away")
    assert scanning.erase_opted_out(config) == 0 and ward.here() == {"P1", "P2"}
    (ward.folder / "away").rename(ward.consents)
    assert scanning.erase_wanted(config), "what could not be done is not forgotten"
    assert scanning.erase_opted_out(config) == 1 and ward.here() == {"P2"}
    assert not scanning.erase_wanted(config)
    # Sent again within the minutes in which the receiver's reading still counts: the next round's end finds it.
    assert send(server, write_dicom(tmp_path / "again.dcm", patient="P1")) == 0x0000
    assert scanning.erase_wanted(config) and scanning.erase_opted_out(config) == 1


def test_a_policy_of_opt_in_takes_away_whoever_has_no_record_once_the_consents_can_be_read(
    ward: Ward, listen: Listen, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    ward.says("P1", gics())
    config = ward.receives()
    ward.policy(config)
    server = listen(config)
    for patient in ("P1", "P2"):
        assert send(server, write_dicom(tmp_path / f"{patient}.dcm", patient=patient)) == 0x0000
    assert scanning.erase_opted_out(config) == 0 and not scanning.erase_wanted(config)
    ward.policy(config, consent_default="opt-in", legal_basis=None)
    ward.consents.rename(ward.folder / "away")
    assert scanning.erase_wanted(config) and scanning.erase_opted_out(config) == 0
    (ward.folder / "away").rename(ward.consents)
    assert scanning.erase_wanted(config) and scanning.erase_opted_out(config) == 1 and ward.here() == {"P1"}
    assert not scanning.erase_wanted(config)


# ---- what the PACS sends


def test_an_instance_without_a_consent_is_not_kept_and_the_sender_warned(
    ward: Ward, listen: Listen, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    ward.says("P1", gics())
    ward.says("P2", gics("deny"))
    ward.says("P3", gics(period={"start": "2020-01-01", "end": "2021-01-01"}))
    server = listen(ward.receives())
    told = [send(server, write_dicom(tmp_path / f"{number}.dcm", patient=f"P{number}")) for number in range(1, 5)]
    assert told == [0x0000, KEPT_OUT, KEPT_OUT, KEPT_OUT] and ward.here() == {"P1"}
    assert not any((ward.folder / "inbox/.incoming/receive").iterdir())
    assert counts(ward) == {"received": 1, "NOT_CONSENTED": 3}


def test_without_readable_consents_nothing_is_taken_until_they_are_back(
    ward: Ward, listen: Listen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    ward.says("P1", gics())
    (ward.consents / "bad.json").write_text("{")
    server, image = listen(ward.receives()), write_dicom(tmp_path / "1.dcm", patient="P1")
    assert [send(server, image) for _ in range(2)] == [LATER, LATER]
    assert ward.inbox() == [] and counts(ward) == {"CONSENT_MALFORMED": 2}
    (ward.consents / "bad.json").unlink()
    assert send(server, image) == LATER, "a source that fails is not read for every image"
    monkeypatch.setattr(admission, "LIST_SECONDS", 0.0)
    assert send(server, image) == 0x0000


def test_a_withdrawal_counts_for_what_is_sent_minutes_later(
    ward: Ward, listen: Listen, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    ward.says("P1", gics())
    server, image = listen(ward.receives()), write_dicom(tmp_path / "1.dcm", patient="P1")
    assert send(server, image) == 0x0000
    ward.says("P1", gics("deny"), "2025-01-01")
    assert send(server, image) == 0x0000
    server._standing._read_at -= 2 * admission.CONSENT_SECONDS
    assert send(server, image) == KEPT_OUT


def test_an_opt_out_does_not_wait_for_the_next_reading_of_the_consents(
    ward: Ward, listen: Listen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    ward.says("P1", gics())
    server, image = listen(ward.receives()), write_dicom(tmp_path / "1.dcm", patient="P1")
    assert send(server, image) == 0x0000
    ward.opts_out("P1")
    monkeypatch.setattr(admission, "LIST_SECONDS", 0.0)
    assert send(server, image) == KEPT_OUT and counts(ward) == {"received": 1, "OPTED_OUT": 1}


class Slow(dict[str, Any]):
    """A FHIR server's answers, which wait until a test lets them go."""

    def __init__(self, answers: dict[str, Any]) -> None:
        super().__init__(answers)
        self.open = threading.Event()

    def get(self, *key: Any) -> Any:
        assert self.open.wait(30)
        return super().get(*key)


def test_a_fhir_server_that_is_slow_holds_up_nobody_while_a_reading_counts(
    ward: Ward, listen: Listen, tmp_path: Path, fhir_server: FhirServer, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    monkeypatch.setattr(admission, "PATIENCE", 0.2)
    fhir_server.page(SEARCH, consent(gics(), "P1"))
    fhir_server.answers = slow = Slow(fhir_server.answers)
    ward.table = f'[consent]\nsource = "server"\nurl = "{fhir_server.address}{SEARCH}"\n'
    server, image = listen(ward.receives()), write_dicom(tmp_path / "1.dcm", patient="P1")
    standing = server._standing

    def read_ago(seconds: float) -> None:
        if standing._reader is not None:
            slow.open.set()
            standing._reader.join(10)
            slow.open.clear()
        standing._read_at = time.monotonic() - seconds

    assert send(server, image) == LATER and counts(ward) == {"CONSENT_NOT_READ": 1}
    read_ago(1.5 * admission.CONSENT_SECONDS)
    monkeypatch.setattr(admission, "PATIENCE", 20.0)  # longer than this sender waits
    assert send(server, image) == 0x0000, "the last reading counts while the next is under way"
    monkeypatch.setattr(admission, "PATIENCE", 0.2)
    read_ago(2.5 * admission.CONSENT_SECONDS)
    assert send(server, image) == LATER, "but not for hours"
    assert [path for path, _ in fhir_server.asked] == [SEARCH] * 3
    read_ago(0)
    assert send(server, image) == 0x0000
