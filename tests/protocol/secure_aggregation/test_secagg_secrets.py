"""No secret of a round stands in a repr, an exception or a log line, and none is compared byte by byte."""

from __future__ import annotations

import ast
import base64
import dataclasses
import logging
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.memory_journal import MemoryJournal
from protocol import canonical, secure_aggregation
from protocol.messages import KINDS
from protocol.secure_aggregation import ProtocolViolation, sealing
from protocol.signing import Envelope

BEFORE = ("keys", "bundles", "ready", "update", "list", "sketch", "second", "unmask")
AFTER = ("nonce", "check", "verify")


# --- what is said ----------------------------------------------------------------------------------------------------


class Listener:
    """Every text that a round gives off: reprs of all objects of ours that can be reached, exceptions, log lines."""

    def __init__(self, this) -> None:
        self.this = this
        self.texts: list[str] = []
        self.kinds: set[str] = set()
        self.codes: set[str] = set()

    def look(self) -> None:
        """At the machines and what they hold, the coordinator's views, and every message that is there."""
        this = self.this
        roots: list[Any] = [this.parameters, this.coordinator, *this.machines.values()]
        for kind, mail in this.mail.items():
            roots += [KINDS[kind].parse(envelope.payload) for envelope in mail.values()]
        roots += [dict(this.mail)]
        if this.mail["keys"]:
            roots.append(this.roster)
        if len(this.mail["ready"]) == len(this.silos):
            roots.append(this.coordinator.ready(this.roster, this.relayed("ready")))
            roots += self.bundles()
        if len(this.mail["unmask"]) == len(this.mail["list"]) > 0:
            roots.append(this.removal())
        seen: set[int] = set()
        for root in roots:
            for each in reach(root, seen):
                self.texts.append(repr(each))
                self.kinds.add(type(each).__name__)

    def bundles(self) -> Iterator[Any]:
        this, roster = self.this, self.this.roster
        for name in this.silos:
            private = canonical.unb64(record(this, name, "keys")["hpke"])
            boxes = this.coordinator.boxes_for(roster, this.relayed("bundles"), name)
            for sender, box in boxes.items():
                where = {"ctx": this.parameters.ctx, "roster": roster.digest}
                places = {"sender": roster.index(sender), "receiver": roster.index(name)}
                yield sealing.open_bundle(box, private=private, **where, **places)

    def provoke(self) -> None:
        """Call everything that a silo has with what does not belong there; keep what is raised."""
        this = self.this
        mixed = [envelope for mail in this.mail.values() for envelope in mail.values()]
        for machine in this.machines.values():
            body, tail = this.updates[machine.silo]
            for call in (
                lambda m=machine: m.accept_roster(mixed),
                lambda m=machine: m.accept_bundles({name: bytes(200) for name in this.silos}),
                lambda m=machine: m.accept_ready(mixed),
                lambda m=machine, b=body, t=tail: m.begin_update(b + b.dtype.type(1), t),
                lambda m=machine: m.masked_chunk(7),
                lambda m=machine: m.sign_list(mixed[:1]),
                lambda m=machine: m.show_sketch(mixed),
                lambda m=machine: m.sign_second(mixed),
                lambda m=machine: m.unmask(this.relayed("list")[:1], mixed),
                lambda m=machine: m.agree([], []),
                lambda m=machine: m.send_check(this.relayed("nonce")[:1]),
                lambda m=machine, t=tail: m.verify_sum(this.relayed("check")[:1], [], t),
                lambda m=machine: m.sign_state("no digest"),
            ):
                self.raised(call)
            if not this.mail["unmask"] or this.mail["nonce"]:
                self.raised(lambda m=machine: m.open_nonce("sha256:" + "9" * 64))
        self.raised(lambda: this.removal(this.silos[:1]))

    def raised(self, call) -> None:
        try:
            call()
        except (ProtocolViolation, ValueError, IndexError, KeyError) as error:
            self.codes.add(getattr(error, "code", type(error).__name__))
            self.texts += [str(error), repr(error), "".join(traceback.format_exception(error))]


def reach(value: object, seen: set[int]) -> Iterator[object]:
    """Every object of the protocol's own classes that can be reached from `value`."""
    if id(value) in seen or isinstance(value, MemoryJournal):
        return
    seen.add(id(value))
    if isinstance(value, Mapping):
        for each in value.values():
            yield from reach(each, seen)
    elif isinstance(value, list | tuple | set) and not hasattr(value, "_fields"):
        for each in value:
            yield from reach(each, seen)
    if type(value).__module__.startswith("protocol."):
        yield value
        names = [*getattr(value, "__dict__", ()), *getattr(value, "_fields", ())]
        for name in names:
            yield from reach(getattr(value, name), seen)


# --- what must not be said -------------------------------------------------------------------------------------------


def record(this, name: str, step: str) -> dict[str, Any]:
    return canonical.decode(this.journals[name].rows[f"round/st-abc/1/0/{step}"])


def secrets_of(this) -> dict[str, bytes]:
    """What each silo's journal holds at the end of the round, by name."""
    found: dict[str, bytes] = {}
    for name in this.silos:
        own, roster, opened = (record(this, name, step) for step in ("keys", "roster", "bundles"))
        texts = {"b": own["self"], "K": own["list"], "hpke": own["hpke"]}
        texts |= {f"nonce {i}": nonce for i, nonce in enumerate(own["nonces"])}
        texts |= {f"own {share}": roster[share] for share in ("self_share", "list_share")}
        texts |= {f"half for {other}": half for other, half in roster["halves"].items()}
        for other, row in opened["opened"].items():
            texts |= {f"{what} of {other}": row[what] for what in ("self_share", "list_share", "seed")}
        found |= {f"{name}: {what}": canonical.unb64(text) for what, text in texts.items()}
        found |= {
            f"{name}: words {k}": this.journals[name].rows[f"round/st-abc/1/0/chunk/{k}"]
            for k in range(this.parameters.chunk_count)
        }
        for what in ("mlkem", "x25519"):
            found[f"{name}: hpke {what}"] = (
                found[f"{name}: hpke"][:64] if what == "mlkem" else found[f"{name}: hpke"][64:]
            )
    return found


