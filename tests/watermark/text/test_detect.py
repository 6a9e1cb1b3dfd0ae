# SPDX-License-Identifier: Apache-2.0
"""Detection: what counts, against a slow reference; true p-values under the null; ranks; nothing for nothing."""

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from privguard.watermark.secret import Secret
from privguard.watermark.text.reading import ngrams
from privguard.watermark.text.reading.detect import Detector, decoy_ranks
from privguard.watermark.text.reading.ngrams import Documents, unique_in_corpus, unique_ngrams
from privguard.watermark.text.scheme import GreenList, Gumbel, Tournament


def slow_ngrams(document, usable, target, width):
    """n-grams in the order of the text, each once, by tuples in a dictionary."""
    seen = OrderedDict()
    for i in range(width, len(document)):
        if all(usable[i - width : i + 1]):
            seen.setdefault(tuple(document[i - width : i + 1]), i)
    return [(gram, i) for gram, i in seen.items() if target[i]]


@given(st.lists(st.lists(st.integers(0, 3), max_size=25), max_size=6), st.integers(1, 4), st.data())
def test_unique_ngrams_equal_a_dictionary_of_tuples(documents, width, data):
    prompts = [data.draw(st.integers(0, len(d))) for d in documents]
    made = Documents.of_lists([np.array(d, int) for d in documents], prompts=prompts).without([3])
    found = unique_ngrams(made, width=width)
    expected, start = [], 0
    for d, (document, prompt) in enumerate(zip(documents, prompts, strict=True)):
        target = [i >= prompt for i in range(len(document))]
        grams = slow_ngrams(document, [t != 3 for t in document], target, width)
        expected += [(*gram, d, start + i) for gram, i in grams]
        start += len(document)
    rows = [
        (*c, t, d, p)
        for c, t, d, p in zip(found.contexts.tolist(), found.tokens, found.document, found.place, strict=True)
    ]
    assert sorted(rows) == sorted(expected)
    assert (np.diff(found.place) > 0).all()


@pytest.mark.parametrize("lengths", [[400], [90] * 5, [300, 2, 0, 40]], ids=str)
def test_colliding_fingerprints_cost_time_and_never_a_count(monkeypatch, lengths):
    rng = np.random.default_rng(0)
    documents = Documents.of_lists([rng.integers(0, 6, length) for length in lengths])
    honest = unique_ngrams(documents, width=2)
    for liar in (lambda c: np.zeros(len(c[0]), np.uint64), lambda c: (c[1] % 3).astype(np.uint64) << np.uint64(60)):
        monkeypatch.setattr(ngrams, "_fingerprint", liar)
        assert unique_ngrams(documents, width=2).place.tolist() == honest.place.tolist()


def test_over_a_corpus_each_ngram_counts_once():
    line = np.array([1, 2, 3, 4, 5])
    documents = Documents.of_lists([line, line, np.array([9, 1, 2, 3, 4])])
    found = unique_in_corpus(documents, width=2)
    assert found.count().tolist() == [3, 0, 1]


def test_padding_prompt_and_special_tokens_never_count(secret, profile_for):
    detector = Detector(profile_for(secret, Gumbel(), subkeys=1), secret)
    text = np.random.default_rng(1).integers(1, 512, 60)
    alone = detector.detect(Documents.of_lists([text]))
    padded, mask = (
        np.concatenate([np.full(40, 7), text, np.full(30, 7)]),
        np.r_[np.zeros(40), np.ones(60), np.zeros(30)],
    )
    batch = detector.detect(Documents.of_batch(padded[None], mask=mask[None]))
    assert (batch.scored, batch.score) == (alone.scored, pytest.approx(alone.score))
    special = detector.detect(Documents.of_batch(np.where(mask, padded, 0)[None]))  # id 0 is special in this profile
    assert special.score == pytest.approx(alone.score)
    after = detector.detect(Documents.of_batch(text[None], prompt=20))
    assert after.scored == alone.scored - 16
    quoting = detector.detect(Documents.of_lists([np.concatenate([text, text])], prompts=[60]))
    assert quoting.scored == 4  # only the n-grams across the seam are new


