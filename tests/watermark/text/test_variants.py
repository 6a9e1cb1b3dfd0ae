# SPDX-License-Identifier: Apache-2.0
"""Everyday handling is undone: each change gives back the writer's own text as one of the variants, all paid for."""

import re
import textwrap
import unicodedata

import numpy as np
import pytest

from privguard.watermark.text.profile import Profile
from privguard.watermark.text.reading.detect import Detector
from privguard.watermark.text.reading.variants import VARIANTS, detect_variants, variants_of
from privguard.watermark.text.scheme import Gumbel

PLAIN = (
    'Cô ấy đã hỏi: "không sao?" - và đi, một mình, tới nhà cũ ở cuối phố, nơi chẳng còn ai chờ.\n\nRồi trời tối.' * 2
)
CHANGES = {
    "NFD": lambda s: unicodedata.normalize("NFD", s),
    "CRLF": lambda s: s.replace("\n", "\r\n"),
    "hard spaces": lambda s: s.replace(" ", "\u00a0"),
    "zero width": lambda s: s.replace(" ", "\u200b "),
    "soft hyphens": lambda s: s.replace("ng", "n\u00adg"),
    "quoted": lambda s: "\n".join("> " + line for line in s.split("\n")),
    "quoted twice": lambda s: "\n".join("> > " + line for line in s.split("\n")),
    "wrapped": lambda s: "\n".join(textwrap.fill(p, 40, break_on_hyphens=False) for p in s.split("\n")),
    "quoted and wrapped": lambda s: re.sub(
        "(?m)^", "> ", "\n".join(textwrap.fill(p, 40, break_on_hyphens=False) for p in s.split("\n"))
    ),
    "curly quotes": lambda s: s.replace('"', "\u201d").replace("-", "\u2013"),
    "two spaces": lambda s: s.replace(", ", ",  "),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_each_change_is_undone(change):
    changed = change(PLAIN)
    assert changed != PLAIN
    assert PLAIN in variants_of(changed).values()


def test_variants_are_distinct_and_the_text_itself_comes_first():
    found = variants_of("one two")
    assert found == {"as written": "one two"}
    many = variants_of("> one\u00a0two\r\n> \u201cthree\u201d  four")
    assert len(set(many.values())) == len(many) <= len(VARIANTS)
    assert next(iter(many)) == "as written"


class Characters:
    """A tokenizer of single characters, 512 of them."""

    all_special_ids = ()

    def get_vocab(self):
        return {chr(i): i for i in range(512)}

    def encode(self, text, *, add_special_tokens):
        return [ord(character) % 512 for character in text]


def test_a_changed_text_is_found_in_its_variant_and_pays_for_all(secret):
    """Letters chosen by the key; afterwards their accents are taken apart."""
    profile = Profile.for_tokenizer(Characters(), secret, logits_width=512)
    detector, letters = Detector(profile, secret), [*range(0xE0, 0xF0), *range(0xF1, 0xF7)]
    stream, ids = profile.stream(secret, subkey=2), [0xE0, 0xE1, 0xE2, 0xE3]
    for _ in range(120):
        words = stream.vocabulary(np.array([ids[-4:]]), 2048).view(np.uint32)[0]
        ids.append(max(letters, key=lambda letter: words[letter]))
    text = "".join(map(chr, ids))
    handled = unicodedata.normalize("NFD", text)
    raw = detector.detect_text([text, handled], Characters())
    own, undone = detect_variants(detector, [text, handled], Characters())
    assert raw.log10_p[0] < -20
    assert raw.log10_p[1] > -3
    assert (own.variant, own.tried, undone.variant, undone.tried) == ("as written", 1, "clean", 2)
    verdict = undone.verdict(tests=3)
    assert verdict.log10_p_corrected == pytest.approx(raw.log10_p[0] + np.log10(6))
    assert verdict.details["variant"] == "clean"
    assert isinstance(profile.scheme, Gumbel)
