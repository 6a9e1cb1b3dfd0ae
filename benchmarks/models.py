# SPDX-License-Identifier: Apache-2.0
"""The models that step time and memory are measured on; random weights, random data of the right shapes.

There are two of BERT. The classifier reads one position, so most of its last block has a gradient at that position
alone, and the book-keeper leaves the others out; where a mean over all positions is read it can leave out nothing. LoRA
is how large models are tuned privately: what is clipped and noised is small beside what goes forward.

On a GPU the same models are larger (``LARGE``): those for a CPU take a millisecond there, in which the host cannot even
name their kernels, so that the figure would be the host's. These are what people fine-tune: BERT base and GPT-2 small
with their own vocabularies, and the WRN-16-4 of De et al. 2022 (arXiv 2204.13650), at batches that fill the device.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
)
from transformers.pytorch_utils import Conv1D


@final
@dataclass(frozen=True)
class Case:
    """A model, its data and its loss.

    Attributes:
        model: makes the model.
        data: (number of examples) → tensors, one row per example.
        losses: (model, batch) → one loss per example, (B,).
        spelt_out: the same with the ids of positions given for each row, for tools that fail where rows share them.
        batch: the expected batch size.
        bar: CPU time of a step over ordinary training that is wanted at most; None where no bar was set.
        memory: the same for peak memory.
        wall: the same for the time on the wall, with a core that torch does not use.
    """

    name: str
    model: Callable[[], nn.Module]
    data: Callable[[int], tuple[Tensor, ...]]
    losses: Callable[[nn.Module, tuple[Tensor, ...]], Tensor]
    batch: int
    bar: float | None = None
    memory: float | None = 1.10
    wall: float | None = None
    spelt_out: Callable[[nn.Module, tuple[Tensor, ...]], Tensor] | None = None


def mlp(width: int = 1024) -> nn.Module:
    layers = nn.Linear(600, width), nn.ReLU(), nn.Linear(width, width // 2), nn.ReLU(), nn.Linear(width // 2, 100)
    return nn.Sequential(*layers)


def bert(
    *, mean: bool = False, layers: int = 4, width: int = 256, heads: int = 4, length: int = 64, words: int = 5000
) -> nn.Module:
    """A classifier by its first position; with ``mean``, one with logits at each."""
    config = BertConfig(
        vocab_size=words,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=length,
        num_labels=2,
    )
    return (BertForTokenClassification if mean else BertForSequenceClassification)(config)


def gpt2(
    *, tied: bool, layers: int = 6, width: int = 384, heads: int = 6, length: int = 128, words: int = 4000
) -> nn.Module:
    sizes = {"n_layer": layers, "n_embd": width, "n_head": heads, "n_positions": length}
    return GPT2LMHeadModel(GPT2Config(vocab_size=words, tie_word_embeddings=tied, use_cache=False, **sizes))


def gpt2_linear(**sizes: int) -> nn.Module:
    """GPT-2 with an untied head and every Conv1D turned into the Linear layer of the same function."""
    model = gpt2(tied=False, **sizes)
    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            layer = nn.Linear(module.nx, module.nf)
            layer.weight.data.copy_(module.weight.data.t())
            layer.bias.data.copy_(module.bias.data)
            parent, _, local = name.rpartition(".")
            setattr(model.get_submodule(parent), local, layer)
    return model


def adapted(model: nn.Module, *, rank: int = 8) -> nn.Module:
    """The same, frozen but for LoRA adapters of its attention (Hu et al. 2021, arXiv 2106.09685)."""
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft calls what transformers has renamed
        return get_peft_model(model, LoraConfig(r=rank, target_modules=["c_attn"], fan_in_fan_out=True))


class Block(nn.Module):
    """A residual block with group normalisation before each convolution."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, inside), nn.GroupNorm(8, outside)
        self.conv1 = nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        same = inside == outside and stride == 1
        self.short = nn.Identity() if same else nn.Conv2d(inside, outside, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        first = functional.relu(self.norm1(x))
        return self.conv2(functional.relu(self.norm2(self.conv1(first)))) + self.short(first)


def wrn(*, blocks: int = 1, factor: int = 2) -> nn.Module:
    """WRN-(6·blocks + 4)-factor: that many blocks for each of the widths 16, 32 and 64 times the factor."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False)]
    inside = 16
    for place, width in enumerate((16 * factor, 32 * factor, 64 * factor)):
        for number in range(blocks):
            layers.append(Block(inside, width, 2 if place > 0 and number == 0 else 1))
            inside = width
    layers += [nn.GroupNorm(8, inside), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, 10)]
    return nn.Sequential(*layers)


def classify(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def classify_text(model: nn.Module, batch: tuple[Tensor, ...], **ids: Tensor) -> Tensor:
    logits = model(input_ids=batch[0], **ids).logits
    return functional.cross_entropy(logits if logits.dim() == 2 else logits.mean(1), batch[1], reduction="none")


def classify_spelt_out(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    ids = batch[0]
    return classify_text(model, batch, position_ids=_positions(ids), token_type_ids=torch.zeros_like(ids))


def predict(model: nn.Module, batch: tuple[Tensor, ...], **ids: Tensor) -> Tensor:
    """The mean over its positions of each example's next-token loss."""
    logits = model(input_ids=batch[0], **ids).logits[:, :-1]
    return functional.cross_entropy(logits.transpose(1, 2), batch[0][:, 1:], reduction="none").mean(1)


def predict_spelt_out(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return predict(model, batch, position_ids=_positions(batch[0]))


def _positions(ids: Tensor) -> Tensor:
    return torch.arange(ids.shape[1], device=ids.device).expand_as(ids).contiguous()


def features(*shape: int, classes: int) -> Callable[[int], tuple[Tensor, ...]]:
    return lambda n: (torch.randn(n, *shape), torch.randint(classes, (n,)))


def tokens(length: int, vocabulary: int, *, classes: int = 2) -> Callable[[int], tuple[Tensor, ...]]:
    return lambda n: (torch.randint(vocabulary, (n, length)), torch.randint(classes, (n,)))


CASES = [
    Case("MLP", mlp, features(600, classes=100), classify, 256, 1.80, wall=1.15),
    Case("BERT", bert, tokens(64, 5000), classify_text, 32, 1.25, wall=1.14, spelt_out=classify_spelt_out),
    Case(
        "BERT, mean",
        lambda: bert(mean=True),
        tokens(64, 5000),
        classify_text,
        32,
        memory=None,
        spelt_out=classify_spelt_out,
    ),
    *(
        Case(name, make, tokens(128, 4000), predict, 16, 1.26, wall=1.18, spelt_out=predict_spelt_out)
        for name, make in {
            "GPT-2 tied": lambda: gpt2(tied=True),
            "GPT-2 HF": lambda: gpt2(tied=False),
            "GPT-2 untied": gpt2_linear,
        }.items()
    ),
    Case(
        "GPT-2 LoRA",
        lambda: adapted(gpt2(tied=True)),
        tokens(128, 4000),
        predict,
        16,
        memory=None,
        spelt_out=predict_spelt_out,
    ),
    Case("WRN", wrn, features(3, 32, 32, classes=10), classify, 64, 1.22, 1.30, wall=1.20),
]

BASE = {"layers": 12, "width": 768, "heads": 12}
SMALL = {**BASE, "length": 512, "words": 50257}
LARGE = [
    Case("MLP", lambda: mlp(4096), features(600, classes=100), classify, 4096, memory=None),
    *(
        Case(name, make, tokens(128, 30522), classify_text, 128, memory=None, spelt_out=classify_spelt_out)
        for name, make in {
            "BERT": lambda: bert(**BASE, length=128, words=30522),
            "BERT, mean": lambda: bert(**BASE, length=128, words=30522, mean=True),
        }.items()
    ),
    *(
        Case(name, make, tokens(512, 50257), predict, 16, memory=None, spelt_out=predict_spelt_out)
        for name, make in {
            "GPT-2 tied": lambda: gpt2(tied=True, **SMALL),
            "GPT-2 HF": lambda: gpt2(tied=False, **SMALL),
            "GPT-2 untied": lambda: gpt2_linear(**SMALL),
            "GPT-2 LoRA": lambda: adapted(gpt2(tied=True, **SMALL)),
        }.items()
    ),
    Case("WRN", lambda: wrn(blocks=2, factor=4), features(3, 32, 32, classes=10), classify, 512, memory=None),
]
