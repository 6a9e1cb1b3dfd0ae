# SPDX-License-Identifier: Apache-2.0
"""Convolutions: the per-example weight gradient is small enough to be formed."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from privguard.training.bookkeeping.batch import Call
from privguard.training.bookkeeping.factors import Factor, Full, Pieces
from privguard.training.bookkeeping.registry import register_rule

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
_NOT_TRANSPOSED = (False,)


@register_rule(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def convolution(call: Call) -> Iterator[tuple[str, Factor]]:
    """Convolution in one, two or three dimensions, with any padding, stride, dilation and grouping."""
    module, rows = cast("nn.Conv2d", call.module), len(call.g) // call.batch
    if "weight" in call.wanted:
        x, padding = _padded(module, call.x.to(call.g.dtype))
        geometry = module.stride, tuple(padding), module.dilation, module.groups
        weight = module.weight.detach().to(call.g.dtype)
        yield "weight", Pieces(_weights(_Job(x, call.g, weight, rows, *geometry)))
    if "bias" in call.wanted:
        yield "bias", Full(call.g.reshape(call.batch, rows, module.out_channels, -1).sum((1, 3), dtype=torch.float32))


def _padded(module: Convolution, x: Tensor) -> tuple[Tensor, Sequence[int]]:
    """The input with any padding that is not plain zeros on both sides laid around it, and the zeros that are left."""
    if module.padding_mode == "zeros" and not isinstance(module.padding, str):
        return x, module.padding
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    around = module._reversed_padding_repeated_twice  # noqa: SLF001 — torch keeps the resolved padding there
    return functional.pad(x, around, mode=mode), [0] * (x.dim() - 2)


@final
@dataclass(frozen=True)
class _Job:
    """A per-example weight gradient to be computed: ``rows`` rows of x and g for each example."""

    x: Tensor
    g: Tensor
    weight: Tensor
    rows: int
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def kernel(self, x: Tensor, g: Tensor, weight: Tensor, groups: int) -> Tensor:
        """The weight gradient summed over the rows, by torch's own kernel."""
        zero = [0] * (x.dim() - 2)
        options = (self.stride, self.padding, self.dilation, *_NOT_TRANSPOSED, zero, groups, [False, True, False])
        return torch.ops.aten.convolution_backward(g, x, weight, None, *options)[1]

    @property
    def shape(self) -> tuple[Any, ...]:
        """What the best way depends on, apart from the number of examples."""
        geometry = (self.rows, self.stride, self.padding, self.dilation, self.groups)
        return (*geometry, self.x.shape[1:], self.weight.shape, self.x.device, self.x.dtype, torch.get_num_threads())


def _loop(job: _Job) -> tuple[Tensor, ...]:
    """The ordinary kernel, one example after the other; each result stays where it is."""
    pairs = zip(job.x.split(job.rows), job.g.split(job.rows), strict=True)
    return tuple(job.kernel(x, g, job.weight, job.groups)[None].float() for x, g in pairs)


def _grouped(job: _Job) -> tuple[Tensor, ...]:
    """One convolution whose groups are the examples (Rochette et al. 2019)."""
    batch = len(job.x) // job.rows
    x, g = (t.unflatten(0, (batch, job.rows)).transpose(0, 1).flatten(1, 2) for t in (job.x, job.g))
    weight = job.weight.repeat(batch, *[1] * (job.weight.dim() - 1))
    found = job.kernel(x, g, weight, batch * job.groups)
    return (found.reshape(batch, *job.weight.shape).float(),)


_WAYS = (_loop, _grouped)
_fastest: dict[tuple[Any, ...], Callable[[_Job], tuple[Tensor, ...]]] = {}


def _weights(job: _Job) -> tuple[Tensor, ...]:
    """By whichever way was faster the first time that this shape came by; they differ in rounding alone.

    On one core the grouped way took 17 ms against 21 for 32 channels of 32 × 32, and 75 against 20 for 128 of 8 × 8.
    """
    if job.shape not in _fastest:
        if len(job.x) == job.rows:
            return _loop(job)  # a single example tells nothing about the others
        _fastest[job.shape] = min(_WAYS, key=lambda way: _seconds(way, job))
    return _fastest[job.shape](job)


def _seconds(way: Callable[[_Job], object], job: _Job) -> float:
    times: list[float] = []
    for _ in range(3):
        start = time.perf_counter()
        way(job)
        if job.x.is_cuda:
            torch.cuda.synchronize(job.x.device)
        times.append(time.perf_counter() - start)
    return min(times)
