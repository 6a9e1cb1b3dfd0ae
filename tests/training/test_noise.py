# SPDX-License-Identifier: Apache-2.0
"""The noise: integers of the stated law and no other, the same for every thread and library, never the same twice."""

import itertools
import math
import struct

import mpmath
import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from scipy.stats import kstest, norm

from privguard._random import Stream
from privguard.errors import PrivacyError, SensitivityError
from privguard.training.clip import ClippedSum
from privguard.training.noise.exact import _Noise, add_noise, draw, draw_row, grid_of
from privguard.training.noise.gaussian import PAIRS, Refiner
from privguard.training.noise.grid import Grid
from privguard.training.noise.past import Past
from privguard.training.ranks import Ranks


def sample(count, *, multiplier=1.1, bound=1.0, source=None, name="weight"):
    clipped = ClippedSum({name: torch.zeros(count, dtype=torch.float64)}, bound)
    return add_noise(clipped, multiplier=multiplier, source=source or Stream.from_insecure_seed(3, "noise"))


def steps(noisy, clipped):
    """The integers that were released; exact, since float32 holds those of small sums on coarse grids."""
    return torch.cat([v.flatten().double() for v in noisy.gradients.values()]) / grid_of(clipped, Ranks()).step


@pytest.mark.stat
@pytest.mark.parametrize("bound", [1.0, 0.03])
def test_noise_has_the_stated_deviation_and_no_other(bound):
    """KS at 10⁶ draws, false-alarm rate 1e-3, seed fixed; σ off by a tenth is found with certainty."""
    noisy = sample(1_000_000, bound=bound)
    draws = noisy.gradients["weight"].double().numpy() / bound
    assert 1.1 * bound <= noisy.deviation <= 1.1 * bound * (1 + 1e-4)
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


@pytest.mark.stat
def test_coordinates_do_not_know_each_other():
    """Correlation between halves of a pair, neighbours and blocks: below 4.5 standard errors at 10⁶ draws."""
    draws = sample(1 << 20, multiplier=1.0).gradients["weight"].double().numpy()
    first, second = draws.reshape(-1, 2, PAIRS)[:, 0].ravel(), draws.reshape(-1, 2, PAIRS)[:, 1].ravel()
    lags = [(first, second), (draws[:-1], draws[1:]), (draws[: -2 * PAIRS], draws[2 * PAIRS :])]
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
    blocks = rows[0][: 4 * PAIRS].view(2, -1)  # the buffers are used again, what was in them is not
    assert (blocks[0] != blocks[1]).float().mean() > 0.999


@pytest.mark.parametrize("shape", [(1,), (2,), (3, 5), (4 * PAIRS + 3,), (0, 4), ()])
def test_every_shape_is_filled(shape):
    clipped = ClippedSum({"w": torch.zeros(shape)}, 1.0)
    noisy = add_noise(clipped, multiplier=1.0, source=Stream.from_insecure_seed(4, "n")).gradients["w"]
    assert noisy.shape == shape
    assert (noisy != 0).double().mean() > 0.99 or noisy.numel() == 0  # an integer is zero once in 2.5 deviations


