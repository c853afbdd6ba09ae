"""The portal's own keys: the answer key signs answers to silos, the log key signs checkpoints. No key serves both."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from protocol.signing import SigningKey

if TYPE_CHECKING:
    from protocol.transparency.note import LogKey

ANSWER_KEY = "answer.key"
LOG_KEY = "log.key"


def create_keys(folder: Path) -> bool:
    """Make the keys that are not there yet (files of mode 0600); True where one was made."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = False
    for name in (ANSWER_KEY, LOG_KEY):
        if not (folder / name).exists():
            SigningKey.generate().save(folder / name)
            made = True
    return made


@lru_cache(maxsize=16)
def _load(path: Path) -> SigningKey:
    if not path.exists():
        raise ImproperlyConfigured(f"The portal has no key {path.name} yet. Run: python manage.py init_portal")
    return SigningKey.load(path)


def answer_key() -> SigningKey:
    """Signs answers to silos and the sums of rounds."""
    return _load(settings.KEY_FOLDER / ANSWER_KEY)


def log_key() -> LogKey:
    """Signs checkpoints of the evidence log; its name is the log's origin."""
    from protocol.transparency.note import LogKey

    return LogKey(settings.CONSILIUM_NAME, _load(settings.KEY_FOLDER / LOG_KEY))


def log_vkey() -> str:
    """The log's verifier key, as it stands in manifests and in exported policy files."""
    from protocol.transparency.note import vkey

    return vkey(settings.CONSILIUM_NAME, _load(settings.KEY_FOLDER / LOG_KEY).public, kind=1)
