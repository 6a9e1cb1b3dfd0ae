# SPDX-License-Identifier: Apache-2.0
"""The clipper for any model at all: physical batches of one example, and an ordinary backward pass for each."""

from collections.abc import Generator, Hashable, Iterable
from contextlib import AbstractContextManager, contextmanager
from typing import final

import torch
from torch import Tensor, nn

from privguard import _check
from privguard.errors import UnsupportedModelError
from privguard.training import shards
from privguard.training.clip import (
    NO_BOUND,
    Checks,
    ClippedSum,
    EscapeAlarm,
    Total,
    Turn,
    clip_factors,
    gradients_of,
    trainable,
)
from privguard.training.probes.buffers import BufferChecks, refuse_changed
from privguard.training.probes.modules import refuse_mixing


@final
class OneByOne:
    """The exact fallback for any model: physical batches of a single example, and an ordinary backward pass for each.

    Slow, and obviously right whatever the layers are, since no example ever meets another: two of them in one graph
    would meet in 0 · NaN. The reference that the book-keeping clipper is tested against.
    """

    rows: int | None = 1
    shape_term: float | None = 0.0  # every batch has one record
    checks: Checks | None = None
    unchecked: tuple[str, ...] = ()

    def __init__(self, model: nn.Module, *, max_grad_norm: float) -> None:
        self._bound = float(_check.positive("max_grad_norm", max_grad_norm))
        refuse_mixing(model)
        self._parameters = trainable(model)
        if cut := [name for name, parameter in self._parameters.items() if shards.is_cut(parameter)]:
            raise UnsupportedModelError(
                f"parameters={cut}: cut over ranks, which this way has no sum for; keep one full copy on each rank"
            )
        self._turn, self._total = Turn(), Total(self._parameters)
        self._alarm, self._buffers = EscapeAlarm(model, self._parameters), BufferChecks(model)

    def begin(self, mask: Tensor, *, rows_each: int = 1, shapes: Hashable = ()) -> None:  # noqa: ARG002 — one graph, however many rows it has
        """See ``Clipper.begin``; one unit."""
        self._alarm.begin()
        self._turn.begin(mask)
        _check.require(len(mask) == 1, "mask.shape", tuple(mask.shape), wanted="(1,)", remedy="feed one row at a time")
        if self._bound != NO_BOUND:
            self._buffers.begin()

    def backward(self, losses: Tensor) -> None:
        """See ``Clipper.backward``."""
        mask = self._turn.check(losses)
        self._turn.spend()
        refuse_changed(self._buffers.changed())
        self._total.count(1)
        if not mask.item():
            return
        gradient = gradients_of(losses.sum(), self._parameters)
        if not gradient:
            return  # no parameter takes part in this record's loss: its gradient is zero
        norm = global_norm(gradient.values())
        if not norm.isfinite():
            return  # counts as zero; the noise does not tell
        factor = clip_factors(norm, max_norm=self._bound).item()
        for name, value in gradient.items():
            self._total.slot(name).add_(value.double(), alpha=factor)

    def take(self) -> ClippedSum:
        """See ``Clipper.take``."""
        self._turn.end()
        return self._total.take(self._bound)

    def close(self) -> None:
        """See ``Clipper.close``."""
        self._alarm.close()

    @contextmanager
    def unclipped(self) -> Generator[None]:
        """See ``Clipper.unclipped``."""
        bound, self._bound = self._bound, NO_BOUND
        try:
            yield
        finally:
            self._bound = bound
            self._turn.reset()
            self._total.take(bound)

    def rehearsal(self, size: int) -> AbstractContextManager[None]:  # noqa: ARG002 — one example is everywhere
        """See ``Clipper.rehearsal``."""
        return self._buffers.learning()


def global_norm(tensors: Iterable[Tensor]) -> Tensor:
    """The L2 norm over all the tensors together, accumulated in float64.

    Args:
        tensors: tensors of any shapes.

    Returns:
        A float64 scalar.
    """
    return torch.stack([torch.linalg.vector_norm(t, dtype=torch.float64) for t in tensors]).norm()
