# SPDX-License-Identifier: Apache-2.0
"""The loss that a private run trains on: that of the model's head, or the user's own, for each example.

In Trainer a user's loss (an overridden ``compute_loss``, a ``compute_loss_func``) is one number for a batch. Here each
example's is the value it has for a batch of that example alone, found with one forward pass where the loss looks at the
model's outputs only, and otherwise with one for each example. What has no such value, since it compares the records of
a batch with each other, is refused before step 1, and so is a model whose own loss is not the one of its head.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from transformers import Trainer

from privguard.errors import PrivacyError, SensitivityError, UnsupportedModelError
from privguard.integrations.transformers.losses import bare, head_of
from privguard.integrations.transformers.rows import Answered, LossOfRow, Recorded, forbidden, row_of
from privguard.runs.driver import Batch, Head
from privguard.training.clip import trainable
from privguard.training.probes.fields import Structure, in_float32, make
from privguard.training.probes.gradients import float32_copies, untouched, without_dropout

_ROWS = 3  # of the batch on which a user's loss is checked
_SAME = 1e-3  # relative, of a loss or a gradient in float32
_OWN_LOSS = (
    "pass the loss that you mean as per_example_loss, a function of (outputs, batch) that returns one loss for each "
    "example"
)
_NO_ROUTER = (
    "the router's auxiliary loss balances experts over a batch, which couples the examples: set "
    "config.output_router_logits=False"
)


@final
class RowByRow:
    """A loss for a batch, taken of each example alone, (B,), with one forward pass over all of them.

    The loss is called once with the whole batch, to see what it asks the model, and then once for each example, which
    is answered from the outputs for the batch. A batch of one example goes to the model as it is.
    """

    def __init__(self, trainer: Trainer, compute: Callable[..., Any], model: nn.Module, head: Head | None) -> None:
        self.trainer, self.model, self._compute = trainer, model, compute
        self._loss: LossOfRow | None = None if head is None else lambda out, batch: head.losses(out, batch)[0]

    def __call__(self, batch: Batch) -> Tensor:
        """The losses of a collated batch, (B,).

        Raises:
            UnsupportedModelError: the loss of one example cannot be told from one forward pass.
        """
        rows = _rows_in(batch)
        if rows == 1:
            return self.whole(batch).reshape(1)
        with self.trainer.compute_loss_context_manager():
            seen = Recorded(self.model)
            self._compute(seen, _fresh(batch), num_items_in_batch=self._items(batch))
            if not seen.calls:
                raise UnsupportedModelError("compute_loss: does not call the model through its argument `model`")
            with forbidden(self.model):
                return torch.stack([self._one(batch, seen, index, rows) for index in range(rows)])

    def whole(self, batch: Batch) -> Tensor:
        """The loss as it was written, for all records of the batch together."""
        with self.trainer.compute_loss_context_manager():
            return _scalar(self._compute(self.model, _fresh(batch), num_items_in_batch=self._items(batch)))

    def _one(self, batch: Batch, seen: Recorded, index: int, rows: int) -> Tensor:
        mine = row_of(_fresh(batch), index, rows=rows)
        model = Answered(self.model, seen.calls, index=index, rows=rows, loss=self._loss)
        return _scalar(self._compute(model, mine, num_items_in_batch=self._items(mine)))

    def _items(self, batch: Batch) -> Any:
        """How many labels the batch holds, where Trainer would count them; at least one."""
        items = Trainer._get_num_items_in_batch(self.trainer, [batch], self.trainer.args.device)  # noqa: SLF001
        return items.clamp(min=1) if isinstance(items, Tensor) else items


def refuse_coupled(name: str, objective: RowByRow, structure: Structure) -> None:
    """Refuse a loss that is about several records at once, on a synthetic batch.

    Where the loss of a batch is made of losses of its records, its gradient is a weighted sum of theirs, whatever the
    weights (means over classes or tokens). What compares records with each other, such as negatives from the batch or
    mixed inputs, has a gradient outside of their span.

    Raises:
        SensitivityError: the loss compares records.
    """
    model = objective.model
    device = next(model.parameters()).device
    with untouched(model), without_dropout(model), float32_copies(model):
        batch = in_float32(make(structure, _ROWS, seed=1, device=device))
        together = _gradient(model, partial(objective.whole, batch))
        records = [row_of(_fresh(batch), index, rows=_ROWS) for index in range(_ROWS)]
        each = [_gradient(model, partial(objective.whole, record)) for record in records]
    share = _outside_span(together, each)
    if not share <= _SAME:
        raise SensitivityError(
            f"{name}: {share:.2g} of a synthetic batch's gradient is not made of its records' own: the loss compares "
            "the records of a batch with each other, so none has a gradient of its own to clip"
        )


def refuse_other_loss(model: nn.Module, head: Head, forward: Callable[[Any], Any]) -> None:
    """Refuse a model that itself computes another loss for one record than its head is known for.

    Raises:
        PrivacyError: both losses, and what to pass.
    """
    names = ("labels", "start_positions", "end_positions")
    plain = head_of(model)  # without label smoothing, which is Trainer's
    with untouched(model), without_dropout(model), _float32(model), torch.no_grad():
        batch = in_float32(make(head.structure, 1, seed=3, device=next(model.parameters()).device))
        inputs = {**batch, **{name: batch[name] for name in names if name in batch}}
        try:
            own = getattr(model(**inputs), "loss", None)
        except TypeError:  # it takes no labels, so it computes no loss
            return
        ours = plain.losses(forward(batch), batch)
    if own is None or abs(own.item() - ours.item()) <= _SAME * (1 + abs(ours.item())):
        return
    name, remedy = type(bare(model)).__name__, _OWN_LOSS
    if getattr(bare(model).config, "output_router_logits", False):
        remedy = _NO_ROUTER
    raise PrivacyError(
        f"model={name}: its own loss of a synthetic record is {own.item():.4g}, that of its head {ours.item():.4g}; "
        + remedy
    )


def _float32(model: nn.Module) -> AbstractContextManager[object]:
    """Copies in float32 where weights are not; CTC's own loss cannot be computed among them."""
    narrow = any(parameter.dtype in {torch.float16, torch.bfloat16} for parameter in model.parameters())
    return float32_copies(model) if narrow or hasattr(model, "_original_forward") else nullcontext()


