"""What 256 sums tell of an update that has hardly more words than that, such as one of a network frozen but for its head."""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from protocol.messages import Sketch
from protocol.secure_aggregation.checks import sketch_nonces
from protocol.secure_aggregation.parameters import Segment, SketchTerms
from protocol.secure_aggregation.sketch import LEAST_WORDS, SKETCH_WORDS, sketch

HEAD = 513
"""Words of the last layer of a ResNet18 with one answer."""


def _read(world, name: str) -> dict[int, int]:
    """Words of one silo's update that its sketch shows as they are, from what the portal relays: {position: word}."""
    cells, sums = _sketch(world, name)
    alone = np.flatnonzero(np.bincount(cells % SKETCH_WORDS, minlength=SKETCH_WORDS)[cells % SKETCH_WORDS] == 1)
    return {int(k): int(sums[cells[k] % SKETCH_WORDS]) * (-1 if cells[k] & SKETCH_WORDS else 1) for k in alone}


def _sketch(world, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The cell of each word, and one silo's sums."""
    ready = world.coordinator.ready(world.roster, world.relayed("ready"))
    _, nonces = sketch_nonces(world.parameters, world.roster, ready, world.relayed("list"))
    stream = Cipher(algorithms.AES(nonces.seed[:16]), modes.CTR(nonces.seed[16:])).encryptor()
    cells = np.frombuffer(stream.update(bytes(2 * world.parameters.words)), dtype="<u2")
    sums = np.frombuffer(Sketch.parse(world.mail["sketch"][name].payload).sums, dtype="<i8")
    return cells, sums


def test_a_sketch_of_a_small_update_shows_single_words(world) -> None:
    """Why silo_node/rounds/round_parameters.py refuses such a study."""
    w = world(4, words=HEAD, sketch=1e9)
    w.play("keys", "bundles", "ready", "update", "list", "sketch")
    shown = _read(w, "site-02")
    words = w.updates["site-02"][0]
    assert len(shown) > HEAD // 10
    assert all(int(words[k]) == word for k, word in shown.items())


def test_words_of_a_finer_scale_than_all_others_show_through_a_sketch(world) -> None:
    """Why scales.py gives the finest scale to no fewer words than a sketch needs: modulo 2^12 nothing covers these ten."""
    w = world(4, words=LEAST_WORDS + 10)
    segments = (Segment(LEAST_WORDS, 0), Segment(10, 12))
    w.updates = {name: (words % 1000, tail) for name, (words, tail) in w.updates.items()}
    w.attempt(sketch=SketchTerms(dict.fromkeys(w.silos, 1), 1e9, segments))
    w.play("keys", "bundles", "ready", "update", "list", "sketch")
    cells, sums = _sketch(w, "site-02")
    ten, words = cells[-10:], w.updates["site-02"][0][-10:]
    alone = [k for k in range(10) if np.count_nonzero(ten % SKETCH_WORDS == ten[k] % SKETCH_WORDS) == 1]
    assert len(alone) > 2
    for k in alone:
        assert int(sums[ten[k] % SKETCH_WORDS]) * (-1 if ten[k] & SKETCH_WORDS else 1) % 2**12 == int(words[k])


def test_an_element_of_half_the_updates_length_shows_roughly_in_its_sum() -> None:
    """Whatever the scales are: the rest of the update hides a word only as well as 1/16 of the rest's length does."""
    draw = np.random.default_rng(5)
    words = draw.normal(0, 100, LEAST_WORDS).astype("<i4")
    rest = float(np.linalg.norm(words))
    words[7] = large = int(rest)
    sums = sketch(draw.bytes(32), [(LEAST_WORDS, 0)], [words])
    assert abs(int(np.abs(sums).max()) - large) < 5 * rest / 16
