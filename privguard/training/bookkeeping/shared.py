# SPDX-License-Identifier: Apache-2.0
"""What a model computes once for the whole batch, from parameters alone: relative biases and peft's soft prompt.

One result for all examples has one gradient, their sum, from which nobody can tell one from another. So each example is
given a copy of its own: an expanded view, which every later use broadcasts as before. The method that computes the
result is listened to in the place of the forward of the module that owns the parameters.
"""

import inspect
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from privguard.errors import UnsupportedModelError
from privguard.training.bookkeeping.batch import Call, Heard
from privguard.training.bookkeeping.factors import Factor, Full
from privguard.training.bookkeeping.inside import Instead
from privguard.training.bookkeeping.taps import frozen

TABLE = "relative_attention_bias"  # T5 and all that came from it call it so
_LOOKUPS = ("compute_bias", "compute_position_bias")  # of T5 and its heirs, of MPNet


def shared_method(module: nn.Module) -> str:
    """The method whose result all examples share, or the forward."""
    if _has_relative_bias(module):
        return next(name for name in _LOOKUPS if hasattr(module, name))
    return "get_prompt" if repeats_a_prompt(module) else "forward"


def looks_up_bias(module: nn.Module, child: str) -> bool:
    """Whether ``module`` is an attention layer, and ``child`` the table of biases that it looks up by distance."""
    return child == TABLE and _has_relative_bias(module)


def is_of_all_windows(module: nn.Module, child: str) -> bool:
    """Whether ``child`` computes a bias for every window of every example: Swin's and Swin v2's attention.

    Its one result is broadcast in ways of its own, so the attention around it takes the parameters for its own.
    """
    if child == "relative_position_bias":
        return not inspect.signature(getattr(module, child).forward).parameters
    return child == "continuous_position_bias_mlp"


def _has_relative_bias(module: nn.Module) -> bool:
    table = getattr(module, TABLE, None)
    if type(table) is not nn.Embedding or not any(callable(getattr(module, name, None)) for name in _LOOKUPS):
        return False
    return table.padding_idx is None and table.max_norm is None and not table.scale_grad_by_freq


def relative_bias(heard: Heard, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """W[distances], (1, heads, queries, keys) or in MPNet one for each example, from distances (queries, keys)."""
    table = cast("nn.Embedding", heard.tapped.module.get_submodule(TABLE))
    looked_up: list[Tensor] = []

    def noted(ids: Tensor, *others: Any, **named: Any) -> Tensor:
        looked_up.append(ids)
        return functional.embedding(ids, *others, **named)

    with frozen(heard.tapped.own()), Instead(functional.embedding, table, noted):
        bias = cast("Tensor", heard.tapped.original(*args, **kwargs))
    heads = table.embedding_dim
    rows = {1, heard.batch.rows}
    if len(looked_up) != 1 or bias.shape[-3:] != (heads, *looked_up[0].shape) or len(bias) not in rows:
        raise UnsupportedModelError(
            f"module={heard.tapped.name!r}: {heard.tapped.method} gave {tuple(bias.shape)} from {len(looked_up)} "
            f"lookups; expected one lookup and (1, {heads}, queries, keys), or train one by one (OneByOne)"
        )
    return heard.tap(heard.shared(bias), kept=looked_up[0].flatten(), factors=_of_table)


def _of_table(call: Call) -> Iterator[tuple[str, Factor]]:
    """A lookup is a product with rows of the identity, and the table has few of them; g (B·k, …, heads, q, k)."""
    table = cast("nn.Embedding", call.module.get_submodule(TABLE))
    heads, places = table.embedding_dim, len(call.x)
    g = call.g.reshape(call.batch, call.g.numel() // (call.batch * heads * places), heads, places)
    chosen = torch.eye(table.num_embeddings, device=g.device)[call.x]  # (places, rows of the table)
    yield f"{TABLE}.weight", Full((g.sum(1, dtype=torch.float32) @ chosen).mT)


def repeats_a_prompt(module: nn.Module) -> bool:
    """Whether this is a peft model that encodes one trainable prompt and repeats it for each example."""
    kind = getattr(getattr(module, "active_peft_config", None), "peft_type", None)
    return kind in {"PROMPT_TUNING", "P_TUNING"} and callable(getattr(module, "get_prompt", None))


def own_prompts(heard: Heard, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """``get_prompt`` of peft, (B, tokens, width): asked for one prompt, the tapped encoder gives each example one."""
    given = inspect.signature(heard.tapped.original).bind(*args, **kwargs)
    if given.arguments["batch_size"] != heard.batch.rows:
        raise UnsupportedModelError(
            f"module={heard.tapped.name!r}: batch_size={given.arguments['batch_size']} prompts for a batch of "
            f"{heard.batch.rows}; pass as many examples as the batch holds, or train one by one (OneByOne)"
        )
    given.arguments["batch_size"] = 1
    return heard.shared(heard.tapped.original(*given.args, **given.kwargs))
