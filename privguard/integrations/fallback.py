"""The clipper of a model: book-keeping where every layer has an exact rule, else one example at a time, announced."""

import warnings

from torch import nn

from privguard.errors import UnsupportedModelError
from privguard.training.clip import Clipper, OneByOne, attach
from privguard.training.refuse import refuse_mixing


def clipper_for(model: nn.Module, *, max_grad_norm: float) -> Clipper:
    """The fastest exact clipper for ``model``.

    Raises:
        UnsupportedModelError: a module mixes examples, so no clipper is exact.
    """
    refuse_mixing(model)
    try:
        return attach(model, max_grad_norm=max_grad_norm)
    except UnsupportedModelError as reason:
        warnings.warn(
            f"{reason}; going on with one backward pass for each example, which is exact and slow", stacklevel=2
        )
        return OneByOne(model, max_grad_norm=max_grad_norm)
