# SPDX-License-Identifier: Apache-2.0
"""The probe before step 1, for wrappers whose user computes the loss: synthetic records shaped like a real one.

See ``privguard.training.probes.examples`` for what is asked of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from privguard.training.attach import attach
from privguard.training.clip import Clipper
from privguard.training.probes.collate import refuse_meeting
from privguard.training.probes.examples import clipper_for
from privguard.training.probes.fields import Structure, make, structure_of
from privguard.training.probes.gradients import Losses, untouched
from privguard.training.probes.rehearsal import Rehearsal
from privguard.training.sampling.batches import to_device
from privguard.training.shards import is_cut

_COPIES = 7  # unlike the length of most things
_NOT_PROBED = (
    "Whether examples interact in the model or its loss was not checked before the first step: the model was cut over "
    "ranks. The claim assumes that they do not."
)
_NOT_REHEARSED = (
    "The loop's own loss was neither shown to the probe nor rehearsed. The claim assumes that each loss depends on its "
    "own example alone, and on no size of a batch."
)


@final
@dataclass(frozen=True)
class Probed:
    """A clipper, and what was probed before it was trusted.

    Attributes:
        clipper: attached, with what could not be checked in ``clipper.unchecked``.
        said: a phrase for the report about what was probed; see ``RunSetup.probed``.
        rehearsal: the user's loop as the probe, in its first turns; None where nothing is left for it.
    """

    clipper: Clipper
    said: str
    rehearsal: Rehearsal | None = None


def probed_clipper(
    model: nn.Module,
    loader: DataLoader[Any],
    *,
    max_grad_norm: float,
    losses: Losses | None,
    rehearse: bool = True,
) -> Probed:
    """The fastest clipper that is exact for this model and loss.

    Shapes and types come from one collated record; its values are not read, so whole numbers are drawn as 0 and 1.
    Without ``losses`` the model alone is probed, called with the batch or its first part, and then the loop itself is
    rehearsed. A model that is cut over ranks is not probed. What was not, the claim says.

    Raises:
        SensitivityError: one example's gradient depends on another example, or the collate function lets them meet.
        UnsupportedModelError: a module mixes examples.
    """
    if any(map(is_cut, model.parameters())):
        said = "nothing: the model was cut over ranks before it came; a whole copy of it can be probed"
        clipper = attach(model, max_grad_norm=max_grad_norm)
        clipper.unchecked += (_NOT_PROBED,)
        return Probed(clipper, said)
    structure = _structure(loader)
    if losses is not None:
        clipper = clipper_for(model, losses, structure, max_grad_norm=max_grad_norm)
        return Probed(refuse_meeting(clipper, model, losses, loader), "model and loss")
    outputs = _outputs(model, structure)
    if outputs is None:
        clipper = attach(model, max_grad_norm=max_grad_norm)
        refuse_meeting(clipper, model, None, loader)
        said = "nothing: how the loop calls the model is not known"
    else:

        def synthetic(batch: Any) -> Tensor:
            return (outputs(batch).flatten(1) + 1).square().sum(1) / 2  # y²/2 has no gradient at a head of zeros

        clipper = clipper_for(model, synthetic, structure, max_grad_norm=max_grad_norm)
        refuse_meeting(clipper, model, synthetic, loader, outputs=outputs)
        said = "the model, with a synthetic loss"
    if clipper.rows is not None:
        return Probed(clipper, said)
    if not rehearse:
        clipper.unchecked += (_NOT_REHEARSED,)
        return Probed(clipper, said)
    said = "the loop, in a rehearsal" if outputs is None else f"{said}, and the loop, in a rehearsal"
    return Probed(clipper, said, Rehearsal(model, clipper, structure))


def _structure(loader: DataLoader[Any]) -> Structure:
    """Of a batch of several copies of one record, where the collate function takes them, or of that record alone."""
    record = cast("Any", loader.dataset)[0]
    try:
        return structure_of(loader.collate_fn([record] * _COPIES), rows=_COPIES)
    except Exception:  # a function of the user's that wants records to differ
        return structure_of(loader.collate_fn([record]))


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
