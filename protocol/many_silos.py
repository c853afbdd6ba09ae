"""What a study with many silos promises, in one place: the manifest's words say it, the neighbourhoods are made for it."""

from __future__ import annotations

from fractions import Fraction
from typing import Final

COLLUDING: Final = Fraction(1, 5)
"""Of the participants: how many may work together with the portal."""
LOST: Final = Fraction(1, 10)
"""Of the participants: how many may be absent or fall out before a round is likely to stop."""
MOST_SILOS: Final = 4096
"""Participants of such a study."""
