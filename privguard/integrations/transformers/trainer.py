# SPDX-License-Identifier: Apache-2.0
"""``transformers.Trainer``, made private by its class name, a budget and a recipient.

>>> trainer = PrivateTrainer(model, args, train_dataset=data,                                   # doctest: +SKIP
...                          budget=Budget(epsilon=3.0, delta=1e-5), examples=67_349, seal_to=["team.key"])
>>> trainer.train()                                                                             # doctest: +SKIP

Trainer's own loop runs unchanged, with its callbacks, evaluation, schedule and peft models. One item of its loader
stands for one whole step: ``PrivateTrainer.training_step`` draws the Poisson sample, clips each example and puts
the *noisy* gradient where Trainer's optimizer finds it. Nothing un-noised reaches Trainer: its loss is zero, and
removed from its logs.
"""

import math
import sys
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import EarlyStoppingCallback, Seq2SeqTrainer, Trainer, TrainingArguments
from transformers.trainer_utils import TrainOutput, get_last_checkpoint, rotate_checkpoints

from privguard.accounting.calibrate import Budget
from privguard.accounting.ledger import Ledger
from privguard.checkpoint.keys.key import To
from privguard.errors import PrivacyError
from privguard.integrations.settled import refuse_environment, refuse_state
from privguard.integrations.transformers import arguments as training_arguments
from privguard.integrations.transformers import checkpoint as trainer_checkpoint
from privguard.integrations.transformers.arguments import plan_for
from privguard.integrations.transformers.checkpoint import SEALED, Rolling, StepInTheSeal
from privguard.integrations.transformers.losses import inputs_for
from privguard.integrations.transformers.overrides import refuse_replaced
from privguard.integrations.transformers.parts import training_clipper, training_loader, training_objective
from privguard.records import Claim
from privguard.runs import start
from privguard.runs.driver import Objective, PerExampleLoss, Underway
from privguard.runs.folder import LEDGER
from privguard.runs.options import RunOptions, RunSetup, as_list, audience_of, key_for
from privguard.runs.privacy_unit import ByUser, Unit
from privguard.runs.progress import public
from privguard.runs.run import SNAPSHOTS
from privguard.runs.signals import Interrupts
from privguard.training.plan import Plan, steps_in
from privguard.training.probes.modules import refuse_mixing
from privguard.training.ranks import Ranks
from privguard.training.sampling.batches import refuse_stream
from privguard.training.sampling.identity import require_apart

EVALUATED = "Metrics of the evaluation data carry no noise: the people in it are not protected by this claim"
SELECTED = "; and by them the model to keep, or the step to stop at, was chosen."
_ARGS_OWN = {
    "quiet": "say it in args (disable_tqdm)",
}


