# SPDX-License-Identifier: Apache-2.0
"""The plain PyTorch loop, made private by four changed lines.

>>> plan = Plan.for_budget(...)                                                             # doctest: +SKIP
>>> private = privatize(model, optimizer, train_loader, plan, run="runs/a", seal_to=["team.key"])   # doctest: +SKIP
>>> for inputs, targets in private.batches():                                               # doctest: +SKIP
...     losses = F.cross_entropy(private.model(inputs), targets, reduction="none")
...     private.backward(losses)
...     private.step()
"""

import contextlib
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from privguard.checkpoint.keys.key import To
from privguard.errors import PrivacyError
from privguard.records import Claim
from privguard.runs import start
from privguard.runs.options import RunOptions, RunSetup, audience_of
from privguard.runs.progress import Meter
from privguard.runs.run import PrivateRun
from privguard.runs.signals import Interrupts
from privguard.training.plan import Plan
from privguard.training.probes.gradients import Losses
from privguard.training.probes.loader import probed_clipper
from privguard.training.probes.rehearsal import Rehearsal
from privguard.training.sampling.batches import (
    PoissonLoader,
    check_rows,
    examples_of,
    rows_at_once,
    shapes_of,
    to_device,
)
from privguard.training.sampling.sample import PhysicalBatch


def privatize(  # noqa: PLR0913 — the loop's own objects, and what everybody says about a run
    model: nn.Module,
    optimizer: Optimizer,
    train_loader: DataLoader[Any],
    plan: Plan,
    *,
    run: str | os.PathLike[str],
    seal_to: To,
    resume: bool = False,
    losses: Losses | None = None,
    options: RunOptions | None = None,
) -> "PrivateLoop":
    """Make a training loop private.

    The loader gives its data set, collate function and workers; its sampler is replaced by Poisson sampling at the
    plan's rate, its batch size is the most rows that go forward at once. Model and optimizer stay the objects they are.

    Args:
        model: the module to train; refused before the first step if examples are not kept apart in it.
        optimizer: any torch optimizer over exactly the model's trainable parameters.
        train_loader: a loader over a data set with a length, shuffled or in order.
        plan: what touches privacy.
        run: folder of this run.
        seal_to: who can open the checkpoints: recipients, keys, or paths of their files.
        resume: go on with the run in the folder.
        losses: forward and loss of the loop, batch → (B,), so that the probe before step 1 covers the loss too; without
            it the model is probed, and the loop is rehearsed in its first turns (``RunOptions.rehearsal``).
        options: what few runs need to say: auditors, keys, checkpoints, a budget book, a seed for tests.

    Raises:
        UnsupportedModelError: a module mixes examples.
        SensitivityError: the probe found that one example's gradient depends on another.
        PrivacyError: data set, sampler or optimizer cannot carry the guarantee.
        ResumeError: there is a run where none was expected, or none where one was.
        TamperedError: the snapshot to resume from was changed, or somebody else sealed it.
        NoRecipientError: ``seal_to`` is empty.
        BudgetExceededError: the run does not fit the data set's budget.
    """
    options = options or RunOptions()
    charge = options.charge()
    examples_of(train_loader)
    audience_of(seal_to, options)
    device = next(model.parameters()).device
    probed = probed_clipper(
        model, train_loader, max_grad_norm=plan.max_grad_norm, losses=losses, rehearse=options.rehearsal
    )
    setup = RunSetup(
        model=model,
        optimizer=optimizer,
        clipper=probed.clipper,
        probed=probed.said,
        folder=Path(run),
        seal_to=seal_to,
        options=options,
        also=options.also,
        every=options.checkpoint_every,
        rows=rows_at_once(train_loader),
        charge=charge,
        dataset=train_loader.dataset,
    )
    try:
        private = start.resume(plan, setup) if resume else start.start(plan, setup)
    except BaseException:
        setup.clipper.close()
        raise
    meter = Meter(plan, show_loss=options.show_private_loss, quiet=options.quiet)
    return PrivateLoop(private, setup, train_loader, meter, device, rehearsal=probed.rehearsal)


