"""What is learnt from the records alone: features, and three kinds of model that see different kinds of shift.

Linear models see a shift of means or of words; quadratic ones one of spread, and of the product of two columns; boosted
trees one of steps and of a few columns together. Texts are words and pairs of words, with and without their place, and
runs of two to four characters. A shift of another kind, such as the parity of many columns, none of them sees.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from sklearn.decomposition import TruncatedSVD
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

FloatArray = NDArray[np.float64]

COMPONENTS = 64  # an array wider than this is projected first
PAIRED = 24  # leading columns whose squares and products the quadratic model sees
TEXT_COMPONENTS = 32  # of a text's words, for the models that need dense columns
PLACES = 64  # words of a text whose place is a feature of its own
VOCABULARY = 20_000  # of each family of text features

Predict = Callable[[NDArray[np.int64], NDArray[np.int64]], FloatArray]
"""Records learnt from and records held, both by number → one prediction per held record."""


class Views:
    """The same n records as each kind of model wants them; nothing here knows who is a member.

    ``linear`` may be sparse and wide, ``quadratic`` and ``trees`` are dense.
    """

    def __init__(self, records: Sequence[str] | ArrayLike, count: int, seed: int) -> None:
        self.seed = seed
        if count and isinstance(records[0], str):  # type: ignore[index]
            self.linear: Any = _text_counts([str(text) for text in records])  # type: ignore[union-attr]
            self.trees = _dense_text([str(text) for text in records], self.linear, seed)  # type: ignore[union-attr]
        else:
            rows = _numeric(np.asarray(records), count, seed)
            self.linear = StandardScaler().fit_transform(rows)
            self.trees = rows
        leading = StandardScaler().fit_transform(self.trees[:, _leading(self.trees)])
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


def _numeric(records: NDArray[Any], count: int, seed: int) -> FloatArray:
    rows = np.asarray(records, np.float64).reshape(count, -1)
    if rows.shape[1] > COMPONENTS:
        rows = TruncatedSVD(COMPONENTS, random_state=seed).fit_transform(StandardScaler().fit_transform(rows))
    return rows


def _leading(rows: FloatArray) -> NDArray[np.int64]:
    """The first columns that vary at all: of projected records they carry most."""
    return np.flatnonzero(rows.std(0) > 0)[:PAIRED] if rows.std(0).any() else np.array([0])


def _text_counts(texts: list[str]) -> Any:
    """Sparse counts (n, features): words, pairs, pairs at their place, and runs of characters."""
    make: Any = CountVectorizer
    analyzers: tuple[Any, ...] = (
        _words,
        _pairs,
        _placed,
        make(analyzer="char_wb", ngram_range=(2, 4)).build_analyzer(),
    )
    blocks: list[Any] = []
    for analyzer in analyzers:
        family = make(analyzer=analyzer, min_df=2, max_features=VOCABULARY)
        try:
            counts = family.fit_transform(texts).astype(np.float64)
        except ValueError:  # nothing of this family comes twice
            continue
        blocks.append(counts.log1p())  # a word said ten times tells little more than said twice
    return sparse.csr_matrix(sparse.hstack(blocks)) if blocks else sparse.csr_matrix((len(texts), 1))


def _dense_text(texts: list[str], counts: Any, seed: int) -> FloatArray:
    """Length, word length and make-up of each text beside the leading components of its counts."""
    facts = np.array([_facts(text) for text in texts], np.float64)
    width = min(TEXT_COMPONENTS, counts.shape[1] - 1, counts.shape[0] - 1)
    if width < 1:
        return facts
    return np.hstack([facts, TruncatedSVD(width, random_state=seed).fit_transform(counts)])


def _facts(text: str) -> list[float]:
    words, size = text.split(), max(1, len(text))
    shares = [sum(map(kind, text)) / size for kind in (str.isupper, str.isdigit, str.isspace, str.isalpha)]
    return [len(text), len(words), len(set(words)) / max(1, len(words)), *shares]


def _words(text: str) -> list[str]:
    return text.lower().split()


def _pairs(text: str) -> list[str]:
    words = _words(text)
    return [f"{first} {second}" for first, second in itertools.pairwise(words)]


def _placed(text: str) -> list[str]:
    words = _words(text)[:PLACES]
    alone = [f"{place} {word}" for place, word in enumerate(words)]
    return alone + [f"{place} {pair}" for place, pair in enumerate(_pairs(" ".join(words)))]
