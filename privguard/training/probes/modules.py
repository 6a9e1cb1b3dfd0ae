# SPDX-License-Identifier: Apache-2.0
"""What cannot be private, whatever the rule: modules that mix examples. Found by class and options, never by data."""

import torch
from torch import nn

from privguard.errors import UnsupportedModelError


def refuse_mixing(model: nn.Module) -> None:
    """Raise for the first module through which one example can reach another's gradient, by name.

    Raises:
        UnsupportedModelError: with the module's name, its class, the reason and what to use instead.
    """
    for name, module in model.named_modules():
        if (reason := _reason(module) or _router_reason(module)) is not None:
            raise UnsupportedModelError(f"module={name!r} ({type(module).__name__}): {reason}")
    _refuse_whole(model)


def _reason(module: nn.Module) -> str | None:
    if isinstance(module, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001 — the one parent of every batch norm
        return "normalises over the batch, so examples see each other; use GroupNorm (opacus' ModuleValidator.fix does)"
    if isinstance(module, nn.modules.instancenorm._InstanceNorm) and module.track_running_stats:  # noqa: SLF001
        return "keeps running statistics of the data without noise; pass track_running_stats=False"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return _table_reason(module)
    if isinstance(module, nn.DataParallel):
        return "splits the batch among devices behind the sampler's back; use one process per device"
    return None


def _table_reason(module: nn.Embedding | nn.EmbeddingBag) -> str | None:
    if module.max_norm is not None:
        return "max_norm rescales the rows that a batch uses, which leaks membership; pass max_norm=None"
    if module.scale_grad_by_freq:
        return "scale_grad_by_freq divides by counts over the batch; pass scale_grad_by_freq=False"
    return None


def _router_reason(module: nn.Module) -> str | None:
    """Of a mixture of experts, at the module that holds the configuration."""
    if getattr(getattr(module, "config", None), "output_router_logits", False) is True:
        return "config.output_router_logits adds a load-balancing loss over the whole batch; set it to False"
    return None


def _refuse_whole(model: nn.Module) -> None:
    if isinstance(model, torch._dynamo.OptimizedModule):  # noqa: SLF001 — what torch.compile returns
        raise UnsupportedModelError(
            f"model={type(model).__name__}: compiled before it was tapped; attach to the model itself"
        )
    if len(devices := {str(p.device) for p in model.parameters() if p.requires_grad}) > 1:
        raise UnsupportedModelError(
            f"devices={sorted(devices)}: an example's norm is taken over all parameters at once, where they lie "
            "together; move the model to one device, or give each process one"
        )
    if bad := [n for n, p in model.named_parameters() if p.requires_grad and not p.is_floating_point()]:
        raise UnsupportedModelError(f"parameters={bad}: not real floating-point numbers; freeze them")
