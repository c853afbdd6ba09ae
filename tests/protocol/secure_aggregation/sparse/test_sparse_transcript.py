"""What the portal and the largest allowed number of silos with it can compute from all they saw, whatever lists the
portal makes up after it saw the graph: never both secrets of an honest silo, and one sum over more than half of them.

Each test collects every share that was revealed and the whole journals of the colluders, derives all seeds that these
determine, takes those masks off, and looks at what is left of each honest silo's update.
"""

from __future__ import annotations

import itertools
import math
import random
from fractions import Fraction

import numpy as np
import pytest

from protocol import canonical
from protocol.secure_aggregation import ProtocolViolation, sealing, shamir
from protocol.secure_aggregation.prg import Stream
from protocol.secure_aggregation.sparse import Claim
from protocol.secure_aggregation.sparse.messages import SparseList, SparseReady, SparseUnmask
from protocol.secure_aggregation.sparse.trees import Tree

WORDS = 1 << 14
BOUNDS = {"colluding": Fraction(1, 5), "lost": Fraction(1, 10), "privacy_bits": 40, "failure_bits": 30}


class Attacker:
    """Everything revealed, and the journals of silos that hand over all they have."""

    def __init__(self, this, helpers, unmasks=()) -> None:
        self.this, self.helpers = this, set(helpers)
        self.ctx, self.t, self.rows = this.parameters.ctx, this.hood.t, this.coordinator._rows
        self.root = this.coordinator.claim("roster").root
        self.ready = {name: SparseReady.parse(envelope.payload) for name, envelope in this.mail["ready"].items()}
        self.shares: dict[tuple[str, str], dict[int, bytes]] = {}
        self.seeds: dict[frozenset[str], bytes] = {}
        self.self_masks: dict[str, bytes] = {}
        self.list_keys: dict[str, bytes] = {}
        for envelope in (*this.mail["unmask"].values(), *unmasks):
            message = SparseUnmask.parse(envelope.payload)
            for kind, row in (("self", message.self_shares), ("list", message.list_shares)):
                for owner, share in row.items():
                    self.learn(kind, owner, message.silo, share)
        for helper in self.helpers:
            own, bundles = (self.record(helper, step) for step in ("keys", "bundles"))
            self.self_masks[helper] = canonical.unb64(own["self"])
            self.list_keys[helper] = canonical.unb64(own["list"])
            for owner, pair in bundles["shares"].items():
                for kind, text in zip(("self", "list"), pair, strict=True):
                    self.learn(kind, owner, helper, canonical.unb64(text))
            for other, text in bundles["seeds"].items():
                self.seeds[frozenset((helper, other))] = canonical.unb64(text)
        self.derive()

    def record(self, name: str, step: str):
        return canonical.decode(self.this.journals[name].rows[f"round/st-abc/1/0/{step}"])

    def learn(self, kind: str, owner: str, holder: str, share: bytes) -> None:
        self.shares.setdefault((kind, owner), {})[self.rows[owner].index(holder) + 1] = share

    def derive(self) -> None:
        for (kind, owner), held in self.shares.items():
            if len(held) >= self.t and owner in self.ready:
                secret = shamir.interpolate(dict(list(held.items())[: self.t]))
                signed = getattr(self.ready[owner], f"{kind}_hash")
                assert sealing.binding(kind, secret, ctx=self.ctx, silo=owner) == signed
                (self.self_masks if kind == "self" else self.list_keys)[owner] = secret
        for owner, key in self.list_keys.items():
            plain = sealing.open_list(self.ready[owner].list_box, key=key, ctx=self.ctx, roster=self.root, silo=owner)
            for index, other in enumerate(self.ready[owner].senders):
                self.seeds[frozenset((owner, other))] = plain[32 * index : 32 * index + 32]

    def partners(self, name: str) -> list[str]:
        """With whom this silo masked its update."""
        return self.record(name, "ready")["members"]

    def unknown(self, name: str) -> set[str]:
        """The partners of whose pair mask nothing is known."""
        return {other for other in self.partners(name) if frozenset((name, other)) not in self.seeds}

    def groups(self, names: set[str]) -> list[set[str]]:
        """Silos whose self mask is known, joined by unknown pair masks; those that hide behind a self mask left out.

        Whoever shares an unknown pair mask with a silo whose self mask is unknown is hidden for good.
        """
        open_ones = {name for name in names if name in self.self_masks and name in self.this.chunks}
        found, left = [], set(open_ones)
        while left:
            group, edge = set(), {left.pop()}
            while edge:
                group |= edge
                edge = {other for name in edge for other in self.unknown(name)} & open_ones - group
            left -= group
            if all(self.unknown(name) <= group for name in group):
                found.append(group)
        return found

    def remainder(self, name: str) -> np.ndarray:
        """The silo's masked update without every mask that is known."""
        rest = np.frombuffer(self.this.chunks[name][0], dtype="<u4").copy()
        if name in self.self_masks:
            rest -= stream(self.self_masks[name], "self", self.ctx)
        for other in self.partners(name):
            seed = self.seeds.get(frozenset((name, other)))
            if seed is not None:
                mask = stream(seed, "pair", self.ctx)
                rest = rest - mask if other > name else rest + mask
        return rest


