# SPDX-License-Identifier: Apache-2.0
"""The order of a plain chain's layers: from the network where it is at hand, else from names and shapes in a file.

A safetensors file gives its tensors back by dtype and name, so that ``0, 10, 2, 4`` is an order of files and of no
network. A marked model that was taught in a wrong order is ruined, so an order that is not certain is refused.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

Shapes = Mapping[str, Sequence[int]]
_PLAIN = re.compile(r"\d+")
_MOST_TRIES = 20_000  # of the search for an order


def order(shapes: Shapes) -> tuple[str, ...]:
    """The names of the weights (tensors of two or more axes) front to back.

    Names that differ in one number only, as those of ``nn.Sequential``, count in that number's order; others have to
    fit together in one way.

    Raises:
        ValueError: no order fits, or several do and the names do not decide.
    """
    weights = sorted((name for name, shape in shapes.items() if len(shape) > 1), key=_natural)
    if not weights:
        raise ValueError("weights: expected at least one matrix")
    numbered = len({_PLAIN.sub("#", name) for name in weights}) == 1 and len({_natural(name) for name in weights}) > 1
    if numbered and all(_fits(shapes[a], shapes[b]) for a, b in itertools.pairwise(weights)):
        return tuple(weights)
    tries = itertools.count()
    paths = [path for path, _ in zip(_paths(weights, shapes, tries), range(2), strict=False)]
    gave_up = next(tries) > _MOST_TRIES
    if len(paths) == 1 and not gave_up:
        return tuple(paths[0])
    why = "they fit together in several orders" if paths or gave_up else "no order of them makes a chain"
    raise ValueError(f"weights: {len(weights)} matrices, {weights[0]} first: {why}; name the network with --network")


def order_of(model: "nn.Module", example: "torch.Tensor") -> tuple[str, ...]:
    """The names of a network's weights in the order in which ``example``, a batch of one, goes through them."""
    import torch

    seen: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda _, __, name=name: seen.append(name))
        for name, module in model.named_modules()
        if isinstance(weight := getattr(module, "weight", None), torch.Tensor) and weight.dim() > 1
    ]
    training = model.training
    try:
        model.eval()
        with torch.no_grad():
            model(example)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return tuple(f"{name}.weight" if name else "weight" for name in dict.fromkeys(seen))


def _natural(name: str) -> tuple[int | str, ...]:
    return tuple(int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name))


def _fits(before: Sequence[int], after: Sequence[int]) -> bool:
    """Whether a layer's outputs can be the next one's inputs: channels, or channels times pixels once flattened."""
    if len(after) > 2:  # noqa: PLR2004 — a convolution has kernel axes
        return len(before) > 2 and before[0] == after[1]  # noqa: PLR2004
    return before[0] == after[1] or (len(before) > 2 and after[1] % before[0] == 0)  # noqa: PLR2004


def _paths(
    weights: Sequence[str], shapes: Shapes, tries: Iterator[int], path: tuple[str, ...] = ()
) -> Iterator[tuple[str, ...]]:
    """Every order in which each layer fits the next, one after another, as far as so many tries find them."""
    if next(tries) > _MOST_TRIES:  # many equal shapes, as in a transformer: no chain, and more orders than atoms
        return
    if len(path) == len(weights):
        yield path
        return
    for name in weights:
        if name not in path and (not path or _fits(shapes[path[-1]], shapes[name])):
            yield from _paths(weights, shapes, tries, (*path, name))
