# SPDX-License-Identifier: Apache-2.0
"""Sums go over examples in float64: no example's rounding depends on another, whichever way the products take."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from privguard.training.attach import attach
from privguard.training.bookkeeping import products
from privguard.training.bookkeeping.gradients import Instantiated, Product, square_lengths
from privguard.training.bookkeeping.products import LONGEST, add_products, add_rows
from privguard.training.clip import ROUNDING
from privguard.training.one_by_one import OneByOne

ROUND = 2.0**-24


def weighted(x, weights):
    return x * weights[:, None, None]


def made(batch, length, height, width, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows, cols = (torch.randn(batch, length, n, generator=generator) for n in (height, width))
    return rows, cols, torch.rand(batch, generator=generator, dtype=torch.float64)


SHAPES = [
    (5, 1, 7, 9),
    (4, 3, 20, 5),
    (3, 40, 90, 80),
    (2, LONGEST + 1, 70, 60),
    (2, 2 * LONGEST, 50, 90),
    (2, 30, 700, 900),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_way_adds_the_weighted_sum_to_what_is_there(shape):
    """Worst error of an example: γ(130) of the sum of its positions' lengths."""
    rows, cols, weights = made(*shape)
    into = torch.ones(shape[2:], dtype=torch.float64)
    add_products(rows, cols, weights, into, weighted=weighted)
    truth = 1 + torch.einsum("b,btp,btd->pd", weights, rows.double(), cols.double())
    lengths = (weights[:, None] * rows.double().norm(dim=2) * cols.double().norm(dim=2)).sum()
    assert float((into - truth).norm()) <= (LONGEST + 2) * ROUND * float(lengths)
    side = torch.ones_like(into)
    products._side_by_side(rows * weights.float()[:, None, None], cols, side)  # what a device does
    assert float((side - truth).norm()) <= (LONGEST + 2) * ROUND * float(lengths)


@pytest.mark.parametrize("shape", SHAPES)
def test_what_an_example_adds_does_not_depend_on_the_others(shape):
    """Its part of the float64 sum is bit for bit what it adds alone, to the rounding of float64: 2⁻⁵³ of the sum.

    One float32 product over the batch, as before, differs by 10⁶ times that.
    """
    rows, cols, weights = made(*shape)

    def total(which):
        into = torch.zeros(shape[2:], dtype=torch.float64)
        add_products(rows[which], cols[which], weights[which], into, weighted=weighted)
        return into

    every, others = total(slice(None)), total(slice(1, None))
    alone = total(slice(0, 1))
    assert float((every - others - alone).abs().max()) <= 1e-13 * float(every.abs().max() + alone.abs().max())
    batch = (rows * weights.float()[:, None, None]).flatten(0, 1).t() @ cols.flatten(0, 1)
    if shape[1] * shape[0] > 50:
        rest = (rows[1:] * weights.float()[1:, None, None]).flatten(0, 1).t() @ cols[1:].flatten(0, 1)
        assert float((batch.double() - rest.double() - alone).abs().max()) > 1e-8 * float(every.abs().max())


@given(st.integers(1, 70), st.integers(1, 5000), st.integers(0, 1000))
def test_rows_are_added_in_float64(batch, width, seed):
    generator = torch.Generator().manual_seed(seed)
    rows, weights = torch.randn(batch, width, generator=generator), torch.rand(batch, dtype=torch.float64)
    into = torch.ones(width, dtype=torch.float64)
    add_rows(rows, weights, into)
    assert torch.allclose(into, 1 + rows.double().t() @ weights, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("width", [1, 1023, 1024, 1025, 100_000])
def test_squares_are_added_up_in_stretches(width):
    """Agreeing numbers, of which a long float32 sum loses the most."""
    x = torch.full((3, width), 1.1)
    truth = x.double().square().sum(1)
    assert ((square_lengths(x) - truth).abs() <= 6.2e-5 * truth).all()


def test_lengths_too_small_to_square_have_slack():
    for gradient in (Instantiated((torch.full((2, 50), 1e-25),)), Product(*made(2, 1, 5, 4)[:2])):
        squares, slack = gradient.square_norms()
        assert slack is not None
        assert (squares + slack >= gradient.settle(torch.tensor([0, 1])) * (1 - 6.2e-5)).all()


@pytest.mark.parametrize("rows", [64, 4096])
@pytest.mark.parametrize("width", [1, 16])
@pytest.mark.parametrize("way", [attach, OneByOne])
def test_one_record_among_thousands_that_agree_moves_the_sum_by_its_bound(rows, width, way):
    """In float32 sums one moved it by 1.0005 of the bound; the bound priced is 1.001 of the clipping norm."""
    count = 200 if way is OneByOne else 8_000
    model, generator = nn.Linear(width, 1, bias=False), torch.Generator().manual_seed(1)
    x = 5 * (torch.randn(width, generator=generator) * 0.01 + 1 + torch.randn(count, width, generator=generator) * 0.05)
    clipper = way(model, max_grad_norm=1.0)

    def total(x):
        for part in x.split(1 if way is OneByOne else rows):
            clipper.begin(torch.ones(len(part), dtype=torch.bool))
            clipper.backward(model(part)[:, 0])
        return clipper.take()

    whole = total(x)
    assert whole.l2_bound == 1 + ROUNDING
    assert whole.records == count
    assert whole.gradients["weight"].dtype == torch.float64
    for k in (0, count - 1):
        moved = whole.gradients["weight"] - total(torch.cat([x[:k], x[k + 1 :]])).gradients["weight"]
        assert float(moved.norm()) <= 1 + 1e-6
    clipper.close()
