# SPDX-License-Identifier: Apache-2.0
"""Chats and stitched texts: pieces, each under a sub-key of its own, found and attributed; and the null along a text.

Pieces of 1 nat per token with four unmarked tokens between them, sixteen sub-keys. "Found" is p ≤ 10⁻⁶; "best sub-key"
is what the best sub-key of the whole text would find alone. A piece is attributed where a stretch under its sub-key
covers more than half of it. Run: ``python -m benchmarks.text_pieces`` (``--documents 30`` for a quick look).
"""

import argparse
import itertools
import json
import time
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from benchmarks.text_corpus import WIDTH, scale_for, step_logits
from benchmarks.text_writer import SECRET, choose, profile_of
from privguard.watermark.secret import Secret
from privguard.watermark.text.reading.detect import Detections, Detector
from privguard.watermark.text.reading.ngrams import Documents
from privguard.watermark.text.scheme import Gumbel

RESULT = Path(__file__).parent / "results" / "text_pieces.json"
SHAPES = ((1, 100), (1, 200), (5, 100), (10, 40), (20, 40), (40, 20))
GAP = 4


def write(pieces: int, tokens: int, *, documents: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(documents, T) texts and the sub-key of each token, −1 for none."""
    profile, rng, scale = profile_of(Gumbel(), subkeys=16), np.random.default_rng(seed), scale_for(1.0)
    streams = [profile.stream(SECRET, subkey=j) for j in range(16)]
    out, owner = rng.integers(0, WIDTH, (documents, GAP)), [np.full((documents, GAP), -1)]
    for piece in range(pieces):
        keys = rng.integers(0, 16, documents)
        if piece:
            out = np.concatenate([out, rng.integers(0, WIDTH, (documents, GAP))], 1)
            owner.append(np.full((documents, GAP), -1))
        own = [streams[int(key)] for key in keys]
        for _ in range(tokens):
            chosen = choose(profile, own, step_logits(rng, documents, scale), out[:, -4:])
            out = np.concatenate([out, chosen[:, None]], 1)
        owner.append(np.repeat(keys[:, None], tokens, 1))
    return out[:, GAP:], np.concatenate(owner, 1)[:, GAP:]


def attributed(found: Detections, owner: np.ndarray) -> tuple[float, float]:
    """The share of pieces under a stretch of their own sub-key, and of texts that name a sub-key with no part in it."""
    pieces, hits, strangers = 0, 0, 0
    for row, stretches in zip(owner, found.stretches, strict=True):
        said = np.full(len(row), -1)
        for stretch in stretches:
            said[stretch.start : stretch.stop] = stretch.subkey
        strangers += any(stretch.subkey not in row for stretch in stretches)
        cuts = np.flatnonzero(np.diff(row, prepend=-9, append=-9))
        for start, stop in itertools.pairwise(cuts):
            if row[start] >= 0:
                pieces += 1
                hits += (said[start:stop] == row[start]).mean() > 0.5
    return hits / pieces, strangers / len(owner)


def power(documents: int) -> list[dict[str, object]]:
    detector, rows = Detector(profile_of(Gumbel(), subkeys=16), SECRET), []
    for pieces, tokens in SHAPES:
        text, owner = write(pieces, tokens, documents=documents, seed=pieces * 1000 + tokens)
        found = detector.detect(Documents.of_batch(text))
        own, strangers = attributed(found, owner)
        rows.append(
            {
                "pieces × tokens": f"{pieces} × {tokens}",
                "found": float((found.log10_p <= -6).mean()),
                "best sub-key alone": float((found.log10_p_best <= -6).mean()),
                "texts attributed": float(found.accepted(log10_level=-6).mean()),
                "pieces attributed": own,
                "texts that name a stranger": strangers,
                "called mixed": float(found.mixed(log10_level=-6).mean()),
            }
        )
        print(rows[-1], flush=True)
    return rows


def null(keys: int) -> list[dict[str, object]]:
    """Random texts under random keys: how often each p-value lies below a level, and the chance of so many."""
    rng, p = np.random.default_rng(1), {"p": [], "best sub-key": [], "along": []}
    for number in range(keys):
        secret = Secret(number.to_bytes(32, "big"))
        profile = profile_of(Gumbel(), subkeys=16)
        profile = type(profile)(**{**vars(profile), "key_id": secret.key_id})
        found = Detector(profile, secret).detect(Documents.of_batch(rng.integers(0, WIDTH, (500, 120))))
        for name, values in zip(p, (found.log10_p, found.log10_p_best, found.log10_p_along), strict=True):
            p[name].append(values)
    rows = []
    for name, parts in p.items():
        values = np.concatenate(parts)
        for level in (1e-2, 1e-3, 1e-4):
            count = int((values <= np.log10(level)).sum())
            chance = float(stats.binom.sf(count - 1, len(values), level))
            rows.append({"p-value": name, "level": level, "trials": len(values), "below": count, "chance": chance})
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--keys", type=int, default=200)
    given, start = parser.parse_args(), time.process_time()
    out = {"power": power(given.documents), "null": null(given.keys), "cpu_s": round(time.process_time() - start)}
    RESULT.write_text(json.dumps(out, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
