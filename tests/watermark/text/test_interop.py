# SPDX-License-Identifier: Apache-2.0
"""Other tools' marks: Random123 and vLLM known answers, transformers' own writers and detector."""

import numpy as np
import pytest
from scipy import stats
from transformers import SynthIDTextWatermarkingConfig, WatermarkDetector, WatermarkingConfig

from privguard.watermark.text.prf.philox import philox, vllm_words
from privguard.watermark.text.reading.interop import (
    read_transformers_green_list,
    read_transformers_synthid,
    read_vllm_gumbel,
)
from privguard.watermark.text.reading.ngrams import Documents

KNOWN = [  # Random123 1.14, kat_vectors, philox4x32 10: counter, key, result
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN, ids=["zeros", "ones", "pi"])
def test_philox_known_answers(counter, key, result):
    words = lambda text: np.array([[int(w, 16) for w in text.split()]], np.uint32)
    assert philox(words(counter), words(key)[:, 0], words(key)[:, 1]).tolist() == words(result).tolist()


# vLLM, tests/watermarking/watermarking_goldens.json: key, width, each context once, score, scored, tokens
GOLDEN = {
    "key0-cw1": (
        0,
        1,
        True,
        236.2768211235414,
        54,
        (
            "24 42 66 26 51 107 36 25 63 24 6 48 65 124 117 85 45 112 48 101 19 22 89 88 63 77 115 104 65 61 32 20 "
            "95 98 30 58 86 50 39 113 122 62 69 40 29 92 113 120 52 112 108 1 25 96 3 95 84 65 76 3 68 71 81 56 "
        ),
    ),
    "key42-cw4": (
        42,
        4,
        True,
        296.27295787856264,
        64,
        (
            "46 24 45 80 14 26 22 124 21 45 16 30 5 89 0 10 27 70 80 62 1 11 117 53 10 45 94 37 43 22 78 49 "
            "119 9 22 118 82 75 32 24 84 27 122 66 78 64 124 17 91 12 51 15 75 64 127 45 112 15 83 114 121 109 24 77 "
        ),
    ),
    "key42-read-with-43": (
        43,
        4,
        True,
        63.25096716585621,
        64,
        (
            "46 24 45 80 14 26 22 124 21 45 16 30 5 89 0 10 27 70 80 62 1 11 117 53 10 45 94 37 43 22 78 49 "
            "119 9 22 118 82 75 32 24 84 27 122 66 78 64 124 17 91 12 51 15 75 64 127 45 112 15 83 114 121 109 24 77 "
        ),
    ),
    "key2p32-cw5": (
        1 << 32,
        5,
        False,
        263.04926919645095,
        64,
        (
            "21 10 73 94 19 61 85 42 95 116 105 47 58 36 74 42 95 70 34 37 125 29 64 85 70 73 44 90 47 107 25 70 "
            "98 41 1 51 8 57 99 88 80 119 55 15 121 43 124 56 34 87 115 65 4 110 53 77 58 126 19 72 64 113 109 123 "
        ),
    ),
}


def golden_windows(tokens, width, *, once):
    """vLLM scores the first tokens too, with −1 before the beginning."""
    contexts = np.lib.stride_tricks.sliding_window_view(np.concatenate([np.full(width, -1), tokens]), width)[:-1]
    keep = np.unique(contexts, axis=0, return_index=True)[1] if once else np.arange(len(tokens))
    return contexts[keep], tokens[keep]


@pytest.mark.parametrize("case", GOLDEN.values(), ids=GOLDEN.keys())
def test_vllm_golden_scores(case):
    key, width, once, score, scored, text = case
    contexts, tokens = golden_windows(np.array(text.split(), int), width, once=once)
    words = vllm_words(contexts, tokens, key=key)
    uniform = np.nextafter(
        ((words >> np.uint32(8)).astype(np.float32) + np.float32(1)) * np.float32(2**-24), np.float32(0)
    )
    assert len(tokens) == scored
    assert -np.log1p(-uniform.astype(np.float64)).sum() == pytest.approx(score, rel=1e-9)


def test_vllm_text_is_read_with_its_key_alone():
    tokens = np.array(GOLDEN["key42-cw4"][-1].split(), int)
    own, other = (read_vllm_gumbel(Documents.of_lists([tokens]), key=key)[0] for key in (42, 43))
    assert own.log10_p == pytest.approx(-64 * np.log10(2))
    assert own.trials == 60
    assert other.log10_p > -3
    assert own.scheme.startswith("insecure-key/")
    assert "anybody" in own.notes[0]


@pytest.mark.parametrize(("seeding", "width"), [("lefthash", 1), ("selfhash", 4)])
def test_transformers_green_list_is_read_and_agrees_with_its_detector(model, prompts, seeding, width):
    config = WatermarkingConfig(bias=4.0, seeding_scheme=seeding, context_width=width, hashing_key=12345)
    text = model.generate(prompts, watermarking_config=config, do_sample=True, top_k=0, max_new_tokens=60)[:, 8:]
    found = read_transformers_green_list(Documents.of_batch(text.numpy()), config=config, vocabulary_size=512)
    theirs = WatermarkDetector(model.config, "cpu", config, ignore_repeated_ngrams=True)(text, return_dict=True)
    if seeding == "lefthash":  # under selfhash many n-grams share a seed and a token, which they count again
        assert [v.trials for v in found] == theirs.num_tokens_scored.tolist()
        assert [v.matches for v in found] == theirs.num_green_tokens.tolist()
    expected = stats.binom.logsf(
        np.array([v.matches for v in found]) - 1, np.array([v.trials for v in found]), 0.25
    ) / np.log(10)
    least = -np.log10(2) * (64 if seeding == "selfhash" else 32)  # one key among so many
    assert [v.log10_p for v in found] == pytest.approx(np.maximum(expected, least))
    assert np.median([v.log10_p for v in found]) < -3
    wrong = WatermarkingConfig(bias=4.0, seeding_scheme=seeding, context_width=width, hashing_key=54321)
    assert (
        min(
            v.log10_p
            for v in read_transformers_green_list(Documents.of_batch(text.numpy()), config=wrong, vocabulary_size=512)
        )
        > -5
    )


def test_transformers_synthid_is_read(model, prompts):
    keys = [654, 400, 836, 123, 340, 443, 597, 160, 57, 29, 590, 639, 13, 715, 468, 990]
    config = SynthIDTextWatermarkingConfig(keys=keys, ngram_len=5)
    text = model.generate(prompts, watermarking_config=config, do_sample=True, top_k=0, max_new_tokens=120)[:, 8:]
    found = read_transformers_synthid(Documents.of_batch(text.numpy()), config=config)
    assert np.median([v.log10_p for v in found]) < -4
    other = SynthIDTextWatermarkingConfig(keys=[k + 1000 for k in keys], ngram_len=5)
    assert min(v.log10_p for v in read_transformers_synthid(Documents.of_batch(text.numpy()), config=other)) > -5
    assert read_transformers_synthid(Documents.of_lists([[1, 2]]), config=config)[0].log10_p == 0
