"""Two sums of one model state: a portal that shows most silos an old root although one silo is gone."""

from __future__ import annotations

from fractions import Fraction

from protocol.secure_aggregation.errors import NotEnoughShares, ProtocolViolation
from protocol.secure_aggregation.sparse.messages import SparseUnmask
from protocol.secure_aggregation.sparse.reveal import SUMMED
from protocol.secure_aggregation.sparse.trees import Claim, Tree


def _lie(w, gone: str) -> list[str]:
    """A second sum, without `gone`: whoever does not see that one's entry is shown the list of the first sum."""
    others = [name for name in w.silos if name != gone]
    portal = w.coordinator
    w.play("keys", "row", "bundles")
    w.play("ready", "update", who=others)
    w.close("list")
    old = Tree(w.parameters, dict.fromkeys(w.silos, SUMMED))
    claim = Claim(old.claim.root, len(others))  # as large as R is said to be
    near = {*portal._rows[gone], *portal._drew[gone]}
    revealed = []
    signed = {}
    for name in others:
        if name not in near:
            leaves = [old.leaf(leaf.silo) for leaf in portal.leaves_for("list", name)]
            signed[name] = w.machines[name].sign_list(claim, leaves, portal.updates_for(name))
    for name in signed:
        try:
            envelope = w.machines[name].unmask([signed[other] for other in portal._rows[name] if other in signed])
        except ProtocolViolation as error:
            assert error.code == "TOO_FEW_SIGNATURES"
            continue
        portal._unmask[name] = SparseUnmask.parse(envelope.payload)
        revealed.append(name)
    return revealed


def test_an_old_root_does_not_hide_that_another_set_is_summed(sparse) -> None:
    w = sparse(240, words=4, tail=1, colluding=Fraction(0), lost=Fraction(1, 10), privacy_bits=3, failure_bits=10)
    w.play(*sparse.steps)
    w.assert_sum(w.silos)
    w.attempt(round=2)
    gone = w.silos[100]
    try:
        _lie(w, gone)
        w.assert_sum(name for name in w.silos if name != gone)
    except (ProtocolViolation, NotEnoughShares) as error:
        assert getattr(error, "code", "") == "OTHER_LIST_UNMASKED", error
    else:
        raise AssertionError(f"two sums of one model state: their difference is the update of {gone}")
