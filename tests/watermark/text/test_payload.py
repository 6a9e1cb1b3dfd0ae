# SPDX-License-Identifier: Apache-2.0
"""Payloads, tracing and windows: what is hidden is found, named right, and never found where it is not."""

import numpy as np
import pytest
from scipy import stats

from privguard.errors import MarkError
from privguard.watermark.secret import Secret
from privguard.watermark.text.reading import message as payload
from privguard.watermark.text.reading.detect import Detector
from privguard.watermark.text.reading.ngrams import Documents
from privguard.watermark.text.reading.trace import trace
from privguard.watermark.text.reading.window import find_windows
from privguard.watermark.text.scheme import Gumbel, Payload, Tournament
from privguard.watermark.text.writing.generate import MarkedGeneration


def write(model, prompts, mark, tokens=100):
    return model.generate(prompts, custom_generate=mark, do_sample=True, top_k=0, max_new_tokens=tokens).numpy()


@pytest.mark.parametrize(("bits", "message"), [(1, 1), (12, 0xABC), (12, 0), (20, 0x9_1234)])
def test_a_message_is_read_back_with_its_confidence(model, prompts, secret, profile_for, bits, message):
    profile = profile_for(secret, Payload(bits=bits), subkeys=2)
    text = write(model, prompts[:2], MarkedGeneration(profile, secret, message=message))
    for found in payload.read(profile, secret, Documents.of_batch(text, prompt=8)):
        assert found.value == message
        assert len(found.confidence) == bits
        assert min(found.confidence) > 0.99
        assert found.verdict.log10_p < -4
    named = payload.expect(profile, secret, Documents.of_batch(text, prompt=8), message=message)
    wrong = payload.expect(
        profile, secret, Documents.of_batch(text, prompt=8), message=message ^ (1 | 1 << 16 if bits > 16 else 1)
    )
    assert all(v.log10_p < -6 for v in named)
    assert all(v.log10_p > -4 for v in wrong)


@pytest.mark.stat
def test_without_a_message_nothing_is_claimed(profile_for):
    """200 secrets on plain text: the p-value pays for 2^8 messages; false alarm 1e-5. The confidence is low."""
    text, p = Documents.of_batch(np.random.default_rng(0).integers(1, 512, (1, 60))), []
    for key in range(200):
        secret = Secret(key.to_bytes(32, "big"))
        found = payload.read(profile_for(secret, Payload(bits=8), subkeys=2), secret, text)[0]
        p.append(10**found.verdict.log10_p)
        assert min(found.confidence) < 0.99
    assert (np.array(p) <= 0.1).sum() <= stats.binom.isf(1e-5, 200, 0.1)


def test_a_short_text_shows_its_doubt(model, prompts, secret, profile_for):
    profile = profile_for(secret, Payload(bits=12), subkeys=1)
    short = payload.read(
        profile,
        secret,
        Documents.of_batch(write(model, prompts[:1], MarkedGeneration(profile, secret, message=77), 1), prompt=8),
    )
    assert min(short[0].confidence) < 0.99
    assert payload.read(profile, secret, Documents.of_lists([[]]))[0].confidence == pytest.approx([0.5] * 12)


def test_a_payload_needs_a_profile_that_has_one(model, secret, profile_for):
    with pytest.raises(MarkError, match="no payload"):
        payload.read(profile_for(secret, Gumbel()), secret, Documents.of_lists([[1]]))
    for bad in (None, -1, 1 << 12):
        with pytest.raises(ValueError, match="message"):
            MarkedGeneration(profile_for(secret, Payload(bits=12)), secret, message=bad)


def test_the_user_is_named_and_others_are_not(model, prompts, secret, profile_for):
    profile, users = profile_for(secret, Gumbel(), subkeys=2), [f"user {i}" for i in range(40)]
    text = write(model, prompts, MarkedGeneration(profile, secret, user="user 7"))
    for found in trace(profile, secret, Documents.of_batch(text, prompt=8), users=users):
        assert found.user == "user 7"
        assert found.verdict.multiplicity == 40
        assert found.verdict.log10_p_corrected < -6
        assert found.runner_up_log10_p > -4
    assert (Detector(profile, secret).detect(Documents.of_batch(text, prompt=8)).log10_p > -4).all()
    with pytest.raises(ValueError, match="distinct"):
        trace(profile, secret, Documents.of_lists([[1]]), users=["a", "a"])


@pytest.mark.stat
def test_nobody_is_accused_beyond_the_level(profile_for):
    """600 plain documents, 20 users: family-wise false accusations at 5 %; false alarm 1e-5."""
    secret = Secret(bytes(32))
    text = Documents.of_batch(np.random.default_rng(1).integers(1, 512, (600, 40)))
    found = trace(profile_for(secret, Gumbel(), subkeys=2), secret, text, users=[str(i) for i in range(20)])
    accused = sum(t.verdict.log10_p_corrected <= np.log10(0.05) for t in found)
    assert accused <= stats.binom.isf(1e-5, 600, 0.05)


@pytest.mark.parametrize("kind", [Gumbel(), Tournament(depth=12, top_k=64)], ids=lambda s: s.name)
def test_a_marked_part_is_found_in_a_long_document(model, prompts, secret, profile_for, kind):
    profile = profile_for(secret, kind)
    marked = write(model, prompts[:1], MarkedGeneration(profile, secret), 150)[0, 8:]
    plain = np.random.default_rng(2).integers(1, 512, 4000)
    document = Documents.of_lists([np.concatenate([plain[:2500], marked, plain[2500:]])])
    detector = Detector(profile, secret)
    found = find_windows(detector, document)
    assert found[0].log10_p < -6
    overlap = min(found[0].stop, 2650) - max(found[0].start, 2500)
    assert overlap > 0.6 * (found[0].stop - found[0].start)
    assert find_windows(detector, Documents.of_lists([plain])) == []
    assert find_windows(detector, Documents.of_lists([[]])) == []


@pytest.mark.stat
def test_windows_are_all_paid_for(profile_for):
    """400 secrets on one plain document: any window at 5 %, at most 5 % of the time; false alarm 1e-5."""
    text, hits = Documents.of_lists([np.random.default_rng(3).integers(1, 512, 600)]), 0
    for key in range(400):
        secret = Secret(key.to_bytes(32, "big"))
        detector = Detector(profile_for(secret, Gumbel(), subkeys=1), secret)
        hits += bool(find_windows(detector, text, log10_level=np.log10(0.05)))
    assert hits <= stats.binom.isf(1e-5, 400, 0.05)
