"""How old the silo's key is: from what was signed when it followed another, else from the enrolment, never from a guess that
a restored backup would change; told by `silo doctor` and `silo status`, with what to do when it is too old."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta

import pytest

from protocol.key_rotation import KeyRotation, sign_rotation
from protocol.signing import SigningKey
from silo_node import key_history
from silo_node.errors import Refused
from silo_node.files import write_json
from silo_node.health import doctor

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


def enrolled(silo, days, now=NOW):
    """The silo was enrolled so many days ago; its files look new, as after a restore."""
    pin = json.loads(silo.config.pin.read_text())
    pin["enrolled"] = (now - timedelta(days=days)).isoformat().replace("+00:00", "Z")
    silo.config.pin.write_text(json.dumps(pin))
    os.utime(silo.config.keys / "silo.key")


def followed(silo, days):
    """Its key followed another so many days before NOW."""
    new = SigningKey.load(silo.config.keys / "silo.key")
    old = SigningKey.generate()
    time = (NOW - timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")
    envelope = sign_rotation(KeyRotation("site-1", old.public, new.public, time), old=old, new=new)
    write_json(key_history.statement_path(silo.config, new.keyid), envelope.as_dict())
    return old


def check(silo):
    return {each.name: each for each in doctor.examine(silo.folder)}["key"]


def test_the_age_is_that_of_the_enrolment_and_after_a_change_that_of_the_change(silo):
    assert datetime.now(UTC) - key_history.age(silo.config).since < timedelta(minutes=5)
    enrolled(silo, 400)
    assert (key_history.age(silo.config, NOW).days, key_history.age(silo.config, NOW).old) == (400, True)
    followed(silo, 30)
    assert (key_history.age(silo.config, NOW).days, key_history.age(silo.config, NOW).old) == (30, False)


def test_what_only_lies_there_and_does_not_hold_is_not_believed(silo):
    enrolled(silo, 400)
    followed(silo, 30)
    path = key_history.statement_path(silo.config, SigningKey.load(silo.config.keys / "silo.key").keyid)
    value = json.loads(path.read_text())
    value["signatures"] = value["signatures"][:1]
    path.write_text(json.dumps(value))
    assert key_history.age(silo.config, NOW).days == 400


def test_an_enrolment_by_an_older_version_has_the_age_of_the_key_file(silo):
    pin = json.loads(silo.config.pin.read_text())
    del pin["enrolled"]
    silo.config.pin.write_text(json.dumps(pin))
    at = (NOW - timedelta(days=50)).timestamp()
    os.utime(silo.config.keys / "silo.key", (at, at))
    assert key_history.age(silo.config, NOW).days == 50


@pytest.mark.parametrize(("days", "state"), [(365, doctor.OK), (367, doctor.WARN)])
def test_the_doctor_warns_of_an_old_key_and_does_not_fail(silo, monkeypatch, days, state):
    enrolled(silo, days, datetime.now(UTC))
    found = check(silo)
    assert (found.state, "silo key rotate" in found.do) == (state, state == doctor.WARN), found


def test_the_days_are_a_setting(silo):
    enrolled(silo, 20, datetime.now(UTC))
    assert check(silo).state == doctor.OK
    text = (silo.folder / "silo.toml").read_text()
    (silo.folder / "silo.toml").write_text(text.replace("[limits]\n", "[limits]\nkey_days = 10\n"))
    assert check(silo).state == doctor.WARN
    assert "key_days" in check(silo).found
    assert silo.status()["key"]["old"] is True
    assert "silo key rotate" in silo.command("status", str(silo.folder)).stdout


def test_a_key_that_waits_is_named_and_no_age(silo):
    SigningKey.generate().save(key_history.next_path(silo.config))
    assert check(silo).state == doctor.WARN
    assert "silo run" in check(silo).do


def test_nobody_signs_for_a_study_that_names_the_former_key_or_another(silo, portal):
    """Before anything is signed: the gate would refuse every round of it."""
    present = portal.public
    old = followed(silo, 3)
    portal.public = old.public
    portal.make_study()
    portal.public = present
    with pytest.raises(Refused) as caught:
        silo.decide()
    assert caught.value.code == "KEY_ROTATED" and "2026-11-22" in caught.value.sentence
    portal.public = SigningKey.generate().public
    portal.make_study()
    portal.public = present
    with pytest.raises(Refused, match="OTHER_KEY"):
        silo.decide()


def test_a_change_that_would_end_this_hospitals_part_in_a_study_is_asked_for_first(ready, portal):
    before = portal.public
    done = ready.command("key", "rotate", str(ready.folder), input="n\n")
    assert done.returncode == 2 and portal.manifest.study in done.stderr and "A constant" in done.stderr
    assert portal.public == before and not key_history.next_path(ready.config).exists()
    done = ready.command("key", "rotate", str(ready.folder), "--yes", "--json")
    assert done.returncode == 0 and portal.public != before
    assert [each["study"] for each in json.loads(done.stdout)["studies"]] == [portal.manifest.study]
    done = ready.command("key", "rotate", str(ready.folder))  # it names the former key already
    assert done.returncode == 0, done.stderr
