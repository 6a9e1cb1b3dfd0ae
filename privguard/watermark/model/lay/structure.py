# SPDX-License-Identifier: Apache-2.0
"""What a transformer is made of, as a weight mark's settings state it: which matrices read or write its stream.

Each ``Part`` is a list of vectors of the residual stream: rows or columns of one tensor, or some of them where
tensors are fused. Only the owner's own *unmarked* model is described; a suspect's names are never believed.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

from privguard import _check

Shapes = Mapping[str, Sequence[int]]
UNITS, HEADS, TOKENS = "units", "heads", "tokens"


@final
@dataclass(frozen=True, kw_only=True)
class Part:
    """Vectors of the stream that belong together.

    Attributes:
        tensor: the tensor that holds them.
        role: embed, positions, head, q, k, v, o, gate, up or down.
        kind: what may be done to them for nothing. ``units`` may be reordered, rescaled and split; ``heads`` are mixed
            among the ``head`` vectors of each head; ``tokens`` stand at their token's place.
        axis: the tensor's axis along which the stream runs; vectors are numbered along the other one.
        start: the first vector.
        stop: one behind the last vector.
        gain: the gain that a norm puts between the stream and these vectors; empty for those that write to it.
        head: vectors of one head.
        layer: its layer's number; -1 outside all layers.
    """

    tensor: str
    role: str
    kind: str
    axis: int
    start: int
    stop: int
    gain: str = ""
    head: int = 0
    layer: int = -1

    @property
    def name(self) -> str:
        """The tensor, and the role in it."""
        return f"{self.tensor} ({self.role})"


@final
@dataclass(frozen=True, kw_only=True)
class Structure:
    """All parts; whether norms take the stream's mean out (LayerNorm); what is added to a gain before it is used."""

    parts: tuple[Part, ...]
    centred: bool = False
    offset: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The structure as settings of a mark hold it."""
        return {"centred": self.centred, "offset": self.offset, "parts": [asdict(part) for part in self.parts]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Structure":
        """The inverse of ``to_json``."""
        parts = tuple(Part(**part) for part in value["parts"])
        return cls(parts=parts, centred=bool(value["centred"]), offset=float(value["offset"]))

    @property
    def tensors(self) -> tuple[str, ...]:
        """The tensors that hold a part, each once."""
        return tuple(dict.fromkeys(part.tensor for part in self.parts))


def of_model(shapes: Shapes, config: Mapping[str, Any]) -> Structure:
    """The structure of a transformer from its tensors' names and shapes and its ``config.json``.

    Args:
        shapes: of the tensors of the unmarked model. A tied output matrix is not among them, or is left out.
        config: of transformers: ``model_type``, and the size of heads.

    Raises:
        ValueError: this family is not described here, or its tensors have other names.
    """
    family = str(config.get("model_type"))
    known = family in FAMILIES
    _check.require(known, "model_type", family, wanted=f"one of {', '.join(FAMILIES)}; others are read by names alone")
    heads = int(config.get("num_attention_heads") or config.get("n_head") or 0)
    _check.count("num_attention_heads", heads)
    width = int(config.get("hidden_size") or config.get("n_embd") or 0)
    size = int(config.get("head_dim") or width // heads)
    patterns, centred, offset = FAMILIES[family]
    parts = tuple(_parts(shapes, patterns, size))
    _check.require(any(part.layer >= 0 for part in parts), "tensors", sorted(shapes)[:3], wanted=f"those of {family}")
    return Structure(parts=parts, centred=centred, offset=offset)


# pattern of the tensor's name, roles of the equal pieces it is cut into, axis of the stream, the norm before it
_LLAMA = (
    (r"embed_tokens\.weight", ("embed",), 1, ""),
    (r"layers\.(\d+)\.self_attn\.q_proj\.weight", ("q",), 1, "layers.{}.input_layernorm.weight"),
    (r"layers\.(\d+)\.self_attn\.k_proj\.weight", ("k",), 1, "layers.{}.input_layernorm.weight"),
    (r"layers\.(\d+)\.self_attn\.v_proj\.weight", ("v",), 1, "layers.{}.input_layernorm.weight"),
    (r"layers\.(\d+)\.self_attn\.o_proj\.weight", ("o",), 0, ""),
    (r"layers\.(\d+)\.mlp\.gate_proj\.weight", ("gate",), 1, "layers.{}.post_attention_layernorm.weight"),
    (r"layers\.(\d+)\.mlp\.up_proj\.weight", ("up",), 1, "layers.{}.post_attention_layernorm.weight"),
    (r"layers\.(\d+)\.mlp\.down_proj\.weight", ("down",), 0, ""),
    (r"lm_head\.weight", ("head",), 1, "norm.weight"),
)
_GPT2 = (
    (r"wte\.weight", ("embed",), 1, ""),
    (r"wpe\.weight", ("positions",), 1, ""),
    (r"h\.(\d+)\.attn\.c_attn\.weight", ("q", "k", "v"), 0, "h.{}.ln_1.weight"),
    (r"h\.(\d+)\.attn\.c_proj\.weight", ("o",), 1, ""),
    (r"h\.(\d+)\.mlp\.c_fc\.weight", ("gate",), 0, "h.{}.ln_2.weight"),
    (r"h\.(\d+)\.mlp\.c_proj\.weight", ("down",), 1, ""),
    (r"lm_head\.weight", ("head",), 1, "ln_f.weight"),
)
FAMILIES = {
    "llama": (_LLAMA, False, 0.0),
    "mistral": (_LLAMA, False, 0.0),
    "qwen2": (_LLAMA, False, 0.0),
    "qwen3": (_LLAMA, False, 0.0),
    "gemma": (_LLAMA, False, 1.0),
    "gpt2": (_GPT2, True, 0.0),
}
_KINDS = dict.fromkeys("qkvo", HEADS) | dict.fromkeys(("gate", "up", "down"), UNITS)


def _parts(shapes: Shapes, patterns: Sequence[tuple[str, tuple[str, ...], int, str]], size: int) -> Iterator[Part]:
    prefix = {name: name.removeprefix("model.").removeprefix("transformer.") for name in shapes}
    full = {short: name for name, short in prefix.items()}
    for name, short in prefix.items():
        for pattern, roles, axis, gain in patterns:
            found = re.fullmatch(pattern, short)
            if found is None:
                continue
            layer = int(found[1]) if found.groups() else -1
            piece = int(shapes[name][1 - axis]) // len(roles)
            norm = full.get(gain.format(layer), "") if gain else ""
            _check.require(not gain or bool(norm), name, gain.format(layer), wanted="that norm among the tensors")
            for place, role in enumerate(roles):
                kind = _KINDS.get(role, TOKENS)
                start, stop = place * piece, (place + 1) * piece
                head = size if kind == HEADS else 0
                yield Part(
                    tensor=name, role=role, kind=kind, axis=axis, start=start, stop=stop, gain=norm, head=head,
                    layer=layer,
                )  # fmt: skip