def stream(seed: bytes, label: str, ctx: bytes) -> np.ndarray:
    return np.frombuffer(Stream(seed, label, ctx).read(0, 4 * WORDS), dtype="<u4")


def is_uniform(words: np.ndarray) -> bool:
    """Chi-square of the bytes against uniform: true for all but one in 10^9 of uniform rows."""
    counts = np.bincount(words.view(np.uint8), minlength=256)
    expected = 4 * len(words) / 256
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return abs(statistic - 255) < 6.2 * math.sqrt(2 * 255)


def small_updates(this) -> None:
    """Updates as training makes them: small numbers, far from uniform, so that a missing mask would show."""
    draw = np.random.default_rng(7)
    for name in this.silos:
        words = draw.integers(-1000, 1000, WORDS).astype("<i4").view("<u4")
        assert not is_uniform(words)
        this.updates[name] = (words, this.updates[name][1])


@pytest.mark.parametrize("dropped", [0, 1, 2])
def test_portal_with_c_silos_cannot_unmask_one_silo(sparse, dropped):
    """Silos vanish after their upload, so that the portal holds their update too; c others help it."""
    this = sparse(20, words=WORDS, **BOUNDS)
    small_updates(this)
    live = this.silos[: 20 - dropped]
    this.play(*sparse.steps[:5])
    for name in this.silos[20 - dropped :]:
        del this.coordinator._updates[name]
    this.play("list", "unmask", who=live)
    this.assert_sum(live)
    helpers = live[:4]
    attacker = Attacker(this, helpers)
    honest = set(this.silos) - set(helpers)
    for name in honest:
        unknown = attacker.unknown(name)
        if name in live:
            # b is rebuilt; what stays unknown are the seeds shared with every honest partner in the list.
            assert name in attacker.self_masks and name not in attacker.list_keys
            assert unknown == set(attacker.partners(name)) & honest & set(live)
            assert len(unknown) >= this.hood.t - len(helpers)
        else:
            assert name in attacker.list_keys and name not in attacker.self_masks
            assert unknown == set()
        rest = attacker.remainder(name)
        assert is_uniform(rest)
        # The remainder is the update under exactly the masks that are unknown: nothing else hides it.
        assert np.array_equal(rest, this.updates[name][0] + hidden(attacker, name, unknown))
    together = honest & set(live)
    assert attacker.groups(honest) == [together]
    total = sum(attacker.remainder(name) for name in together)
    assert np.array_equal(total, sum(this.updates[name][0] for name in together))
    assert is_uniform(sum(attacker.remainder(name) for name in sorted(together)[1:]))


