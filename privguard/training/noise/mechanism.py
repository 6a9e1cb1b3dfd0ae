# SPDX-License-Identifier: Apache-2.0
"""What a run's sum and noise are, in public numbers that are checked before it begins: docs/spec/mechanism-v1.md."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from privguard.training.clip import MOST_RECORDS, ROUNDING
from privguard.training.noise.correlation import peak
from privguard.training.noise.grid import Grid
from privguard.training.noise.past import weight_digits
from privguard.training.plan import Plan

SPECIFICATION = "mechanism-v1"


def mechanism(
    plan: Plan, parameters: Mapping[str, Tensor], *, processes: int, noise: str, shape_term: float | None = None
) -> dict[str, Any]:
    """The facts of the Gaussian mechanism that a step of this plan is, as JSON values.

    ``sensitivity`` is what one unit of privacy can move the sum by, rounding included, in the unit of the gradient; the
    noise has ``noise_multiplier`` times that, so rounding changes the noise and not the claim. ``shape_term`` is what a
    probe measured of the one thing that it does not cover.

    Args:
        plan: the plan of the run.
        parameters: trainable parameters by name.
        processes: how many ranks round a part each.
        noise: how noise is made, ``exact`` or ``float32``.
        shape_term: what a probe measured of the dependence on the shape of the batch, as a share of C; None where it
            was not measured.

    Raises:
        PrivacyError: sums or noise would leave the range of the numbers that hold them.
    """
    bound = plan.max_grad_norm * (1 + ROUNDING)
    facts: dict[str, Any] = {"specification": SPECIFICATION, "noise": noise, "sensitivity": bound}
    facts["shape_term"] = shape_term
    if noise == "exact":
        coordinates = sum(parameter.numel() for parameter in parameters.values())
        grid = Grid.of(bound, coordinates=coordinates, processes=processes)
        gain = peak(plan.strategy, steps=plan.steps) if plan.bands > 1 else 1.0
        grid.check(gain * plan.noise_multiplier, records=processes * MOST_RECORDS)
        if plan.bands > 1 and plan.noise_multiplier > 0:
            weight_digits(gain * grid.deviation(plan.noise_multiplier), sum(map(abs, plan.strategy)))
        facts |= {"sensitivity": grid.sensitivity, "grid_exponent": grid.exponent, "coordinates": coordinates}
    return facts
