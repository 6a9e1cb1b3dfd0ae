# SPDX-License-Identifier: Apache-2.0
"""How many tokens a text mark needs: power by entropy, under edits, for a 32-bit payload, and for tracing.

The writer is the product's own torch chooser over synthetic steps (benchmarks/text_corpus.py); the test is the exact
p-value on unique n-grams under one sub-key. "Tokens" is the least number at which 99 % of documents reach p ≤ 10⁻⁵.
Run: ``python -m benchmarks.text_power`` (``--section tracing`` for one part).
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import special, stats

from benchmarks.text_corpus import WIDTH, entropy, scale_for, step_logits
from benchmarks.text_writer import SECRET, choose, profile_of
from privguard.watermark.text.drill import Edit
from privguard.watermark.text.reading import message as payload
from privguard.watermark.text.reading.detect import Detector
from privguard.watermark.text.reading.ngrams import Documents
from privguard.watermark.text.reading.trace import trace
from privguard.watermark.text.scheme import GreenList, Gumbel, Payload, Tournament
from privguard.watermark.text.writing.generate import MarkProcessor

RESULT = Path(__file__).parent / "results" / "text_power.json"
BARS = {"gumbel": (260, 115, 58), "tournament": (365, 140, 72), "green-list": (840, 330, 207)}
NATS = (0.6, 1.0, 1.5)


def pool(scheme, nats: float, *, steps: int = 40_000) -> np.ndarray:
    """Scores of marked tokens in fresh contexts."""
    profile, rng = profile_of(scheme), np.random.default_rng(7)
    stream, scale, out = profile.stream(SECRET, subkey=0), scale_for(nats), []
    for _ in range(steps // 1000):
        contexts = rng.integers(0, 1 << 23, (1000, 4))
        tokens = choose(profile, [stream] * 1000, step_logits(rng, 1000, scale), contexts)
        out.append(scheme.scores(scheme.lookup(contexts, tokens, block_bytes=16).read(stream)))
    return np.concatenate(out)


def tokens_needed(scheme, scores: np.ndarray, *, log10_level: float = -5.0, documents: int = 2000) -> int:
    rng = np.random.default_rng(8)

    def power(n: int) -> float:
        sums = np.array([scores[rng.integers(0, len(scores), n)].sum() for _ in range(documents)])
        return float((scheme.null.log10_tail(sums, n) <= log10_level).mean())

    low, high = 4, 4000
    while high - low > max(1, low // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= 0.99 else (middle, high)
    return high


def texts(
    scheme, nats: float, *, documents: int, tokens: int, width: int = 4, users: Sequence[str | None] = ()
) -> np.ndarray:
    """(documents, tokens) of marked text with the contexts that it really has; ``users`` names each one's user."""
    profile, rng = profile_of(scheme, width=width), np.random.default_rng(9)
    scale, owners = scale_for(nats), users or [None] * documents
    of = {user: profile.stream(SECRET, subkey=0, user=user) for user in set(owners)}
    streams = [of[user] for user in owners]
    out = rng.integers(0, WIDTH, (documents, width + tokens))
    for t in range(width, width + tokens):
        out[:, t] = choose(profile, streams, step_logits(rng, documents, scale), out[:, t - width : t])
    return out[:, width:]


