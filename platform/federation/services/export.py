"""A global model as a safetensors file, written with nothing but the format's own rules.

    u64 little-endian: length of the header | header: JSON, padded with spaces to 8 bytes | raw tensors, one after the other

The vector of a model state already is the raw part (float32, little-endian, the table's order), so a model is copied in
blocks and never held in memory. Local tensors have no values outside their hospital and are not in the file.
Format: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from federation.models import GlobalModel
from federation.services.models import PIECE
from federation.storage import model_path
from protocol.model_state import Table, read_front, slices, words


def safetensors_header(table: Table, metadata: Mapping[str, str]) -> bytes:
    """The length and the header for the shared and frozen tensors of a table. `metadata`: text to text, for people."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for spec, where in slices(table):
        header[spec.name] = {
            "dtype": "F32",
            "shape": list(spec.shape),
            "data_offsets": [4 * where.start, 4 * where.stop],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def safetensors_size(model: GlobalModel) -> int:
    """Bytes of the file that `safetensors_blocks` gives. Raises StateError, OSError."""
    front = read_front(model_path(model.digest))
    return len(safetensors_header(front.table, _metadata(model))) + 4 * words(front.table)


def safetensors_blocks(model: GlobalModel) -> Iterator[bytes]:
    """The file of a model in blocks of at most 4 MiB, ready to be streamed.

    Its metadata name the study, the number of the model and its digest, so that the file can be traced to the log.
    Raises StateError or OSError at the first block where the stored model can't be read.
    """
    path = model_path(model.digest)
    front = read_front(path)
    yield safetensors_header(front.table, _metadata(model))
    with path.open("rb") as file:
        file.seek(len(front.header))
        while block := file.read(PIECE):
            yield block


def _metadata(model: GlobalModel) -> dict[str, str]:
    return {"study": model.study_id, "number": str(model.number), "digest": model.digest, "format": "consilium"}
