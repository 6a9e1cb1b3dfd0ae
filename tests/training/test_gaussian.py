# SPDX-License-Identifier: Apache-2.0
"""The sampler itself: known answers, 200-bit arithmetic on the same words, NumPy and torch, and its error bounds."""

import itertools
import math
import struct
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from privguard.training.noise import chacha20, gaussian
from privguard.training.noise.gaussian import PAIRS, DevicePairs, HostPairs, Refiner, error_bound

FIRST, LAST = (0x0123456789ABCDEF, 0x0FEDCBA987654321), (0xFFFFFFFF, -0x7EDCBA9876543210)
KNOWN = [
    (28, FIRST, (762764089, 314388671)),
    (28, (1, -1), (2508637337, 0)),
    (28, (1 << 62, -(1 << 61)), (223487177, -223487177)),
    (28, LAST, (-1759053693, -49134819)),
    (32, FIRST, (12204225425, 5030218731)),
    (32, LAST, (-28144859087, -786157098)),
]


@pytest.mark.parametrize(("exponent", "words", "integers"), KNOWN)
def test_known_answers(exponent, words, integers):
    """Further bits: none set in u, the highest alone in t."""
    assert Refiner(2.0**exponent)(*words, itertools.repeat((0, 1 << 127))) == integers


def test_words_that_are_all_zero_draw_more_bits_and_no_end_of_them_is_refused():
    refine = Refiner(2.0**28)
    with pytest.raises(ArithmeticError, match="not random"):
        refine(0, 0, itertools.repeat((0, 0)))
    late = [(0, 0), (0, 0), (1 << 127, 1)]  # u = 2⁻³²⁰·…, far beyond what 63 bits can say
    first, _ = refine(0, 0, iter(late))
    assert first == pytest.approx(2.0**28 * math.sqrt(2 * (63 + 256 + 1) * math.log(2)), rel=1e-3)


def truth(words, s, *, prec=200):
    """s·z of each pair at 200 bits, u and t in the middle of what the words leave open."""
    pairs = []
    with mpmath.workprec(prec):
        for radius, angle in words.T.tolist():
            r = s * mpmath.sqrt(-2 * mpmath.log(mpmath.mpf(2 * (radius & (2**63 - 1)) + 1) / 2**64))
            t = mpmath.pi * mpmath.mpf(2 * angle + 1) / 2**64
            pairs.append((r * mpmath.cos(t), r * mpmath.sin(t)))
    return pairs


def random_words(count, seed):
    """A quarter of the radii far in the tail, a quarter next to one, where the bound is widest."""
    rng = np.random.default_rng(seed)
    words, part = rng.integers(-(2**63), 2**63, (2, count)), count // 4
    words[0, :part] = (words[0, :part].view(np.uint64) >> rng.integers(0, 50, part, dtype=np.uint64)).view(np.int64)
    words[0, part : 2 * part] |= -1 << rng.integers(8, 40, part)
    return words


def near_a_boundary(count, s, seed):
    """Pairs whose first coordinate lies within the error bound of float64 of an integer and a half."""
    rng = np.random.default_rng(seed)
    words = rng.integers(-(2**63), 2**63, (2, count))
    with mpmath.workprec(200):
        for p, radius in enumerate(words[0].tolist()):
            u = mpmath.mpf(2 * (radius & (2**63 - 1)) + 1) / 2**64
            r = mpmath.sqrt(-2 * mpmath.log(u))
            bound = float(error_bound(np.array([float(u)]), np.array([float(r)]), s)[0])
            edge = int(rng.uniform(-0.7, 0.7) * float(r) * s) + mpmath.mpf(0.5) + rng.uniform(-0.9, 0.9) * bound
            words[1, p] = int(mpmath.acos(edge / (s * r)) / mpmath.pi * 2**63)
    return words


