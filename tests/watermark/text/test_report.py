# SPDX-License-Identifier: Apache-2.0
"""The report: it answers in a sentence, colours what was scored, shows no secret, says what it does not prove."""

import numpy as np
import pytest

from privguard.watermark.text.reading.detect import Detector
from privguard.watermark.text.reading.ngrams import Documents
from privguard.watermark.text.reading.page import NOT_PROVEN, report
from privguard.watermark.text.scheme import Gumbel
from privguard.watermark.text.writing.generate import MarkedGeneration


@pytest.fixture
def marked(model, prompts, secret, profile_for):
    profile = profile_for(secret, Gumbel())
    mark = MarkedGeneration(profile, secret)
    ids = model.generate(prompts[:1], custom_generate=mark, do_sample=True, top_k=0, max_new_tokens=120)[0, 8:].numpy()
    return Detector(profile, secret), ids


def test_a_marked_text_is_reported_with_its_colours_and_doubts(marked):
    detector, ids = marked
    words = [f"<w{i}&> " for i in ids]
    made = report(detector, Documents.of_lists([ids]), words=words, tests=3)
    assert made.answer.startswith("The mark was found")
    assert [quantile is None for _, quantile in made.tokens[:6]] == [True] * 4 + [False] * 2
    scored = [q for _, q in made.tokens if q is not None]
    assert np.mean(scored) > 0.6
    page = made.to_html()
    assert "&lt;w" in page
    assert "<w" not in page
    assert "<script" not in page
    assert all(text.split(":")[0] in page for text in NOT_PROVEN)
    assert page.count("background:hsl") == len(scored)
    assert bytes(range(32)).hex() not in page + str(made.to_json())
    assert made.windows


def test_a_plain_text_is_not_called_human(marked):
    detector, _ = marked
    made = report(detector, Documents.of_lists([np.arange(1, 100)]), words=["x"] * 99)
    assert not made.accepted
    assert "no evidence that a person wrote" in made.answer
    assert made.windows == ()


def test_one_word_per_token_of_one_document(marked):
    detector, ids = marked
    for bad in (Documents.of_lists([ids, ids]), Documents.of_lists([ids[:5]])):
        with pytest.raises(ValueError, match="one document"):
            report(detector, bad, words=["x"] * len(ids))
