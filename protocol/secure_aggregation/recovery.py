"""Rebuilding secrets from shares where some may be wrong: find t that fit the signed hash, name the others.

Of m shares, (m-t)/2 wrong ones are always corrected. Beyond that the signed hash still tells: by trying, up to m-t in
small rosters; in large ones up to 32/33 of m-t where their errors are independent of each other (see decoding.py).

Naming must not be turned against an honest silo. Liars who work together can send shares that lie with those of some
honest silos on another polynomial through the same secret; the remaining honest shares then look wrong. Where at most
(m-t)/2 lied that polynomial is not found, for the true one is nearer. Else, let e shares not lie on the polynomial that
was found. If it is not the true one, the two meet at 0, where the hash fits, and so in at most t-2 shares; then at
least m - e - (t-2) of the silos lied. Where that is more than the c silos against whom the study is protected, the e are
named; else all senders are suspects. The rebuilt secret is right in any case. An owner that deals a wrong share makes its
holder look wrong: only the sparse variant, whose owners sign a hash a share, tells these two apart.
"""

from __future__ import annotations

import hmac
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from protocol.secure_aggregation import decoding, sealing, shamir
from protocol.secure_aggregation.errors import NotEnoughShares
from protocol.secure_aggregation.prg import SEED_BYTES
from protocol.secure_aggregation.sets import RosterView

Secret = Literal["self", "list"]

MAX_TRIES: Final = 5000
"""All choices of t shares are tried where there are at most so many, as in rosters of up to 16."""


@dataclass
class Rebuilder:
    """Rebuilds the secrets of one attempt and remembers who sent shares that do not fit.

    liars: c, how many silos may work together.
    bad: silos proved to have sent a wrong share; they are asked last for the next secret.
    suspects: silos of whom some sent a wrong share, where it cannot be told who.
    """

    roster: RosterView
    liars: int
    bad: set[str] = field(default_factory=set)
    suspects: set[str] = field(default_factory=set)

    def rebuild(self, what: Secret, owner: str, shares: Mapping[str, bytes], *, ctx: bytes, signed: str) -> bytes:
        """The secret of `owner`.

        Parameters:
            what: b ("self") or K ("list").
            shares: sender -> share of 32 bytes.
            signed: the hash that `owner` signed in `ready`.

        Raises:
            NotEnoughShares: no t of the shares were found that rebuild it; `bad` names who was proved wrong before,
                `suspects` all senders of these shares.
        """
        t = self.roster.threshold
        points = {self.roster.index(sender) + 1: sender for sender in sorted(shares, key=lambda s: (s in self.bad, s))}
        if len(points) >= t:
            came = {x: shares[sender] for x, sender in points.items()}
            for choice in choices(came, t):
                used = {x: came[x] for x in choice}
                secret = shamir.interpolate(used)
                if sealing.fits(what, secret, signed, ctx=ctx, silo=owner):
                    self._blame(came, used)
                    return secret
        enough = len(points) >= t
        raise NotEnoughShares(
            f"the {what} secret of {owner}: {len(points)} shares came, {t} that fit its signed hash are needed"
            + (f"; at least one of {', '.join(sorted(shares))} sent a wrong share" if enough else ""),
            bad=self.bad,
            suspects=shares if enough else (),
        )

    def _blame(self, came: Mapping[int, bytes], used: Mapping[int, bytes]) -> None:
        odd = {x for x, share in came.items() if not hmac.compare_digest(shamir.interpolate(used, x), share)}
        proved = len(came) - len(odd) - (self.roster.threshold - 2) > self.liars
        names = {self.roster.members[x - 1] for x in (odd if proved else came)}
        if odd and proved:
            self.bad |= names
        elif odd:
            self.suspects |= names


def choices(shares: Mapping[int, bytes], t: int) -> Iterator[tuple[int, ...]]:
    """Choices of t of m >= t points, to be tried in this order; the first is right where at most (m-t)/2 shares are wrong."""
    extra = len(shares) - t
    for most in (extra // 2, extra * SEED_BYTES // (SEED_BYTES + 1)):
        false = decoding.false_points(shares, t=t, most=most)
        right = [x for x in shares if x not in false]
        if len(right) >= t:
            yield tuple(right[:t])
    if math.comb(len(shares), t) <= MAX_TRIES:
        yield from itertools.combinations(shares, t)
