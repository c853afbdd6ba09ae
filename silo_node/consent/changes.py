"""What changed since the silo's log last heard of it: consent.recorded and consent.withdrawn, before a round is decided.

A withdrawal is whatever ends a permission: a rejected consent, the opt-out list, a consent that ran out or is gone. Records
hold no patient; the payload beside them has an HMAC of the PatientID under a key of this silo. The log is written first,
then known.json: after a crash in between a change is recorded twice, never not at all.
"""

from __future__ import annotations

import hashlib
import hmac

from silo_node.config import Config
from silo_node.consent.registry import Registry
from silo_node.consent.rules import PERMITS
from silo_node.files import read_json, write_json
from silo_node.node import Node

_KEY = "consent registry"
"""In place of a study's id, which never has a space: a key of its own."""


def note(node: Node, registry: Registry) -> None:
    """Record what changed. Raises: DiskFull."""
    path = node.config.consent_known
    now = {patient: decision.code for patient, decision in registry.decisions.items()}
    if now == registry.known and path.exists():
        return
    if not now and not path.exists():
        return
    changed = {patient: code for patient, code in sorted(now.items()) if registry.known.get(patient) != code}
    first = not path.exists()
    recorded = []
    for patient, code in changed.items():
        before = registry.known.get(patient, "DEFAULT_PERMIT" if registry.default and not first else "DEFAULT_DENY")
        if before in PERMITS and code not in PERMITS:
            node.evidence.record(
                "consent.withdrawn",
                subject=("registry", node.config.name, registry.digest),
                reasons=[code],
                private={"subject": pseudonym(node, patient)},
            )
        else:
            recorded.append({"subject": pseudonym(node, patient), "code": code})
    if recorded:
        node.evidence.record(
            "consent.recorded", subject=("registry", node.config.name, registry.digest), private={"decisions": recorded}
        )
    write_json(path, now)


def without_consent(config: Config) -> frozenset[str]:
    """Patients whose last known decision was a DENY."""
    known = read_json(config.consent_known) or {}
    return frozenset(patient for patient, code in known.items() if code not in PERMITS)


def pseudonym(node: Node, patient: str) -> str:
    """HMAC-SHA256 of a PatientID under the registry's key, hex."""
    return hmac.new(node.keys.study_key(_KEY), patient.encode(), hashlib.sha256).hexdigest()
