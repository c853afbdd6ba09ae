"""Watches which files this process opens, and which it has opened by the processes that decode."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from silo_node.imaging.decoder_pool import DecoderPool
from silo_node.imaging.known import Indexed

_watching: list[set[Path]] = []


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if event == "open" and _watching and isinstance(args[0], (str, os.PathLike)):
        for opened in _watching:
            opened.add(Path(args[0]))


_decode = DecoderPool.decode


def _decode_watched(pool: DecoderPool, files: Sequence[Indexed]) -> Iterator[Any]:
    for opened in _watching:
        opened.update(file.path for file in files)
    return _decode(pool, files)


sys.addaudithook(_hook)  # for good: an audit hook cannot be taken away


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Callable[[], AbstractContextManager[set[Path]]]:
    """Every file that the process opens meanwhile, or gives to a decoder."""
    monkeypatch.setattr(DecoderPool, "decode", _decode_watched)

    @contextmanager
    def watch() -> Iterator[set[Path]]:
        opened: set[Path] = set()
        _watching.append(opened)
        try:
            yield opened
        finally:
            # By identity: two empty sets are equal.
            _watching[:] = [other for other in _watching if other is not opened]

    return watch
