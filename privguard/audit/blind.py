"""The attack that never sees the model: can members be told from non-members by the records alone?

If they can, the split was not random, and a high AUC of a membership attack may measure the split and not the model.
The baseline is a linear classifier on out-of-fold records, so that it cannot profit from memorising any of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from privguard import _check
from privguard.audit import roc
from privguard.audit.roc import Auc
from privguard.records import Measurement

FOLDS = 5
COMPONENTS = 64  # an array wider than this is projected first
CHANCE = 0.5
# Classifiers of different folds share training records, so their errors add up: Nadeau and Bengio 2003, Machine
# Learning 52, raise the variance by 1 + folds / (folds - 1). Without it a random split is flagged 6 times in 100.
INFLATION = 1 + FOLDS / (FOLDS - 1)


@final
@dataclass(frozen=True, kw_only=True)
class Blind(Measurement):
    """AUC of the blind classifier and whether it is ``flagged``: its one-sided 99 % lower end exceeds 0.5."""

    auc: Auc
    flagged: bool
    folds: int = FOLDS


@final
@dataclass(frozen=True)
class Baseline:
    """The record for the report, and the out-of-fold scores (n,) that its curve is drawn from."""

    record: Blind
    scores: NDArray[np.float64]


def blind_baseline(records: Sequence[str] | ArrayLike, members: ArrayLike, *, seed: int = 0) -> Baseline:
    """Tell members from non-members without the model, out of fold.

    ``records`` are texts, or an array (n, ...) of numbers. ``members`` (n,) is the split to be tested; labels that the
    model was trained on may stand as one more column.

    Guarantee: on a random split it is flagged about once in a hundred times.
    """
    mask = np.asarray(members, bool)
    texts = len(records) > 0 and isinstance(records[0], str)  # type: ignore[index]
    rows: Any = np.array(records, object) if texts else np.asarray(records, np.float64).reshape(len(mask), -1)
    least = int(min(mask.sum(), (~mask).sum()))
    _check.require(least >= 2 * FOLDS, "members, non-members", least, wanted=f"at least {2 * FOLDS} of each")
    scores = np.zeros(len(mask))
    for train, held in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(rows, mask):
        model = _text_model() if texts else _number_model(rows.shape[1], seed)
        model.fit(rows[train], mask[train])
        scores[held] = _within_fold(np.asarray(model.decision_function(rows[held])))
    auc = roc.auc(scores, mask, inflation=INFLATION)
    return Baseline(Blind(auc=auc, flagged=auc.low99 > CHANCE), scores)


def _within_fold(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks in [0, 1]: scores of classifiers from different folds have no common scale."""
    _, ranks = np.unique(scores, return_inverse=True)
    return ranks / max(1, ranks.max())


def _text_model() -> Any:
    words = CountVectorizer(min_df=2, max_features=20_000)
    return make_pipeline(words, FunctionTransformer(_damped), LogisticRegression(C=1.0, max_iter=300))


def _damped(counts: Any) -> Any:
    """log(1 + count): a word said ten times tells little more than said twice."""
    return counts.log1p()


def _number_model(width: int, seed: int) -> Any:
    steps = [] if width <= COMPONENTS else [TruncatedSVD(COMPONENTS, random_state=seed)]
    return make_pipeline(*steps, StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
