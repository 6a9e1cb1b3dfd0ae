# SPDX-License-Identifier: Apache-2.0
"""What a subclass of PrivateTrainer, or its user, has put in the place of Trainer's own methods."""

from collections.abc import Callable
from typing import Any, cast

from transformers import Trainer

from privguard.errors import PrivacyError

_HOSTS = frozenset({"privguard", "transformers", "trl", "builtins"})
_SAMPLED = "which records enter a step is the sampler's, which the accountant prices; omit it"
_REPLACED = {
    "training_step": "a private run takes the step itself; override compute_loss, or pass per_example_loss",
    "get_train_dataloader": _SAMPLED,
    "get_batch_samples": _SAMPLED,
    "_get_train_sampler": _SAMPLED,
    "_get_dataloader": "a private run fetches its records itself; override get_eval_dataloader for an evaluation",
    "_get_num_items_in_batch": "an example's loss is divided by its own labels; override compute_loss",
    "_inner_training_loop": "it is what reserves, clips and adds noise; use callbacks",
    "_run_epoch": "it is what reserves, clips and adds noise; use callbacks",
    "_prepare_for_training": "it is what begins the run; use callbacks",
    "_clip_grad_norm": "each example is clipped already, and the noisy sum is never clipped again",
    "_save_checkpoint": "it seals the checkpoint; use a callback's on_save",
    "_load_from_checkpoint": "it opens the sealed checkpoint; omit it",
    "_load_best_model": "it opens the sealed checkpoint; omit it",
    "set_initial_training_values": "how long a run goes on is its ledger's; omit it",
}
"""Methods of Trainer that a private run has to do itself, and what to do in place of overriding them."""

_HOSTED = frozenset({"SFTTrainer", "DPOTrainer", "RewardTrainer", "_BaseTrainer"})
_GROUPS = (
    "a prompt's answers are compared with each other and drawn from weights that its own records moved, so no answer "
    "is a record with a gradient of its own; train on fixed pairs with PrivateDPOTrainer"
)
_UNKNOWN = (
    "no loss of one record is known for it; PrivateSFTTrainer, PrivateDPOTrainer and PrivateRewardTrainer have one"
)
_UNHOSTED = {"GRPOTrainer": _GROUPS, "RLOOTrainer": _GROUPS}


def users_own(trainer: Trainer, method: str) -> Callable[..., Any] | None:
    """The method as somebody outside of the host libraries wrote it, bound; None where nobody did."""
    if method in vars(trainer):
        return cast("Callable[..., Any]", vars(trainer)[method])
    for kind in type(trainer).__mro__:
        if method in vars(kind) and kind.__module__.partition(".")[0] not in _HOSTS:
            return vars(kind)[method].__get__(trainer)
    return None


def refuse_replaced(trainer: Trainer) -> None:
    """Refuse a trainer whose user has replaced what a private run does itself: it would be ignored, or undo the run.

    Raises:
        PrivacyError: the name of the method, and what to use.
    """
    for kind in type(trainer).__mro__:
        if kind.__module__.startswith("trl.") and kind.__name__ not in _HOSTED:
            raise PrivacyError(
                f"{type(trainer).__name__}: made of trl.{kind.__name__}, and {_UNHOSTED.get(kind.__name__, _UNKNOWN)}"
            )
    for method, remedy in _REPLACED.items():
        if users_own(trainer, method) is not None:
            raise PrivacyError(f"{type(trainer).__name__}.{method}: overridden, and {remedy}")


def own_loss_of(trainer: Trainer) -> tuple[str, Callable[..., Any]] | None:
    """The name of the hook through which a user gave Trainer a loss, and the loss; None where Trainer's own counts."""
    if (method := users_own(trainer, "compute_loss")) is not None:
        return "compute_loss", method
    if trainer.compute_loss_func is not None:
        # Trainer's own method around the user's function; that of a subclass in between may add to the loss.
        return "compute_loss_func", lambda *args, **named: Trainer.compute_loss(trainer, *args, **named)
    return None
