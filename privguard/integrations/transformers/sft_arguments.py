# SPDX-License-Identifier: Apache-2.0
"""Every field that ``trl.SFTConfig`` adds to ``TrainingArguments``: honoured, mapped to something else, or refused.

As in ``privguard.integrations.transformers.arguments``, a field that is in none of the three tables fails a test.
"""

from collections.abc import Iterable
from typing import Any

from privguard.errors import PrivacyError
from privguard.integrations.transformers import arguments as training_arguments
from privguard.integrations.transformers.arguments import Refusal

HONOURED = frozenset(
    """
    model_init_kwargs trust_remote_code chat_template_path dataset_text_field dataset_kwargs eos_token pad_token
    max_length truncation_mode pad_to_multiple_of eval_packing completion_only_loss assistant_only_loss
    """.split()  # noqa: SIM905 — as in training_arguments
)
"""Fields that mean what they mean in ``SFTTrainer``."""

MAPPED = {
    "shuffle_dataset": "no effect: which records enter a step is the sampler's",
    "packing_strategy": "no effect without packing",
}
"""Fields that mean nothing in a private run."""

REFUSED: dict[str, Refusal] = {
    "packing": (bool, "a row of several examples has one gradient, so no clip can tell them apart"),
    "padding_free": (bool, "a whole batch becomes one row with one gradient, so no clip can tell its examples apart"),
    "loss_type": (
        lambda value: value != "nll",
        "only an example's mean log-likelihood is known here; pass loss_type='nll' and your own as per_example_loss",
    ),
    "router_aux_loss_coef": (bool, "balancing the experts over a batch couples its examples; set it to 0.0"),
    "activation_offloading": (
        bool,
        "it is honoured by a step that is not used here; activation_checkpointing=True saves memory",
    ),
    "dataset_num_proc": (
        lambda value: value is not None and value > 1,
        "what its processes print quotes records and tells their lengths; tokenise beforehand with Dataset.map",
    ),
}
"""Fields that are refused when they are set to a value for which the first item is true, and why."""

_CONVERSATIONS = ("messages", "conversations")
_IMAGES = ("image", "images")


def refuse(args: Any) -> None:
    """Raise for the first of these fields that a private run cannot have.

    Raises:
        PrivacyError: it names the field, its value and the reason.
    """
    training_arguments.refuse_fields(args, REFUSED)
    if (args.activation_checkpointing_kwargs or {}).get("selective"):
        raise PrivacyError(
            "activation_checkpointing_kwargs['selective']=True: it is not tested with per-example gradients; leave it "
            "away, plain checkpointing is exact"
        )


def refuse_columns(columns: Iterable[str], *, text: str, formatted: bool) -> None:
    """Raise where one record of the training data could decide how all the others are read.

    Args:
        columns: of the training data.
        text: ``dataset_text_field``.
        formatted: whether a ``formatting_func`` adds a column ``"text"``.

    Raises:
        PrivacyError: rows hold several examples, images, or both a text and a conversation.
    """
    there = set(columns)
    if "seq_lengths" in there:
        raise PrivacyError(
            "train_dataset: its column seq_lengths says that each row packs several examples; pass them unpacked"
        )
    if images := sorted(there.intersection(_IMAGES)):
        raise PrivacyError(
            f"train_dataset: column {images[0]}: the patches of a batch's images are one tensor, whose rows are not "
            "its examples; only text can be trained on here"
        )
    texts = {"text"} if formatted else there.intersection({text})
    talks = there.intersection(_CONVERSATIONS)
    if texts and talks and "input_ids" not in there:
        raise PrivacyError(
            f"train_dataset: columns {min(texts)} and {min(talks)}: SFTTrainer reads one of the two, for all records "
            "as the first record says, so one record changes all others; remove the column that is not meant"
        )