def _gradient(model: nn.Module, loss: Callable[[], Tensor]) -> list[Tensor]:
    with torch.enable_grad():
        parts = torch.autograd.grad(loss(), list(trainable(model).values()), allow_unused=True, materialize_grads=True)
    return [part.detach().double().flatten() for part in parts]


def _outside_span(whole: list[Tensor], each: list[list[Tensor]]) -> float:
    """The share of ``whole`` that is no weighted sum of ``each``; 0 where ``whole`` is 0."""

    def dot(one: list[Tensor], two: list[Tensor]) -> float:
        return sum(float(a @ b) for a, b in zip(one, two, strict=True))

    size = dot(whole, whole)
    if size == 0.0:
        return 0.0
    gram = torch.tensor([[dot(a, b) for b in each] for a in each], dtype=torch.float64)
    weights = torch.linalg.pinv(gram, hermitian=True) @ torch.tensor([dot(a, whole) for a in each]).double()
    rest = [part - sum(float(w) * own[i] for w, own in zip(weights, each, strict=True)) for i, part in enumerate(whole)]
    return (dot(rest, rest) / size) ** 0.5


def _rows_in(batch: Mapping[str, Any]) -> int:
    return next(len(value) for value in batch.values() if isinstance(value, Tensor) and value.dim())


def _fresh(batch: Batch) -> dict[str, Any]:
    """A dictionary of its own, since a user's loss takes the labels out of it."""
    return dict(batch)


def _scalar(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        shown = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise PrivacyError(f"compute_loss: returned {shown} for one batch; expected a tensor with one number")
    return loss.reshape(())
