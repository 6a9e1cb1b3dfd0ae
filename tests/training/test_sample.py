# SPDX-License-Identifier: Apache-2.0
"""Poisson sampling: every record on its own coin, every position on its own words, nothing lost in the cut."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from privguard._random import Stream
from privguard.training.sampling.sample import CyclicPoisson, Poisson, cut

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


def cyclic(rate, bands, *, examples, positions):
    sampler = CyclicPoisson(rate, bands, SOURCE.child("groups"))
    taken = np.zeros((positions, examples), bool)
    for p in range(positions):
        taken[p, sampler.draw(examples=examples, source=SOURCE.child(p), position=p)] = True
    return taken


@pytest.mark.stat
def test_groups_take_turns_and_a_record_enters_each_step_of_its_own_with_the_rate():
    """Poisson inclusion in 30 rounds of 4 groups, within 4.9 standard errors (1e-6); B/N for b·B/N is found."""
    taken = cyclic(0.4, 4, examples=5000, positions=120)
    places = [set(np.flatnonzero(record) % 4) for record in taken.T]
    assert all(len(place) <= 1 for place in places)
    inclusions = taken.sum(0)
    error = 4.9 * np.sqrt(0.4 * 0.6 / (30 * 5000))
    assert abs(inclusions.mean() / 30 - 0.4) < error < 0.3
    assert abs(inclusions.var() / (30 * 0.4 * 0.6) - 1) < 4.9 * np.sqrt(2 / 5000) + 0.02
    sizes = np.bincount([min(place, default=0) for place in places], minlength=4)
    assert (abs(sizes - 1250) < 4.9 * np.sqrt(5000 * 3 / 16)).all()


def test_one_record_more_changes_neither_group_nor_coin_of_any_other():
    few, more = (cyclic(0.5, 3, examples=count, positions=9) for count in (200, 260))
    assert (few == more[:, :200]).all()


def test_groups_do_not_follow_the_order_of_the_records():
    """By index, a record that is removed moves all later ones to another group; a word of one's own does not."""
    taken = cyclic(1.0, 4, examples=400, positions=4)
    assert (taken.sum(0) == 1).all()
    groups = taken.argmax(0)
    assert 60 < (groups == np.arange(400) % 4).sum() < 140  # 100 expected, 4.6 standard errors


def test_one_group_is_plain_poisson():
    taken = cyclic(0.3, 1, examples=300, positions=5)
    assert [np.flatnonzero(step).tolist() for step in taken] == [
        drawn.tolist() for drawn in draws(0.3, examples=300, positions=5)
    ]


class Words:
    """A stream whose words are given, for the edges that no seed reaches."""

    def __init__(self, *words):
        self.given = np.array(words, np.uint64)

    def words(self, count):
        assert count == len(self.given)
        return self.given


def test_a_word_at_the_threshold_is_out_so_the_rate_is_never_exceeded():
    half = 1 << 63
    assert Poisson(0.5).draw(examples=3, source=Words(half - 1, half, half + 1)).tolist() == [0]


def test_a_sampler_of_bands_refuses_what_is_no_rate_and_no_number_of_bands():
    with pytest.raises(ValueError, match=r"^rate=0\.0: expected a number in \(0, 1\]"):
        CyclicPoisson(0.0, 2, SOURCE)
    with pytest.raises(ValueError, match=r"^rate=1\.5: expected a number in \(0, 1\]"):
        CyclicPoisson(1.5, 2, SOURCE)
    with pytest.raises(ValueError, match=r"^bands=0: "):
        CyclicPoisson(0.5, 0, SOURCE)


@given(st.integers(0, 90), st.integers(1, 16), st.integers(1, 5))
def test_ranks_share_a_draw_in_equally_many_batches_and_lose_nobody(count, limit, ranks):
    shares = [
        list(cut(np.arange(count) + 50, position=7, limit=limit, rank=rank, ranks=ranks)) for rank in range(ranks)
    ]
    batches = [batch for share in shares for batch in share]
    assert {len(share) for share in shares} == {max(1, -(-count // (limit * ranks)))}
    real = [record for batch in batches for record, there in zip(batch.records, batch.mask, strict=True) if there]
    assert sorted(real) == list(range(50, 50 + count))
    sizes = [int(batch.mask.sum()) for batch in batches]
    assert max(sizes) <= limit
    assert max(sizes) - min(sizes) <= 1


def test_a_physical_batch_carries_its_position_and_a_mask_of_bools():
    """A mask of floats would weigh an example and not choose it."""
    for records in ([], [4, 5, 6]):
        for batch in cut(np.array(records, np.int64), position=11, limit=2):
            assert (batch.position, batch.mask.dtype) == (11, np.bool_)
