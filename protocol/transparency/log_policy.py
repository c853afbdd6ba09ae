"""Which logs and witnesses a verifier believes (C2SP tlog-policy): the file `policy` of an export, or an auditor's own.

    log <vkey> [<url>]                          any one of the logs must have signed
    witness <name> <vkey> [<url>]
    group <name> <k|any|all> <name>...          k of the members, witnesses or groups defined above
    quorum <name|none>                          exactly one line: who must have cosigned

A policy is where trust begins, so nothing inside an export can vouch for the export's own: compare its keys with what
the hospitals pinned, or give your own file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from protocol.transparency.note import (
    LOG_KIND,
    WITNESS_KIND,
    Checkpoint,
    Cosignature,
    NoteError,
    VerifierKey,
    open_checkpoint,
    parse_checkpoint,
    parse_note,
    parse_vkey,
    verify_cosignatures,
)

MAX_LINES: Final = 1000
NONE: Final = "none"
_FORBIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_SPACE = re.compile(r"[ \t]+")
_THRESHOLD = re.compile(r"any|all|[1-9][0-9]{0,3}")


class LogPolicyError(Exception):
    """A policy that can't be read, or a checkpoint that doesn't satisfy it. The message names the line or the party."""


@dataclass(frozen=True)
class Group:
    """k of the members. rule: "any", "all" or the number as written. members: names of witnesses or groups."""

    rule: str
    members: tuple[str, ...]

    @property
    def threshold(self) -> int:
        """How many members must have cosigned."""
        return {"any": 1, "all": len(self.members)}.get(self.rule) or int(self.rule)


@dataclass(frozen=True)
class LogPolicy:
    """A parsed policy. witnesses, groups: by name, in the file's order. quorum: one of those names, or "none"."""

    logs: tuple[VerifierKey, ...]
    witnesses: Mapping[str, VerifierKey]
    groups: Mapping[str, Group]
    quorum: str

    @property
    def export_text(self) -> str:
        """The one spelling that an export's policy has: no comment, no URL, witnesses called by their key's name.

        So a changed byte can't hide where nothing would read it.
        """
        lines = [f"log {key.text}" for key in self.logs]
        lines += [f"witness {key.name} {key.text}" for key in self.witnesses.values()]
        lines += [f"group {name} {group.rule} {' '.join(group.members)}" for name, group in self.groups.items()]
        return "\n".join([*lines, f"quorum {self.quorum}"]) + "\n"

    def open(self, note: str, *, only_known: bool = False) -> tuple[Checkpoint, tuple[Cosignature, ...]]:
        """The checkpoint of a note that satisfies this policy.

        Verification:
          1. One of the logs, whose name is the checkpoint's origin, signed it; no signature by a known log fails.
          2. No signature by a known witness fails.
          3. The witnesses that signed are a quorum.
          4. Where `only_known`: every signature line is by a log or witness named here.

        Raises: LogPolicyError, NoteError.
        """
        # 1
        checkpoint = self.open_without_witnesses(note)
        # 2
        cosignatures = verify_cosignatures(note, [key.text for key in self.witnesses.values()])
        # 3
        signed = {item.vkey for item in cosignatures}
        if self.quorum != NONE and not self._witnessed(self.quorum, signed):
            raise LogPolicyError(f"checkpoint: cosigned by {len(signed)} known witnesses, the quorum is not reached")
        # 4
        known = {(key.name, key.keyid) for key in (*self.logs, *self.witnesses.values())}
        for number, signature in enumerate(parse_note(note)[1], 1):
            if only_known and (signature.name, signature.keyid) not in known:
                raise LogPolicyError(
                    f"checkpoint, signature {number}: by {signature.name}, whom the policy doesn't name"
                )
        return checkpoint, cosignatures

    def open_without_witnesses(self, note: str) -> Checkpoint:
        """Step 1 of `open` alone: what a log said, which need not be what it said to others.

        Raises: LogPolicyError, NoteError.
        """
        text, signatures = parse_note(note)
        origin = parse_checkpoint(text).origin
        keys = [key for key in self.logs if key.name == origin]
        if not keys:
            raise LogPolicyError(f"checkpoint: the policy knows no log {origin}")
        present = {(signature.name, signature.keyid) for signature in signatures}
        signing = [key for key in keys if (key.name, key.keyid) in present]
        checkpoints = [open_checkpoint(note, key.text) for key in signing or keys]  # every one of them must hold
        return checkpoints[0]

    def _witnessed(self, name: str, signed: set[str]) -> bool:
        if name in self.witnesses:
            return self.witnesses[name].text in signed
        group = self.groups[name]
        return sum(self._witnessed(member, signed) for member in group.members) >= group.threshold