class PrivateTrainer(Trainer):
    """A ``transformers.Trainer`` that trains under ε; see the arguments of ``__init__``."""

    def __init__(  # noqa: PLR0913 — Trainer's own two, and what everybody says about a private run
        self,
        model: nn.Module | None = None,
        args: TrainingArguments | None = None,
        *,
        seal_to: To,
        plan: Plan | None = None,
        budget: Budget | None = None,
        examples: int | None = None,
        users: ByUser | None = None,
        per_example_loss: PerExampleLoss | None = None,
        options: RunOptions | None = None,
        **trainer: Any,
    ) -> None:
        """Make a private trainer.

        Args:
            model: the model to train; refused where examples are not kept apart in it.
            args: as for ``Trainer``; every field is honoured, mapped or refused, see ``docs/training-arguments.md``.
            seal_to: who can open the checkpoints: recipients, keys, or paths of their files.
            plan: what touches privacy; or else
            budget: what may be spent; steps, batch and clipping norm (``max_grad_norm``) are those of ``args``.
            examples: with a budget, the *public* size of the data set. A different real size is never an error.
            users: where a user is the unit of privacy, whose each record is; with a budget, ``count`` has to be given.
            per_example_loss: a function of (outputs, batch) to losses (B,), for heads that privguard does not know.
            options: what few runs need to say: auditors, keys, a budget book, a seed for tests. What ``args`` decides
                (``quiet``) is refused; ``checkpoint_every`` counts for one checkpoint beside those of ``args``.
            **trainer: the other arguments of ``Trainer``, unchanged.

        Raises:
            PrivacyError: a setting that cannot be private; the message says why.
            ValueError: plan and arguments contradict each other.
            NoRecipientError: ``seal_to`` is empty.
        """
        args = args or TrainingArguments(output_dir="tmp_trainer")
        self._options = options or RunOptions()
        self._options.refuse(_ARGS_OWN)
        training_arguments.refuse(args)
        refuse_replaced(self)
        refuse_environment()
        self._unit = Unit(users)
        self.plan = plan or plan_for(args, budget=budget, examples=examples, unit=self._unit)
        self._unit.agrees(self.plan)
        training_arguments.agree(args, self.plan)
        self._seal_to, self._own_loss = seal_to, per_example_loss
        self._private: Underway | None = None
        self._resuming: str | None = None
        self._ledger_ahead = 0
        self._claim: Claim | None = None
        self._spent = math.nan  # ε of the run that ended last, as its claim says it
        if args.load_best_model_at_end:
            key_for(as_list(self._seal_to), self._options.key)
        audience_of(self._seal_to, self._options)
        super().__init__(model=model, args=training_arguments.private(args, self.plan), **trainer)
        refuse_state(self.accelerator, self.model)
        refuse_stream(self.train_dataset)
        require_apart(self.train_dataset, self.eval_dataset)
        every = self._options.checkpoint_every
        every = max(1, self.plan.steps // SNAPSHOTS) if every is None else every
        self._rolling = Rolling(every, self._folder, lambda: self._save_checkpoint(self._bare, None))
        self.add_callback(self._rolling)

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,  # noqa: FBT001 — Trainer's own signature
        trial: Any = None,
        ignore_keys_for_eval: Any = None,
    ) -> TrainOutput:
        """Train to the end of the plan, as ``Trainer.train``; Ctrl-C and SIGTERM stop after the step, and save.

        The training loss of the result is NaN: the true one carries no noise.

        Args:
            resume_from_checkpoint: a checkpoint of this run, True for its newest, or None to begin.
            trial: None; hyper-parameter searches are refused.
            ignore_keys_for_eval: outputs of the model that an evaluation leaves out, as Trainer's.

        Raises:
            ResumeError: ``output_dir`` holds a run already, or the checkpoint does not belong to it.
            KeyboardInterrupt: a stop was asked for, and is done.
        """
        if trial is not None:
            raise PrivacyError("trial: each trial of a search spends budget of its own; plan one run for each")
        self._resuming = self._checkpoint(resume_from_checkpoint)
        with Interrupts() as interrupts:
            self._interrupts = interrupts
            try:
                found = super().train(self._resuming, None, ignore_keys_for_eval)
            finally:
                self._let_go()
            interrupts.stop_here()
        metrics = {"epsilon": Ranks.current().from_lead(lambda: self._spent), **public(found.metrics)}
        return TrainOutput(found.global_step, math.nan, metrics)

    def claim(self) -> Claim:
        """ε so far; every reserved event counts.

        Raises:
            PrivacyError: nothing was trained yet, the run has an insecure seed, or this rank does not lead.
        """
        if self._private is not None:
            return self._private.run.claim()
        if self._claim is None:
            raise PrivacyError("claim: no run of this trainer has a claim; train first, and without insecure_seed")
        return self._claim

    # What Trainer's loop calls, in the order in which it does.

    def get_train_dataloader(self) -> DataLoader[Any]:
        """A counter: item i stands for step i of an epoch. The records are drawn in ``training_step``."""
        steps = cast("Dataset[int]", range(steps_in(1, sample_rate=self.plan.share)))
        return DataLoader(steps, batch_size=1, collate_fn=_only, generator=torch.Generator())

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Trainer's own.

        Args:
            eval_dataset: as Trainer's; None for the one given at the start.

        Raises:
            PrivacyError: for the training set, whose metrics would be logged without noise.
        """
        if not isinstance(eval_dataset, str):  # a name stands for one of those that the constructor saw
            require_apart(self.train_dataset, eval_dataset)
        return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """Trainer's own, for ``predict``.

        Args:
            test_dataset: the records to predict.

        Raises:
            PrivacyError: for records of the training set, whose metrics would be logged without noise.
        """
        require_apart(self.train_dataset, test_dataset)
        return super().get_test_dataloader(test_dataset)

    def num_examples(self, dataloader: DataLoader[Any]) -> int:
        """The public number of examples for the training loader; the true one is a secret.

        Args:
            dataloader: a loader of records.
        """
        if isinstance(cast("object", dataloader.dataset), range):
            return self.plan.examples or round(self.plan.expected_batch_size / self.plan.share)
        return super().num_examples(dataloader)

    def set_initial_training_values(self, args: TrainingArguments, dataloader: DataLoader[Any]) -> Any:
        """Trainer's own values, with a last step at which the ledger holds the whole plan.

        After a crash the ledger is ahead of the checkpoint: what it reserved is spent, so the run ends that many steps
        earlier.

        Args:
            args: Trainer's own arguments.
            dataloader: a loader of records.
        """
        values = list(super().set_initial_training_values(args, dataloader))
        if self._resuming is not None:
            done = trainer_checkpoint.steps_done(self._resuming)
            position = Ledger.read(self._folder / LEDGER).position
            self._ledger_ahead = position - done
            values[-1] = min(cast("int", values[-1]), max(done, self.plan.steps - self._ledger_ahead))
        return tuple(values)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> None:
        """None: no loss is divided by the batch's tokens, since each example's is a mean over its own."""

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        self.accelerator.prepare_model = _unwrapped(self.accelerator.prepare_model)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        self._private = self._begin(resume_from_checkpoint)
        return prepared

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The learning-rate schedule of the whole plan, also where a crash has shortened the run.

        Args:
            num_training_steps: steps that Trainer counts; the plan's are taken.
            optimizer: the optimizer whose learning rates move.
        """
        ahead = self._ledger_ahead if self._resuming is not None else 0
        return super().create_scheduler(num_training_steps + max(0, ahead), optimizer)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:  # noqa: ARG002
        """One private step up to the optimizer: sample, clip, noise. Returns zero, whatever the loss is.

        Args:
            model: the model, as Trainer wraps it.
            inputs: not read: the sampler draws the records of a step.
            num_items_in_batch: not read: a loss for each example needs no count.

        Returns:
            A scalar zero.
        """
        model.train()
        if callable(getattr(self.optimizer, "train", None)):
            cast("Any", self.optimizer).train()
        private = self._private
        if private is None:
            raise PrivacyError("training_step: only train() can take a private step")
        for batch, fetched in private.step():
            data = self._prepare_inputs(fetched)
            private.begin(batch, data)
            losses = private.backward(batch, cast("Objective", private.objective).losses(data))
            if self._options.show_private_loss and sys.stderr.isatty():
                print(f"un-noised loss {losses.mean().item():.3f}", file=sys.stderr)  # noqa: T201 — asked for by name
        private.run.release()
        if private.setup.ranks.from_lead(lambda: self._interrupts.wanted):
            self.control.should_training_stop = True
        return torch.zeros((), device=self.args.device)

    def _forward(self, model: nn.Module, data: Any) -> Any:
        with self.compute_loss_context_manager():
            return model(**inputs_for(model, data, labels=self.label_names))

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> None:
        """None: the norm of the clipped sum carries no noise, and Trainer would log it. See ``log``."""

    def floating_point_ops(self, inputs: Any) -> int:  # noqa: ARG002
        """0: the true number of operations tells how many tokens were drawn.

        Args:
            inputs: one batch, as the collate function makes it.
        """
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:  # noqa: ARG002
        """Trainer's own log without un-noised figures, and with ε so far and the noise-to-signal ratio.

        Args:
            logs: figures by name, as Trainer collects them.
            start_time: as Trainer's, in seconds.
        """
        shown = public(logs)
        if self._private is not None and ("loss" in logs or "train_runtime" in logs):
            run = self._private.run
            shown["epsilon"] = run.epsilon()
            if not math.isnan(ratio := run.noise_to_signal):
                shown["noise_to_signal"] = ratio
        super().log(shown)
        # Trainer adds the epoch to the dictionary that it is given, and ``evaluate`` returns that one.
        logs.update({name: value for name, value in shown.items() if name == "epoch" or name.startswith("eval_")})

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,  # noqa: FBT001, FBT002 — Trainer's own signature
        num_items_in_batch: Any = None,
    ) -> Any:
        """The loss of an evaluation: the user's own where there is one, else Trainer's.

        Args:
            model: the model, as Trainer wraps it.
            inputs: one batch, as the collate function makes it.
            return_outputs: whether the model's outputs are returned beside the loss.
            num_items_in_batch: handed to Trainer, where it computes the loss.
        """
        if self._own_loss is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        outputs = self._forward(model, inputs)
        loss = self._own_loss(outputs, inputs).mean()
        return (loss, outputs) if return_outputs else loss

    def _finalize_training(self, trial: Any, num_train_samples: Any, start_time: float) -> TrainOutput:
        private = cast("Underway", self._private)
        private.run.settle()
        if private.saved != private.run.taken:
            self._save_checkpoint(self._bare, trial)
        return super()._finalize_training(trial, num_train_samples, start_time)

    # Checkpoints: see trainer_checkpoint.

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:  # noqa: ARG002
        private = cast("Underway", self._private)
        final = self._folder / f"checkpoint-{self.state.global_step}"
        best = self._folder / f"checkpoint-{self.state.best_global_step}"
        if self.state.best_global_step and (best == final or best.exists()):
            self.state.best_model_checkpoint = str(best)
        callbacks = [*self.callback_handler.callbacks, self.control]
        self.state.stateful_callbacks = cast("Any", trainer_checkpoint.exported(callbacks))
        trainer_checkpoint.write(private.run, self.state, output=self._folder, lead=private.setup.ranks.lead)
        private.saved = private.run.taken
        self._rolling.saved(self.state, lead=private.setup.ranks.lead)
        if self.args.should_save:
            kept = self.state.best_model_checkpoint
            rotate_checkpoints(str(self._folder), self.args.save_total_limit, kept, use_mtime=True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Nothing: the weights are loaded with the rest of the snapshot, when optimizer and schedule exist.

        Trainer calls this before it makes those two; see ``_prepare_for_training``.
        """

    def _load_rng_state(self, checkpoint: str | None) -> None:  # noqa: ARG002
        private = cast("Underway", self._private)
        private.run.rewind_generators()

    def _load_best_model(self) -> None:
        best = cast("str", self.state.best_model_checkpoint)
        self._bare.load_state_dict(dict(trainer_checkpoint.weights(best, cast("Underway", self._private).setup)))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write the finished model in clear, as ``save_model`` asks, without the pickle of the arguments beside it."""
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            Path(output_dir or cast("str", self.args.output_dir), "training_args.bin").unlink(missing_ok=True)

    def hyperparameter_search(self, *_: Any, **__: Any) -> Any:
        """Refused: every trial looks at the private data.

        Raises:
            PrivacyError: always.
        """
        raise PrivacyError(
            "hyperparameter_search: each trial spends budget; run one plan for each setting and account for all of them"
        )

    # A run from its beginning to its end.

    def _begin(self, checkpoint: str | None) -> Underway:
        """A run in a new folder, or from ``checkpoint``; called once Trainer has made optimizer and schedule."""
        model = self._bare
        data = self._training_data()
        self._unit.read(self.train_dataset)
        refuse_mixing(model)
        refuse_replaced(self)
        objective = self._objective(model, data)
        own = {"schedule": cast("Any", self.lr_scheduler), "trainer": StepInTheSeal(self)}
        setup = RunSetup(
            model=model,
            optimizer=cast("Any", self.optimizer),
            clipper=training_clipper(model, objective, data, unit=self._unit, max_grad_norm=self.plan.max_grad_norm),
            folder=self._folder,
            seal_to=self._seal_to,
            options=self._options,
            also={**self._options.also, **own},
            every=0,
            rows=data.batch_size,
            ranks=Ranks.current(),
            charge=self._options.charge(),
            dataset=data.dataset,
            unchecked=self._unprotected(),
        )
        try:
            if checkpoint is None:
                run = start.start(self.plan, setup)
            else:
                run = start.resume(self.plan, setup, snapshot=Path(checkpoint, SEALED))
                if setup.ranks.lead:
                    trainer_checkpoint.sweep(self._folder)
            return Underway(run, setup, objective, data, users=self._unit.users)
        except BaseException:
            setup.clipper.close()
            raise

    def _training_data(self) -> DataLoader[Any]:
        return training_loader(self)

    def _objective(self, model: nn.Module, data: DataLoader[Any]) -> Objective:
        return training_objective(self, model, partial(self._forward, model), data, own_loss=self._own_loss)

    def _unprotected(self) -> tuple[str, ...]:
        """What evaluation during the run does to people outside of the training set; nothing where they are public."""
        if self._options.public_evaluation or self.eval_dataset is None or str(self.args.eval_strategy) == "no":
            return ()
        chosen = self.args.load_best_model_at_end or any(
            isinstance(callback, EarlyStoppingCallback) for callback in self.callback_handler.callbacks
        )
        return (EVALUATED + (SELECTED if chosen else "."),)

    def _let_go(self) -> None:
        """End the run that is under way, if any, and keep its claim."""
        if self._private is not None:
            run = self._private.run
            lead, self._private = self._private.setup.ranks.lead, None
            try:
                run.settle()  # first: what was reserved and not taken is given back, and costs nothing
                if lead:  # alone: another rank may be the one that failed
                    self._spent = run.spent()
                    self._claim = None if run.manifest.insecure or math.isnan(self._spent) else run.claim()
            finally:
                run.end()

    def _checkpoint(self, wanted: Any) -> str | None:
        """The checkpoint that ``resume_from_checkpoint`` means: a path, True for the newest, or none."""
        if wanted is True:
            wanted = get_last_checkpoint(str(self._folder))
            if wanted is None:
                raise ValueError(f"output_dir={self.args.output_dir}: no checkpoint to resume from is there")
        return str(wanted) if wanted else None

    @property
    def _bare(self) -> nn.Module:
        return cast("nn.Module", self.model)

    @property
    def _folder(self) -> Path:
        return Path(cast("str", self.args.output_dir))


class PrivateSeq2SeqTrainer(PrivateTrainer, Seq2SeqTrainer):
    """A ``transformers.Seq2SeqTrainer`` that trains under ε; arguments as for ``PrivateTrainer``."""


def _only(items: list[int]) -> int:
    return items[0]


def _unwrapped(prepare_model: Any) -> Any:
    """Accelerate's ``prepare_model`` without torch's gradient reducer: here the clipped sums are added up, once a step.

    Autocast and device placement stay. ``evaluation_mode=True`` is accelerate's way to leave the model unwrapped.
    """

    def prepare(model: nn.Module, device_placement: Any = None, evaluation_mode: bool = True) -> nn.Module:  # noqa: ARG001, FBT001, FBT002
        return prepare_model(model, device_placement=device_placement, evaluation_mode=True)

    return prepare
