"""Which way serves which module class, and which classes no way can serve."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrize import ParametrizationList
from transformers.pytorch_utils import Conv1D

from privguard.errors import UnsupportedModelError
from privguard.training.bookkeeping.attention import attention
from privguard.training.bookkeeping.batch import Heard, Listen, Rule
from privguard.training.bookkeeping.convolution import convolution
from privguard.training.bookkeeping.embedding import Positions, embedding, embedding_bag
from privguard.training.bookkeeping.fallback import by_repetition, check_repeatable
from privguard.training.bookkeeping.inside import by_operation
from privguard.training.bookkeeping.linear import conv1d_of_transformers, linear
from privguard.training.bookkeeping.normalisation import (
    group_norm,
    instance_norm,
    layer_norm,
    rms_norm,
    rms_norm_of_transformers,
)
from privguard.training.bookkeeping.recurrent import recurrent
from privguard.training.bookkeeping.shared import own_prompts, relative_bias, shared_method
from privguard.training.bookkeeping.taps import frozen

RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: linear,
    Conv1D: conv1d_of_transformers,
    nn.LayerNorm: layer_norm,
    nn.RMSNorm: rms_norm,
    nn.GroupNorm: group_norm,
    nn.InstanceNorm1d: instance_norm,
    nn.InstanceNorm2d: instance_norm,
    nn.InstanceNorm3d: instance_norm,
    nn.Conv1d: convolution,
    nn.Conv2d: convolution,
    nn.Conv3d: convolution,
}
REWRITTEN: dict[type[nn.Module], Listen] = {
    nn.EmbeddingBag: embedding_bag,
    nn.MultiheadAttention: attention,
    nn.RNN: recurrent,
    nn.LSTM: recurrent,
    nn.GRU: recurrent,
}
METHODS: dict[str, Listen] = {"compute_bias": relative_bias, "get_prompt": own_prompts}


def listen_to(name: str, module: nn.Module) -> Listen:
    """How to hear what this module does, by its exact class: a subclass may do something else."""
    if (known := METHODS.get(shared_method(module)) or _known(module) or _inherited(module)) is not None:
        return known
    if isinstance(module, ParametrizationList):
        raise UnsupportedModelError(
            f"module={name!r}: a parametrized weight is computed outside its layer's forward; remove the "
            "parametrization (torch.nn.utils.parametrize.remove_parametrizations), or train one by one (OneByOne)"
        )
    check_repeatable(name, module)
    return by_repetition


def _known(module: nn.Module) -> Listen | None:
    kind = type(module)
    if kind is nn.Embedding:
        return by_rule(embedding, Positions())
    if kind in RULES:
        return by_rule(RULES[kind], Heard.shared)
    if _is_rms_norm_of_transformers(module):
        return by_rule(rms_norm_of_transformers, Heard.shared)
    return REWRITTEN.get(kind)


def _inherited(module: nn.Module) -> Listen | None:
    """The rule of a parent class whose forward this class keeps, or that of the one operation it writes around."""
    for parent, rule in RULES.items():
        if isinstance(module, parent) and type(module).forward is parent.forward:
            return by_rule(rule, Heard.shared)
    return by_operation(module)


def by_rule(rule: Rule, per_example: Callable[[Heard, Tensor], Tensor]) -> Listen:
    """Run the module with its parameters frozen, and tap its one output."""

    def listen(heard: Heard, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            x = per_example(heard, args[0])
            args = (x, *args[1:])
        else:
            first = next(iter(kwargs))
            x = per_example(heard, kwargs[first])
            kwargs = kwargs | {first: x}
        with frozen(heard.tapped.own()):
            output = heard.tapped.original(*args, **kwargs)
        return heard.tap(output, kept=x, factors=rule)

    return listen


def _is_rms_norm_of_transformers(module: Any) -> bool:
    """LlamaRMSNorm, T5LayerNorm and their kin, recognised by what they do to a made-up row: ``weight · x̂``.

    The weight is made up as well: one that is cut over ranks cannot be used outside its block's forward.
    """
    if [n for n, _ in module.named_parameters()] != ["weight"] or not hasattr(module, "variance_epsilon"):
        return False
    own = module.get_parameter("weight")
    if own.dim() != 1 or len(inspect.signature(module.forward).parameters) != 1:
        return False
    x = torch.linspace(-1, 2, len(own), device=own.device)[None]
    weight = torch.linspace(0.5, 3, len(own), device=own.device)
    with torch.no_grad():
        given = functional_call(module, {"weight": weight}, (x,))
        wanted = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + module.variance_epsilon) * weight
    return given.shape == wanted.shape and torch.allclose(given.float(), wanted.float(), rtol=1e-5, atol=1e-6)
