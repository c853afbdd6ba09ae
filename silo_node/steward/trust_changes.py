"""Who decides for this hospital, and how that changes: a draft of the next trust.json, signed by people, then put in force.

    FOLDER/trust.json         the version in force
    FOLDER/trust.draft.json   version n+1 with the signatures that it has so far; counts for nothing
    FOLDER/trust/N.json       every version that was ever in force here, so that old decisions can still be verified

A draft is signed by as many people as version n asks for and as many as version n+1 asks for. A change of the draft takes
the signatures off it: nobody signs what came later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from protocol.approval import ON_PORTAL_PAGE, ApprovalError, Trust, freeze_trust, open_trust, utc_text
from protocol.canonical import CanonicalError, b64, decode, unb64
from protocol.plain_text import first_unsafe
from protocol.signing import Envelope, Passkey, SignatureError, SigningKey, sign_envelope, verify_envelope
from protocol.trust import STEWARD, TRUST_TYPE, TrustedKey, parse_trust
from silo_node.config import Config
from silo_node.errors import Refused, UsageError
from silo_node.files import read_json, write_json
from silo_node.keys import save_new
from silo_node.node import Node
from silo_node.steward import documents
from silo_node.steward.approvals import STEWARD_DAYS, load_steward, steward_actor, steward_key_path
from silo_node.steward.one_at_a_time import one_at_a_time


@dataclass(frozen=True)
class Draft:
    """A version that is not in force. trust: its content, unsigned. signed: keyids whose signatures verify.

    missing: (people that version n still asks for, people that version n+1 itself still asks for).
    """

    envelope: Envelope
    document: Mapping[str, Any]
    signed: frozenset[str]
    missing: tuple[int, int]


def draft_path(config: Config) -> Path:
    """The file of the draft."""
    return config.trust.with_name("trust.draft.json")


def read_draft(config: Config) -> Draft | None:
    """The draft, None without one. Raises: UsageError for one that is damaged or follows another version."""
    path = draft_path(config)
    value = read_json(path)
    if value is None:
        return None
    try:
        if isinstance(value, dict) and value.get("signatures") == [] and value.keys() == {"signatures", "payload"}:
            envelope = Envelope(TRUST_TYPE, unb64(value["payload"]), ())
        else:
            envelope = Envelope.from_dict(value)
        return _draft(documents.load_trust(config), envelope)
    except (ApprovalError, CanonicalError, SignatureError) as error:
        raise UsageError(f"{path} can't be used: {error}; remove it and propose the change again") from None


def propose(
    config: Config,
    *,
    add: Mapping[str, Mapping[str, Any]] | None = None,
    remove: str | None = None,
    needed: int | None = None,
    extend: str | None = None,
    until: datetime | None = None,
) -> Draft:
    """Change the draft of the next version; without one, begin it from the version in force.

    Parameters: add: keyid -> entry, as in trust.json. remove, extend: the beginning of a keyid, at least 8 digits.
    needed: how many people must agree. until: for extend; None for two years from now.
    Raises: UsageError, Refused (TRUST_MISSING).
    """
    with one_at_a_time(config):
        there = read_draft(config)
        if there is None:
            documents.load_trust(config)
            current = documents.read_envelope(config.trust)
            if current is None:
                raise UsageError(f"{config.trust} is gone: restore it from a backup")
            document = decode(current.payload)
            document["version"] += 1
        else:
            document = decode(there.envelope.payload)
        keys = document["keys"]
        for name, entry in (add or {}).items():
            _check_person(entry.get("person"), {each["person"] for each in keys.values()})
            keys[name] = dict(entry)
        if remove is not None:
            del keys[_keyid(remove, keys)]
        if extend is not None:
            keys[_keyid(extend, keys)]["not_after"] = utc_text(
                until or datetime.now(UTC) + timedelta(days=STEWARD_DAYS)
            )
        if needed is not None:
            document["roles"][STEWARD] = needed
        for name, entry in keys.items():
            _check_page(config, name, entry)
        try:
            payload = freeze_trust(document)
        except ApprovalError as error:
            raise UsageError(f"the change can't be made: {error.sentence}") from None
        write_json(draft_path(config), {"payload": b64(payload), "signatures": []})
        return _draft(documents.load_trust(config), Envelope(TRUST_TYPE, payload, ()))


def new_key(config: Config, *, person: str, passphrase: bytes) -> Draft:
    """A further steward's key in this folder, and its entry in the draft. Raises: UsageError."""
    key = SigningKey.generate()
    entry = {
        "kind": "ed25519",
        "public": b64(key.public),
        "role": STEWARD,
        "person": person.strip(),
        "not_after": utc_text(datetime.now(UTC) + timedelta(days=STEWARD_DAYS)),
    }
    path = steward_key_path(config, key.keyid)
    save_new(key, path, passphrase)
    try:
        return propose(config, add={key.keyid: entry})
    except UsageError:
        path.unlink()  # a key that nothing names would only confuse
        raise


