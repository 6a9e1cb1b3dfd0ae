"""Plans with bands: what a row of correlated noise costs, how long a plan takes, and how much noise is left at one ε.

``python -m benchmarks.bands [cost|plans] [--coordinates D] [--rounds N]``

*cost*: CPU time of one step's integers at 4 and 16 bands over that at 1, on one thread; medians of interleaved rounds,
once all rows are kept. The sum and the way back to float32 are left out, for they are the same.

*plans*: ``Plan.for_budget(bands="auto")`` for a data set of 50,000, batches of 500 and three
passes: the number chosen, the expected noise in the weights over that of one band, and CPU seconds of the search.
"""

import argparse
import time

import numpy as np
import torch

from privguard._random import Stream
from privguard.accounting.bands import coefficients, expected_error
from privguard.training.noise.correlation import Correlation
from privguard.training.noise.exact import draw_row, rows
from privguard.training.plan import Plan

DEVIATION = 2.0**28  # steps of the grid in one σ, as at a million coordinates
KEPT = (4, 16)


def cost(coordinates: int, rounds: int) -> None:
    row, *_ = layout = rows({"w": torch.zeros(coordinates, dtype=torch.float64)}, lead=True)
    source = Stream.from_entropy("bands")
    steps = rounds + max(KEPT)
    correlations = {b: Correlation(coefficients(b, steps=steps, momentum=0.9), steps=steps) for b in KEPT}
    taken: dict[int, list[float]] = {b: [] for b in (1, *KEPT)}
    for position in range(steps):
        child = source.child(position)
        began = time.process_time()
        draw_row(row.count, deviation=DEVIATION, source=child.child(*row.label), past=None)
        taken[1].append(time.process_time() - began)
        for b, correlation in correlations.items():
            began = time.process_time()
            correlation.keep(correlation.draw(position, rows=layout, deviation=DEVIATION, source=child))
            taken[b].append(time.process_time() - began)
    medians = {b: float(np.median(times[max(KEPT) :])) for b, times in taken.items()}
    for b, median in medians.items():
        print(f"d={coordinates:.0e}, b={b}: {median / coordinates * 1e9:.1f} ns, {median / medians[1]:.2f} of b = 1")


def plans() -> None:
    _plan(epsilon=2.0, bands=1, momentum=0.0)  # imports apart
    for momentum in (0.9, 0.0):
        for epsilon in (1.0, 3.0, 8.0):
            began = time.process_time()
            chosen = _plan(epsilon=epsilon, bands="auto", momentum=momentum)
            seconds = time.process_time() - began
            part = _noise_left(chosen, momentum) / _noise_left(_plan(epsilon, bands=1, momentum=momentum), momentum)
            took = f", {seconds:.1f} s" if momentum > 0 else ""  # later ones are partly remembered
            print(
                f"ε={epsilon:g}, momentum={momentum:g}: {chosen.bands} bands, {part:.3f} of the noise{took}", flush=True
            )


def _plan(epsilon: float, *, bands: "int | str", momentum: float) -> Plan:
    size = {"examples": 50_000, "batch_size": 500}
    return Plan.for_budget(
        epsilon=epsilon, delta=1e-5, epochs=3, max_grad_norm=1.0, bands=bands, momentum=momentum, **size
    )


def _noise_left(plan: Plan, momentum: float) -> float:
    return plan.noise_multiplier * expected_error(plan.strategy, steps=plan.steps, momentum=momentum)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="cost|plans", help="all where none is named")
    parser.add_argument("--coordinates", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=11)
    given = parser.parse_args()
    if strangers := set(given.parts) - {"cost", "plans"}:
        parser.error(f"{', '.join(sorted(strangers))}: expected cost or plans")
    torch.set_num_threads(1)
    if "cost" in given.parts or not given.parts:
        cost(given.coordinates, given.rounds)
    if "plans" in given.parts or not given.parts:
        plans()


if __name__ == "__main__":
    main()
