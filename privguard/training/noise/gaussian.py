# SPDX-License-Identifier: Apache-2.0
"""Integers that are the rounding of an ideal Gaussian: Box–Muller (1958) on uniforms whose bits are drawn lazily.

A pair of coordinates is (rint(s·r·cos πt), rint(s·r·sin πt)) with r = √(−2 ln u), for *infinite* uniform expansions u
in (0, 1) and t in (−1, 1). Of those, 63 bits of u and 64 of t are drawn. They leave an interval for each coordinate:
where no rounding boundary lies in it, the integer is decided, whatever the bits to come are. Float64 with a bound on
its error finds those; for the few pairs in doubt further bits are drawn, and multi-precision arithmetic decides. So
nothing is charged for the sampler, and the integers are the same on every library, machine and device.

What that takes: uniform words, and logarithm, sine and cosine within ``ULP`` units in the last place. The bounds
are derived in docs/spec/mechanism-v1.md. Source: interval refining, Haney et al. 2022, "Precision-based attacks and
interval refining".
"""

import math
from collections.abc import Iterator
from fractions import Fraction
from functools import cached_property
from typing import Any, final

import mpmath
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privguard.training.noise.past import Past

Pair = tuple[Fraction, Fraction]

ULP = 4.0  # allowed error of log, sin and cos in units in the last place; below 1 where it was measured
PAIRS = 1 << 13  # pairs of one block: its words and intermediate values stay in the second-level cache
MOST = 2.0**49  # grid steps in a deviation: |s·z| ≤ 14·s stays below 2⁵³, where float64 holds every integer
_U = 2.0**-53
_LONGEST = (1 << 63) - 1
_OF_RADIUS = 2 * _U * (ULP + 3) + math.pi * (3 * _U + 2.0**-63) + 2 * _U * (ULP + 2)  # error of s·z over s·r
_NEAR_ONE = 5 * _U  # error of s·z, times r/s, from rounding u to 53 bits
_LOW, _HIGH = 2.0**-16, 1 - 2.0**-15  # between them r is in [2⁻⁷, 4.71], and one bound serves all pairs
_ANY = 4.72 * _OF_RADIUS + 2.0**7 * (_NEAR_ONE + 2.0**-53)
_NO_FARTHER = 9.4  # |z| for the 63 bits that are drawn
_SPIKE = 2.0**-20  # an r below this is always refined: it tells nothing of its own error
_ROUNDS = 64  # of 128 further bits each, after which the source of bits is broken


@final
class HostPairs:
    """Decides one block of pairs on the host, in buffers of its own; ``s`` is the deviation in grid steps.

    NumPy does the arithmetic, torch sine and cosine (SLEEF), in a fifth of NumPy's time.
    """

    def __init__(self, s: float) -> None:
        self._s = s
        self._u, self._r, self._t = (np.empty(PAIRS) for _ in range(3))
        self._z, self._k = np.empty((2, PAIRS)), np.empty((2, PAIRS))
        self._away = np.empty(2 * PAIRS)
        self._near, self._far = np.empty((2, PAIRS), np.bool_), np.empty((2, PAIRS), np.bool_)

    def __call__(self, words: NDArray[np.int64]) -> tuple[NDArray[np.float64], list[int]]:
        """From words (2, pairs), radii before angles, integers in float64 (2, pairs), and the pairs in doubt.

        What is returned stays until the next call; the sign bits of the radii are cleared.
        """
        u, r, z, k = self._drawn(words)
        with np.errstate(divide="ignore", invalid="ignore"):
            np.rint(z, out=k)
            return k, self._doubtful(u, r, z, k)

    def after(self, past: Past, words: NDArray[np.int64], *, first: int) -> tuple[NDArray[np.float64], list[int]]:
        """The same, less what the block from coordinate ``first`` on takes back of ``past``, before it is rounded.

        Args:
            past: the noise of the steps before.
            words: the stream's words of this block.
            first: the first coordinate of the block.
        """
        u, r, z, k = self._drawn(words)
        with np.errstate(divide="ignore", invalid="ignore"):
            past.block(first, into=self._away[: z.size])
            z -= self._away[: z.size].reshape(z.shape)
            np.rint(z, out=k)
            return k, self._doubtful(u, r, z, k, past=past)

    def _drawn(self, words: NDArray[np.int64]) -> tuple[Any, Any, Any, Any]:
        """u, s·r and s·z, and room for the integers."""
        count = words.shape[1]
        u, r, t = self._u[:count], self._r[:count], self._t[:count]
        z, k = self._z[:, :count], self._k[:, :count]
        words[0] &= _LONGEST
        np.copyto(u, words[0], casting="unsafe")
        u *= 2.0**-63
        np.copyto(t, words[1], casting="unsafe")
        t *= math.pi * 2.0**-63
        with np.errstate(divide="ignore", invalid="ignore"):  # u = 0 is in doubt, and refined
            np.log(u, out=r)
            r *= -2.0 * self._s * self._s
            np.sqrt(r, out=r)
            angle = torch.from_numpy(t)
            torch.cos(angle, out=torch.from_numpy(z[0]))
            torch.sin(angle, out=torch.from_numpy(z[1]))
            z *= r
        return u, r, z, k

    def _doubtful(self, u: Any, r: Any, z: Any, k: Any, *, past: Past | None = None) -> list[int]:
        """First one bound for all pairs, then each one's own for those that it leaves in doubt.

        What is taken back of the past adds its own error, and that of the difference, a unit of roundoff of it.
        """
        count = len(u)
        near, far = self._near[:, :count], self._far[:, :count]
        lost, largest = (past.lost, past.reach + _NO_FARTHER * self._s) if past else (0.0, 0.0)
        z -= k
        np.abs(z, out=z)
        np.less(z, 0.5 - lost - _U * largest - self._s * _ANY, out=near)
        np.less_equal(_LOW, u, out=far[0])
        np.less_equal(u, _HIGH, out=far[1])
        near &= far
        if near.all():
            return []
        found = np.flatnonzero(~near.all(0))
        small = r[found] / self._s
        bound = np.where(small >= _SPIKE, error_bound(u[found], small, self._s), math.inf)
        if past:
            bound += lost + _U * (np.abs(k[:, found]).max(0) + 1)
        return found[~(z[:, found].max(0) < 0.5 - bound)].tolist()


