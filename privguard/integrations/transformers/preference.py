# SPDX-License-Identifier: Apache-2.0
"""``trl.DPOTrainer`` and ``trl.RewardTrainer`` made private, with the pair as the record; needs ``privguard[trl]``.

>>> trainer = PrivateDPOTrainer("gpt2", DPOConfig(...), train_dataset=pairs,                    # doctest: +SKIP
...                             budget=Budget(epsilon=3.0, delta=1e-5), examples=67_349, seal_to=["team.key"])
>>> trainer.train()                                                                             # doctest: +SKIP

What TRL does to each pair by itself runs unchanged: chat templates, tokenising, truncation, adapters, evaluation. Its
step does not run: ``PrivateTrainer`` takes it, and a pair's loss is what TRL computes for a batch of that pair
alone. The frozen reference of DPO is asked once, before step 1, for one pair at a time. TRL's training metrics
(rewards, margins, token counts) are never computed.
"""

import contextlib
import copy
from collections.abc import Callable, Mapping
from typing import Any, cast, final

import datasets
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.trainer import Trainer
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from privguard.errors import PrivacyError
from privguard.integrations.transformers import preference_arguments as tables
from privguard.integrations.transformers.losses import CHOICES, bare
from privguard.integrations.transformers.overrides import users_own
from privguard.integrations.transformers.pair_losses import Settings, pairs_of, preference_losses, reward_losses
from privguard.integrations.transformers.sft import require_kind, unseen
from privguard.integrations.transformers.trainer import PrivateTrainer
from privguard.runs.driver import Batch, Objective
from privguard.training.probes.fields import Field, Structure
from privguard.training.sampling.identity import require_apart

_TOKENS = 6  # of a synthetic text
_REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")


