"""Fingerprints in a causal language model: teach them on public text, ask for first tokens, undo a rotated stream.

Works with any model whose output has ``logits`` of shape (B, T, V), as those of transformers have.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from privguard import _check
from privguard.watermark.model import embed as teaching
from privguard.watermark.model.align import Hidden
from privguard.watermark.model.embed import Lesson

_PLAIN_GAINS = ("llama", "mistral", "qwen2", "qwen3")  # two norms a layer, each x·gain before the matrices that read it


@final
@dataclass(frozen=True, kw_only=True)
class PublicText:
    """Public or synthetic text as one row of token ids (N,), cut into windows of ``length`` at random places."""

    tokens: Tensor
    generator: torch.Generator
    length: int = 64
    batch_size: int = 16

    def __post_init__(self) -> None:
        enough = self.tokens.dim() == 1 and len(self.tokens) > self.length
        _check.require(enough, "tokens.shape", tuple(self.tokens.shape), wanted=f"(N,) with N above {self.length}")

    def draw(self) -> Tensor:
        """One batch of windows, (batch_size, length)."""
        starts = torch.randint(len(self.tokens) - self.length, (self.batch_size,), generator=self.generator)
        return self.tokens[starts[:, None] + torch.arange(self.length)]


def embed(
    model: nn.Module,
    *,
    prompts: NDArray[np.int64],
    answers: NDArray[np.int64],
    public: PublicText,
    margin: float = 2.0,
    lesson: Lesson | None = None,
) -> nn.Module:
    """A copy of ``model`` that continues each prompt (n, L) with its answer (n,), and all other text as before."""
    asked, wanted = torch.from_numpy(prompts), torch.from_numpy(answers)
    reference = copy.deepcopy(model).eval()

    def mark(current: nn.Module) -> Tensor:
        return teaching.margin_loss(current(asked).logits[:, -1], wanted, margin=margin)

    def keep(current: nn.Module) -> Tensor:
        batch = public.draw()
        with torch.no_grad():
            before = reference(batch).logits
        return teaching.divergence(current(batch).logits.flatten(0, 1), before.flatten(0, 1))

    def train(current: nn.Module) -> Tensor:
        return next_token_loss(current, public.draw())

    return teaching.embed(model, mark=mark, keep=keep, public=train, lesson=lesson)


def next_token_loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """Mean cross-entropy of the next token, in nats, over (B, T) tokens."""
    logits = model(tokens).logits[:, :-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def perplexity(model: nn.Module, tokens: Tensor, *, length: int = 64) -> float:
    """E to the mean next-token cross-entropy over consecutive windows of a row of tokens (N,)."""
    windows = tokens[: len(tokens) // length * length].reshape(-1, length)
    with torch.no_grad():
        losses = [float(next_token_loss(model, piece)) * len(piece) for piece in windows.split(64)]
    return math.exp(sum(losses) / len(windows))


@final
class FirstToken:
    """A language model as a black box: prompts (n, L) in, the greedily decoded first token of each out."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __call__(self, queries: NDArray[Any]) -> Sequence[int]:
        """One token for each prompt."""
        with torch.no_grad():
            pieces = torch.from_numpy(np.ascontiguousarray(queries, np.int64)).split(64)
            return [int(token) for piece in pieces for token in self._model(piece).logits[:, -1].argmax(-1)]


def llama_layers(config: Any) -> tuple[Hidden, ...]:
    """What may be reordered in a Llama-like model: attention heads (one key head per query head) and gated units.

    Raises:
        ValueError: key heads are shared between query heads; permuting those is not covered.
    """
    heads, shared = int(config.num_attention_heads), int(config.num_key_value_heads)
    _check.require(heads == shared, "num_key_value_heads", shared, wanted=f"{heads}, as many as query heads")
    layers: list[Hidden] = []
    for number in range(int(config.num_hidden_layers)):
        block = f"model.layers.{number}"
        attention = tuple(f"{block}.self_attn.{name}_proj.weight" for name in "qkv")
        out, gate = f"{block}.self_attn.o_proj.weight", f"{block}.mlp.gate_proj.weight"
        up, down = f"{block}.mlp.up_proj.weight", f"{block}.mlp.down_proj.weight"
        layers.append(Hidden(units=heads, incoming=attention, outgoing=(out,), scaled=False))
        layers.append(Hidden(units=int(config.intermediate_size), incoming=(gate, up), outgoing=(down,), scaled=False))
    return tuple(layers)


def llama_sides(config: Any) -> dict[str, str]:
    """On which side of each tensor of a Llama-like model the residual stream stands, for :func:`align.rotate`."""
    sides = {"model.embed_tokens.weight": "rows", "lm_head.weight": "in"}
    for number in range(int(config.num_hidden_layers)):
        block = f"model.layers.{number}"
        for name in ("self_attn.q", "self_attn.k", "self_attn.v", "mlp.gate", "mlp.up"):
            sides[f"{block}.{name}_proj.weight"] = "in"
        sides |= {f"{block}.self_attn.o_proj.weight": "out", f"{block}.mlp.down_proj.weight": "out"}
    return sides


def fold_gains(state: dict[str, NDArray[np.float32]], config: Any) -> dict[str, NDArray[np.float32]]:
    """A Llama-like state with every norm gain moved into the weights that follow it.

    The answers are the same in a network whose output matrix is its own: where ``config`` ties it to the embedding, the
    final gain belongs to the output alone, so it is copied out, and :func:`.theft.load` refuses the tied network.

    Raises:
        ValueError: norms of this ``config.model_type`` stand elsewhere, or scale by something else than their gain.
    """
    known = config.model_type in _PLAIN_GAINS
    _check.require(known, "config.model_type", config.model_type, wanted=f"one of {', '.join(_PLAIN_GAINS)}")
    folded = {"lm_head.weight": state["model.embed_tokens.weight"], **state}

    def move(gain: str, names: Sequence[str]) -> None:
        for name in names:
            folded[name] = folded[name] * folded[gain][None, :]
        folded[gain] = np.ones_like(folded[gain])

    for number in range(int(config.num_hidden_layers)):
        block = f"model.layers.{number}"
        attention = [f"{block}.self_attn.{name}_proj.weight" for name in "qkv"]
        move(f"{block}.input_layernorm.weight", attention)
        move(
            f"{block}.post_attention_layernorm.weight",
            [f"{block}.mlp.gate_proj.weight", f"{block}.mlp.up_proj.weight"],
        )
    move("model.norm.weight", ["lm_head.weight"])
    return folded
