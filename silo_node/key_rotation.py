"""A new silo key in place of the old one, as far as this silo and the portal's enrolment go.

    keys/silo.key.next            the new key, made before anything leaves; a second try takes it up
    keys/rotations/KEYID.json     what the old key signed: that the new one follows it (ROTATION_TYPE)

The portal takes the new key on the old key's signature; with a token, where the admin revoked the old key, it is enrolled
anew and two people compare fingerprints. The signed statement stays here, and its digest in the silo's
own log: an auditor can follow the keys of a silo without asking anybody. A study names the keys of those who take
part, so each running study needs a new version with the new key, approved again.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from protocol.key_rotation import ROTATION_TYPE, KeyRotation, sign_rotation
from protocol.signing import Envelope, KeyFileError, SigningKey, fingerprint
from silo_node.egress import Egress
from silo_node.errors import PortalRefused, SiloError, UsageError
from silo_node.files import write_json
from silo_node.keys import check_mode, save_new
from silo_node.node import FolderLock, Node
from silo_node.pin import Pin
from silo_node.rounds.runs import open_runs
from silo_node.steward import approvals
from silo_node.steward.documents import read_envelope

_PATH: Final = "/api/v1/silo/key"


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
    egress = Egress(node.config, new, pin, node.egress_log, stop=node.stop)
    if token:
        node.__dict__["egress"] = egress
        answer = approvals.enrol(node, token, public=new.public)
        found = Pin.from_answer(answer)
        if (found.answer_public, found.log_vkey, found.silo) != (pin.answer_public, pin.log_vkey, pin.silo):
            raise PortalChanged
    else:
        answer = _hand_over(node, egress, envelope, new)
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


def _vouch(node: Node, old: SigningKey, new: SigningKey) -> Envelope:
    """What both keys sign; a second try sends what the first one signed."""
    path = node.config.keys / "rotations" / f"{new.keyid}.json"
    kept = read_envelope(path)
    if kept is not None and kept.payload_type == ROTATION_TYPE and len(kept.signatures) == 2:
        return kept
    time = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    envelope = sign_rotation(KeyRotation(node.config.name, old.public, new.public, time), old=old, new=new)
    write_json(path, envelope.as_dict())
    return envelope


def _hand_over(node: Node, egress: Egress, envelope: Envelope, new: SigningKey) -> dict[str, Any]:
    """Send with the old key, then ask with the new: the old one is given up only when the new one is accepted."""
    try:
        node.egress.put_json(_PATH, envelope.as_dict(), kind="key")
    except PortalRefused as error:
        if error.code != "UNKNOWN_KEY":  # else an earlier try arrived and its answer was lost
            raise
    answer: dict[str, Any] = egress.put_json(_PATH, envelope.as_dict(), kind="key").json()
    if answer.get("key") != new.keyid:
        raise SiloError(
            "KEY_NOT_TAKEN", "The portal names another key than the new one: the old key stays. Call its admin."
        )
    return answer
