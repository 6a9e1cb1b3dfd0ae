# SPDX-License-Identifier: Apache-2.0
"""Models that answer with outputs or with labels alone, as functions from inputs to what an attack reads.

An endpoint is sent ``{"inputs": [record, …]}`` and answers with a list, one entry for each record, or with an object
that has the list as ``predictions``, ``outputs``, ``probabilities``, ``logits`` or ``labels``: the form of MLflow and
many servers beside it. Labels alone are a floor: the share of altered copies of a record that are given each label
(Choquette-Choo et al. 2021, arXiv:2007.14321).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, cast, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from privguard import _check
from privguard.audit.membership import score
from privguard.audit.targets.http import Client

LISTS = ("predictions", "outputs", "probabilities", "logits", "labels")
FloatArray = NDArray[np.float64]


class Outputs(StrEnum):
    """What a model gives for a record; ``DETECT`` tells probabilities from logits where it can."""

    DETECT = "detect"
    LOGITS = "logits"
    PROBABILITIES = "probabilities"
    LABELS = "labels"


@final
@dataclass(frozen=True)
class Endpoint:
    """A model behind ``client``, asked for ``batch`` records at a time; ``on_record`` hears of each answered."""

    client: Client
    batch: int = 32
    on_record: Callable[[int], None] = field(default=lambda _: None)

    @property
    def address(self) -> str:
        """Which model it is, for the record."""
        return self.client.address

    def __call__(self, inputs: Tensor) -> NDArray[Any]:
        """Answers (n,) or (n, columns) for inputs (n, ...).

        Raises:
            ValueError: the answer is no list with a number, or a row of numbers, for each record.
        """
        parts: list[NDArray[Any]] = []
        for rows in inputs.split(self.batch):
            parts.append(_answers(self.client.ask({"inputs": rows.tolist()}), len(rows)))
            self.on_record(len(rows))
        return np.concatenate(parts)


@final
@dataclass(frozen=True, kw_only=True)
class Votes:
    """A model that gives labels, as shares of ``copies`` (n, classes + 1); the last column is for labels beyond.

    The first copy is the record itself, to the others noise of ``noise`` is added, in the units of the inputs.
    """

    wrapped: Callable[[Tensor], Any]
    classes: int
    copies: int = 1
    noise: float = 0.0
    seed: int = 0
    access: str = "labels"

    def __post_init__(self) -> None:
        _check.count("copies", self.copies)
        _check.require(
            self.copies == 1 or self.noise > 0, "noise", self.noise, wanted="above 0 where there are several copies"
        )

    def __call__(self, inputs: Tensor) -> FloatArray:
        """Shares (n, classes + 1) that add up to 1.

        Raises:
            ValueError: answers are no labels, or tokens were to be moved by noise.
        """
        _check.require(
            self.copies == 1 or inputs.is_floating_point(),
            "copies",
            self.copies,
            wanted="1 for tokens, which noise does not move",
        )
        shares = np.zeros((len(inputs), self.classes + 1))
        generator = torch.Generator().manual_seed(self.seed)
        for copy in range(self.copies):
            moved = inputs if copy == 0 else inputs + self.noise * torch.randn(inputs.shape, generator=generator)
            labels = score.class_numbers(None, _labels(self.wrapped(moved), len(inputs)))
            known = np.where((labels >= 0) & (labels < self.classes), labels, self.classes)
            shares[np.arange(len(inputs)), known] += 1 / self.copies
        return shares


@final
@dataclass(frozen=True)
class Probabilities:
    """A model whose outputs are said to be probabilities: one number for each record is that of the second class."""

    wrapped: Callable[[Tensor], Any]

    def __call__(self, inputs: Tensor) -> FloatArray:
        """Logarithms of the probabilities (n, classes).

        Raises:
            ValueError: a number lies outside [0, 1].
        """
        values = score.plain_numbers(self.wrapped(inputs))
        p = values[:, None] if values.ndim == 1 else values
        _check.require(bool(((p >= 0) & (p <= 1)).all()), "outputs", "numbers outside [0, 1]", wanted="probabilities")
        both = np.concatenate([1 - p, p], 1) if p.shape[1] == 1 else p
        return np.log(np.maximum(both, score.LEAST))


@final
@dataclass(frozen=True)
class Logits:
    """A model whose outputs are said to be logits, which rows that add up to 1 by chance do not change."""

    wrapped: Callable[[Tensor], Any]

    def __call__(self, inputs: Tensor) -> FloatArray:
        """Logits (n, classes), two columns for one number per record, moved so that they look like nothing else."""
        values = score.plain_numbers(self.wrapped(inputs))
        columns = values[:, None] if values.ndim == 1 else values
        both = np.concatenate([np.zeros_like(columns), columns], 1) if columns.shape[1] == 1 else columns
        return both - both.max(1, keepdims=True) - 1  # no softmax, and so no attack, sees a common shift


def read_as(model: object, outputs: Outputs, *, classes: int, copies: int = 1, noise: float = 0.0) -> object:
    """The model as an attack wants it, from what a person says its outputs are.

    Args:
        model: a module, an estimator, or a function of inputs (n, ...).
        outputs: what it gives for a record.
        classes: how many there are, for labels.
        copies: altered copies of a record that are asked for their labels.
        noise: standard deviation of what is added to a copy, in the units of the inputs.
    """
    if outputs is Outputs.DETECT:
        return model
    if outputs is Outputs.LABELS:
        return Votes(wrapped=_labelling(model), classes=classes, copies=copies, noise=noise)
    asked = score.outputs_of(model)
    return Probabilities(asked) if outputs is Outputs.PROBABILITIES else Logits(asked)


def _labelling(model: object) -> Callable[[Tensor], Any]:
    """The function from inputs to labels: ``predict`` of an estimator, else the call itself."""
    predict = None if isinstance(model, nn.Module) else getattr(model, "predict", None)
    if predict is None:
        return cast("Callable[[Tensor], Any]", model)
    return lambda inputs: predict(inputs.numpy().reshape(len(inputs), -1))


def _answers(answer: Any, count: int) -> NDArray[Any]:
    named = [name for name in LISTS if isinstance(answer, dict) and name in answer]
    rows = cast("dict[str, Any]", answer)[named[0]] if named else answer
    length = len(rows) if isinstance(rows, list) else None
    _check.require(length == count, "answers", length, wanted=f"a list of {count}, or an object with one as {LISTS[0]}")
    try:
        values = np.asarray(rows, np.float64)
    except (ValueError, TypeError):
        raise ValueError("answers: expected a number, or a row of as many numbers, for each record") from None
    _check.require(values.ndim in {1, 2}, "answers.shape", values.shape, wanted="(records,) or (records, classes)")
    return values


def _labels(answer: Any, count: int) -> NDArray[Any]:
    labels = np.asarray(answer.cpu() if isinstance(answer, Tensor) else answer)
    _check.require(labels.size == count, "labels.shape", labels.shape, wanted=f"({count},), one label for each record")
    return labels.reshape(count)
