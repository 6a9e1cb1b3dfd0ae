# SPDX-License-Identifier: Apache-2.0
"""Statistics of attacks on a split → what may be said about a leak, in words that the split supports.

Two questions, each one test over all attacks, statistics, directions and groups
(``privguard.audit.membership.max_t``). Do
members stand out at all? And do they stand out given what the records alone say? The second takes off each score what
the records let one expect of it, and draws memberships by the chances that the records give: an error in either of the
two models is harmless as long as the other is right (Shah and Peters 2020, arXiv:1804.07203; Berrett et al. 2020,
arXiv:1807.05405). A shift that no blind model can represent is beyond both, and the report says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from privguard.audit.membership import roc, selection
from privguard.audit.membership.blind import Baseline
from privguard.audit.membership.max_t import DRAWS, TOPS, Best, max_t
from privguard.audit.membership.roc import Auc, Rate
from privguard.audit.membership.selection import Carried
from privguard.records import Measurement

LEVEL = 0.05  # of everything that was tested together
SEPARATED = 0.97  # blind AUC from which hardly any record is left whose membership is open
DETERMINED = 0.8  # share of a score that records predict, from which the rest is mostly the blind models' own error
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

NOT_CLAIMED = (
    "that the model is private: an attack that fails may be a weak attack",
    "an ε: records that were not included by recorded coins support no bound",
    "that any one record was a member: read the precision at a prior instead",
    (
        "that the split was random: the blind models see shifts of means, of spread, of products of two columns, of "
        "steps, of the level, spread, extremes and sharpness of a record, and of words and their order; a shift of "
        "another kind, such as the parity of many columns, would be taken for a leak"
    ),
)


class Leak(StrEnum):
    """What the attacks found, in words that the split supports."""

    FOUND = "members stand out beyond the blind baseline"
    NOT_FOUND = "no attack tells members from others better than chance"
    INSEPARABLE = "what the attacks found cannot be separated from the split"


@final
@dataclass(frozen=True, kw_only=True)
class AttackResult(Measurement):
    """One attack: its ranking, and p-values that pay for all attacks, statistics, directions and groups.

    ``p_adjusted`` is for members standing out at all, by ``statistic``, the most telling one. ``p_beyond`` is for
    members standing out given the records, by ``statistic_beyond``, and by more than a shift along the score carries;
    ``explained`` is the share of the score's variance among non-members that the records predict. These three are None
    where there was no blind baseline, or nothing to explain.
    """

    attack: str
    auc: Auc
    rates: tuple[Rate, ...]
    p_adjusted: float
    statistic: str
    p_beyond: float | None = None
    statistic_beyond: str | None = None
    explained: float | None = None


@final
@dataclass(frozen=True, kw_only=True)
class Exposed(Measurement):
    """How many members stand above everybody else at the top of the rankings, from below.

    ``low`` of them at least, with 95 % confidence over all attacks and depths; ``false_alarms`` others stand among the
    first ``depth`` of ``attack``, where the bound was reached.
    """

    low: int
    attack: str
    depth: int
    false_alarms: int


@final
@dataclass(frozen=True, kw_only=True)
class Weighed:
    """The verdict and what it rests on; ``leak`` is None where no blind baseline could be run.

    ``limit`` says how far FOUND goes where no coins chose the members.
    """

    leak: Leak | None
    limit: str | None
    attacks: tuple[AttackResult, ...]
    exposed: Exposed
    notes: tuple[str, ...]


def weigh(
    statistics: Mapping[str, FloatArray],
    members: BoolArray,
    blind: Baseline | None,
    *,
    groups: NDArray[np.generic] | None = None,
    draws: int = DRAWS,
) -> Weighed:
    """Hold every attack (n,) against chance and, where something stands out, against the blind baseline.

    ``groups`` (n,) has every statistic tested within each group too; ``draws`` is the number of memberships drawn.

    Guarantee: where members were a random subset, the verdict is another than NOT_FOUND with probability at most 5 %,
    whatever was attacked and however often.
    """
    plain = max_t(statistics, members, groups=groups, draws=draws)
    stands_out = min(best.p_value for best in plain.values()) <= LEVEL
    beyond = _given_records(statistics, blind, groups, draws) if blind is not None and stands_out else {}
    results = tuple(
        AttackResult(
            attack=name,
            auc=roc.auc(values, members),
            rates=tuple(roc.rates(values, members)),
            p_adjusted=plain[name].p_value,
            statistic=plain[name].statistic,
            p_beyond=beyond[name][0].p_value if beyond else None,
            statistic_beyond=beyond[name][0].statistic if beyond else None,
            explained=beyond[name][1].explained if beyond else None,
        )
        for name, values in statistics.items()
    )
    leak = None if blind is None else _leak(results, blind)
    limit = _limit(results, blind) if blind is not None and leak is Leak.FOUND else None
    return Weighed(
        leak=leak,
        limit=limit,
        attacks=results,
        exposed=exposed(statistics, members),
        notes=_notes(results, blind, leak),
    )


def exposed(statistics: Mapping[str, FloatArray], members: BoolArray, *, confidence: float = 0.95) -> Exposed:
    """How many members are named by the top of a ranking, from below.

    Were E members always at the very top and the rest in random order, the members among the other places of the first
    k would be hypergeometric. E is the least that this law does not refute, at an error shared by all attacks and
    depths (Bonferroni).
    """
    depths = [depth for depth in TOPS if depth <= len(members) // 2] or [len(members) // 2]
    error = (1 - confidence) / (len(depths) * len(statistics))
    reached: list[Exposed] = []
    for name, values in statistics.items():
        order = np.argsort(-values, kind="stable")
        ties = np.lexsort((members, -values))  # among equal scores, members last: ties never help
        order = ties if len(np.unique(values)) < len(values) else order
        for depth in depths:
            hits = int(members[order[:depth]].sum())
            low = _least(hits, depth, members, error)
            reached.append(Exposed(low=low, attack=name, depth=depth, false_alarms=depth - hits))
    return max(reached, key=lambda each: (each.low, -each.false_alarms))


def _given_records(
    statistics: Mapping[str, FloatArray], blind: Baseline, groups: NDArray[np.generic] | None, draws: int
) -> dict[str, tuple[Best, Carried]]:
    """The test given the records, whose lead also has to exceed what a shift along the score would carry.

    On a split that the records tell apart, a score that they predict almost whole says nothing of the model: what is
    left is where the blind models err, and they err alike on either side of the shift.
    """
    rest, chances = _residuals(statistics, blind)
    best = max_t(rest, blind.members, chances=chances, groups=groups, draws=draws)
    questioned: dict[str, tuple[Best, Carried]] = {}
    for name, each in best.items():
        sign = -1.0 if ", lower" in each.statistic else 1.0
        shift = selection.carried(sign * _squashed(statistics[name]), blind)
        determined = blind.record.flagged and shift.explained >= DETERMINED
        p_value = 1.0 if determined else max(each.p_value, shift.p_value)
        questioned[name] = replace(each, p_value=p_value), shift
    return questioned


def _residuals(statistics: Mapping[str, FloatArray], blind: Baseline) -> tuple[dict[str, FloatArray], FloatArray]:
    """What each score (n,) adds to what the records let one expect, and P[member | record] (n,)."""
    kept = {name: _squashed(values) for name, values in statistics.items()}
    expected = {name: blind.expected(values) for name, values in kept.items()}
    return {name: kept[name] - expected[name] for name in kept}, blind.chances(list(expected.values()))


def _least(hits: int, depth: int, members: BoolArray, error: float) -> int:
    inside, count = int(members.sum()), len(members)
    for exposed_ones in range(hits + 1):
        rest = stats.hypergeom(count - exposed_ones, inside - exposed_ones, depth - exposed_ones)
        if float(rest.sf(hits - exposed_ones - 1)) > error:
            return exposed_ones
    return hits


def _leak(results: tuple[AttackResult, ...], blind: Baseline) -> Leak:
    if min(result.p_adjusted for result in results) > LEVEL:
        return Leak.NOT_FOUND
    separated = blind.record.auc.value >= SEPARATED
    beyond = any(result.p_beyond is not None and result.p_beyond <= LEVEL for result in results)
    return Leak.FOUND if beyond and not separated else Leak.INSEPARABLE


def _limit(results: tuple[AttackResult, ...], blind: Baseline) -> str:
    """What the verdict cannot tell from a leak, with how much the blind models see here."""
    told = min(results, key=lambda each: 1.0 if each.p_beyond is None else each.p_beyond)
    return (
        "a leak, or a shift between members and others of a kind that the blind models do not see: records predict "
        f"{told.explained or 0.0:.0%} of the variance of {told.attack} among non-members, and a split is flagged in 4 "
        f"of 5 cases from a blind AUC of {blind.record.detects:.3f} on; only recorded coins that chose the members "
        "rule such a shift out"
    )


def _notes(results: tuple[AttackResult, ...], blind: Baseline | None, leak: Leak | None) -> tuple[str, ...]:
    notes: list[str] = []
    if blind is None:
        notes.append("no records, so no blind baseline: nothing here is called a leak; add an array 'records'")
    elif leak is Leak.INSEPARABLE:
        notes.append(
            f"the records alone tell members from others with AUC {blind.record.auc.value:.3f}, so no statement on a "
            "leak can be made; split members and others at random, or leave out the columns that differ"
        )
        notes += [
            f"records predict {each.explained:.0%} of the variance of {each.attack} among non-members: on such a split "
            "it says nothing of the model"
            for each in results
            if each.explained is not None and each.explained >= DETERMINED and blind.record.flagged
        ]
    lower = [each.attack for each in results if each.p_adjusted <= LEVEL and ", lower" in each.statistic]
    if lower:
        notes.append(
            f"members score lower than others in {', '.join(lower)}: if these are losses, say so (an array called "
            "'losses', or --losses), so that rates are counted from the right end"
        )
    return tuple(notes)


def _squashed(values: FloatArray) -> FloatArray:
    """The scores on a scale that keeps order and gaps but not the weight of outliers, for regression on records."""
    centred = values - np.median(values)
    scale = float(np.median(np.abs(centred))) or float(centred.std()) or 1.0
    return np.arcsinh(centred / scale)
