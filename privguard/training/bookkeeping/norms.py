# SPDX-License-Identifier: Apache-2.0
"""One norm per example over all parameters, never below the truth."""

from collections.abc import Collection

import torch
from torch import Tensor

from privguard.training.bookkeeping.gradients import KAPPA, ROUNDING, Gradient

_LOOSE = 1.5e-4  # slack ÷ squared norm above which an example is settled exactly: at most 1e-4 of the norm
_COARSE = (
    3e-6  # ROUNDING · U ÷ clipping norm above which a contribution is added in float64; 128 positions round 130 times
)


def example_norms(gradients: Collection[Gradient], *, max_norm: float) -> Tensor:
    """The gradient norm of each example, (B,) float64; NaN or infinite where the gradient is.

    Guarantee: where it decides about clipping, never below the truth, and at most 1e-4 above it. The truth is the norm
    of what will be added to the sum.
    """
    found = [g.square_norms() for g in gradients]
    squares = torch.stack([s for s, _ in found])  # (parameters, B)
    slack = torch.stack([torch.zeros_like(s) if e is None else e for s, e in found])
    whole = squares.sum(0)
    decides = whole.clamp(min=max_norm * max_norm / 16)  # below C / 4 nothing is clipped
    doubtful = (slack.sum(0) > _LOOSE * decides) & whole.isfinite() & slack.sum(0).isfinite()
    if doubtful.any():
        _settle(gradients, squares, slack, doubtful.nonzero().flatten(), max_norm)
    return (squares.sum(0).clamp(min=0) + slack.sum(0)).sqrt()


def _settle(gradients: Collection[Gradient], squares: Tensor, slack: Tensor, which: Tensor, max_norm: float) -> None:
    """Replace norms by exact ones, and keep contributions apart that float32 would round too coarsely."""
    lengths = (slack[:, which] * ROUNDING / KAPPA).sqrt()  # ROUNDING · U
    for row, gradient in enumerate(gradients):
        if slack[row, which].any():
            squares[row, which], slack[row, which] = gradient.settle(which), 0.0
    scale = squares[:, which].sum(0).clamp(min=0).sqrt().clamp(min=max_norm)
    coarse = lengths.sum(0) > _COARSE * scale
    if coarse.any():
        for gradient in gradients:
            gradient.isolate(which[coarse])
