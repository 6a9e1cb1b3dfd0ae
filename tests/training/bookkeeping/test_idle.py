# SPDX-License-Identifier: Apache-2.0
"""Positions that add nothing are left out, and nothing else changes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks.models import bert, classify_text
from privguard.training.bookkeeping import BookKeeper, factors
from privguard.training.bookkeeping.idle import without_idle
from privguard.training.one_by_one import OneByOne
from tests.training.bookkeeping.compare import clipped, distance

SPECIAL = [1e-45, 1e-30, 1e38, float("nan"), float("inf"), -float("inf")]


@st.composite
def factor_pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Rows and columns, many positions of either side zero, and some numbers that squares or products lose."""
    batch, length = draw(st.integers(1, 4)), draw(st.integers(1, 8))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    sides: list[Tensor] = []
    for width in (3, 2):
        side = torch.randn(batch, length, width, generator=generator)
        kept = draw(st.floats(0, 1))
        side *= torch.rand(batch, length, 1, generator=generator) < kept
        for _ in range(draw(st.integers(0, 2))):
            place = draw(st.integers(0, batch - 1)), draw(st.integers(0, length - 1)), draw(st.integers(0, width - 1))
            side[place] = draw(st.sampled_from(SPECIAL))
        sides.append(side)
    return sides[0], sides[1]


@given(pair=factor_pairs())
def test_every_example_keeps_its_gradient(pair: tuple[Tensor, Tensor]) -> None:
    """In float64, where no product of two of these numbers is lost; NaN and infinity stay what they are."""
    whole, left = (torch.einsum("btp,btd->bpd", *(x.double() for x in p)) for p in (pair, without_idle(*pair)))
    torch.testing.assert_close(left, whole, rtol=1e-12, atol=0, equal_nan=True)


@pytest.mark.parametrize("side", [0, 1])
def test_as_many_positions_stay_as_the_busiest_example_needs(side: int) -> None:
    pair = [torch.randn(3, 8, 5), torch.randn(3, 8, 4)]
    busy = [[5], [1, 7, 6], []]
    for example, positions in enumerate(busy):
        pair[side][example, [t for t in range(8) if t not in positions]] = 0
    rows, cols = without_idle(*pair)
    assert rows.shape == (3, 3, 5)
    assert cols.shape == (3, 3, 4)
    assert torch.equal(rows[1], pair[0][1, [1, 6, 7]])
    assert torch.equal(cols[1], pair[1][1, [1, 6, 7]])


def test_a_position_whose_squares_underflow_stays() -> None:
    rows, cols = torch.zeros(2, 8, 5), torch.randn(2, 8, 4)
    rows[:, 6] = 1e-45
    assert torch.equal(without_idle(rows, cols)[0], rows[:, 6:7])


def test_nothing_is_copied_where_little_would_be_left_out() -> None:
    rows, cols = torch.randn(3, 8, 5), torch.randn(3, 8, 4)
    rows[:, :3] = 0
    rows[0, 3:] = 0  # the first example alone would be served by few
    left = without_idle(rows, cols)
    assert left[0] is rows
    assert left[1] is cols


def test_a_classifier_of_one_position_forms_one_product_in_most_of_its_last_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    model, ids = bert(layers=2, width=32, heads=2, length=16, words=50).eval(), torch.randint(50, (4, 16))
    lengths: dict[tuple[int, ...], list[int]] = {}

    def noted(rows: Tensor, cols: Tensor) -> tuple[Tensor, Tensor]:
        found = without_idle(rows, cols)
        lengths.setdefault((rows.shape[2], cols.shape[2]), []).append(found[0].shape[1])
        return found

    monkeypatch.setattr(factors, "without_idle", noted)
    sums = run(BookKeeper(model, max_grad_norm=0.1), model, ids)
    assert lengths[128, 32] == [1, 16]  # backwards: the last block first
    assert lengths[32, 128] == [1, 16]
    assert sorted(lengths[32, 32]) == [1, 1, 1, *[16] * 6]  # pooler, query and output; key and value take all
    assert distance(sums, run(OneByOne(model, max_grad_norm=0.1), model, ids)) < 1e-5


def run(clipper: BookKeeper | OneByOne, model: nn.Module, ids: Tensor) -> dict[str, Tensor]:
    for rows in ids.split(clipper.rows or len(ids)):
        clipper.begin(torch.ones(len(rows), dtype=torch.bool))
        clipper.backward(classify_text(model, (rows, torch.zeros(len(rows), dtype=torch.long))))
    total = clipper.take().gradients
    clipper.close()
    return total


class First(nn.Module):
    """Reads one position in four."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.above = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.above(self.below(x).tanh())[:, 0].square().sum(1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_record_that_is_not_finite_where_nobody_looks_counts_as_zero_all_the_same(bad: float) -> None:
    torch.manual_seed(0)
    model, x, mask = First(), torch.randn(4, 4, 3), torch.ones(4, dtype=torch.bool)
    x[1, 2] = bad
    both = [clipped(way(model, max_grad_norm=0.5), model, [(x, mask)]) for way in (BookKeeper, OneByOne)]
    keep = torch.tensor([0, 2, 3])
    assert distance(*both) < 1e-6
    assert distance(both[0], clipped(OneByOne(model, max_grad_norm=0.5), model, [(x[keep], mask[keep])])) < 1e-6
