# SPDX-License-Identifier: Apache-2.0
"""Subclasses of ``nn.Linear`` and ``nn.Embedding`` that write their own forward around the one operation.

Scaled and shifted embeddings (BART, OPT, Gemma) are such classes. Listening to the operation instead of the module
keeps the rule, whatever is done before and after it. Where the forward does anything else with the parameters, the rule
would miss it, and the whole forward is repeated instead.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from privguard.training.bookkeeping.batch import Heard, Listen
from privguard.training.bookkeeping.layers.embedding import Positions, embedding
from privguard.training.bookkeeping.layers.linear import linear
from privguard.training.bookkeeping.layers.without_rule import by_repetition, check_repeatable
from privguard.training.bookkeeping.taps import frozen


def by_operation(module: nn.Module) -> Listen | None:
    """How to listen to this module's own use of its weight, or None if it is no linear layer and no table."""
    if isinstance(module, nn.Linear):
        operation, rule, per_example = functional.linear, linear, Heard.shared
    elif isinstance(module, nn.Embedding):
        operation, rule, per_example = functional.embedding, embedding, Positions()
    else:
        return None
    elsewhere = False

    def listen(heard: Heard, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nonlocal elsewhere

        def tapped(x: Any, *others: Any, **named: Any) -> Any:
            x = per_example(heard, x)
            return heard.tap(cast("Any", operation)(x, *others, **named), kept=x, factors=rule)

        if not elsewhere:
            with frozen(heard.tapped.own()), _OnlyUse(operation, heard, tapped) as use:
                output = heard.tapped.original(*args, **kwargs)
            if use.found:
                return output
            check_repeatable(heard.tapped.name, heard.tapped.module)
            elsewhere = True
        return by_repetition(heard, args, kwargs)

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


class _OnlyUse(TorchFunctionMode):
    """Inside, ``operation`` on the module's weight is replaced; ``found`` says whether nothing else used what it owns.

    ``weight[places]`` of a table is the same operation in other words: Whisper looks its positions up like that.
    """

    def __init__(self, operation: Callable[..., Any], heard: Heard, replaced: Callable[..., Any]) -> None:
        super().__init__()
        self._operation, self._heard, self._replaced = operation, heard, replaced
        self._module, self._own = cast("Any", heard.tapped.module), heard.tapped.own()
        self._uses, self._astray = 0, False

    @property
    def found(self) -> bool:
        """Whether every use of every parameter was the operation."""
        return self._uses > 0 and not self._astray

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        own = sum(any(x is p for x in (*args, *kwargs.values())) for p in self._own)
        if func is self._operation and len(args) > 1 and args[1] is self._module.weight:
            self._uses, self._astray = self._uses + 1, self._astray or own < len(self._own)
            return self._replaced(*args, **kwargs)
        if func is Tensor.__getitem__ and args[0] is self._module.weight and self._looks_up(args[1]):
            self._uses += 1
            return self._replaced(self._ids(args[1]), args[0])
        output = func(*args, **kwargs)
        self._astray = self._astray or (own > 0 and isinstance(output, Tensor))
        return output

    def _looks_up(self, places: Any) -> bool:
        if self._operation is not functional.embedding or self._module.padding_idx is not None:
            return False
        return isinstance(places, slice) or (isinstance(places, Tensor) and places.dtype in {torch.int32, torch.int64})

    def _ids(self, places: Any) -> Tensor:
        """The rows as ids; a slice is of positions, which all examples share."""
        if not isinstance(places, slice):
            return places
        ids, rows = (
            torch.arange(self._module.num_embeddings, device=self._module.weight.device)[places],
            self._heard.batch.rows,
        )
        return ids.expand(rows, -1) if rows > 1 else ids[None]
