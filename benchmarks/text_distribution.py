# SPDX-License-Identifier: Apache-2.0
"""Do marked tokens follow the model's own distribution? Fresh runs of a million draws each, the test stated first.

Over random keys the Gumbel and tournament schemes promise not to distort any one token. An early single run gave KS
p = 0.010 and 0.020 for the torch Gumbel chooser; whether that was bias or chance is what this settles. Stated before
the runs:

1. A run is a million marked draws from fresh steps of ``text_corpus`` (over 64 tokens, which changes nothing in the
   choosers but their time) under a hundred fresh secrets, turned into uniforms by the randomised integral transform
   (KS), and a million draws of one Zipf law over 40 tokens (Pearson's χ²; the rarest is expected 5,800 times). Seeds
   are [2027, 1], [2027, 2], …, none of them used before. There are 20 runs; choosers on the host take one row at a
   time and get 10 and 5.
2. For each scheme and chooser three p-values are quoted: KS of the runs' KS p-values against uniform; the sum of the
   runs' χ² on all their degrees of freedom; and KS over all draws of all runs at once (on a grid of 2¹⁶ points), which
   sees a bias that is too small for any one run.
3. Distortion is claimed where one of them is below 0.01 after Holm over all quoted here.
4. The control is the same test on a model whose temperature is 1 % off; it has to be refuted.

``largest gap`` is the largest distance between the two distribution functions over all draws: no event that KS looks at
is distorted by more than about that. What is done is written after every run. Run:
``python -m benchmarks.text_distribution`` (``--case NAME`` for one row, ``--runs 2`` for a quick look, ``--table`` to
write the table again).
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from benchmarks.text_corpus import step_logits
from benchmarks.text_writer import choose, choose_on_host, profile_of
from privguard.watermark.secret import Secret
from privguard.watermark.statistics import tails
from privguard.watermark.text.scheme import Gumbel, Scheme, Tournament

RESULT = Path(__file__).parent / "results" / "text_distribution.json"
DRAWS, BATCH, GRID = 1_000_000, 1000, 1 << 16
ZIPF = np.log(1.0 / np.arange(1, 41) / (1.0 / np.arange(1, 41)).sum())


@dataclass(frozen=True)
class Case:
    """A scheme, where its tokens are chosen, from how many, in how many runs, and how much the control is off."""

    scheme: Scheme
    on_host: bool = False
    tokens: int = 64
    runs: int = 20
    temperature: float = 1.0


CASES = {
    "Gumbel, torch": Case(Gumbel()),
    "Gumbel, host": Case(Gumbel(), on_host=True, runs=10),
    "tournament, torch": Case(Tournament()),
    "tournament, host": Case(Tournament(), on_host=True, runs=5),
    "control: temperature 1.01": Case(Gumbel(), runs=5, temperature=1.01),
}


def run(case: Case, seed: int, draws: int) -> tuple[np.ndarray, float]:
    """Uniforms of the integral transform (draws,), and Pearson's χ² of the fixed law (39 degrees of freedom)."""
    rng, profile, uniform = np.random.default_rng([2027, seed]), profile_of(case.scheme), []
    secrets = [Secret(rng.bytes(32)) for _ in range(100)]
    counts, law = np.zeros(len(ZIPF)), np.tile(ZIPF.astype(np.float32), (BATCH, 1))

    def draw(logits: np.ndarray, batch: int) -> np.ndarray:
        streams = [profile.stream_of_any(secrets[batch % len(secrets)], subkey=0)] * BATCH
        contexts = rng.integers(0, 1 << 23, (BATCH, 4))
        warm = (logits / np.float32(case.temperature)).astype(np.float32)
        if case.on_host:
            return choose_on_host(profile, streams, warm, contexts, rng=rng)
        return choose(profile, streams, warm, contexts)

    for batch in range(draws // BATCH):
        logits = step_logits(rng, BATCH, 1.0, tokens=case.tokens)
        tokens = draw(logits, batch)
        p = np.exp(logits - logits.max(1, keepdims=True), dtype=np.float64)
        p /= p.sum(1, keepdims=True)
        own = p[np.arange(BATCH), tokens]
        uniform.append(np.cumsum(p, 1)[np.arange(BATCH), tokens] - rng.random(BATCH) * own)
        counts += np.bincount(draw(law, batch), minlength=len(ZIPF))
    expected = np.exp(ZIPF) / np.exp(ZIPF).sum() * counts.sum()
    return np.concatenate(uniform), float(((counts - expected) ** 2 / expected).sum())


def measure(name: str, *, runs: int, draws: int) -> None:
    """All runs of a case, their p-values so far written after each."""
    case, freedom = CASES[name], len(ZIPF) - 1
    start, p_values, squares, cells = time.process_time(), [], [], np.zeros(GRID, np.int64)
    for seed in range(1, runs + 1):
        uniform, square = run(case, seed, draws)
        cells += np.bincount((uniform * GRID).astype(np.int64).clip(0, GRID - 1), minlength=GRID)
        p_values.append(float(stats.kstest(uniform, "uniform").pvalue))
        squares.append(square)
        gap = float(np.abs(cells.cumsum() / cells.sum() - np.arange(1, GRID + 1) / GRID).max())
        save(
            name,
            {
                "tokens": case.tokens,
                "runs": seed,
                "draws of each": draws,
                "KS p of each run": p_values,
                "χ² p of each run": [float(stats.chi2.sf(value, freedom)) for value in squares],
                "runs' KS p against uniform": float(stats.kstest(p_values, "uniform").pvalue),
                "all χ² together": float(stats.chi2.sf(sum(squares), freedom * seed)),
                "KS over all draws": float(stats.kstwo.sf(gap, cells.sum())),
                "largest gap": gap,
                "cpu_s": round(time.process_time() - start),
            },
        )


def save(name: str, found: dict[str, object]) -> None:
    kept = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    kept[name] = found
    ordered = {key: kept[key] for key in CASES if key in kept}
    RESULT.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n")
    RESULT.with_suffix(".md").write_text(table(ordered), encoding="utf-8")


QUOTED = ("runs' KS p against uniform", "all χ² together", "KS over all draws")


def table(rows: dict[str, dict]) -> str:
    own = [name for name in rows if not name.startswith("control")]
    smallest = (10.0 ** tails.holm([np.log10(max(1e-300, rows[name][key])) for name in own for key in QUOTED])).min(
        initial=1.0
    )
    lines = [
        "# Marked tokens against the model's own distribution",
        "",
        "By `python -m benchmarks.text_distribution`, which states the test before the runs.",
        "",
        f"| chooser | tokens | runs × draws | smallest run KS p | {' | '.join(QUOTED)} | largest gap |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        cells = [f"{row['runs']} × {row['draws of each']:,}", f"{min(row['KS p of each run']):.2g}"]
        cells += [f"{row[key]:.2g}" for key in QUOTED] + [f"{row['largest gap']:.1e}"]
        lines.append(f"| {name} | {row['tokens']} | {' | '.join(cells)} |")
    verdict = "no distortion found" if smallest > 0.01 else "DISTORTED"
    lines += ["", f"Smallest p-value of the marks after Holm: {smallest:.2g}; {verdict}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int)
    parser.add_argument("--draws", type=float, default=DRAWS)
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--table", action="store_true")
    told = parser.parse_args()
    for name in [] if told.table else [told.case] if told.case else CASES:
        measure(name, runs=told.runs or CASES[name].runs, draws=int(told.draws))
    text = table(json.loads(RESULT.read_text()))
    RESULT.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
