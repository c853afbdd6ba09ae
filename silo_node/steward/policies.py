"""A policy before it is signed: edited as text with an explanation of each field, and shown with what it would mean."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from protocol.canonical import decode, digest
from protocol.manifest import Manifest, ManifestError, parse_manifest, study_facts
from protocol.policy import PolicyDocument, describe_policy, load_closure, match, parse_policy, policy_facts
from silo_node.config import Config
from silo_node.errors import UsageError
from silo_node.files import write_bytes
from silo_node.node import Node
from silo_node.steward import documents
from silo_node.steward.approvals import complete_policy, read_policy_file

NEW: Final[Mapping[str, Any]] = {
    "schema": "consilium/policy/1",
    "permission": None,
    "modifiers": [],
    "diseases": [],
    "limits": {},
    "legal_basis": None,
    "consent_default": "opt-in",
    "share_metrics": False,
    "partners": {"keys": {}, "min_known": 0},
}
"""Where editing begins without a policy: no permission, so it denies everything until somebody says more."""

_FILLED_IN: Final = ("silo", "organisation", "version", "issued")
_HELP: Final = {
    "permission": 'What the data may be used for: null denies all. "DUO:0000042" any research, "DUO:0000006" health or '
    'biomedical, "DUO:0000007" the diseases below, "DUO:0000011" ancestry.',
    "modifiers": 'Further conditions, such as {"code": "DUO:0000018"} for not-for-profit use only.',
    "diseases": 'With "DUO:0000007": terms of the disease ontology, such as "DOID:1324".',
    "limits": "Local limits: min_cohort, min_participants, max_rounds, model_families, countries, expires ...",
    "legal_basis": 'In words; needed where consent_default is "opt-out".',
    "consent_default": 'A patient without a record: "opt-in" stays out, "opt-out" is in.',
    "share_metrics": "Whether this hospital's own test result may be shown.",
    "partners": "Keys of partners that this hospital knows, and how many of them must take part.",
    "log_max_age_seconds": "How old the portal's log may be.",
}


def content(config: Config) -> dict[str, Any]:
    """What a person may change of the policy in force; NEW without one."""
    envelope = documents.read_envelope(config.policy)
    if envelope is None:
        return dict(NEW)
    return {name: value for name, value in decode(envelope.payload).items() if name not in _FILLED_IN}


def changed(value: Mapping[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """With each `name=value` set; name may be dotted, value is JSON or else text. Raises: UsageError."""
    result: dict[str, Any] = json.loads(json.dumps(dict(value)))
    for setting in settings:
        path, sign, text = setting.partition("=")
        *tables, leaf = path.strip().split(".")
        if not sign or not leaf:
            raise UsageError(f"{setting}: write NAME=VALUE, such as permission=DUO:0000042 or limits.min_cohort=50")
        at = result
        for table in tables:
            at = at.setdefault(table, {})
            if not isinstance(at, dict):
                raise UsageError(f"{path}: {table} has no parts")
        try:
            at[leaf] = json.loads(text)
        except ValueError:
            at[leaf] = text
    return result


def edit_path(config: Config) -> Path:
    """What is being edited; it stays after a mistake, so that nobody types it again."""
    return config.policy.with_name("policy.edit.json")


def edited(config: Config) -> dict[str, Any]:
    """Let the person at the terminal change the policy with $VISUAL or $EDITOR. Raises: UsageError."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    if editor == "vi" and not os.isatty(0):
        raise UsageError("there is no terminal for an editor: use --set NAME=VALUE, or `silo policy --file`")
    path = edit_path(config)
    if not path.exists():
        write_bytes(path, as_text(content(config)).encode())
    try:
        done = subprocess.run([*shlex.split(editor), str(path)], check=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"the editor '{editor}' can't be started ({error}): set EDITOR, or use --set") from None
    if done.returncode:
        raise UsageError(f"the editor ended with {done.returncode}: nothing was changed, {path} keeps the text")
    return read_policy_file(path)


def as_text(value: Mapping[str, Any]) -> str:
    """JSON with a comment line above each field; `read_policy_file` reads it again."""
    parts = []
    for name, item in value.items():
        said = f"// {_HELP[name]}\n" if name in _HELP else ""
        parts.append(f"{said}{json.dumps(name)}: {json.dumps(item, ensure_ascii=False)}")
    return (
        "// The hospital's data-use policy. Lines that begin with // are comments. Save and leave the editor to go on.\n{\n"
        + ",\n\n".join(parts)
        + "\n}\n"
    )


def checked(node: Node, value: Mapping[str, Any]) -> PolicyDocument:
    """The policy that would be signed. Raises: UsageError."""
    before = documents.read_envelope(node.config.policy)
    last = parse_policy(before.payload).version if before is not None else 0
    return complete_policy(node, value, last)[1]


def preview(config: Config, policy: PolicyDocument) -> dict[str, Any]:
    """What a policy means: words; against the one in force, sentences that are gone and new; its answer to each study here.

    studies: {study, title, manifest, decision, before, reasons: sentences}; before: the answer of the policy in force.
    """
    envelope = documents.read_envelope(config.policy)
    old = parse_policy(envelope.payload) if envelope is not None else None
    words, before = describe_policy(policy), describe_policy(old) if old is not None else []
    studies = []
    for manifest_digest, manifest in studies_at_hand(config):
        found = match(policy_facts(policy), study_facts(manifest), load_closure())
        now_said = match(policy_facts(old), study_facts(manifest), load_closure()).decision if old is not None else None
        studies.append(
            {
                "study": manifest.study,
                "title": manifest.title,
                "manifest": manifest_digest,
                "decision": found.decision,
                "before": now_said,
                "reasons": [f"{each.sentence} {each.change}" for each in found.reasons],
            }
        )
    expires = policy.limits.expires
    return {
        "words": words,
        "gone": [sentence for sentence in before if sentence not in words],
        "new": [sentence for sentence in words if sentence not in before],
        "over": expires is not None and datetime.now(UTC).date().isoformat() > expires,
        "studies": studies,
    }


def studies_at_hand(config: Config) -> list[tuple[str, Manifest]]:
    """The newest version of each study that was shown at this silo: (digest, manifest), by study."""
    found = []
    for folder in sorted(config.studies.iterdir()) if config.studies.is_dir() else []:
        for path in sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True):
            data = path.read_bytes()
            if digest(data) != f"sha256:{path.stem}":
                continue  # paused.json, or a file that somebody else put here
            try:
                found.append((digest(data), parse_manifest(data)))
            except ManifestError:
                continue
            break
    return found
