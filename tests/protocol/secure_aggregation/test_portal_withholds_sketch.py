"""A portal reads all sketches before it says which of them came: that far it does choose who stays in the sum."""

from __future__ import annotations


def test_a_portal_that_keeps_one_sketch_back_leaves_that_silo_out_and_still_never_gets_both_of_its_secrets(
    world,
) -> None:
    w = world(7, sketch=1e6)
    victim = "site-03"
    w.play("keys", "bundles", "ready", "update", "list", "sketch")
    del w.mail["sketch"][victim]  # after it was read
    w.play("second", "unmask", who=[name for name in w.silos if name != victim])
    w.assert_sum(name for name in w.silos if name != victim)
    for envelope in w.relayed("unmask"):
        assert victim.encode() not in envelope.payload.split(b'"self_shares"')[1]
