# SPDX-License-Identifier: Apache-2.0
"""Model and examples → numbers per example. A larger score speaks for membership.

The model may be any torch module, any estimator with ``predict_proba``, or any function from a batch of inputs to
logits or probabilities: an API behind HTTP is audited through the function that calls it.
"""

import contextlib
from collections.abc import Callable, Generator
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from privguard import _check

FloatArray = NDArray[np.float64]
ScoringFunction = Callable[[Any], ArrayLike]


LEAST = 1e-12  # of a probability before its logarithm: forests answer 0
SUM_TOLERANCE = 1e-3  # within which rows of probabilities add up to 1


@torch.no_grad()
def model_logits(model: object, inputs: Tensor, *, batch: int = 512) -> FloatArray:
    """Outputs (n, classes) of the model on ``inputs`` (n, ...), in evaluation mode, which is restored afterwards.

    Rows that are probabilities, none negative and each adding up to 1, are told from logits and go through a logarithm,
    as an attack works on differences of those; a probability of 0 counts as 1e-12. One output per record is the
    logit of the second of two classes.

    Raises:
        ValueError: where an output has another shape, holds NaN or infinity, or is one number per record in [0, 1],
            which may be a probability or a logit.
    """
    answer = outputs_of(model)
    with evaluating(model):
        outputs = np.concatenate([plain_numbers(answer(part)) for part in inputs.split(batch)])
    return as_logits(outputs)


def as_logits(outputs: ArrayLike) -> FloatArray:
    """Outputs (n, classes), (n, 1) or (n,) as logits (n, classes); see ``model_logits``.

    Raises:
        ValueError: as there.
    """
    values = np.asarray(outputs, np.float64)
    columns = values[:, None] if values.ndim == 1 else values
    _check.require(columns.ndim == 2, "outputs.shape", values.shape, wanted="(examples, classes)")  # noqa: PLR2004 — (n, C)
    _check.require(bool(np.isfinite(columns).all()), "outputs", "NaN or inf", wanted="finite numbers")
    return _two_classes(columns) if columns.shape[1] == 1 else _log_of_probabilities(columns)


def outputs_of(model: object) -> ScoringFunction:
    """The function behind a model: ``predict_proba`` where it is no torch module and has one, else the call itself."""
    proba = None if isinstance(model, nn.Module) else getattr(model, "predict_proba", None)
    if proba is not None:
        return lambda part: proba(part.numpy().reshape(len(part), -1))
    _check.require(callable(model), "model", type(model).__name__, wanted="a module, an estimator or a function")
    return cast("ScoringFunction", model)


def class_numbers(model: object, labels: NDArray[Any]) -> NDArray[np.int64]:
    """Labels (n,) as columns of the model's outputs: through an estimator's ``classes_``, else whole numbers from 0.

    Raises:
        ValueError: where a label is no class: 3.5 is not class 3.
    """
    values = np.asarray(labels).reshape(len(labels))  # (n,) and (n, 1) alike
    classes = None if isinstance(model, nn.Module) else getattr(model, "classes_", None)
    if classes is not None:
        known = np.asarray(classes)
        strange = np.setdiff1d(values, known)
        _check.require(not len(strange), "labels", strange[:3].tolist(), wanted=f"the model's classes, {known[:5]}…")
        order = np.argsort(known)
        return order[np.searchsorted(known, values, sorter=order)].astype(np.int64)
    whole = values.dtype.kind in "iub" or (values.dtype.kind == "f" and bool((values == np.floor(values)).all()))
    bad = values[values != np.floor(values)][:3].tolist() if not whole and values.dtype.kind == "f" else values[:3]
    _check.require(
        whole,
        "labels",
        bad,
        wanted="classes numbered from 0",
        remedy="labels with fractions are a regression's, and go with one number per record",
    )
    return values.astype(np.int64)


def regression_logits(model: object, inputs: Tensor, targets: ArrayLike, *, scale: float) -> FloatArray:
    """Two columns (n, 2) for a model with one number per record: the first rises as the residual falls.

    It is -log(r²) for residuals r in units of ``scale``, so that the first column's softmax is 1 / (1 + r²), and LiRA
    works on the logarithm of the residual, which is nearer to normal than the residual is.
    """
    answer = outputs_of(model) if not hasattr(model, "predict") else lambda part: model.predict(part.numpy())  # type: ignore[union-attr]
    with evaluating(model), torch.no_grad():
        outputs = np.concatenate([plain_numbers(answer(part)).reshape(len(part)) for part in inputs.split(512)])
    residuals = (outputs - np.asarray(targets, np.float64).reshape(len(outputs))) / max(scale, 1e-12)
    return np.stack([-np.log(residuals**2 + LEAST), np.zeros(len(outputs))], 1)


