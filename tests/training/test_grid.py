# SPDX-License-Identifier: Apache-2.0
"""The public grid: what rounding adds to the sensitivity, and what no integer or float of a run may exceed."""

import math
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privguard.errors import PrivacyError
from privguard.training.noise.gaussian import MOST
from privguard.training.noise.grid import Grid

BOUNDS = st.floats(1e-6, 1e6)


@given(BOUNDS, st.integers(1, 10**11), st.integers(1, 4096))
def test_rounding_costs_what_the_specification_says_and_no_finer_grid_is_taken_than_it_allows(bound, size, ranks):
    """Δ = bound + R·√d·g in exact arithmetic, within a relative 2⁻⁴⁹ above it and never below; g is the largest."""
    grid = Grid.of(bound, coordinates=size, processes=ranks)
    added = ranks * math.sqrt(size) * grid.step
    exact = Fraction(bound) + Fraction(added)
    assert exact <= Fraction(grid.sensitivity) <= exact * (1 + Fraction(1, 2**49))
    assert added <= 1e-4 * bound * (1 + 1e-12)
    assert 2 * added > 1e-4 * bound * (1 - 1e-12)
    assert grid.step == 2.0**grid.exponent


def test_the_grid_of_known_numbers():
    """By hand: 1e-4·1/√1 lies between 2⁻¹⁴ and 2⁻¹³; four times the coordinates or two processes halve the step."""
    assert Grid.of(1.0, coordinates=1).exponent == -14
    assert Grid.of(1.0, coordinates=4).exponent == -15
    assert Grid.of(1.0, coordinates=1, processes=2).exponent == -15
    assert Grid.of(1.0, coordinates=0) == Grid.of(1.0, coordinates=1)
    assert Grid.of(2.0, coordinates=1).exponent == -13
    assert Grid.of(1.0, coordinates=1).sensitivity == (1 + 2.0**-14) * (1 + 2.0**-50)


def test_the_deviation_counts_steps_of_the_sensitivity():
    assert Grid(-3, 1.5).deviation(2.0) == 24.0  # 2 · 1.5 · 2³


def refusal(grid, multiplier=1.0, records=1):
    with pytest.raises(PrivacyError) as error:
        grid.check(multiplier, records=records)
    return str(error.value)


FLOAT = (
    "the grid's step 2^{} or the sum leaves the range of float32, which would lose the noise; scale the loss, and "
    "max_grad_norm with it, towards 1"
)
INTEGER = "sum and noise leave the range of 64-bit integers; plan fewer records in a step or less noise"


def test_a_step_that_float32_would_lose_is_refused_and_the_last_it_keeps_is_not():
    Grid(-112, 2.0**-99).check(1.0, records=1)
    shown = f"noise_multiplier=1, sensitivity={2.0**-99:g}, records=1: "
    assert refusal(Grid(-113, 2.0**-99)) == shown + FLOAT.format(-113)


def test_a_sum_that_float32_cannot_hold_is_refused_with_its_noise_counted():
    """2¹²⁷ is the limit itself: 2 records of 2¹²⁶ reach it, one and 14 deviations of noise do as well."""
    at_the_limit = Grid(80, 2.0**126)
    at_the_limit.check(2.0**-60, records=1)
    for multiplier, records in ((2.0**-60, 2), (1 / 14, 1), (math.nan, 1), (0.08, 1)):
        assert refusal(at_the_limit, multiplier, records).endswith(FLOAT.format(80)), (multiplier, records)


def test_integers_that_64_bits_cannot_hold_are_refused_at_the_limit_itself():
    grid = Grid(0, 2.0**61)
    tiny = 2.0**-70  # 14 deviations vanish beside 2⁶², so the sum is at the limit and not above it
    assert grid.deviation(tiny) < MOST
    grid.check(tiny, records=1)
    shown = f"noise_multiplier={tiny:g}, sensitivity={2.0**61:g}, records=2: "
    assert refusal(grid, tiny, 2) == shown + INTEGER
    assert refusal(replace(grid, exponent=-1), tiny, 1).endswith(INTEGER)


def test_noise_beyond_what_the_refiner_decides_is_refused_at_the_limit_itself():
    grid = Grid(0, 1.0)
    grid.check(math.nextafter(float(MOST), 0), records=1)
    assert refusal(grid, float(MOST)).endswith(INTEGER)
