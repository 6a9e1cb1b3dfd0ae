# SPDX-License-Identifier: Apache-2.0
"""Modules without a rule: their own forward again, one example at a time, for the parameters they own.

Modules below them keep their own taps. The forward must be repeatable: a module that draws random numbers is refused,
since it would draw others the second time.
"""

import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.utils import _pytree as pytree

from privguard.errors import UnsupportedModelError
from privguard.training.bookkeeping.batch import Call, Heard
from privguard.training.bookkeeping.factors import Factor, Full
from privguard.training.bookkeeping.isolation.layout import SHARED
from privguard.training.bookkeeping.taps import frozen

_DROPOUT = (nn.modules.dropout._DropoutNd, nn.RReLU)  # noqa: SLF001 — torch has no public name for "any dropout"


def check_repeatable(name: str, module: nn.Module) -> None:
    """Refuse dropout inside a module that will be run a second time."""
    names = ", ".join(n for n, parameter in module.named_parameters(recurse=False) if parameter.requires_grad)
    own = f" ({names})" if names else ""
    for inner, child in module.named_modules():
        if isinstance(child, _DROPOUT) and getattr(child, "p", 1) > 0:
            where = f"{name}.{inner}".strip(".")
            raise UnsupportedModelError(
                f"module={name!r} ({type(module).__name__}): has no rule, and running it again would draw another mask "
                f"in {where!r}; set that dropout to 0, freeze what the module itself owns{own}, or train with physical "
                "batches of one (OneByOne)"
            )


def by_repetition(heard: Heard, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run the module, and tap each tensor that it returns."""
    tapped, layout = heard.tapped, heard.tapped.layout
    leaves, spec = pytree.tree_flatten((args, kwargs))
    known = layout.taken(len(leaves))
    for place, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor) and known[place] is None:
            leaves[place] = heard.shared(leaf)
    if any(leaf is None for leaf in leaves) and any(axis is not None and axis > 0 for axis in known):
        raise UnsupportedModelError(
            f"module={tapped.name!r} ({type(tapped.module).__name__}): has no rule, and where the examples are in the "
            "arguments that were None is not known; put the examples first, or train with physical batches of one "
            "(OneByOne)"
        )
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    device = tapped.own()[0].device
    before = _generators(device)
    with frozen(tapped.own()):
        output = tapped.original(*args, **kwargs)
    if before != _generators(device):
        raise UnsupportedModelError(
            f"module={tapped.name!r} ({type(tapped.module).__name__}): has no rule and draws random numbers; train "
            "with physical batches of one (OneByOne)"
        )
    leaves = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    outputs, out_spec = pytree.tree_flatten(output)
    for place, value in enumerate(outputs):
        if isinstance(value, Tensor) and value.is_floating_point():
            axis = layout.given(place) or 0
            every = heard.shared(value) if axis <= 0 else value
            if every.shape != value.shape:  # each example has a row of its own now
                axis = 0
            again = _Again(heard, leaves, spec, place, axis)
            nothing = value.new_empty((0, *value.shape[1:]))  # no view: an activation in place may follow
            outputs[place] = heard.tap(every, kept=nothing, factors=again.factors, axis=axis)
    return pytree.tree_unflatten(outputs, out_spec)


def _generators(device: torch.device) -> list[object]:
    """Where the generators stand that a forward on this device may draw from, numpy's and Python's own among them."""
    numpys = cast("tuple[Any, ...]", np.random.get_state())  # noqa: NPY002 — models draw masks from the global one
    states = [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
    return [*(state.numpy().tobytes() for state in states), numpys[1].tobytes(), numpys[2:], random.getstate()]


class _Again:
    """One output of one forward, ready to be run again for single examples."""

    def __init__(self, heard: Heard, leaves: list[Any], spec: Any, place: int, axis: int) -> None:
        self._tapped, self._leaves, self._spec, self._place, self._axis = heard.tapped, leaves, spec, place, axis
        self._size, tapped = heard.batch.size, heard.tapped
        kind = tapped.own()[0].device.type
        on = torch.is_autocast_enabled(kind)
        self._autocast = torch.autocast(kind, dtype=torch.get_autocast_dtype(kind), enabled=on)
        self._own = {local: p.detach() for local, p in zip(tapped.names, tapped.own(), strict=True)}

    def factors(self, call: Call) -> Iterator[tuple[str, Factor]]:
        """The gradients of the module's own parameters, formed example by example."""
        axes = {i: axis for i, x in enumerate(self._leaves) if (axis := self._axis_of(i, x)) is not None}
        rows = [
            self._leaves[i].movedim(axis, 0).unflatten(0, (self._size, -1)) for i, axis in axes.items()
        ]  # (B, k, …)
        g = call.g.unflatten(0, (self._size, -1))

        def one(mine: list[Tensor], gradient: Tensor) -> dict[str, Tensor]:
            leaves = list(self._leaves)
            for (i, axis), x in zip(axes.items(), mine, strict=True):
                leaves[i] = x.movedim(0, axis)
            return vjp(lambda own: self._run(own, leaves), self._own)[1](gradient)[0]

        with torch.enable_grad():
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "There is a performance drop")  # the way without a rule is slow
                    found = vmap(one)(rows, g)
            except RuntimeError:  # an operation that vmap cannot map: one example after the other
                each = [self._alone(one, [x[i] for x in rows], g[i]) for i in range(self._size)]
                found = {local: torch.stack([e[local] for e in each]) for local in self._own}
        for local, values in found.items():
            yield local, Full(values.detach().float())

    def _alone(self, one: Callable[..., dict[str, Tensor]], mine: list[Tensor], g: Tensor) -> dict[str, Tensor]:
        try:
            return one(mine, g)
        except RuntimeError as error:
            raise UnsupportedModelError(
                f"module={self._tapped.name!r} ({type(self._tapped.module).__name__}): has no rule, and what it gave "
                f"for the batch it does not give for one example alone ({str(error).splitlines()[0]}); freeze what the "
                "module itself owns, or train with physical batches of one (OneByOne)"
            ) from error

    def _run(self, own: dict[str, Tensor], leaves: list[Any]) -> Tensor:
        tapped, desk = self._tapped, self._tapped.desk
        args, kwargs = pytree.tree_unflatten(leaves, self._spec)
        batch, desk.batch = desk.batch, None  # nobody listens this time
        try:
            with self._autocast, frozen(tapped.module.parameters()):  # those below it have their own taps
                output = functional_call(tapped.module, own, args, kwargs, tie_weights=False)
        finally:
            desk.batch = batch
        mine = cast("Tensor", pytree.tree_leaves(output)[self._place])
        return mine.movedim(self._axis, 0) if self._axis > 0 else mine

    def _axis_of(self, place: int, x: Any) -> int | None:
        """The dimension in which a leaf of the arguments holds k ≥ 1 rows for each example, if it has one."""
        if not isinstance(x, Tensor) or x.dim() == 0:
            return None
        known = self._tapped.layout.taken(len(self._leaves))[place]
        axis = 0 if known is None else known
        return axis if axis != SHARED and x.shape[axis] > 0 and x.shape[axis] % self._size == 0 else None
