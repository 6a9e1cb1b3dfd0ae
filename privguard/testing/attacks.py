# SPDX-License-Identifier: Apache-2.0
"""Whether a membership attack ranks records by what they show, and by nothing else."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from privguard.audit.membership.attack import Attack, Evidence
from privguard.testing.promise import FALSE_ALARMS, promise

_RECORDS, _REFERENCES, _CLASSES = 600, 16, 4


def check_attack(attack: Attack) -> None:
    """Try an attack on a world where members show, and on one where membership was tossed afterwards.

    Args:
        attack: an attack that reads nothing but its evidence.

    Raises:
        AssertionError: its statistic is not one finite number for each record, changes from call to call, follows the
            order of the records, does not find members that stand out, or finds some where there are none.
    """
    evidence, members = _world(gap=3.0)
    found = attack.statistic(evidence)
    name = attack.name
    promise(found.shape == (_RECORDS,), f"{name}: one number for each record; got {found.shape}")
    promise(np.isfinite(found).all(), f"{name}: every number is finite")
    promise(np.array_equal(found, attack.statistic(evidence)), f"{name}: the same evidence gives the same numbers")
    order = np.random.default_rng(3).permutation(_RECORDS)
    moved = stats.rankdata(attack.statistic(_reordered(evidence, order)))
    agree = float(np.corrcoef(stats.rankdata(found)[order], moved)[0, 1])
    promise(agree > 0.999, f"{name}: the order of the records says nothing; ranks agree to {agree:.4f}")  # noqa: PLR2004
    promise(_p(found, members) < FALSE_ALARMS, f"{name}: members that stand out rank above others")
    blind, tossed = _world(gap=0.0)
    chance = min(_p(attack.statistic(blind), tossed), _p(-attack.statistic(blind), tossed))
    promise(
        chance > FALSE_ALARMS / 2, f"{name}: finds members where membership was tossed afterwards, p = {chance:.1g}"
    )


def _p(statistic: NDArray[np.float64], members: NDArray[np.bool_]) -> float:
    """The chance of a rank sum as high by tosses alone (Mann and Whitney 1947)."""
    return float(stats.mannwhitneyu(statistic[members], statistic[~members], alternative="greater").pvalue)


def _world(*, gap: float) -> tuple[Evidence, NDArray[np.bool_]]:
    """A target and references whose confidence in a record is higher by ``gap`` deviations where they saw it."""
    random = np.random.default_rng(1)
    labels = random.integers(0, _CLASSES, _RECORDS)
    models = _REFERENCES + 1
    included = random.random((models, _RECORDS)) < 0.5  # noqa: PLR2004 — a fair coin
    confidence = random.normal(0, 2, _RECORDS) + gap * included + random.standard_normal((models, _RECORDS))
    logits = random.normal(0, 0.1, (models, _RECORDS, _CLASSES))
    np.put_along_axis(logits, np.broadcast_to(labels, included.shape)[..., None], confidence[..., None], 2)
    evidence = Evidence(logits=logits[0], labels=labels, reference_logits=logits[1:], included=included[1:])
    return evidence, included[0]


def _reordered(evidence: Evidence, order: NDArray[np.int64]) -> Evidence:
    references, included = evidence.references()
    return replace(
        evidence,
        logits=evidence.logits[order],
        labels=evidence.labels[order],
        reference_logits=references[:, order],
        included=included[:, order],
    )
