"""Gaussian noise from AES-256-CTR: a clipped sum goes in, a noisy sum comes out.

Box–Muller (1958) on words of a cipher stream: the radius takes 63 bits, so |z| reaches 9.4 and the cut tail has
probability below 1e-20 per coordinate; the angle takes 32 bits. Each parameter of each ledger position has a stream of
its own, so no noise is ever used twice, and two processes that share the key add the same noise, not two noises.

What this does not repair: samples are float32, so the attack on floating-point noise (Mironov 2012) is not ruled out by
construction; the report lists it among the assumptions.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privguard import _check
from privguard._random import Stream
from privguard.training import shards
from privguard.training.clip import ClippedSum

_PAIRS = 1 << 16  # pairs per block: words, radii and angles of a block stay in the second-level cache
_LONGEST = (1 << 63) - 1


@final
@dataclass(frozen=True)
class NoisySum:
    """A clipped sum with noise of deviation ``deviation`` in every coordinate; only this may reach the optimizer.

    ``gradients`` maps the names of the model's parameters to float32 tensors of their shapes.
    """

    gradients: dict[str, Tensor]
    deviation: float


@torch.no_grad()
def add_noise(clipped: ClippedSum, *, multiplier: float, source: Stream, lead: bool = True) -> NoisySum:
    """Add N(0, (multiplier · l2_bound)²) to every coordinate, in place: ``clipped`` is used up.

    Of several processes one leads, and adds noise to what all have copies of. Of a parameter that is cut over ranks
    each adds noise to its own part, from a stream named by where the part begins.

    Guarantee: the Gaussian mechanism for a sum of L2 sensitivity ``clipped.l2_bound`` under add-or-remove-one (Dwork &
    Roth 2014, A.1; Abadi et al. 2016, Algorithm 1). ``source`` must belong to one ledger position alone. ``multiplier``
    is dimensionless; 0 adds nothing, and the claim of such a run is infinite.
    """
    deviation = _check.non_negative("multiplier", multiplier) * clipped.l2_bound
    if deviation > 0:
        for name, gradient in clipped.gradients.items():
            mine, begins = shards.part(gradient)
            if lead or shards.is_cut(gradient):
                _add_gaussian(mine, deviation, source.child(name, *begins))
    return NoisySum(clipped.gradients, deviation)


def _add_gaussian(target: Tensor, deviation: float, source: Stream) -> None:
    """Add one Gaussian of this deviation to each coordinate of a float32 tensor."""
    if not target.is_contiguous():  # for instance channels_last: noise in the order of the coordinates all the same
        noise = torch.zeros_like(target, memory_format=torch.contiguous_format)
        _add_gaussian(noise, deviation, source)
        target.add_(noise)
        return
    flat = target.view(-1)
    pairs = max(1, min(_PAIRS, -(-flat.numel() // 2)))
    draw = _pairs(pairs, deviation, source.reader(), flat.device)
    for start in range(0, flat.numel(), 2 * pairs):
        radius, cosine, sine = draw()
        first, second = flat[start : start + pairs], flat[start + pairs : start + 2 * pairs]
        first.addcmul_(radius[: len(first)], cosine[: len(first)])
        second.addcmul_(radius[: len(second)], sine[: len(second)])


def _pairs(
    count: int, deviation: float, fill: Callable[[NDArray[Any]], None], device: torch.device
) -> Callable[[], tuple[Tensor, Tensor, Tensor]]:
    """A source of (radius, cos, sin) triples for Box–Muller; the tensors are reused from call to call."""
    words = np.empty(count + -(-count // 2), np.int64)  # one 64-bit word for each radius, half a word for each angle
    host = torch.from_numpy(words)
    radius, angle, cosine = (torch.empty(count, device=device) for _ in range(3))

    def draw() -> tuple[Tensor, Tensor, Tensor]:
        fill(words)
        bits = host.to(device)
        # uniform in (0, 1]: (m + ½)/2⁶³ from 63 bits, in float32, whose exponent keeps the tail
        radius.copy_(bits[:count].bitwise_and_(_LONGEST)).add_(0.5).mul_(2.0**-63)
        radius.log_().mul_(-2.0 * deviation * deviation).sqrt_()
        angle.copy_(bits[count:].view(torch.int32)[:count]).mul_(math.pi * 2.0**-31)
        torch.cos(angle, out=cosine)
        return radius, cosine, angle.sin_()

    return draw
