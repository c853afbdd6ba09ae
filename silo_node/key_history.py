"""What lies here about this silo's keys, read without the network: since when the present one is in force, which came before
it, and whether a new one waits.

keys/silo.key                 the present key
keys/silo.key.next            a new one that is made and not in force here: key_rotation.py takes it
keys/rotations/KEYID.json     what two keys signed: that this one followed another (ROTATION_TYPE)
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from protocol.key_rotation import KeyRotation, RotationError, verify_rotation
from protocol.signing import keyid
from silo_node.config import Config
from silo_node.errors import Refused, SiloError
from silo_node.keys import Keys
from silo_node.pin import Pin
from silo_node.steward.documents import read_envelope

WAITS: Final = "KEY_WAITS"
OLD: Final = "KEY_OLD"
FORMER: Final = "KEY_ROTATED"


def next_path(config: Config) -> Path:
    """Where a new key waits."""
    return config.keys / "silo.key.next"


def statement_path(config: Config, number: str) -> Path:
    """What the key before it signed about the key with this keyid."""
    return config.keys / "rotations" / f"{number}.json"


def statement(config: Config, number: str) -> KeyRotation | None:
    """What two keys signed when this one followed; None where there is none, or none that holds. Raises: UsageError."""
    envelope = read_envelope(statement_path(config, number))
    if envelope is None:
        return None
    try:
        return verify_rotation(envelope)
    except RotationError:
        return None


def waiting(config: Config) -> Refused | None:
    """That a new key waits; None where none does. While it does no new round is joined (gate.py)."""
    try:
        since = datetime.fromtimestamp(next_path(config).stat().st_mtime, UTC)
    except FileNotFoundError:
        return None
    return Refused(
        WAITS,
        f"This hospital has changed its silo's key since {since:%Y-%m-%d %H:%M} UTC, and joins no new round until the new "
        "key is in force.",
    )


@dataclass(frozen=True)
class Age:
    """since: when the present key came into force: signed when it followed another, else when it was enrolled, else when
    its file was made. days: whole ones since then. old: whether that is more than `[limits] key_days`."""

    since: datetime
    days: int
    old: bool


def age(config: Config, now: datetime | None = None) -> Age:
    """Of the present key. Raises: UsageError where it can't be read."""
    now = now or datetime.now(UTC)
    since = _since(config)
    days = max(0, (now - since).days)
    return Age(since, days, days > config.settings.limits.key_days)


def _since(config: Config) -> datetime:
    number = keyid(Keys(config).silo.public)
    followed = statement(config, number)
    if followed is not None:
        return datetime.fromisoformat(followed.time)
    try:
        enrolled = Pin.load(config).enrolled
    except SiloError:
        enrolled = ""
    try:
        return datetime.fromisoformat(enrolled)
    except ValueError:  # enrolled by an older version, or not yet
        return datetime.fromtimestamp((config.keys / "silo.key").stat().st_mtime, UTC)


def left_on(config: Config, public: bytes) -> datetime | None:
    """When this silo left the key `public` for its next one; None where it never held it, or holds it still."""
    folder = config.keys / "rotations"
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        found = statement(config, path.stem)
        if found is not None and found.before == public and public != Keys(config).silo.public:
            return datetime.fromisoformat(found.time)
    return None


def check_named(config: Config, public: bytes) -> None:
    """A study names this key for this silo: it must be the present one. Raises: Refused (KEY_ROTATED, OTHER_KEY)."""
    if public == Keys(config).silo.public:
        return
    left = left_on(config, public)
    if left is None:
        raise Refused("OTHER_KEY", "The study names another key for this silo than the one that it holds.")
    raise former(f"{left:%Y-%m-%d}")


def former(left: str = "") -> Refused:
    """That a study names the key from before. left: the day of the change, where it is known."""
    return Refused(
        FORMER,
        f"The study names the key that this hospital's silo had before it changed it{f' on {left}' if left else ''}: it "
        "takes part only in a version that names the new one.",
    )
