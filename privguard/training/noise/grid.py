# SPDX-License-Identifier: Apache-2.0
"""The public grid on which a clipped sum is rounded, and the sensitivity that this leaves.

Noise can only hide what is added to it if the addition itself tells nothing, which no float does (Mironov 2012; Haney
et al. 2022). So the sum is rounded to multiples of a power of two *g*, the noise is an integer number of steps, and
integers are added. One record moves the rounded sum by at most Δ = ``l2_bound`` + R·√d·g: each of R processes rounds
each of d coordinates once, by at most g/2 in each of two neighbours. See docs/spec/mechanism-v1.md.
"""

import math
from dataclasses import dataclass
from typing import final

from privguard.errors import PrivacyError
from privguard.training.noise.gaussian import MOST

_SHARE = 1e-4  # of the bound: what all rounding together may add to the sensitivity
_LARGEST_INTEGER = 2.0**62
_LEAST = -112  # float32 loses a product below 2⁻¹²⁶; 128 of them stay far below a step
_LARGEST_FLOAT = 2.0**127
_FAR = 14.0  # deviations that no draw exceeds, with a chance below 2⁻¹³⁰


@final
@dataclass(frozen=True)
class Grid:
    """Multiples of 2^``exponent``, and ``sensitivity`` Δ in L2 of a sum that is rounded to them."""

    exponent: int
    sensitivity: float

    @classmethod
    def of(cls, l2_bound: float, *, coordinates: int, processes: int = 1) -> "Grid":
        """The grid of a sum with this bound over all ``coordinates`` together, of which each process rounds its part.

        The step is the largest power of two for which rounding adds at most 1e-4 of the bound.

        Args:
            l2_bound: the clipping norm, in the unit of the gradient.
            coordinates: how many numbers the sum has over all parameters.
            processes: how many ranks round a part each.
        """
        spread = processes * math.sqrt(max(1, coordinates))
        _, exponent = math.frexp(_SHARE * l2_bound / spread)  # x = m·2ᵉ with ½ ≤ m < 1, so 2ᵉ⁻¹ is the floor
        step = math.ldexp(1.0, exponent - 1)
        return cls(exponent - 1, (l2_bound + spread * step) * (1 + 2.0**-50))

    @property
    def step(self) -> float:
        """g, in the unit of the gradient."""
        return math.ldexp(1.0, self.exponent)

    def deviation(self, multiplier: float) -> float:
        """Standard deviation of the noise in steps, for σ = ``multiplier``.

        Args:
            multiplier: the noise multiplier σ, dimensionless.
        """
        return multiplier * self.sensitivity / self.step

    def check(self, multiplier: float, *, records: int) -> None:
        """Refuse what does not fit: called before a run begins, from public numbers alone.

        Args:
            multiplier: the noise multiplier σ, dimensionless.
            records: the most contributions that one sum may hold.

        Raises:
            PrivacyError: a sum of ``records`` contributions and its noise could leave the range of int64, the noise
                that of float64's integers, or what is released that of float32.
        """
        largest = records * self.sensitivity + _FAR * multiplier * self.sensitivity
        shown = f"noise_multiplier={multiplier:g}, sensitivity={self.sensitivity:g}, records={records}"
        if self.exponent < _LEAST or not largest < _LARGEST_FLOAT:
            raise PrivacyError(
                f"{shown}: the grid's step 2^{self.exponent} or the sum leaves the range of float32, which would lose "
                "the noise; scale the loss, and max_grad_norm with it, towards 1"
            )
        if not (self.deviation(multiplier) < MOST and largest / self.step < _LARGEST_INTEGER):
            raise PrivacyError(
                f"{shown}: sum and noise leave the range of 64-bit integers; plan fewer records in a step or less noise"
            )
