"""A new silo key in place of the old one, as far as this silo and the portal's enrolment go.

    keys/silo.key.next            the new key, made before anything leaves; a second try takes it up
    keys/rotations/KEYID.json     what the old key signed: that the new one follows it (ROTATION_TYPE)

The portal knows one way to take a key: a one-time token, and the comparison of fingerprints. So the admin revokes the old
key and invites the silo again; then `rotate` enrols the new key. The old key's signature stays here, and its digest in the
silo's own log: an auditor can follow the keys of a silo without asking anybody. A study names the keys of those who take
part, so each running study needs a new version with the new key, approved again.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from protocol import canonical
from protocol.canonical import b64
from protocol.signing import KeyFileError, SigningKey, fingerprint, sign_envelope
from silo_node.egress import Egress
from silo_node.errors import SiloError, UsageError
from silo_node.files import write_json
from silo_node.keys import check_mode, save_new
from silo_node.node import FolderLock, Node
from silo_node.pin import Pin
from silo_node.rounds.runs import open_runs
from silo_node.steward import approvals

ROTATION_TYPE: Final = "application/vnd.consilium.key-rotation+json"


class PortalChanged(SiloError):
    """The enrolment was answered by a portal with other keys than the pinned ones."""

    exit_code = 3

    def __init__(self) -> None:
        super().__init__(
            "PORTAL_KEYS_DIFFER",
            "The portal's keys are not the pinned ones: the old key stays. Call the portal's admin.",
        )


def rotate(node: Node, token: str) -> dict[str, Any]:
    """Make, vouch for, enrol and take the new key; tried again after any failure it goes on with the same one.

    Only while `silo run` does not: a round is signed with one key from its beginning to its end.
    Returns: old and new fingerprint, the portal's state. Raises: AlreadyRunning, UsageError, PortalChanged, PortalError,
    PortalRefused (TOKEN, where the admin has not revoked and invited), DiskFull.
    """
    if node.pin is None:
        raise UsageError("this silo is not enrolled")
    lock = FolderLock(node.config.folder)
    try:
        return _rotate(node, node.pin, token)
    finally:
        lock.release()


def _rotate(node: Node, pin: Pin, token: str) -> dict[str, Any]:
    if any(run.read("refused") is None for run in open_runs(node.config.runs)):
        raise UsageError(
            "a round is open at this silo: start `silo run`, let it end, and try again when nothing is announced",
            "ROUND_OPEN",
        )
    old = node.keys.silo
    path = node.config.keys / "silo.key.next"
    if not path.exists():
        save_new(SigningKey.generate(), path)
    check_mode(path)
    try:
        new = SigningKey.load(path)
    except KeyFileError as error:
        raise UsageError(f"{error}; remove it and try again") from None
    envelope = _vouch(node, old, new)
    node.__dict__["egress"] = egress = Egress(node.config, new, pin, node.egress_log, stop=node.stop)
    answer = approvals.enrol(node, token, public=new.public)
    found = Pin.from_answer(answer)
    if (found.answer_public, found.log_vkey, found.silo) != (pin.answer_public, pin.log_vkey, pin.silo):
        raise PortalChanged
    node.evidence.record(
        "key.rotated",
        subject=("silo", node.config.name, None),
        refs={"before": f"sha256:{old.keyid}", "after": f"sha256:{new.keyid}", "statement": envelope.digest},
    )
    # The old private key is gone with this: whoever steals it later can sign nothing with it.
    path.replace(node.config.keys / "silo.key")
    egress.close()
    return {
        "silo": node.config.name,
        "before": fingerprint(old.public),
        "fingerprint": fingerprint(new.public),
        "state": answer.get("state"),
        "statement": envelope.digest,
    }


def _vouch(node: Node, old: SigningKey, new: SigningKey) -> Any:
    payload = canonical.encode(
        {
            "schema": "consilium/key-rotation/1",
            "silo": node.config.name,
            "before": b64(old.public),
            "after": b64(new.public),
            "time": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        }
    )
    envelope = sign_envelope(ROTATION_TYPE, payload, old)
    write_json(node.config.keys / "rotations" / f"{new.keyid}.json", envelope.as_dict())
    return envelope
