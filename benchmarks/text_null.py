# SPDX-License-Identifier: Apache-2.0
"""False positives of the text marks on text without a mark: ten million trials in each of twelve cells.

A trial is one document under one random key. For each document the critical score of each level is computed once, so a
trial costs one AES call and one sum. Discrete schemes are compared with the exact size that their lattice attains, the
Gumbel scheme with the nominal level; Holm over all cells at 1 %. Run: ``python -m benchmarks.text_null``
(``--trials 1e5`` for a quick look).
"""

import argparse
import hashlib
import json
import time
from pathlib import Path

import numpy as np
from scipy import special, stats

from benchmarks.text_corpus import code, documents, prose, templated
from privguard.watermark.statistics import tails as statistic
from privguard.watermark.statistics.null import ExponentialSum, WeightedBits
from privguard.watermark.text.prf.streams import AesStream
from privguard.watermark.text.reading.ngrams import Documents, unique_ngrams
from privguard.watermark.text.scheme import GreenList, Gumbel, Tournament

LEVELS = (1e-2, 1e-3, 1e-4, 1e-5)
COUNT, TOKENS = 50, 200
RESULT = Path(__file__).parent / "results" / "text_null.json"


def texts() -> dict[str, Documents]:
    plain = documents(prose(), count=COUNT, tokens=TOKENS)
    padded = np.concatenate([np.zeros((COUNT, 100), int), plain[:, :120], np.zeros((COUNT, 60), int)], 1)
    return {
        "prose": Documents.of_batch(plain),
        "code": Documents.of_batch(documents(code(), count=COUNT, tokens=TOKENS)),
        "repetitive": Documents.of_batch(templated(count=COUNT, tokens=TOKENS)),
        "padded batch": Documents.of_batch(padded).without([0]),
    }


def critical(null, count: int, level: float) -> tuple[float, float]:
    """The least score whose tail is at most the level, and that tail: the exact size of the test."""
    if isinstance(null, ExponentialSum):
        return float(special.gammainccinv(count, level)), level
    scores = np.arange(count * (sum(null.weights) if isinstance(null, WeightedBits) else 1) + 1)
    scores = scores[scores > null.mean * count]
    tails = null.log10_tail(scores, count)
    at = np.flatnonzero(tails <= np.log10(level))
    return (float(scores[at[0]]), float(10.0 ** tails[at[0]])) if at.size else (np.inf, 0.0)


def cell(scheme, text: Documents, *, trials: float, width: int) -> list[dict[str, float]]:
    grams, rejected, keys = unique_ngrams(text, width=width), np.zeros(len(LEVELS), np.int64), int(trials / COUNT)
    counts = grams.count()
    limits = {c: [critical(scheme.null, int(c), level) for level in LEVELS] for c in np.unique(counts)}
    bars = np.array([[limits[c][i][0] for c in counts] for i in range(len(LEVELS))])
    expected = np.array([np.mean([limits[c][i][1] for c in counts]) for i in range(len(LEVELS))])
    lookup = scheme.lookup(grams.contexts, grams.tokens, block_bytes=AesStream.block_bytes)
    for key in range(keys):
        stream = AesStream(hashlib.sha256(f"{scheme.name} {key}".encode()).digest())
        scores = np.bincount(grams.document, weights=scheme.scores(lookup.read(stream)), minlength=COUNT)
        rejected += (scores >= bars - 1e-9).sum(1)
    total = keys * COUNT
    return [
        {
            "level": level,
            "trials": total,
            "rejected": int(r),
            "rate": float(r / total),
            "exact size": float(e),
            "log10 p above": float(np.log10(max(1e-300, stats.binom.sf(r - 1, total, max(e, 1e-300))))),
            "log10 p below": float(np.log10(max(1e-300, stats.binom.cdf(r, total, e)))),
            "unique n-grams": float(counts.mean()),
        }
        for level, r, e in zip(LEVELS, rejected, expected, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=float, default=1e7)
    trials, rows, start = parser.parse_args().trials, [], time.process_time()
    for scheme, width in ((Gumbel(), 4), (GreenList(), 1), (Tournament(), 4)):
        for name, text in texts().items():
            rows += [
                {"scheme": scheme.name, "width": width, "text": name, **row}
                for row in cell(scheme, text, trials=trials, width=width)
            ]
            print(f"{scheme.name}, {name}: {time.process_time() - start:.0f} CPU s", flush=True)
    above = statistic.holm([row["log10 p above"] for row in rows])
    below = statistic.holm([row["log10 p below"] for row in rows if row["scheme"] == "gumbel"])
    summary = {
        "worst above (Holm)": float(10 ** above.min()),
        "worst below, Gumbel (Holm)": float(10 ** below.min()),
        "cpu_s": time.process_time() - start,
    }
    print("| scheme | text | level | trials | rejected | rate | exact size |\n|---|---|---|---|---|---|---|")
    for r in rows:
        cells = (r["scheme"], r["text"], f"{r['level']:g}", f"{r['trials']:.0e}", str(r["rejected"]))
        print(f"| {' | '.join(cells)} | {r['rate']:.3e} | {r['exact size']:.3e} |")
    print(summary)
    RESULT.write_text(json.dumps({"summary": summary, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
