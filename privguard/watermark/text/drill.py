# SPDX-License-Identifier: Apache-2.0
"""Drills: what editing, mixing and forging do to a mark, in token ids, with the survival table that they give.

Edits act on the documents alone, as an editor without the key would; drawn from a seeded generator, so that a table can
be repeated. Paraphrase by a language model is not among them: it removes every token-level mark, here as elsewhere.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from privguard.watermark.text.reading.detect import Detector
from privguard.watermark.text.reading.ngrams import Documents

Ids: TypeAlias = NDArray[np.int64]
Attack: TypeAlias = Callable[[Ids, np.random.Generator], Ids]


@final
@dataclass(frozen=True)
class Edit:
    """Delete, insert and substitute each token with these chances; new tokens come from ``vocabulary`` (V,)."""

    vocabulary: Ids
    delete: float = 0.0
    insert: float = 0.0
    substitute: float = 0.0

    def __call__(self, text: Ids, rng: np.random.Generator) -> Ids:
        """The edited text."""
        fresh = rng.choice(self.vocabulary, len(text))
        text = np.where(rng.random(len(text)) < self.substitute, fresh, text)
        text = text[rng.random(len(text)) >= self.delete]
        extra = np.flatnonzero(rng.random(len(text)) < self.insert)
        return np.insert(text, extra, rng.choice(self.vocabulary, len(extra)))


@final
@dataclass(frozen=True)
class Dilute:
    """Copy-paste: the marked text keeps ``share`` of the result, in three pieces among text without a mark (T,)."""

    plain: Ids
    share: float

    def __call__(self, text: Ids, rng: np.random.Generator) -> Ids:
        """The mixture; its length is the text's divided by the share."""
        need = round(len(text) / self.share) - len(text)
        start = int(rng.integers(0, max(1, len(self.plain) - need)))
        pieces = np.array_split(text, 3)
        around = np.array_split(self.plain[start : start + need], 4)
        return np.concatenate([around[0], pieces[0], around[1], pieces[1], around[2], pieces[2], around[3]])


@final
@dataclass(frozen=True)
class RoundTrip:
    """Decode to text and encode again: what a copy through the clipboard does."""

    tokenizer: Any

    def __call__(self, text: Ids, rng: np.random.Generator) -> Ids:  # noqa: ARG002 — nothing is drawn
        """The ids of the decoded text."""
        return np.asarray(
            self.tokenizer.encode(self.tokenizer.decode(text.tolist()), add_special_tokens=False), np.int64
        )


@final
@dataclass(frozen=True)
class Survival:
    """One row of the table: the share of documents still accepted at the level, and the median log10 p."""

    attack: str
    accepted: float
    median_log10_p: float
    mean_tokens: float
    documents: int


def standard_attacks(vocabulary: Ids, plain: Ids, *, tokenizer: Any = None) -> dict[str, Attack]:
    """Edits of 10, 30 and 50 %, dilution to 50, 20 and 10 %, and the round trip where there is a tokenizer."""
    attacks: dict[str, Attack] = {"none": lambda text, _: text}
    for percent in (10, 30, 50):
        share = percent / 100
        attacks[f"substitute {percent} %"] = Edit(vocabulary, substitute=share)
        attacks[f"delete {percent} %"] = Edit(vocabulary, delete=share)
        attacks[f"insert {percent} %"] = Edit(vocabulary, insert=share)
    for percent in (50, 20, 10):
        attacks[f"dilute to {percent} %"] = Dilute(plain, percent / 100)
    if tokenizer is not None:
        attacks["decode and encode"] = RoundTrip(tokenizer)
    return attacks


def run_drill(
    detector: Detector,
    documents: Sequence[Ids],
    attacks: dict[str, Attack],
    *,
    log10_level: float = -5.0,
    seed: int = 0,
) -> list[Survival]:
    """Attack every document in every way and detect again; ``documents`` hold no prompts."""
    rows: list[Survival] = []
    for number, (name, attack) in enumerate(attacks.items()):
        rng = np.random.default_rng((seed, number))
        attacked = [attack(np.asarray(text, np.int64), rng) for text in documents]
        found = detector.detect(Documents.of_lists(attacked))
        rows.append(
            Survival(
                attack=name,
                accepted=float((found.log10_p <= log10_level).mean()),
                median_log10_p=float(np.median(found.log10_p)),
                mean_tokens=float(np.mean([len(text) for text in attacked])),
                documents=len(attacked),
            )
        )
    return rows


def survival_picture(rows: Sequence[Survival]) -> str:
    """The table as a picture: one bar per attack, SVG."""
    import io

    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.32 * len(rows) + 1), layout="constrained")
    axes = figure.subplots()
    axes.barh([row.attack for row in rows], [row.accepted for row in rows], color="#2a8a5f")
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of documents in which the mark is still found")
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    return buffer.getvalue()
