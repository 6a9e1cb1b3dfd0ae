# SPDX-License-Identifier: Apache-2.0
"""One record of a batch at a time, although the model ran once over all of them.

A loss that was written for Trainer is one number for a batch. It is called here with one record after another, and each
time it asks the model, it is given that record's rows of what the model said about the whole batch.
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from privguard.errors import UnsupportedModelError

LossOfRow = Callable[[Any, Mapping[str, Any]], Tensor]
"""From one record's outputs and what the model was called with to what stands as ``loss`` in those outputs."""

_OF_THE_BATCH = frozenset({"num_items_in_batch"})  # goes to the model, and is a number of the batch


def row_of(value: Any, index: int, *, rows: int) -> Any:
    """Record ``index`` of a batch of ``rows``, as a batch of one.

    Raises:
        UnsupportedModelError: a tensor without one row for each record.
    """
    if isinstance(value, Tensor):
        if value.dim() == 0 or len(value) != rows:
            raise UnsupportedModelError(
                f"compute_loss: a tensor of shape {tuple(value.shape)} has no row for each of {rows} records"
            )
        return value[index : index + 1]
    if isinstance(value, Mapping):
        parts = {key: row_of(part, index, rows=rows) for key, part in cast("Mapping[str, Any]", value).items()}
        return parts if type(value) is dict else type(value)(**parts)
    if isinstance(value, list | tuple):
        return type(value)(row_of(part, index, rows=rows) for part in cast("list[Any]", value))
    return value


@dataclass(frozen=True)
class Call:
    """One call of the model with all records: its keyword arguments, and what it returned."""

    inputs: Mapping[str, Any]
    outputs: Any


@final
@dataclass
class Recorded:
    """The model, as a loss over the whole batch sees it: every call goes to the model, and is written down."""

    model: nn.Module
    calls: list[Call] = field(default_factory=list[Call])

    def __call__(self, *args: Any, **inputs: Any) -> Any:
        """What the model says."""
        _require_keywords(args)
        outputs = self.model(**inputs)
        self.calls.append(Call(inputs, outputs))
        return outputs

    def __getattr__(self, name: str) -> Any:
        return _plain_attribute(self.model, name)


@final
class Answered:
    """The model, as the loss of one record sees it: every call is answered from the call with all records."""

    def __init__(self, model: nn.Module, calls: list[Call], *, index: int, rows: int, loss: LossOfRow | None) -> None:
        self._model, self._calls, self._loss = model, iter(calls), loss
        self._index, self._rows = index, rows

    def __call__(self, *args: Any, **inputs: Any) -> Any:
        """The record's rows of what the model said about all of them."""
        _require_keywords(args)
        call = next(self._calls, None)
        if call is None or not _is_row(inputs, call.inputs, self._index, self._rows):
            raise UnsupportedModelError(
                "compute_loss: asks the model about one record in another way than about the whole batch (random "
                "masks, mixed records), so one forward pass cannot answer both"
            )
        return self._answer(call)

    def __getattr__(self, name: str) -> Any:
        return _plain_attribute(self._model, name)

    def _answer(self, call: Call) -> Any:
        """The rows of ``outputs``; in the place of its loss, a mean over the batch, comes the record's own."""
        outputs = call.outputs
        if not isinstance(outputs, Mapping):
            return row_of(outputs, self._index, rows=self._rows)
        named = cast("Mapping[str, Any]", outputs)
        parts = {
            key: row_of(part, self._index, rows=self._rows)
            for key, part in named.items()
            if key not in {"loss", "past_key_values"}
        }
        if named.get("loss") is not None:
            if self._loss is None:
                raise UnsupportedModelError("compute_loss: uses outputs.loss, a mean over the batch's records")
            own = {key: self._row(part) for key, part in call.inputs.items()}
            parts = {"loss": self._loss(type(outputs)(**parts), own), **parts}
        return type(outputs)(**parts)

    def _row(self, value: Any) -> Any:
        return row_of(value, self._index, rows=self._rows) if isinstance(value, Tensor) and value.dim() else value


@contextmanager
def forbidden(model: nn.Module) -> Generator[None]:
    """Inside, a module of ``model`` that is called directly is refused: it would see one record of a larger batch."""
    own = set(model.modules())

    def refuse(module: nn.Module, _: Any) -> None:
        if module in own:
            raise UnsupportedModelError(
                f"compute_loss: calls {type(module).__name__} of the model by itself, not through its argument `model`"
            )

    handle = register_module_forward_pre_hook(refuse)
    try:
        yield
    finally:
        handle.remove()


def _is_row(inputs: Mapping[str, Any], whole: Mapping[str, Any], index: int, rows: int) -> bool:
    """Whether ``inputs`` are record ``index`` of ``whole``."""
    return inputs.keys() == whole.keys() and all(
        name in _OF_THE_BATCH or _same(value, whole[name], index, rows) for name, value in inputs.items()
    )


def _same(value: Any, whole: Any, index: int, rows: int) -> bool:
    if isinstance(value, Tensor):
        if value.dim() == 0 or not isinstance(whole, Tensor) or len(whole) != rows:
            return False
        return torch.equal(value, whole[index : index + 1])
    return not isinstance(value, bool | int | float | str | None) or value == whole


def _require_keywords(args: tuple[Any, ...]) -> None:
    if args:
        raise UnsupportedModelError("compute_loss: calls the model with arguments that have no name; pass them by name")


def _plain_attribute(model: nn.Module, name: str) -> Any:
    """A setting of the model, such as ``config``; its parts would be used for one record of a larger batch."""
    value = getattr(model, name)
    if isinstance(value, nn.Module | Tensor) or callable(value):
        raise UnsupportedModelError(f"compute_loss: uses model.{name}, which one forward pass over the batch bypasses")
    return value
