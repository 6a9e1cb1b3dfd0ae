# SPDX-License-Identifier: Apache-2.0
"""Other tools' marks are counted by their true coins: strangers' keys stay at the nominal rate, on any text."""

import hashlib
import hmac
import struct

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import SynthIDTextWatermarkingConfig, WatermarkingConfig, WatermarkLogitsProcessor

from privguard.errors import MarkError
from privguard.watermark.statistics.gamma_mixture import log10_two_gammas_tail
from privguard.watermark.text.prf.philox import vllm_words
from privguard.watermark.text.reading.interop import (
    read_transformers_green_list,
    read_transformers_synthid,
    read_vllm_dual_key,
    read_vllm_gumbel,
    read_vllm_synthid,
)
from privguard.watermark.text.reading.ngrams import Documents, unique_ngrams
from privguard.watermark.text.scheme import Tournament


def most(trials, level):
    """A count that chance at this level exceeds with probability below 1e-7."""
    return stats.binom.isf(1e-7, trials, level)


def coins_of(config, row, vocabulary):
    """Distinct seeds and tokens of a row and how many are green, by transformers' own functions, n-gram by n-gram."""
    processor = WatermarkLogitsProcessor(vocab_size=vocabulary, device="cpu", **config.to_dict())
    coins = {}
    for i in range(config.context_width, len(row) + 1):
        gram = torch.tensor(row[i - config.context_width : i])
        listed = processor._get_greenlist_ids(gram).tolist()
        coins[(processor.rng.initial_seed() & 0xFFFFFFFF, int(gram[-1]))] = int(gram[-1]) in listed
    return len(coins), sum(coins.values())


@pytest.mark.parametrize("width", [2, 4])
def test_selfhash_counts_each_seed_and_token_once(width):
    config = WatermarkingConfig(seeding_scheme="selfhash", context_width=width, hashing_key=15485863)
    row = np.random.default_rng(1).integers(0, 30, 120)
    found = read_transformers_green_list(Documents.of_lists([row]), config=config, vocabulary_size=30)[0]
    assert (found.trials, found.matches) == coins_of(config, row, 30)
    assert found.trials < len(unique_ngrams(Documents.of_lists([row]), width=width - 1))


@pytest.mark.stat
@pytest.mark.parametrize(("seeding", "width"), [("lefthash", 1), ("selfhash", 4), ("selfhash", 2)])
def test_green_lists_of_strangers_are_not_found_in_repetitive_text(seeding, width):
    """60 keys on 12 texts of few words: counted n-gram by n-gram, selfhash fired 25 times too often at 1e-3."""
    rng, p = np.random.default_rng(5), []
    words = np.arange(40, 0, -1) / 820
    texts = Documents.of_lists([rng.choice(40, 120, p=words) for _ in range(12)])
    for key in rng.integers(1, 2**31, 60):
        config = WatermarkingConfig(seeding_scheme=seeding, context_width=width, hashing_key=int(key))
        p += [v.log10_p for v in read_transformers_green_list(texts, config=config, vocabulary_size=64)]
    for level in (1e-2, 1e-3):
        assert (np.array(p) <= np.log10(level)).sum() <= most(len(p), level)
    assert (np.array(p) <= np.log10(0.2)).mean() > 0.08  # and it is no empty test


def test_a_list_that_is_the_same_under_every_key_is_no_evidence():
    """Token 0 under lefthash seeds the generator with 0 whatever the key."""
    listed = torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:100].tolist()
    text = [token for green in listed for token in (0, green)]
    for key in (15485863, 7, 2**31 - 1):
        config = WatermarkingConfig(hashing_key=key)
        found = read_transformers_green_list(Documents.of_lists([text]), config=config, vocabulary_size=1000)[0]
        assert found.log10_p > -4
        assert found.trials <= 100


def synthid(keys, **options):
    options = {"ngram_len": 3, "sampling_table_size": 256, "sampling_table_seed": 3, **options}
    return SynthIDTextWatermarkingConfig(keys=[int(key) for key in keys], **options)


def test_synthid_is_judged_by_the_law_of_its_own_table():
    """The exact tail over all shifts of a small table, by enumeration; keys that are equal there count as one layer."""
    text, (first, second, third) = Documents.of_lists([np.random.default_rng(6).integers(0, 500, 40)]), (10, 7, 4)
    assert Tournament(depth=3).weights == (first, second, third)
    found = read_transformers_synthid(text, config=synthid([5, 9, 5 + 256]))[0]
    single = np.array([read_transformers_synthid(text, config=synthid([key]))[0].matches for key in range(256)]) / 10
    sums = (first + third) * single[:, None] + second * single[None, :]
    assert found.matches == (first + third) * single[5] + second * single[9]
    assert found.log10_p == pytest.approx(np.log10((sums >= found.matches - 1e-9).mean()))
    with pytest.raises(MarkError, match="sampling_table_size"):
        read_transformers_synthid(text, config=synthid([5, 9], sampling_table_size=300))


