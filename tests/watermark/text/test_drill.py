# SPDX-License-Identifier: Apache-2.0
"""Drills: edits do what they say, survival falls as they grow, a learnt forgery of the default scheme is refused."""

import numpy as np
import pytest

from privguard.watermark.text.drill import Dilute, Edit, RoundTrip, run_drill, standard_attacks, survival_picture
from privguard.watermark.text.reading.detect import Detector
from privguard.watermark.text.reading.ngrams import Documents
from privguard.watermark.text.scheme import Gumbel
from privguard.watermark.text.spoof import Thief
from privguard.watermark.text.writing import device
from privguard.watermark.text.writing.generate import MarkedGeneration


def test_edits_do_what_they_say():
    rng, text, vocabulary = np.random.default_rng(0), np.zeros(20_000, int), np.arange(1, 9)
    assert (Edit(vocabulary, substitute=0.3)(text, rng) != 0).mean() == pytest.approx(0.3, abs=0.02)
    assert len(Edit(vocabulary, delete=0.3)(text, rng)) == pytest.approx(14_000, rel=0.03)
    assert len(Edit(vocabulary, insert=0.5)(text, rng)) == pytest.approx(30_000, rel=0.03)
    assert Edit(vocabulary)(text, rng).tolist() == text.tolist()
    mixed = Dilute(np.full(100_000, 5), 0.1)(np.arange(100, 200), rng)
    assert len(mixed) == 1000
    assert [t for t in mixed if t != 5] == list(range(100, 200))


def test_survival_falls_as_edits_grow_and_the_picture_shows_it(model, prompts, secret, profile_for):
    profile = profile_for(secret, Gumbel(), context_width=2)
    mark = MarkedGeneration(profile, secret)
    written = model.generate(prompts, custom_generate=mark, do_sample=True, top_k=0, max_new_tokens=150)[:, 8:].numpy()
    attacks = standard_attacks(np.arange(1, 512), np.random.default_rng(1).integers(1, 512, 5000))
    rows = {row.attack: row for row in run_drill(Detector(profile, secret), list(written), attacks)}
    assert rows["none"].accepted == 1.0
    for kind in ("substitute", "delete", "insert"):
        medians = [rows[name].median_log10_p for name in ("none", f"{kind} 10 %", f"{kind} 30 %", f"{kind} 50 %")]
        assert medians == sorted(medians)
    assert rows["dilute to 10 %"].median_log10_p > rows["none"].median_log10_p
    assert rows["dilute to 10 %"].mean_tokens == 1500
    picture = survival_picture(list(rows.values()))
    assert picture.startswith("<?xml")
    assert "svg" in picture


class Letters:
    """A tokenizer whose decode loses what no text can hold: id 9 and id 1 both print as the same letter."""

    def decode(self, ids):
        return "".join("bbcdefghib"[i] for i in ids)

    def encode(self, text, *, add_special_tokens):
        assert not add_special_tokens
        return ["_bcdefghi_".index(letter) for letter in text]


def test_a_round_trip_goes_through_the_text():
    assert RoundTrip(Letters())(np.array([2, 9, 3]), np.random.default_rng(0)).tolist() == [2, 1, 3]


def corpus(profile, secret, logits, rng, *, documents, tokens):
    out = rng.integers(0, len(logits), (documents, 4 + tokens))
    every = [profile.stream(secret, subkey=j) for j in range(profile.subkeys)] if profile else []
    streams = [every[j] for j in rng.integers(0, max(1, len(every)), documents)] if profile else []
    import torch

    for t in range(4, 4 + tokens):
        rows = logits[out[:, t - 1]]
        if profile is None:
            out[:, t] = (rows + rng.gumbel(size=rows.shape)).argmax(1)
        else:
            none = np.zeros(documents, np.bool_)
            out[:, t] = device.choose(
                torch.from_numpy(rows), out[:, t - 4 : t], streams, profile=profile, repeated=none
            )
    return list(out)


def test_a_forgery_learnt_under_many_subkeys_is_refused_and_under_one_it_would_pass(secret, profile_for):
    """A language of 16 words, so that 60,000 tokens show every likely context many times."""
    logits = np.random.default_rng(2).normal(0, 2, (16, 16)).astype(np.float32)
    rates = {}
    for subkeys in (16, 1):
        rng = np.random.default_rng(3)
        profile = profile_for(secret, Gumbel(), subkeys=subkeys, logits_width=16, special_ids=())
        marked = corpus(profile, secret, logits, rng, documents=400, tokens=150)
        plain = corpus(None, secret, logits, rng, documents=400, tokens=150)
        thief = Thief(4).learn(marked, plain)
        forged = [thief.forge(plain[i][:4], tokens=200, rng=rng) for i in range(50)]
        rates[subkeys] = Detector(profile, secret).detect(Documents.of_lists(forged)).accepted(log10_level=-3.0).mean()
    assert rates[16] <= 0.05
    assert rates[1] > 0.5
