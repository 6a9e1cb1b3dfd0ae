# SPDX-License-Identifier: Apache-2.0
"""Events as JSON: what is written is read back equal, and nothing else is let in."""

import json
import math

import dp_accounting as dp
import pytest
from dp_accounting import dp_event
from hypothesis import given
from hypothesis import strategies as st

from privguard import _canon
from privguard.accounting import events
from privguard.errors import UnknownEventError

NOISE = st.floats(0, 1e6)
SHARE = st.floats(0, 1)
PLAIN = st.one_of(
    st.just(dp.NoOpDpEvent()),
    st.just(dp.NonPrivateDpEvent()),
    st.builds(dp.GaussianDpEvent, NOISE),
    st.builds(dp.LaplaceDpEvent, NOISE),
    st.builds(dp_event.DiscreteLaplaceDpEvent, NOISE, st.integers(0, 9)),
    st.builds(dp_event.RandomizedResponseDpEvent, SHARE, st.integers(1, 9)),
    st.builds(dp.PoissonSampledDpEvent, SHARE, st.builds(dp.GaussianDpEvent, NOISE)),
    st.builds(dp.PoissonSampledDpEvent, SHARE, st.builds(dp.LaplaceDpEvent, NOISE)),
    st.builds(dp_event.TruncatedSubsampledGaussianDpEvent, st.integers(0, 99), SHARE, st.integers(0, 99), NOISE),
    st.builds(dp_event.MixtureOfGaussiansDpEvent, NOISE, st.just([0.0, 1.0]), st.just([0.75, 0.25])),
)
EVENTS = st.recursive(
    PLAIN,
    lambda inner: st.one_of(
        st.builds(dp.ComposedDpEvent, st.lists(inner, max_size=3)),
        st.builds(dp.SelfComposedDpEvent, inner, st.integers(0, 99)),
        st.builds(dp_event.RepeatAndSelectDpEvent, inner, st.floats(1, 99), st.sampled_from([0.0, 1.0, math.inf])),
    ),
    max_leaves=4,
)


@given(EVENTS)
def test_an_event_survives_canonical_json(event):
    assert events.from_json(json.loads(_canon.canonical(events.to_json(event)))) == event


@given(st.lists(st.tuples(PLAIN, st.integers(0, 3)), max_size=6), st.randoms())
def test_folding_forgets_order_and_keeps_counts(history, random):
    shuffled = list(history)
    random.shuffle(shuffled)
    folded = events.fold(history)
    assert folded == events.fold(shuffled)
    assert sum(times for _, times in folded) == sum(times for _, times in history)
    assert len({repr(event) for event, _ in folded}) == len(folded)


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"GaussianDpEvent": {}, "LaplaceDpEvent": {}},
        {"GaussianDpEvent": {"noise_multiplier": 1.0, "more": 1}},
        {"GaussianDpEvent": {"noise_multiplier": -1.0}},
        {"GaussianDpEvent": {"noise_multiplier": "x"}},
        {"SelfComposedDpEvent": {"event": {"NoOpDpEvent": {}}, "count": 1.5}},
        {"MixtureOfGaussiansDpEvent": {"standard_deviation": 1, "sensitivities": [math.inf], "sampling_probs": [1]}},
    ],
)
def test_what_is_no_event_is_refused(value):
    with pytest.raises(ValueError, match=r"expected|could not convert"):
        events.from_json(value)


def test_a_look_alike_class_is_refused_by_name():
    class GaussianDpEvent:
        noise_multiplier = 1.0

    with pytest.raises(UnknownEventError, match="GaussianDpEvent"):
        events.to_json(GaussianDpEvent())
    for name in ("ZCDpEvent", "os.system", "UnsupportedDpEvent"):
        with pytest.raises(UnknownEventError, match=name):
            events.from_json({name: {}})
