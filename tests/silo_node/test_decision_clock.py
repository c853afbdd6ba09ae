"""A steward's no holds whatever the clock said when the yes was signed: `silo approve --revoke | --reject`."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from protocol.approval import ApprovalLimits, sign_statement
from protocol.data_use.document import parse_time
from protocol.policy import match_digest
from protocol.signing import Envelope
from silo_node.steward import approvals, documents
from tests.silo_node.conftest import PASSPHRASE
from tests.silo_node.test_gate import Door


@pytest.fixture
def passphrase(tmp_path):
    path = tmp_path / "passphrase"
    path.write_bytes(PASSPHRASE + b"\n")
    return str(path)


def approve_with_a_clock_ahead(silo, portal, ahead):
    """As `approvals.decide`, while the hospital's clock was `ahead` of the true time. Returns when it says it was signed."""
    config, now = silo.config, datetime.now(UTC)
    trust = documents.load_trust(config)
    node = silo.node()
    proposal = approvals.fetch(node, portal.manifest.study)
    envelope = sign_statement(
        approvals.load_steward(config, trust, PASSPHRASE),
        trust,
        decision="approve",
        reason="",
        silo=config.name,
        study=proposal.study,
        manifest=proposal.manifest,
        policy=proposal.policy.digest,
        match=match_digest(proposal.found),
        limits=ApprovalLimits(epsilon_micro=0, max_rounds=9, min_cohort=1),
        not_before=now - timedelta(seconds=1),
        not_after=now + timedelta(days=20),
        now=now + ahead,
    )
    documents.save_approval(config, proposal.study, envelope)
    approvals.send(node, proposal.study, envelope)
    node.close()
    return parse_time(documents.statements(config, proposal.study)[0].time)


@pytest.mark.parametrize(("option", "code"), [("--revoke", "APPROVAL_REVOKED"), ("--reject", "APPROVAL_REJECTED")])
@pytest.mark.parametrize("ahead", [timedelta(0), timedelta(hours=3), timedelta(days=2)])
def test_a_no_ends_the_yes_that_a_wrong_clock_dated_later(silo, portal, passphrase, option, code, ahead):
    study = portal.make_study()
    signed = approve_with_a_clock_ahead(silo, portal, ahead)
    done = silo.command(
        *("approve", str(silo.folder), study, option, "--reason", "A doubt.", "--yes"),
        *("--passphrase-file", passphrase),
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(Envelope.from_dict(portal.approvals[-1]).payload)
    assert said["decision"] == option.removeprefix("--")
    assert parse_time(said["time"]) > signed
    door = Door(silo, portal)
    # Now, and on the day on which the approval's own date has come.
    assert door.refused() == code
    assert door.refused(now=datetime.now(UTC) + timedelta(days=3)) == code
    door.node.close()