def hidden(attacker: Attacker, name: str, unknown: set[str]) -> np.ndarray:
    """The masks that hide an update, from the honest silo's own journal."""
    mask = np.zeros(WORDS, dtype="<u4")
    if name not in attacker.self_masks:
        mask += stream(canonical.unb64(attacker.record(name, "keys")["self"]), "self", attacker.ctx)
    for other in unknown:
        seed = canonical.unb64(attacker.record(name, "bundles")["seeds"][other])
        part = stream(seed, "pair", attacker.ctx)
        mask = mask + part if other > name else mask - part
    return mask


def told(this, helpers, lists):
    """Every honest silo is told one of the portal's lists, and asked to sign and to reveal. Helpers sign anything.

    Parameters: lists: silo -> the members that it is told; all as large as they need be, says the portal.
    Returns: the shares that came.
    """
    portal, root = this.coordinator, this.coordinator.claim("roster").root
    ready = portal.claim("ready")
    trees = {members: Tree(this.parameters, dict.fromkeys(members, "summed")) for members in set(lists.values())}

    def claim_of(members):
        return Claim(trees[members].claim.root, max(len(members), this.parameters.least_set))

    signed = {}
    for name, members in lists.items():
        near = {leaf.silo for leaf in portal.leaves_for("roster", name)}
        updates = [this.mail["update"][other] for other in sorted(portal._drew[name]) if other in members]
        shown = [trees[members].leaf(other) for other in sorted(near)]
        try:
            signed[name] = this.machines[name].sign_list(claim_of(members), shown, updates)
        except ProtocolViolation as error:
            assert error.code in ("LEFT_OUT", "TOO_FEW_NEIGHBOURS"), error
    shares = []
    for name in signed:
        claim, row = claim_of(lists[name]), portal._rows[name]
        lies = [
            this.machines[helper]._seal(
                SparseList,
                roster=root,
                ready_set=ready.root,
                ready_size=ready.size,
                members=claim.root,
                size=claim.size,
            )
            for helper in helpers
            if helper in row and helper in lists[name]
        ]
        same = [signed[other] for other in row if other in signed and lists[other] == lists[name]]
        try:
            shares.append(this.machines[name].unmask([*same, *lies]))
        except ProtocolViolation as error:
            assert error.code == "TOO_FEW_SIGNATURES", error
    return shares


def assert_nothing_but_one_sum(this, helpers, shares) -> list[set[str]]:
    attacker = Attacker(this, helpers, shares)
    honest = set(this.silos) - set(helpers)
    both = {name for name in honest if name in attacker.self_masks and name in attacker.list_keys}
    assert not both
    groups = attacker.groups(honest)
    assert len(groups) <= 1
    assert all(len(group) > len(honest) / 2 for group in groups)
    return groups


@pytest.fixture
def uploaded(sparse):
    """20 silos whose updates the portal holds, and the four that work with it."""
    this = sparse(20, words=8, **BOUNDS).play(*sparse.steps[:5])
    return this, this.silos[:4]


def test_calling_all_neighbours_of_one_silo_lost_opens_nothing(uploaded):
    """The portal saw the graph: it leaves out, one by one, ever more of a victim's honest neighbours."""
    this, helpers = uploaded
    victim = this.silos[10]
    near = [name for name in this.machines[victim]._records.need("ready", "test")["members"] if name not in helpers]
    kept = {name: this.journals[name].copy() for name in this.silos}
    outcomes = []
    for count in range(len(near) + 1):
        for name in this.silos:
            this.journals[name] = kept[name].copy()
            this.machines[name] = this.rebuild(name)
        members = frozenset(this.silos) - set(near[:count])
        shares = told(this, helpers, {name: members for name in this.silos if name not in helpers})
        outcomes.append(len(assert_nothing_but_one_sum(this, helpers, shares)))
    assert outcomes[0] == 1  # nobody left out: the sum
    assert outcomes[-1] == 0


