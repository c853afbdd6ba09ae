"""What a steward signs at the page beside studies, with a passkey: a policy, the resume of a pause, the next trust.json."""

from __future__ import annotations

import html
import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest

from protocol.policy import POLICY_TYPE, parse_policy
from protocol.secure_aggregation import StudyPaused
from protocol.secure_aggregation.resume import PAYLOAD_TYPE
from protocol.trust import TRUST_TYPE
from silo_node.page.studies import QUESTIONS
from silo_node.steward import approvals, documents, pauses, resumes, trust_changes
from tests.protocol.software_passkey import PRESENT, SoftwarePasskey
from tests.silo_node.conftest import PASSPHRASE, POLICY
from tests.silo_node.page.conftest import BASE, PageUnderTest, Visitor
from tests.silo_node.test_gate import Door
from tests.silo_node.test_resume_command import signed_lists

PASSKEY = SoftwarePasskey(origin=BASE, rp_id="localhost")
EDITED = {**POLICY, "permission": "DUO:0000006"}


def trusted(page: PageUnderTest, *, needed: int | None = None, person: str = "Dr. Steward") -> None:
    """The steward's passkey stands in the trust.json in force."""
    config = page.silo.config
    trust_changes.propose(config, add={PASSKEY.passkey.keyid: PASSKEY.entry(person)}, needed=needed)
    trust_changes.sign(config, passphrase=PASSPHRASE)
    if needed is not None:
        draft = trust_changes.read_draft(config)
        trust_changes.add_signature(config, PASSKEY.envelope(TRUST_TYPE, draft.envelope.payload))
    node = page.silo.node()
    trust_changes.apply(node)
    node.close()


def question(text: str) -> tuple[dict[str, Any], str, str]:
    """(options for the browser, the question's id, where the answer goes) of a second step."""
    options = re.search(r'data-options="([^"]+)"', text)
    number = re.search(r'name="question" value="([^"]+)"', text)
    to = re.search(r'action="([^"]+)" data-passkey="get"', text)
    assert options and number and to, text
    return json.loads(html.unescape(options[1])), number[1], to[1]


def signed(visitor: Visitor, text: str, **how: Any) -> Any:
    """The answer of the passkey to a second step."""
    options, number, to = question(text)
    assert options["userVerification"] == "required"
    return visitor.post(to, question=number, response=json.dumps(PASSKEY.get(options, **how)))


def policy_step(visitor: Visitor, policy: dict[str, Any] = EDITED) -> Any:
    visitor.get("/policy")
    assert "Go on to sign" in visitor.post("/policy", policy=json.dumps(policy)).text
    return visitor.post("/policy/decide", policy=json.dumps(policy))


def test_a_steward_signs_an_edited_policy_with_a_passkey_and_it_is_in_force(page: PageUnderTest):
    trusted(page)
    visitor = page.visitor("steward")
    step = policy_step(visitor)
    assert "Exactly this is signed" in step.text and "No longer said" in step.text
    [digest] = re.findall(r"sha256:[0-9a-f]{64}", step.text)
    assert documents.read_envelope(page.silo.config.policy).digest != digest, "nothing is signed by the first step"
    answer = signed(visitor, step.text)
    assert answer.status_code == 200 and "It is in force here now" in answer.text
    config = page.silo.config
    envelope, policy = documents.load_policy(config, documents.load_trust(config), now=datetime.now(UTC))
    assert envelope.digest == digest and policy.version == 2 and policy.permission == "DUO:0000006"
    assert [name for name, _ in envelope.signatures] == [PASSKEY.passkey.keyid]
    assert [each.path for each in page.silo.portal.received if each.path.endswith("/silo/policy")][1:], "sent"
    node = page.silo.node()
    last = node.evidence.records("policy.changed")[-1]
    node.close()
    assert last["actor"]["id"] == PASSKEY.passkey.keyid and last["subject"]["version"] == digest


