"""Where the book-keeper listens: an identity at the output of a module.

While a module runs, its own parameters are frozen, so autograd spends nothing on their gradients. What it computes goes
through a tap that keeps the module's input (by ``save_for_backward``, so activation checkpointing works as usual) and,
on the way back, hands the pair (input, output gradient) to the book-keeper.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

Collect = Callable[[Tensor, Tensor], None]  # (input, output gradient)


class _Tap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, root: Tensor, collect: Collect, x: Tensor) -> Tensor:  # noqa: ARG004 — see `tap`
        ctx.collect = collect
        ctx.save_for_backward(x)
        ctx.set_materialize_grads(False)
        return output.detach()  # not a view for autograd, so an in-place ReLU may follow

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        if gradients[0] is not None:
            ctx.collect(ctx.saved_tensors[0], gradients[0])
        return gradients[0], None, None, None


def tap(output: Tensor, *, x: Tensor, root: Tensor, collect: Collect) -> Tensor:
    """``output`` itself; when a gradient reaches it, ``collect(x, gradient)`` is called.

    ``root`` is a scalar that requires a gradient and never gets one: it makes the graph exist below the first module.
    """
    return cast("Tensor", _Tap.apply(output, root, collect, x.detach()))


@contextmanager
def frozen(parameters: list[nn.Parameter]) -> Generator[None]:
    """Inside, autograd does not see these parameters."""
    for parameter in parameters:
        parameter.requires_grad = False
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad = True
