# SPDX-License-Identifier: Apache-2.0
"""Every field that ``trl.DPOConfig`` and ``trl.RewardConfig`` add to ``TrainingArguments``: honoured, mapped, refused.

As in ``privguard.integrations.transformers.arguments``, a field that is in none of the three tables fails a test.
"""

from collections.abc import Iterable
from typing import Any, ClassVar, final

from privguard.errors import PrivacyError
from privguard.integrations.transformers import arguments as training_arguments
from privguard.integrations.transformers.arguments import Refusal
from privguard.integrations.transformers.pair_losses import LOSSES

_SORTED = "it sorts the pairs of a batch, so no pair has a loss of its own"
_OFFLOADING: Refusal = (bool, "it is honoured by a step that is not used here; gradient_checkpointing saves memory")
_PROCESSES: Refusal = (
    lambda value: value is not None and value > 1,
    "what its processes print quotes records and tells their lengths; tokenise beforehand with Dataset.map",
)
_IMAGES = ("image", "images")


def _unknown(kinds: Any) -> bool:
    return not set([kinds] if isinstance(kinds, str) else kinds) <= set(LOSSES)


@final
class DPO:
    """The fields of ``DPOConfig``."""

    HONOURED: ClassVar = frozenset(
        """
        model_init_kwargs trust_remote_code disable_dropout max_length truncation_mode pad_to_multiple_of loss_weights
        label_smoothing beta discopop_tau pad_token
        """.split()  # noqa: SIM905 — as in training_arguments
    )
    MAPPED: ClassVar = {
        "precompute_ref_log_probs": "always: the reference is asked once, before step 1",
        "precompute_ref_batch_size": "no effect: the reference is asked for one pair at a time",
        "f_alpha_divergence_coef": "no effect without f_divergence_type",
        "ref_model_mixup_alpha": "no effect without sync_ref_model",
        "ref_model_sync_steps": "no effect without sync_ref_model",
    }
    REFUSED: ClassVar[dict[str, Refusal]] = {
        "loss_type": (_unknown, f"aot and aot_unpaired: {_SORTED}; known are {', '.join(sorted(LOSSES))}"),
        "sync_ref_model": (bool, "the reference is asked once, before step 1, and a moving one is not what it said"),
        "use_weighting": (bool, "the weights of WPO are not known for one pair here"),
        "ld_alpha": (lambda value: value is not None, "only sums over all tokens of a completion are known here"),
        "f_divergence_type": (lambda value: value != "reverse_kl", "only 'reverse_kl' is known for one pair here"),
        "padding_free": (bool, "a whole batch becomes one row with one gradient, so no clip can tell its pairs apart"),
        "router_aux_loss_coef": (bool, "balancing the experts over a batch couples its pairs; set it to 0.0"),
        "activation_offloading": _OFFLOADING,
        "dataset_num_proc": _PROCESSES,
    }


@final
class Reward:
    """The fields of ``RewardConfig``."""

    HONOURED: ClassVar = frozenset(
        """
        model_init_kwargs trust_remote_code chat_template_path disable_dropout eos_token max_length pad_to_multiple_of
        center_rewards_coefficient pad_token
        """.split()  # noqa: SIM905
    )
    MAPPED: ClassVar[dict[str, str]] = {}
    REFUSED: ClassVar[dict[str, Refusal]] = {"activation_offloading": _OFFLOADING, "dataset_num_proc": _PROCESSES}


def refuse(args: Any, rules: type[DPO | Reward], columns: Iterable[str]) -> None:
    """Raise for the first field or column of the training data that a private run on pairs cannot have.

    Args:
        args: a ``DPOConfig`` or ``RewardConfig``.
        rules: the tables for it.
        columns: of the training data.

    Raises:
        PrivacyError: it names the field or the column, its value and the reason.
    """
    training_arguments.refuse_fields(args, rules.REFUSED)
    if images := sorted(set(columns).intersection(_IMAGES)):
        raise PrivacyError(
            f"train_dataset: column {images[0]}: the patches of a batch's images are one tensor, whose rows are not "
            "its pairs; only text can be trained on here"
        )
