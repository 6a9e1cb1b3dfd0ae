"""The attack that never sees the model: can members be told from non-members by the records alone?

If they can, the split was not random, and a high AUC of a membership attack may measure the split and not the model.
The baseline is a linear classifier on records that it did not learn from, so that it cannot profit from memorising any.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from privguard import _check
from privguard.audit import roc
from privguard.audit.roc import Auc
from privguard.records import Measurement

BLOCKS = 5
COMPONENTS = 64  # an array wider than this is projected first
CHANCE = 0.5
# Scores of classifiers that share training records err together: Nadeau and Bengio 2003, Machine Learning 52, raise the
# variance by 1 + BLOCKS / (BLOCKS - 1) where every record is scored by a classifier of the others.
SHARED = 1 + BLOCKS / (BLOCKS - 1)
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@final
@dataclass(frozen=True, kw_only=True)
class Blind(Measurement):
    """AUC of the blind classifier and whether it is ``flagged``: its one-sided 99 % lower end exceeds 0.5.

    Records are shuffled into ``blocks``; the AUC is that of each block but the first, ranked by a classifier that
    learnt from the blocks before it.
    """

    auc: Auc
    flagged: bool
    blocks: int = BLOCKS


@final
@dataclass(frozen=True)
class Baseline:
    """The record for the report, and scores (n,) for a curve: every record by a classifier that learnt from the others.

    Each fifth is scored from the other four, which is the stronger ranking, but what those classifiers have in common
    leaves it without an exact interval: a comparison with it raises its variance by ``SHARED``.
    """

    record: Blind
    scores: FloatArray


def blind_baseline(records: Sequence[str] | ArrayLike, members: ArrayLike, *, seed: int = 0) -> Baseline:
    """Tell members from non-members without the model.

    ``records`` are texts, or an array (n, ...) of numbers. ``members`` (n,) is the split to be tested; labels that the
    model was trained on may stand as one more column.

    Guarantee: on a random split it is flagged at most once in a hundred times, whatever the records. Given all earlier
    blocks, a block's rank sum then has the law of Mann and Whitney 1947, so that the sum over blocks has the law of
    independent ones, though the classifiers share records (progressive validation: Blum, Kalai, Langford 1999). That
    does not hold for cross-validation, whose usual interval flags 6 random splits in 100.
    """
    mask = np.asarray(members, bool)
    least = int(min(mask.sum(), (~mask).sum()))
    _check.require(least >= 2 * BLOCKS, "members, non-members", least, wanted=f"at least {2 * BLOCKS} of each")
    features = _features(records, len(mask), seed)
    blocks = np.array_split(np.random.default_rng(seed).permutation(len(mask)), BLOCKS)
    ranked = [
        (_ranks(features, mask, np.concatenate(blocks[:k]), blocks[k]), mask[blocks[k]]) for k in range(1, BLOCKS)
    ]
    scores = np.zeros(len(mask))
    for k, held in enumerate(blocks[:-1]):
        scores[held] = _ranks(features, mask, np.concatenate(blocks[:k] + blocks[k + 1 :]), held)
    scores[blocks[-1]] = ranked[-1][0]
    area = _auc_within(ranked)
    return Baseline(Blind(auc=area, flagged=area.low99 > CHANCE), scores)


def _ranks(features: Any, mask: BoolArray, learnt: NDArray[np.int64], held: NDArray[np.int64]) -> FloatArray:
    """Ranks in (0, 1] of the held records, all different: classifiers of different blocks have no common scale.

    Equal scores fall by the shuffled order, which says nothing about members.
    """
    order = np.arange(len(held))
    if 0 < mask[learnt].sum() < len(learnt):
        model = LogisticRegression(C=1.0 if sparse.issparse(features) else 0.1, max_iter=300)
        order = np.argsort(model.fit(features[learnt], mask[learnt]).decision_function(features[held]), kind="stable")
    ranks = np.empty(len(held))
    ranks[order] = np.arange(1, len(held) + 1)
    return ranks / len(held)


def _auc_within(ranked: Sequence[tuple[FloatArray, BoolArray]]) -> Auc:
    """AUC over the pairs within blocks, with normal ends around a sum of Mann-Whitney statistics.

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

    return Auc(value=wins / pairs, low=end(-1.959964), high=end(1.959964), low99=end(-2.326348))


def _features(records: Sequence[str] | ArrayLike, count: int, seed: int) -> Any:
    """Numbers per record (n, width), from the records alone: nothing here knows who is a member."""
    if count and isinstance(records[0], str):  # type: ignore[index]
        counts: Any = CountVectorizer(min_df=2, max_features=20_000).fit_transform(np.array(records, object))
        return counts.astype(np.float64).log1p()  # a word said ten times tells little more than said twice
    rows = np.asarray(records, np.float64).reshape(count, -1)
    if rows.shape[1] > COMPONENTS:
        rows = TruncatedSVD(COMPONENTS, random_state=seed).fit_transform(rows)
    return StandardScaler().fit_transform(rows)
