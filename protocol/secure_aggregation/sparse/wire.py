"""What the portal hands a silo in each step, read from JSON. What is written is each class's own `as_dict`.

Every function raises `ProtocolViolation` (BAD_MESSAGE) for anything else; what is read is not verified yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from protocol import canonical
from protocol.canonical import CanonicalError
from protocol.secure_aggregation.errors import ProtocolViolation
from protocol.secure_aggregation.sparse.boxes import Parcel
from protocol.secure_aggregation.sparse.nonces import Opened, OpenedNonces
from protocol.secure_aggregation.sparse.set_up import Neighbour
from protocol.secure_aggregation.sparse.trees import Claim, Leaf
from protocol.signing import Envelope, SignatureError


@contextmanager
def _reading(what: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError, CanonicalError, SignatureError) as error:
        raise ProtocolViolation("BAD_MESSAGE", f"the portal's {what} can't be read: {error}") from None


def read_claim(value: Any) -> Claim:
    """{"root", "size"}. Raises also: BAD_CLAIM."""
    with _reading("statement of a set"):
        return Claim(value["root"], value["size"])


def read_leaf(value: Any) -> Leaf:
    """{"silo", "value", "path"}."""
    with _reading("entry of a set"):
        silo, item = value["silo"], value["value"]
        if not isinstance(silo, str) or not isinstance(item, str | None):
            raise TypeError("silo and value must be text")
        return Leaf(silo, item, tuple(canonical.unb64(step) for step in value["path"]))


def read_leaves(value: Any) -> list[Leaf]:
    """A list of entries."""
    with _reading("entries of a set"):
        return [read_leaf(item) for item in value]


def read_neighbours(value: Any) -> list[Neighbour]:
    """A list of {"leaf", "keys", "row"}."""
    with _reading("list of neighbours"):
        return [Neighbour(read_leaf(item["leaf"]), _envelope(item["keys"]), _envelope(item["row"])) for item in value]


def read_parcels(value: Any) -> dict[str, Parcel]:
    """{sender: {"box", "hashes"}}."""
    with _reading("parcels"):
        return {str(sender): _parcel(item) for sender, item in value.items()}


def read_opened(value: Any) -> OpenedNonces:
    """{"nonces": {silo: [digest, nonce]}, "others": {silo: value}}."""
    with _reading("opened nonces"):
        nonces = {str(silo): _opened(item) for silo, item in value["nonces"].items()}
        others = {str(silo): _digest(item) for silo, item in value["others"].items()}
        return OpenedNonces(nonces, others)


def read_names(value: Any) -> list[str]:
    """A list of silos' names."""
    with _reading("list of silos"):
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise TypeError("must be a list of names")
        return value


def _envelope(value: Any) -> Envelope | None:
    return None if value is None else Envelope.from_dict(value)


def _parcel(value: Mapping[str, Any]) -> Parcel:
    hashes = value["hashes"]
    if hashes is not None:
        first, second = hashes
        hashes = (_digest(first), _digest(second))
    return Parcel(canonical.unb64(value["box"]), hashes)


def _opened(value: Any) -> Opened:
    ready, nonce = value
    opened = Opened(_digest(ready), canonical.unb64(nonce))
    if len(opened.nonce) != 32:
        raise ValueError("a nonce has 32 bytes")
    return opened


def _digest(value: Any) -> str:
    if not canonical.is_digest(value):
        raise ValueError("a digest is sha256:<64 hex digits>")
    return str(value)
