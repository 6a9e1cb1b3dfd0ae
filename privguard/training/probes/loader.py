"""The probe before step 1, for wrappers whose user computes the loss: made-up records shaped like a real one.

See :mod:`privguard.training.probes.examples` for what is asked of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from privguard.training.attach import attach
from privguard.training.batches import to_device
from privguard.training.clip import Clipper
from privguard.training.probes.collate import refuse_meeting
from privguard.training.probes.examples import clipper_for
from privguard.training.probes.fields import Structure, make, structure_of
from privguard.training.probes.gradients import Losses, untouched
from privguard.training.shards import is_cut


@final
@dataclass(frozen=True)
class Probed:
    """A clipper, and a phrase for the report about what was probed before it was trusted; see ``Setting.probed``."""

    clipper: Clipper
    said: str


def probed_clipper(model: nn.Module, loader: DataLoader[Any], *, max_grad_norm: float, losses: Losses | None) -> Probed:
    """The fastest clipper that is exact for this model and loss.

    Shapes and types come from one collated record; its values are not looked at, so whole numbers are made up as 0
    and 1. Without ``losses`` the model alone is probed, called with the batch or its first part; where such a call
    fails, and where the model is cut over ranks, it is not probed, and the report says so.

    Raises:
        SensitivityError: one example's gradient depends on another example, or the collate function lets them meet.
        UnsupportedModelError: a module mixes examples.
    """
    if any(map(is_cut, model.parameters())):
        said = "nothing: the model was cut over ranks before it came; a whole copy of it can be probed"
        return Probed(attach(model, max_grad_norm=max_grad_norm), said)
    structure = structure_of(loader.collate_fn([loader.dataset[0]]))
    if losses is not None:
        clipper = clipper_for(model, losses, structure, max_grad_norm=max_grad_norm)
        return Probed(refuse_meeting(clipper, model, losses, loader), "model and loss")
    outputs = _outputs(model, structure)
    if outputs is None:
        clipper = attach(model, max_grad_norm=max_grad_norm)
        said = "nothing: how the loop calls the model is not known"
        return Probed(refuse_meeting(clipper, model, None, loader), said)

    def made_up(batch: Any) -> Tensor:
        return outputs(batch).flatten(1).square().sum(1) / 2

    clipper = clipper_for(model, made_up, structure, max_grad_norm=max_grad_norm)
    refuse_meeting(clipper, model, made_up, loader, outputs=outputs)
    return Probed(clipper, "the model, with a made-up loss")


def _outputs(model: nn.Module, structure: Structure) -> Callable[[Any], Tensor] | None:
    """The model of a batch's first part, where it can be called so and gives a row for each example."""
    first: Callable[[Any], Any] = (
        (lambda batch: batch[0]) if isinstance(structure, list | tuple) else (lambda batch: batch)
    )
    device = next(model.parameters()).device
    try:
        with untouched(model), torch.no_grad():
            model(first(to_device(device)(make(structure, 2, seed=0, device=device)))).flatten(1)
    except Exception:  # any failure means the same: the model is called in another way
        return None
    return lambda batch: model(first(batch))
