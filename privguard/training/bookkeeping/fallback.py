"""Modules without a rule: their own forward again, one example at a time, for the parameters they own.

Modules below them keep their own taps. The forward must be repeatable: a module that draws random numbers is refused,
since it would draw others the second time.
"""

import warnings
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.utils import _pytree as pytree

from privguard.errors import UnsupportedModelError
from privguard.training.bookkeeping.batch import Call, Heard, Tapped
from privguard.training.bookkeeping.factors import Factor, Full
from privguard.training.bookkeeping.taps import frozen

_DROPOUT = (nn.modules.dropout._DropoutNd, nn.RReLU)  # noqa: SLF001 — torch has no public name for "any dropout"


def check_repeatable(name: str, module: nn.Module) -> None:
    """Refuse dropout inside a module that will be run a second time."""
    for inner, child in module.named_modules():
        if isinstance(child, _DROPOUT) and getattr(child, "p", 1) > 0:
            where = f"{name}.{inner}".strip(".")
            raise UnsupportedModelError(
                f"module={name!r} ({type(module).__name__}): has no rule, and running it again would draw another mask "
                f"in {where!r}; set that dropout to 0, or train with physical batches of one (OneByOne)"
            )


def by_repetition(heard: Heard, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run the module, and tap each tensor that it returns."""
    tapped, size = heard.tapped, heard.batch.size
    leaves, spec = pytree.tree_flatten((args, kwargs))
    leaves = [heard.shared(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    device = tapped.own()[0].device
    before = _generators(device)
    with frozen(tapped.own()):
        output = tapped.original(*args, **kwargs)
    if not all(map(torch.equal, before, _generators(device))):
        raise UnsupportedModelError(
            f"module={tapped.name!r} ({type(tapped.module).__name__}): has no rule and draws random numbers; train "
            "with physical batches of one (OneByOne)"
        )
    leaves = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    outputs, out_spec = pytree.tree_flatten(output)
    for place, value in enumerate(outputs):
        if isinstance(value, Tensor) and value.is_floating_point():
            again = _Again(tapped, leaves, spec, place, size)
            outputs[place] = heard.tap(heard.shared(value), kept=value[:0], factors=again.factors)
    return pytree.tree_unflatten(outputs, out_spec)


def _generators(device: torch.device) -> list[Tensor]:
    """Where the generators stand that a forward on this device may draw from; both states lie on the host."""
    host = torch.get_rng_state()
    return [host, torch.cuda.get_rng_state(device)] if device.type == "cuda" else [host]


class _Again:
    """One output of one forward, ready to be run again for single examples."""

    def __init__(self, tapped: Tapped, leaves: list[Any], spec: Any, place: int, size: int) -> None:
        self._tapped, self._leaves, self._spec, self._place, self._size = tapped, leaves, spec, place, size
        kind = tapped.own()[0].device.type
        on = torch.is_autocast_enabled(kind)
        self._autocast = torch.autocast(kind, dtype=torch.get_autocast_dtype(kind), enabled=on)
        self._own = {local: p.detach() for local, p in zip(tapped.names, tapped.own(), strict=True)}

    def factors(self, call: Call) -> Iterator[tuple[str, Factor]]:
        """The gradients of the module's own parameters, formed example by example."""
        per_row = [i for i, x in enumerate(self._leaves) if _has_rows(x, self._size)]
        rows = [self._leaves[i].unflatten(0, (self._size, -1)) for i in per_row]  # (B, k, …)
        g = call.g.unflatten(0, (self._size, -1))

        def one(mine: list[Tensor], gradient: Tensor) -> dict[str, Tensor]:
            leaves = list(self._leaves)
            for i, x in zip(per_row, mine, strict=True):
                leaves[i] = x
            return vjp(lambda own: self._run(own, leaves), self._own)[1](gradient)[0]

        with torch.enable_grad():
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "There is a performance drop")  # the way without a rule is slow
                    found = vmap(one)(rows, g)
            except RuntimeError:  # an operation that vmap cannot map: one example after the other
                each = [one([x[i] for x in rows], g[i]) for i in range(self._size)]
                found = {local: torch.stack([e[local] for e in each]) for local in self._own}
        for local, values in found.items():
            yield local, Full(values.detach().float())

    def _run(self, own: dict[str, Tensor], leaves: list[Any]) -> Tensor:
        tapped, desk = self._tapped, self._tapped.desk
        args, kwargs = pytree.tree_unflatten(leaves, self._spec)
        batch, desk.batch = desk.batch, None  # nobody listens this time
        try:
            with self._autocast:
                output = functional_call(tapped.module, own, args, kwargs, tie_weights=False)
        finally:
            desk.batch = batch
        return cast("Tensor", pytree.tree_leaves(output)[self._place])


def _has_rows(x: Any, size: int) -> bool:
    """Whether a leaf of the arguments holds k ≥ 1 rows for each example."""
    return isinstance(x, Tensor) and x.dim() > 0 and len(x) > 0 and len(x) % size == 0