def test_two_lists_for_two_halves_open_nothing(uploaded):
    """Each half of the honest silos is told that only it, and the helpers, are in the list."""
    this, helpers = uploaded
    honest = this.silos[4:]
    first, second = frozenset((*helpers, *honest[:8])), frozenset((*helpers, *honest[8:]))
    shares = told(this, helpers, {name: first if name in first else second for name in honest})
    assert assert_nothing_but_one_sum(this, helpers, shares) == []


@pytest.mark.parametrize("seed", range(6))
def test_lists_made_up_at_random_for_every_silo_open_at_most_one_sum(uploaded, seed):
    """Some silos hear of lists without a few others; helpers confirm every list."""
    this, helpers = uploaded
    draw, honest = random.Random(seed), this.silos[4:]
    lists = [frozenset(this.silos) - set(draw.sample(honest, draw.randrange(seed + 1))) for _ in range(1 + seed % 3)]
    shares = told(this, helpers, {name: draw.choice(lists) for name in honest})
    assert_nothing_but_one_sum(this, helpers, shares)


def test_holders_beyond_the_bound_break_one_update(sparse):
    """The bound is sharp: with 2t = h + c_i colluders in one row, two stories for its honest holders open the update."""
    this = sparse(20, words=WORDS, **BOUNDS)
    small_updates(this)
    this.play(*sparse.steps[:5])
    rows, t, everybody = this.coordinator._rows, this.hood.t, frozenset(this.silos)

    def confirmed(name: str, partner: str, honest: set[str]) -> bool:
        """Whether enough of its row, colluders and its partner, would sign the list that it is told."""
        return len(set(rows[name]) - (honest - {partner})) >= t

    victim, pairs = next(
        (victim, (honest[:2], honest[2:]))
        for victim in this.silos
        for honest in itertools.permutations(rows[victim], 4)
        if all(
            confirmed(a, b, {victim, *honest}) and confirmed(b, a, {victim, *honest})
            for a, b in (honest[:2], honest[2:])
        )
    )
    honest = {victim, *pairs[0], *pairs[1]}
    helpers = [name for name in this.silos if name not in honest]
    assert 2 * t == this.hood.h + len(set(rows[victim]) & set(helpers))
    lists = dict.fromkeys(pairs[0], everybody) | dict.fromkeys(pairs[1], everybody - {victim})
    attacker = Attacker(this, helpers, told(this, helpers, lists))
    assert victim in attacker.self_masks and victim in attacker.list_keys
    assert np.array_equal(attacker.remainder(victim), this.updates[victim][0])


def test_no_secret_of_an_honest_silo_stands_in_what_the_portal_saw(sparse):
    """Self masks, list keys, seeds, halves, unrevealed shares and private keys occur nowhere in the mail in clear."""
    this = sparse(12).play(*sparse.steps)
    revealed = {
        share
        for envelope in this.mail["unmask"].values()
        for row in (SparseUnmask.parse(envelope.payload).self_shares, SparseUnmask.parse(envelope.payload).list_shares)
        for share in row.values()
    }
    seen = b"".join(envelope.payload for mails in this.mail.values() for envelope in mails.values())
    attacker, secrets = Attacker(this, ()), 0
    for name in this.silos:
        keys, near, bundles = (attacker.record(name, step) for step in ("keys", "neighbours", "bundles"))
        texts = [keys["hpke"], keys["self"], keys["list"], *near["halves"].values(), *bundles["seeds"].values()]
        texts += [text for pair in bundles["shares"].values() for text in pair]
        for text in texts:
            data = canonical.unb64(text)
            if data not in revealed:
                secrets += 1
                assert text.encode() not in seen and data not in seen and data.hex().encode() not in seen
    assert secrets > 200
