# SPDX-License-Identifier: Apache-2.0
"""Every field of ``transformers.TrainingArguments``: honoured, mapped to something else, or refused, with the reason.

A field that is in none of the three tables fails a test, so a new transformers release cannot bring in a setting that
nobody has thought about. The page ``docs/training-arguments.md`` lists the tables; a test holds it to them.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainingArguments

from privguard import _check
from privguard.accounting.calibrate import Budget, least_noise
from privguard.errors import PrivacyError
from privguard.integrations.settled import COMPILED, ENGINE, LOSS_SCALING, SPLIT
from privguard.records import Unit as Kind
from privguard.runs.privacy_unit import Unit
from privguard.training.plan import Plan, steps_in

HONOURED = frozenset(
    """
    output_dir learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps optim optim_args weight_decay
    adam_beta1 adam_beta2 adam_epsilon optim_target_modules label_smoothing_factor bf16 bf16_full_eval
    fp16_full_eval tf32 activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing
    gradient_checkpointing_kwargs use_cache logging_strategy logging_steps logging_first_step log_on_each_node
    log_level log_level_replica disable_tqdm report_to run_name project trackio_space_id trackio_bucket_id
    trackio_static_space_id eval_strategy eval_steps eval_delay per_device_eval_batch_size prediction_loss_only
    eval_on_start eval_do_concat_batches eval_use_gather_object eval_accumulation_steps include_for_metrics
    batch_eval_metrics save_strategy save_steps save_total_limit load_best_model_at_end metric_for_best_model
    greater_is_better restore_callback_states_from_checkpoint full_determinism use_cpu dataloader_num_workers
    dataloader_pin_memory dataloader_prefetch_factor dataloader_multiprocessing_context remove_unused_columns
    label_names ddp_backend ddp_timeout do_train do_eval do_predict resume_from_checkpoint local_rank
    """.split()  # noqa: SIM905 — one name in a line of its own would take ninety lines
)
"""Fields that mean what they mean in ``Trainer``."""

MAPPED = {
    "per_device_train_batch_size": "the most examples that go forward at once on a device; times accumulation and "
    "ranks it is the expected batch of the plan",
    "gradient_accumulation_steps": "enters the expected batch; how often a step really accumulates depends on its draw",
    "num_train_epochs": "with a budget it sets the steps; with a plan it has to agree with it, where it was given",
    "max_steps": "with a budget it sets the steps; with a plan the run may end earlier, never later",
    "max_grad_norm": "with a budget it is the clipping norm of each example; with a plan the plan's counts. The sum is "
    "never clipped a second time",
    "seed": "initial weights, dropout and augmentation; the sampler and the noise never see it",
    "data_seed": "no effect: the order of the data is the sampler's, keyed from OS entropy",
    "dataloader_drop_last": "no effect: a Poisson sample has no last batch to drop",
    "dataloader_persistent_workers": "no effect: the workers live as long as the run",
    "dataloader_in_order": "no effect: batches are always used in the order they were drawn",
    "length_column_name": "no effect: grouping by length is refused",
    "ignore_data_skip": "no effect: nothing is skipped, a step's sample belongs to its place in the ledger",
    "average_tokens_across_devices": "no effect: the loss is a mean over each example's own tokens",
    "logging_nan_inf_filter": "no effect: the un-noised loss is not logged",
    "torch_compile_backend": "no effect without torch_compile",
    "torch_compile_mode": "no effect without torch_compile",
    "liger_kernel_config": "no effect without use_liger_kernel",
    "hub_token": "no effect without push_to_hub",
    "hub_private_repo": "no effect without push_to_hub",
    "hub_model_id": "no effect without push_to_hub",
    "hub_strategy": "no effect without push_to_hub",
    "hub_always_push": "no effect without push_to_hub",
    "hub_revision": "no effect without push_to_hub",
    "fsdp_config": "no effect without fsdp",
    "ddp_find_unused_parameters": "no effect: clipped sums are added up once per step, without torch's reducer",
    "ddp_bucket_cap_mb": "no effect: clipped sums travel in flat buckets of 64 MiB",
    "ddp_broadcast_buffers": "no effect: a private model has no buffers that depend on data",
    "ddp_static_graph": "no effect: there is no reducer",
}
"""Fields that mean something else, or nothing, in a private run."""

Refusal = tuple[Callable[[Any], bool], str]


def _on(value: Any) -> bool:
    return bool(value)


REFUSED: dict[str, Refusal] = {
    "fp16": (_on, f"{LOSS_SCALING}=True"),
    "torch_compile": (
        _on,
        COMPILED,
    ),
    "use_liger_kernel": (_on, "fused losses are means over the batch's tokens, which couple the examples"),
    "neftune_noise_alpha": (
        lambda value: value is not None,
        "its noise is scaled by the padded length, which the other examples of the batch decide",
    ),
    "torch_empty_cache_steps": (lambda value: value is not None, "it is honoured by a step that is not used here"),
    "auto_find_batch_size": (_on, "whether a batch fits depends on the data, and each try would draw and spend again"),
    "include_num_input_tokens_seen": (
        lambda value: str(value) not in {"no", "False"},
        "the number of tokens is an un-noised sum over private examples",
    ),
    "save_only_model": (_on, "a checkpoint without its generators and ledger head cannot be resumed exactly"),
    "save_on_each_node": (_on, "the leading rank alone holds the ledger, and seals for all"),
    "enable_jit_checkpoint": (_on, "SIGTERM and Ctrl-C end a private run cleanly by themselves, with a checkpoint"),
    "push_to_hub": (
        _on,
        "checkpoints would leave the machine in clear; publish with trainer.save_model when it is done",
    ),
    "train_sampling_strategy": (
        lambda value: str(getattr(value, "value", value)) != "random",
        "grouping by length or keeping an order is not the Poisson sampling that the accountant prices",
    ),
    "accelerator_config": (
        lambda value: bool(getattr(value, "gradient_accumulation_kwargs", None)),
        "accumulation is the sampler's; leave gradient_accumulation_kwargs away",
    ),
    "parallelism_config": (lambda value: value is not None, SPLIT),
    "fsdp": (_on, "a model that is cut over ranks trains with PrivateAccelerator; here use one full copy on each rank"),
    "deepspeed": (lambda value: value is not None, ENGINE),
    "debug": (_on, "underflow_overflow prints activations of private examples"),
    "skip_memory_metrics": (lambda value: not value, "peak memory tells the size of the largest batch"),
}
"""Fields that are refused when they are set to a value for which the first item is true, and why."""

_UNFIT_OPTIMIZERS = (
    "lomo",
    "adalomo",
    "galore_adamw_layerwise",
    "galore_adafactor_layerwise",
    "apollo_adamw_layerwise",
)
_DEFAULT_EPOCHS = 3.0


def refuse(args: TrainingArguments) -> None:
    """Raise for the first setting that a private run cannot have.

    Raises:
        PrivacyError: it names the setting, its value and the reason.
    """
    refuse_fields(args, REFUSED)
    optimizer = str(getattr(args.optim, "value", args.optim))
    if optimizer in _UNFIT_OPTIMIZERS:
        raise PrivacyError(
            f"optim={optimizer!r}: moves the weights during the backward pass, before any noise is added"
        )
    if args.n_gpu > 1:
        raise PrivacyError(
            f"n_gpu={args.n_gpu}: DataParallel splits the batch behind the sampler's back; start one process per GPU "
            "with torchrun or accelerate launch"
        )


def refuse_fields(args: TrainingArguments, refused: Mapping[str, Refusal]) -> None:
    """Raise PrivacyError for the first field of ``refused`` whose value in ``args`` is a bad one."""
    for name, (bad, reason) in refused.items():
        value = getattr(args, name)
        if bad(value):
            raise PrivacyError(f"{name}={value!r}: {reason}")


def expected_batch(args: TrainingArguments) -> int:
    """Examples expected in a step: device batch × accumulation × ranks."""
    return args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size


def agree(args: TrainingArguments, plan: Plan) -> None:
    """Raise where arguments and plan contradict each other.

    Raises:
        ValueError: it names both values and what to write.
    """
    batch = expected_batch(args)
    if batch != plan.expected_batch_size:
        raise ValueError(
            f"per_device_train_batch_size × gradient_accumulation_steps × ranks = {args.per_device_train_batch_size} × "
            f"{args.gradient_accumulation_steps} × {args.world_size} = {batch}: expected the plan's batch of "
            f"{plan.expected_batch_size:g}; change one of the three"
        )
    if args.max_steps > plan.steps:
        raise ValueError(f"max_steps={args.max_steps}: expected at most the plan's {plan.steps}; plan for more steps")
    epochs = plan.steps * plan.share
    given = args.max_steps <= 0 and args.num_train_epochs != _DEFAULT_EPOCHS
    if given and abs(args.num_train_epochs - epochs) > plan.share:
        raise ValueError(
            f"num_train_epochs={args.num_train_epochs}: expected {epochs:g}, the plan's {plan.steps} steps at rate "
            f"{plan.share:g}; omit it, or set max_steps to end earlier"
        )


def private(args: TrainingArguments, plan: Plan) -> TrainingArguments:
    """A copy of ``args`` with which ``Trainer``'s own loop does one thing per step: hand the step to us."""
    ours = copy.copy(args)
    ours.gradient_accumulation_steps = 1  # a step is one item of the loader, however many batches that takes
    ours.average_tokens_across_devices = False  # each example's loss is its own
    ours.max_grad_norm = 0.0  # the clipping of the sum is off, that of each example is the plan's
    if args.max_steps <= 0:
        ours.max_steps = plan.steps
    return ours