def test_where_two_must_agree_the_policy_waits_for_the_second_signature(page: PageUnderTest):
    trusted(page, needed=2, person="Ben Example")
    page.accounts.add("ben", role="steward", person="Ben Example", password="a long enough password")
    config, visitor = page.silo.config, Visitor(page.app)
    visitor.sign_in("ben")
    node = page.silo.node()
    first, _ = approvals.sign_policy(node, EDITED, passphrase=PASSPHRASE)
    node.close()
    assert "Version 2 waits for a further signature" in visitor.get("/policy").text
    step = visitor.post("/policy/decide", waiting="1")
    assert first.digest in step.text
    assert "It is in force here now" in signed(visitor, step.text).text
    assert documents.load_trust(config).verify(documents.read_envelope(config.policy), payload_type=POLICY_TYPE)
    assert not approvals.policy_draft_path(config).exists()


def test_a_policy_that_was_overtaken_while_it_was_read_is_not_signed(page: PageUnderTest):
    trusted(page)
    visitor = page.visitor("steward")
    step = policy_step(visitor)
    page.silo.policy(share_metrics=True)
    before = page.silo.config.policy.read_bytes()
    answer = signed(visitor, step.text)
    assert answer.status_code == 400 and "in force meanwhile" in answer.text
    assert page.silo.config.policy.read_bytes() == before


def test_without_the_persons_verification_no_policy_is_signed(page: PageUnderTest):
    trusted(page)
    visitor = page.visitor("steward")
    before = page.silo.config.policy.read_bytes()
    answer = signed(visitor, policy_step(visitor).text, flags=PRESENT)
    assert answer.status_code == 400 and "PASSKEY_NOT_VALID" in answer.text
    assert page.silo.config.policy.read_bytes() == before


def test_an_answer_to_one_question_signs_nothing_else(page: PageUnderTest):
    """A signature over a policy is no signature over anything else, and each question is answered once."""
    trusted(page)
    visitor = page.visitor("steward")
    options, number, _ = question(policy_step(visitor).text)
    other = QUESTIONS.ask("policy", "dr-steward", payload=b"{}", keyid=PASSKEY.passkey.keyid, study="")
    response = json.dumps(PASSKEY.get(options))
    for to, asked in (("/passkeys/draft/sign", number), ("/policy/decide/sign", other), ("/policy/decide/sign", other)):
        assert visitor.post(to, question=asked, response=response).status_code == 400
    assert visitor.post("/policy/decide/sign", question=number, response=response).status_code == 200
    assert visitor.post("/policy/decide/sign", question=number, response=response).status_code == 400
    held = documents.read_envelope(page.silo.config.policy)
    assert parse_policy(held.payload).version == 2


def test_without_a_passkey_in_trust_no_policy_can_be_signed_here(page: PageUnderTest):
    visitor = page.visitor("steward")
    visitor.get("/policy")
    assert "Go on to sign" not in visitor.post("/policy", policy=json.dumps(EDITED)).text
    answer = visitor.post("/policy/decide", policy=json.dumps(EDITED), key=PASSKEY.passkey.keyid)
    assert answer.status_code == 400 and "No passkey of yours" in answer.text


def paused(page: PageUnderTest) -> str:
    """The study is approved, and waits after three lists for one model."""
    portal = page.silo.portal
    portal.make_study()
    page.silo.decide()
    door = Door(page.silo, portal)
    announcement = door.announcement()
    ledger = signed_lists(door.node, portal.manifest.study, announcement.model, 3)
    with pytest.raises(StudyPaused) as caught:
        ledger.check_open(announcement.model)
    pauses.note(door.node, announcement, caught.value)
    door.node.close()
    return portal.manifest.study


