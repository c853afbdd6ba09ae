"""Pages of the log: proofs that verify without the portal, exports, private payloads, the auditor's questions."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import pytest
from django.db import transaction

from evidence.models import Entry
from evidence.services import record, sequence
from portal.actors import SYSTEM, Subject
from portal.keys import log_vkey
from protocol.transparency import verify
from protocol.transparency.proof import verify_proof


@pytest.fixture
def entry(db: None) -> Entry:
    with transaction.atomic():
        return record(
            type="study.rejected",
            actor=SYSTEM,
            subject=Subject("study", "st-x"),
            outcome="success",
            private={"reason": "a reason in words"},
        )


def test_a_downloaded_proof_verifies_without_the_portal(entry: Entry, make_user: Any, sign_in: Any):
    sequence()
    client = sign_in(make_user("auditor"))
    proof = client.get(f"/evidence/entries/{entry.pk}/entry.tlog-proof").content.decode()
    body = client.get(f"/evidence/entries/{entry.pk}/record.json").content
    assert body == bytes(entry.record)
    verify_proof(proof, leaf_data=body, vkey=log_vkey())


def test_an_entry_without_a_number_says_when_it_gets_one(entry: Entry, make_user: Any, sign_in: Any):
    client = sign_in(make_user("auditor"))
    assert "next checkpoint" in client.get(f"/evidence/entries/{entry.pk}/").content.decode()
    assert client.get(f"/evidence/entries/{entry.pk}/entry.tlog-proof").status_code == 404


def test_the_exported_log_passes_the_verifier(entry: Entry, make_user: Any, sign_in: Any, tmp_path: Path):
    sequence()
    answer = sign_in(make_user("auditor")).post("/evidence/verify/export.zip")
    with zipfile.ZipFile(io.BytesIO(b"".join(answer.streaming_content))) as zipped:
        zipped.extractall(tmp_path)
    assert verify.main([str(tmp_path / "consilium-log")]) == 0
    assert Entry.objects.filter(type="audit.exported").count() == 1


def test_an_export_is_no_link_that_a_page_could_trigger(entry: Entry, make_user: Any, sign_in: Any):
    assert sign_in(make_user("auditor")).get("/evidence/verify/export.zip").status_code == 405


def test_reasons_in_words_are_for_admins_and_auditors_only(
    entry: Entry, make_user: Any, sign_in: Any, organisation: Any
):
    address = f"/evidence/entries/{entry.pk}/"
    for role, may in (("auditor", True), ("admin", True), ("researcher", False), ("steward", False)):
        place = None if role in ("auditor", "admin") else organisation
        page = sign_in(make_user(role, place)).get(address).content.decode()
        assert ("a reason in words" in page) is may, role


def test_looking_at_the_log_is_an_entry_once_in_ten_minutes(entry: Entry, make_user: Any, sign_in: Any):
    client = sign_in(make_user("auditor"))
    for _ in range(3):
        client.get("/evidence/")
    assert Entry.objects.filter(type="audit.viewed").count() == 1


def test_the_list_filters_searches_and_pages(db: None, make_user: Any, sign_in: Any):
    with transaction.atomic():
        for number in range(30):
            record(type="round.finished", actor=SYSTEM, subject=Subject("round", f"st-a.{number}.1"))
        record(type="study.paused", actor=SYSTEM, subject=Subject("study", "st-a"), outcome="failure")
    client = sign_in(make_user("auditor"))
    first = client.get("/evidence/?group=round").content.decode()
    assert "1 to 25 of 30 entries" in first and "study.paused" not in first
    assert "26 to 30 of 30 entries" in client.get("/evidence/?group=round&page=2").content.decode()
    assert "1 to 1 of 1 entry" in client.get("/evidence/?outcome=failure").content.decode()
    assert "No entry fits this filter" in client.get("/evidence/?q=nothing-like-it").content.decode()


def test_the_sixteen_questions_lead_to_entries(make_user: Any, sign_in: Any):
    client = sign_in(make_user("auditor"))
    page = client.get("/evidence/questions/").content.decode()
    assert page.count('<th scope="row">') == 16
    assert "/evidence/?q=study.approved" in page
    assert "It cannot prove" in client.get("/evidence/verify/").content.decode()