def write_log_policy(log_vkeys: Sequence[str], witness_vkeys: Sequence[str] = (), threshold: int = 0) -> str:
    """The policy file of an export: these logs, these witnesses, `threshold` of them as quorum, none where it is 0.

    Raises: LogPolicyError for what `parse_log_policy` would refuse, NoteError for a vkey that is none.
    """
    witnesses = {key.name: key for key in map(parse_vkey, witness_vkeys)}
    groups = {"witnesses": Group(str(threshold), tuple(witnesses))} if threshold else {}
    quorum = "witnesses" if threshold else NONE
    text = LogPolicy(tuple(map(parse_vkey, log_vkeys)), witnesses, groups, quorum).export_text
    if len(parse_log_policy(text).witnesses) != len(witness_vkeys):
        raise LogPolicyError("policy: two witnesses have one name")
    return text


def parse_log_policy(text: str) -> LogPolicy:
    """Read a policy file; comments, empty lines and URLs are allowed. At least one log is needed.

    Raises: LogPolicyError naming the line.
    """
    if _FORBIDDEN.search(text) is not None or not text.endswith("\n"):
        raise LogPolicyError("policy: must be lines ended by a newline, without other control characters than tab")
    lines = text[:-1].split("\n")
    if len(lines) > MAX_LINES:
        raise LogPolicyError(f"policy: more than {MAX_LINES} lines")
    reader = _Reader()
    for number, line in enumerate(lines, 1):
        stripped = line.strip(" \t")
        if stripped and not stripped.startswith("#"):
            try:
                reader.line(_SPACE.split(stripped))
            except (LogPolicyError, NoteError) as error:
                raise LogPolicyError(f"policy, line {number}: {error}") from None
    if not reader.logs:
        raise LogPolicyError("policy: names no log")
    if reader.quorum is None:
        raise LogPolicyError("policy: has no quorum line; write `quorum none` where no witness is needed")
    return LogPolicy(tuple(reader.logs), reader.witnesses, reader.groups, reader.quorum)


class _Reader:
    """What the lines so far have defined."""

    def __init__(self) -> None:
        self.logs: list[VerifierKey] = []
        self.witnesses: dict[str, VerifierKey] = {}
        self.groups: dict[str, Group] = {}
        self.quorum: str | None = None
        self._publics: set[bytes] = set()
        self._members: set[str] = set()

    def line(self, words: list[str]) -> None:
        match words:
            case ["log", vkey] | ["log", vkey, _]:
                self.logs.append(self._key(vkey, LOG_KIND))
            case ["witness", name, vkey] | ["witness", name, vkey, _]:
                self._check_new(name)
                self.witnesses[name] = self._key(vkey, WITNESS_KIND)
            case ["group", name, rule, *members] if members:
                self._check_new(name)
                self.groups[name] = self._group(rule, members)
            case ["quorum", name]:
                if self.quorum is not None:
                    raise LogPolicyError("a second quorum")
                if name != NONE and not self._defined(name):
                    raise LogPolicyError("the quorum is not defined above")
                self.quorum = name
            case _:
                raise LogPolicyError("must be a log, witness, group or quorum with its words")

    def _key(self, vkey: str, kind: int) -> VerifierKey:
        key = parse_vkey(vkey)
        if key.kind != kind:
            raise LogPolicyError("a key of the wrong type: logs have type 1, witnesses type 4")
        if key.public in self._publics:
            raise LogPolicyError("this key stands here before; one key never serves two")
        self._publics.add(key.public)
        return key

    def _group(self, rule: str, members: list[str]) -> Group:
        for member in members:
            if not self._defined(member) or member in self._members:
                raise LogPolicyError("a member is not defined above, or is a member already")
            self._members.add(member)
        if _THRESHOLD.fullmatch(rule) is None or Group(rule, tuple(members)).threshold > len(members):
            raise LogPolicyError(f"must need any, all, or 1 to {len(members)} of its members")
        return Group(rule, tuple(members))

    def _defined(self, name: str) -> bool:
        return name in self.witnesses or name in self.groups

    def _check_new(self, name: str) -> None:
        if name == NONE or self._defined(name):
            raise LogPolicyError("this name is taken")
