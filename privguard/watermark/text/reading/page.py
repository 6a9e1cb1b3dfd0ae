# SPDX-License-Identifier: Apache-2.0
"""A detection report that a non-expert can read: the answer, a coloured picture of the text, what it does not prove.

One self-contained HTML page, no script, nothing loaded from elsewhere; or the same facts as JSON.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from privguard.records import Record, Verdict
from privguard.watermark.statistics.tails import Floats
from privguard.watermark.text.reading.along import Stretch
from privguard.watermark.text.reading.detect import Detections, Detector
from privguard.watermark.text.reading.ngrams import Documents, scored_ngrams
from privguard.watermark.text.reading.window import Window, find_windows

NOT_PROVEN = (
    "Who wrote or sent this text: it only agrees with the key beyond chance, and copied marked text stays marked.",
    "That a person wrote a text in which no mark was found: paraphrase, editing and predictable text leave none.",
    "Whether the text is true, allowed or original.",
    "Anything by itself, unless the secret is known to be older than the text: have the profile timestamped.",
    "Anything about one token: without a mark, half of them look strong. Only the sum counts.",
)


@final
@dataclass(frozen=True, kw_only=True)
class Report(Record):
    """One document's detection: the verdict, the level chosen beforehand, each token with its score, marked parts.

    ``tokens`` holds (text, quantile): the share of chance scores below this token's, or ``None`` where the token was
    not scored (first tokens, prompt, padding, special tokens, repetitions). ``accepted`` is the attribution rule of
    ``accepted``.
    """

    verdict: Verdict
    log10_level: float
    accepted: bool
    mixed: bool
    tokens: tuple[tuple[str, float | None], ...]
    windows: tuple[Window, ...]
    stretches: tuple[Stretch, ...]
    does_not_prove: tuple[str, ...] = NOT_PROVEN

    @property
    def answer(self) -> str:
        """The result in one sentence."""
        p = self.verdict.log10_p_corrected
        if p > self.log10_level:
            return (
                "No mark was found at the chosen level: chance alone gives such agreement with probability "
                f"{_odds(p)}. This is no evidence that a person wrote the text."
            )
        found = f"The mark was found: text without it agrees this well with the key with probability {_odds(p)}."
        if self.accepted:
            return found
        if self.mixed:
            return (
                f"{found} But many sub-keys agree beyond what its stretches explain, as in a text of many short pieces "
                "or in a forgery: no attribution is made."
            )
        return f"{found} Its pieces are too short to say which sub-key wrote which: no attribution is made."

    def to_html(self) -> str:
        """One self-contained page."""
        spans = "".join(_span(text, quantile) for text, quantile in self.tokens)
        facts = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in self._facts())
        doubts = "".join(f"<li>{html.escape(text)}</li>" for text in self.does_not_prove)
        parts = "".join(
            f"<li>tokens {w.start} to {w.stop}: probability {_odds(w.log10_p)} after all windows</li>"
            for w in self.windows
        )
        parts += "".join(
            f"<li>tokens {s.start} to {s.stop}: written under sub-key {s.subkey}, {s.scored} counted</li>"
            for s in self.stretches
        )
        parts = f"<h2>Marked parts</h2><ul>{parts}</ul>" if parts else ""
        return _PAGE.format(
            answer=html.escape(self.answer),
            facts=facts,
            text=spans,
            doubts=doubts,
            parts=parts,
            null=html.escape(self.verdict.null_model),
        )

    def _facts(self) -> list[tuple[str, str]]:
        v = self.verdict
        return [
            ("scheme", v.scheme),
            ("probability by chance", f"{_odds(v.log10_p_corrected)} (log10 p = {v.log10_p_corrected:.2f}, {v.bound})"),
            ("level chosen beforehand", _odds(self.log10_level)),
            ("unique n-grams scored", str(v.trials)),
            ("mean score", f"{v.details['mean_score']:.3f}; {v.details['mean_without_mark']:.3f} without a mark"),
            ("e-value (may be watched as the text grows)", f"10^{v.log10_e:.2f}" if v.log10_e is not None else "–"),
            ("other tests paid for", f"{v.multiplicity:g} documents and keys, {v.details['subkeys_tried']} sub-keys"),
            ("key id", str(v.details["key_id"])),
            ("profile", str(v.details["profile"])),
        ]


def report(
    detector: Detector, documents: Documents, *, words: Sequence[str], log10_level: float = -5.0, tests: float = 1.0
) -> Report:
    """The report on one document; ``words`` is the text of each of its tokens.

    Raises:
        ValueError: more than one document, or not one word per token.
    """
    if len(documents) != 1 or len(words) != len(documents.tokens):
        raise ValueError(f"len(words)={len(words)}: expected one per token of one document, {len(documents.tokens)}")
    profile, found = detector.profile, detector.detect(documents)
    ngrams = scored_ngrams(profile, documents)
    scores = _own_scores(detector.scores(ngrams), ngrams.place, found)
    null = profile.scheme.null
    quantiles: list[float | None] = [None] * len(words)
    for place, score in zip(ngrams.place.tolist(), scores.tolist(), strict=True):
        quantiles[place] = 1.0 - 10.0 ** float(null.log10_tail(score, 1))
    verdict = found.verdict(0, tests=tests)
    alone = bool(found.accepted(log10_level=log10_level)[0])
    return Report(
        verdict=verdict,
        log10_level=log10_level,
        accepted=alone and verdict.log10_p_corrected <= log10_level,
        tokens=tuple(zip(words, quantiles, strict=True)),
        mixed=bool(found.mixed(log10_level=log10_level)[0]),
        stretches=found.stretches[0],
        windows=tuple(find_windows(detector, documents, log10_level=log10_level)),
    )


def _own_scores(scores: Floats, place: NDArray[np.int64], found: Detections) -> Floats:
    """Each token's score under the sub-key of its stretch, or under the best one of the text."""
    keys = np.full(len(place), int(found.subkey[0]))
    for stretch in found.stretches[0]:
        keys[(place >= stretch.start) & (place < stretch.stop)] = stretch.subkey
    return scores[keys, np.arange(len(place))]


