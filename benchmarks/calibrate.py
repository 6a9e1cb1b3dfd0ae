# SPDX-License-Identifier: Apache-2.0
"""How long calibration takes, how much of the budget it spends, and how the odd corners compare with finer grids.

    python -m benchmarks.calibrate

Times are process CPU seconds, the median of interleaved rounds (three, or ``--rounds``) in one process.

What was tried and did not help:

* An RDP bracket before the search: RDP is up to sixty times off where ε is small (0.61 for 0.009), so the bracket had
  to be searched anyway. A guess from the normal limit of the privacy loss is as good and free.
* A start grid that follows each try's own rough size: the cost then jumps by a factor of 1.4 between neighbouring
  tries and the search walks in circles. One grid per search, chosen at the answer, makes the cost smooth.
* A first grid at the deviation of one step's loss: right for MNIST-like settings, 4 s instead of 0.9 s where the loss
  is heavy-tailed (q = 1e-5), and there the fine grid's rounding is larger than what it gains.
* More Rényi orders (2048 to 8192) for small ε: 0.1 s per event in the library's loops, and the figure stays loose.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

from privguard.accounting.accountant import epsilon, price
from privguard.accounting.calibrate import Budget, dp_sgd, least_noise
from privguard.records import Relation

RESULTS = Path(__file__).parent / "results"
SIX = [(256 / 60000, 14000, 1e-5, e) for e in (1.0, 3.0, 8.0)] + [(0.01, 1000, 1e-6, e) for e in (1.0, 3.0, 8.0)]
CORNERS = [  # rate, σ, steps, δ, and the finest-grid or closed-form figure
    (256 / 60000, 1.1, 14000, 1e-5, 2.3758),
    (0.01, 0.6, 1000, 1e-6, 8.7114),
    (0.01, 0.3, 1000, 1e-5, 69.8157),
    (0.5, 0.5, 2000, 1e-5, 1628.695),
    (1.0, 1.0, 10, 1e-5, 17.856587),
    (1e-5, 0.5, 100000, 1e-9, 2.1446),
    (0.001, 10.0, 100, 1e-6, 0.002770),
    (0.2, 1.0, 500, 1e-5, 38.1702),
    (0.01, 20.0, 100, 1e-5, 0.012611),
    (0.001, 1.0, 1, 1e-5, 0.0091116),
    (0.1, 0.1, 1, 1e-5, 84.038769),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    epsilon([(dp_sgd(sample_rate=0.1, noise_multiplier=1.0), 1)], delta=1e-5)  # imports apart
    times: dict[tuple[float, ...], list[float]] = {setting: [] for setting in SIX}
    noises: dict[tuple[float, ...], float] = {}
    for _ in range(rounds):
        for setting in SIX:
            rate, steps, delta, target = setting
            begun = time.process_time()
            noises[setting] = least_noise(Budget(epsilon=target, delta=delta), sample_rate=rate, steps=int(steps))
            times[setting].append(time.process_time() - begun)
    six = [six_row(setting, noises[setting], times[setting]) for setting in SIX]
    corners = [corner_row(*corner) for corner in CORNERS]
    text = table(six) + "\n" + table(corners)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "calibrate.json").write_text(json.dumps({"six": six, "corners": corners}, indent=2) + "\n")
    (RESULTS / "calibrate.md").write_text(text)
    print(text)


def six_row(setting: tuple[float, ...], noise: float, times: list[float]) -> dict[str, str]:
    rate, steps, delta, target = setting
    spent = epsilon([(dp_sgd(sample_rate=rate, noise_multiplier=noise), int(steps))], delta=delta)
    return {
        "q": f"{rate:.6f}",
        "steps": f"{steps:.0f}",
        "δ": f"{delta:g}",
        "target ε": f"{target:g}",
        "σ": f"{noise:.4f}",
        "spent / target": f"{spent / target:.5f}",
        "CPU s": f"{statistics.median(times):.2f}",
        "CPU s, worst": f"{max(times):.2f}",
    }


def corner_row(rate: float, noise: float, steps: int, delta: float, finest: float) -> dict[str, str]:
    begun = time.process_time()
    events = [(dp_sgd(sample_rate=rate, noise_multiplier=noise), steps)]
    found = price(events, delta=delta, relation=Relation.ADD_OR_REMOVE_ONE)
    return {
        "q": f"{rate:.6g}",
        "σ": f"{noise:g}",
        "steps": str(steps),
        "δ": f"{delta:g}",
        "ε": f"{found.epsilon:.6g}",
        "finest": f"{finest:g}",
        "above": f"{100 * (found.epsilon / finest - 1):+.3f} %",
        "interval": f"{found.interval:.2g}",
        "CPU s": f"{time.process_time() - begun:.2f}",
    }


def table(rows: list[dict[str, str]]) -> str:
    head = list(rows[0])
    lines = [f"| {' | '.join(head)} |", f"|{'---:|' * len(head)}", *(f"| {' | '.join(row.values())} |" for row in rows)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
