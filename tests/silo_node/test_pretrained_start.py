"""A study that starts from a model trained before: the silo takes only that model, and only where it fits the network."""

from __future__ import annotations

import numpy as np
import pytest

from protocol.initial_model import initial_state, pretrained_state
from protocol.model_state import ModelState, StateError, TensorSpec
from protocol.secure_aggregation.scales import FixedPoint
from silo_node.rounds.model_store import ModelStore

FIXED = FixedPoint(word_bits=32, fraction_bits=16, clip_norm=1.0, silos=4)


def _begin(silo, portal, given):
    """A study that starts from `given`, which the portal serves."""
    portal.make_study()
    plan = portal.manifest.model_dump(mode="json")["plan"]
    portal.make_study(plan={**plan, "initial": {"kind": "pretrained", "model": given.digest}})
    portal.states[given.digest] = portal.first = given
    silo.decide()
    silo.start()
    portal.begin()


def test_a_silo_starts_from_the_model_that_the_manifest_names(silo, portal):
    values = np.linspace(-1, 1, portal.parameters_count, dtype="<f4")
    given = ModelState((TensorSpec("constant", (portal.parameters_count,)),), values)
    _begin(silo, portal, given)
    portal.wait(lambda: portal.finished(1))
    assert portal.refused() == []
    assert "site-1" in portal.round(1).members


def test_a_model_of_another_network_is_refused_with_the_tensor_that_differs(silo, portal):
    given = initial_state((TensorSpec("other", (portal.parameters_count,)),), 3)
    _begin(silo, portal, given)
    code, sentence = portal.wait(lambda: portal.refused())[0]
    assert code == "MODEL_DIFFERS" and "other" in sentence


def test_a_model_in_another_order_is_put_into_the_networks(silo, portal):
    table = (TensorSpec("b", (2, 3)), TensorSpec("norm", (4,), "local"), TensorSpec("a", (5,)))
    given = initial_state((TensorSpec("a", (5,)), TensorSpec("b", (2, 3)), TensorSpec("norm", (4,))), 3)
    portal.make_study()
    portal.states[given.digest] = given
    node = silo.node()
    try:
        store = ModelStore(silo.config.models)
        digest = store.make_pretrained(table, given.digest, FIXED, node.egress, round_id="st-x.0.1")
        made = ModelState.load(store.path(digest))
        assert made.table == table and made.digest == digest == pretrained_state(table, given).digest
        assert np.array_equal(made.tensor("b"), given.tensor("b")) and np.array_equal(
            made.tensor("a"), given.tensor("a")
        )
        with pytest.raises(StateError, match="a: has the shape"):
            other = (*table[:2], TensorSpec("a", (4,)))
            store.make_pretrained(other, given.digest, FIXED, node.egress, round_id="st-x.0.1")
    finally:
        node.close()
