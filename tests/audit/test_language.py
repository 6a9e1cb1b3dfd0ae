# SPDX-License-Identifier: Apache-2.0
"""Language attacks against their formulas, written out the slow way on a real small transformer."""

import math
import zlib

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from privguard.audit.text import attacks
from privguard.audit.text.extraction import (
    Exposure,
    Sampling,
    exposure,
    exposure_of,
    queries_needed,
    sample_suffixes,
    suffix_log_probability,
    verbatim,
)

VOCABULARY = 17


def transformer(seed, *, sharpness=1.0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = GPT2Config(
            vocab_size=VOCABULARY, n_positions=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
        )
        model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        model.transformer.wte.weight.mul_(sharpness)
    return model


@pytest.fixture(scope="module")
def model():
    return transformer(0, sharpness=20.0)


@pytest.fixture(scope="module")
def texts():
    random = np.random.default_rng(0)
    return [random.integers(0, VOCABULARY, size).tolist() for size in (2, 5, 30, 17, 9, 40)]


@torch.no_grad()
def distribution(model, text):
    """p (T, vocabulary) after each prefix, in double precision, one text at a time and without padding."""
    logits = model(input_ids=torch.tensor([text])).logits[0, :-1].double()
    return torch.softmax(logits, -1).numpy()


def test_token_scores_do_not_depend_on_padding_or_batches(model, texts):
    together, apart = attacks.token_scores(model, texts, batch=6), attacks.token_scores(model, texts, batch=1)
    for one, other in zip(together, apart, strict=True):
        for name in ("observed", "mean", "deviation"):
            assert np.allclose(getattr(one, name), getattr(other, name), atol=1e-5)


def test_token_scores_are_the_log_probabilities_and_their_moments(model, texts):
    for text, found in zip(texts, attacks.token_scores(model, texts, batch=1), strict=True):
        p = distribution(model, text)
        logs = np.log(p)
        mean = (p * logs).sum(1)
        assert np.allclose(found.observed, logs[np.arange(len(text) - 1), text[1:]], atol=1e-6)
        assert np.allclose(found.mean, mean, atol=1e-6)
        assert np.allclose(found.deviation, np.sqrt((p * (logs - mean[:, None]) ** 2).sum(1)), atol=1e-6)


def test_min_k_and_plus_plus_equal_their_formulas(model, texts):
    scores = attacks.token_scores(model, texts, batch=1)
    for text, k, plus in zip(texts, attacks.min_k(scores), attacks.min_k_plus_plus(scores), strict=True):
        p = distribution(model, text)
        logs, length = np.log(p), max(1, int((len(text) - 1) * 0.2))
        observed = logs[np.arange(len(text) - 1), text[1:]]
        mean = (p * logs).sum(1)
        standard = (observed - mean) / np.sqrt((p * logs**2).sum(1) - mean**2)
        assert k == pytest.approx(np.sort(observed)[:length].mean(), abs=1e-6)
        assert plus == pytest.approx(np.sort(standard)[:length].mean(), abs=1e-6)


def test_zlib_and_reference_ratio_equal_their_formulas(model, texts):
    words = ["a" * len(text) + "xyz" for text in texts]
    scores, other = attacks.token_scores(model, texts), attacks.token_scores(transformer(1), texts)
    for text, word, z, ratio, theirs in zip(
        texts, words, attacks.zlib_ratio(scores, words), attacks.reference_ratio(scores, other), other, strict=True
    ):
        p = distribution(model, text)
        loss = -np.log(p[np.arange(len(text) - 1), text[1:]]).mean()
        assert z == pytest.approx(-loss / len(zlib.compress(word.encode())), abs=1e-6)
        assert ratio == pytest.approx(-loss - theirs.observed.mean(), abs=1e-6)


def test_window_votes_are_counted_window_by_window():
    random = np.random.default_rng(2)
    target, reference = (
        [
            attacks.TokenScores(random.standard_normal(n), np.zeros(n), np.ones(n), np.zeros(n, bool))
            for n in (50, 12, 1)
        ]
        for _ in range(2)
    )
    found = attacks.window_votes(target, reference)
    for ours, theirs, value in zip(target, reference, found, strict=True):
        shares = []
        for size in attacks.WINDOWS:
            width = min(size, len(ours.observed))
            starts = range(len(ours.observed) - width + 1)
            shares.append(
                np.mean([ours.observed[i : i + width].sum() > theirs.observed[i : i + width].sum() for i in starts])
            )
        assert value == pytest.approx(np.mean(shares))


def test_a_text_of_one_token_is_refused(model):
    with pytest.raises(ValueError, match=r"numbers \[1\]': expected at least two tokens"):
        attacks.token_scores(model, [[1, 2], [3]])


def test_the_model_keeps_its_mode():
    noisy = transformer(0).train()
    attacks.token_scores(noisy, [[1, 2, 3]])
    verbatim(noisy, [1], [2])
    assert noisy.training


@pytest.mark.stat
def test_exposure_of_a_secret_that_was_never_inserted_is_near_one_bit_and_a_half():
    random = np.random.default_rng(4)
    bits = [exposure(values[0], values[1:]).bits for values in random.standard_normal((500, 1_000))]
    expected = np.mean(np.log2(1_000) - np.log2(np.arange(1, 1_001)))
    assert expected == pytest.approx(1.44, abs=0.01)
    assert abs(np.mean(bits) - expected) < 2.576 * np.std(bits) / math.sqrt(500)


def test_exposure_counts_ties_against_the_secret_and_has_a_cap():
    assert exposure(1.0, np.zeros(1_023)) == Exposure(bits=10.0, rank=1, candidates=1_024, most=10.0, p_value=1 / 1_024)
    assert exposure(0.0, np.zeros(1_023)).bits == 0.0
    with pytest.raises(ValueError, match="finite"):
        exposure(math.nan, [0.0])


def test_exposure_of_a_text_ranks_by_its_whole_probability(model):
    random = np.random.default_rng(5)
    candidates = [random.integers(0, VOCABULARY, 6).tolist() for _ in range(64)]
    totals = [np.log(distribution(model, text)[np.arange(5), text[1:]]).sum() for text in candidates]
    best = int(np.argmax(totals))
    found = exposure_of(model, candidates[best], [text for i, text in enumerate(candidates) if i != best])
    assert (found.rank, found.bits) == (1, 6.0)


@pytest.mark.stat
@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=0.6), Sampling(top_k=3), Sampling(temperature=1.5, top_k=5)], ids=str
)
def test_extraction_probability_equals_sampling(model, sampling):
    prefix, suffix = [3, 1], [int(i) for i in greedy(model, [3, 1], 2)]
    p = math.exp(suffix_log_probability(model, prefix, suffix, sampling=sampling))
    drawn = sample_suffixes(
        model, prefix, length=2, samples=4_000, sampling=sampling, generator=torch.Generator().manual_seed(0)
    )
    hits = int((drawn == suffix).all(1).sum())
    assert abs(hits - 4_000 * p) <= 3.3 * math.sqrt(4_000 * p * (1 - p)) + 1  # once in a thousand
    assert 0.001 < p < 0.999


