"""`silo run`, the real command, against a small portal over HTTP: whole studies, kill -9, a second start, a clean end."""

from __future__ import annotations

import json
import signal
import threading
import time

import numpy as np
import psutil
import pytest

from protocol import canonical
from protocol.canonical import b64, unb64
from protocol.secure_aggregation.sketch import LEAST_WORDS
from protocol.secure_aggregation.words import signed, unpack
from tests.silo_node.portal_double import ORDER

OURS = 1 << 6
"""The constant trainer's 2^-10 in fixed point with 16 fraction bits."""


def rounds_of(silo, count):
    """The lines of rounds.jsonl, once there are `count`."""
    path = silo.folder / "rounds.jsonl"
    lines = silo.until(lambda: path.exists() and len(path.read_text().splitlines()) >= count and path.read_text())
    return [json.loads(line) for line in lines.splitlines()]


def body_of(portal, number):
    """The summed body words of a round."""
    return set(np.frombuffer(b"".join(portal.sums[number][:-1]), dtype="<i4").tolist())


def test_a_study_runs_from_the_first_model_to_the_evaluation(ready, portal):
    ready.start()
    portal.begin()
    portal.wait(lambda: portal.finished(3))
    rounds = rounds_of(ready, 3)
    assert [(line["round"], line["outcome"]) for line in rounds[:3]] == [
        (0, "finished"),
        (1, "finished"),
        (2, "finished"),
    ]
    assert all(line["bytes_up"] > 0 for line in rounds)
    assert body_of(portal, 1) == {3 * portal.partner_word + OURS}
    assert portal.refused() == []
    assert list((ready.folder / "journal.d").iterdir()) == []


@pytest.mark.parametrize("word_bits", [24, 16, 12])
def test_a_study_with_shorter_words_sends_and_takes_fewer_bytes(silo, portal, word_bits):
    """Words of the constant trainer: 2^-10 at 10 binary places, a thousand of them, the masks' lanes cut off."""
    portal.partner_word = 3
    portal.make_study()
    settings = {"word_bits": word_bits, "fraction_bits": 10, "clip_norm": 1.0 / 4}
    portal.make_study(aggregation={**portal.manifest.aggregation.model_dump(), **settings})
    silo.decide()
    silo.start()
    portal.begin()
    portal.wait(lambda: portal.finished(3))
    (body,) = portal.sums[1][:-1]
    assert len(body) == 1000 * word_bits // 8
    assert set(signed(unpack(body, word_bits), word_bits)) == {3 * portal.partner_word + 1}
    assert portal.refused() == []


def test_scales_follow_the_sum_and_the_silo_keeps_the_portals_pace(silo, portal):
    """The silo computes the next scales itself: the portal takes its state only where they are the same."""
    portal.partner_word = 3
    portal.parameters_count = LEAST_WORDS
    portal.make_study(aggregation={"word_bits": 16, "fraction_bits": None, "error_feedback": True, "sketch": True})
    silo.decide()
    silo.start()
    portal.begin()
    portal.wait(lambda: portal.finished(3))
    scales = [state.scales for state in portal.states.values() if state is not None]
    assert len(scales) == 3 and len(set(scales)) > 1
    assert len(portal.sums[1][0]) == 2 * LEAST_WORDS
    assert portal.refused() == []


def test_what_rounding_took_is_sent_in_later_rounds_and_gone_with_the_study(silo, portal):
    """A quarter of a unit in each of four rounds: each word is sent exactly once, in one of them."""
    portal.rounds = 4
    portal.make_study(aggregation={"fraction_bits": 8, "error_feedback": True})
    silo.decide()
    silo.start()
    portal.begin()
    portal.wait(lambda: portal.finished(4))
    sent = sum(np.frombuffer(portal.sums[n][0], dtype="<i4") - 3 * portal.partner_word for n in (1, 2, 3, 4))
    assert set(sent.tolist()) == {1}
    portal.wait(lambda: portal.finished(5))
    rounds_of(silo, 6)
    silo.close()
    assert list((silo.folder / "feedback").iterdir()) == []


