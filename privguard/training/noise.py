"""Gaussian noise from AES-256-CTR: a clipped sum goes in, a noisy sum comes out.

Box–Muller (1958) on words of a cipher stream: the radius takes 63 bits, so |z| reaches 9.4 and the cut tail has
probability below 1e-20 per coordinate; the angle takes 32 bits. Each ledger position has a stream of its own, of which
the parameters take consecutive pieces, so no noise is ever used twice, and two processes that share the key add the
same noise, not two noises.

What this does not repair: samples are float32, so the attack on floating-point noise (Mironov 2012) is not ruled out by
construction; the report lists it among the assumptions.
"""

import math
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
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

    With several processes, only the one with ``lead`` adds noise to parameters of which each process has a copy. Of a
    parameter that is cut over ranks each process adds noise to its own part, from a stream named by the parameter and
    by where the part begins.

    Guarantee: the Gaussian mechanism for a sum of L2 sensitivity ``clipped.l2_bound`` under add-or-remove-one (Dwork &
    Roth 2014, A.1; Abadi et al. 2016, Algorithm 1). ``source`` must belong to one ledger position alone. ``multiplier``
    is dimensionless; 0 adds nothing, and the claim of such a run is infinite.
    """
    deviation = _check.non_negative("multiplier", multiplier) * clipped.l2_bound
    noisy = NoisySum(clipped.gradients, deviation)
    if deviation == 0:
        return noisy
    # Each device has one row of Gaussians. Whole parameters come first and take consecutive pieces of it; each part of
    # one that is cut begins a row of its own.
    gaussians: dict[torch.device, _Gaussians] = {}
    for name, gradient in sorted(clipped.gradients.items(), key=lambda item: shards.is_cut(item[1])):
        cut = shards.is_cut(gradient)
        if not (lead or cut):
            continue
        mine, begins = shards.part(gradient)
        if mine.device not in gaussians:
            gaussians[mine.device] = _Gaussians(deviation, mine.device, source.child(len(gaussians)))
        if cut:
            gaussians[mine.device].begin(source.child(name, *begins))
        gaussians[mine.device].add_to(mine)
    return noisy


@final
class _Gaussians:
    """An endless row of Gaussians of one deviation on one device, made in blocks.

    The parameters take consecutive pieces of it, and all blocks share these buffers: a block of its own for each small
    parameter, and fresh memory for each block, took as long as the sines. On the host NumPy computes the functions, in
    a third of torch's time; their last bits may differ. For a GPU the words alone are made on the host, in pinned
    memory, and the copy is not waited for: while it goes and the GPU computes, the host enciphers the next block.
    """

    def __init__(self, deviation: float, device: torch.device, source: Stream) -> None:
        self._scale = -2.0 * deviation * deviation
        self._words = _words(device)
        self._radius, self._angle, self._cosine = (torch.empty(_PAIRS, device=device) for _ in range(3))
        self._ready = torch.empty(2 * _PAIRS, device=device)
        self.begin(source)

    def begin(self, source: Stream) -> None:
        """Go on with another stream, from its beginning."""
        self._fill, self._used = source.reader(), len(self._ready)

    def add_to(self, target: Tensor) -> None:
        """Add the next Gaussian to each coordinate of a float32 tensor."""
        if not target.is_contiguous():  # for instance channels_last: noise in the order of the coordinates all the same
            noise = torch.zeros_like(target, memory_format=torch.contiguous_format)
            self.add_to(noise)
            target.add_(noise)
            return
        flat, done = target.view(-1), 0
        while done < flat.numel():
            if self._used == len(self._ready):
                self._draw()
            count = min(len(self._ready) - self._used, flat.numel() - done)
            flat[done : done + count].add_(self._ready[self._used : self._used + count])
            done, self._used = done + count, self._used + count

    def _draw(self) -> None:
        radius, angle, cosine = self._radius, self._angle, self._cosine
        if radius.is_cuda:
            self._words = _words(radius.device)  # torch gives pinned memory out again once the copy from it is done
        self._fill(self._words.numpy())
        bits = self._words.to(radius.device, non_blocking=True)
        # uniform in (0, 1]: (m + ½)/2⁶³ from 63 bits, in float32, whose exponent keeps the tail
        radius.copy_(bits[:_PAIRS].bitwise_and_(_LONGEST)).add_(0.5).mul_(2.0**-63)
        angle.copy_(bits[_PAIRS:].view(torch.int32)).mul_(math.pi * 2.0**-31)
        _apply("log", radius).mul_(self._scale)
        torch.mul(_apply("sqrt", radius), _apply("cos", angle, out=cosine), out=self._ready[:_PAIRS])
        torch.mul(radius, _apply("sin", angle), out=self._ready[_PAIRS:])
        self._used = 0


def _words(device: torch.device) -> Tensor:
    """Room on the host for the words of one block: one for each radius, half of one for each angle."""
    return torch.empty(_PAIRS + _PAIRS // 2, dtype=torch.int64, pin_memory=device.type == "cuda")


def _apply(function: str, x: Tensor, *, out: Tensor | None = None) -> Tensor:
    """``out = function(x)``, in place without ``out``."""
    out = x if out is None else out
    if x.device.type == "cpu":
        getattr(np, function)(x.numpy(), out=out.numpy())
    else:
        getattr(torch, function)(x, out=out)
    return out