def plain_integers(count, *, deviation, source):
    """rint(s·z) at 200 bits, pair by pair of each block, from the stream's words read in one go."""
    words = source.words(-(-count // (2 * PAIRS)) * 2 * PAIRS).astype(object)
    row = []
    with mpmath.workprec(200):
        for block in range(0, len(words), 2 * PAIRS):
            pairs = min(PAIRS, -(-(count - len(row)) // 2))
            z = []
            for radius, angle in words[block : block + 2 * pairs].reshape(2, pairs).T:
                r = mpmath.sqrt(-2 * mpmath.log(mpmath.mpf(2 * (int(radius) % 2**63) + 1) / 2**64))
                t = mpmath.pi * mpmath.mpf(2 * int(np.uint64(angle).view(np.int64)) + 1) / 2**64
                z.append([int(mpmath.nint(mpmath.mpf(deviation) * r * f(t))) for f in (mpmath.cos, mpmath.sin)])
            row += [one for one, _ in z] + [two for _, two in z]
    return np.array(row[:count])


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_the_integers_are_those_of_200_bits_however_many_threads_make_them(threads, monkeypatch):
    """Words in doubt of 63 bits would be decided by further ones, which the formula leaves out: none at this seed."""
    shapes = [(9_001,), (0, 3), (), (2, 3, 4, 5), (1_003,), (2_072,), (7,)]
    tensors = {str(number): torch.zeros(shape, dtype=torch.float64) for number, shape in enumerate(shapes)}
    tensors["3"] = tensors["3"].to(memory_format=torch.channels_last)
    source, clipped = Stream.from_insecure_seed(6, "noise"), ClippedSum(tensors, 2.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    found = steps(add_noise(clipped, multiplier=0.5, source=source), clipped)
    grid = grid_of(clipped, Ranks())
    truth = plain_integers(len(found), deviation=grid.deviation(0.5), source=source.child(0))
    assert np.array_equal(found.numpy(), truth)


def test_more_threads_than_blocks_and_fewer_make_the_same_integers(monkeypatch):
    drawn = []
    for threads in (1, 2, 5, 8):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        drawn.append(sample(9 * 2 * PAIRS + 5).gradients["weight"])
    assert all(torch.equal(drawn[0], other) for other in drawn[1:])


def test_memory_order_does_not_matter():
    source = Stream.from_insecure_seed(5, "noise")
    flat, last = torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last)
    one, two = (
        add_noise(ClippedSum({"w": t}, 1.0), multiplier=1.0, source=source).gradients["w"] for t in (flat, last)
    )
    assert torch.equal(one, two)


def test_a_sum_of_whole_steps_moves_what_is_released_by_just_those():
    """S → S + k translates the result, which is all that the argument for the grid needs."""
    source, shape = Stream.from_insecure_seed(5, "noise"), (1000,)
    grid = Grid.of(2.0, coordinates=1000)
    k = torch.randint(-1000, 1000, shape, generator=torch.Generator().manual_seed(0))
    alone, above = (
        add_noise(ClippedSum({"w": sums}, 2.0), multiplier=1.0, source=source).gradients["w"].double() / grid.step
        for sums in (torch.zeros(shape, dtype=torch.float64), k.double() * grid.step)
    )
    assert torch.equal(above - alone, k.double())


def test_no_noise_is_the_rounded_sum():
    source, sums = Stream.from_insecure_seed(5, "noise"), torch.tensor([1.0, 1e-9, -0.3], dtype=torch.float64)
    step = Grid.of(2.0, coordinates=3).step
    still = add_noise(ClippedSum({"w": sums.clone()}, 2.0), multiplier=0.0, source=source).gradients["w"]
    assert torch.equal(still, ((sums / step).round() * step).float())
    with pytest.raises(ValueError, match="multiplier=-1"):
        add_noise(ClippedSum({"w": torch.ones(3)}, 2.0), multiplier=-1, source=source)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])
def test_a_sum_that_its_records_cannot_have_is_not_released(value):
    sums = torch.zeros(5, dtype=torch.float64)
    sums[3] = value
    with pytest.raises(SensitivityError, match="nothing was released"):
        add_noise(ClippedSum({"w": sums}, 1.0, records=3), multiplier=1.0, source=Stream.from_entropy("n"))


@pytest.mark.parametrize(
    ("bound", "multiplier"), [(1e-24, 1.0), (1e-38, 1.0), (1e30, 1e9), (1e33, 1.0), (1.0, 1e12), (1.0, 1e300)]
)
def test_what_float32_or_int64_would_lose_is_refused_by_name(bound, multiplier):
    clipped = ClippedSum({"w": torch.zeros(100_001)}, bound)
    if bound == 1e-24:  # float32 noise had none here; the grid still holds all of it
        noisy = add_noise(clipped, multiplier=multiplier, source=Stream.from_insecure_seed(1, "x"))
        assert float(noisy.gradients["w"].double().std()) == pytest.approx(bound, rel=0.02)
        return
    with pytest.raises(PrivacyError, match=r"noise_multiplier=.*(float32|64-bit integers)"):
        add_noise(clipped, multiplier=multiplier, source=Stream.from_entropy("x"))


@pytest.mark.parametrize("coordinates", [1, 7, 10**6, 10**10])
@pytest.mark.parametrize("processes", [1, 2, 64])
def test_the_grid_is_the_coarsest_that_adds_a_ten_thousandth(coordinates, processes):
    grid = Grid.of(0.7, coordinates=coordinates, processes=processes)
    added = processes * math.sqrt(coordinates) * grid.step
    assert 0.5e-4 * 0.7 < added <= 1e-4 * 0.7
    assert 0.7 + added <= grid.sensitivity <= (0.7 + added) * (1 + 1e-14)
    assert math.log2(grid.step) == grid.exponent


def further_bits(source, pair):
    """128 bits for the radius, 128 for the angle, and so on, of the stream that belongs to one pair alone."""
    words = source.child("further bits").child(pair).words(64).astype(object)
    for at in range(0, len(words), 4):
        low, high, *angle = words[at : at + 4]
        yield int(low) + (int(high) << 64), int(angle[0]) + (int(angle[1]) << 64)


def pairs_of(source, count):
    """Words (2, pairs) of a row of ``count`` coordinates that fits one block."""
    words = source.words(count + count % 2).view(np.int64).reshape(2, -1)
    words[0] &= 2**63 - 1
    return words


@pytest.mark.parametrize("past", [False, True])
def test_a_pair_in_doubt_is_decided_by_further_bits_of_its_own(past):
    """Steps so fine that 63 bits leave a tenth of the pairs open; known further bits would make them predictable."""
    source, count, s = Stream.from_insecure_seed(11, "noise"), 301, 2.0**58
    rows = np.arange(count * 2.0).reshape(2, count) * 1000
    history = Past.of(rows, np.array([0.5, -0.25]), digits=8, largest=[1e6, 1e6]) if past else None
    refine, pairs = Refiner(s), -(-count // 2)
    expected = np.zeros((2, pairs))
    opened = 0
    for pair, (radius, angle) in enumerate(pairs_of(source, count).T.tolist()):
        away = (history.exactly(pair), history.exactly(pairs + pair)) if past else (0, 0)
        opened += refine._rounded(radius, angle, 63, away) is None
        expected[:, pair] = refine(radius, angle, further_bits(source, pair), past=away)
    assert opened > 10
    row = np.empty(count)
    largest = draw_row(row, deviation=s, source=source, past=history)
    assert row.tolist() == expected.ravel()[:count].tolist()
    assert largest == np.abs(row).max()


def test_rows_that_take_back_a_past_do_so_coordinate_by_coordinate_in_every_block_and_thread(monkeypatch):
    """Where the past is whole steps, noise after it is the plain noise less the past."""
    source, count = Stream.from_insecure_seed(12, "noise"), 5 * PAIRS + 3
    rows = np.random.default_rng(1).integers(-(10**6), 10**6, (2, count)).astype(float)
    history = Past.of(rows, np.array([2.0, -1.0]), digits=8, largest=[1e6, 1e6])
    plain = draw(np.empty(count, np.int64), deviation=2.0**20, source=source)
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        row = np.empty(count)
        largest = draw_row(row, deviation=2.0**20, source=source, past=history)
        assert (row == plain - (2 * rows[0] - rows[1])).all()
        assert largest == np.abs(row).max()


@pytest.mark.parametrize("count", [0, 1, 2, 2 * PAIRS, 2 * PAIRS + 1, 4 * PAIRS + 3])
def test_noise_drawn_beforehand_is_the_noise_and_is_what_is_added(count):
    source, s = Stream.from_insecure_seed(13, "noise"), Grid.of(1.0, coordinates=count).deviation(1.0)
    row = draw(np.empty(count, np.int64), deviation=s, source=source.child(0))
    if count < 9:  # 200 bits take their time; longer rows are compared above
        assert row.tolist() == plain_integers(count, deviation=s, source=source.child(0)).tolist()
    assert draw_row(np.empty(count), deviation=s, source=source.child(0), past=None) == np.abs(row).max(initial=0)
    zeros = [ClippedSum({"w": torch.zeros(count)}, 1.0) for _ in range(3)]
    now = add_noise(zeros[0], multiplier=1.0, source=source).gradients["w"]
    assert torch.equal(now, add_noise(zeros[1], multiplier=1.0, source=source, drawn={(0,): row}).gradients["w"])
    other = add_noise(zeros[2], multiplier=1.0, source=source, drawn={(0,): row + 5}).gradients["w"]
    assert torch.equal(other, (torch.from_numpy(row) + 5).float() * Grid.of(1.0, coordinates=count).step)


@pytest.mark.parametrize("bound", [0.5, 3.0])
def test_the_norm_of_the_whole_sum_may_reach_what_its_records_allow_and_nothing_above(bound):
    """Two parameters, in two blocks: √(4² + 3²) = 5 records of one bound, exactly in float64."""

    def clipped(scale):
        large = torch.zeros(2 * PAIRS + 1, dtype=torch.float64)
        large[0], large[-1] = 4 * bound * scale, 0.0
        return ClippedSum({"a": large, "b": torch.tensor([3 * bound * scale], dtype=torch.float64)}, bound, records=5)

    add_noise(clipped(1.0), multiplier=1.0, source=Stream.from_insecure_seed(1, "n"))
    with pytest.raises(SensitivityError) as error:
        add_noise(clipped(1 + 2.0**-20), multiplier=1.0, source=Stream.from_insecure_seed(1, "n"))
    assert str(error.value) == (
        "clipped sum: larger than its records can make it, or not finite; nothing was released. This is a bug of "
        "privguard: please report the model's layers and its dtype"
    )


def test_halves_of_a_step_are_rounded_to_even_like_the_specification():
    step = Grid.of(2.0, coordinates=4).step
    sums = torch.tensor([0.5, 1.5, 2.5, -3.4], dtype=torch.float64) * step
    still = add_noise(ClippedSum({"w": sums}, 2.0), multiplier=0.0, source=Stream.from_insecure_seed(1, "n"))
    assert (still.gradients["w"] / step).tolist() == [0.0, 2.0, 2.0, -3.0]


def test_the_number_of_ranks_widens_the_sensitivity_that_noise_covers():
    clipped = ClippedSum({"w": torch.zeros(100)}, 1.0)
    for size in (1, 2, 16):
        assert grid_of(clipped, Ranks(size=size)) == Grid.of(1.0, coordinates=100, processes=size)


@pytest.mark.parametrize("count", [1, 2, 7, 2 * PAIRS, 2 * PAIRS + 3, 2 * PAIRS * 66 + 1])
def test_what_a_device_makes_of_its_cipher_is_what_the_host_makes_of_the_same_words(count, monkeypatch):
    source = Stream.from_insecure_seed(7, "noise")
    found = _Noise(2.0**33, source).on_device(count, torch.device("cpu")).numpy()

    class SameWords:
        def __init__(self, key):
            self.key = key

        def reader(self, start):
            state = {"at": start}

            def fill(words):
                position = struct.pack("<I", state["at"] // 64) + bytes(12)
                skip, size = state["at"] % 64, len(words) * 8
                stream = Cipher(algorithms.ChaCha20(self.key, position), None).encryptor()
                words[:] = np.frombuffer(stream.update(bytes(skip + size))[skip:], np.int64)
                state["at"] += size

            return fill

        def child(self, *labels):
            return source.child(*labels)

    same = SameWords(source.secret())
    assert np.array_equal(found, draw(np.empty(count, np.int64), deviation=2.0**33, source=same))


def test_noise_drawn_beforehand_is_what_a_device_adds():
    """Rows that are kept are in float64; nothing is made again."""
    row = np.array([3.0, -4.0, 5.0])
    made = _Noise(2.0**20, Stream.from_insecure_seed(8, "noise"), row).on_device(3, torch.device("cpu"))
    assert (made.tolist(), made.dtype) == ([3, -4, 5], torch.int64)
    none = _Noise(2.0**20, Stream.from_insecure_seed(8, "noise")).on_device(0, torch.device("cpu"))
    assert (none.tolist(), none.dtype) == ([], torch.int64)


@pytest.mark.parametrize("count", [99, 100])
def test_a_device_decides_a_pair_in_doubt_by_further_bits_of_its_own(count):
    """As on the host: steps so fine that all pairs are in doubt, and many of them after 63 bits."""
    source, s, pairs = Stream.from_insecure_seed(9, "noise"), 2.0**58, -(-count // 2)
    noise = _Noise(s, source)
    words = noise._words(0, 2 * pairs, torch.device("cpu")).view(2, pairs)
    expected = [
        Refiner(s)(radius & (2**63 - 1), angle, further_bits(source, pair))
        for pair, (radius, angle) in enumerate(words.T.tolist())
    ]
    row = [first for first, _ in expected] + [second for _, second in expected]
    assert noise.on_device(count, torch.device("cpu")).tolist() == row[:count]