@final
class DevicePairs:
    """Decides blocks of pairs on an accelerator with float64, without waiting for it."""

    def __init__(self, s: float) -> None:
        self._s = s

    def __call__(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """From words (blocks, 2, pairs), integers in float64 of that shape, and (blocks, pairs), what is in doubt."""
        u = (words[:, 0] & _LONGEST).double().mul_(2.0**-63)
        t = words[:, 1].double().mul_(math.pi * 2.0**-63)
        r = u.log().mul_(-2.0 * self._s * self._s).sqrt_()
        z = torch.stack([t.cos(), t.sin_()], 1).mul_(r[:, None])
        k = z.round()  # half to even, as rint
        small = r.div_(self._s)
        bound = error_bound(u, small, self._s).masked_fill_(~(small >= _SPIKE), math.inf)
        return k, ~(z.sub_(k).abs_().amax(1) < 0.5 - bound)


def error_bound(u: Any, r: Any, s: float) -> Any:
    """How far float64 can be from s·z, for arrays or tensors of 63-bit ``u`` and of r = √(−2 ln u) ≥ 2⁻²⁰.

    Args:
        u: 63-bit whole numbers, of any shape.
        r: √(−2 ln u), of the same shape.
        s: the deviation, in steps of the grid.
    """
    return s * (r * _OF_RADIUS + (_NEAR_ONE + 2.0**-62 / u) / r)


@final
class Refiner:
    """Decides the pairs in doubt, with as many further bits as it takes: most need none, and hardly any a second round.

    Each has an arithmetic of its own, since mpmath's precision is a setting of the context and threads would share it.
    """

    def __init__(self, s: float) -> None:
        self._s = s

    @cached_property
    def _arithmetic(self) -> Any:
        return mpmath.MPContext()

    def __call__(
        self, radius: int, angle: int, further: Iterator[tuple[int, int]], *, past: "Pair" = (Fraction(0), Fraction(0))
    ) -> tuple[int, int]:
        """The two integers of a pair: 63 bits and a signed word, and 128 bits more of each from every ``further``.

        ``past`` is taken away from the two real coordinates before they are rounded.

        Raises:
            ArithmeticError: no number of further bits decides, so they are not random.
        """
        m, n, bits = radius & _LONGEST, angle, 63
        if m and (decided := self._rounded(m, n, bits, past)):
            return decided
        for _, (more_m, more_n) in zip(range(_ROUNDS), further, strict=False):
            m, n, bits = m << 128 | more_m, n << 128 | more_n, bits + 128
            if m and (decided := self._rounded(m, n, bits, past)):
                return decided
        raise ArithmeticError("noise: the stream of further bits decides no coordinate; its words are not random")

    def _rounded(self, m: int, n: int, bits: int, past: "Pair") -> tuple[int, int] | None:
        """The integers that every u in [m, m+1)/2ᵇⁱᵗˢ and t in [n, n+1)/2ᵇⁱᵗˢ gives, None where they differ."""
        found: list[int] = []
        for (low, high), away in zip(self.intervals(m, n, bits), past, strict=True):
            first, last = self._nearest(low, away), self._nearest(high, away)
            if first != last:
                return None
            found.append(first)
        return found[0], found[1]

    def _nearest(self, bound: Any, away: Fraction) -> int:
        """The integer nearest to bound - away, computed without any rounding."""
        if not away:
            return int(self._arithmetic.nint(bound))
        sign, mantissa, exponent, _ = bound._mpf_  # (-1)^sign · mantissa · 2^exponent, exactly
        return round(Fraction(-mantissa if sign else mantissa) * Fraction(2) ** exponent - away)

    def intervals(self, m: int, n: int, bits: int) -> list[tuple[Any, Any]]:
        """Bounds on both of a pair's real coordinates s·z, given ``bits`` bits of u and of t.

        |z − centre| ≤ half the spread of the radius + radius · |t − its centre|, and 2⁻³² of the last for arithmetic.

        Args:
            m: the leading ``bits`` bits of u.
            n: the leading ``bits`` bits of t.
            bits: how many bits of each are used.
        """
        mp = self._arithmetic
        mp.prec = bits + 64
        outer, inner = (mp.mpf(self._s) * mp.sqrt(-2 * mp.log(mp.ldexp(x, -bits))) for x in (m, m + 1))
        width = outer * (mp.pi / 2 + mp.ldexp(1, -30)) * mp.ldexp(1, -bits)
        half, centre = (outer - inner) / 2 + width, (outer + inner) / 2
        turned = (centre * each for each in mp.cos_sin(mp.pi * mp.ldexp(2 * n + 1, -bits - 1)))
        return [(z - half, z + half) for z in turned]
