# SPDX-License-Identifier: Apache-2.0
"""The attack that never sees the model: can members be told from non-members by the records alone?

If they can, the split was not random, and a high AUC of a membership attack may measure the split and not the model.
Every record is judged by models that did not learn from it, so that they cannot profit from memorising any.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import LinearRegression, LogisticRegression

from privguard import _check
from privguard.audit.membership import roc
from privguard.audit.membership.blind_models import Predict, Views
from privguard.audit.membership.roc import Auc
from privguard.records import Measurement

BLOCKS = 5
CHANCE = 0.5
ERROR_Z = 2.326348  # one-sided 1 %
POWER_Z = 0.841621  # four of five
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@final
@dataclass(frozen=True, kw_only=True)
class Blind(Measurement):
    """AUC of the blind models and whether it is ``flagged``: its one-sided 99 % lower end exceeds 0.5.

    Records are shuffled into ``blocks``; the AUC is that of each block but the first, ranked by the kind of model that
    did best so far and learnt from the blocks before it. ``detects`` is the power: the AUC from which four of five
    splits are flagged.
    """

    auc: Auc
    flagged: bool
    detects: float
    blocks: int = BLOCKS


@final
@dataclass(frozen=True)
class Baseline:
    """The record for the report, and what the records alone say of each of them.

    ``log_odds`` (n, kinds) that a record is a member, each by models that learnt from the other four fifths;
    ``scores`` (n,) is their combination, for a curve. Both are worked out when they are first asked for.
    """

    record: Blind
    members: BoolArray
    views: Views
    blocks: list[NDArray[np.int64]]

    @cached_property
    def log_odds(self) -> FloatArray:
        """Clipped at 8, where a record's membership is as good as decided."""
        return np.clip(held_out(self.views.classifiers(self.members), self.blocks), -8, 8)

    @cached_property
    def scores(self) -> FloatArray:
        """One score per record, logistic over the kinds."""
        return (
            LogisticRegression(C=100.0, max_iter=1_000)
            .fit(self.log_odds, self.members)
            .decision_function(self.log_odds)
        )

    def expected(self, values: FloatArray) -> FloatArray:
        """What the records let one expect of ``values`` (n,): least squares over held-out predictions of each kind.

        Args:
            values: one for each record, (n,).
        """
        predictions = held_out(self.views.regressors(values), self.blocks)
        model = LinearRegression(positive=True).fit(predictions, values)
        return model.predict(predictions)

    def expected_of_others(self, values: FloatArray) -> FloatArray:
        """The same (n,), learnt from non-members alone: of records that no model saw, a score can tell no leak.

        Args:
            values: one for each record, (n,).
        """
        regressors, others = self.views.regressors(values), ~self.members
        predictions = held_out(regressors, self.blocks, among=others)
        return LinearRegression(positive=True).fit(predictions[others], values[others]).predict(predictions)

    def chances(self, expected: Sequence[FloatArray]) -> FloatArray:
        """P[member | record] (n,), calibrated: logistic over the held-out log odds and the ``expected`` scores.

        The expected scores and their squares are among the columns, so that the chances are right on average along
        just the directions in which a comparison would be led astray.

        Args:
            expected: scores (n,) as records let one expect them.
        """
        columns = [*self.log_odds.T]
        for values in expected:
            scaled = (values - values.mean()) / max(float(values.std()), 1e-12)
            columns += [scaled, np.clip(scaled, -4, 4) ** 2]
        model = LogisticRegression(C=100.0, max_iter=1_000).fit(np.stack(columns, 1), self.members)
        return np.clip(model.predict_proba(np.stack(columns, 1))[:, 1], 1e-6, 1 - 1e-6)