def test_nothing_gives_nothing(secret, profile_for):
    for scheme in (Gumbel(), GreenList(), Tournament()):
        found = Detector(profile_for(secret, scheme), secret).detect(Documents.of_lists([[], [1, 2], [1] * 50]))
        assert found.log10_p[:2].tolist() == [0, 0]
        assert found.scored.tolist() == [0, 0, 1]
        assert len(Detector(profile_for(secret, scheme), secret).detect(Documents.of_lists([]))) == 0


@pytest.mark.parametrize("bad", [[[1.5, 2]], [[-1, 3]], [[1 << 24]], [[[1, 2], [3, 4]]]])
def test_ids_that_are_none_are_refused(bad):
    with pytest.raises(ValueError, match="token ids"):
        Documents.of_lists(bad)
    with pytest.raises(ValueError, match="mask"):
        Documents.of_batch([[1, 2]], mask=[[1]])


def reference_scores(profile, secret, contexts, tokens, subkey):
    """The sum of scores from the whole vocabulary's stream, one n-gram at a time."""
    stream, total = profile.stream(secret, subkey=subkey), 0.0
    for context, token in zip(contexts, tokens, strict=True):
        octets = stream.vocabulary(context[None], 4 * profile.logits_width)[0]
        if isinstance(profile.scheme, GreenList):
            total += octets[token] < profile.scheme.green
            continue
        word = int(octets[4 * token : 4 * token + 4].view("<u4")[0])
        if isinstance(profile.scheme, Gumbel):
            total -= np.log(1 - (word >> 9) / 2**23)
        else:
            total += sum(w for i, w in enumerate(profile.scheme.weights) if word >> i & 1)
    return total


@pytest.mark.parametrize("prf", ["aes256-v1", "aes256-chacha8-v1"])
def test_scores_equal_a_slow_reference(secret, profile_for, scheme, prf):
    profile = profile_for(secret, scheme, prf=prf)
    documents = Documents.of_lists([np.random.default_rng(2).integers(1, 512, 30)])
    found = Detector(profile, secret).detect(documents)
    grams = unique_ngrams(documents, width=4)
    sums = [reference_scores(profile, secret, grams.contexts, grams.tokens, j) for j in range(4)]
    assert found.score[0] == pytest.approx(max(sums))
    assert found.subkey[0] == int(np.argmax(sums))
    single = profile.scheme.null.log10_tail(max(sums), 26)
    assert found.log10_p_best[0] == pytest.approx(min(0, float(single) + np.log10(4)))
    assert found.log10_p[0] == pytest.approx(min(0, min(found.log10_p_best[0], found.log10_p_along[0]) + np.log10(2)))


def repetitive(rng, rows):
    """Text like program code: few words, many repetitions."""
    return np.tile(rng.choice([1, 2, 3, 4, 5, 6], size=(rows, 66), p=[0.4, 0.2, 0.2, 0.1, 0.05, 0.05]), 3)