def words_of_tokens(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token; bytes that are no text alone are shown as a replacement sign."""
    return [tokenizer.decode([int(i)]) for i in ids]


def _odds(log10_p: float) -> str:
    if log10_p > -2:  # noqa: PLR2004 — above one in a hundred, a plain number reads better
        return f"{10**log10_p:.2f}"
    exponent = math.floor(log10_p)
    return f"{10 ** (log10_p - exponent):.1f} · 10^{exponent}"


def _span(text: str, quantile: float | None) -> str:
    shown = html.escape(text).replace("\n", "↵\n")
    if quantile is None:
        return f'<span class="n" title="not scored">{shown}</span>'
    light = float(np.interp(quantile, [0.0, 0.5, 1.0], [97.0, 94.0, 62.0]))
    return f'<span style="background:hsl(150 60% {light:.0f}%)" title="above {quantile:.1%} of chance">{shown}</span>'


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Text mark: detection report</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body{{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b}}
h1{{font-size:1.4rem}} h2{{font-size:1.1rem;margin-top:2rem}}
.answer{{font-size:1.15rem;border-left:4px solid #2a8a5f;padding-left:1rem}}
table{{border-collapse:collapse}} td{{overflow-wrap:anywhere}}
th{{text-align:left;font-weight:500;padding:.15rem 1rem .15rem 0;vertical-align:top}}
.text{{white-space:pre-wrap;border:1px solid #ddd;border-radius:6px;padding:1rem;line-height:1.9}}
.text span{{border-radius:3px}} .n{{color:#999}}
</style></head><body>
<h1>Text mark: detection report</h1>
<p class="answer">{answer}</p>
<h2>What was measured</h2><table>{facts}</table>
<p>Without a mark: {null}.</p>
{parts}
<h2>The text</h2>
<p>The greener a token, the stronger it agrees with the key. Grey tokens were not scored.</p>
<div class="text">{text}</div>
<h2>What this does not prove</h2><ul>{doubts}</ul>
</body></html>
"""
