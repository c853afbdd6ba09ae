"""A new silo key: vouched for by the old one, enrolled like a first one, taken only when the same portal has it."""

from __future__ import annotations

import json
import stat

import pytest

from protocol import canonical
from protocol.canonical import unb64
from protocol.key_rotation import ROTATION_TYPE, verify_rotation
from protocol.signing import Envelope, SigningKey, keyid, verify_envelope
from silo_node import key_rotation
from silo_node.errors import PortalUnreachable, SiloError, UsageError
from silo_node.key_rotation import PortalChanged
from silo_node.node import FolderLock
from tests.silo_node.portal_double import TOKEN


def statement(silo, new):
    """What the old key signed about this new one."""
    path = silo.folder / "keys" / "rotations" / f"{keyid(new)}.json"
    return Envelope.from_dict(json.loads(path.read_text()))


def rotate(silo):
    node = silo.node()
    try:
        return key_rotation.rotate(node, TOKEN)
    finally:
        node.close()


def test_the_new_key_is_enrolled_and_the_old_one_vouches_for_it(silo, portal):
    old = portal.public
    done = silo.command("key", "rotate", str(silo.folder), "--token", TOKEN, "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert portal.public != old
    assert SigningKey.load(silo.folder / "keys" / "silo.key").public == portal.public
    assert not (silo.folder / "keys" / "silo.key.next").exists()
    envelope = statement(silo, portal.public)
    assert verify_envelope(envelope, payload_type=ROTATION_TYPE, keys={keyid(old): old})
    assert unb64(canonical.decode(envelope.payload)["after"]) == portal.public
    assert verify_rotation(envelope).after == portal.public  # and the new key signed too
    node = silo.node()
    [record] = [record for record in node.evidence.records() if record["type"] == "key.rotated"]
    node.close()
    assert record["refs"]["statement"] == facts["statement"] == envelope.digest
    assert record["refs"]["before"] == f"sha256:{keyid(old)}"
    silo.policy(version=2)  # the portal takes what the new key signs


def test_a_try_that_failed_goes_on_with_the_same_new_key(silo, portal):
    """An answer that got lost: the portal has the key already, and would refuse another one under the token."""
    silo.settings((silo.folder / "silo.toml").read_text().split("[training]")[0], limits="retry = 1\n")
    portal.fault = lambda method, path: 0
    with pytest.raises(PortalUnreachable):
        rotate(silo)
    made = SigningKey.load(silo.folder / "keys" / "silo.key.next").public
    assert stat.S_IMODE((silo.folder / "keys" / "silo.key.next").stat().st_mode) == 0o600
    portal.fault = lambda method, path: None
    rotate(silo)
    assert portal.public == made


def test_another_portal_does_not_get_the_silo_with_its_new_key(silo, portal):
    """Its answer is signed by the pinned key, but names another log."""
    before = (silo.folder / "keys" / "silo.key").read_bytes()
    real = portal.enrol

    def other(body):
        answer = json.loads(real(body))
        answer["portal"]["log_vkey"] = "other"
        return json.dumps(answer).encode()

    portal.enrol = other
    with pytest.raises(PortalChanged):
        rotate(silo)
    assert (silo.folder / "keys" / "silo.key").read_bytes() == before


def test_no_key_changes_under_a_running_silo_or_an_open_round(silo, portal):
    before = portal.public
    lock = FolderLock(silo.folder)
    done = silo.command("key", "rotate", str(silo.folder), "--token", TOKEN)
    assert done.returncode == 5, done.stderr
    lock.release()
    (silo.folder / "runs" / "st-x.1.1").mkdir(parents=True)
    with pytest.raises(UsageError, match="a round is open"):
        rotate(silo)
    assert portal.public == before
    assert SigningKey.load(silo.folder / "keys" / "silo.key").public == before


def test_the_help_says_what_has_to_come_before_and_after(silo):
    done = silo.command("key", "rotate", "--help")
    assert "Examples" in done.stdout
    assert "revokes" in done.stdout


def test_a_portal_that_only_says_that_it_took_the_key_does_not_cost_the_old_one(silo, portal, monkeypatch):
    before = (silo.folder / "keys" / "silo.key").read_bytes()
    monkeypatch.setattr(
        "tests.silo_node.portal_double.verify_rotation", lambda _: type("Lie", (), {"after": portal.public})
    )
    node = silo.node()
    with pytest.raises(SiloError):
        key_rotation.rotate(node)
    node.close()
    assert (silo.folder / "keys" / "silo.key").read_bytes() == before