@pytest.mark.stat
def test_synthid_of_strangers_is_not_found_in_long_unmarked_text():
    """20,000 tokens, where a table with 50.27 % ones looked like 1e-4; and few distinct keys."""
    rng, long, few = np.random.default_rng(7), [], []
    for _ in range(20):
        text = rng.integers(0, 50000, 20_000)
        config = synthid(rng.integers(1, 2**30, 30), ngram_len=5, sampling_table_size=2**16, sampling_table_seed=0)
        long.append(read_transformers_synthid(Documents.of_lists([text]), config=config)[0].log10_p)
        config = synthid(rng.integers(0, 4, 30), ngram_len=5, sampling_table_size=2**16)
        few.append(read_transformers_synthid(Documents.of_lists([text[:100]]), config=config)[0].log10_p)
    for p in (long, few):
        assert (np.array(p) <= -2).sum() <= most(len(p), 1e-2)
    assert stats.kstest(10.0 ** np.array(long), "uniform").pvalue > 1e-6  # and not conservative either


TOKENS = np.random.default_rng(3).integers(0, 50000, 60)


def test_both_keys_of_a_dual_key_mark_are_read():
    """Key A and B by SHA-256 of name and key, scores weighted 0.8 and 0.2."""
    grams, parts = unique_ngrams(Documents.of_lists([TOKENS]), width=4), []
    for name in (b"key_a", b"key_b"):
        key = int.from_bytes(hashlib.sha256(name + (42).to_bytes(8, "big")).digest()[:8], "big")
        uniform = (vllm_words(grams.contexts, grams.tokens, key=key) >> 8).astype(float) / 2**24
        parts.append(-np.log1p(-uniform).sum())
    found = read_vllm_dual_key(Documents.of_lists([TOKENS]), key=42, alpha=0.2)[0]
    assert found.matches == pytest.approx(0.8 * parts[0] + 0.2 * parts[1])
    assert found.log10_p == log10_two_gammas_tail(found.matches, 56, weight=0.2)


@pytest.mark.parametrize(("weight", "shape"), [(0.1, 5), (0.35, 40), (0.9, 200)])
def test_the_tail_of_two_weighted_gammas_is_exact(weight, shape):
    """Against the integral of one tail over the density of the other, and against a simulation."""
    x, dx = np.linspace(0, 6 * shape + 60, 400_001, retstep=True)
    for factor in (0.8, 1.0, 1.6):
        score = factor * shape
        outer = stats.gamma.sf((score - weight * x) / (1 - weight), shape)
        exact = (stats.gamma.pdf(x, shape) * outer).sum() * dx
        assert 10 ** log10_two_gammas_tail(score, shape, weight=weight) == pytest.approx(exact, rel=1e-6)
    assert log10_two_gammas_tail(30.0, 30, weight=0.0) == pytest.approx(stats.gamma.logsf(30, 30) / np.log(10))
    assert log10_two_gammas_tail(9000.0, 30, weight=0.1) < -4000


def test_vllm_synthid_reads_the_bits_of_one_word():
    grams = unique_ngrams(Documents.of_lists([TOKENS]), width=4)
    words = vllm_words(grams.contexts, grams.tokens, key=42)
    bits = int(sum((words >> i & 1).sum() for i in range(32)))
    plain = read_vllm_synthid(Documents.of_lists([TOKENS]), key=42, weighted=False)[0]
    assert plain.matches == bits
    assert plain.log10_p == pytest.approx(stats.binom.logsf(bits - 1, 32 * len(words), 0.5) / np.log(10))


def test_vllm_hmac_words_follow_its_reference():
    """RFC 2104 over the domain, the width and signed 64-bit ids, little-endian, under a 256-bit key."""
    message = b"vllm-watermark-hmac-sha256-v1\0" + struct.pack("<I", 2) + struct.pack("<qqq", 7, 8, 9)
    word = int.from_bytes(hmac.digest((99).to_bytes(32, "little"), message, "sha256")[:4], "little")
    found = read_vllm_gumbel(Documents.of_lists([[7, 8, 9]]), key=99, context_width=2, prf="hmac_sha256")[0]
    assert found.matches == pytest.approx(-np.log1p(-(word >> 8) / 2**24))
    with pytest.raises(ValueError, match="prf"):
        read_vllm_gumbel(Documents.of_lists([[7, 8, 9]]), key=99, prf="md5")


def test_no_p_value_is_smaller_than_one_key_among_all():
    """A key of 64 bits cannot give 1e-50; what a sought key is worth is said beside it."""
    words = [7, 8]
    for _ in range(400):  # the token that key 42 likes best among 300
        context = np.tile(np.array([words[-2:]]), (300, 1))
        words.append(int(vllm_words(context, np.arange(300), key=42).argmax()))
    found = read_vllm_gumbel(Documents.of_lists([words]), key=42, context_width=2)[0]
    assert found.log10_p == pytest.approx(-64 * np.log10(2))
    assert found.details["key_space_bits"] == 64
    assert found.details["log10_p_if_the_key_was_sought"] < -20
