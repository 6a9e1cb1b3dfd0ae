# SPDX-License-Identifier: Apache-2.0
"""Before step 1: is this run expected to learn? The number and its limits: ``privguard.accounting.outlook``."""

from typing import Any

from torch import nn

from privguard.accounting.outlook import Outlook, Start
from privguard.training.clip import trainable
from privguard.training.plan import Plan

_TABLE = 1_000  # rows, from which on a record of text reaches few of them


class FaintSignalWarning(UserWarning):
    """A run whose noise is expected to hide what its records say: it will learn little or nothing."""


def outlook_of(plan: Plan, model: nn.Module) -> Outlook:
    """What a run of this plan and model can learn at best, from public facts alone."""
    trained = sum(parameter.numel() for parameter in trainable(model).values())
    return plan.outlook(trained, start=start_of(model))


def start_of(model: nn.Module) -> Start:
    """What the training begins with; weights are pre-trained where some are frozen or transformers loaded them."""
    loaded = getattr(getattr(model, "config", None), "_name_or_path", "")
    if loaded or not all(parameter.requires_grad for parameter in model.parameters()):
        return Start.TUNED
    return Start.TABLE if any(map(_is_table, model.modules())) else Start.SCRATCH


def faint(expected: Outlook) -> str:
    """The warning, with what to change; ``privguard plan --parameters`` has the numbers."""
    return (
        f"this run is expected to learn little or nothing: noise moves its {expected.trained:,} trained weights at "
        f"least {expected.noise_over_signal:.2g} times as far as the records can, and above {expected.limit:g} runs "
        f"that begin with {expected.start.value} end near chance. Train at most {expected.most_trained:,} parameters "
        "(LoRA, frozen layers), take larger batches, more records or a larger ε"
        + ("" if expected.start is Start.TUNED else ", or begin with pre-trained weights")
        + f"; privguard plan --parameters {expected.trained} says by how much each helps"
    )


def _is_table(module: Any) -> bool:
    return isinstance(module, nn.Embedding) and module.num_embeddings > _TABLE
