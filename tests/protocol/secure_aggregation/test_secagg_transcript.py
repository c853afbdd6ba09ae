"""What the portal and c silos that help it can compute from all they saw: the sum of the others, and nothing of one.

Each test collects every byte that the portal saw in a round and the whole journals of the colluding silos, derives all
seeds that these determine, takes all those masks off, and looks at what is left of each honest silo's update.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from contextlib import suppress

import numpy as np
import pytest

from protocol import canonical
from protocol.messages import ListSignature, Ready, Unmask
from protocol.secure_aggregation import NotEnoughShares, ProtocolViolation, colluders, sealing, shamir, threshold
from protocol.secure_aggregation.prg import Stream
from protocol.secure_aggregation.recovery import Rebuilder

WORDS = 1 << 15
SECRETS = ("self", "list")


class Attacker:
    """The portal's mail, and the journals of silos that hand over all they have.

    shares: (kind, owner) -> {x: share} of everything revealed or held by a colluder.
    seeds: {i, j} -> pair seed; masks: silo -> b.
    """

    def __init__(self, this, helpers: Iterable[str], unmasks: Iterable = ()) -> None:
        self.this, self.helpers = this, tuple(helpers)
        self.roster = this.roster
        self.ctx = this.parameters.ctx
        self.ready = {name: Ready.parse(envelope.payload) for name, envelope in this.mail["ready"].items()}
        self.shares: dict[tuple[str, str], dict[int, bytes]] = {}
        self.seeds: dict[frozenset[str], bytes] = {}
        self.masks: dict[str, bytes] = {}
        self.list_keys: dict[str, bytes] = {}
        for envelope in (*this.mail["unmask"].values(), *unmasks):
            message = Unmask.parse(envelope.payload)
            for owner, share in message.self_shares.items():
                self.learn("self", owner, message.silo, share)
            for owner, share in message.list_shares.items():
                self.learn("list", owner, message.silo, share)
        for helper in self.helpers:
            rows = this.journals[helper].rows
            own = canonical.decode(rows["round/st-abc/1/0/keys"])
            self.masks[helper] = canonical.unb64(own["self"])
            self.list_keys[helper] = canonical.unb64(own["list"])
            for sender, bundle in canonical.decode(rows["round/st-abc/1/0/bundles"])["opened"].items():
                self.learn("self", sender, helper, canonical.unb64(bundle["self_share"]))
                self.learn("list", sender, helper, canonical.unb64(bundle["list_share"]))
                self.seeds[frozenset((helper, sender))] = canonical.unb64(bundle["seed"])
        self.derive()

    def learn(self, kind: str, owner: str, holder: str, share: bytes) -> None:
        self.shares.setdefault((kind, owner), {})[self.roster.index(holder) + 1] = share

    def derive(self) -> None:
        """Everything that t shares rebuild, and what lies behind it."""
        t = self.roster.threshold
        for (kind, owner), held in self.shares.items():
            if len(held) < t:
                continue
            secret = shamir.interpolate(dict(list(held.items())[:t]))
            signed = getattr(self.ready[owner], f"{kind}_hash")
            assert sealing.binding(kind, secret, ctx=self.ctx, silo=owner) == signed
            (self.masks if kind == "self" else self.list_keys)[owner] = secret
        for owner, key in self.list_keys.items():
            box = self.ready[owner].list_box
            plain = sealing.open_list(box, key=key, ctx=self.ctx, roster=self.roster.digest, silo=owner)
            for index, other in enumerate(self.roster.members):
                if other != owner:
                    self.seeds[frozenset((owner, other))] = plain[32 * index : 32 * index + 32]

    def unknown(self, name: str) -> list[frozenset[str]]:
        """The masks of this silo's update that nothing determines: {itself} is b, {itself, other} a pair seed."""
        missing = [] if name in self.masks else [frozenset((name,))]
        others = [other for other in self.ready if other != name]
        return missing + [frozenset((name, other)) for other in others if frozenset((name, other)) not in self.seeds]

    def remainder(self, name: str) -> np.ndarray:
        """The silo's masked update without every mask that is known: what the attacker is left with."""
        rest = np.frombuffer(self.this.chunks[name][0], dtype="<u4").copy()
        if name in self.masks:
            rest -= stream(self.masks[name], "self", self.ctx)
        for other in self.ready:
            seed = self.seeds.get(frozenset((name, other)))
            if other != name and seed is not None:
                mask = stream(seed, "pair", self.ctx)
                rest = rest - mask if other > name else rest + mask
        return rest


def stream(seed: bytes, label: str, ctx: bytes) -> np.ndarray:
    return np.frombuffer(Stream(seed, label, ctx).read(0, 4 * WORDS), dtype="<u4")


def is_uniform(words: np.ndarray) -> bool:
    """Chi-square of the bytes against uniform: true for all but one in 10^9 of uniform rows."""
    data = words.view(np.uint8)
    counts = np.bincount(data, minlength=256)
    expected = len(data) / 256
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return abs(statistic - 255) < 6.2 * math.sqrt(2 * 255)


