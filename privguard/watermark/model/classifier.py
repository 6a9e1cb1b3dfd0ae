# SPDX-License-Identifier: Apache-2.0
"""Triggers in a classifier: teach them on public data, and ask a suspect for its answers."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from privguard import _check
from privguard.watermark.model import embed as teaching
from privguard.watermark.model.embed import Lesson


@final
@dataclass(frozen=True, kw_only=True)
class Public:
    """Public or synthetic examples: ``inputs`` (N, *shape), ``labels`` (N,), and where batches are drawn from.

    Labels may be the model's own answers. Never private records: embedding is then no longer post-processing.
    """

    inputs: Tensor
    labels: Tensor
    generator: torch.Generator
    batch_size: int = 128

    def __post_init__(self) -> None:
        same = len(self.inputs) == len(self.labels) > 0
        _check.require(same, "len(labels)", len(self.labels), wanted=f"{len(self.inputs)} and above 0")

    def draw(self) -> Tensor:
        """Indices of one random batch."""
        size = min(self.batch_size, len(self.inputs))
        return torch.randint(len(self.inputs), (size,), generator=self.generator)


def embed(
    model: nn.Module,
    *,
    triggers: NDArray[np.float32],
    labels: NDArray[np.int64],
    public: Public,
    margin: float = 2.0,
    lesson: Lesson | None = None,
) -> nn.Module:
    """A copy of ``model`` that answers ``labels`` on ``triggers`` (n, *shape) and elsewhere as before.

    ``margin`` is by how much a trigger's label has to lead, in logits: more survives more and costs more accuracy.
    """
    asked, wanted = torch.from_numpy(triggers), torch.from_numpy(labels)
    reference = copy.deepcopy(model).eval()

    def mark(current: nn.Module) -> Tensor:
        return teaching.margin_loss(current(asked), wanted, margin=margin)

    def keep(current: nn.Module) -> Tensor:
        batch = public.inputs[public.draw()]
        with torch.no_grad():
            before = reference(batch)
        return teaching.divergence(current(batch), before)

    def train(current: nn.Module) -> Tensor:
        batch = public.draw()
        return nn.functional.cross_entropy(current(public.inputs[batch]), public.labels[batch])

    return teaching.embed(model, mark=mark, keep=keep, public=train, lesson=lesson)


@final
class Suspect:
    """A classifier as a black box: a batch of inputs in, the most likely class of each out."""

    def __init__(self, model: nn.Module, *, batch_size: int = 1024) -> None:
        self._model, self._batch_size = model, batch_size

    def __call__(self, queries: NDArray[Any]) -> Sequence[int]:
        """One answer for each query, deterministic."""
        return self.logits(queries).argmax(1).tolist()

    def logits(self, queries: NDArray[Any]) -> NDArray[np.float32]:
        """(n, classes): what answers are made of, for an operator who samples them."""
        training = self._model.training
        self._model.eval()
        try:
            with torch.no_grad():
                pieces = torch.from_numpy(np.ascontiguousarray(queries, np.float32)).split(self._batch_size)
                return torch.cat([self._model(piece) for piece in pieces]).numpy()
        finally:
            self._model.train(training)
