"""Model and examples → numbers per example. A larger score speaks for membership.

The model may be any torch module, or any function from a batch of inputs to logits or probabilities: an API behind HTTP
is audited through the function that calls it.
"""

import contextlib
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from privguard import _check

FloatArray = NDArray[np.float64]
ScoringFunction = Callable[[Any], ArrayLike]


@torch.no_grad()
def model_logits(model: nn.Module | ScoringFunction, inputs: Tensor, *, batch: int = 512) -> FloatArray:
    """Outputs (n, classes) of the model on ``inputs`` (n, ...), in evaluation mode, which is restored afterwards.

    A plain function gets batches of the inputs and returns logits or log-probabilities; probabilities have to be passed
    through a logarithm first, as an attack works on differences of logarithms.

    Raises:
        ValueError: where an output has another shape, or holds NaN or infinity.
    """
    with evaluating(model):
        logits = np.concatenate([_numbers(model(part)) for part in inputs.split(batch)])
    _check.require(logits.ndim == 2, "logits.shape", logits.shape, wanted="(examples, classes)")  # noqa: PLR2004 — (n, C)
    _check.require(bool(np.isfinite(logits).all()), "logits", "NaN or inf", wanted="finite numbers")
    return logits


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


def _numbers(output: object) -> FloatArray:
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
