"""Poisson sampling: every record on its own coin, every position on its own words, nothing lost in the cut."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from privguard._random import Stream
from privguard.training.sampling.sample import Poisson, cut

SOURCE = Stream.from_insecure_seed(1, "test")


def draws(rate, *, examples, positions):
    return [Poisson(rate).draw(examples=examples, source=SOURCE.child(p)) for p in range(positions)]


@pytest.mark.stat
def test_each_record_is_in_with_the_stated_rate_and_no_other():
    """Inclusions over 2,000 steps: χ² with 200 degrees, false-alarm rate 1e-3 each way; the seed is fixed."""
    inclusions = np.zeros(200)
    for drawn in draws(0.1, examples=200, positions=2000):
        inclusions[drawn] += 1

    def tails(rate):
        statistic = ((inclusions - 2000 * rate) ** 2 / (2000 * rate * (1 - rate))).sum()
        return chi2.cdf(statistic, 200), chi2.sf(statistic, 200)

    assert min(tails(0.1)) > 1e-3
    assert min(tails(0.09)) < 1e-12
    assert min(tails(0.11)) < 1e-12


@pytest.mark.stat
def test_batch_sizes_are_binomial_not_fixed():
    sizes = [len(drawn) for drawn in draws(0.1, examples=1000, positions=1000)]
    deviation = np.sqrt(1000 * 0.1 * 0.9)
    assert abs(np.std(sizes) - deviation) < 4 * deviation / np.sqrt(2 * 1000)  # 4 standard errors: 6e-5 false alarms


def test_records_are_drawn_independently_of_each_other():
    """One record's coin is its own word: adding records after it changes nothing for those before."""
    few = Poisson(0.3).draw(examples=500, source=SOURCE.child(7))
    more = Poisson(0.3).draw(examples=800, source=SOURCE.child(7))
    assert few.tolist() == [record for record in more.tolist() if record < 500]


def test_a_position_drawn_again_is_the_same_and_another_is_not():
    assert draws(0.2, examples=400, positions=3)[2].tolist() == draws(0.2, examples=400, positions=3)[2].tolist()
    assert draws(0.2, examples=400, positions=3)[1].tolist() != draws(0.2, examples=400, positions=3)[2].tolist()


def test_rate_one_takes_everyone_and_a_tiny_rate_nobody():
    assert Poisson(1.0).draw(examples=9, source=SOURCE).tolist() == list(range(9))
    assert Poisson(1e-300).draw(examples=9, source=SOURCE).tolist() == []
    with pytest.raises(ValueError, match=r"rate=0\.0: expected a number in \(0, 1\]"):
        Poisson(0.0)


@given(st.lists(st.integers(0, 10_000), unique=True, max_size=200), st.integers(1, 64))
def test_the_cut_keeps_every_record_once_in_batches_of_almost_equal_size(records, limit):
    pieces = list(cut(np.array(records, np.int64), position=3, limit=limit))
    real = [r for piece in pieces for r, there in zip(piece.records, piece.mask, strict=True) if there]
    assert Counter(real) == Counter(records)
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    sizes = [len(piece.records) for piece in pieces]
    assert max(sizes) <= limit
    assert max(sizes) - min(sizes) <= 1
    assert len(pieces) == max(1, -(-len(records) // limit))


def test_an_empty_draw_is_one_masked_row():
    (piece,) = cut(np.array([], np.int64), position=0, limit=8)
    assert (piece.records, piece.mask.tolist(), piece.last) == ([0], [False], True)
