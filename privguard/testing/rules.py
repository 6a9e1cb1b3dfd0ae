# SPDX-License-Identifier: Apache-2.0
"""Whether a rule for a layer gives the clipped sum that one backward pass for each example gives."""

import copy
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

from privguard.testing.promise import promise
from privguard.training.attach import attach
from privguard.training.bookkeeping.registry import REWRITTEN, RULES
from privguard.training.clip import Clipper
from privguard.training.one_by_one import OneByOne

_UNCLIPPED, _TOLERANCE = 1e6, 1e-4  # a clipping norm that clips nothing; float32 sums in another order


def check_layer_rule(make: Callable[[], nn.Module], inputs: Tensor) -> None:
    """Compare a layer's rule with one example at a time: clipped and not, each parameter frozen in turn, empty rows.

    Args:
        make: a fresh layer, all of whose parameters are trainable; its class has a rule.
        inputs: (B, ...), B of at least 4 different examples; floating point, or whole numbers for a table.

    Raises:
        AssertionError: the class has no rule, or a sum differs by more than 1e-4 of its norm.
        UnsupportedModelError: the rule leaves a parameter out, or gives factors of another shape.
    """
    kind = type(make())
    promise(kind in RULES or kind in REWRITTEN, f"{kind.__name__}: has a rule of its own; enter one with register_rule")
    promise(len(inputs) >= 4, f"inputs: hold at least 4 examples; got {len(inputs)}")  # noqa: PLR2004
    names = [name for name, _ in make().named_parameters()]
    promise(names, f"{kind.__name__}: owns parameters")
    mask = torch.ones(len(inputs), dtype=torch.bool)
    some = mask.clone()
    some[1] = False
    for frozen in (None, *(names if len(names) > 1 else ())):
        for rows in (mask, some):
            _compare(_Scored(make(), frozen=frozen), inputs, rows, f"{kind.__name__}, frozen: {frozen}")


@final
class _Scored(nn.Module):
    """A layer and a loss that every output takes part in, each with a weight of its own."""

    def __init__(self, layer: nn.Module, *, frozen: str | None) -> None:
        super().__init__()
        self.layer = layer
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_(name != frozen)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x).flatten(1)
        return (out.sin() * torch.arange(1, out.shape[1] + 1).cos() + 0.3 * out.square()).sum(1)


def _compare(model: nn.Module, inputs: Tensor, mask: Tensor, what: str) -> None:
    twin = copy.deepcopy(model)
    norms = _norms(model, inputs)
    for bound in (_UNCLIPPED, float(norms.median()), float(norms.min()) / 2):
        exact = _sum(OneByOne(twin, max_grad_norm=bound), twin, inputs, mask)
        mine = _sum(attach(model, max_grad_norm=bound), model, inputs, mask)
        gap = sum(float((mine[name] - exact[name]).double().square().sum()) for name in exact) ** 0.5
        size = sum(float(value.double().square().sum()) for value in exact.values()) ** 0.5
        promise(gap <= _TOLERANCE * size, f"{what}, clipped at {bound:g}: differs by {gap / size:.2g} of the exact sum")


def _norms(model: nn.Module, inputs: Tensor) -> Tensor:
    """The gradient norm of each example, by autograd alone, (B,)."""
    own = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rows = [torch.autograd.grad(model(inputs[i : i + 1]).sum(), own) for i in range(len(inputs))]
    return torch.stack([torch.cat([part.flatten() for part in row]).norm() for row in rows])


def _sum(clipper: Clipper, model: nn.Module, inputs: Tensor, mask: Tensor) -> dict[str, Tensor]:
    size = clipper.rows or len(inputs)
    try:
        for rows, real in zip(inputs.split(size), mask.split(size), strict=True):
            clipper.begin(real)
            clipper.backward(model(rows))
        return clipper.take().gradients
    finally:
        clipper.close()
