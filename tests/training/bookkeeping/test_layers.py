# SPDX-License-Identifier: Apache-2.0
"""Every supported layer: the book-keeping sum equals the sum over one autograd pass per example."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm
from transformers.pytorch_utils import Conv1D

from privguard.training.bookkeeping import BookKeeper
from privguard.training.one_by_one import OneByOne
from tests.training.bookkeeping.compare import clipped, distance

HUGE = 1e6  # a clipping norm that clips nothing


class Squares(nn.Module):
    """Some layers and a loss that every output takes part in."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layers(x)
        return (out.sin() + 0.3 * out.square()).flatten(1).sum(1)


class First(nn.Module):
    """The first of several results."""

    def __init__(self, module: nn.Module, *, rows: int = 0) -> None:
        super().__init__()
        self.module, self._rows = module, rows

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x.transpose(0, self._rows))[0].transpose(0, self._rows)


class Attend(nn.Module):
    """Self-attention, or attention between two halves."""

    def __init__(
        self, width: int, *, cross: bool = False, masks: bool = False, weights: bool = False, **options: object
    ) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True, **options)
        self.cross, self.masks, self.weights = cross, masks, weights

    def forward(self, x: Tensor) -> Tensor:
        other = x.flip(1)[:, :3].sin() if self.cross else x
        if self.attention.kdim != self.attention.embed_dim:
            other = other[..., : self.attention.kdim]
        masks = {}
        if self.masks:
            causal = torch.ones(x.shape[1], other.shape[1], dtype=torch.bool).triu(1)
            padding = torch.zeros(len(x), other.shape[1], dtype=torch.bool)
            padding[:, -1] = x[:, 0, 0] > 0
            masks = {"attn_mask": causal, "key_padding_mask": padding}
        out, weights = self.attention(x, other, other, need_weights=self.weights, **masks)
        return out if weights is None else out + weights.sum(-1, keepdim=True)


class Scale(nn.Module):
    """A parameter that no rule knows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 2, width))
        self.shift = nn.ParameterList([nn.Parameter(torch.zeros(1, width))])

    def forward(self, x: Tensor, *, power: int = 1) -> Tensor:
        return x**power * self.scale + self.shift[0]


class ClassToken(nn.Module):
    """A root that owns parameters and has children, as vision transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 5))
        self.inner = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(torch.cat([self.token.expand(len(x), -1, -1), x], 1))


class Bag(nn.Module):
    """Bags of different lengths, given by offsets."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(9, 4, **options)

    def forward(self, x: Tensor) -> Tensor:
        lengths = 1 + x[:, 0] % x.shape[1]
        ids = torch.cat([row[:n] for row, n in zip(x, lengths, strict=True)])
        return self.bag(ids, lengths.cumsum(0) - lengths)


class Weighted(nn.Module):
    """A bag whose entries have weights."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(9, 4, mode="sum")

    def forward(self, x: Tensor) -> Tensor:
        return self.bag(x, per_sample_weights=x / 9)


class Twice(nn.Module):
    """One layer used three times, once for other positions."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x).tanh()).tanh() + self.layer(
            x[..., :1, :] if isinstance(self.layer, nn.Linear) else x.cos()
        )


class TiedHead(nn.Module):
    """A table that is also the output layer."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 4, **options), nn.Linear(4, 9)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.table(ids).tanh() + self.table(ids.flip(1)))


