# SPDX-License-Identifier: Apache-2.0
"""Scores and membership → how well an attack ranks, with exact intervals and the counts behind every rate.

Thresholds are strict: a record is called a member when its score lies above the threshold, so ties never help.
"""

import math
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from privguard import _check
from privguard.audit.one_run.bound import rate_above, rate_below
from privguard.records import Measurement

FALSE_POSITIVE_RATES = (0.01, 0.001, 0.0001)
PRIORS = (0.01, 0.1)
FloatArray = NDArray[np.float64]


@final
@dataclass(frozen=True, kw_only=True)
class Rate(Measurement):
    """True-positive rate at a false-positive rate that was asked for, with what it was counted from.

    ``true_positives`` of ``members`` lie above the threshold that lets ``false_positives`` of ``non_members`` pass;
    ``low`` and ``high`` are the two-sided 95 % Clopper-Pearson interval. ``measurable`` is False, and the rate None,
    where there are fewer than 1 / ``asked`` non-members. ``precision`` maps a prior share of members to the share of
    true members among those called so.
    """

    asked: float
    measurable: bool
    rate: float | None
    low: float
    high: float
    true_positives: int
    members: int
    false_positives: int
    non_members: int
    precision: dict[str, float]


@final
@dataclass(frozen=True, kw_only=True)
class Auc(Measurement):
    """Area under the ROC curve (ties count one half), its two-sided 95 % interval and one-sided 99 % lower end."""

    value: float
    low: float
    high: float
    low99: float


@final
@dataclass(frozen=True)
class Roc:
    """The whole curve: ``false`` and ``true`` rates (t,) at falling thresholds, with 95 % bands of the true rate."""

    false: FloatArray
    true: FloatArray
    low: FloatArray
    high: FloatArray


def auc(scores: ArrayLike, members: ArrayLike) -> Auc:
    """Area under the curve, with the variance of DeLong et al. 1988 on the logit scale (Qin and Hotilovac 2008).

    >>> auc([3.0, 2.0, 1.0, 0.0], [True, True, False, False]).value
    1.0

    Args:
        scores: one for each record, (n,), larger for a likelier member.
        members: bool (n,), True for a member.
    """
    inside, outside = _split(scores, members)
    above = placements(inside, outside)
    value = float(above.mean())
    variance = above.var(ddof=1) / len(inside) + placements(-outside, -inside).var(ddof=1) / len(outside)
    ends = [_shifted(value, float(variance), z, len(inside) + len(outside)) for z in (-1.959964, 1.959964, -2.326348)]
    return Auc(value=value, low=ends[0], high=ends[1], low99=ends[2])


def true_positive_rate(scores: ArrayLike, members: ArrayLike, *, at: float) -> Rate:
    """The true-positive rate where at most a share ``at`` of the non-members passes.

    Args:
        scores: one for each record, (n,), larger for a likelier member.
        members: bool (n,), True for a member.
        at: the highest false-positive rate, in [0, 1].
    """
    _check.probability("at", at)
    inside, outside = _split(scores, members)
    allowed = math.floor(at * len(outside) + 1e-9)
    threshold = np.partition(outside, len(outside) - allowed - 1)[len(outside) - allowed - 1]
    hits, alarms = int((inside > threshold).sum()), int((outside > threshold).sum())
    measurable = allowed >= 1
    return Rate(
        asked=at,
        measurable=measurable,
        rate=hits / len(inside) if measurable else None,
        low=rate_below(hits, len(inside), error=0.025),
        high=rate_above(hits, len(inside), error=0.025),
        true_positives=hits,
        members=len(inside),
        false_positives=alarms,
        non_members=len(outside),
        precision={f"{prior:g}": _precision(hits / len(inside), alarms / len(outside), prior) for prior in PRIORS},
    )


def curve(scores: ArrayLike, members: ArrayLike) -> Roc:
    """The empirical curve with pointwise 95 % Clopper-Pearson bands of the true-positive rate.

    Args:
        scores: one for each record, (n,), larger for a likelier member.
        members: bool (n,), True for a member.
    """
    inside, outside = _split(scores, members)
    thresholds = np.append(np.unique(np.concatenate([inside, outside]))[::-1], -np.inf)
    hits = len(inside) - np.searchsorted(np.sort(inside), thresholds, side="right")
    alarms = len(outside) - np.searchsorted(np.sort(outside), thresholds, side="right")
    corner = np.flatnonzero(np.diff(alarms, append=len(outside) + 1) > 0)  # the highest true rate at each false rate
    hits, alarms, size = hits[corner], alarms[corner], len(inside)
    low = np.where(hits > 0, special.betaincinv(np.maximum(hits, 1), size - hits + 1, 0.025), 0.0)
    high = np.where(hits < size, special.betaincinv(hits + 1, np.maximum(size - hits, 1), 0.975), 1.0)
    return Roc(alarms / len(outside), hits / size, low, high)


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """Adjusted p-values: each attack pays for all the attacks that were run (Holm 1979).

    >>> holm({"a": 0.01, "b": 0.04})
    {'a': 0.02, 'b': 0.04}

    Args:
        p_values: p-values by attack.
    """
    worst, adjusted = 0.0, {}
    for rank, name in enumerate(sorted(p_values, key=lambda key: p_values[key])):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = worst
    return {name: adjusted[name] for name in p_values}


def _split(scores: ArrayLike, members: ArrayLike) -> tuple[FloatArray, FloatArray]:
    values, mask = np.asarray(scores, np.float64), np.asarray(members, bool)
    _check.require(
        values.ndim == 1 and values.shape == mask.shape,
        "shapes",
        (values.shape, mask.shape),
        wanted="one score and one membership per record",
    )
    _check.require(not bool(np.isnan(values).any()), "scores", "NaN", wanted="numbers")
    sizes: tuple[Any, Any] = (int(mask.sum()), int((~mask).sum()))
    _check.require(min(sizes) > 1, "members, non_members", sizes, wanted="at least two of each")
    return values[mask], values[~mask]


def placements(these: FloatArray, those: FloatArray) -> FloatArray:
    """For each of ``these``, the share of ``those`` below it, ties counting one half.

    Args:
        these: scores, (a,).
        those: scores, (b,).
    """
    ordered = np.sort(those)
    return (np.searchsorted(ordered, these, "left") + np.searchsorted(ordered, these, "right")) / (2 * len(ordered))


def _shifted(value: float, variance: float, z: float, size: int) -> float:
    """The interval's end on the logit scale; a perfect or reversed ranking keeps half a record of doubt."""
    inner = min(max(value, 0.5 / size), 1 - 0.5 / size)
    spread = math.sqrt(max(variance, 0.25 / size**2)) / (inner * (1 - inner))
    return float(special.expit(special.logit(inner) + z * spread))


def _precision(hit_rate: float, alarm_rate: float, prior: float) -> float:
    called = prior * hit_rate + (1 - prior) * alarm_rate
    return prior * hit_rate / called if called else 0.0


def rates(scores: ArrayLike, members: ArrayLike) -> list[Rate]:
    """True-positive rates at 1 %, 0.1 % and 0.01 % false positives.

    Args:
        scores: one for each record, (n,), larger for a likelier member.
        members: bool (n,), True for a member.
    """
    return [true_positive_rate(scores, members, at=at) for at in FALSE_POSITIVE_RATES]