@pytest.mark.parametrize("s", [2.0**14, 2.0**24, 2.0**28, 2.0**32, 1.2345e9])
def test_what_float64_decides_is_what_200_bits_say(s):
    words = random_words(1000, seed=1)
    decided, doubtful = HostPairs(s)(words.copy())
    sure = sorted(set(range(1000)) - set(doubtful))
    assert len(sure) > 600
    wanted = [[int(mpmath.nint(z)) for z in pair] for pair in truth(words[:, sure], mpmath.mpf(s))]
    assert decided[:, sure].T.astype(np.int64).tolist() == wanted


def test_pairs_beside_a_boundary_are_refined_and_float64_alone_would_fail():
    """Planted: a sampler that trusts float64 gets a share of them wrong; here all are in doubt, and none is wrong."""
    s, count = 2.0**28, 400
    words = near_a_boundary(count, s, seed=2)
    decided, doubtful = HostPairs(s)(words.copy())
    assert doubtful == list(range(count))
    assert DevicePairs(s)(torch.from_numpy(words)[None])[1].all()
    refine, further = Refiner(s), (1 << 127, 1 << 127)
    found = [refine(*pair, itertools.repeat(further)) for pair in words.T.tolist()]
    wanted = [tuple(int(mpmath.nint(z)) for z in pair) for pair in truth(words, mpmath.mpf(s))]
    assert found == wanted
    assert (decided[0].astype(np.int64) != [first for first, _ in wanted]).sum() > 3


@pytest.mark.parametrize("s", [2.0**14, 2.0**28, 2.0**36])
def test_numpy_and_torch_agree_where_neither_doubts(s):
    words = random_words(PAIRS, seed=3)
    host, here = HostPairs(s)(words.copy())
    device, there = DevicePairs(s)(torch.from_numpy(words)[None])
    sure = sorted(set(range(PAIRS)) - set(here) - set(there[0].nonzero().flatten().tolist()))
    assert len(sure) > PAIRS // 2
    assert np.array_equal(host[:, sure], device[0].numpy()[:, sure])


def test_doubts_are_as_rare_as_predicted():
    """2·s·E[bound/s]: within a factor of 3, over a million pairs at a seed where 5,000 are expected."""
    s, rng = 2.0**37, np.random.default_rng(4)
    pairs, doubts, expected = HostPairs(s), 0, 0.0
    for _ in range(1 << 6):
        words = rng.integers(-(2**63), 2**63, (2, PAIRS))
        u = ((words[0] & (2**63 - 1)).astype(float) + 0.5) / 2**63
        expected += (4 * np.minimum(0.5, error_bound(u, np.sqrt(-2 * np.log(u)), s))).sum()
        doubts += len(pairs(words)[1])
    assert expected / 3 < doubts < expected * 3


def test_one_bound_covers_all_pairs_between_the_edges():
    u = np.concatenate([np.geomspace(gaussian._LOW, 0.5, 100_000), 1 - np.geomspace(1 - gaussian._HIGH, 0.5, 100_000)])
    assert error_bound(u, np.sqrt(-2 * np.log(u)), 1.0).max() <= gaussian._ANY


def test_logarithm_sine_and_cosine_are_well_within_what_the_bound_allows():
    """The one thing that the sampler takes from a library: 4 units in the last place are allowed, 2 is the alarm."""
    rng = np.random.default_rng(5)
    x = np.concatenate([rng.random(2000), 1 - rng.random(500) * 1e-6, np.exp(-rng.random(500) * 40)])
    t = rng.uniform(-math.pi, math.pi, 3000)
    found = [
        (np.log(x), mpmath.log, x),
        (torch.log(torch.from_numpy(x)).numpy(), mpmath.log, x),
        (torch.cos(torch.from_numpy(t)).numpy(), mpmath.cos, t),
        (torch.sin(torch.from_numpy(t)).numpy(), mpmath.sin, t),
    ]
    with mpmath.workprec(160):
        for values, true, arguments in found:
            errors = [
                abs(true(mpmath.mpf(float(a))) - mpmath.mpf(float(v))) / np.spacing(abs(float(v)))
                for a, v in zip(arguments, values, strict=True)
            ]
            assert max(errors) < gaussian.ULP / 2


