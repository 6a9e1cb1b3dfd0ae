# SPDX-License-Identifier: Apache-2.0
"""Tokens to detection when the model is at hand: power at 10⁻⁶ under sixteen sub-keys, and what a wrong model costs.

Steps and writer as in benchmarks/text_power; p of each token is the step's own, or that of the steps at another
temperature. "Tokens" is the least number at which 90 % of 300 texts reach p ≤ 10⁻⁶, plain and model combined as the
product does. Run: ``python -m benchmarks.text_with_model``.
"""

import json
from pathlib import Path

import numpy as np

from benchmarks.text_corpus import WIDTH, scale_for, step_logits
from benchmarks.text_writer import SECRET, choose, profile_of
from privguard.watermark.text.reading.detect import Detector
from privguard.watermark.text.reading.ngrams import Documents
from privguard.watermark.text.reading.with_model import read_with_model
from privguard.watermark.text.scheme import Gumbel

RESULT = Path(__file__).parent / "results" / "text_with_model.json"
BARS = {0.2: 350, 0.4: 150, 1.0: 50}
DOCUMENTS = 150


def written(nats: float, tokens: int, *, heat: float) -> tuple[np.ndarray, np.ndarray]:
    """(D, T) marked texts and the log-probability of each token at ``heat`` times the temperature."""
    profile, rng, scale = profile_of(Gumbel(), subkeys=16), np.random.default_rng(4), scale_for(nats)
    streams = [profile.stream(SECRET, subkey=int(j)) for j in rng.integers(0, 16, DOCUMENTS)]
    out, told = rng.integers(0, WIDTH, (DOCUMENTS, 4)), [np.full((DOCUMENTS, 4), -np.log(WIDTH))]
    for _ in range(tokens):
        logits = step_logits(rng, DOCUMENTS, scale)
        token = choose(profile, streams, logits, out[:, -4:])
        guess = logits.astype(np.float64) / heat
        guess -= guess.max(1, keepdims=True)
        chance = guess[np.arange(DOCUMENTS), token] - np.log(np.exp(guess).sum(1))
        out, told = np.concatenate([out, token[:, None]], 1), [*told, chance[:, None]]
    return out, np.concatenate(told, 1)


def needed(text: np.ndarray, told: np.ndarray) -> int:
    """The least number of tokens behind the first four at which 90 % are found; −1 where all are too few."""
    detector = Detector(profile_of(Gumbel(), subkeys=16), SECRET)

    def power(n: int) -> float:
        documents = Documents.of_batch(text[:, : 4 + n])
        return float((read_with_model(detector, documents, told[:, : 4 + n].ravel()).log10_p <= -6).mean())

    low, high = 4, text.shape[1] - 4
    if power(high) < 0.9:
        return -1
    while high - low > max(1, low // 30):
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= 0.9 else (middle, high)
    return high


def main() -> None:
    rows = []
    for nats, most in BARS.items():
        for heat in (1.0, 1.3):
            row = {"nats": nats, "temperature of the model": heat, "bar": most}
            rows.append({**row, "tokens": needed(*written(nats, 2 * most, heat=heat))})
            print(rows[-1], flush=True)
    RESULT.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
