# SPDX-License-Identifier: Apache-2.0
"""Reading with the model: each token's chance under it says how much its word should weigh, most at low entropy.

Where the Gumbel mark took a token of probability p, its uniform u has the density (1/p)·u^{1/p−1}; without a mark it
is uniform. So that ratio is a bet of mean at most 1 for every p that does not depend on the secret: a wrong model,
another temperature or a missing prompt cost power and never truth. One model is excepted: one that was trained on text
marked under this secret, whose p depends on it. Uniforms are rounded down, which only lowers the ratio.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from privguard import _check
from privguard.errors import MarkError
from privguard.watermark.statistics import tails
from privguard.watermark.statistics.tails import LOG10_E, Floats
from privguard.watermark.text.reading.detect import Detections, Detector
from privguard.watermark.text.reading.ngrams import Documents, scored_ngrams
from privguard.watermark.text.scheme import Gumbel

SHARES = np.array([0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.97])  # of the tokens that are still as they were written
_LEAST = 1e-6  # probabilities are kept this far from 0 and 1


@final
@dataclass(frozen=True)
class WithModel:
    """Per document (D,): ``log10_p``, twice the smaller of the plain p-value and ``log10_p_model``; an e-value.

    ``log10_p_model`` is 1/max of the likelihood ratio along the text (Ville), averaged over sub-keys and over the share
    of tokens left as written; ``log10_e`` is its last value. ``plain`` is what was found without the model.
    """

    log10_p: Floats
    log10_p_model: Floats
    log10_e: Floats
    plain: Detections


def read_with_model(detector: Detector, documents: Documents, log_probabilities: ArrayLike) -> WithModel:
    """Read with the log-probability (T,) that a model gave each token after those before it (natural logarithm).

    Choose model, temperature and use of a prompt before looking; each further choice that is tried is paid for with
    ``tails.bonferroni``. ``log_probabilities_of`` makes the numbers; they may be kept and used for every secret.

    Args:
        detector: the detector of profile and secret.
        documents: token ids of all documents.
        log_probabilities: natural logarithms, one for each token, (T,).

    Raises:
        MarkError: the profile's scheme is not Gumbel.
        ValueError: not one finite or −inf number, 0 or below, for each token.
    """
    profile = detector.profile
    if not isinstance(profile.scheme, Gumbel):
        raise MarkError(f"scheme {profile.scheme.name}: only gumbel is read with a model; use Detector.detect")
    given = np.asarray(log_probabilities, np.float64)
    _check.require(given.shape == documents.tokens.shape, "len(log_probabilities)", given.shape, wanted="one per token")
    if np.isnan(given).any() or (given > 1e-6).any():  # noqa: PLR2004 — rounding of a logarithm
        raise ValueError("log_probabilities: expected natural logarithms of probabilities, 0 or below")
    ngrams = scored_ngrams(profile, documents)
    ratio = _log_ratio(detector.scores(ngrams), np.exp(given[ngrams.place]))
    top, final = np.zeros(ngrams.documents), np.zeros(ngrams.documents)
    bets = np.log1p(SHARES[:, None, None] * np.expm1(ratio))
    for document in range(ngrams.documents):
        own = bets[:, :, ngrams.document == document].cumsum(2)
        if own.size:
            along = special.logsumexp(own, axis=(0, 1)) - np.log(own.shape[0] * own.shape[1])
            top[document], final[document] = max(0.0, float(along.max())), float(along[-1])
    plain, log10_model = detector.detect(documents), -top * LOG10_E
    log10_p = tails.bonferroni(np.minimum(plain.log10_p, log10_model), 2)
    return WithModel(log10_p, log10_model, final * LOG10_E, plain)


def log_probabilities_of(
    model: Any, documents: Sequence[ArrayLike], *, temperature: float = 1.0, batch: int = 8
) -> Floats:
    """What a causal transformers model gives each token of documents after those before it, all in one row (T,).

    The first token of a document, which has nothing before it, counts as uniform over the model's vocabulary.

    Args:
        model: a causal language model of transformers.
        documents: token ids of all documents.
        temperature: what logits are divided by, above 0.
        batch: documents in one forward pass.
    """
    import torch

    _check.positive("temperature", temperature)
    rows = [np.asarray(document, np.int64) for document in documents]
    out: list[NDArray[np.float64]] = []
    with torch.no_grad():
        for start in range(0, len(rows), _check.count("batch", batch)):
            some = rows[start : start + batch]
            ids = torch.zeros((len(some), max(1, *map(len, some))), dtype=torch.long)
            for at, row in enumerate(some):
                ids[at, : len(row)] = torch.from_numpy(row)
            mask = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in some])[:, None]
            logits = model(ids.to(model.device), attention_mask=mask.long().to(model.device)).logits.float()
            chances = torch.log_softmax(logits / temperature, -1)
            told = chances[:, :-1].gather(2, ids[:, 1:, None].to(model.device))[:, :, 0].cpu().double().numpy()
            first = -np.log(logits.shape[-1])
            out += [np.concatenate([[first], told[at, : len(row) - 1]])[: len(row)] for at, row in enumerate(some)]
    return np.concatenate(out) if out else np.zeros(0)


def _log_ratio(scores: Floats, chance: Floats) -> Floats:
    """Logarithm of (1/p)·u^{1/p−1}, (M, N), from scores −ln(1−u) and p (N,); u = 0 gives −inf."""
    p = np.clip(chance, _LEAST, 1 - _LEAST)
    with np.errstate(divide="ignore"):
        log_u = np.log(-np.expm1(-scores))
    return np.clip(-np.log(p) + (1 / p - 1) * log_u, -np.inf, 60.0)