def blind_baseline(
    records: Sequence[str] | ArrayLike, members: ArrayLike, *, beside: ArrayLike | None = None, seed: int = 0
) -> Baseline:
    """Tell members from non-members without the model.

    ``records`` are texts, or an array (n, ...) of numbers; of images the last two axes are height and width.
    ``members`` (n,) is the split to be tested. ``beside`` (n, k) are further columns, such as the labels that the model
    was trained on.

    Guarantee: on a random split it is flagged at most once in a hundred times, whatever the records. Given all earlier
    blocks, a block's rank sum then has the law of Mann and Whitney 1947, so that the sum over blocks has the law of
    independent ones, though the models share records and one kind is chosen by the blocks before (progressive
    validation: Blum, Kalai, Langford 1999). That does not hold for cross-validation, whose usual interval flags 6
    random splits in 100.

    Args:
        records: texts, or an array (n, ...).
        members: bool (n,), True for a member.
        beside: columns that stand beside the records, (n, k); None for none.
        seed: of the split into blocks.
    """
    mask = np.asarray(members, bool)
    least = int(min(mask.sum(), (~mask).sum()))
    _check.require(least >= 2 * BLOCKS, "members, non-members", least, wanted=f"at least {2 * BLOCKS} of each")
    views = Views(records, seed, beside=None if beside is None else np.asarray(beside, np.float64))
    kinds = views.classifiers(mask)
    blocks = np.array_split(np.random.default_rng(seed).permutation(len(mask)), BLOCKS)
    ranked = _progressive(kinds, mask, blocks)
    area, deviation = _auc_within(ranked)
    detects = min(1.0, CHANCE + (ERROR_Z + POWER_Z) * deviation)
    record = Blind(auc=area, flagged=area.low99 > CHANCE, detects=detects)
    return Baseline(record, mask, views, blocks)


def held_out(
    kinds: Mapping[str, Predict],
    blocks: Sequence[NDArray[np.int64]],
    *,
    among: BoolArray | None = None,
) -> FloatArray:
    """Predictions (n, kinds) for every record, each by models that learnt from the other blocks.

    With ``among`` (n,) they learn only from the records that it marks.

    Args:
        kinds: kinds of model by name.
        blocks: record numbers of each block.
        among: which records may be learnt from, (n,); None for all.
    """
    predictions = np.zeros((sum(map(len, blocks)), len(kinds)))
    for k, held in enumerate(blocks):
        learnt = np.concatenate([block for number, block in enumerate(blocks) if number != k])
        learnt = learnt if among is None else learnt[among[learnt]]
        for column, predict in enumerate(kinds.values()):
            predictions[held, column] = predict(learnt, held)
    return predictions


def _progressive(
    kinds: Mapping[str, Predict], mask: BoolArray, blocks: Sequence[NDArray[np.int64]]
) -> list[tuple[FloatArray, BoolArray]]:
    """Ranks and membership of every block but the first, by the kind of model that won most pairs so far."""
    won = dict.fromkeys(kinds, 0.0)
    ranked: list[tuple[FloatArray, BoolArray]] = []
    for k in range(1, len(blocks)):
        learnt, held = np.concatenate(blocks[:k]), blocks[k]
        truth = mask[held]
        if not 0 < mask[learnt].sum() < len(learnt):
            continue
        ranks = {name: _ranks(predict(learnt, held)) for name, predict in kinds.items()}
        best = max(won, key=lambda name: won[name])
        shown = ranks[best] if any(won.values()) else _ranks(sum(ranks.values(), np.zeros(len(held))))
        ranked.append((shown, truth))
        for name in kinds:
            won[name] += float((ranks[name] - 0.5)[truth].sum())
    return ranked


def _ranks(values: FloatArray) -> FloatArray:
    """Ranks in (0, 1], all different: equal values fall by the shuffled order, which says nothing about members."""
    ranks = np.empty(len(values))
    ranks[np.argsort(values, kind="stable")] = np.arange(1, len(values) + 1)
    return ranks / len(values)


def _auc_within(ranked: Sequence[tuple[FloatArray, BoolArray]]) -> tuple[Auc, float]:
    """AUC over the pairs within blocks with normal ends around a sum of Mann-Whitney statistics, and its deviation.

    The variance is the larger of that without any difference, which is exact, and DeLong's. The first makes the lower
    end a test: the tails of a rank sum are lighter than a normal's, and half a pair pays for its steps.
    """
    wins = pairs = null = observed = 0.0
    for scores, mask in ranked:
        inside, outside = float(mask.sum()), float((~mask).sum())
        if inside == 0 or outside == 0:
            continue
        above = roc.placements(scores[mask], scores[~mask])
        below = roc.placements(-scores[~mask], -scores[mask])
        wins, pairs = wins + inside * outside * float(above.mean()), pairs + inside * outside
        null += inside * outside * (inside + outside + 1) / 12
        if inside > 1 and outside > 1:
            spread = float(above.var(ddof=1)) / inside + float(below.var(ddof=1)) / outside
            observed += (inside * outside) ** 2 * spread
    deviation, pairs = math.sqrt(max(null, observed)), max(pairs, 1.0)

    def end(z: float) -> float:
        return min(1.0, max(0.0, (wins + z * deviation + math.copysign(0.5, z)) / pairs))

    area = Auc(value=wins / pairs, low=end(-1.959964), high=end(1.959964), low99=end(-ERROR_Z))
    return area, math.sqrt(null) / pairs
