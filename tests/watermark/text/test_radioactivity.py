# SPDX-License-Identifier: Apache-2.0
"""Radioactivity: a model that learnt from marked text shows it, another does not, and copying is not learning."""

import numpy as np
import pytest
from scipy import stats

from privguard.watermark.secret import Secret
from privguard.watermark.text.reading.ngrams import Documents
from privguard.watermark.text.reading.radioactivity import closed_access, open_access, predict
from privguard.watermark.text.scheme import GreenList
from privguard.watermark.text.writing import host

WORDS = 64


def language(seed: int) -> np.ndarray:
    """Logits of a bigram language of 64 words."""
    return np.random.default_rng(seed).normal(0, 1.5, (WORDS, WORDS)).astype(np.float32)


def texts(logits, rng, *, rows, tokens, profile=None, secret=None):
    """Sampled from the language, by the marked writer where there is a profile (green list, one token of context)."""
    if profile is not None:
        logits = logits.copy()
        for word in range(WORDS):
            host.raise_green(logits[word], profile.stream(secret, subkey=0), np.array([[word]]), scheme=profile.scheme)
    out = rng.integers(0, WORDS, (rows, tokens))
    for t in range(1, tokens):
        scores = logits[out[:, t - 1]]
        out[:, t] = (scores + rng.gumbel(size=scores.shape)).argmax(1)
    return out


class Bigram:
    """A suspect: the model of greatest likelihood for its training text, counted word by word."""

    def __init__(self, corpus: np.ndarray) -> None:
        self.counts = np.full((WORDS, WORDS), 1e-3)
        np.add.at(self.counts, (corpus[:, :-1].ravel(), corpus[:, 1:].ravel()), 1)

    def predictions(self, documents):
        return [np.concatenate([[0], self.counts[d[:-1]].argmax(1)]) for d in documents]

    def write(self, rng, *, rows, tokens):
        return texts(np.log(self.counts).astype(np.float32), rng, rows=rows, tokens=tokens)


@pytest.fixture
def owner(secret, profile_for):
    return profile_for(secret, GreenList(bias=2.0), context_width=1, subkeys=1, logits_width=WORDS, special_ids=())


def test_learning_from_marked_text_shows_with_open_and_with_closed_access(owner, secret):
    rng, logits = np.random.default_rng(1), language(0)
    marked, plain = (
        texts(logits, rng, rows=200, tokens=200, profile=owner, secret=secret),
        texts(logits, rng, rows=200, tokens=200),
    )
    fresh = list(texts(logits, rng, rows=40, tokens=100, profile=owner, secret=secret))
    guilty, innocent = Bigram(marked), Bigram(plain)
    assert open_access(owner, secret, fresh, predictions=guilty.predictions(fresh)).log10_p < -4
    assert open_access(owner, secret, fresh, predictions=innocent.predictions(fresh)).log10_p > -3
    for suspect, low in ((guilty, True), (innocent, False)):
        written = Documents.of_batch(suspect.write(rng, rows=5, tokens=100))
        assert (closed_access(owner, secret, written).log10_p < -4) == low


@pytest.mark.stat
def test_a_model_that_only_copies_its_prompt_is_not_accused(profile_for):
    """The fed texts are marked, and the suspect repeats what stood before; 150 secrets, level 5 %, false alarm 1e-5."""
    hits, naive = 0, 0
    for key in range(150):
        secret = Secret(key.to_bytes(32, "big"))
        profile = profile_for(
            secret, GreenList(bias=3.0), context_width=1, subkeys=1, logits_width=WORDS, special_ids=()
        )
        document = texts(language(0), np.random.default_rng(key), rows=1, tokens=120, profile=profile, secret=secret)[0]
        parrot = np.zeros(len(document), int)
        for i in range(1, len(document)):
            before = np.flatnonzero(document[: i - 1] == document[i - 1])
            parrot[i] = document[before[-1] + 1] if len(before) else (i * 7919) % WORDS
        hits += open_access(profile, secret, [document], predictions=[parrot]).log10_p <= np.log10(0.05)
        grams = Documents.of_lists([np.stack([document[:-1], parrot[1:]], 1).ravel()[:240]])
        naive += closed_access(profile, secret, grams).log10_p <= np.log10(0.05)
    assert hits <= stats.binom.isf(1e-5, 150, 0.05)
    assert naive > stats.binom.isf(1e-5, 150, 0.05)  # without the exclusion it would be


def test_predictions_of_a_transformers_model_are_its_own(model):
    document = np.random.default_rng(2).integers(1, 512, 12)
    (predicted,) = predict(model, [document])
    import torch

    with torch.no_grad():
        for i in (1, 5, 11):
            assert predicted[i] == int(model(torch.from_numpy(document[:i])[None]).logits[0, -1].argmax())


def test_predictions_must_fit_their_documents(owner, secret):
    with pytest.raises(ValueError, match="predictions"):
        open_access(owner, secret, [[1, 2, 3]], predictions=[[1, 2]])
    assert open_access(owner, secret, [[1]], predictions=[[0]]).log10_p == 0
