# SPDX-License-Identifier: Apache-2.0
"""Whether a private run can learn, from public numbers alone: how far noise moves the weights, and how far records can.

A step adds noise of deviation σC to each of d trained coordinates, so T steps of it move the weights by σC·√(Td), times
learning rate over batch. B records move them by at most B·C in a step and T·B·C in all, and by that only if all their
gradients point one way. The quotient σ√d / (B√T) is therefore the least that noise over signal can be in the trained
weights, whatever C and the learning rate; with records whose gradients have nothing in common it is √B times as much.

Which quotient is too high depends on the task, and no public number says by how much. The limits below lie between runs
of ours that learned and runs that ended near chance: a warning, and never a proof.
"""

import math
from dataclasses import dataclass
from enum import Enum
from typing import Any, final

from privguard import _check
from privguard.records import Record


class Start(Enum):
    """What the training begins with, by which noise does more or less harm."""

    SCRATCH = "a network from scratch"
    TABLE = "a table of embeddings from scratch"  # a record reaches few of its rows, so gradients have little in common
    TUNED = "pre-trained weights"  # to be moved a little: noise that is small beside them is borne


LIMITS = {Start.SCRATCH: 0.5, Start.TABLE: 0.003, Start.TUNED: 2.0}
"""Of ``Outlook.noise_over_signal``: above it a run is expected to end near chance."""


@final
@dataclass(frozen=True, kw_only=True)
class Outlook(Record):
    """What noise and records can do to the weights of one run.

    Attributes:
        trained: number of trained parameters, d.
        start: what the training begins with.
        step_noise_over_signal: σ√d / B, the least that it can be in the sum of one step; the norm of noise over that
            of noise and signal, which is logged as ``noise_to_signal``, is then r / √(1 + r²) or more.
        noise_over_signal: the least that it can be in the weights after the last step.
        limit: from where on runs that began so ended near chance.
    """

    trained: int
    start: Start
    step_noise_over_signal: float
    noise_over_signal: float
    limit: float

    @property
    def faint(self) -> bool:
        """Whether the run is expected to learn little or nothing."""
        return self.noise_over_signal > self.limit

    @property
    def most_trained(self) -> int:
        """With so many trained parameters, and all else as it is, the run would be at its limit."""
        return int(self.trained * (self.limit / self.noise_over_signal) ** 2) if self.faint else self.trained

    def facts(self) -> dict[str, Any]:
        """The outlook as plain JSON values, with its verdict, for the manifest."""
        return {**self.to_json(), "faint": self.faint}


def outlook(
    *,
    noise_multiplier: float,
    batch_size: float,
    steps: int,
    trained: int,
    strategy: tuple[float, ...] = (1.0,),
    start: Start = Start.SCRATCH,
) -> Outlook:
    """What a run of these public numbers can learn at best.

    Args:
        noise_multiplier: σ, the deviation of the noise over the clipping norm.
        batch_size: expected records in a step.
        steps: steps of the whole run.
        trained: trained parameters.
        strategy: coefficients of correlated noise (``privguard.accounting.bands``); it leaves less in the weights.
        start: what the training begins with.

    Raises:
        ValueError: a number is out of range.
    """
    _check.non_negative("noise_multiplier", noise_multiplier)
    _check.positive("batch_size", batch_size)
    _check.count("steps", steps)
    _check.count("trained", trained, least=0)
    step = noise_multiplier * math.sqrt(trained) / batch_size
    return Outlook(
        trained=trained,
        start=start,
        step_noise_over_signal=step,
        noise_over_signal=step / math.sqrt(steps) * _left(strategy, steps),
        limit=LIMITS[start],
    )


def _left(strategy: tuple[float, ...], steps: int) -> float:
    """Of independent noise, the part that this strategy leaves in the weights."""
    if len(strategy) == 1:
        return 1.0
    from privguard.accounting.bands import expected_error

    return expected_error(strategy, steps=steps) / expected_error((1.0,), steps=steps)
