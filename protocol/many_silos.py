"""What a study with many silos promises, in one place: the manifest's words say it, the neighbourhoods are made for it."""

from __future__ import annotations

from fractions import Fraction
from typing import Final

COLLUDING: Final = Fraction(1, 5)
"""Of the participants: how many may work together with the portal."""
LOST: Final = Fraction(1, 10)
"""Of the participants: how many may be absent or fall out before a round is likely to stop."""
PRIVACY_BITS: Final = 40
"""A promise about an update fails with a chance of at most 2^-40, for one attempt."""
FAILURE_BITS: Final = 30
"""With as many lost as above a round stops with a chance of at most 2^-30, for each of two causes."""
MOST_SILOS: Final = 4096
"""Participants of such a study."""
