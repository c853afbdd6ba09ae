"""Which checkpoints an auditor believes: logs, witnesses, groups and the quorum."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.signing import SigningKey
from protocol.transparency.log_policy import LogPolicyError, parse_log_policy, write_log_policy
from protocol.transparency.note import (
    Checkpoint,
    LogKey,
    NoteError,
    WitnessKey,
    add_signatures,
    cosign,
    sign_checkpoint,
    vkey,
)

LOG = LogKey("portal.example.org/audit", SigningKey.from_bytes(b"l" * 32))
NEW = LogKey("portal.example.org/audit", SigningKey.from_bytes(b"n" * 32))
WITNESSES = [WitnessKey(f"w{at}", SigningKey.from_bytes(bytes([at]) * 32)) for at in range(1, 7)]
CHECKPOINT = Checkpoint(LOG.origin, 9, bytes(32))
NOTE = sign_checkpoint(CHECKPOINT, LOG)


def cosigned(*numbers: int) -> str:
    return (
        add_signatures(NOTE, "".join(cosign(CHECKPOINT, WITNESSES[at - 1], 100 + at) for at in numbers))
        if numbers
        else NOTE
    )


def by_name(*numbers: int) -> str:
    return "".join(f"witness w{at} {WITNESSES[at - 1].vkey}\n" for at in numbers)


def test_a_policy_without_witnesses_is_written_and_opens_a_checkpoint() -> None:
    text = write_log_policy([LOG.vkey])
    assert text == f"log {LOG.vkey}\nquorum none\n"
    policy = parse_log_policy(text)
    assert policy.export_text == text
    assert policy.open(NOTE, only_known=True) == (CHECKPOINT, ())


def test_a_threshold_of_witnesses_is_written_and_needed() -> None:
    text = write_log_policy([LOG.vkey], [item.vkey for item in WITNESSES[:3]], 2)
    assert text == f"log {LOG.vkey}\n{by_name(1, 2, 3)}group witnesses 2 w1 w2 w3\nquorum witnesses\n"
    policy = parse_log_policy(text)
    _, found = policy.open(cosigned(1, 3))
    assert [(item.vkey, item.time) for item in found] == [(WITNESSES[0].vkey, 101), (WITNESSES[2].vkey, 103)]
    for too_few in (NOTE, cosigned(2), cosigned(2, 4, 5)):
        with pytest.raises(LogPolicyError, match="quorum is not reached"):
            policy.open(too_few)


def test_the_specifications_example_of_two_levels() -> None:
    text = (
        f"# the X and the Y\n\n log\t{LOG.vkey}   https://log.example.org/ \n"
        + by_name(1, 2, 3)
        + "group X-witnesses 2 w1 w2 w3\n"
        + by_name(4, 5, 6)
        + "group Y-witnesses any w4 w5 w6\ngroup X-and-Y all X-witnesses Y-witnesses\nquorum X-and-Y\n"
    )
    policy = parse_log_policy(text)
    policy.open(cosigned(1, 2, 6))
    policy.open(cosigned(1, 2, 3, 4, 5, 6))
    for too_few in ((1, 2), (1, 4, 5, 6), (4,), ()):
        with pytest.raises(LogPolicyError, match="quorum"):
            policy.open(cosigned(*too_few))
    assert policy.export_text != text and parse_log_policy(policy.export_text).export_text == policy.export_text


def test_one_witness_can_be_the_quorum() -> None:
    policy = parse_log_policy(f"log {LOG.vkey}\nwitness alice {WITNESSES[0].vkey} https://a.example/\nquorum alice\n")
    policy.open(cosigned(1))
    with pytest.raises(LogPolicyError, match="quorum"):
        policy.open(cosigned(2))


def test_a_known_witness_whose_line_fails_rejects_the_checkpoint() -> None:
    policy = parse_log_policy(write_log_policy([LOG.vkey], [WITNESSES[0].vkey]))
    other = cosign(Checkpoint(LOG.origin, 8, bytes(32)), WITNESSES[0], 5)
    with pytest.raises(NoteError, match="does not fit"):
        policy.open(add_signatures(NOTE, other))


def test_either_key_of_a_log_that_changed_its_key_is_enough() -> None:
    policy = parse_log_policy(write_log_policy([LOG.vkey, NEW.vkey]))
    for key in (LOG, NEW):
        assert policy.open(sign_checkpoint(CHECKPOINT, key))[0] == CHECKPOINT
    bad = sign_checkpoint(Checkpoint(LOG.origin, 8, bytes(32)), NEW).split("\n\n")[1]
    with pytest.raises(NoteError):
        policy.open(add_signatures(NOTE, bad))


def test_checkpoints_of_unknown_logs_and_keys_are_refused() -> None:
    policy = parse_log_policy(write_log_policy([LOG.vkey]))
    with pytest.raises(LogPolicyError, match="knows no log"):
        policy.open(sign_checkpoint(Checkpoint("x", 1, bytes(32)), LogKey("x", LOG.key)))
    with pytest.raises(NoteError, match="no signature"):
        policy.open(sign_checkpoint(CHECKPOINT, NEW))
    assert policy.open(cosigned(1))[0] == CHECKPOINT
    with pytest.raises(LogPolicyError, match="signature 2: by w1"):
        policy.open(cosigned(1), only_known=True)


LINE = f"log {LOG.vkey}\n"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "ended by a newline"),
        (LINE + "quorum none", "ended by a newline"),
        (LINE.replace("\n", "\r\n") + "quorum none\n", "control"),
        (LINE, "no quorum"),
        ("quorum none\n", "names no log"),
        (LINE + "quorum none\nquorum none\n", "line 3: a second quorum"),
        (LINE + "quorum w1\n" + by_name(1), "line 2: the quorum is not defined"),
        (LINE + "quorum\n", "line 2: must be"),
        (LINE + "quorum none x\n", "line 2: must be"),
        (LINE + "Log x\nquorum none\n", "line 2: must be"),
        (LINE + LINE + "quorum none\n", "line 2: this key stands here before"),
        ("log nonsense\nquorum none\n", "line 1: vkey"),
        (f"log {WITNESSES[0].vkey}\nquorum none\n", "line 1: a key of the wrong type"),
        (LINE + f"witness w {LOG.vkey}\nquorum none\n", "line 2: a key of the wrong type"),
        (LINE + f"witness w {vkey('w', LOG.key.public, 4)}\nquorum none\n", "line 2: this key stands"),
        (LINE + by_name(1) + by_name(2).replace("w2 ", "w1 ") + "quorum none\n", "line 3: this name is taken"),
        (LINE + by_name(1).replace("w1 ", "none ") + "quorum none\n", "line 2: this name is taken"),
        (LINE + by_name(1) + "group w1 any w1\nquorum w1\n", "line 3: this name is taken"),
        (LINE + "group g any\nquorum g\n", "line 2: must be"),
        (LINE + "group g any w1\nquorum g\n", "line 2: a member"),
        (LINE + by_name(1) + "group g any w1 w1\nquorum g\n", "line 3: a member"),
        (LINE + by_name(1) + "group g any w1\ngroup h any w1\nquorum h\n", "line 4: a member"),
        (LINE + by_name(1) + "group g 0 w1\nquorum g\n", "line 3: must need"),
        (LINE + by_name(1) + "group g 2 w1\nquorum g\n", "line 3: must need"),
        (LINE + by_name(1) + "group g most w1\nquorum g\n", "line 3: must need"),
        ("#\n" * 1001, "more than"),
    ],
)
def test_what_is_no_policy_is_refused_with_its_line(text: str, why: str) -> None:
    with pytest.raises(LogPolicyError, match=why):
        parse_log_policy(text)


def test_a_policy_that_could_not_be_read_is_not_written() -> None:
    one = WITNESSES[0].vkey
    for logs, witnesses, threshold in [([], [], 0), ([LOG.vkey], [one], 2), ([LOG.vkey], [LOG.vkey], 0)]:
        with pytest.raises(LogPolicyError):
            write_log_policy(logs, witnesses, threshold)
    same_name = vkey("w1", WITNESSES[1].key.public, 4)
    with pytest.raises(LogPolicyError, match="one name"):
        write_log_policy([LOG.vkey], [one, same_name])


words = st.sampled_from(
    ["log", "witness", "group", "quorum", "none", "any", "all", "1", "w1", LOG.vkey, WITNESSES[0].vkey, "#"]
)


@given(st.lists(st.lists(words, max_size=5).map(" ".join), max_size=6).map("\n".join) | st.text(max_size=80))
def test_the_parser_never_fails_with_another_error(text: str) -> None:
    try:
        policy = parse_log_policy(text + "\n")
    except LogPolicyError:
        return
    assert parse_log_policy(policy.export_text).logs == policy.logs