def _log_of_probabilities(outputs: FloatArray) -> FloatArray:
    sums = outputs.sum(1)
    if outputs.min() >= 0 and outputs.max() <= 1 + SUM_TOLERANCE and bool((np.abs(sums - 1) <= SUM_TOLERANCE).all()):
        return np.log(np.maximum(outputs, LEAST))
    return outputs


def _two_classes(logits: FloatArray) -> FloatArray:
    whole = bool((logits == np.floor(logits)).all()) and logits.min() < logits.max()
    doubtful = whole or (logits.min() >= 0 and logits.max() <= 1 and logits.min() < logits.max())
    _check.require(
        not doubtful,
        "outputs",
        "one number per record, all in [0, 1] or whole",
        wanted="one column per class, or to be told whether it is a logit, a probability or a label",
        remedy="say which with --outputs, or targets.endpoint.read_as",
    )
    return np.concatenate([np.zeros_like(logits), logits], 1)


@contextlib.contextmanager
def evaluating(model: object) -> Generator[None]:
    """Hold a torch module in evaluation mode for the length of the block; leave a plain function alone."""
    if not isinstance(model, nn.Module):
        yield
        return
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def log_confidence(logits: ArrayLike, labels: ArrayLike, *, temperature: float = 1.0) -> FloatArray:
    """Log p(label) of logits (..., n, classes) at a softmax temperature; (..., n)."""
    scaled = np.asarray(logits, np.float64) / _check.positive("temperature", temperature)
    return _at(scaled, labels) - _logsumexp(scaled)


def loss(logits: ArrayLike, labels: ArrayLike) -> FloatArray:
    """Cross-entropy per example, in nats."""
    return -log_confidence(logits, labels)


def scaled_confidence(logits: ArrayLike, labels: ArrayLike) -> FloatArray:
    """Log p / (1 - p) of the label, (..., n): nearly normal over models, and without the saturation of p at 1.

    It is computed from the other classes' logits and never as 1 - p. Source: Carlini et al. 2022 (arXiv:2112.03570), 4.
    """
    values = np.array(logits, np.float64)
    _check.require(values.shape[-1] > 1, "logits.shape", values.shape, wanted="at least two classes")
    own = _at(values, labels)
    index = np.broadcast_to(np.asarray(labels, np.int64)[..., None], (*own.shape, 1))
    np.put_along_axis(values, index, -np.inf, axis=-1)
    return own - _logsumexp(values)


def by_user(scores: ArrayLike, users: ArrayLike) -> tuple[NDArray[Any], FloatArray]:
    """Sum of the scores of each user's examples, the statistic of a user-level audit: (users, sums)."""
    names, inverse = np.unique(np.asarray(users), return_inverse=True)
    sums = np.zeros(len(names))
    np.add.at(sums, inverse, np.asarray(scores, np.float64))
    return names, sums


def near_duplicates(
    members: ArrayLike, non_members: ArrayLike, *, tolerance: float = 0.0, batch: int = 512
) -> NDArray[np.int64]:
    """Numbers of the non-members that stand among the members too, within a Euclidean distance of ``tolerance``.

    Such a record is a member in all but name: leave it out before an attack is counted.
    """
    inside, outside = (
        np.asarray(rows, np.float64).reshape(len(np.asarray(rows)), -1) for rows in (members, non_members)
    )
    if tolerance == 0:
        known = {row.tobytes() for row in inside + 0.0}
        return np.array([i for i, row in enumerate(outside + 0.0) if row.tobytes() in known], np.int64)
    squares = (inside**2).sum(1)
    found: list[int] = []
    for start in range(0, len(outside), batch):
        part = outside[start : start + batch]
        nearest = (squares - 2 * part @ inside.T).min(1) + (part**2).sum(1)
        found.extend((start + np.flatnonzero(nearest <= tolerance**2 + 1e-9)).tolist())
    return np.array(found, np.int64)


def plain_numbers(output: object) -> FloatArray:
    """An output of a model as float64, whatever wraps it."""
    tensor = getattr(output, "logits", output)  # transformers wrap theirs
    return np.asarray(tensor.float().cpu().numpy() if isinstance(tensor, Tensor) else tensor, np.float64)


def _at(values: FloatArray, labels: ArrayLike) -> FloatArray:
    index = np.asarray(labels, np.int64)
    _check.require(
        index.shape == values.shape[-2:-1],
        "labels.shape",
        index.shape,
        wanted=f"({values.shape[-2]},), one label per example",
    )
    return np.take_along_axis(values, np.broadcast_to(index[..., None], (*values.shape[:-1], 1)), -1)[..., 0]


def _logsumexp(values: FloatArray) -> FloatArray:
    largest = values.max(-1, keepdims=True)
    return (largest + np.log(np.exp(values - largest).sum(-1, keepdims=True)))[..., 0]
