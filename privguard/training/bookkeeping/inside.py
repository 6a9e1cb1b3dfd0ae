"""Subclasses of ``nn.Linear`` and ``nn.Embedding`` that write their own forward around the one operation.

Scaled and shifted embeddings (BART, OPT, Gemma) are such classes. Listening to the operation instead of the module
keeps the rule, whatever is done before and after it.
"""

from collections.abc import Callable
from typing import Any, cast

from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from privguard.training.bookkeeping.batch import Heard, Listen
from privguard.training.bookkeeping.embedding import Positions, embedding
from privguard.training.bookkeeping.linear import linear
from privguard.training.bookkeeping.taps import frozen


def by_operation(module: nn.Module) -> Listen | None:
    """How to listen to this module's own use of its weight, or None if it is no linear layer and no table."""
    if isinstance(module, nn.Linear):
        operation, rule, per_example = functional.linear, linear, Heard.shared
    elif isinstance(module, nn.Embedding):
        operation, rule, per_example = functional.embedding, embedding, Positions()
    else:
        return None

    def listen(heard: Heard, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        def tapped(x: Any, *others: Any, **named: Any) -> Any:
            x = per_example(heard, x)
            return heard.tap(cast("Any", operation)(x, *others, **named), kept=x, factors=rule)

        with frozen(heard.tapped.own()), Instead(operation, heard.tapped.module, tapped):
            return heard.tapped.original(*args, **kwargs)

    return listen


class Instead(TorchFunctionMode):
    """Inside, ``operation`` on the module's weight is replaced; every other call goes through."""

    def __init__(self, operation: Callable[..., Any], module: nn.Module, tapped: Callable[..., Any]) -> None:
        super().__init__()
        self._operation, self._module, self._tapped = operation, module, tapped

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is self._operation and len(args) > 1 and args[1] is self._module.weight:
            return self._tapped(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))