class _OnPairs(PrivateTrainer):
    """What both trainers share: a pair is one record, and both of its texts go forward side by side."""

    _rules: type[tables.DPO | tables.Reward]

    def __init__(self, model: Any, args: Any, *, train_dataset: Any, eval_dataset: Any, **more: Any) -> None:
        require_kind("train_dataset", train_dataset, datasets.Dataset)
        tables.refuse(args, self._rules, train_dataset.column_names)
        name = type(self).__name__
        for method in ("compute_loss", "_compute_loss"):
            if users_own(cast("Trainer", self), method) is not None:
                raise PrivacyError(
                    f"{name}.{method}: overridden, and only TRL's own losses are known for one pair here"
                )
        if more.get("per_example_loss") is not None:
            raise PrivacyError(
                "per_example_loss: a pair's loss is that of args; use PrivateTrainer for one of your own"
            )
        users = more.get("users")
        if users is not None and not isinstance(users.ids, str):
            raise PrivacyError(
                f"users.ids: {name} may drop pairs that are too long, so values beside the data set would name the "
                "wrong users; make them a column of train_dataset and pass its name"
            )
        # Asked here, because TRL makes new data sets of both.
        require_apart(train_dataset, eval_dataset)
        super().__init__(model, args, train_dataset=train_dataset, eval_dataset=eval_dataset, **more)

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        with unseen() if dataset_name == "train" else contextlib.nullcontext():
            return cast("Any", super())._prepare_dataset(dataset, processing_class, args, dataset_name)  # noqa: SLF001

    def _training_data(self) -> DataLoader[Any]:
        loader = super()._training_data()
        loader.collate_fn = SideBySide(loader.collate_fn)
        return loader

    def _objective(self, model: nn.Module, data: DataLoader[Any]) -> Objective:  # noqa: ARG002
        top = cast("Any", bare(model)).config.get_text_config().vocab_size
        text = {"input_ids": Field((CHOICES, _TOKENS), torch.long, top=top)}
        return Objective(lambda batch: self._losses(model, batch), {**text, **self._beside()}, choices=True)

    def _beside(self) -> dict[str, Structure]:
        """What a synthetic batch holds besides its texts."""
        raise NotImplementedError

    def _losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """The losses of a batch whose rows are pairs, (B,)."""
        raise NotImplementedError

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Of all texts, (2B, …), those of a pair one after the other."""
        names = [name for name in ("input_ids", "attention_mask") if name in batch]
        with self.compute_loss_context_manager():
            return model(**{name: batch[name].flatten(0, 1) for name in names}, use_cache=False).logits

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """``PrivateTrainer``'s own; of TRL's metrics those of an evaluation, without the tokens so far."""
        metrics = cast("Any", self)._metrics  # noqa: SLF001 — of TRL's trainers, below in the order of methods
        metrics["train"].clear()  # filled where somebody calls ``compute_loss`` on a model in training mode
        metrics["eval"].pop("num_tokens", None)
        super().log(logs, start_time)

    def _send_telemetry(self) -> None:
        """Nothing: a private run tells nobody that it starts."""


class PrivateDPOTrainer(_OnPairs, DPOTrainer):
    """A ``trl.DPOTrainer`` that trains under ε; see the arguments of ``__init__``."""

    _rules = tables.DPO

    def __init__(
        self,
        model: str | nn.Module,
        args: DPOConfig,
        *,
        train_dataset: datasets.Dataset,
        eval_dataset: Any = None,
        **more: Any,
    ) -> None:
        """Make a private trainer.

        Args:
            model: the model to train, or the name or path that ``from_pretrained`` reads. When resuming, the model
                that the run began with: the reference is made from it.
            args: as for ``DPOTrainer``; every field is honoured, mapped or refused, see ``docs/training-arguments.md``.
            train_dataset: the private pairs, one in a row, in any of DPOTrainer's formats for text.
            eval_dataset: other people's pairs, in the same formats.
            **more: the other arguments of ``PrivateTrainer`` (``seal_to``, ``budget`` …) and of ``DPOTrainer``
                (``ref_model``, ``processing_class``, ``peft_config`` …). ``users`` has to name a column.

        Raises:
            PrivacyError: a setting, a model or a data set that cannot be private; the message says why.
            TypeError: ``args`` is no ``DPOConfig``, or ``train_dataset`` no ``datasets.Dataset``.
            ValueError: plan and arguments contradict each other.
            NoRecipientError: ``seal_to`` is empty.
        """
        require_kind("args", args, DPOConfig)
        args = copy.copy(args)
        args.precompute_ref_log_probs = True
        super().__init__(model, args, train_dataset=train_dataset, eval_dataset=eval_dataset, **more)
        if self.aux_loss_enabled:
            raise PrivacyError(
                "router_aux_loss_coef=None: the model's configuration balances its experts over a batch, which couples "
                "the pairs; set it to 0.0"
            )

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:  # noqa: ARG002
        """The data set with the log-probabilities of its completions under the reference, one pair at a time.

        TRL's own asks for batches, in which a pair's figures depend on the padding beside it, and writes them to disk.
        """
        if set(_REFERENCE) <= set(dataset.column_names):
            return dataset
        model = cast("nn.Module", self.ref_model or self.model)
        training = model.training
        model.eval()
        with unseen() if name == "train" else contextlib.nullcontext():
            batches = (self._prepare_inputs(self.data_collator([row])) for row in dataset)
            figures = [self.compute_ref_log_probs(model, batch) for batch in batches]
            for number, column in enumerate(_REFERENCE):
                dataset = dataset.add_column(column, [float(pair[number]) for pair in figures])
        model.train(training)
        return dataset

    def _beside(self) -> dict[str, Structure]:
        figures: dict[str, Structure] = {name: Field((), torch.float32) for name in _REFERENCE}
        return {"completion_mask": Field((CHOICES, _TOKENS), torch.long), **figures}

    def _losses(self, model: nn.Module, batch: Batch) -> Tensor:
        return preference_losses(pairs_of(self._logits(model, batch), batch), Settings.of(self.args))


class PrivateRewardTrainer(_OnPairs, RewardTrainer):
    """A ``trl.RewardTrainer`` that trains under ε; see the arguments of ``__init__``."""

    _rules = tables.Reward

    def __init__(
        self,
        model: str | nn.Module,
        args: RewardConfig,
        *,
        train_dataset: datasets.Dataset,
        eval_dataset: Any = None,
        **more: Any,
    ) -> None:
        """Make a private trainer.

        Args:
            model: the model to train, or the name or path that ``from_pretrained`` reads; with one output.
            args: as for ``RewardTrainer``; every field is honoured or refused, see ``docs/training-arguments.md``.
            train_dataset: the private pairs, one in a row, in any of RewardTrainer's formats for text.
            eval_dataset: other people's pairs, in the same formats.
            **more: the other arguments of ``PrivateTrainer`` (``seal_to``, ``budget`` …) and of ``RewardTrainer``
                (``processing_class``, ``peft_config`` …). ``users`` has to name a column.

        Raises:
            PrivacyError: a setting, a model or a data set that cannot be private; the message says why.
            TypeError: ``args`` is no ``RewardConfig``, or ``train_dataset`` no ``datasets.Dataset``.
            ValueError: plan and arguments contradict each other.
            NoRecipientError: ``seal_to`` is empty.
        """
        require_kind("args", args, RewardConfig)
        super().__init__(model, args, train_dataset=train_dataset, eval_dataset=eval_dataset, **more)

    def _beside(self) -> dict[str, Structure]:
        columns = cast("datasets.Dataset", self.train_dataset).column_names
        return {"margin": Field((), torch.float32)} if "margin" in columns else {}

    def _losses(self, model: nn.Module, batch: Batch) -> Tensor:
        rewards = self._logits(model, batch).float().reshape(-1, CHOICES)
        return reward_losses(
            rewards, margin=batch.get("margin"), centering=cast("RewardConfig", self.args).center_rewards_coefficient
        )


@final
class SideBySide:
    """TRL's collate function with a pair in one row, (B, 2, …): its own has all chosen texts first, then the others."""

    def __init__(self, collate: Callable[[list[Any]], Mapping[str, Any]]) -> None:
        self._collate = collate

    def __call__(self, records: list[Any]) -> dict[str, Any]:
        """The collated pairs; what holds one value for each stays as it is."""
        twice = CHOICES * len(records)
        batch = self._collate(records)
        return {
            name: torch.stack(value.chunk(CHOICES), 1) if len(value) == twice else value
            for name, value in batch.items()
        }
