# SPDX-License-Identifier: Apache-2.0
"""Layers by settings, types and memory formats: every cell is a layer that users write, and its input."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn


@final
@dataclass(frozen=True)
class Cell:
    """One setting of one layer.

    Attributes:
        program: how it is written.
        make: layer and input, drawn by torch's generator.
        tolerance: of the clipping norm; 16-bit sums are rounded.
    """

    program: str
    make: Callable[[], tuple[nn.Module, Tensor]]
    tolerance: float = 2e-4


class Called(nn.Module):
    """A layer with a call of its own."""

    def __init__(self, layer: nn.Module, call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.layer, x)


def cells() -> Iterator[Cell]:
    """All of them, in a fixed order."""
    yield from _convolutions()
    yield from _rows()
    yield from _normalisations()
    yield from _recurrent()
    yield from _attention()
    yield from _types()


def _cell(kind: type[nn.Module], shape: tuple[int, ...], *args: Any, top: int = 0, **options: Any) -> Cell:
    words = [*map(repr, args), *(f"{name}={value!r}" for name, value in options.items())]

    def make() -> tuple[nn.Module, Tensor]:
        return kind(*args, **options), torch.randint(top, shape) if top else torch.randn(shape)

    return Cell(f"{kind.__name__}({', '.join(words)}) of {shape}", make)


def _convolutions() -> Iterator[Cell]:
    pads = [(0, "zeros"), (1, "zeros"), ("same", "zeros"), ("valid", "zeros"), (1, "circular"), (1, "reflect")]
    kinds = [(nn.Conv1d, (4, 4, 9)), (nn.Conv2d, (3, 4, 7, 6)), (nn.Conv3d, (3, 4, 4, 5, 4))]
    settings = itertools.product(
        kinds, (1, 2), [*pads, ("same", "replicate")], (1, 2, 3), (1, 2), (1, 2), (True, False)
    )
    for (kind, shape), stride, (padding, mode), kernel, dilation, groups, bias in settings:
        if (padding == "same" and stride > 1) or (kind is nn.Conv3d and (kernel == 3 or mode == "reflect")):
            continue
        options = {"stride": stride, "padding": padding, "padding_mode": mode, "dilation": dilation}
        yield _cell(kind, shape, 4, 4, kernel, groups=groups, bias=bias, **options)
    for kind, shape in ((nn.ConvTranspose1d, (3, 4, 5)), (nn.ConvTranspose2d, (3, 4, 5, 5))):
        for groups, bias in itertools.product((1, 2), (True, False)):
            yield _cell(kind, shape, 4, 4, 3, stride=2, output_padding=1, groups=groups, bias=bias)


def _rows() -> Iterator[Cell]:
    for shape in ((4, 6), (4, 3, 6), (4, 2, 3, 6), (4, 2, 1, 3, 6), (2, 1, 6), (4, 1, 6)):
        for bias in (True, False):
            yield _cell(nn.Linear, shape, 6, 5, bias=bias)
    for shape, padding in itertools.product(((4, 3), (4, 2, 3), (3, 1)), (None, 0, 2)):
        yield _cell(nn.Embedding, shape, 5, 6, padding_idx=padding, top=5)
        yield _cell(nn.Embedding, shape, 5, 6, padding_idx=padding, sparse=True, top=5)
    for mode, padding in itertools.product(("sum", "mean", "max"), (None, 1)):
        yield _cell(nn.EmbeddingBag, (4, 5), 6, 4, mode=mode, padding_idx=padding, top=6)


def _normalisations() -> Iterator[Cell]:
    for shape, own in itertools.product(((6,), (3, 6), (2, 3, 6)), (True, False)):
        yield _cell(nn.LayerNorm, (4, 2, 3, 6), shape, bias=own, eps=0.1)
        yield _cell(nn.RMSNorm, (4, 2, 3, 6), shape, eps=None if own else 0.1)
    for groups, shape in itertools.product((1, 2, 4), ((4, 4, 3), (4, 4, 3, 3), (4, 4, 2, 2, 2))):
        yield _cell(nn.GroupNorm, shape, groups, 4)
    for kind, shape in ((nn.InstanceNorm1d, (4, 4, 6)), (nn.InstanceNorm2d, (4, 4, 3, 3))):
        yield _cell(kind, shape, 4, affine=True, eps=0.1)
    yield _cell(nn.PReLU, (4, 4, 3), 4)


def _recurrent() -> Iterator[Cell]:
    kinds, switch = (nn.RNN, nn.LSTM, nn.GRU), (True, False)
    for kind, layers, both, bias, projected in itertools.product(kinds, (1, 2), switch, switch, (0, 2)):
        if projected and kind is not nn.LSTM:
            continue
        options = {"num_layers": layers, "bidirectional": both, "bias": bias, "batch_first": True}
        cell = _cell(kind, (3, 5, 3), 3, 4, **options, **({"proj_size": projected} if projected else {}))
        yield Cell(cell.program, _with(cell, lambda layer, x: layer(x)[0]))


def _attention() -> Iterator[Cell]:
    switch = (True, False)
    for bias, more, zero, weights in itertools.product(switch, switch, switch, switch):
        options = {"batch_first": True, "bias": bias, "add_bias_kv": more, "add_zero_attn": zero}
        cell = _cell(nn.MultiheadAttention, (3, 4, 4), 4, 2, **options)

        def call(layer: Any, x: Tensor, weights: bool = weights) -> Tensor:
            return layer(x, x.sin(), x.cos(), need_weights=weights)[0]

        yield Cell(f"{cell.program}, need_weights={weights}", _with(cell, call))


def _types() -> Iterator[Cell]:
    """The same layers in other types, and images in channels_last behind an activation in place."""
    layers = [
        _cell(nn.Linear, (4, 3, 6), 6, 5),
        _cell(nn.LayerNorm, (4, 3, 6), 6),
        _cell(nn.Conv2d, (4, 3, 6, 6), 3, 4, 3),
    ]
    for cell, dtype in itertools.product(layers, (torch.float64, torch.bfloat16, torch.float16)):

        def make(cell: Cell = cell, dtype: torch.dtype = dtype) -> tuple[nn.Module, Tensor]:
            layer, x = cell.make()
            return layer.to(dtype), x.to(dtype)

        yield Cell(f"{cell.program}, {dtype}", make, 2e-4 if dtype == torch.float64 else 5e-2)
    for stride, groups in itertools.product((1, 2), (1, 2)):

        def image(stride: int = stride, groups: int = groups) -> tuple[nn.Module, Tensor]:
            first, second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=stride, groups=groups)
            net = nn.Sequential(first, nn.ReLU(inplace=True), nn.GroupNorm(2, 4), second)
            x = torch.randn(3, 4, 6, 6).to(memory_format=torch.channels_last)
            return net.to(memory_format=torch.channels_last), x

        yield Cell(f"channels_last: Conv2d, ReLU(inplace), GroupNorm, Conv2d(stride={stride}, groups={groups})", image)


def _with(cell: Cell, call: Callable[[Any, Tensor], Tensor]) -> Callable[[], tuple[nn.Module, Tensor]]:
    def make() -> tuple[nn.Module, Tensor]:
        layer, x = cell.make()
        return Called(layer, call), x

    return make
