# SPDX-License-Identifier: Apache-2.0
"""What a wrapper does with each physical batch of a private run: draw it, check it, announce it, send it backward."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from privguard.errors import PrivacyError
from privguard.runs.options import RunSetup
from privguard.runs.progress import SpentSoFar
from privguard.runs.run import PrivateRun
from privguard.training.probes.fields import Structure
from privguard.training.sampling.batches import PoissonLoader, check_rows, shapes_of, unit_losses
from privguard.training.sampling.sample import PhysicalBatch
from privguard.training.sampling.users import Users

Batch: TypeAlias = Mapping[str, Any]
PerExampleLoss: TypeAlias = Callable[[Any, Batch], Tensor]
"""From a model's outputs and its batch to the losses, shape (B,)."""


@final
@dataclass(frozen=True)
class Head:
    """What a private run has to know about a model's task.

    Attributes:
        losses: from outputs and batch to the losses, (B,).
        structure: synthetic batches for the probe, from the model's configuration alone.
        choices: whether a row of ``input_ids`` holds several texts, which go forward side by side.
    """

    losses: PerExampleLoss
    structure: Structure
    choices: bool = False


@final
@dataclass(frozen=True)
class Objective:
    """What a wrapper minimises, where it computes the losses itself.

    Attributes:
        losses: from a collated batch to the losses of its examples, (B,); the forward pass is part of it.
        structure: synthetic batches for the probe, of public shapes and types.
        choices: as in ``Head``.
    """

    losses: Callable[[Batch], Tensor]
    structure: Structure
    choices: bool = False

    def rows_each(self, batch: Batch) -> int:
        """How many rows one example becomes inside the model."""
        return batch["input_ids"].shape[1] if self.choices else 1


@final
class Underway:
    """A private run together with the loader of its records, as PrivateTrainer and PrivateAccelerator drive it.

    ``objective`` is what the wrapper minimises, and None where the user's loop computes the losses.
    ``users`` groups the records where a user is the unit of privacy. ``spent`` maps a number of steps to ε.
    """

    def __init__(
        self,
        run: PrivateRun,
        setup: RunSetup,
        objective: Objective | None,
        data: DataLoader[Any],
        *,
        users: Users | None,
    ) -> None:
        self.run, self.setup, self.objective = run, setup, objective
        self.spent = SpentSoFar(run.plan)
        self._apart = users is not None and users.apart
        self.saved = -1  # ledger position of the newest checkpoint
        loader = PoissonLoader(
            data,
            sampler=run.sampler,
            source=run.sampler_source,
            limit=setup.physical_batch,
            users=users,
            ranks=setup.ranks,
        )
        self._batches = loader(run.taken, run.plan.steps)

    def step(self) -> Iterator[tuple[PhysicalBatch, Any]]:
        """The physical batches of the next step, whose event is reserved on disk before the first of them comes."""
        position = self.run.reserve()
        for batch, fetched in self._batches:
            if batch.position != position:
                raise PrivacyError(f"position={batch.position}: the step before it did not end; train again")
            yield batch, fetched
            if batch.last:
                return

    def begin(self, batch: PhysicalBatch, fetched: Any) -> None:
        """Announce a physical batch to the clipper, before the model sees it.

        A unit of the clipper is an example, or a user with all of its rows; where each record of a user is clipped by
        itself, it is a record. Inside the model one row may become several, such as the choices of a question.

        Raises:
            ValueError: the collated data does not have one row for each record that was drawn.
        """
        check_rows(fetched, batch)
        choices = 1 if self.objective is None else self.objective.rows_each(fetched)
        mask, rows = torch.from_numpy(batch.mask), len(batch.records) // len(batch.mask)
        if self._apart and batch.kept is not None:
            mask, rows = mask.repeat_interleave(rows) & torch.from_numpy(batch.kept), 1
        self.setup.clipper.begin(mask, rows_each=rows * choices, shapes=shapes_of(fetched))

    def backward(self, batch: PhysicalBatch, losses: Tensor) -> Tensor:
        """Clip and add up the gradients of a physical batch, and return the losses that were used, detached.

        ``losses`` is (rows,). Where a user is the unit, the rows of each user are averaged first: (users,).
        """
        losses = losses if self._apart else unit_losses(losses, batch)
        self.run.backward(losses)
        return losses.detach()
