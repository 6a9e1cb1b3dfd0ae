# SPDX-License-Identifier: Apache-2.0
"""``nn.RNN``, ``nn.LSTM`` and ``nn.GRU``: the same recurrence, step by step, so that every gate can be listened to.

The module keeps its class, its parameters and their names. Slower than torch's fused kernel, and exact.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from privguard.errors import UnsupportedModelError
from privguard.training.bookkeeping.batch import Heard
from privguard.training.bookkeeping.layers.attention import Piece, project
from privguard.training.bookkeeping.registry import register_rewritten

State = tuple[Tensor, ...]
Cell = Callable[[Tensor, Tensor, State], State]  # (input part of the gates, hidden part, state) → state; [0] is output


@register_rewritten(nn.RNN, nn.LSTM, nn.GRU)
def recurrent(heard: Heard, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Any]:
    """All layers and directions; arguments, results and options as in torch, padded inputs with a batch dimension."""
    module = cast("nn.RNNBase", heard.tapped.module)
    named = dict(zip(("input", "hx"), args, strict=False)) | kwargs
    x, state = named["input"], named.get("hx")
    if not isinstance(x, Tensor) or x.dim() != 3:  # noqa: PLR2004 — (B, T, d)
        raise UnsupportedModelError(
            f"module={heard.tapped.name!r}: expected a padded input with a batch dimension, not a packed sequence or a "
            "single one; pass (B, T, d) and take the last valid outputs yourself"
        )
    x = x if module.batch_first else x.transpose(0, 1)
    start = _start(module, x, state)
    ends: list[State] = []
    for layer in range(module.num_layers):
        runs = [_direction(heard, x, start(layer, way), layer, way) for way in range(1 + module.bidirectional)]
        x = torch.cat([run[0] for run in runs], -1)
        ends += [run[1] for run in runs]
        if module.training and layer + 1 < module.num_layers:
            x = functional.dropout(x, module.dropout)
    last = tuple(torch.stack(parts) for parts in zip(*ends, strict=True))
    return (x if module.batch_first else x.transpose(0, 1)), (last if isinstance(module, nn.LSTM) else last[0])


def _start(module: nn.RNNBase, x: Tensor, state: Any) -> Callable[[int, int], State]:
    ways = 1 + module.bidirectional
    states = state if isinstance(state, tuple) else (state,)

    def zeros(width: int) -> Tensor:
        return x.new_zeros(len(x), width)

    def start(layer: int, way: int) -> State:
        if state is not None:
            return tuple(s[layer * ways + way] for s in states)
        hidden = zeros(module.proj_size or module.hidden_size)
        return (hidden, zeros(module.hidden_size)) if isinstance(module, nn.LSTM) else (hidden,)

    return start


def _direction(heard: Heard, x: Tensor, state: State, layer: int, way: int) -> tuple[Tensor, State]:
    """One layer in one direction: (B, T, d) → outputs (B, T, h) and the last state."""
    module, cell = cast("nn.RNNBase", heard.tapped.module), _cell(heard.tapped.module)
    suffix = f"l{layer}{'_reverse' * way}"
    given = _gates(heard, x, "ih", suffix)
    outputs: list[Tensor] = []
    for step in reversed(range(x.shape[1])) if way else range(x.shape[1]):
        state = cell(given[:, step], _gates(heard, state[0][:, None], "hh", suffix)[:, 0], state)
        if module.proj_size:
            shorter = project(heard, state[0][:, None], _piece(heard, f"weight_hr_{suffix}"), None)
            state = (shorter[:, 0], *state[1:])
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if way else outputs, 1), state


def _gates(heard: Heard, x: Tensor, kind: str, suffix: str) -> Tensor:
    bias = _piece(heard, f"bias_{kind}_{suffix}") if cast("nn.RNNBase", heard.tapped.module).bias else None
    return project(heard, x, _piece(heard, f"weight_{kind}_{suffix}"), bias)


def _piece(heard: Heard, local: str) -> Piece:
    return Piece(local, heard.tapped.module.get_parameter(local))


def _cell(module: nn.Module) -> Cell:
    if isinstance(module, nn.LSTM):
        return _lstm
    if isinstance(module, nn.GRU):
        return _gru
    return _relu if cast("nn.RNN", module).nonlinearity == "relu" else _tanh


def _lstm(given: Tensor, hidden: Tensor, state: State) -> State:
    i, f, g, o = (given + hidden).chunk(4, -1)
    cell = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


def _gru(given: Tensor, hidden: Tensor, state: State) -> State:
    r, z, n = given.chunk(3, -1)
    hr, hz, hn = hidden.chunk(3, -1)
    new = (n + (r + hr).sigmoid() * hn).tanh()
    keep = (z + hz).sigmoid()
    return ((1 - keep) * new + keep * state[0],)


def _tanh(given: Tensor, hidden: Tensor, state: State) -> State:  # noqa: ARG001
    return ((given + hidden).tanh(),)


def _relu(given: Tensor, hidden: Tensor, state: State) -> State:  # noqa: ARG001
    return ((given + hidden).relu(),)