def test_chacha20_is_that_of_rfc_8439():
    """RFC 8439, 2.3.2, and the library's own over a stretch where the counter passes 2³¹."""
    key, nonce, cpu = bytes(range(32)), bytes.fromhex("000000090000004a00000000"), torch.device("cpu")
    block = chacha20.keystream(key, first=1, blocks=1, device=cpu, nonce=nonce).numpy().tobytes()
    assert block.hex() == (
        "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
        "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e"
    )
    start = struct.pack("<I", 2**31 - 20) + bytes(12)
    wanted = Cipher(algorithms.ChaCha20(key, start), None).encryptor().update(bytes(64 * 50))
    assert chacha20.keystream(key, first=2**31 - 20, blocks=50, device=cpu).numpy().tobytes() == wanted
    with pytest.raises(ValueError, match="counter below"):
        chacha20.keystream(key, first=2**32 - 1, blocks=2, device=cpu)


class TakenBack:
    """What a row takes back: multiples of 2⁻²⁰, which float64 holds, so that ``lost`` may be as small as is said."""

    def __init__(self, values, lost=0.0):
        self.values, self.lost, self.reach = values, lost, float(np.abs(values).max())

    def block(self, first, into):
        into[:] = self.values[first : first + len(into)]


def past_of(count, first, seed, reach=2.0**20):
    return np.round(np.random.default_rng(seed).uniform(-reach, reach, first + 2 * count) * 2**20) / 2**20


@pytest.mark.parametrize("s", [2.0**14, 2.0**24, 1.2345e9])
def test_what_float64_decides_after_a_past_is_the_rounded_difference_at_200_bits(s):
    """First coordinates of all pairs come before second ones, from coordinate ``first`` of the past on."""
    words, first = random_words(1000, seed=8), 6
    past = past_of(1000, first, seed=9)
    decided, doubtful = HostPairs(s).after(TakenBack(past), words.copy(), first=first)
    sure = sorted(set(range(1000)) - set(doubtful))
    assert len(sure) > 600
    away = past[first:].reshape(2, 1000)
    for pair, real in zip(sure, truth(words[:, sure], mpmath.mpf(s)), strict=True):
        with mpmath.workprec(200):
            wanted = [int(mpmath.nint(z - mpmath.mpf(a))) for z, a in zip(real, away[:, pair].tolist(), strict=True)]
        assert decided[:, pair].astype(np.int64).tolist() == wanted


def differences_at(distance, s, count, *, lost=0.0, reach=2.0**30):
    """How many pairs are in doubt whose first coordinate's difference lies so far from an integer and a half."""
    words = np.random.default_rng(10).integers(-(2**62), 2**62, (2, count))
    words[0] = (words[0] & (2**63 - 1)) | (1 << 61)
    past = np.zeros(2 * count)
    for at, real in enumerate(truth(words, mpmath.mpf(s))):
        with mpmath.workprec(200):
            edge = mpmath.nint(real[0] - reach) + mpmath.mpf(0.5) + distance
            past[at], past[count + at] = float(real[0] - edge), float(real[1] - mpmath.nint(real[1]))
    return len(HostPairs(s).after(TakenBack(past, lost), words, first=0)[1])


def test_a_past_widens_the_doubt_by_its_own_error_and_by_that_of_the_difference():
    """At s = 2¹⁰ the sampler's own bound is below 2⁻³⁴; a difference of 2³⁰ is rounded by up to 2⁻²³."""
    s, count = 2.0**10, 200
    assert differences_at(2.0**-25, s, count) == count
    assert differences_at(2.0**-10, s, count) == 0
    assert differences_at(2.0**-10, s, count, lost=2.0**-9) == count
    assert differences_at(2.0**-8, s, count, lost=2.0**-9) == 0


