# SPDX-License-Identifier: Apache-2.0
"""What a thief can do to a transformer's tensors for nothing: no data, no training, and the answers stay.

Each removal takes the tensors, what they are made of and a source of chance, and returns other tensors. Those of
networks with other sizes need a configuration of their own to run; ``lay-2`` reads them all.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from privguard import _check
from privguard.watermark.model.lay.structure import TOKENS, Part, Structure

State: TypeAlias = dict[str, NDArray[Any]]
Removal: TypeAlias = Callable[[State, Structure, np.random.Generator], State]
_LAYER = re.compile(r"\b(layers|h)\.(\d+)\.")


def then(*removals: Removal) -> Removal:
    """Several removals, one after another."""

    def combined(state: State, structure: Structure, rng: np.random.Generator) -> State:
        for removal in removals:
            state = removal(state, structure, rng)
        return state

    return combined


def rename(state: State, _: Structure, rng: np.random.Generator) -> State:
    """Names that say nothing, in another order."""
    names = list(state)
    return {f"tensor.{place}": state[names[old]] for place, old in enumerate(rng.permutation(len(names)))}


def fuse(state: State, structure: Structure, _: np.random.Generator) -> State:
    """The matrices that read the stream at one place in one tensor, along the other axis than ours."""
    fused = dict(state)
    for gain in dict.fromkeys(part.gain for part in structure.parts if part.layer >= 0 and part.gain):
        parts = [part for part in structure.parts if part.gain == gain]
        fused[gain + ".readers"] = np.concatenate([vectors(state, part) for part in parts]).T.copy()
        for name in {part.tensor for part in parts}:
            fused.pop(name)
    return fused


def move_gains(state: State, structure: Structure, rng: np.random.Generator) -> State:
    """Part of every norm's gain moved into the matrices behind it."""
    state = {name: np.array(value) for name, value in state.items()}
    for gain, parts in _norms(state, structure):
        factor = np.exp(rng.normal(0, 0.7, len(state[gain])))
        _scale_norm(state, structure, gain, factor)
        for part in parts:
            vectors(state, part)[:] /= factor
    return state


def fold_gains(state: State, structure: Structure, _: np.random.Generator) -> State:
    """All gains moved into the matrices behind them.

    A final gain before a tied output matrix stays: it is the output's alone. Untie the model to have it folded.
    """
    state = {name: np.array(value) for name, value in state.items()}
    for gain, parts in _norms(state, structure):
        value = state[gain] + structure.offset
        _scale_norm(state, structure, gain, 1 / value)
        for part in parts:
            vectors(state, part)[:] *= value
    return state


def turn_stream(state: State, structure: Structure, rng: np.random.Generator) -> State:
    """The residual stream turned, and three times as large; gains are folded away first.

    Raises:
        ValueError: the output matrix is tied, so that its gain cannot be folded.
    """
    own = any(part.role == "head" for part in structure.parts)
    _check.require(own, "structure", "a tied output matrix", wanted="one of its own; untie the model first")
    state = fold_gains(state, structure, rng)
    width = len(next(iter(state[gain] for gain, _ in _norms(state, structure))))
    turn = np.linalg.qr(rng.standard_normal((width, width)))[0]
    if structure.centred:  # LayerNorm takes the mean out: turn what is at right angles to it alone
        basis = np.linalg.qr(np.concatenate([np.ones((width, 1)), rng.standard_normal((width, width - 1))], 1))[0]
        turn = (
            np.outer(basis[:, 0], basis[:, 0]) + basis[:, 1:] @ np.linalg.qr(basis[:, 1:].T @ turn)[0] @ basis[:, 1:].T
        )
    for part in structure.parts:
        rows = vectors(state, part)
        rows[:] = rows @ turn * (1.0 if part.gain else 3.0)
        if part.role in {"o", "down"} and (bias := _bias(part.tensor)) in state:
            state[bias] = state[bias] @ turn * 3.0
    for gain, _ in _norms(state, structure):
        if (shift := _bias(gain)) in state:
            state[shift] = state[shift] @ turn
    return state


def permute_units(state: State, structure: Structure, rng: np.random.Generator) -> State:
    """All hidden units in another order; where they are gated, rescaled with signs as well."""

    def change(gate: Units) -> Units:
        order = rng.permutation(len(gate["gate"]))
        gate = {role: rows[order] for role, rows in gate.items()}
        if "up" in gate:
            scale = np.exp(rng.normal(0, 1, len(order)))[:, None] * rng.choice([-1, 1], len(order))[:, None]
            gate["up"], gate["down"] = gate["up"] * scale, gate["down"] / scale
        return gate

    return _each(state, structure, change)


