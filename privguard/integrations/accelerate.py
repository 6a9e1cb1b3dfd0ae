# SPDX-License-Identifier: Apache-2.0
"""``accelerate.Accelerator``, made private by its class name and a plan.

>>> accelerator = PrivateAccelerator(plan=plan, run="runs/a", seal_to=["team.key"])               # doctest: +SKIP
>>> model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)  # doctest: +SKIP
>>> for inputs, targets in loader:                                                                # doctest: +SKIP
...     with accelerator.accumulate(model):
...         losses = F.cross_entropy(model(inputs), targets, reduction="none")     # one loss for each example
...         accelerator.backward(losses)
...         optimizer.step()
...         schedule.step()
...         optimizer.zero_grad()

The loader yields physical batches of a Poisson sample; ``sync_gradients`` is True on the last one of a step, and only
then do optimizer and schedule move, on several processes just as on one.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, cast, final

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.scheduler import AcceleratedScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, RandomSampler

from privguard.checkpoint.keys.key import To
from privguard.errors import PrivacyError, ResumeError
from privguard.integrations.settled import COMPILED, CUT, ENGINE, SPLIT, refuse_environment, refuse_state
from privguard.records import Claim
from privguard.runs import start
from privguard.runs.driver import Underway
from privguard.runs.options import RunOptions, RunSetup, audience_of
from privguard.runs.run import PrivateRun
from privguard.training.plan import Plan, steps_in
from privguard.training.probes.gradients import Losses
from privguard.training.probes.loader import probed_clipper
from privguard.training.probes.rehearsal import Rehearsal
from privguard.training.ranks import Ranks
from privguard.training.sampling.batches import examples_of, rows_at_once, to_device
from privguard.training.sampling.identity import require_apart
from privguard.training.sampling.sample import PhysicalBatch

SEALED = "state.sealed"
_REFUSED = {
    "gradient_accumulation_steps": "how often a step accumulates follows from its Poisson sample; omit it",
    "gradient_accumulation_plugin": "how often a step accumulates follows from its Poisson sample; omit it",
    "deepspeed_plugin": ENGINE,
    "fsdp_plugin": CUT,
    "megatron_lm_plugin": ENGINE,
    "parallelism_config": SPLIT,
    "dynamo_backend": COMPILED,
    "dynamo_plugin": COMPILED,
}

_LOOPS_OWN = {
    "show_private_loss": "print it in the loop, knowing that no guarantee covers it",
    "quiet": "the loop shows its own progress",
}


class PrivateAccelerator(Accelerator):
    """An ``accelerate.Accelerator`` for training under ε."""

    def __init__(
        self,
        *,
        plan: Plan,
        run: str | os.PathLike[str],
        seal_to: To,
        losses: Losses | None = None,
        options: RunOptions | None = None,
        **accelerator: Any,
    ) -> None:
        """Make a private accelerator.

        Args:
            plan: what touches privacy.
            run: folder of this run.
            seal_to: who can open the checkpoints: recipients, keys, or paths of their files.
            losses: forward and loss of the loop, batch → (B,), so that the probe before step 1 covers the loss too;
                without it the model alone is probed, and one that is cut over ranks is not probed at all.
            options: what few runs need to say. ``show_private_loss`` and ``quiet`` are refused: the loop shows what it
                wants to show.
            **accelerator: the other arguments of ``Accelerator``, unchanged.

        Raises:
            PrivacyError: a setting that cannot be private; the message says why.
            ValueError: an option that the loop itself decides.
        """
        self._options = options or RunOptions()
        self._options.refuse(_LOOPS_OWN)
        for name, reason in _REFUSED.items():
            if accelerator.get(name) is not None:
                raise PrivacyError(f"{name}={accelerator[name]!r}: {reason}")
        audience_of(seal_to, self._options)
        refuse_environment()
        super().__init__(**accelerator)
        refuse_state(self)
        self.plan = plan
        self._folder, self._seal_to, self._losses = Path(run), seal_to, losses
        self._setup: RunSetup | None = None
        self._private: Underway | None = None
        self._open: PhysicalBatch | None = None
        self._rehearsal: Rehearsal | None = None
        self._data: DataLoader[Any] | None = None

    def prepare(self, *args: Any, device_placement: Any = None) -> Any:  # noqa: ARG002
        """As ``Accelerator.prepare``: the shuffled loader becomes the private one, and the optimizer waits for it.

        Args:
            *args: one model, its optimizer and its shuffled loader, and whatever Accelerator prepares besides.
            device_placement: not read: the run decides.

        Raises:
            UnsupportedModelError: a module mixes examples, or has no exact rule.
            SensitivityError: the probe found that one example's gradient depends on another.
            PrivacyError: model, optimizer or data cannot carry the guarantee.
        """
        models = [one for one in args if isinstance(one, nn.Module)]
        optimizers = [one for one in args if isinstance(one, Optimizer)]
        loaders = [one for one in args if _is_training(one)]
        if not optimizers:
            return super().prepare(*args)
        if (len(models), len(optimizers), len(loaders)) != (1, 1, 1):
            raise PrivacyError(
                f"prepare: {len(models)} models, {len(optimizers)} optimizers and {len(loaders)} shuffled loaders; a "
                "private run has one of each, prepared together"
            )
        for other in args:
            if isinstance(other, DataLoader) and other is not loaders[0]:
                require_apart(loaders[0].dataset, cast("Any", other).dataset)
        done = {id(loaders[0]): PrivateLoader(self), id(optimizers[0]): _WaitingOptimizer(self, optimizers[0])}
        self._optimizers.append(cast("Any", done[id(optimizers[0])]))
        others = [one for one in args if id(one) not in done]
        prepared = super().prepare(*others)
        prepared = iter(prepared if isinstance(prepared, tuple) else [prepared])
        self._assemble(self.unwrap_model(models[0]), optimizers[0], loaders[0])
        return tuple(done[id(one)] if id(one) in done else next(prepared) for one in args)

    def prepare_model(
        self,
        model: nn.Module,
        device_placement: Any = None,
        evaluation_mode: bool = False,  # noqa: ARG002, FBT001, FBT002 — accelerate's own signature
    ) -> nn.Module:
        """Autocast and placement without torch's gradient reducer: clipped sums are added up once a step instead.

        Args:
            model: the model to train or to evaluate.
            device_placement: as Accelerator's.
            evaluation_mode: whether it is only evaluated.
        """
        return super().prepare_model(model, device_placement, evaluation_mode=True)

    def prepare_scheduler(self, scheduler: Any) -> Any:
        """A schedule that moves once a step, whatever the number of processes.

        Args:
            scheduler: a learning-rate schedule of torch.
        """
        prepared = AcceleratedScheduler(scheduler, self._optimizers, split_batches=True)
        self._schedulers.append(prepared)
        return prepared

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Add the clipped gradients of ``loss``, shape (B,), one for each example of the open batch.

        Args:
            loss: (B,), one loss for each example, before any reduction.
            **kwargs: none; any is refused.

        Raises:
            ValueError: a scalar, or a wrong length; pass ``reduction="none"``.
            SensitivityError: the examples were counted already.
            PrivacyError: another argument, or no batch is open.
        """
        if self._rehearsal is not None and not kwargs:
            self._rehearsal.backward(loss)
            return
        if kwargs or self._private is None or self._open is None:
            raise PrivacyError("backward: takes the losses of the open batch and nothing else, once for each batch")
        self._private.backward(self._open, loss)

    def save_state(self, output_dir: Any = None, *_: Any, **__: Any) -> Path:
        """Seal the whole state into ``output_dir``; by default among the run folder's snapshots.

        Call it between two steps.

        Args:
            output_dir: a folder, or None for the run folder's snapshots.

        Returns:
            The folder or file that was written.
        """
        run = self._begun().run
        run.settle()
        if output_dir is None:
            return run.save().parent
        run.save_to(Path(output_dir) / SEALED)
        return Path(output_dir)

    def load_state(self, input_dir: Any = None, *_: Any, **__: Any) -> None:
        """Go on with the run from the state in ``input_dir``, or from its newest snapshot; before the first batch.

        Args:
            input_dir: a folder that save_state wrote, or None for the newest snapshot.

        Raises:
            ResumeError: training has begun, or the state does not belong to the run.
        """
        if self._private is not None or self._setup is None:
            raise ResumeError("load_state: call it after prepare and before the first batch")
        snapshot = None if input_dir is None else Path(input_dir) / SEALED
        run = start.resume(self.plan, self._setup, snapshot=snapshot)
        run.rewind_generators()
        self._private = self._underway(run)

    @property
    def noise_std(self) -> float:
        """Deviation of the next step's noise in each coordinate of ``grad``; public, for optimizers that use it."""
        return self._begun().run.noise_std

    def claim(self) -> Claim:
        """ε so far; every reserved event counts."""
        return self._begun().run.claim()

    def end_training(self) -> None:
        """A clean stop: settle the ledger, seal the last state, give the model back, and end the trackers."""
        if self._private is not None:
            self._private.run.close()
        super().end_training()

    def clip_grad_norm_(self, parameters: Any, max_norm: Any, norm_type: int = 2) -> NoReturn:  # noqa: ARG002
        """Refused: every example's gradient is clipped already, to the plan's ``max_grad_norm``.

        Args:
            parameters: not read.
            max_norm: not read.
            norm_type: not read.

        Raises:
            PrivacyError: always.
        """
        raise PrivacyError(
            "clip_grad_norm_: each example is clipped to the plan's max_grad_norm; clipping the sum again distorts it, "
            "and its norm carries no noise; leave the call away"
        )

    def clip_grad_value_(self, parameters: Any, clip_value: Any) -> NoReturn:  # noqa: ARG002
        """Refused, as ``clip_grad_norm_``.

        Args:
            parameters: not read.
            clip_value: not read.

        Raises:
            PrivacyError: always.
        """
        raise PrivacyError("clip_grad_value_: each example is clipped to the plan's max_grad_norm; leave the call away")

    def batches(self) -> Iterator[Any]:
        """What one pass over the private loader yields: an epoch's worth of steps, or what the plan has left."""
        private, move = self._begun(), to_device(self.device)
        if self._rehearsal is not None:
            self.gradient_state._set_sync_gradients(False)  # noqa: FBT003, SLF001 — nothing moves meanwhile
            yield from self._rehearsal.turns()
            self._rehearsal = None
        for _ in range(min(self.steps_per_epoch, private.run.remaining)):
            for batch, fetched in private.step():
                data = move(fetched)
                private.begin(batch, data)
                self._open = batch
                self.gradient_state._set_sync_gradients(batch.last)  # noqa: SLF001 — accelerate has no public setter
                yield data
                if batch.last and private.run.taken == batch.position:
                    raise PrivacyError("optimizer.step() was not called for this step; call it after each backward")

    def optimizer_step(self) -> None:
        """End the open batch; on the last one of a step add the noise and move the weights."""
        if self._rehearsal is not None:
            return
        if self._open is None:
            raise PrivacyError("optimizer.step(): no batch is open; take each batch from the prepared loader")
        if self._open.last:
            self._begun().run.finish_step()
        else:
            self._begun().run.hold()
        self._open = None

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which each example is drawn once on average."""
        return steps_in(1, sample_rate=self.plan.share)

    def _do_sync(self) -> None:
        """Nothing: the loader has said already whether this is the last batch of a step."""

    def _assemble(self, model: nn.Module, optimizer: Optimizer, loader: DataLoader[Any]) -> None:
        examples_of(loader)
        self._data = loader
        bound, rehearse = self.plan.max_grad_norm, self._options.rehearsal
        probed = probed_clipper(model, loader, max_grad_norm=bound, losses=self._losses, rehearse=rehearse)
        self._rehearsal = probed.rehearsal
        schedules = {f"schedule {i}": each.scheduler for i, each in enumerate(cast("Any", self._schedulers))}
        self._setup = RunSetup(
            model=model,
            optimizer=optimizer,
            clipper=probed.clipper,
            probed=probed.said,
            folder=self._folder,
            seal_to=self._seal_to,
            options=self._options,
            also={**self._options.also, **schedules},
            every=self._options.checkpoint_every,
            rows=rows_at_once(loader),
            ranks=Ranks.current(),
            charge=self._options.charge(),
            dataset=loader.dataset,
        )

    def _begun(self) -> Underway:
        if self._private is None:
            if self._setup is None:
                raise PrivacyError("no run: call prepare with model, optimizer and shuffled loader first")
            self._private = self._underway(start.start(self.plan, self._setup))
        return self._private

    def _underway(self, run: PrivateRun) -> Underway:
        return Underway(run, cast("RunSetup", self._setup), None, cast("Any", self._data), users=None)


@final
class PrivateLoader:
    """What a shuffled loader becomes: each pass yields the physical batches of an epoch's worth of private steps.

    Its length is the number of *steps* of a pass, which is what a schedule wants to know; how many batches they take is
    the sampler's secret.
    """

    def __init__(self, accelerator: PrivateAccelerator) -> None:
        self._accelerator = accelerator

    def __len__(self) -> int:
        return self._accelerator.steps_per_epoch

    def __iter__(self) -> Iterator[Any]:
        return self._accelerator.batches()


@final
class _WaitingOptimizer(AcceleratedOptimizer):
    """An optimizer that moves at the end of a step, along the noisy gradient alone."""

    def __init__(self, accelerator: PrivateAccelerator, optimizer: Optimizer) -> None:
        super().__init__(optimizer, device_placement=False)
        self._accelerator = accelerator

    def step(self, closure: Any = None) -> None:
        """End the open batch; see ``PrivateAccelerator.optimizer_step``."""
        if closure is not None:
            raise PrivacyError("closure: would run the model again over the same examples; call step() without one")
        self._accelerator.optimizer_step()

    def zero_grad(self, set_to_none: Any = None) -> None:
        """Nothing: gradients are cleared when the step ends."""


def _is_training(thing: Any) -> bool:
    return isinstance(thing, DataLoader) and isinstance(thing.sampler, RandomSampler)