def test_it_leaves_no_secret_of_a_finished_round(sketched, portal):
    """Looked at before the check word leaves: every secret that lies in the journal then. At the end none is in any file."""
    dead = sketched.dies_at("check")
    sketched.start()
    portal.begin()
    sketched.until(dead)
    secrets = secrets_of(sketched, f"round/{portal.manifest.study}/1/1/")
    assert secrets.keys() >= {"hpke", "self", "list", "nonce 2", "half of site-2", "seed of site-2", "share of site-2"}
    sketched.start()
    portal.wait(lambda: portal.finished(3))
    rounds_of(sketched, 3)
    sketched.close()
    node = sketched.node()
    left = [key for key in node.journal.keys("round/") if key.split("/")[2] in ("0", "1", "2")]
    node.close()
    assert left == []
    assert not any(path.name.split(".")[1] in ("0", "1", "2") for path in (sketched.folder / "runs").iterdir())
    files = {path: path.read_bytes() for path in sketched.folder.rglob("*") if path.is_file()}
    found = {
        (what, path.name)
        for what, secret in secrets.items()
        for path, data in files.items()
        if secret in data or b64(secret).encode() in data or secret.hex().encode() in data
    }
    assert found == set()


def secrets_of(silo, prefix):
    """Name -> 32 bytes or more, of one attempt in the journal of a silo that does not run."""
    node = silo.node()
    own, roster, opened = (canonical.decode(node.journal.get(prefix + step)) for step in ("keys", "roster", "bundles"))
    node.close()
    found = {name: own[name] for name in ("hpke", "self", "list")} | {"nonce 2": own["nonces"][1]}
    found |= {f"half of {silo}": half for silo, half in roster["halves"].items()}
    for other, row in opened["opened"].items():
        found |= {f"seed of {other}": row["seed"], f"share of {other}": row["list_share"]}
    return {name: unb64(text) for name, text in found.items()}


@pytest.mark.parametrize("step", ["state", "keys", "bundles", "ready", "update/0", "update", "list", "unmask"])
def test_killed_at_any_step_it_goes_on_with_the_same_bytes(silo, portal, step):
    """The portal gets the message, the silo dies before it hears so; after the restart the round ends with the true sum.

    Other bytes for a chunk or message that is stored would be refused by the portal. Each word is rounded by chance (half
    a unit), so an update that was quantised a second time would be another one.
    """
    portal.make_study(aggregation={"fraction_bits": 9})
    silo.decide()
    silo.dies_and_goes_on(step, 0 if step == "state" else 1)
    assert body_of(portal, 1) == {3 * portal.partner_word, 3 * portal.partner_word + 1}


@pytest.mark.parametrize("step", ["list", "sketch", "second", "unmask", "nonce", "sum", "check", "state"])
def test_killed_at_any_step_after_the_list_it_goes_on_with_the_same_bytes(silo, portal, step):
    """As above, with the sketch check; `sum` dies while it fetches. Each word of the silo's update is 0 or 1 by chance."""
    portal.partner_word = 1
    portal.parameters_count = LEAST_WORDS
    portal.make_study(aggregation={"fraction_bits": 9, "sketch": True})
    silo.decide()
    silo.dies_and_goes_on(step)
    assert body_of(portal, 1) == {3, 4}
    assert portal.round(1).members == ["site-1", "site-2", "site-3", "site-4"]


def test_killed_in_training_it_trains_again_under_the_same_keys(ready, portal):
    ready.start()
    portal.begin()
    portal.wait(lambda: portal.finished(0))
    portal.wait(lambda: portal.round(1))
    ready.kill()
    ready.start()
    portal.wait(lambda: portal.finished(1))
    assert body_of(portal, 1) == {3 * portal.partner_word + OURS}
    assert len({env.payload for env in [portal.round(1).mail["keys"]["site-1"]]}) == 1


def test_kill_9_leaves_no_process_behind(ready, portal):
    process = ready.start()
    portal.begin()
    portal.wait(lambda: portal.finished(1))
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 3, children  # broker, training worker and its child; the control worker comes later
    ready.kill()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []


def test_it_ends_cleanly_when_asked(ready, portal):
    process = ready.start()
    portal.begin()
    portal.wait(lambda: portal.finished(1))
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    assert process.wait(15) == 0
    assert psutil.wait_procs(children, timeout=5)[1] == []
    assert ready.status()["state"] == "stopped"


def test_it_says_at_once_for_whom_it_works_where_its_page_is_and_how_it_ends(ready, portal):
    ready.start()
    ready.until(lambda: (ready.folder / "run.log").read_text())
    line = (ready.folder / "run.log").read_text().splitlines()[0]
    assert all(word in line for word in ("site-1", portal.address, "page is off", "Ctrl-C")), line


