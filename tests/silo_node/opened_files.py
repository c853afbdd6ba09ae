"""Watches which files this process opens."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

_watching: list[set[Path]] = []


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if event == "open" and _watching and isinstance(args[0], (str, os.PathLike)):
        for opened in _watching:
            opened.add(Path(args[0]))


sys.addaudithook(_hook)  # for good: an audit hook cannot be taken away


@pytest.fixture
def watched() -> Callable[[], AbstractContextManager[set[Path]]]:
    """Every file that the process opens meanwhile."""

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