def plan_for(args: TrainingArguments, *, budget: Budget | None, examples: int | None, unit: Unit) -> Plan:
    """The plan with the least noise that trains as ``args`` say and spends at most ``budget``.

    Raises:
        ValueError: no budget, or not exactly one of the public numbers of examples and users.
        BudgetExceededError: no amount of noise meets the budget.
    """
    by_user = unit.kind is Kind.USER
    name, size = ("users.count", unit.count) if by_user else ("examples", examples)
    if budget is None or size is None:
        whose = "users" if by_user else "examples"
        raise ValueError(
            f"plan=None: expected a plan, or a budget with {name}, the public number of {whose} in the data set"
        )
    batch = expected_batch(args)
    _check.count(name, size)
    _check.require(batch <= size, "batch", batch, wanted=f"at most {name}={size}")
    rate = batch / size
    steps = args.max_steps if args.max_steps > 0 else steps_in(args.num_train_epochs, sample_rate=rate)
    return Plan(
        sample_rate=rate,
        noise_multiplier=least_noise(budget, sample_rate=rate, steps=steps),
        max_grad_norm=_check.positive(
            "max_grad_norm", args.max_grad_norm, remedy="it is the clipping norm of each unit, often 0.1 to 1"
        ),
        steps=steps,
        delta=budget.delta,
        expected_batch_size=batch,
        epsilon=budget.epsilon,
        examples=size,
        relation=budget.relation,
        unit=unit.kind,
    )
