"""The silo's own keys, FOLDER/keys, each mode 0600 and each for one use only.

| file              | kind    | use                                                                     |
|-------------------|---------|-------------------------------------------------------------------------|
| silo.key          | Ed25519 | requests and round messages                                             |
| witness.key       | Ed25519 | cosignatures on the portal's log, nothing else                          |
| log.key           | Ed25519 | checkpoints of the silo's own log                                       |
| pseudonym.key     | 32 bytes| HMAC keys of the studies' cohorts; never leaves                         |
| steward-*.key     | Ed25519 | a person's decisions; encrypted under a passphrase that only they know  |
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from functools import cached_property
from pathlib import Path

from protocol.signing import KeyFileError, SigningKey
from protocol.transparency.note import LogKey, vkey
from silo_node.config import Config
from silo_node.errors import DiskFull, UsageError, is_disk_full
from silo_node.files import write_bytes

_SIGNING = ("silo.key", "witness.key", "log.key")


class Keys:
    """The keys of one silo, read when first used. Its repr shows none."""

    def __init__(self, config: Config) -> None:
        self._folder = config.keys
        self._name = config.name

    def __repr__(self) -> str:
        return f"Keys({self._folder})"

    @staticmethod
    def create(config: Config) -> None:
        """Make the keys that are missing; those that are there stay. Raises: DiskFull, UsageError."""
        config.keys.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in _SIGNING:
            if not (config.keys / name).exists():
                save_new(SigningKey.generate(), config.keys / name)
        path = config.keys / "pseudonym.key"
        if not path.exists():
            write_bytes(path, secrets.token_bytes(32))

    @cached_property
    def silo(self) -> SigningKey:
        """Signs requests and round messages."""
        return self._load("silo.key")

    @cached_property
    def log(self) -> LogKey:
        """Signs the silo's own checkpoints."""
        return LogKey(self.log_origin, self._load("log.key"))

    @property
    def log_origin(self) -> str:
        """The name of the silo's own log."""
        return f"consilium/silo/{self._name}"

    @property
    def log_vkey(self) -> str:
        """The verifier key of the silo's own log."""
        return vkey(self.log_origin, self._load("log.key").public)

    @property
    def witness_vkey(self) -> str:
        """The verifier key of this silo as a witness (cosignature/v1)."""
        return vkey(f"consilium/witness/{self._name}", self._load("witness.key").public, kind=4)

    def study_key(self, study: str) -> bytes:
        """32 bytes: the HMAC key of patient pseudonyms in one study; pseudonyms of two studies can't be joined."""
        try:
            secret = (self._folder / "pseudonym.key").read_bytes()
        except OSError as error:
            raise UsageError(f"{self._folder / 'pseudonym.key'}: {error.strerror}; restore it from a backup") from None
        return hmac.new(secret, b"consilium/pseudonym/v1\n" + study.encode(), hashlib.sha256).digest()

    def _load(self, name: str) -> SigningKey:
        path = self._folder / name
        check_mode(path)
        try:
            return SigningKey.load(path)
        except KeyFileError as error:
            raise UsageError(str(error)) from None


def save_new(key: SigningKey, path: Path, passphrase: bytes | None = None) -> None:
    """Write a new key. Raises: DiskFull, UsageError."""
    try:
        key.save(path, passphrase)
    except KeyFileError as error:
        if is_disk_full(error):
            raise DiskFull(f"no room for {path.name} in {path.parent}: make room, nothing was half-written") from error
        raise UsageError(str(error)) from None


def check_mode(path: Path, code: str = "USAGE", *, group: bool = False) -> None:
    """Raises: UsageError where a key file is missing or others can read it. group: whether the file's group may."""
    try:
        mode = path.stat().st_mode & 0o777
    except FileNotFoundError:
        raise UsageError(f"{path} is missing: restore it from a backup, or make a silo with `silo init`") from None
    if mode & (0o007 if group else 0o077):
        remedy = "o=" if group else "600"
        raise UsageError(f"{path} can be read by others (mode {mode:o}): `chmod {remedy} {path}`", code)
