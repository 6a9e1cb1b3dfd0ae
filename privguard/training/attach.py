# SPDX-License-Identifier: Apache-2.0
"""From a model to its clipper: book-keeping, with an exact rule for every trainable module."""

from torch import nn

from privguard.training.bookkeeping import BookKeeper
from privguard.training.clip import Clipper


def attach(model: nn.Module, *, max_grad_norm: float) -> Clipper:
    """Choose an exact rule for every trainable module of ``model`` and start keeping books.

    Args:
        model: any module; its parameters, state-dict names and forward signature stay as they are.
        max_grad_norm: the clipping norm C, in the unit of the gradient.

    Raises:
        UnsupportedModelError: a module mixes examples, or has no exact rule; the message names it.
    """
    return BookKeeper(model, max_grad_norm=max_grad_norm)