def needed_under(edit: Edit | None, marked: np.ndarray, width: int) -> int:
    """Least prefix length at which 99 % of the (edited) prefixes are detected."""
    detector = Detector(profile_of(Gumbel(), width=width), SECRET)

    def power(n: int) -> float:
        rng = np.random.default_rng(10)
        rows = [row[:n] if edit is None else edit(row[:n], rng) for row in marked]
        return float((detector.detect(Documents.of_lists(rows)).log10_p <= -5).mean())

    low, high = 10, marked.shape[1]
    if power(high) < 0.99:
        return -1
    while high - low > max(1, low // 50):
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= 0.99 else (middle, high)
    return high


def payload_tokens(nats: float) -> int:
    """Tokens at which both 16-bit pieces are right in 99 % of documents; wrong values are Gamma sums, exactly."""
    scores, rng = pool(Gumbel(), nats), np.random.default_rng(11)

    def recovery(n: int) -> float:
        right = []
        for _ in range(1000):
            first = rng.binomial(n, 0.5)
            chance = 1.0
            for count in (first, n - first):
                own = scores[rng.integers(0, len(scores), count)].sum()
                chance *= float(np.exp(65535 * np.log1p(-special.gammaincc(max(count, 1), own)))) if count else 2.0**-16
            right.append(chance)
        return float(np.mean(right))

    low, high = 20, 3000
    while high - low > max(1, low // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if recovery(middle) >= 0.99 else (middle, high)
    return high


def payload_check(nats: float, tokens: int, *, documents: int = 500) -> float:
    """The share of whole 32-bit messages read back from really written texts of this length."""
    profile, message = profile_of(Payload(bits=32)), 0xDEADBEEF
    stream, rng, scale = profile.stream(SECRET, subkey=0), np.random.default_rng(12), scale_for(nats)
    text = torch.from_numpy(rng.integers(0, WIDTH, (documents, 4)))
    processor = MarkProcessor(
        profile, streams=[stream] * documents, prompt=4, messages=(message & 0xFFFF, message >> 16)
    )
    for _ in range(tokens):
        chosen = processor(text, torch.from_numpy(step_logits(rng, documents, scale))).argmax(-1)
        text = torch.cat([text, chosen[:, None]], 1)
    found = payload.read(profile, SECRET, Documents.of_batch(text.numpy(), prompt=4))
    return float(np.mean([m.value == message for m in found]))


def tracing(*, documents: int = 20_000, users: int = 1000, batch: int = 2000) -> dict[str, float]:
    """Plain documents against a thousand users' keys: how often anybody is accused at 10⁻³ over all users.

    "p of so many" is the chance of this count or more where the rate is 10⁻³. Then 200 documents written for one of
    the users at 1.0 nats and of 150 tokens: how often that user is accused, and how often another.
    """
    profile, names, rng, accused = (
        profile_of(Gumbel()),
        [f"user {i}" for i in range(users)],
        np.random.default_rng(13),
        0,
    )
    for _ in range(documents // batch):
        found = trace(profile, SECRET, Documents.of_batch(rng.integers(0, WIDTH, (batch, 60))), users=names)
        accused += sum(t.verdict.log10_p_corrected <= -3 for t in found)
    guilty = rng.integers(0, users, 200)
    marked = texts(Gumbel(), 1.0, documents=len(guilty), tokens=150, users=[names[i] for i in guilty])
    named = trace(profile, SECRET, Documents.of_batch(marked), users=names)
    hits = [t.user == names[i] for t, i in zip(named, guilty, strict=True) if t.verdict.log10_p_corrected <= -3]
    return {
        "plain documents": documents,
        "users": users,
        "accused": accused,
        "rate": accused / documents,
        "p of so many": float(stats.binom.sf(accused - 1, documents, 1e-3)),
        "written for a user": len(guilty),
        "that user accused": sum(hits),
        "another accused": len(hits) - sum(hits),
    }


def edits() -> list[dict[str, float]]:
    """Tokens needed after substitution against 1.1/f² times the tokens needed before, Gumbel at 1.0 nats."""
    rows = []
    for width, tokens, documents in ((2, 1600, 300), (4, 5200, 200)):
        marked = texts(Gumbel(), 1.0, documents=documents, tokens=tokens, width=width)
        base = needed_under(None, marked, width)
        for share in (0.1, 0.3):
            needed = needed_under(Edit(np.arange(WIDTH), substitute=share), marked, width)
            limit = round(1.1 * base / (1 - share) ** (2 * (width + 1)))
            rows.append({"width": width, "substitute": share, "base": base, "tokens": needed, "1.1/f² of base": limit})
            print(rows[-1], flush=True)
    return rows


def power() -> list[dict[str, float]]:
    """Tokens needed by scheme and entropy, under one sub-key and under sixteen."""
    rows = []
    for scheme in (Gumbel(), Tournament(), GreenList(green=64, bias=2.0)):
        for nats, bar in zip(NATS, BARS[scheme.name], strict=True):
            scores = pool(scheme, nats)
            row = {"scheme": scheme.name, "nats": nats, "tokens": tokens_needed(scheme, scores), "bar": bar}
            row["with 16 sub-keys"] = tokens_needed(scheme, scores, log10_level=-5 - np.log10(16))
            row["entropy of the steps"] = float(
                entropy(step_logits(np.random.default_rng(3), 20_000, scale_for(nats))).mean()
            )
            rows.append(row)
            print(row, flush=True)
    return rows


def message() -> dict[str, float]:
    """A 32-bit payload at 1.0 nats."""
    tokens = payload_tokens(1.0)
    return {"nats": 1.0, "bits": 32, "tokens for 99 %": tokens, "read back in 500 texts": payload_check(1.0, tokens)}


SECTIONS = {"power": power, "payload": message, "tracing": tracing, "edits": edits}


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--section", choices=[*SECTIONS, "all"], default="all")
    chosen = parser.parse_args().section
    for name in SECTIONS if chosen == "all" else [chosen]:
        found = SECTIONS[name]()
        print(name, found, flush=True)
        out = json.loads(RESULT.read_text()) if RESULT.exists() else {}
        RESULT.write_text(json.dumps({**out, name: found}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