STOPS = 5.0
"""Seconds from SIGTERM to the end, as docs/running-for-months.md says."""


def ends_in_time(silo, process):
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert process.wait(60) == 0
    assert time.monotonic() - began < STOPS
    assert silo.status()["state"] == "stopped"


def test_it_ends_within_seconds_on_a_silent_network_that_takes_no_checkpoint(ready, portal):
    process = ready.start()
    ready.until(lambda: ready.status()["state"] == "idle", 40)
    assert not portal.silo_notes, "there is a checkpoint to be sent"
    portal.deaf()
    ends_in_time(ready, process)
    assert not portal.silo_notes


def test_it_ends_within_seconds_while_the_portal_answers_nothing_in_a_round(ready, portal):
    asked, over = threading.Event(), threading.Event()

    def silent(method, path):
        if path.endswith(("/keys", "/silo-checkpoint")):
            asked.set()
            over.wait(60)
        return None

    portal.fault = silent
    process = ready.start()
    portal.begin()
    portal.wait(lambda: portal.finished(0))
    assert asked.wait(40)
    try:
        ends_in_time(ready, process)
    finally:
        over.set()


def test_a_second_run_is_told_so(ready, portal):
    first = ready.start()
    ready.until(lambda: (ready.folder / "status.json").exists())
    done = ready.command("run", str(ready.folder))
    assert done.returncode == 5
    assert f"process {first.pid}" in done.stderr
    assert first.poll() is None


def test_a_broker_that_dies_is_started_again_and_the_round_goes_on(ready, portal):
    process = ready.start()
    portal.holding = True
    portal.begin()
    portal.wait(lambda: portal.finished(0))
    [broker] = [child for child in psutil.Process(process.pid).children() if "valkey" in child.name()]
    broker.kill()
    ready.until(lambda: (ready.folder / "silo.log").read_text().count("process.died") >= 1)
    portal.go_on()
    portal.wait(lambda: portal.finished(1), 40)
    assert body_of(portal, 1) == {3 * portal.partner_word + OURS}


def test_a_stale_broker_of_a_killed_run_is_shut_down(ready, portal):
    """As where the kernel knows no parent-death signal: the server lives on, and the next start finds it."""
    from silo_node.service import broker, processes

    child = broker.start_embedded(ready.config, lambda child: None)
    stale = child.process.pid
    ready.start()
    portal.begin()
    portal.wait(lambda: portal.finished(1))
    assert child.process.wait(5) is not None
    assert not psutil.pid_exists(stale) or psutil.Process(stale).status() == psutil.STATUS_ZOMBIE
    processes.stop_all([child])


def test_a_portal_that_goes_away_is_found_again(ready, portal):
    ready.start()
    portal.begin()
    portal.wait(lambda: portal.finished(0))
    portal.fault = lambda method, path: 0
    ready.until(lambda: "PORTAL_UNREACHABLE" in (ready.folder / "run.log").read_text())
    portal.fault = lambda method, path: None
    portal.wait(lambda: portal.finished(2), 40)
    assert portal.refused() == []


def test_a_wrong_clock_is_on_the_status_page_with_both_times(ready, portal):
    portal.clock_shift = -4000
    ready.start()
    ready.until(lambda: "CLOCK_SKEW" in (ready.folder / "run.log").read_text())
    problems = [each for each in ready.status()["problems"] if each["code"] == "CLOCK_SKEW"]
    assert problems
    assert all(problem["sentence"].count("Z") >= 2 for problem in problems)


def test_a_partner_that_falls_silent_after_ready_does_not_stop_the_silo(ready, portal):
    portal.absent = {"site-4": "update"}
    ready.start()
    portal.begin()
    portal.wait(lambda: portal.finished(1))
    assert portal.round(1).members == ["site-1", "site-2", "site-3"]
    assert body_of(portal, 1) == {2 * portal.partner_word + OURS}


def test_heartbeats_come_while_a_round_is_open(ready, portal):
    portal.absent = {"site-4": "keys", "site-3": "keys", "site-2": "keys"}
    ready.start()
    portal.begin()
    portal.wait(lambda: portal.played and portal.played[-1].mail["heartbeat"], 15)


