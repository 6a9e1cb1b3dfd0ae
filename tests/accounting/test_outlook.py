# SPDX-License-Identifier: Apache-2.0
"""Whether a run can learn: the figure against a simulation, and what helps against plans made for it."""

import math

import numpy as np
import pytest

from privguard.accounting.bands import Schedule, coefficients
from privguard.accounting.calibrate import Budget
from privguard.accounting.outlook import LIMITS, Start, outlook
from privguard.accounting.remedies import remedies
from privguard.training.plan import Plan

SENTENCES = {"epsilon": 3.0, "delta": 1e-4, "examples": 640, "batch_size": 64, "epochs": 1, "max_grad_norm": 1.0}


def walked(strategy, *, noise, batch, steps, trained, clip=0.7):
    """Noise over signal in the weights after all steps, by walking them: all records pull one way, each by ``clip``."""
    chance = np.random.default_rng(0)
    drawn = chance.normal(0, noise * clip, (steps, trained))
    norms = np.array([math.sqrt(sum(c * c for c in strategy[: steps - t])) for t in range(steps)])
    released = np.zeros((steps, trained))
    for t in range(steps):
        before = sum(strategy[j] * released[t - j] for j in range(1, min(len(strategy), t + 1)))
        released[t] = drawn[t] - before
    released *= norms.max()
    places = np.cumsum(released, 0)
    noise_moved = np.linalg.norm(places, axis=1) / np.sqrt(np.arange(1, steps + 1))
    signal = steps * batch * clip
    return float(np.sqrt(np.mean((noise_moved**2) * np.arange(1, steps + 1)) * 2 * steps / (steps + 1))) / signal


def test_noise_over_signal_is_what_a_walk_of_noise_and_aligned_records_shows():
    """5,000 weights: the norm of the walk is within 2 % of its mean but for fewer than one seed in a million."""
    for noise, batch, steps in ((1.0, 20, 30), (4.0, 100, 12)):
        expected = outlook(noise_multiplier=noise, batch_size=batch, steps=steps, trained=5000).noise_over_signal
        assert walked((1.0,), noise=noise, batch=batch, steps=steps, trained=5000) == pytest.approx(expected, rel=0.06)
        assert expected == pytest.approx(noise * math.sqrt(5000) / (batch * math.sqrt(steps)))


def test_correlated_noise_leaves_less_in_the_weights_by_as_much_as_its_walk():
    strategy = coefficients(4, steps=40)
    numbers = {"noise_multiplier": 1.0, "batch_size": 20, "steps": 40, "trained": 4000}
    less = outlook(**numbers, strategy=strategy).noise_over_signal
    assert less < 0.9 * outlook(**numbers).noise_over_signal
    assert walked(strategy, noise=1.0, batch=20, steps=40, trained=4000) == pytest.approx(less, rel=0.06)


def test_a_run_is_faint_above_the_limit_of_how_it_begins_and_says_with_how_many_weights_it_is_not():
    numbers = {"noise_multiplier": 1.56, "batch_size": 1024, "steps": 34, "trained": 1_400_000}
    assert [outlook(**numbers, start=start).faint for start in Start] == [False, True, False]
    faint = outlook(**numbers, start=Start.TABLE)
    fewer = {**numbers, "trained": faint.most_trained}
    assert not outlook(**fewer, start=Start.TABLE).faint
    assert outlook(**{**fewer, "trained": faint.most_trained + 1}, start=Start.TABLE).faint
    assert not outlook(**{**numbers, "noise_multiplier": 0.0}, start=Start.TABLE).faint


def test_what_helps_is_said_with_the_figure_of_a_plan_made_so():
    plan, weights = Plan.for_budget(**SENTENCES), 100_000
    faint = plan.outlook(weights)
    schedule = Schedule(examples=640, batch_size=64, steps=plan.steps)
    listed = remedies(Budget(epsilon=3.0, delta=1e-4), schedule, faint)
    batch, fewer, passes, tuned = listed
    larger = Plan.for_budget(**{**SENTENCES, "batch_size": 256}).outlook(weights).noise_over_signal
    assert batch.noise_over_signal == pytest.approx(larger, rel=0.1)  # steps are whole: 2 for 3
    longer = Plan.for_budget(**{**SENTENCES, "epochs": 4}).outlook(weights).noise_over_signal
    assert passes.noise_over_signal == pytest.approx(longer, rel=0.02)
    assert f"{faint.most_trained:,}" in fewer.change
    assert fewer.noise_over_signal == LIMITS[Start.SCRATCH]
    assert tuned.noise_over_signal == faint.noise_over_signal
    assert [each.enough for each in listed] == [False, True, False, faint.noise_over_signal <= LIMITS[Start.TUNED]]
