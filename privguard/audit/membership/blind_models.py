# SPDX-License-Identifier: Apache-2.0
"""What is learnt from the records alone: three kinds of model that see different kinds of shift.

Linear models see a shift of means or of words, and of what sums a record up, such as its brightness, spread, extremes
and sharpness; quadratic ones one of the spread and the product of two columns; boosted trees one of steps and of a few
columns together. Texts are words and pairs of words, with and without their place, and runs of two to four characters.
A shift of another kind, such as the parity of many columns, none of them sees.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from privguard.audit.membership import blind_features

FloatArray = NDArray[np.float64]

PAIRED = 24  # leading columns whose squares and products the quadratic model sees

Predict = Callable[[NDArray[np.int64], NDArray[np.int64]], FloatArray]
"""Records learnt from and records held, both by number → one prediction per held record."""


class Views:
    """The same n records as each kind of model wants them; nothing here knows who is a member.

    ``linear`` may be sparse and wide, ``quadratic`` and ``trees`` are dense.
    """

    def __init__(self, records: Sequence[str] | ArrayLike, seed: int, *, beside: FloatArray | None = None) -> None:
        self.seed = seed
        if len(records) and isinstance(records[0], str):  # type: ignore[index]
            texts = [str(text) for text in records]  # type: ignore[union-attr]
            self.linear: Any = blind_features.text_counts(texts)
            self.trees = blind_features.dense_text(texts, self.linear, seed)
            rows, sums = self.trees, self.trees[:, :0]
        else:
            rows, sums = blind_features.numeric(np.asarray(records), beside, seed)
            self.trees = np.hstack([rows, sums])
            self.linear = StandardScaler().fit_transform(self.trees)
        leading = StandardScaler().fit_transform(rows[:, _leading(rows)])
        pairs: Any = PolynomialFeatures(2, include_bias=False)
        self.quadratic: FloatArray = StandardScaler().fit_transform(pairs.fit_transform(leading))

    def classifiers(self, labels: NDArray[np.bool_]) -> dict[str, Predict]:
        """Log odds that a held record's label is True, by each kind of model."""
        strength = 1.0 if sparse.issparse(self.linear) else 0.1

        def linear(view: Any, weight: float) -> Predict:
            def predict(learnt: NDArray[np.int64], held: NDArray[np.int64]) -> FloatArray:
                model = LogisticRegression(C=weight, max_iter=300).fit(view[learnt], labels[learnt])
                return model.decision_function(view[held])

            return predict

        def trees(learnt: NDArray[np.int64], held: NDArray[np.int64]) -> FloatArray:
            model: Any = HistGradientBoostingClassifier(**self._growth(), class_weight=None)
            return model.fit(self.trees[learnt], labels[learnt]).decision_function(self.trees[held])

        return {"linear": linear(self.linear, strength), "quadratic": linear(self.quadratic, 0.01), "trees": trees}

    def regressors(self, values: FloatArray) -> dict[str, Predict]:
        """What the records alone let one expect of ``values`` (n,), by each kind of model."""

        def linear(view: Any, penalty: float) -> Predict:
            def predict(learnt: NDArray[np.int64], held: NDArray[np.int64]) -> FloatArray:
                return Ridge(penalty).fit(view[learnt], values[learnt]).predict(view[held])

            return predict

        def trees(learnt: NDArray[np.int64], held: NDArray[np.int64]) -> FloatArray:
            model: Any = HistGradientBoostingRegressor(**self._growth())
            return model.fit(self.trees[learnt], values[learnt]).predict(self.trees[held])

        weak = 1.0 if sparse.issparse(self.linear) else 0.1
        return {"linear": linear(self.linear, weak), "quadratic": linear(self.quadratic, 10.0), "trees": trees}

    def _growth(self) -> dict[str, Any]:
        return {
            "max_iter": 50,
            "learning_rate": 0.15,
            "max_leaf_nodes": 8,
            "min_samples_leaf": 10,
            "early_stopping": False,
            "random_state": self.seed,
        }


def _leading(rows: FloatArray) -> NDArray[np.int64]:
    """The first columns that vary at all: of projected records they carry most."""
    return np.flatnonzero(rows.std(0) > 0)[:PAIRED] if rows.std(0).any() else np.array([0])
