# SPDX-License-Identifier: Apache-2.0
"""Undo what does not change a network: permuted units, positive rescaling, permuted heads, a rotated residual stream.

A thief can reorder and rescale hidden units without changing one answer, and the weight mark is gone until the order is
undone. Alignment is a function of the suspect and the *unmarked* copy alone. Both were fixed before the pulse, so it
cannot know the key, and the null bound of the weight mark holds as it stands. Aligning to the *marked* copy would write
the key into the suspect (measured: an innocent model reaches z ≈ 3.4 on average with 64 inputs per unit); evidence with
any other reference than the committed one is invalid.

Units are matched by the cosine of their incoming weights (Hungarian method), which neither order nor positive scale of
the outgoing side affects; layers are undone front to back, so that incoming weights are comparable.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from privguard import _check

Array: TypeAlias = NDArray[np.float32]
Tensors: TypeAlias = Mapping[str, Array]


@final
@dataclass(frozen=True, kw_only=True)
class Hidden:
    """One hidden layer whose units may be reordered, and rescaled where ``scaled``.

    ``incoming`` name tensors with the unit on the first axis (weights, biases); ``outgoing`` tensors with the unit on
    the second axis. A unit may own several adjacent rows or columns (a head, or a channel's pixels after flattening).
    ``matching`` names the incoming tensors that units are matched by (all, when empty).
    """

    units: int
    incoming: tuple[str, ...]
    outgoing: tuple[str, ...]
    scaled: bool = True
    matching: tuple[str, ...] = ()


def chain(shapes: Mapping[str, Sequence[int]]) -> tuple[Hidden, ...]:
    """The hidden layers of a plain chain of linear or convolutional layers with ReLU between them.

    Takes names and shapes in order, as a ``state_dict`` of ``nn.Sequential`` has them; biases and BatchNorm follow
    their layer.

    Raises:
        ValueError: there are other tensors among them.
    """
    layers: list[Hidden] = []
    names: list[str] = []  # of the present layer: its weight, then what has one value for each of its units
    for name, shape in shapes.items():
        if len(shape) > 1:
            layers += [_hidden(shapes, names, following=name)] if names else []
            names = [name]
        elif len(shape) == 1:
            known = bool(names) and shape[0] == shapes[names[0]][0]
            _check.require(known, "shapes", (name, tuple(shape)), wanted="weights, biases and normalisation in order")
            names.append(name)
    return tuple(layers)


def _hidden(shapes: Mapping[str, Sequence[int]], names: Sequence[str], *, following: str) -> Hidden:
    bias = names[0].removesuffix("weight") + "bias"
    plain = all(name == bias for name in names[1:])  # a normalisation undoes scales itself
    return Hidden(units=int(shapes[names[0]][0]), incoming=tuple(names), outgoing=(following,), scaled=plain)


def align(suspect: Tensors, *, unmarked: Tensors, layers: Iterable[Hidden]) -> dict[str, Array]:
    """The suspect's tensors in the unmarked copy's order and scale; answers are those of the suspect, up to rounding.

    Shapes must be equal. Units that are all zero keep their scale.
    """
    found = {name: np.nan_to_num(np.array(tensor, np.float32)) for name, tensor in suspect.items()}
    for layer in layers:
        order, scale = _match(found, unmarked, layer)
        for name in layer.incoming:
            rows = found[name].reshape(layer.units, -1)[order] / (scale[:, None] if layer.scaled else 1.0)
            found[name] = rows.reshape(found[name].shape).astype(np.float32)
        for name in layer.outgoing:
            tensor = found[name]
            columns = tensor.reshape(tensor.shape[0], layer.units, -1)[:, order]
            if layer.scaled:
                columns = columns * scale[None, :, None]
            found[name] = columns.reshape(tensor.shape).astype(np.float32)
    return found


def rotate(suspect: Tensors, *, unmarked: Tensors, anchor: str, sides: Mapping[str, str]) -> dict[str, Array]:
    """Undo an orthogonal rotation of the residual stream (Procrustes on ``anchor``, the token embedding, (V, d)).

    ``sides`` says on which side of each tensor the stream stands: ``"in"`` for (out, d), ``"out"`` for (d, in),
    ``"rows"`` for embeddings (V, d). A rotation hides in a network with norm gains only once the gains are folded into
    the following weights, so fold them in both copies first.
    """
    left, _, right = np.linalg.svd(suspect[anchor].astype(np.float64).T @ unmarked[anchor].astype(np.float64))
    turn = (left @ right).astype(np.float32)  # suspect @ turn ≈ unmarked
    found = {name: np.array(tensor, np.float32) for name, tensor in suspect.items()}
    for name, side in sides.items():
        _check.require(side in {"in", "out", "rows"}, f"sides[{name!r}]", side, wanted="in, out or rows")
        found[name] = turn.T @ found[name] if side == "out" else found[name] @ turn
    return found


def _match(found: Tensors, unmarked: Tensors, layer: Hidden) -> tuple[NDArray[np.int64], Array]:
    names = layer.matching or layer.incoming
    theirs, ours = _rows(found, names, layer.units), _rows(unmarked, names, layer.units)
    their_size, our_size = _sizes(theirs), _sizes(ours)
    _, order = linear_sum_assignment((ours / our_size) @ (theirs / their_size).T, maximize=True)
    order = np.asarray(order, np.int64)
    # A unit's scale by projection on ours, so that what a thief's training added crosswise does not count; where that
    # is not positive (another model altogether), by size.
    projected = np.sum(theirs[order] * ours, 1) / np.sum(ours * ours, 1).clip(1e-12)
    by_size = (their_size[order] / our_size)[:, 0]
    scale = np.where(projected > 0.1 * by_size, projected, by_size)
    return order, scale.astype(np.float32)


def _rows(tensors: Tensors, names: Iterable[str], units: int) -> NDArray[np.float64]:
    return np.concatenate([tensors[name].reshape(units, -1) for name in names], axis=1).astype(np.float64)


def _sizes(rows: NDArray[Any]) -> NDArray[np.float64]:
    size = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.where(size > 0, size, 1.0)