@final
class PrivateLoop:
    """A private run driven by the user's own loop; made by ``privatize``.

    ``model`` is the module that was handed in. Leaving ``batches`` early, by ``break``, an error or Ctrl-C, leaves
    a run that ``resume=True`` goes on with.
    """

    def __init__(
        self,
        run: PrivateRun,
        setup: RunSetup,
        loader: DataLoader[Any],
        meter: Meter,
        device: torch.device,
        *,
        rehearsal: Rehearsal | None = None,
    ) -> None:
        self.model = setup.model
        self._run = run
        self._clipper = setup.clipper
        self._meter = meter
        self._move = to_device(device)
        self._loader = PoissonLoader(loader, sampler=run.sampler, source=run.sampler_source, limit=setup.physical_batch)
        self._open: PhysicalBatch | None = None
        self._iterating = False
        self._rehearsal = rehearsal

    def batches(self) -> Iterator[Any]:
        """Physical batches of the steps that the plan has left, on the model's device, until the budget is used.

        At the end, also after ``break`` and Ctrl-C, the ledger is settled and the last state is sealed. Ctrl-C waits
        for the step under way; a second one does not.

        Where the loop's loss was not shown (``losses=``), the first nine batches are synthetic: they are a rehearsal,
        which counts nothing and in which ``step`` returns False.

        Raises:
            PrivacyError: an earlier call is still being iterated over, whose examples would be counted again.
        """
        with self._alone(), self._meter.running(self._run.taken), Interrupts() as interrupts, contextlib.closing(self):
            if self._rehearsal is not None:
                yield from self._rehearsal.turns()
                self._rehearsal = None
            for batch, fetched in self._loader(self._run.taken, self._run.plan.steps):
                if self._run.reserve() != batch.position:
                    raise PrivacyError(
                        f"position={batch.position}: step() was not called at the end of the batch before"
                    )
                self._open = batch
                yield self._begin(batch, fetched)
                self._check_stepped(batch)
                if batch.last:
                    interrupts.stop_here()

    def backward(self, losses: Tensor) -> None:
        """Add the clipped gradients of ``losses``, shape (B,), one loss for each example of the physical batch.

        Args:
            losses: (B,), one loss for each example of the physical batch, before any reduction.

        Raises:
            ValueError: a scalar, or a wrong length; pass ``reduction="none"``.
            SensitivityError: the examples were counted already.
            InteractionError: a loss reaches rows of another example; where steps were released, the claim is void.
        """
        if self._rehearsal is not None:
            self._rehearsal.backward(losses)
            return
        self._run.backward(losses)
        self._meter.loss(losses)

    def step(self) -> bool:
        """End the physical batch; at the end of a logical batch add the noise and move the weights.

        Returns True when a logical batch ended, so a schedule steps on it.
        """
        batch = self._open
        if self._rehearsal is not None:
            return False
        if batch is None:
            raise PrivacyError("step(): no batch is open; take each batch from private.batches() and call step() once")
        self._open = None
        if not batch.last:
            self._run.hold()
            return False
        self._run.finish_step()
        self._meter.step()
        return True

    @property
    def noise_std(self) -> float:
        """Deviation of the next step's noise in each coordinate of ``grad``; public, for optimizers that use it."""
        return self._run.noise_std

    def claim(self) -> Claim:
        """ε so far; every reserved event counts."""
        return self._run.claim()

    def save(self) -> Path:
        """Seal a snapshot now, and return its path."""
        return self._run.save()

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self._run.folder

    def close(self) -> None:
        """A clean stop: settle the ledger, seal the last state, give the model back. Harmless when done twice."""
        self._run.close()

    @contextlib.contextmanager
    def _alone(self) -> Generator[None]:
        if self._iterating:
            raise PrivacyError("batches(): the loop over an earlier call has not ended; one loop at a time")
        self._iterating = True
        try:
            yield
        finally:
            self._iterating = False

    def _begin(self, batch: PhysicalBatch, fetched: Any) -> Any:
        check_rows(fetched, batch)
        self._clipper.begin(torch.from_numpy(batch.mask), shapes=shapes_of(fetched))
        return self._move(fetched)

    def _check_stepped(self, batch: PhysicalBatch) -> None:
        if self._open is batch:
            raise PrivacyError(
                "step() was not called for this batch; call private.step() after each private.backward(losses)"
            )
