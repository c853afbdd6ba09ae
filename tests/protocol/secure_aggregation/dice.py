"""Known randomness for the state machines of a vector's round: what each silo draws was drawn before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from protocol.signing import Envelope


class Dice:
    """Random bytes that were drawn before."""

    def __init__(self, drawn: bytes) -> None:
        self.left = drawn

    def __call__(self, length: int) -> bytes:
        assert length <= len(self.left), "more random bytes are asked for than the vector holds"
        head, self.left = self.left[:length], self.left[length:]
        return head


def speaking(name: str, speaks: list[str], call: Callable[..., Envelope]) -> Callable[..., Envelope]:
    """A silo's step that first says whose dice are thrown: the last in `speaks`."""

    def spoken(*arguments: Any) -> Envelope:
        speaks.append(name)
        return call(*arguments)

    return spoken