def small_updates(this) -> None:
    """Updates as training makes them: small numbers, far from uniform, so that a missing mask would show."""
    draw = np.random.default_rng(7)
    for name in this.silos:
        words = draw.integers(-1000, 1000, WORDS).astype("<i4").view("<u4")
        assert not is_uniform(words)
        this.updates[name] = (words, this.updates[name][1])


def played(world, n: int, dropped: int):
    """A round of n silos in which `dropped` vanish after their upload, so that the portal holds their update too."""
    this = world(n, words=WORDS)
    small_updates(this)
    live = this.silos[: n - dropped]
    this.play("keys", "bundles", "ready", "update")
    for name in this.silos[n - dropped :]:
        del this.mail["update"][name]
    this.play("list", "unmask", who=live)
    return this, live


@pytest.mark.parametrize(("n", "dropped"), [(4, 1), (7, 1), (7, 2), (5, 0)])
def test_portal_with_c_silos_cannot_unmask_one_silo(world, n, dropped):
    this, live = played(world, n, dropped)
    c = colluders(n, this.parameters.min_participants)
    this.assert_sum(live)
    attacker = Attacker(this, live[:c])
    honest = [name for name in this.silos if name not in live[:c]]
    for name in honest:
        unknown = attacker.unknown(name)
        if name in live:
            # b is rebuilt; what stays unknown are the seeds shared with every other honest member of the list.
            assert unknown == [frozenset((name, other)) for other in live if other in honest and other != name]
            assert unknown
        else:
            # It fell out: all pair seeds are rebuilt, b is not; of its shares only the colluders' are known.
            assert unknown == [frozenset((name,))]
            assert len(attacker.shares["self", name]) == c < attacker.roster.threshold
        rest = attacker.remainder(name)
        assert is_uniform(rest)
        # The remainder is the update under exactly the masks that are unknown: nothing else hides it.
        secret = np.zeros(WORDS, dtype="<u4")
        for pair in unknown:
            mask, sign = _true_mask(this, name, pair)
            secret = secret + mask if sign > 0 else secret - mask
        assert np.array_equal(rest, this.updates[name][0] + secret)
    together = [name for name in honest if name in live]
    total = sum(attacker.remainder(name) for name in together)
    assert np.array_equal(total, sum(this.updates[name][0] for name in together))
    # Of fewer than all honest members of the list, the sum is as hidden as each of them.
    if len(together) > 2:
        assert is_uniform(sum(attacker.remainder(name) for name in together[1:]))


def _true_mask(this, name: str, pair: frozenset[str]) -> tuple[np.ndarray, int]:
    """The mask behind an unknown seed, from the honest silo's own journal, and its sign in that silo's update."""
    rows = this.journals[name].rows
    others = pair - {name}
    if not others:
        own = canonical.decode(rows["round/st-abc/1/0/keys"])
        return stream(canonical.unb64(own["self"]), "self", this.parameters.ctx), 1
    (other,) = others
    seed = canonical.decode(rows["round/st-abc/1/0/bundles"])["opened"][other]["seed"]
    return stream(canonical.unb64(seed), "pair", this.parameters.ctx), 1 if other > name else -1


def test_no_secret_of_an_honest_silo_stands_in_what_the_portal_saw(world):
    """Seeds, self masks, list keys, halves, shares for others and private keys occur nowhere in the mail in clear."""
    this, _ = played(world, 4, 1)
    revealed = {
        share
        for envelope in this.mail["unmask"].values()
        for row in (Unmask.parse(envelope.payload).self_shares, Unmask.parse(envelope.payload).list_shares)
        for share in row.values()
    }
    opened = {ListSignature.parse(envelope.payload).nonce for envelope in this.mail["list"].values()}
    seen = b"".join(envelope.payload for mails in this.mail.values() for envelope in mails.values())
    secrets = 0
    for name in this.silos:
        rows = this.journals[name].rows
        keys, roster, bundles = (
            canonical.decode(rows[f"round/st-abc/1/0/{step}"]) for step in ("keys", "roster", "bundles")
        )
        texts = [keys["hpke"], keys["self"], keys["list"], *keys["nonces"], roster["self_share"], roster["list_share"]]
        texts += [*roster["halves"].values()]
        texts += [text for row in bundles["opened"].values() for text in row.values()]
        for text in texts:
            data = canonical.unb64(text)
            if data in revealed | opened:
                continue
            secrets += 1
            assert text.encode() not in seen and data not in seen and data.hex().encode() not in seen
    assert secrets > 40


def test_more_than_c_silos_break_one_update(world):
    """The bound is sharp: with n = 4 and two that help, two lists get t signatures and both kinds of share leak.

    The manifest's participants must therefore be hospitals that know each other; the approval page says c in words.
    """
    n = 4
    this = world(n, words=WORDS)
    small_updates(this)
    this.play("keys", "bundles", "ready", "update")
    first, second, *helpers = this.silos
    assert len(helpers) == colluders(n, this.parameters.min_participants) + 1
    lists = {name: (name, *helpers) for name in (first, second)}
    unmasks = []
    for name, members in lists.items():
        updates = this.relayed("update", members)
        signatures = [this.machines[name].sign_list(updates)]
        for helper in helpers:
            double = this.journals[helper].copy()  # a helper forgets what it signed
            this.journals[helper], kept = double, this.journals[helper]
            signatures.append(this.rebuild(helper).sign_list(updates))
            this.journals[helper] = kept
        unmasks.append(this.machines[name].unmask(signatures))
    attacker = Attacker(this, helpers, unmasks)
    assert attacker.unknown(first) == []
    assert np.array_equal(attacker.remainder(first), this.updates[first][0])