def greedy(model, prefix, length):
    ids = list(prefix)
    for _ in range(length):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prefix) :]


def test_verbatim_is_what_greedy_decoding_says(model):
    told = greedy(model, [3, 1], 5)
    assert verbatim(model, [3, 1], told)
    for position in range(5):
        wrong = list(told)
        wrong[position] = (wrong[position] + 1) % VOCABULARY
        assert not verbatim(model, [3, 1], wrong)


def test_a_token_outside_top_k_cannot_be_extracted(model):
    told = greedy(model, [3, 1], 1)
    other = [(told[0] + 1) % VOCABULARY]
    log_p = suffix_log_probability(model, [3, 1], other, sampling=Sampling(top_k=1))
    assert log_p == -math.inf
    assert queries_needed(log_p, chance=0.5) == math.inf


@pytest.mark.parametrize("p", [0.9, 0.1, 1e-4, 1e-9])
@pytest.mark.parametrize("chance", [0.1, 0.5, 0.99])
def test_queries_needed_are_the_least(p, chance):
    n = queries_needed(math.log(p), chance=chance)
    found = lambda count: -math.expm1(count * math.log1p(-p))
    assert found(n) >= chance * (1 - 1e-9)
    assert n == 1 or found(n - 1) < chance * (1 + 1e-9)
    assert queries_needed(math.log(1e-30), chance=0.5) == pytest.approx(math.log(2) * 1e30, rel=1e-6)
    assert queries_needed(0.0, chance=0.5) == 1.0


def test_empty_parts_are_refused(model):
    with pytest.raises(ValueError, match="a prefix and a suffix"):
        verbatim(model, [], [1])
