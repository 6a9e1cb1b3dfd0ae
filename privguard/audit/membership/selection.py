# SPDX-License-Identifier: Apache-2.0
"""How much of a lead could a shift carry that the blind models see only faintly?

What records let one expect of a score is learnt from non-members alone, of whom no model can have a memory. If members
are ahead in that already, the split is shifted along the score. Blind models that explain a share R² of what the
records say of the score see about that share of the shift, so the shift may carry the lead seen over R², and only what
is left is a leak.

This is proportional selection with δ = 1 (Altonji, Elder and Taber 2005; Oster 2019, JBES 37(2), section 3): what is
not seen of a score is shifted as much as what is. R² counts the noise of a score as unseen too, which overstates what a
shift carries; for scores that are mostly noise it is held at a quarter.
"""

import math
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from privguard.audit.membership.blind import Baseline

SHIFTED = 0.01  # level at which members are ahead in what was learnt from non-members alone
LEAST = 0.25  # of what records say of a score, the share that blind models are held to see at least
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@final
@dataclass(frozen=True, kw_only=True)
class Carried:
    """``explained``: share of the score's variance among non-members that blind models predict, in [0, 1].

    ``p_value``: that members lead by no more than the shift along the score carries; 0 where no such shift shows.
    """

    explained: float
    p_value: float


def carried(values: FloatArray, blind: Baseline) -> Carried:
    """Question the lead of members in a score ``values`` (n,), larger for members.

    Guarantee: on a random split a lead is questioned in about one of a hundred audits, so that hardly any leak there
    is lost.
    """
    members = blind.members
    expected = blind.expected_of_others(values)
    explained = _explained(values[~members], expected[~members])
    _, p = stats.mannwhitneyu(expected[members], expected[~members], alternative="greater")
    if p > SHIFTED:
        return Carried(explained=explained, p_value=0.0)
    share = max(explained, LEAST)
    seen, _ = _lead(expected, members)
    rest, deviation = _lead(values - expected / share, members)
    doubt = 2 * abs(seen) / share * (1 - share) / math.sqrt(share * (~members).sum())  # of R², by the delta method
    return Carried(explained=explained, p_value=float(special.ndtr(-rest / max(math.hypot(deviation, doubt), 1e-12))))


def _explained(values: FloatArray, expected: FloatArray) -> float:
    spread = float(values.std() * expected.std())
    return float(np.cov(values, expected, bias=True)[0, 1] / spread) ** 2 if spread else 0.0


def _lead(values: FloatArray, members: BoolArray) -> tuple[float, float]:
    """How far the mean of members lies above that of others, and its standard deviation."""
    inside, outside = values[members], values[~members]
    deviation = math.sqrt(float(inside.var() / len(inside) + outside.var() / len(outside)))
    return float(inside.mean() - outside.mean()), deviation
