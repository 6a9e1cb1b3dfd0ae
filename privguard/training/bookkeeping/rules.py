# SPDX-License-Identifier: Apache-2.0
"""Which way serves which module class, and which classes no way can serve."""

import inspect
import pkgutil
from collections.abc import Callable
from importlib import import_module
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.utils.parametrize import is_parametrized

from privguard.errors import UnsupportedModelError
from privguard.training.bookkeeping import layers
from privguard.training.bookkeeping.batch import Heard, Listen, Rule
from privguard.training.bookkeeping.inside import by_operation
from privguard.training.bookkeeping.layers.embedding import Positions, embedding
from privguard.training.bookkeeping.layers.linear import linear
from privguard.training.bookkeeping.layers.normalisation import epsilon_of, rms_norm_of_transformers
from privguard.training.bookkeeping.layers.without_rule import by_repetition, check_repeatable
from privguard.training.bookkeeping.registry import REWRITTEN, RULES, complete
from privguard.training.bookkeeping.shared import own_prompts, relative_bias, shared_method
from privguard.training.bookkeeping.taps import frozen

for _file in pkgutil.iter_modules(layers.__path__, f"{layers.__name__}."):
    import_module(_file.name)  # each enters its own rules, so that a new one touches its own file alone

METHODS: dict[str, Listen] = {
    "compute_bias": relative_bias,
    "compute_position_bias": relative_bias,
    "get_prompt": own_prompts,
}


def listen_to(name: str, module: nn.Module) -> Listen:
    """How to hear what this module does, by its exact class: a subclass may do something else."""
    if is_parametrized(module):
        _check_parametrized(name, module)
    elif (known := METHODS.get(shared_method(module)) or _known(module) or _inherited(module)) is not None:
        return known
    check_repeatable(name, module)
    return by_repetition


def _check_parametrized(name: str, module: nn.Module) -> None:
    """A weight that follows from others alone, as weight normalisation's does, is one more thing to compute again."""
    kept = list(cast("nn.Module", module.parametrizations).buffers())
    if kept or not isinstance(module, nn.Linear | nn.modules.conv._ConvNd):  # noqa: SLF001 — the parent of convolutions
        raise UnsupportedModelError(
            f"module={name!r}: its parametrized weight cannot be computed again; remove the parametrization "
            "(torch.nn.utils.parametrize.remove_parametrizations), or train one by one (OneByOne)"
        )


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
    return by_rule(linear, Heard.shared) if _is_linear_in_other_words(module) else by_operation(module)


def by_rule(rule: Rule, per_example: Callable[[Heard, Tensor], Tensor]) -> Listen:
    """Run the module with its parameters frozen, and tap its one output."""
    whole = complete(rule)

    def listen(heard: Heard, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        axis = heard.tapped.layout.given() or 0
        given: Tensor = args[0] if args else kwargs[next(iter(kwargs))]
        x = per_example(heard, given) if axis <= 0 else given
        if x.shape != given.shape:  # each example has a row of its own now
            axis = 0
        if args:
            args = (x, *args[1:])
        else:
            kwargs = kwargs | {next(iter(kwargs)): x}
        with frozen(heard.tapped.own()):
            output = heard.tapped.original(*args, **kwargs)
        return heard.tap(output, kept=x, factors=whole, axis=axis)

    return listen


def _is_linear_in_other_words(module: nn.Module) -> bool:
    """Falcon's ``x @ weight.T``: a subclass whose forward writes the same product in its own way."""
    own = dict(module.named_parameters())
    if not isinstance(module, nn.Linear) or not {"weight"} <= own.keys() <= {"weight", "bias"}:
        return False
    own = {name: _made_up(*p.shape, like=p) for name, p in own.items()}
    x = _made_up(3, module.in_features, like=module.weight)
    return _does(module, own, x, functional.linear(x, own["weight"], own.get("bias")))


def _is_rms_norm_of_transformers(module: Any) -> bool:
    """LlamaRMSNorm, T5LayerNorm and their kin, recognised by what they do to synthetic rows.

    That is ``weight · x̂``, or ``(1 + weight) · x̂`` in Gemma and its kin. The weight is made up as well: one that is
    cut over ranks cannot be used outside its block's forward.
    """
    epsilon = epsilon_of(module)
    if [n for n, _ in module.named_parameters()] != ["weight"] or epsilon is None:
        return False
    own = module.get_parameter("weight")
    if own.dim() != 1:
        return False
    x, weight = _made_up(3, len(own), like=own), _made_up(len(own), like=own)
    normal = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)
    return any(_does(module, {"weight": weight}, x, normal * (shift + weight)) for shift in (0, 1))


def _made_up(*shape: int, like: Tensor) -> Tensor:
    """Float32 numbers of both signs that repeat nowhere, on the device of ``like``."""
    count = torch.Size(shape).numel()
    return (1 + torch.arange(count, device=like.device)).float().sin().view(shape)


def _does(module: nn.Module, own: dict[str, Tensor], x: Tensor, wanted: Tensor) -> bool:
    """Whether the module is nothing but these parameters and one function, which gives ``wanted`` for ``x``."""
    if len(inspect.signature(module.forward).parameters) != 1 or [*module.children(), *module.buffers()]:
        return False
    try:
        with torch.no_grad():
            given = functional_call(module, own, (x,))
    except Exception:  # whatever it takes, it is not that
        return False
    if not isinstance(given, Tensor) or given.shape != wanted.shape:
        return False
    return torch.allclose(given.float(), wanted.float(), rtol=1e-5, atol=1e-5)
