# SPDX-License-Identifier: Apache-2.0
"""``trl.SFTTrainer``, made private by its class name, a budget and a recipient; needs ``privguard[trl]``.

>>> trainer = PrivateSFTTrainer("gpt2", SFTConfig(...), train_dataset=data,                     # doctest: +SKIP
...                             budget=Budget(epsilon=3.0, delta=1e-5), examples=67_349, seal_to=["team.key"])
>>> trainer.train()                                                                             # doctest: +SKIP

What SFTTrainer does to each record by itself runs unchanged: chat templates, tokenising, masks of prompts and turns,
truncation, adapters. Its step and its loss, a mean over all tokens of a batch, do not run: ``PrivateTrainer``
takes the step, each example's loss is the mean over its own labels, and SFTTrainer's training metrics (entropy, token
accuracy, token counts) are never computed.
"""

import contextlib
import logging
from collections.abc import Generator
from typing import Any

import datasets
from torch import nn
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from privguard.errors import PrivacyError
from privguard.integrations.transformers import sft_arguments
from privguard.integrations.transformers.trainer import PrivateTrainer
from privguard.training.sampling.identity import require_apart


class PrivateSFTTrainer(PrivateTrainer, SFTTrainer):
    """A ``trl.SFTTrainer`` that trains under ε; see the arguments of ``__init__``."""

    def __init__(
        self,
        model: str | nn.Module,
        args: SFTConfig,
        *,
        train_dataset: datasets.Dataset,
        eval_dataset: Any = None,
        **more: Any,
    ) -> None:
        """Make a private trainer.

        Args:
            model: the model to train, or the name or path that ``from_pretrained`` reads.
            args: as for ``SFTTrainer``; every field is honoured, mapped or refused, see ``docs/training-arguments.md``.
            train_dataset: the private records, in any of SFTTrainer's formats for text, one example in a row.
            eval_dataset: other people's records, in the same formats.
            **more: the other arguments of ``PrivateTrainer`` (``seal_to``, ``budget`` …) and of ``SFTTrainer``
                (``processing_class``, ``peft_config``, ``formatting_func`` …). ``users`` has to name a column.

        Raises:
            PrivacyError: a setting, a model or a data set that cannot be private; the message says why.
            TypeError: ``args`` is no ``SFTConfig``, or ``train_dataset`` no ``datasets.Dataset``.
            ValueError: plan and arguments contradict each other.
            NoRecipientError: ``seal_to`` is empty.
        """
        require_kind("args", args, SFTConfig)
        require_kind("train_dataset", train_dataset, datasets.Dataset)
        sft_arguments.refuse(args)
        formatted = more.get("formatting_func") is not None
        sft_arguments.refuse_columns(train_dataset.column_names, text=args.dataset_text_field, formatted=formatted)
        users = more.get("users")
        if users is not None and not isinstance(users.ids, str):
            raise PrivacyError(
                "users.ids: SFTTrainer drops records without a label, so values beside the data set would name the "
                "wrong users; make them a column of train_dataset and pass its name"
            )
        # Asked here, because SFTTrainer makes new data sets of both.
        require_apart(train_dataset, eval_dataset)
        super().__init__(model, args, train_dataset=train_dataset, eval_dataset=eval_dataset, **more)  # pyright: ignore[reportArgumentType]
        if self.aux_loss_enabled:
            raise PrivacyError(
                "router_aux_loss_coef=None: the model's configuration balances its experts over a batch, which couples "
                "the examples; set it to 0.0"
            )

    def _prepare_dataset(
        self,
        dataset: Any,
        processing_class: Any,
        args: SFTConfig,
        packing: bool,  # noqa: FBT001
        formatting_func: Any,
        dataset_name: str,
    ) -> Any:
        with unseen() if dataset_name == "train" else contextlib.nullcontext():
            return super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """``PrivateTrainer``'s own; of SFTTrainer's metrics those of an evaluation, without the tokens so far.

        Args:
            logs: figures by name, as Trainer collects them.
            start_time: as Trainer's, in seconds.
        """
        self._metrics["train"].clear()  # filled where somebody calls ``compute_loss`` on a model in training mode
        self._metrics["eval"].pop("num_tokens", None)
        super().log(logs, start_time)

    def _send_telemetry(self) -> None:
        """Nothing: a private run tells nobody that it starts."""


@contextlib.contextmanager
def unseen() -> Generator[None]:
    """No progress bars, which count the private records, and no warnings, which quote them and tell their lengths."""
    before, shown = logging.root.manager.disable, not datasets.are_progress_bars_disabled()
    logging.disable(max(before, logging.WARNING))
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logging.disable(before)
        if shown:
            datasets.enable_progress_bars()


def require_kind(name: str, value: object, kind: type) -> None:
    """Raise TypeError, with the argument's name, for a value of another class.

    Args:
        name: its name, for the message.
        value: what was given.
        kind: the class that is wanted.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name}={type(value).__name__}: expected a {kind.__module__.split('.')[0]}.{kind.__name__}")
