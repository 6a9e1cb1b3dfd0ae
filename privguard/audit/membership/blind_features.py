# SPDX-License-Identifier: Apache-2.0
"""Records → columns for the models that never see the target: rows and what sums each up, or counts of words.

Nothing here knows who is a member.
"""

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.preprocessing import StandardScaler

FloatArray = NDArray[np.float64]

COMPONENTS = 64  # an array wider than this is projected first
TEXT_COMPONENTS = 32  # of a text's words, for the models that need dense columns
PLACES = 64  # words of a text whose place is a feature of its own
VOCABULARY = 20_000  # of each family of text features
PATCHES = 4  # an image is cut into so many by so many


def numeric(records: NDArray[Any], beside: FloatArray | None, seed: int) -> tuple[FloatArray, FloatArray]:
    """Columns (n, at most 64) of records (n, ...), then ``beside`` (n, k); and what sums a record up (n, s)."""
    values = np.asarray(records, np.float64)
    rows = values.reshape(len(values), -1)
    scaled = StandardScaler().fit_transform(rows)
    alone = rows.shape[1] == 1  # a single number sums itself up
    images = _of_image(values) if values.ndim > 2 else ()  # noqa: PLR2004 — (n, height, width)
    sums = rows[:, :0] if alone else np.stack([*_summaries(rows), *_summaries(scaled), *images], 1)
    if rows.shape[1] > COMPONENTS:
        rows = TruncatedSVD(COMPONENTS, random_state=seed).fit_transform(scaled)
    columns = rows if beside is None else np.hstack([rows, beside])
    return columns, sums[:, sums.std(0) > 0]


def _summaries(rows: FloatArray) -> list[FloatArray]:
    """Level, spread, extremes, tails, zeros and roughness of each row, each (n,)."""
    size = np.abs(rows)
    tails = np.quantile(rows, (0.1, 0.5, 0.9), axis=1)
    moments = [rows.mean(1), rows.std(1), size.mean(1), (rows**2).mean(1)]
    ends = [rows.min(1), rows.max(1), np.ptp(rows, axis=1), size.max(1)]
    return [*moments, *ends, *tails, (rows == 0).mean(1), np.abs(np.diff(rows, axis=1)).mean(1)]


def _of_image(values: FloatArray) -> list[FloatArray]:
    """Steps down and across, and the spread and extremes of patches, of images (n, ..., height, width), each (n,)."""
    images = values.reshape(len(values), -1, *values.shape[-2:])
    steps = [np.abs(np.diff(images, axis=axis)).mean((1, 2, 3)) for axis in (2, 3) if images.shape[axis] > 1]
    pieces = [part.mean((2, 3)) for band in _cut(images, 2) for part in _cut(band, 3)]
    patches = np.concatenate(pieces, 1)
    return [*steps, patches.std(1), patches.min(1), patches.max(1)]


def _cut(images: FloatArray, axis: int) -> list[FloatArray]:
    return np.array_split(images, min(PATCHES, images.shape[axis]), axis)


def text_counts(texts: list[str]) -> Any:
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


def dense_text(texts: list[str], counts: Any, seed: int) -> FloatArray:
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
