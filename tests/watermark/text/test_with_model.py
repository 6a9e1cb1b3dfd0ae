# SPDX-License-Identifier: Apache-2.0
"""Reading with the model: a true bet whatever the model says, and far fewer tokens where it is right."""

import numpy as np
import pytest
import torch
from scipy import stats

from privguard.errors import MarkError
from privguard.watermark.secret import Secret
from privguard.watermark.text.reading.detect import Detector
from privguard.watermark.text.reading.ngrams import Documents
from privguard.watermark.text.reading.with_model import SHARES, _log_ratio, log_probabilities_of, read_with_model
from privguard.watermark.text.scheme import GreenList, Gumbel
from privguard.watermark.text.writing.generate import MarkedGeneration


@pytest.mark.parametrize("p", [1e-6, 0.01, 0.3, 0.5, 0.7, 0.99, 1 - 1e-6, 0.0, 1.0])
def test_a_bet_on_any_probability_has_mean_at_most_one(p):
    """Over all 2²³ uniforms that a word can give."""
    uniform = np.arange(1 << 23) / 2**23
    scores = -np.log1p(-uniform)
    mean = np.exp(_log_ratio(scores[None], np.full(1, p))).mean()
    assert mean <= 1 + 1e-6
    assert mean > 0.99 or p >= 0.99 or p <= 1e-6


@pytest.mark.stat
@pytest.mark.parametrize("kind", ["right", "wild"])
def test_no_model_finds_a_mark_in_text_without_one(profile_for, kind):
    """2,000 texts, 20 secrets; the model's numbers are sensible or wild. Fails by chance below 1e-6."""
    rng, p = np.random.default_rng(1), []
    for number in range(20):
        secret = Secret(number.to_bytes(32, "big"))
        detector = Detector(profile_for(secret, Gumbel()), secret)
        text = rng.integers(1, 512, (100, 60))
        chances = np.full(text.size, -6.0) if kind == "right" else -(rng.exponential(size=text.size) ** 3)
        p += read_with_model(detector, Documents.of_batch(text), chances).log10_p_model.tolist()
    for level in (0.1, 0.01):
        assert (np.array(p) <= np.log10(level)).sum() <= stats.binom.isf(1e-6, len(p), level)


def test_a_predictable_text_is_found_with_the_model_alone(model, prompts, secret, profile_for):
    """Top-3 sampling at a low temperature leaves little entropy; the plain sum needs far more of it."""
    profile = profile_for(secret, Gumbel())
    options = {"do_sample": True, "top_k": 0, "temperature": 0.25, "max_new_tokens": 60}
    text = model.generate(prompts, custom_generate=MarkedGeneration(profile, secret), **options).numpy()
    chances = log_probabilities_of(model, list(text), temperature=0.25, batch=4)
    found = read_with_model(Detector(profile, secret), Documents.of_batch(text, prompt=8), chances)
    assert np.median(found.log10_p) < np.median(found.plain.log10_p) - 3
    assert (found.log10_p < -6).mean() > 0.5
    other = read_with_model(
        Detector(profile_for(Secret(bytes(32)), Gumbel()), Secret(bytes(32))), Documents.of_batch(text), chances
    )
    assert (other.log10_p > -4).all()


def test_log_probabilities_are_the_models_own(model):
    """Against one forward pass for each document, of unequal lengths; the first token is uniform."""
    rows = [[5, 6, 7, 8], [9], [], [3, 4, 5]]
    found = log_probabilities_of(model, rows, batch=3)
    expected = []
    for row in filter(None, rows):
        chances = torch.log_softmax(model(torch.tensor([row])).logits[0].detach(), -1)
        expected += [-np.log(512), *(float(chances[i, token]) for i, token in enumerate(row[1:]))]
    assert found == pytest.approx(expected, abs=1e-4)


def test_what_cannot_be_read_is_refused(secret, profile_for):
    documents = Documents.of_lists([range(1, 20)])
    with pytest.raises(MarkError, match="gumbel"):
        read_with_model(Detector(profile_for(secret, GreenList()), secret), documents, np.zeros(19))
    detector = Detector(profile_for(secret, Gumbel()), secret)
    for bad in (np.zeros(18), np.full(19, np.nan), np.full(19, 0.5)):
        with pytest.raises(ValueError, match="log_probabilities"):
            read_with_model(detector, documents, bad)
    assert SHARES.max() < 1
