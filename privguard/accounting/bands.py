# SPDX-License-Identifier: Apache-2.0
"""Coefficients of banded noise: how much of each earlier step's noise a step takes back, and what error that leaves.

A plan of b bands adds noise D·T⁻¹z in place of z, where T is the lower triangular Toeplitz matrix of ``strategy`` =
(1, c₁, … c_{b-1}) and D holds the norms of its columns, so that the columns of T·D⁻¹ have norm 1 (Choquette-Choo et al.
2023, arXiv 2306.08153; McKenna 2024, arXiv 2405.15913). Each record lies in one of b groups, and step t draws from
group t mod b alone, so its steps are at least b apart and meet disjoint rows: ⌈T/b⌉ events of a Poisson-sampled
Gaussian at rate b·B/N dominate the run. All of this is public, so to choose b by it costs nothing.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast, final

import numpy as np
from numpy.typing import NDArray

from privguard import _check
from privguard.accounting.calibrate import Budget, least_noise, rough_noise

Floats = NDArray[np.floating[Any]]
Strategy = tuple[float, ...]

TRIED = (1, 2, 4, 8, 16)
"""Of ``bands="auto"``: each band more keeps eight bytes for every trained parameter, and more than 16 gain little."""
_MOST_FITTED = 4096  # steps over which coefficients are fitted; the best ones hardly depend on more


@final
@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A run in public numbers: B of N units expected in each of ``steps`` steps; ``momentum`` is the optimizer's."""

    examples: int
    batch_size: int
    steps: int
    momentum: float = 0.0

    @property
    def most_bands(self) -> int:
        """The most groups of at least ``batch_size`` expected units, and no more than there are steps."""
        return max(1, min(self.examples // self.batch_size, self.steps))

    def rate(self, bands: int) -> float:
        """With which a unit of the group in turn is drawn."""
        _check.count("bands", bands)
        _check.require(
            bands <= self.most_bands,
            "bands",
            bands,
            wanted=f"at most {self.most_bands}",
            remedy="the group in turn has to hold the batch, and a band is a step",
        )
        return min(1.0, bands * self.batch_size / self.examples)


@final
@dataclass(frozen=True)
class Choice:
    """What ``choose`` found: the coefficients, and the least noise multiplier that they need."""

    strategy: Strategy
    noise_multiplier: float


def choose(budget: Budget, schedule: Schedule, *, bands: "int | str") -> Choice:
    """The least noise for ``bands``, or for the number of ``TRIED`` with the least expected error (``"auto"``).

    The error is σ·``expected_error``, which falls with more bands and then rises, so the search ends where it does.
    Numbers are compared by a σ that is good to 1 %; the one that is chosen is then calibrated in full.

    Raises:
        ValueError: ``bands`` is neither "auto" nor a number that the schedule allows.
        BudgetExceededError: no amount of noise fits.
    """
    chosen = least_error(budget, schedule)[0] if bands == "auto" else cast("int", bands)
    noise = least_noise(budget, sample_rate=schedule.rate(chosen), steps=rounds(schedule.steps, bands=chosen))
    return Choice(coefficients(chosen, steps=schedule.steps, momentum=schedule.momentum), noise)


def least_error(budget: Budget, schedule: Schedule) -> tuple[int, float]:
    """The number of ``TRIED`` with the least expected error, and its noise multiplier to about 1 %.

    Raises:
        BudgetExceededError: no amount of noise fits.
    """
    best, least, noise = (1, 0.0), math.inf, None
    for bands in [number for number in TRIED if number <= schedule.most_bands]:
        steps, near = rounds(schedule.steps, bands=bands), noise and 1.2 * noise
        noise = rough_noise(budget, sample_rate=schedule.rate(bands), steps=steps, near=near)
        strategy = coefficients(bands, steps=schedule.steps, momentum=schedule.momentum)
        error = noise * expected_error(strategy, steps=schedule.steps, momentum=schedule.momentum)
        if error >= least:
            break
        best, least = (bands, noise), error
    return best


def rounds(steps: int, *, bands: int) -> int:
    """Events that ``steps`` steps cost: one for every ``bands`` of them, begun ones whole."""
    return -(-steps // bands)


def coefficients(bands: int, *, steps: int, momentum: float = 0.0) -> Strategy:
    """(1, c₁, … c_{b-1}) for SGD with this heavy-ball momentum.

    With momentum the closed form of Kalinin & Lampert 2024 (arXiv 2405.13763, Theorem 1), which at momentum 0.9 is
    within 0.8 % of the least error; without, the fit of McKenna 2024, which gains up to 9 % on it.
    """
    _check.count("bands", bands)
    _check.require(0 <= momentum < 1, "momentum", momentum, wanted="from 0 to below 1")
    closed = _square_root(bands, momentum)
    if momentum > 0 or bands == 1:
        return tuple(closed.tolist())
    return tuple(_fitted(closed, min(steps, _MOST_FITTED)).tolist())


def expected_error(strategy: Strategy, *, steps: int, momentum: float = 0.0) -> float:
    """Root mean square, over the steps, of the noise in the weights for σ = 1 and learning rate 1.

    All columns are taken to be whole, which the last b - 1 are not: up to 0.2 % too much at b = 16.
    """
    norm = math.sqrt(math.fsum(c * c for c in strategy))
    return norm * math.sqrt(_mean_square(np.array(strategy), _workload(steps, momentum)))


def norms(strategy: Strategy, *, steps: int) -> Floats:
    """L2 norm of each column of T, shape (steps,): the last b - 1 are shorter."""
    squares = np.zeros(steps)
    squares[: len(strategy)] = np.square(strategy)[:steps]
    return np.sqrt(np.cumsum(squares))[::-1].copy()


def inverse(strategy: Strategy, *, steps: int) -> Floats:
    """The first column of T⁻¹, shape (steps,)."""
    impulse = np.zeros(steps)
    impulse[0] = 1.0
    return _filtered(np.array(strategy), impulse)


def _square_root(bands: int, momentum: float) -> Floats:
    """The first coefficients of ((1 - x)(1 - βx))^(-1/2)."""
    root = np.ones(bands)
    for j in range(1, bands):
        root[j] = root[j - 1] * (j - 0.5) / j
    return np.convolve(root, root * momentum ** np.arange(bands))[:bands]


def _fitted(start: Floats, steps: int) -> Floats:
    """Coefficients with the least log(mean square error · squared norm of a column), by L-BFGS from ``start``.

    What is fitted is the ratio of each to the one before, at most 1: falling coefficients make T⁻¹ bounded (Eneström
    and Kakeya: their polynomial has no root inside the unit circle).
    """
    from scipy import optimize

    ratios, objective = start[1:] / start[:-1], _objective(steps)
    bounds = [(0.01, 1.0)] * len(ratios)
    result = cast("Any", optimize).minimize(objective, ratios, jac=True, method="L-BFGS-B", bounds=bounds)
    return np.cumprod([1.0, *result.x])


def _objective(steps: int) -> "Callable[[Floats], tuple[float, Floats]]":
    """Value and gradient: with v = T⁻¹(workload), dv/dc_j is -T⁻¹v moved down by j."""
    workload, weights = _workload(steps, 0.0), np.arange(steps, 0, -1) / steps

    def objective(ratios: Floats) -> tuple[float, Floats]:
        c = np.cumprod([1.0, *ratios])
        v = _filtered(c, workload)
        u, square, norm = _filtered(c, v), float(weights @ v**2), float(c @ c)
        by_c = [-2 * float((weights * v)[j:] @ u[: steps - j]) / square for j in range(1, len(c))] + 2 * c[1:] / norm
        return math.log(square) + math.log(norm), np.cumsum((by_c * c[1:])[::-1])[::-1] / ratios

    return objective


def _mean_square(strategy: Floats, workload: Floats) -> float:
    """Mean over the rows of A·T⁻¹ of their squared norm, where A is the Toeplitz matrix of ``workload``."""
    steps = len(workload)
    return float(np.arange(steps, 0, -1) @ _filtered(strategy, workload) ** 2) / steps


def _workload(steps: int, momentum: float) -> Floats:
    """What the weights take from one gradient after 1, 2, … steps: 1, 1 + β, 1 + β + β² and so on."""
    return np.cumsum(momentum ** np.arange(steps))


def _filtered(strategy: Floats, values: Floats) -> Floats:
    """T⁻¹ · values."""
    from scipy import signal

    return np.asarray(cast("Any", signal).lfilter([1.0], strategy, values), np.float64)