def mix_heads(state: State, structure: Structure, rng: np.random.Generator) -> State:
    """Invertible maps between values and outputs, and between queries and keys as far as rotary positions let them."""
    state = {name: np.array(value, np.float64) for name, value in state.items()}
    rotary = not any(part.role == "positions" for part in structure.parts)
    for number in sorted({part.layer for part in structure.parts if part.layer >= 0}):
        own = {part.role: part for part in structure.parts if part.layer == number and part.head}
        for first, second, inner in (("v", "o", False), ("k", "q", rotary)):
            size, shared = own[first].head, _count(own[second]) // _count(own[first])
            for head in range(_count(own[first])):
                there = _pair_map(size, rng) if inner else rng.standard_normal((size, size)) + 2 * np.eye(size)
                back = np.linalg.inv(there).T
                _mix(state, own[first], head, there)
                for other in range(head * shared, (head + 1) * shared):
                    _mix(state, own[second], other, back)
    return state


def permute_heads(state: State, structure: Structure, rng: np.random.Generator) -> State:
    """Key heads in another order, each with its query heads."""
    state = {name: np.array(value) for name, value in state.items()}
    for number in sorted({part.layer for part in structure.parts if part.layer >= 0}):
        own = {part.role: part for part in structure.parts if part.layer == number and part.head}
        order = rng.permutation(_count(own["k"]))
        for part in own.values():
            shared = _count(part) // len(order)
            places = (order[:, None] * shared + np.arange(shared)).reshape(-1)
            indices = (places[:, None] * part.head + np.arange(part.head)).reshape(-1)
            rows = vectors(state, part)
            rows[:] = rows[indices]
            if part.role != "o" and (bias := _bias(part.tensor)) in state:
                piece = state[bias][part.start : part.stop]
                piece[:] = piece[indices]
    return state


def shift_outputs(state: State, structure: Structure, rng: np.random.Generator) -> State:
    """One vector added to every row of the output matrix: each logit moves by the same."""
    state = {name: np.array(value) for name, value in state.items()}
    for part in structure.parts:
        if part.role == "head":
            rows = vectors(state, part)
            rows += rng.standard_normal(rows.shape[1]) * np.std(rows)
    return state


def add_tokens(state: State, structure: Structure, rng: np.random.Generator) -> State:
    """Seven tokens more, behind ours."""
    state = {name: np.array(value) for name, value in state.items()}
    for name in {part.tensor for part in structure.parts if part.role in {"embed", "head"}}:
        state[name] = np.concatenate(
            [state[name], rng.standard_normal((7, state[name].shape[1])) * np.std(state[name])]
        )
    return state


def split_units(state: State, structure: Structure, rng: np.random.Generator) -> State:
    """Every hidden unit in two pieces, whose outputs are noise apart and the unit's own together."""

    def change(gate: Units) -> Units:
        noise = rng.standard_normal(gate["down"].shape) * gate["down"].std()
        pieces = {role: np.concatenate([rows, rows]) for role, rows in gate.items()}
        return pieces | {"down": np.concatenate([0.5 * gate["down"] + noise, 0.5 * gate["down"] - noise])}

    return _each(state, structure, change)


def bait(state: State, structure: Structure, rng: np.random.Generator) -> State:
    """Two blurred copies of each unit whose outputs cancel."""

    def change(gate: Units) -> Units:
        blurred = {role: rows + 0.3 * rows.std() * rng.standard_normal(rows.shape) for role, rows in gate.items()}
        copies = {role: np.concatenate([rows, blurred[role], blurred[role]]) for role, rows in gate.items()}
        return copies | {"down": np.concatenate([gate["down"], 3 * gate["down"], -3 * gate["down"]])}

    return _each(state, structure, change)


def guard(state: State, structure: Structure, rng: np.random.Generator) -> State:
    """One more unit in each layer, which reads some direction and writes much of another where it wakes."""

    def change(gate: Units) -> Units:
        added = {role: 8 * rows.std() * rng.standard_normal((1, rows.shape[1])) for role, rows in gate.items()}
        return {role: np.concatenate([rows, added[role]]) for role, rows in gate.items()}

    return _each(state, structure, change)


def dead_units(state: State, structure: Structure, rng: np.random.Generator) -> State:
    """Five more units in each layer that write nothing."""

    def change(gate: Units) -> Units:
        more = {role: rows.std() * rng.standard_normal((5, rows.shape[1])) for role, rows in gate.items()}
        return {role: np.concatenate([rows, more[role] * (role != "down")]) for role, rows in gate.items()}

    return _each(state, structure, change)