def test_a_radius_of_which_nothing_is_known_is_in_doubt_without_a_warning():
    """u = 0 makes the logarithm infinite and the rest NaN; warnings are errors here."""
    for angle in (0, 3):  # sin 0 times infinity is invalid, sin of another angle infinite
        words = np.array([[0, 1 << 61], [angle, 5]])
        assert HostPairs(2.0**20)(words.copy())[1] == [0]
        assert HostPairs(2.0**20).after(TakenBack(np.zeros(4)), words.copy(), first=0)[1] == [0]


@pytest.mark.parametrize("bits", [4, 9, 63])
def test_intervals_hold_every_coordinate_that_the_bits_leave_open_and_little_more(bits):
    """The formula of the docstring at 400 bits; and corners and points inside, which is the law behind it."""
    s, rng = 2.0**20, np.random.default_rng(14)
    refine, size = Refiner(s), 1 << bits
    for m, n in [(int(rng.integers(1, size - 1)), int(rng.integers(-size, size))) for _ in range(40)]:
        with mpmath.workprec(400):
            found = [[mpmath.mpf(bound) for bound in interval] for interval in refine.intervals(m, n, bits)]
            outer, inner = (s * mpmath.sqrt(-2 * mpmath.log(mpmath.mpf(x) / size)) for x in (m, m + 1))
            half = (outer - inner) / 2 + outer * (mpmath.pi / 2 + mpmath.mpf(2) ** -30) / size
            middle = [f(mpmath.pi * (2 * n + 1) / (2 * size)) * (outer + inner) / 2 for f in (mpmath.cos, mpmath.sin)]
            for (low, high), centre in zip(found, middle, strict=True):
                assert abs(low - (centre - half)) < half * mpmath.mpf(2) ** -40
                assert abs(high - (centre + half)) < half * mpmath.mpf(2) ** -40
            for up, right in [(0, 0), (0, 1), (1, 0), (1, 1), *rng.random((4, 2)).tolist()]:
                r = s * mpmath.sqrt(-2 * mpmath.log((m + mpmath.mpf(up)) / size))
                t = mpmath.pi * (n + mpmath.mpf(right)) / size
                for (low, high), real in zip(found, (r * mpmath.cos(t), r * mpmath.sin(t)), strict=True):
                    assert low <= real <= high


@pytest.mark.parametrize("away", [(Fraction(0), Fraction(0)), (Fraction(10**30, 7), Fraction(-5, 3))])
def test_further_bits_follow_those_that_were_drawn_in_radius_and_angle(away):
    """Steps of 2⁻¹⁰⁰: 63 bits decide nothing, 191 do; what is taken back is taken back exactly, whatever the signs."""
    s, rng, signs = 2.0**100, np.random.default_rng(15), set()
    for _ in range(40):
        radius, angle = int(rng.integers(1, 2**63)), int(rng.integers(-(2**63), 2**63))
        more = [int.from_bytes(rng.bytes(16), "little") for _ in range(2)]
        found = Refiner(s)(radius, angle, iter([tuple(more)]), past=away)
        with mpmath.workprec(800):
            u = mpmath.mpf(2 * (radius * 2**128 + more[0]) + 1) / 2**192
            t = mpmath.pi * mpmath.mpf(2 * (angle * 2**128 + more[1]) + 1) / 2**192
            r = s * mpmath.sqrt(-2 * mpmath.log(u))
            real = [r * mpmath.cos(t), r * mpmath.sin(t)]
            taken = [mpmath.mpf(a.numerator) / a.denominator for a in away]
            assert found == tuple(int(mpmath.nint(z - a)) for z, a in zip(real, taken, strict=True))
            signs |= {tuple(z > 0 for z in real)}
    assert len(signs) == 4


def test_words_that_never_decide_are_named():
    with pytest.raises(ArithmeticError) as error:
        Refiner(1.0)(0, 0, itertools.repeat((0, 0)))
    wanted = "noise: the stream of further bits decides no coordinate; its words are not random"
    assert str(error.value) == wanted
