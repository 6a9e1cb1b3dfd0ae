# SPDX-License-Identifier: Apache-2.0
"""What a private run needs from a Trainer: the records to draw from, the loss of the model's head, and the clipper."""

from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer
from transformers.utils.import_utils import is_datasets_available

from privguard.errors import PrivacyError
from privguard.integrations.transformers.losses import CHOICES, head_of, known_head
from privguard.integrations.transformers.objective import RowByRow, refuse_coupled, refuse_other_loss
from privguard.integrations.transformers.overrides import own_loss_of
from privguard.runs.driver import Head, Objective, PerExampleLoss
from privguard.runs.privacy_unit import Unit
from privguard.training.clip import Clipper
from privguard.training.probes.collate import refuse_meeting
from privguard.training.probes.examples import clipper_for
from privguard.training.probes.fields import Field, Structure, structure_of
from privguard.training.sampling.batches import fetch, refuse_stream


def training_loader(trainer: Trainer) -> DataLoader[Any]:
    """The training data in its own order, with Trainer's collate function, column rules and workers.

    Its sampler is never used: the run draws a Poisson sample of its own and fetches those records through this loader.
    Its ``batch_size`` is the most examples that go forward at once.

    Raises:
        ValueError: Trainer was given no ``train_dataset``.
    """
    args, dataset, collate = trainer.args, trainer.train_dataset, trainer.data_collator
    if dataset is None:
        raise ValueError("train_dataset=None: expected a data set; pass one to PrivateTrainer")
    refuse_stream(dataset)
    # Trainer drops what the model does not take: columns of a table, keys of the dictionaries of any other data set.
    if _is_table(dataset):
        dataset = trainer._remove_unused_columns(cast("Any", dataset), description="training")  # noqa: SLF001
    else:
        collate = trainer._get_collator_with_removed_columns(collate, description="training")  # noqa: SLF001
    return DataLoader(
        cast("Dataset[Any]", dataset),
        batch_size=args.per_device_train_batch_size,
        collate_fn=collate,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        prefetch_factor=args.dataloader_prefetch_factor,
        multiprocessing_context=args.dataloader_multiprocessing_context,
    )


def training_objective(
    trainer: Trainer,
    model: nn.Module,
    forward: Callable[[Any], Any],
    data: DataLoader[Any],
    *,
    own_loss: PerExampleLoss | None,
) -> Objective:
    """What ``trainer`` minimises, as losses (B,) of a collated batch, and what a batch looks like.

    ``own_loss`` counts first, then a loss that the user gave Trainer, then the model's head. Where a loss is the
    user's, shapes and types of a batch are read off one collated record; for a head of transformers they follow from
    the model's configuration.

    Raises:
        UnsupportedModelError: the head is not known, and the user gave no loss.
        SensitivityError: the user's loss compares the records of a batch with each other.
        PrivacyError: the model itself computes another loss than that of its head, or two losses are given.
    """
    users = own_loss_of(trainer)
    if own_loss is not None:
        if users is not None:
            raise PrivacyError(f"per_example_loss and {users[0]}: two losses to train on; leave one away")
        return _of_head(Head(own_loss, _structure_in(data, {})), forward)
    if users is None:
        smoothing, record = trainer.args.label_smoothing_factor, _structure_in(data, {})
        head = head_of(model, label_smoothing=smoothing, record=record)
        refuse_other_loss(model, head, forward)
        return _of_head(head, forward)
    known = known_head(model)
    named = known.structure if known is not None else {}
    structure = _structure_in(data, {name: part.top for name, part in named.items() if isinstance(part, Field)})
    own = RowByRow(trainer, users[1], model, known)
    refuse_coupled(users[0], own, structure)
    return Objective(own, structure, known is not None and known.choices)


def _of_head(head: Head, forward: Callable[[Any], Any]) -> Objective:
    return Objective(lambda batch: head.losses(forward(batch), batch), head.structure, head.choices)


def _structure_in(data: DataLoader[Any], tops: Mapping[str, int]) -> Structure:
    """Shapes and types of one collated record."""
    return structure_of(next(fetch(data, iter([[0]]))), tops=tops)


def training_clipper(
    model: nn.Module, objective: Objective, data: DataLoader[Any], *, unit: Unit, max_grad_norm: float
) -> Clipper:
    """The fastest clipper that the probe finds exact for this model, its objective and the unit of privacy.

    One unit contributes at most ``max_grad_norm`` to the sum.

    Raises:
        SensitivityError: one example's gradient depends on another example, in the model, its loss or where ``data``
            puts records together.
        UnsupportedModelError: a module mixes examples.
        PrivacyError: each example of a user is to be clipped by itself, which this model cannot do.
    """
    losses, structure = objective.losses, objective.structure

    def build(bound: float) -> Clipper:
        rows_each = CHOICES if objective.choices else 1
        clipper = clipper_for(model, losses, structure, max_grad_norm=bound, rows_each=rows_each)
        ids = structure.get("input_ids") if isinstance(structure, dict) else None
        return refuse_meeting(clipper, model, losses, data, top=2 if ids is None else ids.top)

    return unit.clipper(build, max_grad_norm)


def _is_table(dataset: object) -> bool:
    """Whether this is a data set of the ``datasets`` library, which need not be installed."""
    if not is_datasets_available():
        return False
    from datasets import Dataset as Table

    return isinstance(dataset, Table)