def sign(config: Config, *, passphrase: bytes, person: str | None = None) -> Draft:
    """Add a steward's signature to the draft: of version n, or of version n+1. Raises: UsageError."""
    draft = _needed_draft(config)
    people = {name: key.person for name, key in documents.load_trust(config).keys.items()}
    people |= {name: entry["person"] for name, entry in draft.document["keys"].items()}
    key = load_steward(config, people, passphrase, person=person, but=draft.signed)
    return add_signature(config, sign_envelope(TRUST_TYPE, draft.envelope.payload, key))


def add_signature(config: Config, signed: Envelope) -> Draft:
    """Put signatures over the draft's bytes into it (also a passkey's, from the page). Raises: UsageError."""
    with one_at_a_time(config):
        draft = _needed_draft(config)
        try:
            envelope = draft.envelope.joined(signed)
            found = _draft(documents.load_trust(config), envelope)
        except (ApprovalError, SignatureError) as error:
            raise UsageError(f"the signature can't be taken: {error}") from None
        if not {name for name, _ in signed.signatures} <= found.signed:
            raise UsageError("this key stands neither in the trust.json in force nor in the draft")
        write_json(draft_path(config), envelope.as_dict())
        return found


def apply(node: Node, *, now: datetime | None = None) -> Trust:
    """Put the draft in force: recorded in the silo's log, the version before kept.

    Raises: Refused (TRUST_THRESHOLD) where people have still to sign; UsageError.
    """
    with one_at_a_time(node.config):
        config, now = node.config, now or datetime.now(UTC)
        draft = _needed_draft(config)
        before = documents.load_trust(config)
        old = documents.read_envelope(config.trust)
        try:
            trust = open_trust(draft.envelope, before, now=now)
        except (ApprovalError, SignatureError) as error:
            raise Refused("TRUST_THRESHOLD", f"The change is not in force yet: {error} (`silo trust sign`).") from None
        if old is None:
            raise UsageError(f"{config.trust} is gone: restore it from a backup")
        for name, entry in draft.document["keys"].items():
            _check_page(config, name, entry)
        write_json(_version_path(config, before.version), old.as_dict())
        node.evidence.record(
            "role.changed",
            subject=("trust", config.name, trust.digest),
            refs={"before": before.digest, "trust": trust.digest},
            data={
                "version": trust.version,
                "needed": trust.roles[STEWARD],
                "added": sorted(trust.keys.keys() - before.keys.keys()),
                "removed": sorted(before.keys.keys() - trust.keys.keys()),
                "on_portal_page": sorted(name for name, key in trust.keys.items() if key.on_portal_page),
            },
            private={"people": sorted({key.person for key in trust.keys.values()})},
            actor=steward_actor(node, min(draft.signed & before.keys.keys())),
        )
        write_json(config.trust, draft.envelope.as_dict())
        draft_path(config).unlink(missing_ok=True)
        return trust


def send(node: Node) -> None:
    """Show the portal every version after the first; it takes those that it does not have.

    Raises: PortalError, PortalRefused, UsageError.
    """
    config = node.config
    version = documents.load_trust(config).version
    chain = [documents.read_envelope(_version_path(config, number)) for number in range(2, version)]
    chain.append(documents.read_envelope(config.trust))
    if None in chain:
        raise UsageError(f"a version is missing from {config.folder / 'trust'}: restore it from a backup")
    node.egress.put_json("/api/v1/silo/trust", {"versions": [each.as_dict() for each in chain if each]}, kind="trust")


def key_facts(name: str, key: TrustedKey, now: datetime) -> dict[str, Any]:
    """A key for display. fingerprint: its keyid in groups, for two people to compare."""
    return {
        "keyid": name,
        "fingerprint": " ".join(name[at : at + 4] for at in range(0, len(name), 4)),
        "kind": "passkey" if key.passkey is not None else "ed25519",
        "person": key.person,
        "role": key.role,
        "not_after": utc_text(key.not_after),
        "valid": now < key.not_after,
        "days_left": max(0, (key.not_after - now).days),
        "page": key.passkey.origin if key.passkey is not None else None,
        "remark": ON_PORTAL_PAGE if key.on_portal_page else None,
    }