class Positions(nn.Module):
    """Tokens and positions, the positions shared by the batch."""

    def __init__(self, *, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.tokens, self.positions, self.shape = nn.Embedding(9, 4), nn.Embedding(6, 4), shape

    def forward(self, ids: Tensor) -> Tensor:
        return self.tokens(ids).tanh() * (1 + self.positions(torch.arange(6).view(self.shape)))


class ManyRows(nn.Module):
    """Layers that see k rows for each example, as windows or choices do."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def frozen(layers: list[nn.Module], *which: str) -> list[nn.Module]:
    for layer in layers:
        for name, parameter in layer.named_parameters():
            parameter.requires_grad = any(w in name for w in which)
    return layers


def floats(*shape: int) -> Callable[[int], Tensor]:
    return lambda b: torch.randn(b, *shape)


def ids(length: int = 6, top: int = 9) -> Callable[[int], Tensor]:
    return lambda b: torch.randint(top, (b, length))


LAYERS: dict[str, tuple[Callable[[], list[nn.Module]], Callable[[int], Tensor]]] = {
    "linear": (lambda: [nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)], floats(5)),
    "linear over positions": (lambda: [nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)], floats(4, 5)),
    "linear over many positions": (lambda: [nn.Linear(5, 2)], floats(40, 5)),
    "linear in four dimensions": (lambda: [nn.Linear(5, 2)], floats(2, 3, 5)),
    "linear without bias": (lambda: [nn.Linear(5, 2, bias=False)], floats(3, 5)),
    "linear over k rows": (lambda: [ManyRows(nn.Linear(5, 2))], floats(3, 4, 5)),
    "bias only": (lambda: frozen([nn.Linear(5, 7), nn.Tanh(), nn.LayerNorm(7), nn.Linear(7, 3)], "bias"), floats(4, 5)),
    "weights only": (lambda: frozen([nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3)], "weight"), floats(4, 5)),
    "frozen base": (lambda: [*frozen([nn.Linear(5, 7)]), nn.Tanh(), nn.Linear(7, 3)], floats(4, 5)),
    "frozen above": (lambda: [nn.Linear(5, 7), nn.Tanh(), *frozen([nn.Linear(7, 3)])], floats(4, 5)),
    "Conv1D of transformers": (lambda: [Conv1D(7, 5), nn.Tanh(), Conv1D(3, 7)], floats(4, 5)),
    "embedding": (lambda: [nn.Embedding(9, 4), nn.Linear(4, 2)], ids()),
    "embedding with padding": (lambda: [nn.Embedding(5, 4, padding_idx=0)], ids(top=5)),
    "embedding of one id": (lambda: [nn.Embedding(9, 4), nn.Linear(4, 2)], lambda b: torch.randint(9, (b,)) * 0 + 4),
    "positions (1, T)": (lambda: [Positions(shape=(1, 6))], ids()),
    "positions (T,)": (lambda: [Positions(shape=(6,))], ids()),
    "bag, sum": (lambda: [nn.EmbeddingBag(9, 4, mode="sum")], ids()),
    "bag, mean, padding": (lambda: [nn.EmbeddingBag(5, 4, mode="mean", padding_idx=0)], ids(top=5)),
    "bag by offsets": (lambda: [Bag(mode="mean")], ids()),
    "bag with weights": (lambda: [Weighted()], ids()),
    "layer norm": (lambda: [nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 2)], floats(4, 5)),
    "layer norm over two dimensions": (lambda: [nn.LayerNorm((4, 5))], floats(3, 4, 5)),
    "rms norm": (lambda: [nn.RMSNorm(5, eps=1e-5)], floats(4, 5)),
    "rms norm of Llama": (lambda: [LlamaRMSNorm(5)], floats(4, 5)),
    "rms norm of T5": (lambda: [T5LayerNorm(5)], floats(4, 5)),
    "group norm": (lambda: [nn.GroupNorm(2, 4), nn.Conv2d(4, 3, 3)], floats(4, 6, 6)),
    "group norm over k rows": (lambda: [ManyRows(nn.GroupNorm(2, 4))], floats(3, 4, 6, 6)),
    "instance norm 1d": (lambda: [nn.InstanceNorm1d(4, affine=True)], floats(4, 6)),
    "instance norm 2d": (lambda: [nn.Conv2d(2, 4, 3), nn.InstanceNorm2d(4, affine=True)], floats(2, 6, 6)),
    "instance norm 3d": (lambda: [nn.InstanceNorm3d(2, affine=True)], floats(2, 3, 3, 3)),
    "convolution 1d": (lambda: [nn.Conv1d(2, 4, 3, padding=1, stride=2)], floats(2, 9)),
    "convolution 2d": (
        lambda: [nn.Conv2d(2, 4, 3, padding=1, stride=2), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3, groups=2)],
        floats(2, 9, 9),
    ),
    "convolution 3d": (lambda: [nn.Conv3d(2, 3, 2, padding=1)], floats(2, 4, 4, 4)),
    "convolution, same": (lambda: [nn.Conv2d(2, 4, (2, 3), padding="same", dilation=2)], floats(2, 9, 9)),
    "convolution, valid": (lambda: [nn.Conv2d(2, 4, 3, padding="valid", bias=False)], floats(2, 9, 9)),
    "convolution, circular": (lambda: [nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular")], floats(2, 9, 9)),
    "convolution, reflect": (lambda: [nn.Conv1d(2, 4, 3, padding=2, padding_mode="reflect")], floats(2, 9)),
    "convolution, depthwise": (lambda: [nn.Conv2d(4, 8, 3, groups=4)], floats(4, 6, 6)),
    "convolution over k rows": (lambda: [ManyRows(nn.Conv2d(2, 4, 3))], floats(3, 2, 6, 6)),
    "convolution, transposed": (lambda: [nn.ConvTranspose2d(2, 4, 3, stride=2)], floats(2, 5, 5)),
    "attention": (lambda: [Attend(6)], floats(5, 6)),
    "attention with weights": (lambda: [Attend(6, weights=True)], floats(5, 6)),
    "attention, masked": (lambda: [Attend(6, masks=True)], floats(5, 6)),
    "attention, masked, with weights": (lambda: [Attend(6, masks=True, weights=True)], floats(5, 6)),
    "attention between": (lambda: [Attend(6, cross=True, masks=True)], floats(5, 6)),
    "attention, other widths": (lambda: [Attend(6, cross=True, kdim=4, vdim=4)], floats(5, 6)),
    "attention, extra keys": (lambda: [Attend(6, masks=True, add_bias_kv=True, add_zero_attn=True)], floats(5, 6)),
    "attention, no bias": (lambda: [Attend(6, bias=False)], floats(5, 6)),
    "transformer layer": (
        lambda: [nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)],
        floats(5, 6),
    ),
    "lstm": (lambda: [First(nn.LSTM(5, 4, batch_first=True))], floats(6, 5)),
    "lstm, deep, both ways": (
        lambda: [First(nn.LSTM(5, 4, num_layers=2, bidirectional=True, batch_first=True))],
        floats(6, 5),
    ),
    "lstm, projected": (lambda: [First(nn.LSTM(5, 4, proj_size=3, batch_first=True))], floats(6, 5)),
    "lstm, time first": (lambda: [First(nn.LSTM(5, 4), rows=1)], floats(6, 5)),
    "gru": (lambda: [First(nn.GRU(5, 4, num_layers=2, bidirectional=True, batch_first=True))], floats(6, 5)),
    "gru, no bias": (lambda: [First(nn.GRU(5, 4, bias=False, batch_first=True))], floats(6, 5)),
    "rnn": (lambda: [First(nn.RNN(5, 4, nonlinearity="relu", batch_first=True))], floats(6, 5)),
    "unknown": (lambda: [nn.Linear(5, 5), Scale(5)], floats(4, 5)),
    "unknown over k rows": (lambda: [ManyRows(Scale(5))], floats(3, 4, 5)),
    "unknown with children": (lambda: [ClassToken(), Scale(5)], floats(4, 5)),
    "bilinear": (lambda: [PReLUs()], floats(5)),
    "used three times": (lambda: [Twice(nn.Linear(5, 5))], floats(4, 5)),
    "convolution used three times": (lambda: [Twice(nn.Conv1d(4, 4, 3, padding=1))], floats(4, 4)),
    "unknown used three times": (lambda: [Twice(Scale(5))], floats(4, 5)),
    "tied": (lambda: [TiedHead()], ids()),
    "tied with padding": (lambda: [TiedHead(padding_idx=2)], ids()),
}


class PReLUs(nn.Module):
    """Two classes of torch's that have no rule."""

    def __init__(self) -> None:
        super().__init__()
        self.relu, self.both = nn.PReLU(5), nn.Bilinear(5, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.both(self.relu(x), x)


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize("bound", [HUGE, 0.5])
@pytest.mark.parametrize("layer", LAYERS)
def test_book_keeping_equals_one_example_at_a_time(layer: str, bound: float) -> None:
    make, draw = LAYERS[layer]
    model = Squares(*make())
    batches = [(draw(4), torch.tensor([True, True, False, True])), (draw(2), torch.ones(2, dtype=torch.bool))]
    slow = clipped(OneByOne(model, max_grad_norm=bound), model, batches)
    fast = clipped(BookKeeper(model, max_grad_norm=bound), model, batches)
    assert distance(fast, slow) < 3e-6


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize("layer", LAYERS)
def test_listening_does_not_change_what_a_layer_computes(layer: str) -> None:
    make, draw = LAYERS[layer]
    model, x = Squares(*make()), draw(4)
    plain = model(x)
    names = list(model.state_dict())
    books = BookKeeper(model, max_grad_norm=1.0)
    books.begin(torch.ones(4, dtype=torch.bool))
    torch.testing.assert_close(model(x), plain, rtol=1e-5, atol=1e-5)
    assert list(model.state_dict()) == names
    books.close()
    assert not any("forward" in vars(m) for m in model.modules())
    torch.testing.assert_close(model(x), plain, rtol=0, atol=0)
