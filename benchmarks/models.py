"""The six models that step time and memory are measured on; random weights, random data of the right shapes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel
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
        bar: step time over ordinary training that is wanted at most.
        memory: the same for peak memory.
    """

    name: str
    model: Callable[[], nn.Module]
    data: Callable[[int], tuple[Tensor, ...]]
    losses: Callable[[nn.Module, tuple[Tensor, ...]], Tensor]
    batch: int
    bar: float
    memory: float = 1.10
    spelt_out: Callable[[nn.Module, tuple[Tensor, ...]], Tensor] | None = None


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(600, 1024), nn.ReLU(), nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 100))


def bert() -> nn.Module:
    config = BertConfig(
        vocab_size=5000,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1024,
        max_position_embeddings=64,
        num_labels=2,
    )
    return BertForSequenceClassification(config)


def gpt2(*, tied: bool) -> nn.Module:
    sizes = {"n_layer": 6, "n_embd": 384, "n_head": 6, "n_positions": 128}
    return GPT2LMHeadModel(GPT2Config(vocab_size=4000, tie_word_embeddings=tied, use_cache=False, **sizes))


def gpt2_linear() -> nn.Module:
    """GPT-2 with an untied head and every Conv1D turned into the Linear layer of the same function."""
    model = gpt2(tied=False)
    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            layer = nn.Linear(module.nx, module.nf)
            layer.weight.data.copy_(module.weight.data.t())
            layer.bias.data.copy_(module.bias.data)
            parent, _, local = name.rpartition(".")
            setattr(model.get_submodule(parent), local, layer)
    return model


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


def wrn() -> nn.Module:
    """WRN-10-2: one block for each of the widths 32, 64 and 128."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        Block(16, 32, 1),
        Block(32, 64, 2),
        Block(64, 128, 2),
        nn.GroupNorm(8, 128),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def classify(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def classify_text(model: nn.Module, batch: tuple[Tensor, ...], **ids: Tensor) -> Tensor:
    return functional.cross_entropy(model(input_ids=batch[0], **ids).logits, batch[1], reduction="none")


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
    return torch.arange(ids.shape[1]).expand_as(ids).contiguous()


def features(*shape: int, classes: int) -> Callable[[int], tuple[Tensor, ...]]:
    return lambda n: (torch.randn(n, *shape), torch.randint(classes, (n,)))


def tokens(length: int, vocabulary: int, *, classes: int = 2) -> Callable[[int], tuple[Tensor, ...]]:
    return lambda n: (torch.randint(vocabulary, (n, length)), torch.randint(classes, (n,)))


CASES = [
    Case("MLP", mlp, features(600, classes=100), classify, 256, 1.30),
    Case("BERT", bert, tokens(64, 5000), classify_text, 32, 1.18, spelt_out=classify_spelt_out),
    Case("GPT-2 tied", lambda: gpt2(tied=True), tokens(128, 4000), predict, 16, 1.18, spelt_out=predict_spelt_out),
    Case("GPT-2 HF", lambda: gpt2(tied=False), tokens(128, 4000), predict, 16, 1.18, spelt_out=predict_spelt_out),
    Case("GPT-2 untied", gpt2_linear, tokens(128, 4000), predict, 16, 1.20, spelt_out=predict_spelt_out),
    Case("WRN", wrn, features(3, 32, 32, classes=10), classify, 64, 1.50, 1.30),
]
