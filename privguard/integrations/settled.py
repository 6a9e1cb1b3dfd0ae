# SPDX-License-Identifier: Apache-2.0
"""Settings that come from around a script: what ``accelerate launch`` puts into the environment, and how it settles.

They never pass through a constructor's arguments, so they are read twice: from the environment before anything starts,
and from accelerate's own state once it has settled them.
"""

import os

from accelerate import Accelerator
from accelerate.utils import DistributedType, DynamoBackend
from torch import nn

from privguard.errors import PrivacyError

LOSS_SCALING = "loss scaling skips steps on overflow, which depends on the data; use bf16"
COMPILED = "each trained layer breaks the graph, so it gains nothing; your own `model.compile()` is exact"
ENGINE = "its engine owns the backward pass and the gradients"
CUT = (
    "on a CPU accelerate ignores it without a word; cut the model with torch's fully_shard, make the optimizer, and "
    "train with PrivateAccelerator"
)
SPLIT = "tensor, context and sequence parallelism split examples; use one full copy of the model on each rank, or FSDP2"

_ENGINES = {
    "ACCELERATE_USE_DEEPSPEED": f"DeepSpeed: {ENGINE}",
    "ACCELERATE_USE_MEGATRON_LM": f"Megatron-LM: {ENGINE}",
}
_PARTS = ("TP", "CP", "SP")
_ON = {"1", "true", "yes"}
_OFF = {"", "0", "1", "false", "no"}


def refuse_environment() -> None:
    """Refuse what a launcher asks for and a private run cannot have, before any process group or model is touched.

    Raises:
        PrivacyError: the variable, its value and the reason.
    """
    for name, reason in _ENGINES.items():
        if os.environ.get(name, "false").lower() in _ON:
            raise PrivacyError(f"{name}={os.environ[name]}: {reason}")
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in _ON:
        raise PrivacyError(f"ACCELERATE_USE_FSDP={os.environ['ACCELERATE_USE_FSDP']}: FSDP: {CUT}")
    for part in _PARTS:
        name = f"PARALLELISM_CONFIG_{part}_SIZE"
        if os.environ.get(name, "").lower() not in _OFF:
            raise PrivacyError(f"{name}={os.environ[name]}: {SPLIT}")


def refuse_state(accelerator: Accelerator, model: object = None) -> None:
    """Refuse what accelerate has settled on, wherever it came from.

    Raises:
        PrivacyError: the setting, its value and the reason.
    """
    state = accelerator.state
    if accelerator.mixed_precision in {"fp16", "fp8"}:
        raise PrivacyError(f"mixed_precision={accelerator.mixed_precision!r}: {LOSS_SCALING}")
    backend = getattr(getattr(state, "dynamo_plugin", None), "backend", DynamoBackend.NO)
    if backend != DynamoBackend.NO:
        raise PrivacyError(f"dynamo_backend={backend.value}: {COMPILED}")
    if state.distributed_type == DistributedType.FSDP or getattr(state, "fsdp_plugin", None) is not None:
        raise PrivacyError(f"FSDP: {CUT}")
    if state.distributed_type in {DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM}:
        raise PrivacyError(f"distributed_type={state.distributed_type.value}: {ENGINE}")
    if getattr(state, "parallelism_config", None) is not None:
        raise PrivacyError(f"parallelism_config={state.parallelism_config}: {SPLIT}")
    if isinstance(model, nn.Module) and (getattr(model, "tp_size", None) or 1) > 1:
        raise PrivacyError(f"model.tp_size={model.tp_size}: loaded with a tensor-parallel plan; {SPLIT}")
