# SPDX-License-Identifier: Apache-2.0
"""Where the examples are: in another dimension than the first, or nowhere, in a tensor that all of them share."""

import pytest
import torch
from torch import Tensor, nn

from privguard.errors import UnsupportedModelError
from privguard.training.bookkeeping import BookKeeper
from privguard.training.bookkeeping.isolation.layout import SHARED, Layout
from privguard.training.clip import Clipper
from privguard.training.one_by_one import OneByOne
from privguard.training.probes.examples import choose
from privguard.training.probes.fields import Field
from tests.training.bookkeeping.compare import clipped, distance

LENGTH, WIDTH = 6, 8


def chosen(model: nn.Module, bound: float, shape: tuple[int, ...]) -> Clipper:
    clipper, why = choose(model, model, Field(shape, torch.float32), max_grad_norm=bound)
    assert why is None
    return clipper


def check(model: nn.Module, *shape: int) -> None:
    """The fast sum is the slow one, for batches whose size could be a number of tokens, windows or channels."""
    for rows, bound in [(2, 0.1), (3, 1e6), (LENGTH, 0.1), (LENGTH, 1e6), (9, 1e6)]:
        x, mask = torch.randn(rows, *shape), torch.ones(rows, dtype=torch.bool)
        fast = clipped(chosen(model, bound, shape), model, [(x, mask)])
        slow = clipped(OneByOne(model, max_grad_norm=bound), model, [(x, mask)])
        assert distance(fast, slow) < 1e-5


class TokensFirst(nn.Module):
    """torch's own default layout, (tokens, examples, width)."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.first, self.body, self.head = nn.Linear(WIDTH, WIDTH), body, nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(self.first(x.transpose(0, 1)))
        return self.head(h[0] if isinstance(h, tuple) else h).transpose(0, 1).sin().mean((1, 2))


class Scaled(nn.Module):
    """Has no rule, and a mask with as many rows as there are tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(WIDTH))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x * self.scale.sin() * mask


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scaled = Scaled()

    def forward(self, x: Tensor) -> Tensor:
        return self.scaled(x, torch.arange(1.0, len(x) + 1)[:, None, None])


def layer() -> nn.Module:
    return nn.TransformerEncoderLayer(WIDTH, 2, 12, dropout=0.0)


BODIES = {
    "encoder": lambda: nn.TransformerEncoder(layer(), 2, enable_nested_tensor=False),
    "lstm": lambda: nn.LSTM(WIDTH, WIDTH),
    "no rule": Tokens,
}


@pytest.mark.parametrize("body", BODIES)
def test_tokens_may_come_first(body: str) -> None:
    torch.manual_seed(0)
    check(TokensFirst(BODIES[body]()), LENGTH, WIDTH)


class Windows(nn.Module):
    """Nine windows for each example, and one mask for all: rows of the mask are not rows of examples."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = Inner(), nn.Linear(WIDTH, 3)
        self.mask = torch.linspace(0, 2, 9).view(9, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x.flatten(0, 1), self.mask)).unflatten(0, (len(x), -1)).sin().mean((1, 2))


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.randn(WIDTH))

    def forward(self, windows: Tensor, mask: Tensor) -> Tensor:
        each = windows.unflatten(0, (-1, len(mask)))
        return (each.sin() * self.shift * mask).flatten(0, 1).tanh()


def test_a_mask_of_windows_is_not_taken_for_examples() -> None:
    torch.manual_seed(1)
    check(Windows(), 9, WIDTH)


class Table(nn.Module):
    """A projected table, which all examples look up: its gradient is one sum."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.places = torch.randn(15, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return (x.mean(1) @ self.layer(self.places).t()).sin().mean(1)


def test_what_is_computed_once_for_the_batch_trains_one_by_one_and_the_reason_says_so() -> None:
    model = Table()
    clipper, why = choose(model, model, Field((LENGTH, WIDTH), torch.float32), max_grad_norm=1.0)
    assert isinstance(clipper, OneByOne)
    assert "module='layer': computes (15, 8) once for the whole batch" in str(why)


def test_two_sizes_tell_and_calls_that_disagree_do_not() -> None:
    layout = Layout()
    assert layout.given() is None
    for size in (3, 5):
        layout.note(size, (torch.zeros(6, size, 2), torch.zeros(3), torch.zeros(2 * size)), torch.zeros(size, 15))
    assert layout.taken(3) == [1, SHARED, 0]
    assert layout.taken(2) == [None, None]  # called in another way
    assert layout.given() == 0
    for size in (3, 5):
        layout.note(size, (torch.zeros(size, 6, 2),), torch.zeros(size))
    assert layout.taken(3) == layout.taken(1) * 3 == [None] * 3
    assert layout.given() == 0


class Optional(nn.Module):
    """Might be given a mask later on, and nobody saw where its examples are."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(WIDTH))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return x * self.scale if mask is None else x * self.scale * mask


class MayMask(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Optional()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, None)


def test_tokens_first_under_a_module_without_a_rule_that_may_be_given_more_train_one_by_one() -> None:
    model = TokensFirst(MayMask())
    clipper, why = choose(model, model, Field((LENGTH, WIDTH), torch.float32), max_grad_norm=1.0)
    assert isinstance(clipper, OneByOne)
    assert "module='body.inner' (Optional)" in str(why)


def test_watching_taps_nothing() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    clipper = BookKeeper(model, max_grad_norm=1.0)
    with clipper.rehearsal(3):
        assert model(torch.randn(3, 3)).shape == (3, 2)
    assert clipper.take().gradients["0.weight"].norm() == 0
    with pytest.raises(UnsupportedModelError, match="once for the whole batch"):
        shared_after_two(model, clipper)


def shared_after_two(model: nn.Module, clipper: Clipper) -> None:
    for size in (3, 5):
        with clipper.rehearsal(size):
            model(torch.randn(6, 3))
    clipper.begin(torch.ones(2, dtype=torch.bool))
    clipper.backward(model(torch.randn(6, 3)).sum() * torch.ones(2))