def differences(before: Trust, document: Mapping[str, Any]) -> list[str]:
    """What a draft changes, as sentences."""
    said = []
    after = document["keys"]
    for name in sorted(after.keys() - before.keys.keys()):
        where = f", used on {after[name]['origin']}" if after[name]["kind"] == "passkey" else ""
        said.append(
            f"New: a {'passkey' if where else 'key'} of {after[name]['person']}{where}, {name[:16]}..., until "
            f"{after[name]['not_after'][:10]}."
        )
        said += _about_portal_page(after[name])
    said += [
        f"Gone: the key {name[:16]}... of {before.keys[name].person}."
        for name in sorted(before.keys.keys() - after.keys())
    ]
    for name in sorted(before.keys.keys() & after.keys()):
        if after[name]["not_after"] != utc_text(before.keys[name].not_after):
            said.append(
                f"The key {name[:16]}... of {before.keys[name].person} is valid until {after[name]['not_after'][:10]} instead "
                f"of {utc_text(before.keys[name].not_after)[:10]}."
            )
        if after[name]["person"] != before.keys[name].person:
            said.append(f"The key {name[:16]}... is {after[name]['person']}'s, no longer {before.keys[name].person}'s.")
        said += _moved(name, before.keys[name], after[name])
    needed = document["roles"][STEWARD]
    if needed != before.roles[STEWARD]:
        said.append(f"From now on {needed} people must agree, instead of {before.roles[STEWARD]}.")
    return said or ["Nothing changes but the version's number."]


def _moved(name: str, before: TrustedKey, after: Mapping[str, Any]) -> list[str]:
    """How a passkey's use changes; its keyid is of its public key alone, so it stays."""
    passkey, said = before.passkey, []
    if passkey is None:
        return []
    if (after["origin"], after["rp_id"]) != (passkey.origin, passkey.rp_id):
        said.append(
            f"The passkey {name[:16]}... of {before.person} is used on {after['origin']} (for the name {after['rp_id']}), no "
            f"longer on {passkey.origin} (for {passkey.rp_id})."
        )
    if (after.get("page") == "portal") != before.on_portal_page:
        said += _about_portal_page(after) or [f"The passkey {name[:16]}... is no longer used on a page of the portal."]
    if unb64(after["credential"]) != passkey.credential:
        said.append(f"The passkey {name[:16]}... of {before.person} is asked for by another credential id.")
    return said


def _about_portal_page(entry: Mapping[str, Any]) -> list[str]:
    """What it means that the portal serves the page of a passkey; nothing for a page of the silo's own."""
    if entry.get("page") != "portal":
        return []
    return [
        f"It is used on a page that the portal serves, so the portal decides what {entry['person']} sees. Each "
        f'such decision will say "{ON_PORTAL_PAGE}". It counts for studies only, not for policy or trust.'
    ]


def _draft(before: Trust, envelope: Envelope) -> Draft:
    """Raises: ApprovalError, SignatureError where a signature of a known key fails, or it follows another version."""
    after, document = parse_trust(envelope.payload), decode(envelope.payload)
    if document["version"] != before.version + 1:
        raise UsageError(
            f"the draft is version {document['version']}, in force is {before.version}: remove the draft and propose again"
        )
    known: dict[str, bytes | Passkey] = {**before.publics(), **after.publics()}
    signed = frozenset(name for name, _ in envelope.signatures if name in known)
    if signed:
        signed = verify_envelope(envelope, payload_type=TRUST_TYPE, keys=known)
    now = datetime.now(UTC)
    missing = tuple(
        max(0, trust.roles[STEWARD] - len(trust.people(signed & trust.publics(now=now).keys())))
        for trust in (before, after)
    )
    return Draft(envelope, document, signed, (missing[0], missing[1]))


def _needed_draft(config: Config) -> Draft:
    draft = read_draft(config)
    if draft is None:
        raise UsageError("there is no draft: `silo trust propose` or `silo trust new-key` makes one")
    return draft


def _keyid(start: str, keys: Mapping[str, Any]) -> str:
    found = [name for name in keys if name.startswith(start.replace(" ", "").lower())]
    if len(start) < 8 or len(found) != 1:
        raise UsageError(f"{start} is the beginning of {len(found)} keys; give at least 8 digits of one")
    return found[0]


def _check_person(person: object, there: set[str]) -> None:
    if not isinstance(person, str) or not person or first_unsafe(person) is not None:
        raise UsageError("name the person whose key it is, in one line")
    for other in there:
        if other != person and " ".join(other.split()).casefold() == " ".join(person.split()).casefold():
            raise UsageError(f"{person} is written {other} in trust.json: people count, so write one person one way")


def _check_page(config: Config, name: str, entry: Mapping[str, Any]) -> None:
    """A passkey for a page of the portal must say so: nobody else can tell from its origin."""
    if entry.get("kind") == "passkey" and (entry.get("origin") == config.portal) != (entry.get("page") == "portal"):
        raise UsageError(
            f'the passkey {name[:16]}...: page must be "portal" where origin is the portal\'s, {config.portal}, else "silo"'
        )


def _version_path(config: Config, version: int) -> Path:
    return config.folder / "trust" / f"{version}.json"
