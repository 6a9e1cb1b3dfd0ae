# SPDX-License-Identifier: Apache-2.0
"""Canonical variants of a text: what mail, editors and word processors did to it is undone before it is tokenized.

Accents come apart (NFD), spaces turn hard, lines get quoted and wrapped, and each such change gives other tokens, so
the evidence is lost though every word stands. Here the few usual changes are undone, each in a text of its own; the
distinct ones are read and all of them are paid for. Which they are does not depend on the key, so that is exact.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from privguard.records import Verdict
from privguard.watermark.text.reading.detect import Detections, Detector, encode

_INVISIBLE = re.compile("[\u00ad\u200b\u200c\u200d\u2060\ufeff]")
_SPACES = re.compile("[\u00a0\u2000-\u200a\u202f\u205f\u3000]")
_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2026": "..."})


def clean(text: str) -> str:
    """NFC, ordinary spaces and line ends, nothing invisible.

    Args:
        text: a text as it was found.
    """
    text = _INVISIBLE.sub("", unicodedata.normalize("NFC", text))
    return _SPACES.sub(" ", text).replace("\r\n", "\n").replace("\r", "\n")


def unquote(text: str) -> str:
    """Without the ``>`` of a quoted mail.

    Args:
        text: a text as it was found.
    """
    return re.sub(r"(?m)^(?:> ?)+", "", clean(text))


def unwrap(text: str) -> str:
    """Lines joined where a wrap broke them: at single line ends between words.

    Args:
        text: a text as it was found.
    """
    return re.sub(r"(?<=\S)[ \t]*\n(?=\S)", " ", clean(text))


VARIANTS: dict[str, Callable[[str], str]] = {
    "as written": lambda text: text,
    "clean": clean,
    "unquoted": unquote,
    "unwrapped": unwrap,
    "unquoted and unwrapped": lambda text: unwrap(unquote(text)),
    "plain quotes": lambda text: clean(text).translate(_QUOTES),
    "one space each": lambda text: re.sub(r"(?<=\S) {2,}(?=\S)", " ", clean(text)),
}


def variants_of(text: str) -> dict[str, str]:
    """The distinct variants of a text by name, first of all the text itself.

    Args:
        text: a text as it was found.
    """
    out: dict[str, str] = {}
    for name, change in VARIANTS.items():
        changed = change(text)
        if changed not in out.values():
            out[name] = changed
    return out


@final
@dataclass(frozen=True)
class Reading:
    """The variant of one text with the least p-value; ``tried`` are paid for. ``row`` is its own in ``found``."""

    variant: str
    text: str
    tried: int
    row: int
    found: Detections

    def verdict(self, *, tests: float = 1.0) -> Verdict:
        """The verdict, which pays for ``tests`` texts and all variants.

        Args:
            tests: texts tested beside it, at least 1.
        """
        return self.found.verdict(self.row, tests=tests * self.tried, details={"variant": self.variant})


def detect_variants(detector: Detector, texts: Sequence[str], tokenizer: Any) -> list[Reading]:
    """Read every distinct variant of each text and keep the best.

    Args:
        detector: the detector of profile and secret.
        texts: texts as they were found.
        tokenizer: the profile's tokenizer.

    Raises:
        ProfileMismatchError: another tokenizer than the profile's.
    """
    each = [variants_of(text) for text in texts]
    everything = [text for variants in each for text in variants.values()]
    found = detector.detect(encode(everything, tokenizer, profile=detector.profile))
    out: list[Reading] = []
    start = 0
    for variants in each:
        stop = start + len(variants)
        row = start + int(np.argmin(found.log10_p[start:stop]))
        name = list(variants)[row - start]
        out.append(Reading(name, variants[name], len(variants), row, found))
        start = stop
    return out
