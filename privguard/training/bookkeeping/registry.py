# SPDX-License-Identifier: Apache-2.0
"""Which rule serves which module class: the table, and the door through which a rule enters it.

The files of ``privguard.training.bookkeeping.layers`` enter theirs here; so may any other package.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch import Size, nn

from privguard import _check
from privguard.errors import UnsupportedModelError
from privguard.training.bookkeeping.batch import Call, Listen, Rule
from privguard.training.bookkeeping.factors import Factor, Full, Lookup, Outer

RULES: dict[type[nn.Module], Rule] = {}
REWRITTEN: dict[type[nn.Module], Listen] = {}

_Entry = TypeVar("_Entry", bound=Callable[..., Any])


def register_rule(*kinds: type[nn.Module]) -> Callable[[Rule], Rule]:
    """Decorate the rule of one or more module classes: what one use of the module adds to its parameters' gradients.

    Guarantee: the first batch is refused where the rule leaves a trainable parameter out, names one that is not there,
    or gives factors that do not have the parameter's shape. Whether the numbers are right only a comparison can show:
    ``privguard.testing.check_layer_rule``.

    A subclass that keeps its parent's forward keeps its parent's rule; one that writes its own needs its own.

    Args:
        kinds: classes of one input and one output, both with the example in dimension 0.

    Returns:
        The decorator; it gives the rule back unchanged.

    Raises:
        ValueError: not a module class, or one that has a rule already.
    """
    return _register(RULES, kinds)


def register_rewritten(*kinds: type[nn.Module]) -> Callable[[Listen], Listen]:
    """Decorate a forward written again, with taps inside: for layers of several inputs, outputs or steps.

    Args:
        kinds: the module classes whose forward it stands in for.

    Returns:
        The decorator; it gives the function back unchanged.

    Raises:
        ValueError: not a module class, or one that has a rule already.
    """
    return _register(REWRITTEN, kinds)


def complete(rule: Rule) -> Rule:
    """``rule``, refused at the first batch where it leaves out a parameter or gives factors of another shape.

    Args:
        rule: the rule to be watched.

    Returns:
        A rule with the same factors.

    Raises:
        UnsupportedModelError: from the rule that is returned, while the backward pass of the first batch runs.
    """

    def factors(call: Call) -> Iterator[tuple[str, Factor]]:
        named = dict(call.module.named_parameters(recurse=False))
        missing = set(call.wanted)
        for local, factor in rule(call):
            if local not in named or not _fits(factor, call.batch, named[local].shape):
                raise UnsupportedModelError(
                    f"rule of {type(call.module).__name__}: gives {_sizes(factor)} for {local!r} in a batch of "
                    f"{call.batch}; expected factors of {', '.join(sorted(named))} in the parameter's own shape"
                )
            missing.discard(local)
            yield local, factor
        if missing:
            raise UnsupportedModelError(
                f"rule of {type(call.module).__name__}: gives nothing for {', '.join(sorted(missing))}, so these would "
                "train without their gradient; yield one factor for each name in call.wanted"
            )

    return factors


def _register(table: dict[type[nn.Module], _Entry], kinds: tuple[type[nn.Module], ...]) -> Callable[[_Entry], _Entry]:
    def enter(entry: _Entry) -> _Entry:
        _check.require(bool(kinds), "kinds", (), wanted="at least one module class")
        for kind in kinds:
            module = isinstance(kind, type) and issubclass(kind, nn.Module)  # pyright: ignore[reportUnnecessaryIsInstance]
            _check.require(module, "kind", kind, wanted="a subclass of torch.nn.Module")
            taken = kind in RULES or kind in REWRITTEN
            _check.require(not taken, "kind", kind.__name__, wanted="a class without a rule; it has one already")
        table.update(dict.fromkeys(kinds, entry))
        return entry

    return enter


def _fits(factor: Factor, batch: int, shape: Size) -> bool:
    """Whether a factor holds the gradients of ``batch`` examples for a parameter of this shape."""
    if isinstance(factor, Full):
        return factor.values.shape == (batch, *shape)
    if isinstance(factor, Outer):
        rows, cols = factor.rows.shape, factor.cols.shape
        return rows[:2] == cols[:2] and rows[0] == batch and rows[2] * cols[2] == shape.numel() and rows[2] == shape[0]
    if isinstance(factor, Lookup):
        return factor.ids.shape == factor.cols.shape[:2] and factor.cols.shape == (
            batch,
            *factor.ids.shape[1:],
            shape[1],
        )
    return sum(map(len, factor.values)) == batch and all(piece.shape[1:] == shape for piece in factor.values)


def _sizes(factor: Factor) -> str:
    values = {
        name: [tuple(x.shape) for x in value] if isinstance(value, tuple) else tuple(value.shape)
        for name, value in vars(factor).items()
    }
    return f"{type(factor).__name__}({', '.join(f'{name} {size}' for name, size in values.items())})"
