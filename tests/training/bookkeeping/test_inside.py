# SPDX-License-Identifier: Apache-2.0
"""Layers that write their own forward around a known operation, or compute their weight from other parameters."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm

from privguard.errors import SensitivityError, UnsupportedModelError
from privguard.training.bookkeeping import BookKeeper
from privguard.training.bookkeeping.layers.without_rule import by_repetition
from privguard.training.bookkeeping.rules import listen_to
from privguard.training.one_by_one import OneByOne
from privguard.training.probes.examples import choose
from privguard.training.probes.fields import Field
from tests.training.bookkeeping.compare import clipped, distance

WIDTH = 6


class Turned(nn.Linear):
    """The product as Falcon writes it."""

    def forward(self, x: Tensor) -> Tensor:
        x = x @ self.weight.T
        return x if self.bias is None else x + self.bias


class Doubled(nn.Linear):
    """A bias that is added past the product, and a weight that counts a second time."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * functional.linear(x, self.weight) + self.bias * self.weight.mean()


class Halved(nn.Linear):
    """One operation, and something around it that the rule need not know."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x.sin(), self.weight, self.bias) / 2


class Sliced(nn.Embedding):
    """Positions as Whisper looks them up."""

    def forward(self, x: Tensor) -> Tensor:
        return self.weight[1 : 1 + x.shape[1]]


class Picked(nn.Embedding):
    """The same with places for each example, and a row that ``padding_idx`` does not keep from learning."""

    def forward(self, x: Tensor) -> Tensor:
        return self.weight[(x[..., 0] > 0).long()]


class Scaled(nn.Embedding):
    """A scale that is learned through the table as well."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x[..., 0] > 0).long()) * self.weight.square().mean()


class Plus(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first, self.layer = nn.Linear(WIDTH, WIDTH), layer

    def forward(self, x: Tensor) -> Tensor:
        out = self.first(x).tanh()
        out = out + self.layer(x if isinstance(self.layer, nn.Embedding) else out)
        return (out.sin() + 0.3 * out.square()).flatten(1).sum(1)


LAYERS = {
    "turned": lambda: Turned(WIDTH, WIDTH),
    "turned, no bias": lambda: Turned(WIDTH, WIDTH, bias=False),
    "doubled": lambda: Doubled(WIDTH, WIDTH),
    "halved": lambda: Halved(WIDTH, WIDTH),
    "sliced": lambda: Sliced(9, WIDTH),
    "picked": lambda: Picked(9, WIDTH),
    "picked, padding": lambda: Picked(9, WIDTH, padding_idx=0),
    "scaled": lambda: Scaled(9, WIDTH),
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)),
    "weight norm of a convolution": lambda: parametrizations.weight_norm(nn.Conv1d(5, 5, 3, padding=1), dim=2),
    "rms norm of Gemma": lambda: Gemma2RMSNorm(WIDTH),
}


@pytest.mark.parametrize(("rows", "bound"), [(3, 0.3), (5, 1e6)])  # five examples of five positions
@pytest.mark.parametrize("layer", LAYERS)
def test_what_the_layer_does_with_its_weight_is_found(layer: str, rows: int, bound: float) -> None:
    torch.manual_seed(0)
    model, x = Plus(LAYERS[layer]()), torch.randn(rows, 5, WIDTH)
    plain, names, batch = model(x), list(model.state_dict()), [(x, torch.ones(rows, dtype=torch.bool))]
    slow = clipped(OneByOne(model, max_grad_norm=bound), model, batch)
    books = BookKeeper(model, max_grad_norm=bound)
    for _ in range(2):  # what was learned about the layer holds the second time
        books.begin(batch[0][1])
        torch.testing.assert_close(losses := model(x), plain)
        books.backward(losses)
        assert distance(books.take().gradients, slow) < 3e-6
    books.close()
    assert list(model.state_dict()) == names
    assert torch.equal(model(x), plain)


@pytest.mark.parametrize("layer", ["turned", "rms norm of Gemma"])
def test_a_known_operation_in_other_words_needs_no_second_forward(layer: str) -> None:
    assert listen_to("", LAYERS[layer]()) is not by_repetition


@pytest.mark.parametrize("draw", [lambda: float(np.random.rand()), random.random])  # noqa: NPY002
def test_a_module_without_a_rule_that_draws_outside_of_torch_is_refused(draw: Callable[[], float]) -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale * draw()

    model = nn.Sequential(Noisy())
    clipper = BookKeeper(model, max_grad_norm=1.0)
    clipper.begin(torch.ones(2, dtype=torch.bool))
    with pytest.raises(UnsupportedModelError, match="draws random numbers"):
        model(torch.randn(2, 3))


def test_a_root_with_dropout_below_it_is_told_what_to_freeze() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.drop = nn.Parameter(torch.ones(3)), nn.Dropout(0.1)

        def forward(self, x: Tensor) -> Tensor:
            return self.drop(x + self.token)

    with pytest.raises(UnsupportedModelError, match=r"freeze what the module itself owns \(token\)"):
        BookKeeper(nn.Sequential(Root()), max_grad_norm=1.0)


class Biased(nn.Module):
    """A scale of its own around attention whose bias is trained by the layer below, as in BEiT."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.table = nn.Parameter(torch.ones(WIDTH)), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        heads = x[:, None]
        return functional.scaled_dot_product_attention(heads, heads, heads, self.table(heads))[:, 0] * self.scale


class Against(nn.Module):
    """Scores of every example against every other one, with a scale of its own, as in CLIP."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(WIDTH, WIDTH), nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        each = self.layer(x)
        return each @ each.t() * self.scale


def test_parameters_below_a_repeated_module_stay_out_of_its_second_run() -> None:
    torch.manual_seed(0)
    model, batch = Plus(Biased()), [(torch.randn(3, 5, WIDTH), torch.ones(3, dtype=torch.bool))]
    slow = clipped(OneByOne(model, max_grad_norm=0.3), model, batch)
    assert distance(clipped(BookKeeper(model, max_grad_norm=0.3), model, batch), slow) < 3e-6


def contrast(model: nn.Module, x: Tensor) -> Tensor:
    return functional.cross_entropy(model(x), torch.arange(len(x)), reduction="none")


def test_a_module_that_needs_the_whole_batch_is_refused_by_name() -> None:
    model = Against()
    clipper = BookKeeper(model, max_grad_norm=1.0)
    with clipper.unclipped():  # as the probe runs it; in a real batch its losses are found to reach other rows first
        clipper.begin(torch.ones(3, dtype=torch.bool))
        with pytest.raises(UnsupportedModelError, match=r"module='' \(Against\).*does not give for one example alone"):
            clipper.backward(contrast(model, torch.randn(3, WIDTH)))


def test_a_loss_over_the_batch_is_not_trained_one_by_one() -> None:
    model = Against()
    with pytest.raises(SensitivityError, match="exchanging example"):
        choose(model, lambda x: contrast(model, x), Field((WIDTH,), torch.float32), max_grad_norm=1.0)