@pytest.mark.stat
@pytest.mark.parametrize("width", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_p_values_are_true_on_repetitive_text(scheme, profile_for, width):
    """4,000 random keys on one repetitive text; each bound fails by chance with probability below 1e-5. Counting
    repeated n-grams instead is caught: it rejects far too often."""
    rng = np.random.default_rng(11)
    text = repetitive(rng, 1)
    documents = Documents.of_batch(text)
    p, naive = [], []
    grams = unique_ngrams(documents, width=width)
    windows = np.lib.stride_tricks.sliding_window_view(text[0], width + 1)
    everything = ngrams.Ngrams(
        windows[:, :-1], windows[:, -1], np.zeros(len(windows), int), np.arange(len(windows)), np.zeros(1, int)
    )
    for key in range(4000):
        secret = Secret(key.to_bytes(32, "big"))
        detector = Detector(profile_for(secret, scheme, context_width=width, subkeys=1), secret)
        p.append(detector.judge(grams).log10_p[0])
        if key < 1000:
            naive.append(detector.judge(everything).log10_p[0])
    p = 10 ** np.array(p)
    for level in (0.1, 0.01):
        assert (p <= level).sum() <= stats.binom.isf(1e-5, 4000, level)
    assert (10 ** np.array(naive) <= 0.01).sum() > stats.binom.isf(1e-5, 1000, 0.01)


@pytest.mark.stat
def test_the_p_value_that_pays_for_subkeys_is_valid(profile_for):
    p = []
    documents = Documents.of_batch(np.random.default_rng(3).integers(1, 512, (1, 64)))
    for key in range(3000):
        secret = Secret(key.to_bytes(32, "big"))
        found = Detector(profile_for(secret, Gumbel(), subkeys=4), secret).detect(documents)
        p.append((10.0 ** found.log10_p[0], 10.0 ** found.log10_e[0]))
    p, e = np.array(p).T
    assert (p <= 0.05).sum() <= stats.binom.isf(1e-5, 3000, 0.05)
    assert (p <= 0.05).mean() > 0.015  # half of it is the price of reading along the text
    assert (e >= 20).sum() <= stats.binom.isf(1e-5, 3000, 0.05)
    assert np.minimum(e, 20).mean() <= 1  # an e-value's mean is at most 1: 0.56 here, 2.0 for the best sub-key's


def test_a_verdict_carries_what_a_reader_needs(secret, profile_for):
    detector = Detector(profile_for(secret, Gumbel()), secret)
    verdict = detector.detect(Documents.of_lists([np.arange(1, 60)])).verdict(0, tests=10)
    assert verdict.log10_p_corrected == pytest.approx(min(0, verdict.log10_p + 1))
    assert verdict.trials == 55
    assert "Exp(1)" in verdict.null_model
    assert verdict.to_json()["details"]["subkeys_tried"] == 4
    assert bytes(range(32)).hex() not in str(verdict.to_json())


@pytest.mark.stat
def test_the_rank_among_decoys_is_uniform_without_a_mark_and_least_with_one(profile_for):
    """Templated text under one key: ranks over 300 secrets against uniform, KS at 1e-4."""
    text, ranks = repetitive(np.random.default_rng(4), 1), []
    for key in range(300):
        secret = Secret(key.to_bytes(32, "big"))
        ranks.append(
            decoy_ranks(profile_for(secret, Gumbel(), subkeys=1), secret, Documents.of_batch(text), decoys=39)[0]
        )
    assert stats.kstest(np.array(ranks) - np.random.default_rng(5).random(300) / 40, "uniform").pvalue > 1e-4


def test_a_mixture_of_subkeys_is_detected_but_not_attributed(secret, profile_for):
    """Tokens that all sub-keys like a little: each alone may fire, together they cannot be one writer's."""
    profile, rng = profile_for(secret, Gumbel(), subkeys=8), np.random.default_rng(9)
    detector, text = Detector(profile, secret), rng.integers(1, 512, 4).tolist()
    streams = [profile.stream(secret, subkey=j) for j in range(8)]
    for t in range(200):
        context = np.array([text[-4:]])
        words = [s.vocabulary(context, 2048).view(np.uint32)[0] for s in streams]
        liked = sum(-np.log1p(-(w >> 9) / 2**23) for w in words) if t % 3 else np.zeros(512)
        text.append(int(np.argmax(liked[1:])) + 1)
    found = detector.detect(Documents.of_lists([text]))
    assert found.log10_p[0] < -5
    assert found.log10_p_others[0] < -5
    assert not found.accepted(log10_level=-3.0)[0]


def test_honest_text_loses_five_percent_to_the_rule_of_one_writer(secret, profile_for):
    """Scores of the other sub-keys are chance, so their sum's p-value is uniform; here at 10⁻²."""
    detector = Detector(profile_for(secret, Gumbel(), subkeys=4), secret)
    found = detector.detect(Documents.of_batch(np.random.default_rng(8).integers(1, 512, (2000, 50))))
    assert (
        stats.binom.isf(1 - 1e-5, 2000, 0.001)
        <= (found.log10_p_others <= -2).sum()
        <= stats.binom.isf(1e-5, 2000, 0.01)
    )
