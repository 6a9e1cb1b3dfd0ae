# SPDX-License-Identifier: Apache-2.0
"""Where the book-keeper listens: an identity at the output of a computation.

While a module runs, its own parameters are frozen, so autograd spends nothing on their gradients. What it computes goes
through a tap that keeps what the rule will need (by ``save_for_backward``, so activation checkpointing works as usual)
and, on the way back, hands it over together with the output gradient.
"""

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

Collect = Callable[[Tensor, Tensor], None]  # (what was kept, output gradient)


class _Tap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, root: Tensor, collect: Collect, kept: Tensor) -> Tensor:  # noqa: ARG004 — see `tap`
        ctx.collect = collect
        ctx.save_for_backward(kept)
        ctx.set_materialize_grads(False)
        return output.detach()  # not a view for autograd, so an in-place ReLU may follow

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        if gradients[0] is not None:
            ctx.collect(ctx.saved_tensors[0], gradients[0])
        return gradients[0], None, None, None


def tap(output: Tensor, *, kept: Tensor, root: Tensor, collect: Collect) -> Tensor:
    """``output`` itself; when a gradient reaches it, ``collect(kept, gradient)`` is called.

    ``root`` is a scalar that requires a gradient and never gets one: it makes the graph exist below the first module.
    """
    return cast("Tensor", _Tap.apply(output, root, collect, kept.detach()))


@contextmanager
def frozen(parameters: Iterable[nn.Parameter]) -> Generator[None]:
    """Inside, autograd does not see these parameters."""
    parameters = [p for p in parameters if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad = False
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad = True
