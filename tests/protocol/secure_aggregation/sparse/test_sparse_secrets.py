"""With many silos too: no secret of a round stands in a repr, an exception or a log line."""

from __future__ import annotations

import logging
import traceback

from protocol import canonical
from protocol.secure_aggregation import ProtocolViolation
from protocol.secure_aggregation.sparse.messages import SPARSE
from tests.protocol.secure_aggregation.test_secagg_secrets import leaks, reach

STEPS = ("keys", "row", "bundles", "ready", "update", "list", "unmask", "nonce", "check", "verify")


def record(this, name: str, step: str):
    return canonical.decode(this.journals[name].rows[f"round/st-abc/1/0/{step}"])


def secrets_of(this) -> dict[str, bytes]:
    """What each silo's journal holds at the end of the round, by name."""
    found: dict[str, bytes] = {}
    for name in this.silos:
        own, near, bundles = (record(this, name, step) for step in ("keys", "neighbours", "bundles"))
        texts = {
            "b": own["self"],
            "K": own["list"],
            "hpke": own["hpke"],
            "g": own["nonces"][0],
            "nonce": own["nonces"][1],
        }
        texts |= {f"half for {other}": half for other, half in near["halves"].items()}
        texts |= {f"seed with {other}": seed for other, seed in bundles["seeds"].items()}
        for owner, pair in bundles["shares"].items():
            texts |= {f"share {k} of {owner}": text for k, text in enumerate(pair)}
        found |= {f"{name}: {what}": canonical.unb64(text) for what, text in texts.items()}
        found[f"{name}: words"] = this.journals[name].rows["round/st-abc/1/0/chunk/0"]
    return found


def test_no_secret_of_a_round_of_many_stands_in_a_repr_an_exception_or_a_log_line(sparse, caplog):
    caplog.set_level(logging.DEBUG)
    this = sparse(8, words=64, small=True)
    # Long words, so that one that is shown is found, of which eight do not wrap round.
    this.updates = {
        name: (body + (1 << 24) * (k + 1), tail) for k, (name, (body, tail)) in enumerate(this.updates.items())
    }
    texts: list[str] = []
    kinds: set[str] = set()
    codes: set[str] = set()
    for step in STEPS:
        if step == "nonce":
            this.publish()
        this.play(step)
        said = [
            SPARSE[kind].parse(envelope.payload)
            for kind, mail in this.mail.items()
            if kind in SPARSE
            for envelope in mail.values()
        ]
        roots = [this.parameters, this.coordinator, *this.machines.values(), this.parcels, this.mail, *said]
        if step in STEPS[6:]:
            roots.append(this.coordinator.recover())
        for each in reach(roots, set()):
            texts.append(repr(each))
            kinds.add(type(each).__name__)
        for machine in this.machines.values():
            for call in (
                lambda m=machine: m.accept_neighbours([]),
                lambda m=machine: m.accept_bundles({}),
                lambda m=machine: m.begin_update(this.updates[m.silo][0] + 1, this.updates[m.silo][1]),
                lambda m=machine: m.masked_chunk(7),
                lambda m=machine: m.unmask([]),
                lambda m=machine: m.sign_state("no digest"),
            ):
                try:
                    call()
                except (ProtocolViolation, ValueError, IndexError) as error:
                    codes.add(getattr(error, "code", type(error).__name__))
                    texts += [str(error), "".join(traceback.format_exception(error))]
    secrets = secrets_of(this)
    assert len(secrets) > 8 * 10
    assert kinds >= {"SparseRound", "SparseCoordinator", "Parcel", "SparseUnmask", "Envelope", "Removal"}
    assert codes >= {"OUT_OF_STAGE", "SECOND_UPDATE", "IndexError"}
    assert leaks(secrets, [*texts, *caplog.messages]) == set()
