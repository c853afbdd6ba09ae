"""What the checks of a round found, on its page; what rounds together show, on the results; and in files for programs."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from federation.check_report import together_of
from federation.models import Round, RoundMessage, RoundResult
from federation.services.reasons import SKETCH_REASONS
from organisations.models import Silo
from protocol.canonical import b64, encode

START = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)
NAMES = ["site-1", "site-2", "site-3", "site-4"]
REPORT = {
    "digest": "sha256:" + "5" * 64,
    "bound": 10_000_000,
    "median": 4_000_000,
    "missing": ["site-4"],
    "silos": {
        "site-1": {"norm": 4_000_000, "cosine": 310_000, "code": None},
        "site-2": {"norm": 25_000_000, "cosine": -420_000, "code": "NORM_OVER_BOUND"},
        "site-3": {"norm": 3_000_000, "cosine": None, "code": None},
    },
}


@pytest.fixture
def study(make_hospital: Any, make_study: Any):
    """A running study of four hospitals."""
    from governance.services import study_submit

    for name in NAMES:
        make_hospital(name)
    found, owner = make_study(NAMES)
    found.submitted = study_submit(actor=owner, study=found)
    type(found).objects.filter(pk=found.pk).update(state="running")
    return found


def make_round(study: Any, number: int = 1, **fields: Any) -> Round:
    content = {
        "purpose": "train", "stage": "finished", "model_digest": "sha256:" + "1" * 64, "model_length": 10,
        "announced": NAMES, "roster": NAMES, "first_list": NAMES, "members": NAMES, "started_at": START,
        "deadline_at": START + timedelta(minutes=10), "finished_at": START + timedelta(seconds=9), "newest": False,
    } | fields  # fmt: skip
    key = f"{study.pk}.{number}.1"
    return Round.objects.create(study=study, manifest=study.submitted, key=key, number=number, attempt=1, **content)


def page(sign_in: Any, study: Any, place: str) -> str:
    return sign_in(study.owner).get(f"/studies/{study.pk}/{place}").content.decode()


def test_the_round_says_how_long_each_update_was_and_why_one_is_left_out(study: Any, sign_in: Any):
    make_round(study, sketches=REPORT, verified=True, members=["site-1", "site-3"])
    text = page(sign_in, study, "rounds/1.1/")
    for figure in ("0.40", "2.50", "1.00", "6.25", "0.31", "-0.42"):
        assert f">{figure}</td>" in text, figure
    assert SKETCH_REASONS["NORM_OVER_BOUND"] in text
    assert SKETCH_REASONS["SKETCH_MISSING"] in text
    assert text.count("left out</span>") == 2 and text.count("stays in</span>") == 2


def test_the_round_says_that_a_direction_excludes_nobody_and_why(study: Any, sign_in: Any):
    make_round(study, sketches=REPORT, verified=True)
    text = page(sign_in, study, "rounds/1.1/")
    assert "It excludes nobody: a hospital that has images of one class only looks like an attacker" in text


def test_a_verified_an_unverified_and_a_false_sum_read_differently(study: Any, sign_in: Any):
    fault = {"silo": "site-3", "code": "CHECK_MISSING", "sentence": "Its check word is missing."}
    failure = {"code": "SUM_NOT_TRUE", "sentence": "The published sum is not the sum.", "stage": "check"}
    make_round(study, 1, verified=True)
    make_round(study, 2, verified=False, faults=[fault])
    make_round(study, 3, stage="failed", failure=failure)
    make_round(study, 4, stage="check", finished_at=None)
    make_round(study, 5, stage="update", finished_at=None, members=None)
    verified, unverified, false, waits, before = (page(sign_in, study, f"rounds/{n}.1/") for n in range(1, 6))
    assert "verified by all" in verified and "less than one in a trillion" in verified
    assert "This sum stands unverified" in unverified and "check words are optional" in unverified
    assert "The check words of Hospital site-3 never came" in " ".join(unverified.split())
    assert "not believed" in false and "thrown away" in false
    assert "being checked" in waits
    assert "The checks of this round" not in before


def test_a_round_of_an_older_version_without_checks_shows_none(study: Any, sign_in: Any):
    make_round(study, first_list=None)
    assert "The checks of this round" not in page(sign_in, study, "rounds/1.1/")


def test_files_for_programs_say_what_was_checked(study: Any, sign_in: Any):
    make_round(study, sketches=REPORT, verified=False)
    client = sign_in(study.owner)
    (row,) = client.get(f"/studies/{study.pk}/report.json").json()["rounds"]
    assert (row["verified"], row["first_list"], row["sketches"]) == (False, NAMES, REPORT)
    text = b"".join(client.get(f"/studies/{study.pk}/rounds.csv").streaming_content).decode("utf-8-sig")
    (line,) = csv.DictReader(io.StringIO(text))
    assert line["sum verified"] == "no"
    assert line["left out"] == "site-2:NORM_OVER_BOUND site-4:SKETCH_MISSING"


def show_sketch(item: Round, silo: str, sums: np.ndarray, *, late: bool = False) -> None:
    payload = encode({"sums": b64(sums.astype("<i8").tobytes())})
    RoundMessage.objects.create(
        round=item, kind="sketch", silo=Silo.objects.get(name=silo), envelope={"payload": b64(payload)},
        digest="sha256:" + "0" * 64, late=late,
    )  # fmt: skip


def test_rounds_together_show_who_points_away_and_what_a_hospital_brings(study: Any, sign_in: Any):
    draw = np.random.default_rng(5)
    for number in range(1, 8):
        members = NAMES if number % 2 else NAMES[:3]
        item = make_round(study, number, verified=True, members=members, sketches=REPORT)
        RoundResult.objects.create(round=item, auc_mean=0.5 + 0.01 * number + 0.005 * (number // 2))
        common = draw.normal(0, 1e6, 256)
        for name in NAMES:
            show_sketch(item, name, (-common if name == "site-2" else common) + draw.normal(0, 1e5, 256))
    found = {row.silo: row for row in together_of(study.manifest)}
    assert found["site-2"].direction.cosine < -0.9 < 0.3 < found["site-1"].direction.cosine
    assert found["site-2"].direction.rounds == 7
    gain = found["site-4"].gain
    assert (gain.rounds_with, gain.rounds_without) == (3, 3)
    assert gain.difference == pytest.approx(0.005)
    text = page(sign_in, study, "results/")
    assert "What rounds together show" in text and "it excludes nobody" in text
    assert "3 rounds with, 3 without" in text


def test_a_late_sketch_and_a_failed_round_show_nothing(study: Any):
    item = make_round(study, 1, verified=True)
    failed = make_round(
        study, 2, stage="failed", failure={"code": "CHECK_MISSING", "sentence": "No.", "stage": "check"}
    )
    for name in NAMES:
        show_sketch(item, name, np.ones(256), late=True)
        show_sketch(failed, name, np.ones(256))
    assert together_of(study.manifest) == []
    assert together_of(None) == []
