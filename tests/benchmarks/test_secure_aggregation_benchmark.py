"""The benchmark of the masks runs and says what it promises; what it measures is not judged here."""

from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest

from benchmarks import secure_aggregation as benchmark
from protocol.secure_aggregation.words import signed, unpack

RATIOS = (
    "client_over_limit",
    "client_quantise_over_limit",
    "chunk_over_limit",
    "server_over_limit",
    "threads_gain",
    "bytes_per_weight",
)
PEER_RATIOS = (
    "flower_client_over_ours",
    "flower_masks_over_ours",
    "flower_aes_client_over_ours",
    "ckks_over_ours",
)
SECONDS = ("client_seconds", "quantise_seconds", "digest_seconds", "server_seconds", "key_stream_seconds")

# It answers as peers.py does: a measurement a line, here always the same seconds.
STAND_IN = """#!/bin/sh
while read -r line; do
  case "$line" in
    *ckks*) echo '{"encrypt": 8.0}' ;;
    *) echo '{"quantise": 1.0, "masks": 3.0}' ;;
  esac
done
"""


def lines_of(capsys, *arguments: str) -> tuple[list[dict], str]:
    before = os.sched_getaffinity(0)
    benchmark.main(["--json", "--seconds", "0", *arguments])
    assert os.sched_getaffinity(0) == before
    printed = capsys.readouterr()
    return [json.loads(line) for line in printed.out.splitlines()], printed.err


def test_one_line_a_case_with_finite_ratios_and_null_for_absent_peers(capsys, tmp_path):
    absent = str(tmp_path / "python")
    lines, said = lines_of(
        capsys, "--sizes", "999,2000", "--silos", "4,5", "--word-bits", "32,24,16,12", "--peers", absent
    )
    cases = [(bits, d, n) for bits in (32, 24, 16, 12) for d in (999, 2000) for n in (4, 5)]
    assert [(line["word_bits"], line["d"], line["n"]) for line in lines] == cases
    for line in lines:
        assert set(line) == {"d", "n", "word_bits", "cores", *RATIOS, *PEER_RATIOS, *SECONDS}
        assert all(math.isfinite(line[name]) and line[name] > 0 for name in (*RATIOS, *SECONDS))
        assert all(line[name] is None for name in PEER_RATIOS)
        assert line["bytes_per_weight"] > line["word_bits"] / 8
    assert "make peers" in said


def test_peers_are_asked_and_their_parts_are_compared_with_the_same_parts_of_ours(capsys, tmp_path):
    python = tmp_path / "python"
    python.write_text(STAND_IN)
    python.chmod(0o700)
    ((line,), said) = lines_of(capsys, "--sizes", "1000", "--silos", "4", "--peers", str(python))
    assert said == ""
    assert line["flower_client_over_ours"] == line["flower_aes_client_over_ours"]
    assert line["ckks_over_ours"] == pytest.approx(2 * line["flower_client_over_ours"], rel=1e-3)
    # Without quantising, theirs is three quarters, and ours is less than the whole.
    assert line["flower_masks_over_ours"] > 0.75 * line["flower_client_over_ours"]


@pytest.mark.parametrize("word_bits", [32, 24, 16, 12])
def test_what_is_timed_is_the_real_work(word_bits):
    """The client's masks come off again, and the server's sum is that of the updates without the same masks."""
    case = benchmark.Case(1001, 4, word_bits)
    case.client()
    inverse = case.masks.__class__(case.masks.body_minus, case.masks.body_plus, (), ())
    inverse.apply(case.out, "body", 0)
    assert np.array_equal(signed(case.out, word_bits), signed(case.words, word_bits))
    total = case.removal.sum_chunk(0, (chunks[0] for chunks in case.updates))
    assert len(case.updates) == 3
    wanted = sum(unpack(chunks[0], word_bits).astype(np.int64) for chunks in case.updates).astype(total.dtype)
    case.removal.subtract(0, wanted)
    assert np.array_equal(signed(total, word_bits), signed(wanted, word_bits))
    assert (len(case.masks.body_plus + case.masks.body_minus), len(case.removal.masks.body_minus)) == (4, 3 + 2)
    assert len(case.removal.masks.body_plus + case.removal.masks.body_minus) == 2 * 3
