"""The clipper of a model: book-keeping where every layer has an exact rule, else one example at a time, announced."""

import warnings

from torch import nn

from privguard.training.clip import Clipper
from privguard.training.probe import Losses, Structure, choose


def clipper_for(
    model: nn.Module, losses: Losses, structure: Structure, *, max_grad_norm: float, rows_each: int = 1
) -> Clipper:
    """The fastest clipper that the probe finds exact, on made-up data; a warning says when that is the slow one.

    Raises:
        SensitivityError: examples meet in the model or in its loss, so no clipper is exact.
        UnsupportedModelError: a module mixes examples by its nature.
    """
    clipper, reason = choose(model, losses, structure, max_grad_norm=max_grad_norm, rows_each=rows_each)
    if reason is not None:
        warnings.warn(f"one backward pass for each example, which is exact and slow: {reason}", stacklevel=2)
    return clipper