def test_two_lists_with_c_helpers_never_both_reach_t_signatures(world):
    """The same attack with one helper: the second list stays short of t, so no honest silo reveals for it."""
    this = world(4).play("keys", "bundles", "ready", "update")
    helper = this.silos[3]
    first, second = (*this.silos[:2], helper), (*this.silos[1:3], helper)
    kept = this.journals[helper].copy()
    signatures = {}
    for members in (first, second):
        this.journals[helper] = kept.copy()
        signatures[members] = [this.rebuild(helper).sign_list(this.relayed("update", members))]
    for name in this.silos[:3]:
        for members in (first, second):
            try:
                signatures[members].append(this.machines[name].sign_list(this.relayed("update", members)))
            except ProtocolViolation as error:
                assert error.code in ("LEFT_OUT", "SECOND_LIST")
    assert len(signatures[first]) == 3
    assert len(signatures[second]) == 2
    for name in this.silos[:3]:
        with pytest.raises(ProtocolViolation, match=r"TOO_FEW_SIGNATURES|TWO_LISTS"):
            this.machines[name].unmask(signatures[second])


def test_fewer_than_t_shares_rebuild_nothing(world):
    this, _ = played(world, 7, 1)
    attacker = Attacker(this, this.silos[:2])
    shares = {this.silos[x - 1]: share for x, share in attacker.shares["self", this.silos[6]].items()}
    assert len(shares) == 2
    with pytest.raises(NotEnoughShares):
        Rebuilder(this.roster, liars=1).rebuild(
            "self", this.silos[6], shares, ctx=attacker.ctx, signed=attacker.ready[this.silos[6]].self_hash
        )


def test_masks_of_two_attempts_and_of_two_silos_have_nothing_in_common(world):
    """The same update in two attempts wears independent masks: the difference of both uploads is uniform."""
    this = world(4, words=WORDS)
    small_updates(this)
    this.play("keys", "bundles", "ready", "update")
    before = dict(this.chunks)
    this.attempt(attempt=1)
    this.play("keys", "bundles", "ready", "update")
    for name in this.silos:
        first, second = (np.frombuffer(chunks[name][0], dtype="<u4") for chunks in (before, this.chunks))
        assert is_uniform(first)
        assert is_uniform(first - second)
    rows = [np.frombuffer(this.chunks[name][0], dtype="<u4") for name in this.silos]
    assert is_uniform(rows[0] - rows[1])


def told(this, helpers: tuple[str, ...], lists: dict[str, tuple[str, ...]]) -> list:
    """What the silos reveal when the portal tells each another list, and helpers sign each of the lists, forgetting the last."""
    signed = {}
    for name, members in lists.items():
        with suppress(ProtocolViolation):
            signed[name] = this.machines[name].sign_list(this.relayed("update", members))
    revealed = []
    for members in sorted(set(lists.values())):
        signatures = [signed[name] for name in signed if lists[name] == members]
        doubles = {}
        for helper in set(helpers) & set(members):
            kept, this.journals[helper] = this.journals[helper], this.journals[helper].copy()
            doubles[helper] = this.rebuild(helper)
            signatures.append(doubles[helper].sign_list(this.relayed("update", members)))
            this.journals[helper] = kept
        # Whoever it can be shown to is asked to reveal for it, whatever list it was told before.
        for name in lists:
            with suppress(ProtocolViolation):
                revealed.append(this.machines[name].unmask(signatures))
    return revealed


@pytest.mark.parametrize("n", [4, 5, 6, 7, 10])
@pytest.mark.parametrize("seed", range(6))
def test_lists_made_up_at_random_with_c_helpers_open_at_most_one_sum(world, n, seed):
    """The portal tells each silo any list, and its helpers, as many as may be, sign all of them."""
    draw = random.Random(100 * n + seed)
    this = world(n, words=16).play("keys", "bundles", "ready", "update")
    t, c = threshold(n), colluders(n, this.parameters.min_participants)
    helpers, honest = this.silos[:c], this.silos[c:]
    lists = [tuple(sorted(draw.sample(this.silos, draw.randint(t, n)))) for _ in range(1 + seed % 3)]
    chosen = {name: draw.choice(lists) for name in honest}
    attacker = Attacker(this, helpers, told(this, helpers, chosen))
    opened = {name for name in honest if name in attacker.masks}
    for name in honest:
        unknown = attacker.unknown(name)
        assert unknown
        if name in opened:
            # Hidden by the masks that it shares with every other honest silo in the one sum.
            assert {frozenset((name, other)) for other in opened - {name}} == set(unknown)
    assert len(opened) >= 2 or not opened
