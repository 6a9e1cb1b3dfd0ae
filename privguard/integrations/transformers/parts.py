"""What a private run needs from a Trainer: the records to draw from, the loss of the model's head, and the clipper."""

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer
from transformers.utils.import_utils import is_datasets_available

from privguard.integrations.transformers.losses import CHOICES, head_of
from privguard.runs.driver import Head, PerExampleLoss
from privguard.runs.privacy_unit import Unit
from privguard.training.batches import fetch
from privguard.training.clip import Clipper
from privguard.training.probes.collate import refuse_meeting
from privguard.training.probes.examples import clipper_for
from privguard.training.probes.fields import structure_of


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


def training_head(
    model: nn.Module, data: DataLoader[Any], *, own_loss: PerExampleLoss | None, label_smoothing: float
) -> Head:
    """How the losses of ``model`` are computed, (B,), and what a batch of it looks like.

    A user's ``own_loss`` says nothing about the batch, so its shapes and types are read off one collated record; for
    a head of transformers they follow from the model's configuration.

    Raises:
        UnsupportedModelError: the head is not known, and there is no ``own_loss``.
    """
    if own_loss is None:
        return head_of(model, label_smoothing=label_smoothing)
    return Head(own_loss, structure_of(next(fetch(data, iter([[0]])))))


def training_clipper(
    model: nn.Module,
    head: Head,
    forward: Callable[[Any], Any],
    data: DataLoader[Any],
    *,
    unit: Unit,
    max_grad_norm: float,
) -> Clipper:
    """The fastest clipper that the probe finds exact for this model, its head and the unit of privacy.

    ``forward`` takes a collated batch to the model's outputs, exactly as training will call it. One unit contributes
    at most ``max_grad_norm`` to the sum.

    Raises:
        SensitivityError: one example's gradient depends on another example, in the model, its head or where ``data``
            puts records together.
        UnsupportedModelError: a module mixes examples.
        PrivacyError: each example of a user is to be clipped by itself, which this model cannot do.
    """

    def losses(batch: Any) -> Tensor:
        return head.losses(forward(batch), batch)

    def build(bound: float) -> Clipper:
        rows_each = CHOICES if head.choices else 1
        clipper = clipper_for(model, losses, head.structure, max_grad_norm=bound, rows_each=rows_each)
        ids = head.structure.get("input_ids") if isinstance(head.structure, dict) else None
        return refuse_meeting(clipper, model, losses, data, top=2 if ids is None else ids.top)

    return unit.clipper(build, max_grad_norm)


def _is_table(dataset: object) -> bool:
    """Whether this is a data set of the ``datasets`` library, which need not be installed."""
    if not is_datasets_available():
        return False
    from datasets import Dataset as Table

    return isinstance(dataset, Table)
