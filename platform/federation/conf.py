"""The settings of this app, each with its default; read at the time of use so that a test may change them."""

from __future__ import annotations

from pathlib import Path

from django.conf import settings


def chunk_folder() -> Path:
    """The folder of the chunk store."""
    return Path(settings.CHUNK_FOLDER)


def model_folder() -> Path:
    """The folder of the models."""
    return Path(settings.MODEL_FOLDER)


def lost_after() -> float:
    """Seconds without a signed heartbeat after which a silo counts as lost."""
    return float(settings.SILO_LOST_SECONDS)


def setup_seconds() -> int:
    """Seconds that each of the stages keys, bundles and ready may take at most; they run beside the training."""
    return int(getattr(settings, "FEDERATION_SETUP_SECONDS", 120))


def failures_allowed() -> int:
    """Failed rounds in a row after which the study is paused."""
    return int(getattr(settings, "FEDERATION_FAILURES", 3))


def sum_again_after() -> float:
    """Seconds after which the tasks of an unfinished sum are sent again (the broker may have lost them)."""
    return float(getattr(settings, "FEDERATION_SUM_AGAIN_SECONDS", 20))


def inline_words() -> int:
    """Up to this many words (words of the update times silos) the sum is made at once, without a task."""
    return int(getattr(settings, "FEDERATION_INLINE_WORDS", 1 << 20))


def model_bytes() -> int:
    """Bytes that the file of a pretrained model may have at most."""
    return int(getattr(settings, "FEDERATION_MODEL_BYTES", 1 << 30))


def disk_reserve() -> int:
    """Bytes that must stay free on the disk of the chunk store, so that the database can still write."""
    return int(getattr(settings, "FEDERATION_DISK_RESERVE", 64 << 20))
