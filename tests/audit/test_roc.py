# SPDX-License-Identifier: Apache-2.0
"""Rates with the counts behind them, and areas whose intervals hold what they say."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from privguard.audit.membership import roc

SCORES = st.lists(st.integers(-5, 5), min_size=2, max_size=30)


def joined(inside, outside):
    return np.array([*inside, *outside], float), np.arange(len(inside) + len(outside)) < len(inside)


@given(SCORES, SCORES)
def test_the_area_is_the_share_of_pairs_in_order_with_ties_at_half(inside, outside):
    pairs = [(a > b) + 0.5 * (a == b) for a in inside for b in outside]
    assert roc.auc(*joined(inside, outside)).value == pytest.approx(np.mean(pairs))


@given(SCORES, SCORES, st.sampled_from([0.05, 0.1, 0.3, 0.5]))
def test_no_more_false_positives_pass_than_were_asked_for(inside, outside, at):
    rate = roc.true_positive_rate(*joined(inside, outside), at=at)
    assert rate.false_positives <= at * len(outside) + 1e-9
    assert rate.low <= rate.true_positives / rate.members <= rate.high
    assert (rate.rate is None) == (at * len(outside) < 1 - 1e-9) == (not rate.measurable)


def test_ties_never_help():
    rate = roc.true_positive_rate(*joined([1.0] * 50, [1.0] * 50 + [0.0] * 50), at=0.1)
    assert (rate.true_positives, rate.false_positives) == (0, 0)


def test_a_rate_finer_than_the_data_is_called_not_measurable():
    rate = roc.true_positive_rate(*joined(np.ones(10), np.zeros(500)), at=0.001)
    assert not rate.measurable
    assert rate.rate is None
    assert rate.non_members == 500


def test_precision_at_a_prior():
    rate = roc.true_positive_rate(*joined([1.0] * 50 + [0.0] * 50, [1.0] * 10 + [0.0] * 90), at=0.05)
    assert rate.precision["0.1"] == 0.0  # the threshold is strict, so the tie at 1.0 counts for nobody
    rate = roc.true_positive_rate(*joined([2.0] * 50 + [0.0] * 50, [2.0] * 10 + [1.0] * 90), at=0.2)
    assert rate.precision["0.1"] == pytest.approx(0.1 * 0.5 / (0.1 * 0.5 + 0.9 * 0.1))


@pytest.mark.stat
@pytest.mark.parametrize("shift", [0.0, 0.5, 2.0])
def test_intervals_of_the_area_cover_it(shift):
    truth = stats.norm.cdf(shift / math.sqrt(2))
    random = np.random.default_rng(11)
    covered = below = 0
    for _ in range(600):
        area = roc.auc(*joined(random.standard_normal(80) + shift, random.standard_normal(120)))
        covered += area.low <= truth <= area.high
        below += area.low99 > truth
    assert covered / 600 >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / 600) - 0.005
    assert below / 600 <= 0.01 + 3 * math.sqrt(0.01 * 0.99 / 600) + 0.005


def test_a_perfect_ranking_keeps_doubt():
    area = roc.auc(*joined(np.ones(20), np.zeros(20)))
    assert area.value == 1.0
    assert area.low < 1.0


@given(SCORES, SCORES)
def test_the_curve_rises_from_chance_of_nothing_to_everything(inside, outside):
    scores, members = joined(inside, outside)
    curve = roc.curve(scores, members)
    assert (np.diff(curve.false) > 0).all()
    assert (np.diff(curve.true) >= 0).all()
    assert curve.true[-1] == curve.false[-1] == 1.0
    assert ((curve.low <= curve.true) & (curve.true <= curve.high)).all()


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), min_size=1, max_size=6))
def test_holm_lies_between_nothing_and_bonferroni(p_values):
    adjusted = roc.holm(p_values)
    assert list(adjusted) == list(p_values)
    for name, p in p_values.items():
        assert p <= adjusted[name] <= min(1.0, len(p_values) * p) + 1e-12
    assert [adjusted[n] for n in sorted(p_values, key=p_values.get)] == sorted(adjusted.values())


@pytest.mark.parametrize(
    ("scores", "members", "wanted"),
    [
        ([1.0, np.nan, 0, 0], [1, 1, 0, 0], "NaN"),
        ([1.0, 2.0], [1, 1], "at least two"),
        ([1.0], [1, 0], "one score and one"),
    ],
)
def test_what_cannot_be_ranked_is_refused(scores, members, wanted):
    with pytest.raises(ValueError, match=wanted):
        roc.auc(scores, members)
