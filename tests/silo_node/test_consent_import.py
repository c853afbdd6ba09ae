"""`silo consent import` never brings back somebody who has said no, unless a person says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.silo_node.consent.fhir_examples import LONG, consent, gics

URN = "urn:uuid:1"
NO = consent(gics("deny"), "PAT-0002")
OTHERS = [consent(gics(), "PAT-0000"), consent(gics(), "PAT-0001")]


def export(path: Path, *resources: dict[str, Any]) -> str:
    entries = [
        {"resource": each, **({"fullUrl": URN} if each["resourceType"] == "Patient" else {})} for each in resources
    ]
    path.write_text(json.dumps({"resourceType": "Bundle", "type": "collection", "entry": entries}))
    return str(path)


@pytest.fixture
def take(silo, tmp_path):
    """Imports these resources; the command's end."""
    home = ("--folder", str(silo.folder))

    def taken(*resources: dict[str, Any], more: tuple[str, ...] = ()) -> Any:
        return silo.command("consent", "import", export(tmp_path / "new.json", *resources), *more, *home)

    return taken


@pytest.mark.parametrize(
    "now",
    [
        [],
        [consent(gics(), "PAT-0002", "2022-01-01")],  # an export from before the no
        [consent(gics(), "PAT-0002")],  # the same consent as it was before
        [{**NO, "status": "draft"}],
        [consent(gics("deny"), "PAT-0002", patient={"reference": "urn:uuid:elsewhere"})],  # whose is no longer told
    ],
)
def test_an_import_that_loses_a_no_is_refused_with_counts_and_no_names(silo, take, now):
    assert take(*OTHERS, NO).returncode == 0
    before = silo.config.consent_imported.read_bytes()
    done = take(*OTHERS, *now)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "CONSENT_FEWER" in done.stderr and "1 patients" in done.stderr and "--yes" in done.stderr
    assert "PAT-" not in done.stdout + done.stderr
    assert silo.config.consent_imported.read_bytes() == before
    counted = json.loads(take(*OTHERS, *now, more=("--dry-run", "--json")).stdout)
    assert (counted["denials_gone"], counted["imported"]) == (1, False)
    done = take(*OTHERS, *now, more=("--yes",))
    assert done.returncode == 0 and "1 patients whom the consents in place refuse" in done.stdout


@pytest.mark.parametrize(
    "now",
    [
        [NO],
        [consent(gics(), "PAT-0002", "2024-01-01")],  # a newer yes
        [NO, consent(gics(), "PAT-0002", "2024-01-01")],
        [consent(None, "PAT-0002", "2024-01-01", status="rejected")],  # another no
    ],
)
def test_an_import_in_which_every_no_stands_or_was_ended_is_taken(take, now):
    assert take(*OTHERS, NO).returncode == 0
    done = take(*OTHERS, *now)
    assert done.returncode == 0, done.stderr


def test_patients_who_only_permitted_may_be_missing_and_are_counted(take):
    assert take(*OTHERS, NO).returncode == 0
    found = json.loads(take(OTHERS[0], NO, more=("--json",)).stdout)
    assert (found["gone"], found["denials_gone"], found["imported"]) == (1, 0, True)


def test_who_can_now_be_told_apart_has_lost_no_refusal(take):
    """An export without its Patient resources is replaced by one that has them."""
    no = {**NO, "patient": {"reference": URN}}
    assert take(*OTHERS, no).returncode == 0
    assert take(*OTHERS, no, {"resourceType": "Patient", "id": "PAT-0002"}).returncode == 0
    assert take(*OTHERS).returncode == 3


def test_an_import_after_another_source_is_held_against_what_that_said_last(silo, take):
    assert take(*OTHERS, NO).returncode == 0
    silo.config.consent_imported.rename(silo.config.consent_kept)
    assert take(*OTHERS).returncode == 3


def test_a_damaged_import_is_mended_by_a_new_one(silo, take):
    assert take(*OTHERS, NO).returncode == 0
    silo.config.consent_imported.write_text("{")
    assert take(*OTHERS).returncode == 0


def test_a_permit_that_ran_out_does_not_become_one_by_being_left_out(take):
    over = consent(gics(period={**LONG, "end": "2024-01-01"}), "PAT-0002")
    assert take(*OTHERS, over).returncode == 0
    assert take(*OTHERS).returncode == 3