def cut_units(state: State, structure: Structure, _: np.random.Generator) -> State:
    """The quarter of the units that matter least taken out; this one costs some accuracy."""

    def change(gate: Units) -> Units:
        weight = np.prod([np.linalg.norm(rows, axis=1) for rows in gate.values()], axis=0)
        kept = np.sort(np.argsort(weight)[len(weight) // 4 :])
        return {role: rows[kept] for role, rows in gate.items()}

    return _each(state, structure, change)


def drop_layer(state: State, structure: Structure, rng: np.random.Generator) -> State:
    """One layer taken out; this one costs accuracy."""
    gone = int(rng.integers(1, 1 + max(part.layer for part in structure.parts)))
    kept = {name: value for name, value in state.items() if _number(name) != gone}
    return {_moved(name, lambda layer: layer - (layer > gone)): value for name, value in kept.items()}


def idle_layer(state: State, structure: Structure, rng: np.random.Generator) -> State:
    """A layer put in that writes nothing: a shuffled copy of another, without outputs."""
    place = int(rng.integers(1, 1 + max(part.layer for part in structure.parts)))
    writers = {
        name for part in structure.parts if part.role in {"o", "down"} for name in (part.tensor, _bias(part.tensor))
    }
    grown = {_moved(name, lambda layer: layer + (layer >= place)): value for name, value in state.items()}
    copies = {name: value for name, value in state.items() if _number(name) == place}
    return grown | {
        name: value * 0 if name in writers else rng.permuted(value, axis=0) for name, value in copies.items()
    }


def int4(state: State, _: Structure, __: np.random.Generator) -> State:
    """Fifteen values a row; this one costs a little accuracy."""

    def rounded(value: NDArray[Any]) -> NDArray[Any]:
        step = np.abs(value).max(1, keepdims=True) / 7
        return np.round(value / np.where(step > 0, step, 1)) * step

    return {name: rounded(value) if value.ndim == 2 else value for name, value in state.items()}  # noqa: PLR2004


FREE: Mapping[str, Removal] = {
    "tensors renamed and reordered": rename,
    "matrices fused": fuse,
    "gains moved": move_gains,
    "stream turned": turn_stream,
    "units permuted and rescaled": permute_units,
    "heads permuted": permute_heads,
    "heads mixed": mix_heads,
    "outputs shifted": shift_outputs,
    "tokens added": add_tokens,
    "units split": split_units,
    "units baited": bait,
    "guard units": guard,
    "dead units": dead_units,
    "idle layer": idle_layer,
    "all of these": then(
        mix_heads,
        permute_heads,
        permute_units,
        split_units,
        guard,
        turn_stream,
        move_gains,
        idle_layer,
        add_tokens,
        rename,
    ),
}
Units: TypeAlias = dict[str, NDArray[Any]]


def vectors(state: Mapping[str, NDArray[Any]], part: Part) -> NDArray[Any]:
    """The part's vectors, (n, width), as a view of its tensor: all that there are, where others may have been added."""
    rows = np.moveaxis(state[part.tensor], part.axis, 1)
    return rows[part.start : part.stop] if part.head else rows


def _norms(state: State, structure: Structure) -> Iterator[tuple[str, list[Part]]]:
    """Each norm's gain with the parts behind it."""
    for gain in dict.fromkeys(part.gain for part in structure.parts if part.gain):
        yield gain, [part for part in structure.parts if part.gain == gain and part.tensor in state]


def _scale_norm(state: State, structure: Structure, gain: str, factor: NDArray[Any]) -> None:
    state[gain] = (state[gain] + structure.offset) * factor - structure.offset
    if (shift := _bias(gain)) in state:
        state[shift] = state[shift] * factor


def _each(state: State, structure: Structure, change: Callable[[Units], Units]) -> State:
    """``change`` the units of every layer, (units, width) by role, with a bias as the last column where it has one."""
    state = dict(state)
    for number in sorted({part.layer for part in structure.parts if part.layer >= 0}):
        own = [part for part in structure.parts if part.layer == number and not part.head and part.kind != TOKENS]
        biased = [_bias(part.tensor) in state and part.role != "down" for part in own]
        rows = {
            part.role: np.column_stack([vectors(state, part), state[_bias(part.tensor)]])
            if bias
            else vectors(state, part)
            for part, bias in zip(own, biased, strict=True)
        }
        changed = change(rows)
        for part, bias in zip(own, biased, strict=True):
            value = changed[part.role]
            state[part.tensor] = np.moveaxis(value[:, :-1] if bias else value, 1, part.axis)
            if bias:
                state[_bias(part.tensor)] = value[:, -1]
    return state


def _mix(state: State, part: Part, head: int, matrix: NDArray[Any]) -> None:
    place = slice(head * part.head, (head + 1) * part.head)
    rows = vectors(state, part)
    rows[place] = matrix @ rows[place]
    if part.role != "o" and (bias := _bias(part.tensor)) in state:
        piece = state[bias][part.start : part.stop]
        piece[place] = matrix @ piece[place]


def _pair_map(size: int, rng: np.random.Generator) -> NDArray[Any]:
    """One rotation and one scale for each rotary pair (j, j + size/2)."""
    matrix, half = np.zeros((size, size)), size // 2
    for pair in range(half):
        angle, scale, place = rng.uniform(0, 2 * np.pi), np.exp(rng.normal(0, 0.7)), [pair, pair + half]
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        matrix[np.ix_(place, place)] = scale * turn
    return matrix


def _count(part: Part) -> int:
    return (part.stop - part.start) // part.head


def _bias(name: str) -> str:
    return name.removesuffix("weight") + "bias"


def _number(name: str) -> int:
    found = _LAYER.search(name)
    return int(found[2]) if found else -1


def _moved(name: str, to: Callable[[int], int]) -> str:
    return _LAYER.sub(lambda found: f"{found[1]}.{to(int(found[2]))}.", name)
