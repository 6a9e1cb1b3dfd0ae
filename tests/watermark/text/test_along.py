# SPDX-License-Identifier: Apache-2.0
"""Evidence along a text: a true martingale, against a slow reference; pieces are found and attributed, forgers not."""

import numpy as np
import pytest
import torch
from scipy import stats

from privguard.watermark.secret import Secret
from privguard.watermark.statistics import evalues
from privguard.watermark.statistics.null import BinomialCount, ExponentialSum, WeightedBits
from privguard.watermark.text.reading.detect import Detector
from privguard.watermark.text.reading.ngrams import Documents
from privguard.watermark.text.scheme import GreenList, Gumbel, Tournament
from privguard.watermark.text.writing import device


@pytest.mark.parametrize("scheme", [Gumbel(), GreenList(), Tournament(depth=5)], ids=lambda s: s.name)
def test_a_bet_has_mean_at_most_one(scheme):
    """Exactly, by the law of one score: the exponential by quadrature, the others by enumeration."""
    null = scheme.null
    if isinstance(null, ExponentialSum):
        x, step = np.linspace(0, 200, 2_000_001, retstep=True)
        mean = (evalues.bets(null, x) * np.exp(-x)).sum() * step
    elif isinstance(null, BinomialCount):
        p = float(null.chance)
        mean = evalues.bets(null, np.array([0.0, 1.0])) @ [1 - p, p]
    else:
        assert isinstance(null, WeightedBits)
        bits = (np.arange(32)[:, None] >> np.arange(5)) & 1
        mean = evalues.bets(null, bits @ np.array(null.weights, float)).mean()
    assert mean == pytest.approx(1, abs=2e-4)


def slow(factors):
    """The e-process of one document state by state, in Python numbers; its values after each block."""
    size, block = factors.shape[1], evalues.BLOCK
    begin, end = 1 - (1 - evalues.BEGIN) ** block, 1 - (1 - evalues.END) ** block
    weight = [1 - evalues.START, *[evalues.START / size] * size]
    values = []
    for start in range(0, len(factors), block):
        product = factors[start : start + block].prod(0)
        weight = [weight[0], *(w * f for w, f in zip(weight[1:], product, strict=True))]
        values.append(sum(weight))
        ended = sum(weight[1:]) * end / 2
        keys = [w * (1 - end) + (weight[0] * begin + ended) / size for w in weight[1:]]
        weight = [weight[0] * (1 - begin) + ended, *keys]
    return values


def test_the_process_equals_a_slow_reference():
    rng = np.random.default_rng(0)
    lengths = [0, 1, 9, 0, 30]
    document = np.repeat(np.arange(5), lengths)
    factors = rng.exponential(size=(len(document), 3)) * 1.5
    seen = evalues.watch(evalues.blocks(factors, document, documents=5))
    for number in range(5):
        values = slow(factors[document == number]) or [1.0]
        assert 10 ** seen.log10_final[number] == pytest.approx(values[-1])
        assert 10 ** seen.log10_max[number] == pytest.approx(max(1.0, *values))


@pytest.mark.stat
def test_ville_holds_under_the_null(profile_for):
    """4,000 random texts, 40 secrets; each bound fails by chance below 1e-6. Looking at the best sub-key only, without
    paying, is caught."""
    rng, p, free = np.random.default_rng(1), [], []
    for number in range(40):
        secret = Secret(number.to_bytes(32, "big"))
        profile = profile_for(secret, Gumbel(), subkeys=8)
        found = Detector(profile, secret).detect(Documents.of_batch(rng.integers(1, 512, (100, 120))))
        p += found.log10_p_along.tolist()
        free += (found.log10_p_best - np.log10(8)).tolist()
    for level in (0.1, 0.01):
        limit = stats.binom.isf(1e-6, len(p), level)
        assert (np.array(p) <= np.log10(level)).sum() <= limit
        assert (np.array(free) <= np.log10(level)).sum() > limit
    assert (np.array(p) <= -1).mean() > 0.01


def stitched(profile, secret, rng, *, documents, pieces, tokens):
    """Texts of pieces at about 3 nats a token, each under a sub-key of its own, four words between; and the owners."""
    streams = [profile.stream(secret, subkey=j) for j in range(profile.subkeys)]
    out, owner = rng.integers(1, 512, (documents, 4)), [np.full((documents, 4), -1)]
    for _ in range(pieces):
        keys = rng.integers(0, profile.subkeys, documents)
        own = [streams[key] for key in keys]
        for _ in range(tokens):
            logits = torch.from_numpy(rng.normal(0, 2, (documents, 512)).astype(np.float32))
            none = np.zeros(documents, np.bool_)
            chosen = device.choose(logits, out[:, -4:], own, profile=profile, repeated=none)
            out = np.concatenate([out, chosen.numpy()[:, None]], 1)
        owner.append(np.repeat(keys[:, None], tokens, 1))
        out = np.concatenate([out, rng.integers(1, 512, (documents, 4))], 1)
        owner.append(np.full((documents, 4), -1))
    return out, np.concatenate(owner, 1)


def test_pieces_are_found_and_attributed(secret, profile_for):
    profile = profile_for(secret, Gumbel(), subkeys=16, special_ids=())
    text, owner = stitched(profile, secret, np.random.default_rng(2), documents=12, pieces=5, tokens=40)
    found = Detector(profile, secret).detect(Documents.of_batch(text))
    assert (found.log10_p <= -6).all()
    assert not found.mixed(log10_level=-6).all()
    assert found.accepted(log10_level=-6).mean() >= 0.5
    right = []
    for row, stretches in zip(owner, found.stretches, strict=True):
        for stretch in stretches:
            inside = row[stretch.start : stretch.stop]
            right.append((inside == stretch.subkey).mean() > 0.7)
    assert len(right) > 40
    assert np.mean(right) > 0.95


def test_short_pieces_are_found_where_no_single_subkey_is(secret, profile_for):
    profile = profile_for(secret, Gumbel(), subkeys=16, special_ids=())
    text, _ = stitched(profile, secret, np.random.default_rng(3), documents=12, pieces=12, tokens=10)
    found = Detector(profile, secret).detect(Documents.of_batch(text))
    assert (found.log10_p <= -15).mean() >= 0.9
    assert (found.log10_p_best <= -15).mean() <= 0.5


def test_many_documents_are_judged_as_each_alone(secret, profile_for, monkeypatch):
    """Empty and short ones among them, also where only a few n-grams are held at once."""
    from privguard.watermark.text.reading import detect

    rng = np.random.default_rng(4)
    lists = [rng.integers(1, 512, length) for length in (60, 0, 3, 200, 5, 90, 0)]
    detector = Detector(profile_for(secret, Gumbel()), secret)
    alone = [detector.detect(Documents.of_lists([text])).log10_p[0] for text in lists]
    for at_once in (100_000, 70):
        monkeypatch.setattr(detect, "_AT_ONCE", at_once)
        assert detector.detect(Documents.of_lists(lists)).log10_p == pytest.approx(alone)
    assert len(detector.detect(Documents.of_lists([]))) == 0
