"""`consilium-verify`: an auditor checks an exported log or one record's proof, without network or trust in us.

    consilium-verify EXPORT_DIR [--policy FILE] [--previous NOTE_FILE] [--json]
    consilium-verify proof FILE --record FILE --policy FILE [--json]
    consilium-verify membership FILE (--policy FILE | --vkey KEY) [--json]

Exit status: 0 all is well, 1 something is wrong (and it says where), 2 the command itself could not run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from protocol.transparency.export import ExportError, Fault, Report, check_export
from protocol.transparency.log_policy import LogPolicyError, parse_log_policy
from protocol.transparency.membership import MembershipError, OpenNote, verify_membership
from protocol.transparency.note import Cosignature, NoteError, open_checkpoint
from protocol.transparency.proof import parse_proof
from protocol.transparency.tree import ProofError, leaf_hash, verify_inclusion

OK: Final = 0
FAULT: Final = 1
USAGE: Final = 2

_LIMITS: Final = (
    "This shows that nothing in the log was changed, removed or inserted since it was signed.",
    "It cannot show that an event was never written, and it is only as good as the policy's keys:",
    "compare them with what the hospitals pinned, or give your own with --policy.",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, None for the process's own. Returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] in (["proof"], ["membership"]):
            return (_proof if arguments[0] == "proof" else _membership)(arguments[1:])
        return _export(arguments)
    except UnicodeDecodeError:
        print("consilium-verify: a policy, proof or note must be UTF-8 text", file=sys.stderr)
    except OSError as error:
        print(f"consilium-verify: {error.filename}: {error.strerror}", file=sys.stderr)
    return USAGE


def _export(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="consilium-verify",
        description="Check an exported audit log; `consilium-verify proof --help` for one record's proof, "
        "`consilium-verify membership --help` for one patient's.",
    )
    parser.add_argument("folder", type=Path, metavar="EXPORT_DIR", help="the unpacked export")
    parser.add_argument(
        "--policy", type=Path, metavar="FILE", help="whose signatures count, instead of the export's own"
    )
    parser.add_argument(
        "--previous", type=Path, metavar="NOTE_FILE", help="a checkpoint kept from before: did the log grow from it?"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    given = parser.parse_args(arguments)
    if not given.folder.is_dir():
        parser.error(f"{given.folder} is not a folder")
    try:
        report = check_export(given.folder, policy=_read(given.policy), previous=_read(given.previous))
    except ExportError as error:
        _say_faults(error.faults, as_json=given.json)
        return FAULT
    if given.json:
        print(json.dumps(_as_json(report)))
    else:
        print("\n".join(_table(report)))
    return OK


def _proof(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="consilium-verify proof", description="Check that a log holds one record.")
    parser.add_argument("proof", type=Path, metavar="FILE", help="the .tlog-proof file")
    parser.add_argument("--record", type=Path, required=True, metavar="FILE", help="the record, exactly as downloaded")
    parser.add_argument("--policy", type=Path, required=True, metavar="FILE", help="whose signatures count")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    given = parser.parse_args(arguments)
    try:
        proof = parse_proof(given.proof.read_text(encoding="utf-8"))
        checkpoint, cosignatures = parse_log_policy(given.policy.read_text(encoding="utf-8")).open(proof.note)
        leaf = leaf_hash(given.record.read_bytes())
        verify_inclusion(leaf, proof.index, checkpoint.size, proof.hashes, checkpoint.root)
    except (ProofError, NoteError, LogPolicyError) as error:
        _say_faults([Fault(str(given.proof), None, str(error))], as_json=given.json)
        return FAULT
    if given.json:
        found = {"origin": checkpoint.origin, "size": checkpoint.size, "root": checkpoint.root.hex()}
        print(json.dumps({"ok": True, "entry": proof.index, "leaf": leaf.hex(), "log": found}))
    else:
        print(f"ok: the record is entry {proof.index} of {checkpoint.origin}, which had {checkpoint.size} entries")
        print("\n".join(_cosigned(cosignatures)))
    return OK


def _membership(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="consilium-verify membership",
        description="Check whether one patient was in the cohort of one round at one hospital.",
        epilog="Example: consilium-verify membership proof.json --vkey 'consilium/silo/site-1+1a2b3c4d+A...'",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="from `silo consent prove`")
    trusted = parser.add_mutually_exclusive_group(required=True)
    trusted.add_argument("--policy", type=Path, metavar="FILE", help="whose signatures count")
    trusted.add_argument("--vkey", metavar="KEY", help="the verifier key of the silo's log")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    given = parser.parse_args(arguments)
    try:
        open_note = _opener(given.vkey, given.policy)
        found = verify_membership(given.file.read_bytes(), open_note=open_note)
    except (MembershipError, NoteError, LogPolicyError) as error:
        _say_faults([Fault(str(given.file), None, str(error))], as_json=given.json)
        return FAULT
    if given.json:
        facts = {key: getattr(found, key) for key in ("member", "pseudonym", "size", "round", "time", "entry")}
        print(
            json.dumps({"ok": True, **facts, "log": {"origin": found.checkpoint.origin, "size": found.checkpoint.size}})
        )
        return OK
    word = "was" if found.member else "was NOT"
    print(_printable(f"ok: {found.pseudonym} {word} in the cohort of round {found.round}, of {found.size} patients"))
    print(_printable(f"    noted {found.time}, entry {found.entry} of {found.checkpoint.origin}"))
    print("That this pseudonym is a given patient's is the hospital's word: only it has the key.")
    print("\n".join(_cosigned(found.cosignatures)))
    return OK


def _opener(vkey: str | None, policy: Path | None) -> OpenNote:
    if vkey is not None:
        return lambda note: (open_checkpoint(note, vkey), ())
    return parse_log_policy(_read(policy) or "").open


def _read(path: Path | None) -> str | None:
    return None if path is None else path.read_text(encoding="utf-8")


def _say_faults(faults: Sequence[Fault], *, as_json: bool) -> None:
    if as_json:
        items = [{"where": fault.where, "entry": fault.entry, "what": fault.what} for fault in faults]
        print(json.dumps({"ok": False, "faults": items}))
        return
    for fault in faults:
        print(_printable(str(fault)))
    print(f"FAILED: {len(faults)} {'fault' if len(faults) == 1 else 'faults'}")


def _as_json(report: Report) -> dict[str, Any]:
    checkpoint = report.checkpoint
    return {
        "ok": True,
        "log": {"origin": checkpoint.origin, "size": checkpoint.size, "root": checkpoint.root.hex()},
        "entries": checkpoint.size,
        "cosignatures": [{"vkey": item.vkey, "time": item.time} for item in report.cosignatures],
        "types": {row.type: {"count": row.count, "first": row.first, "last": row.last} for row in report.types},
        "private": report.private,
        "proofs": report.proofs,
    }


def _table(report: Report) -> list[str]:
    checkpoint = report.checkpoint
    lines = [f"log      {checkpoint.origin}", f"root     {checkpoint.root.hex()}", *_cosigned(report.cosignatures), ""]
    wide = max([len("type"), *(len(row.type) for row in report.types)])
    lines.append(f"{'type':<{wide}}  entries  {'first':<24}  last")
    lines += [f"{row.type:<{wide}}  {row.count:>7}  {row.first:<24}  {row.last}" for row in report.types]
    lines += ["", f"{report.private} records have a payload outside the log, {report.proofs} proof files checked"]
    return [_printable(line) for line in (*lines, *_LIMITS, f"ok: {checkpoint.size} entries verified")]


def _cosigned(cosignatures: Sequence[Cosignature]) -> list[str]:
    if not cosignatures:
        return ["witness  none"]
    return [_printable(f"witness  {item.vkey.split('+')[0]} at {_time(item.time)}") for item in cosignatures]


def _time(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return f"{seconds} seconds after 1970"


def _printable(text: str) -> str:
    """File names and key names come from the export: nothing in them may steer the auditor's terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


if __name__ == "__main__":
    sys.exit(main())
