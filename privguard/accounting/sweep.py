# SPDX-License-Identifier: Apache-2.0
"""Hyper-parameter sweeps that cost about as much as two or three runs: random stopping.

Train a *random* number of candidates and release only the best (Papernot & Steinke 2022, arXiv 2110.03620): the cost
then grows with the logarithm of the number, not with the number. It holds under three conditions that code cannot see,
so they are said here: the number is drawn before any result is seen and stays secret; every candidate uses the same
mechanism; nothing but the winner leaves the sweep. A sweep that does not follow them is composed run by run.
"""

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from privguard import _check

if TYPE_CHECKING:
    from dp_accounting import DpEvent


@final
@dataclass(frozen=True)
class RandomStopping:
    """A negative binomial number of trials, none left out: ``shape`` 1 is geometric, 0 logarithmic, ∞ Poisson.

    ``mean`` is the parameter of ``expected`` trials for shapes 0 and 1; a Poisson number may be zero.
    """

    mean: float
    shape: float = 1.0

    def __post_init__(self) -> None:
        poisson = self.shape == math.inf
        _check.require(self.shape in {0.0, 1.0, math.inf}, "shape", self.shape, wanted="0, 1 or infinity")
        _check.require(
            math.isfinite(self.mean) and self.mean > (0 if poisson else 1),
            "mean",
            self.mean,
            wanted="an expected number of trials above 1",
            remedy="one trial needs no random stopping",
        )

    def event(self, run: "DpEvent") -> "DpEvent":
        """The event of the whole sweep, where ``run`` is the event of one whole candidate run.

        Args:
            run: the event of one whole candidate run.
        """
        from dp_accounting import dp_event

        return dp_event.RepeatAndSelectDpEvent(run, self.mean, self.shape)

    def draw(self) -> int:
        """A secret number of trials, from the operating system's entropy; draw it once, before the sweep."""
        uniform = (int.from_bytes(os.urandom(7), "big") >> 3) / 2**53
        return self._quantile(uniform)

    def probability(self, trials: int) -> float:
        """The chance of exactly so many trials.

        Args:
            trials: how many candidates were tried.
        """
        if self.shape == math.inf:
            return math.exp(trials * math.log(self.mean) - self.mean - math.lgamma(trials + 1)) if trials >= 0 else 0.0
        if trials < 1:
            return 0.0
        if self.shape == 1.0:
            return (1 / self.mean) * (1 - 1 / self.mean) ** (trials - 1)
        gamma = _logarithmic_parameter(self.mean)
        return (1 - gamma) ** trials / (trials * math.log(1 / gamma))

    def _quantile(self, uniform: float) -> int:
        trials, below = (0 if self.shape == math.inf else 1), 0.0
        while True:
            below += self.probability(trials)
            if uniform < below or (trials > self.mean and self.probability(trials) < 2.0**-60):
                return trials
            trials += 1


def _logarithmic_parameter(mean: float) -> float:
    """γ of the logarithmic distribution with this mean, (1/γ − 1)/log(1/γ), by bisection."""
    low, high = -700.0, -1e-9  # of log γ
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if math.expm1(-middle) / -middle > mean else (low, middle)
    return math.exp(high)