def test_a_steward_signs_a_resume_with_a_passkey_after_reading_what_it_risks(page: PageUnderTest):
    trusted(page)
    study = paused(page)
    visitor = page.visitor("steward")
    text = visitor.get(f"/studies/{study}").text
    assert "Paused at this silo" in text and "differ by one hospital only: site-3." in text
    assert visitor.post(f"/studies/{study}/resume", reason=" ").status_code == 400
    step = visitor.post(f"/studies/{study}/resume", reason="The portal's disk was full.")
    assert "The portal&#39;s disk was full." in step.text and "differ by one hospital only: site-3." in step.text
    config = page.silo.config
    pause = resumes.waiting(config, study)
    assert resumes.pending(config, pause, datetime.now(UTC)) is None
    answer = signed(visitor, step.text)
    assert answer.status_code == 200 and "from the next round" in answer.text
    envelope, statement, people = resumes.pending(config, pause, datetime.now(UTC))
    assert people == {"Dr. Steward"} and statement.reason == "The portal's disk was full."
    assert documents.load_trust(config).verify(envelope, payload_type=PAYLOAD_TYPE) == {PASSKEY.passkey.keyid}
    # And the running silo takes exactly this up.
    door = Door(page.silo, page.silo.portal)
    assert pauses.take_up(door.node, door.announcement()) == statement
    assert [each["data"]["step"] for each in door.node.evidence.records("study.resumed")] == ["signed", "in force"]
    door.node.close()


def test_a_pause_that_changed_while_it_was_read_is_not_resumed(page: PageUnderTest):
    trusted(page)
    study = paused(page)
    visitor = page.visitor("steward")
    visitor.get(f"/studies/{study}")
    step = visitor.post(f"/studies/{study}/resume", reason="A network fault.")
    note = page.silo.config.studies / study / "paused.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), "lists": 4}))
    answer = signed(visitor, step.text)
    assert answer.status_code == 400 and "another one by now" in answer.text
    assert not page.silo.config.resumes.exists()


def drafted(page: PageUnderTest) -> set[str]:
    """A draft with a second steward's key."""
    draft = trust_changes.new_key(page.silo.config, person="Ben Example", passphrase=b"the passphrase of another")
    return draft.document["keys"].keys() - documents.load_trust(page.silo.config).keys.keys()


def test_a_steward_signs_a_draft_of_trust_with_a_passkey_and_puts_it_in_force(page: PageUnderTest):
    trusted(page)
    [added] = drafted(page)
    visitor = page.visitor("steward")
    text = visitor.get("/passkeys").text
    assert "New: a key of Ben Example" in text and "Put version 3 in force" not in text
    step = visitor.post("/passkeys/draft")
    assert "New: a key of Ben Example" in step.text and "Sign version 3" in step.text
    answer = signed(visitor, step.text)
    assert answer.status_code == 200 and "it can be put in force" in answer.text
    config = page.silo.config
    assert documents.load_trust(config).version == 2, "signing does not put it in force"
    text = visitor.get("/passkeys").text
    assert "Put version 3 in force" in text and "Go on to sign the draft" not in text
    digest = trust_changes.read_draft(config).envelope.digest
    assert visitor.post("/passkeys/draft/apply", draft="sha256:" + "0" * 64).status_code == 400
    assert visitor.post("/passkeys/draft/apply", draft=digest).status_code == 200
    trust = documents.load_trust(config)
    assert trust.version == 3 and trust.keys[added].person == "Ben Example"


def test_a_draft_without_enough_signatures_is_not_put_in_force(page: PageUnderTest):
    trusted(page)
    drafted(page)
    visitor = page.visitor("steward")
    visitor.get("/passkeys")
    digest = trust_changes.read_draft(page.silo.config).envelope.digest
    answer = visitor.post("/passkeys/draft/apply", draft=digest)
    assert answer.status_code == 409 and "TRUST_THRESHOLD" in answer.text
    assert documents.load_trust(page.silo.config).version == 2


def test_a_draft_that_changed_while_it_was_read_is_not_signed(page: PageUnderTest):
    trusted(page)
    drafted(page)
    visitor = page.visitor("steward")
    visitor.get("/passkeys")
    step = visitor.post("/passkeys/draft")
    trust_changes.propose(page.silo.config, needed=2)
    answer = signed(visitor, step.text)
    assert answer.status_code == 400 and "different things" in answer.text
    assert trust_changes.read_draft(page.silo.config).signed == frozenset()
