"""Matrix layers: ``nn.Linear`` and the transposed ``Conv1D`` of transformers."""

from collections.abc import Iterator

from torch import Tensor

from privguard.training.bookkeeping.call import Call
from privguard.training.bookkeeping.factors import Factor, Full, Outer


def linear(call: Call) -> Iterator[tuple[str, Factor]]:
    """Y = X Wᵀ + b."""
    g = positions(call.g, call.batch)
    if "weight" in call.wanted:
        yield "weight", Outer(g, positions(call.x, call.batch))
    if "bias" in call.wanted:
        yield "bias", Full(g.sum(1))


def conv1d_of_transformers(call: Call) -> Iterator[tuple[str, Factor]]:
    """Y = X W + b, the layout of GPT-2."""
    g = positions(call.g, call.batch)
    if "weight" in call.wanted:
        yield "weight", Outer(positions(call.x, call.batch), g)
    if "bias" in call.wanted:
        yield "bias", Full(g.sum(1))


def positions(x: Tensor, batch: int) -> Tensor:
    """(B·k, …, d) → (B, T, d): every dimension between the example and the features is a position."""
    return x.reshape(batch, x.numel() // (batch * x.shape[-1]), x.shape[-1])
