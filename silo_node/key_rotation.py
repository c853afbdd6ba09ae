"""A new silo key in place of the old one, as far as this silo and the portal's enrolment go.

What lies where is in key_history.py. The steps, each whole or not at all, and what a kill between two of them leaves:

    1. The new key is made, then both keys sign that it follows.       The portal knows the old key.
    2. The portal is asked with the new key whether it has it.         As before; nothing was changed.
    3. If not: it is told, signed by the old key, or by token.         It has the old key or the new one, never both.
    4. It is asked again, as in 2: the old key stays without a yes.
    5. The silo's own log has it (`key.rotated`), once.                The portal knows the new key only.
    6. The new key's file takes the old one's place.

Whoever goes on after a kill, `silo key rotate` or `silo run`, begins again at 1 with the same new key: at 2 the portal
says where the last try ended. So a key that may be in force at the portal is never thrown away here.

While a round is open at this silo the new key waits: a round is signed with one key from its beginning to its end.
`silo run` then joins no new round, and takes the new key as soon as none is open. A study names the keys of those who
take part, so a study that has begun goes on without this hospital.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from protocol.key_rotation import KeyRotation, sign_rotation
from protocol.manifest import ManifestError, parse_manifest
from protocol.signing import Envelope, KeyFileError, SigningKey, fingerprint
from silo_node import key_history
from silo_node.egress import Egress
from silo_node.errors import PortalRefused, SiloError, UsageError
from silo_node.files import sync_folder, write_json
from silo_node.health import local_checks
from silo_node.keys import check_mode, save_new
from silo_node.node import FolderLock, Node
from silo_node.pin import Pin
from silo_node.rounds.runs import open_runs
from silo_node.steward import approvals
from silo_node.steward.documents import is_over, read_envelope

_PATH: Final = "/api/v1/silo/key"
_ASK: Final = "/api/v1/silo/assignments"
_KNOWN: Final = {"SILO_PENDING": "pending", "SILO_REVOKED": "revoked"}
"""Refusals that only a key which the portal knows gets, and what they say of the silo."""


class PortalChanged(SiloError):
    """The enrolment was answered by a portal with other keys than the pinned ones."""

    exit_code = 3

    def __init__(self) -> None:
        super().__init__(
            "PORTAL_KEYS_DIFFER",
            "The portal's keys are not the pinned ones: the old key stays. Call the portal's admin.",
        )


def rotate(node: Node, token: str = "") -> dict[str, Any]:
    """Make, vouch for, enrol and take the new key; tried again after any failure it goes on with the same one.

    Returns: old and new fingerprint, the portal's state. Raises: AlreadyRunning, UsageError (ROUND_OPEN: the key waits),
    PortalChanged, PortalError, PortalRefused (TOKEN, where the admin has not revoked and invited), DiskFull.
    """
    if node.pin is None:
        raise UsageError("this silo is not enrolled")
    lock = FolderLock(node.config.folder)
    try:
        new = _new_key(node)
        if round_open(node):
            raise UsageError(
                "a round is open at this silo. The new key waits: start `silo run`, which lets the round end, joins no "
                "other, and then takes the new key by itself",
                "ROUND_OPEN",
            )
        return _change(node, new, token)
    finally:
        lock.release()


def take_up(node: Node) -> dict[str, Any] | None:
    """Finish a change that waits, for `silo run`, which holds the lock; None where none does, or a round is open.

    It asks once and does not wait for a portal that is away. Raises: as `rotate`.
    """
    if node.pin is None or not key_history.next_path(node.config).exists() or round_open(node):
        return None
    return _change(node, _new_key(node), "", patience=0)


def round_open(node: Node) -> bool:
    """Whether this silo takes part in a round that it has not seen end."""
    return any(run.read("refused") is None for run in open_runs(node.config.runs))


def studies_left(node: Node) -> list[dict[str, str]]:
    """The studies that this hospital approves and that name its present key: they go on without it after a change.

    As far as this silo knows: a study that ended early stands here until its own last day.
    """
    found, now = [], datetime.now(UTC)
    for study in local_checks.studies(node.config):
        ends = local_checks.approved_until(node.config, study)
        if ends is None or ends <= now or is_over(node.config, study, now):
            continue
        for path in sorted((node.config.studies / study).glob("*.json"), key=lambda each: each.stat().st_mtime)[::-1]:
            try:
                manifest = parse_manifest(path.read_bytes())
            except ManifestError:
                continue  # paused.json, or a version that the gate fetches anew
            if manifest.public_keys().get(node.config.name) == node.keys.silo.public:
                found.append({"study": study, "title": manifest.title})
            break
    return found


def _change(node: Node, new: SigningKey, token: str, patience: float | None = None) -> dict[str, Any]:
    """Steps 2 to 6. patience: as `Egress.request` has it."""
    old = node.keys.silo
    envelope = _vouch(node, old, new)
    egress = Egress(node.config, new, node.pin, node.egress_log, stop=node.stop)
    try:
        state = _state(egress, patience)
        if state is None:
            if token:
                _enrol(node, egress, token, new)
            else:
                node.egress.put_json(_PATH, envelope.as_dict(), kind="key", patience=patience)
            state = _state(egress, patience)
    finally:
        egress.close()
    if state is None:
        raise SiloError(
            "KEY_NOT_TAKEN", "The portal does not know the new key: the old one stays. Call the network's admin."
        )
    if not any(each["refs"].get("statement") == envelope.digest for each in node.evidence.records("key.rotated")):
        node.evidence.record(
            "key.rotated",
            subject=("silo", node.config.name, None),
            refs={"before": f"sha256:{old.keyid}", "after": f"sha256:{new.keyid}", "statement": envelope.digest},
        )
    # The old private key is gone with this: whoever steals it later can sign nothing with it.
    key_history.next_path(node.config).replace(node.config.keys / "silo.key")
    sync_folder(node.config.keys)
    return {
        "silo": node.config.name,
        "before": fingerprint(old.public),
        "fingerprint": fingerprint(new.public),
        "state": state,
        "statement": envelope.digest,
    }


def _new_key(node: Node) -> SigningKey:
    """The key that waits, made where none does; whole on the disk before anybody hears of it."""
    path = key_history.next_path(node.config)
    if not path.exists():
        beside = path.with_name(f".{path.name}.tmp")
        beside.unlink(missing_ok=True)
        save_new(SigningKey.generate(), beside)
        beside.replace(path)
        sync_folder(path.parent)
    check_mode(path)
    try:
        return SigningKey.load(path)
    except KeyFileError as error:
        # Not "remove it": the portal may know no other key.
        raise UsageError(f"{error}; restore it from a backup") from None


def _vouch(node: Node, old: SigningKey, new: SigningKey) -> Envelope:
    """What both keys sign; a second try sends what the first one signed."""
    path = key_history.statement_path(node.config, new.keyid)
    found = key_history.statement(node.config, new.keyid)
    kept = read_envelope(path)
    if kept is not None and found is not None and (found.before, found.after) == (old.public, new.public):
        return kept
    time = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    envelope = sign_rotation(KeyRotation(node.config.name, old.public, new.public, time), old=old, new=new)
    write_json(path, envelope.as_dict())
    return envelope


def _state(egress: Egress, patience: float | None) -> str | None:
    """What the portal says of the silo with the key of `egress`: active, pending or revoked; None where it knows no such
    key. Raises: PortalError, PortalRefused."""
    try:
        egress.get(_ASK, kind="key", query={"wait": 0}, patience=patience)
    except PortalRefused as error:
        if error.code == "UNKNOWN_KEY":
            return None
        if error.code in _KNOWN:
            return _KNOWN[error.code]
        raise
    return "active"


def _enrol(node: Node, egress: Egress, token: str, new: SigningKey) -> None:
    pin = node.pin
    with_new = Node(node.config, pin)
    with_new.__dict__["egress"] = egress
    answer = Pin.from_answer(approvals.enrol(with_new, token, public=new.public))
    if pin is None or (answer.answer_public, answer.log_vkey, answer.silo) != (
        pin.answer_public,
        pin.log_vkey,
        pin.silo,
    ):
        raise PortalChanged
