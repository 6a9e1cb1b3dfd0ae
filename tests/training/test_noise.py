"""The noise: the stated deviation and no other, far tails, never the same twice."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm

from privguard._random import Stream
from privguard.training.clip import ClippedSum
from privguard.training.noise import add_noise


def sample(count, *, multiplier=1.1, bound=1.0, source=None, name="weight"):
    clipped = ClippedSum({name: torch.zeros(count)}, bound)
    return add_noise(clipped, multiplier=multiplier, source=source or Stream.from_insecure_seed(3, "noise"))


@pytest.mark.stat
@pytest.mark.parametrize("bound", [1.0, 0.03])
def test_noise_has_the_stated_deviation_and_no_other(bound):
    """KS at 10⁶ draws, false-alarm rate 1e-3, seed fixed; σ off by a tenth is found with certainty."""
    noisy = sample(1_000_000, bound=bound)
    draws = noisy.gradients["weight"].double().numpy() / bound
    assert noisy.deviation == pytest.approx(1.1 * bound)
    assert kstest(draws, norm(scale=1.1).cdf).pvalue > 1e-3
    for wrong in (0.9, 1.1):
        assert kstest(draws, norm(scale=1.1 * wrong).cdf).pvalue < 1e-12


@pytest.mark.stat
def test_tails_reach_as_far_as_a_gaussian_of_this_many_draws():
    """Counts beyond 4 and 4.75 deviations against the binomial, ± 4 standard errors (6e-5 false alarms each)."""
    draws = sample(20_000_000, multiplier=1.0).gradients["weight"]
    for edge in (4.0, 4.75):
        expected = 2 * norm.sf(edge) * len(draws)
        assert abs((draws.abs() > edge).sum().item() - expected) < 4 * math.sqrt(expected)


def test_the_far_tail_is_there_when_the_words_say_so():
    """The smallest word gives 9.4 deviations, so the cut lies where a Gaussian has less than 1e-20 of its mass."""
    smallest = math.sqrt(-2 * math.log(0.5 * 2.0**-63))
    assert smallest > 9.3
    assert 2 * norm.sf(9.3) < 1e-19


@pytest.mark.stat
def test_coordinates_do_not_know_each_other():
    """Correlation between halves of a pair, neighbours and blocks: below 4.5 standard errors at 10⁶ draws."""
    draws = sample(1 << 20, multiplier=1.0).gradients["weight"].double().numpy()
    pairs = 1 << 16
    first, second = draws.reshape(-1, 2, pairs)[:, 0].ravel(), draws.reshape(-1, 2, pairs)[:, 1].ravel()
    lags = [(first, second), (draws[:-1], draws[1:]), (draws[: -2 * pairs], draws[2 * pairs :])]
    for a, b in lags + [(x**2, y**2) for x, y in lags]:
        assert abs(np.corrcoef(a, b)[0, 1]) < 4.5 / math.sqrt(len(a))


def test_two_steps_two_parameters_and_two_processes_never_share_noise():
    """Seeded: among 48 numbers from entropy one stands twice, or a correlation is chance, once in 50,000 runs."""
    root, other_process = (Stream.from_insecure_seed(seed, "run").child("noise") for seed in (1, 2))
    drawn = [
        add_noise(
            ClippedSum({"weight": torch.zeros(8), "bias": torch.zeros(8), "large": torch.zeros(300_000)}, 1.0),
            multiplier=1.0,
            source=source,
        )
        for source in (root.child(0), root.child(1), other_process.child(0))
    ]
    rows = [torch.cat([tensor.flatten() for tensor in noisy.gradients.values()]) for noisy in drawn]
    assert len({value for row in rows for value in row[:16].tolist()}) == 3 * 16
    for one, two in itertools.combinations(rows, 2):
        assert abs(np.corrcoef(one, two)[0, 1]) < 5 / math.sqrt(len(one))
    blocks = rows[0][: 2 * 131_072].view(2, -1)  # the buffers are used again, what was in them is not
    assert (blocks[0] != blocks[1]).float().mean() > 0.999


@pytest.mark.parametrize("shape", [(1,), (2,), (3, 5), (131_073,), (0, 4), ()])
def test_every_shape_is_filled(shape):
    clipped = ClippedSum({"w": torch.zeros(shape)}, 1.0)
    source = Stream.from_insecure_seed(4, "n")  # a radius of one in 2²⁵ rounds to zero, so one sample in 250 holds one
    noisy = add_noise(clipped, multiplier=1.0, source=source).gradients["w"]
    assert noisy.shape == shape
    assert bool((noisy != 0).all())


def plain_noise(count, *, deviation, source):
    """Box–Muller in float64, pair by pair of each block, from the stream's words read in one go."""
    per_block = 3 << 15
    words = source.words(-(-count // (1 << 17)) * per_block).astype(object)
    row = []
    for block in range(0, len(words), per_block):
        pairs = min(1 << 16, -(-(count - len(row)) // 2))
        radii, halves = words[block : block + pairs], words[block + pairs : block + pairs + -(-pairs // 2)]
        angles = [int(w) >> shift & 0xFFFFFFFF for w in halves for shift in (0, 32)][:pairs]
        angles = np.array([math.pi * (a - (a >> 31 << 32)) / 2**31 for a in angles])
        radii = deviation * np.array([math.sqrt(-2 * math.log(((int(r) & (2**63 - 1)) + 0.5) / 2**63)) for r in radii])
        row += [*(radii * np.cos(angles)), *(radii * np.sin(angles))]
    return np.array(row[:count])


@pytest.mark.parametrize("threads", [1, 3])
def test_noise_is_that_of_the_obvious_formula_however_many_threads_make_it(threads, monkeypatch):
    shapes = [(70_001,), (0, 3), (), (2, 3, 4, 5), (100_003,), (131_072,), (7,)]
    tensors = {str(number): torch.zeros(shape) for number, shape in enumerate(shapes)}
    tensors["3"] = tensors["3"].to(memory_format=torch.channels_last)
    source = Stream.from_insecure_seed(6, "noise")
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    noisy = add_noise(ClippedSum(tensors, 2.0), multiplier=0.5, source=source)
    found = torch.cat([value.flatten() for value in noisy.gradients.values()]).numpy()
    truth = plain_noise(len(found), deviation=1.0, source=source.child(0))
    assert np.abs(found - truth).max() < 5e-4  # a uniform that float32 rounds to 1 stood for a radius of up to 3.5e-4
    assert np.abs(found - truth).mean() < 1e-7


def test_memory_order_does_not_matter():
    source = Stream.from_insecure_seed(5, "noise")
    flat, last = torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last)
    for tensor in (flat, last):
        add_noise(ClippedSum({"w": tensor}, 1.0), multiplier=1.0, source=source)
    assert torch.equal(flat, last)


def test_noise_is_added_to_what_is_there_and_zero_adds_nothing():
    source = Stream.from_insecure_seed(5, "noise")
    alone = add_noise(ClippedSum({"w": torch.zeros(100)}, 2.0), multiplier=1.0, source=source).gradients["w"]
    above = add_noise(ClippedSum({"w": torch.full((100,), 7.0)}, 2.0), multiplier=1.0, source=source).gradients["w"]
    assert torch.allclose(above - 7, alone, atol=2e-6)
    still = add_noise(ClippedSum({"w": torch.ones(3)}, 2.0), multiplier=0.0, source=source)
    assert still.gradients["w"].tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="multiplier=-1"):
        add_noise(ClippedSum({"w": torch.ones(3)}, 2.0), multiplier=-1, source=source)