def spellings(secret: bytes) -> Iterator[str]:
    """How a text could show it: its first bytes are enough to be found."""
    head = secret[:24]
    yield head.hex()
    yield repr(head)[2:-1]
    yield repr(bytearray(head))[12:-2]
    for shift in range(3):
        # Base64 of the secret within something longer: only whole groups are the same whatever surrounds it.
        yield base64.b64encode(secret[shift : shift + 24]).decode()
    for width in (1, 4, 8):
        numbers = [
            str(int.from_bytes(secret[i : i + width], "little")) for i in range(0, min(len(secret), 8 * width), width)
        ]
        if len(numbers) >= 3 and sum(map(len, numbers)) > 8:
            yield ", ".join(numbers)
            yield " ".join(numbers)


def leaks(secrets: Mapping[str, bytes], texts: list[str]) -> set[str]:
    whole = "\n".join(texts)
    return {name for name, secret in secrets.items() if any(spelling in whole for spelling in spellings(secret))}


@pytest.mark.parametrize("sketch", [None, 1e12])
def test_no_secret_stands_in_a_repr_an_exception_or_a_log_line(world, caplog, sketch):
    """At every step; the shares and nonces that were sent are not shown afterwards either."""
    caplog.set_level(logging.DEBUG)
    this = world(4, words=64, tail=8, sketch=sketch, small=False)
    # Long words, so that one that is shown is found, of which four do not wrap round.
    this.updates = {name: (body >> 4, tail >> 4) for name, (body, tail) in this.updates.items()}
    listener = Listener(this)
    for step in BEFORE:
        if sketch is None and step in ("sketch", "second"):
            continue
        this.play(step)
        listener.look()
        listener.provoke()
    this.publish()
    for step in AFTER:
        this.play(step)
        listener.look()
        listener.provoke()
    texts = [*listener.texts, *caplog.messages]
    secrets = secrets_of(this)
    assert len(secrets) > 4 * 20
    assert listener.kinds >= {"SiloRound", "Masks", "Stream", "Bundle", "Unmask", "Envelope", "Removal", "ReadyView"}
    assert listener.codes >= {"OUT_OF_STAGE", "BAD_SIGNATURE", "SECOND_UPDATE", "SECOND_SUM", "NOT_ENOUGH_SHARES"}
    assert leaks(secrets, texts) == set()


def test_the_search_for_secrets_finds_each_spelling():
    secret = bytes(range(7, 71))
    for text in (
        f"x{secret.hex()}",
        repr({"share": secret}),
        repr(bytearray(secret)),
        base64.b64encode(b"a" + secret).decode(),
        base64.b64encode(b"ab" + secret).decode(),
        base64.b64encode(b"abc" + secret).decode(),
        str(list(secret)),
    ):
        assert leaks({"s": secret}, ["nothing", text]) == {"s"}, text


# --- how secrets are compared ----------------------------------------------------------------------------------------

SECRET = frozenset(
    (
        *("secret", "share", "self_share", "list_share", "half", "seed", "plain", "private", "nonce", "chunk"),
        *("binding", "interpolate", "tobytes", "unb64"),
    )
)
"""Names of secrets, and of calls that give one or the hash of one."""


def names_in(node: ast.AST) -> Iterator[str]:
    """All names in an expression; what only measures (`len(x)`, `x.dtype`) is no look at its bytes."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "len":
        return
    if isinstance(node, ast.Attribute) and node.attr in ("dtype", "shape", "size", "nbytes"):
        return
    if isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, ast.Attribute):
        yield node.attr
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    for child in ast.iter_child_nodes(node):
        yield from names_in(child)


def plain_comparisons(source: str) -> list[str]:
    """Comparisons by ==, != or in of which one side names a secret."""
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Compare)
        and any(isinstance(operator, ast.Eq | ast.NotEq) for operator in node.ops)
        and SECRET & set(names_in(node))
    ]


PUBLIC = {
    "roster.keys[self.silo] != sealing.public_of(canonical.unb64(own['hpke']))",
    "own_word(parameters, seed, body, [tail]) != expected",
    "found.pop(self.silo) != ready_value(sent.digest, SparseReady.parse(sent.payload).nonce)",
}
"""A public key; the check word of the published sum under a seed that all members know; what a signed `ready` says."""


def test_secrets_are_compared_in_constant_time():
    folder = Path(secure_aggregation.__file__).parent
    found = {each for path in folder.rglob("*.py") for each in plain_comparisons(path.read_text(encoding="utf-8"))}
    assert found == PUBLIC


@pytest.mark.parametrize(
    "line",
    [
        "sealing.binding(what, secret) == signed",
        "x = [s for s in came if shamir.interpolate(used, x) != s]",
        "if row['seed'] == other: pass",
        "assert self._records.chunk(k) != words",
    ],
)
def test_the_search_for_comparisons_finds_them(line):
    assert len(plain_comparisons(line)) == 1


def test_an_envelope_shows_what_it_is_and_not_what_it_says():
    shown = repr(Envelope("text/plain", b"the secret", (("a" * 64, b"x" * 64),)))
    assert "text/plain" in shown and "secret" not in shown
    assert dataclasses.fields(Envelope)[1].name == "payload"