def test_the_silos_own_log_is_anchored_at_the_portal_and_holds_the_round(ready, portal):
    ready.start()
    portal.begin()
    portal.wait(lambda: portal.finished(3))
    rounds_of(ready, 3)
    ready.close()
    node = ready.node()
    types = [record["type"] for record in node.evidence.records()]
    assert types[:2] == ["policy.changed", "study.approved"]
    for kind in ("round.cohort", "update.exported", "round.finished"):
        assert kind in types
    assert portal.silo_notes, "the checkpoint was sent when the silo stopped"
    assert node.evidence.counts()["sequenced"] == len(types)
    node.close()


def test_status_tells_what_was_sent_and_what_is_in_force(ready, portal):
    ready.start()
    portal.begin()
    portal.wait(lambda: portal.finished(2))
    kinds = {"update", "keys", "bundles", "ready", "list", "unmask", "nonce", "check", "state"}
    # What was sent is noted beside the sending, a moment later.
    ready.until(lambda: kinds <= ready.status()["sent"].keys())
    status = ready.status()
    assert status["running"] is True
    assert status["last_contact"]
    for kind in kinds:
        assert status["sent"][kind]["bytes_up"] > 0
    assert status["policy"]["version"] == 1
    assert [each["decision"] for each in status["approvals"]] == ["approve"]
    assert status["problems"] == []


def test_a_newer_attempt_ends_the_older_one(ready, portal):
    portal.absent = {"site-4": "bundles"}
    portal.holding = True
    ready.start()
    portal.begin()
    portal.wait(lambda: portal.finished(0))
    portal.absent = {"site-2": "bundles", "site-3": "bundles", "site-4": "bundles"}
    portal.go_on()
    portal.wait(lambda: "site-1" in portal.round(1).mail["bundles"])
    portal.absent = {}
    portal.again()
    portal.wait(lambda: portal.finished(1))
    assert portal.round(1, 2).stage == "finished"
    keys = [portal.round(1, attempt).mail["keys"]["site-1"].payload for attempt in (1, 2)]
    assert keys[0] != keys[1]


def test_it_waits_for_a_portal_that_is_not_there_yet(ready, portal):
    portal.fault = lambda method, path: 0
    ready.start()
    ready.until(lambda: "PORTAL_UNREACHABLE" in (ready.folder / "run.log").read_text())
    portal.fault = lambda method, path: None
    portal.begin()
    portal.wait(lambda: portal.finished(1), 40)


# --- away ------------------------------------------------------------------------------------------------------------


def test_away_between_update_and_sum_it_agrees_to_what_the_others_signed_and_checks_the_sum(ready, portal):
    portal.away = {"site-1": {"list", "unmask"}}
    dead = ready.dies_at("update")
    ready.train_once()
    ready.until(dead)
    played = portal.round(1)
    portal.wait(lambda: played.stage == "nonce")
    ready.start()
    portal.wait(lambda: portal.finished(1))
    assert portal.refused() == []
    assert [kind for kind in ("list", "unmask") if "site-1" in played.mail[kind]] == []
    assert [kind for kind in ("nonce", "check", "state") if "site-1" not in played.mail[kind]] == []
    assert body_of(portal, 1) == {3 * portal.partner_word + OURS}


def test_away_when_sketches_are_shown_it_is_left_out_and_joins_the_next_round(sketched, portal):
    portal.away = {"site-1": {"sketch"}}
    dead = sketched.dies_at("list")
    sketched.train_once()
    sketched.until(dead)
    portal.wait(lambda: portal.finished(1))
    assert portal.round(1).members == ["site-2", "site-3", "site-4"]
    portal.away = {}
    sketched.start()
    portal.go_on()
    portal.wait(lambda: portal.finished(2))
    assert portal.refused() == []
    assert "site-1" in portal.round(2).members


def test_away_for_a_whole_round_it_takes_up_the_model_that_the_others_signed(ready, portal):
    portal.holding = True
    ready.start()
    portal.begin()
    portal.wait(lambda: portal.finished(0))
    ready.close()
    portal.away = {"site-1": set(ORDER)}
    portal.go_on(hold=True)
    assert portal.finished(1)
    portal.away = {}
    portal.go_on()
    ready.start()
    portal.wait(lambda: portal.finished(2))
    assert portal.refused() == []
    assert "site-1" in portal.round(2).members
