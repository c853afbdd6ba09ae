"""Which shares are false, by algebra: Shamir's shares are a word of a Reed-Solomon code (McEliece and Sarwate 1981).

Syndromes. On m points, x^(j+1) times a polynomial of degree t-1 has a degree below m for j < m - t, and is 0 at 0. So what
interpolation through all m shares, each times its x^(j+1), gives at 0 comes from the false ones alone. It is a sum over
them of something times x^j: nothing that is computed from it depends on the secret.

Locating (Peterson 1960). If a polynomial sum_k q_k x^k vanishes at all false points, then sum_k q_k syndrome_(j+k) = 0 for
all j. These equations, of all bytes of a share together, have only such solutions where at most `most` <= (m-t)/2 shares
are false. Beyond that they still do where the errors are independent of each other, as those of broken disks are and those
of silos that conspire need not be (interleaved codes: Bleichenbacher, Kiayias and Yung 2003). The caller has a hash to tell.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from protocol.secure_aggregation import shamir


def false_points(shares: Mapping[int, bytes], *, t: int, most: int) -> set[int]:
    """The points x whose shares are false, if they are at most `most` and the errors allow it; else any points, or all.

    Parameters:
        shares: x -> share; m >= t of them, all of the same length.
        most: 0 to m - t; up to (m-t)/2 the answer is always right.

    Raises:
        ValueError: a point out of range, or shares of different lengths.
    """
    points = np.array(list(shares), dtype=np.uint8)
    extra = len(points) - t
    powers = [np.ones_like(points)]
    while len(powers) <= extra:
        powers.append(shamir.times(powers[-1], points))
    of_x = np.stack(powers, axis=1)  # m x (extra + 1)
    rows = {
        x: shamir.times(of_x[i, 1:, None], np.frombuffer(share, dtype=np.uint8)).tobytes()
        for i, (x, share) in enumerate(shares.items())
    }
    syndromes = np.frombuffer(shamir.interpolate(rows), dtype=np.uint8).reshape(extra, len(next(iter(shares.values()))))
    # One equation a start j and byte; then, to be reduced by them, the powers of each point: they are a combination of
    # equations where every polynomial that solves these vanishes.
    windows = np.arange(extra - most)[:, None] + np.arange(most + 1)
    equations = np.moveaxis(syndromes[windows], 2, 1).reshape(-1, most + 1)
    matrix = np.vstack([equations, of_x[:, : most + 1]])
    for column in range(most + 1):
        usable = np.flatnonzero(matrix[: len(equations), column])
        if usable.size:
            pivot = matrix[usable[0]]
            pivot = shamir.times(shamir.inverse(pivot[column]), pivot)
            matrix ^= shamir.times(matrix[:, column, None], pivot)
    return {int(x) for x in points[~matrix[len(equations) :].any(axis=1)]}
