# SPDX-License-Identifier: Apache-2.0
"""Plans with bands: what a row of correlated noise costs, how long a plan takes, and how much noise is left at one ε.

``python -m benchmarks.bands [cost|plans] [--coordinates D] [--rounds N]``

*cost*: CPU time of one step's noise, from the clipped sum to what is released, at 4 and 16 bands over that at 1, on one
thread; medians (and least times) of interleaved rounds, once all rows are kept.

*plans*: ``Plan.for_budget(bands="auto")`` for a data set of 50,000, batches of 500 and three
passes: the number chosen, the expected noise in the weights over that of one band, and CPU seconds of the search.
"""

import argparse
import time

import numpy as np
import torch

from privguard._random import Stream
from privguard.accounting.bands import coefficients, expected_error
from privguard.training.clip import ClippedSum
from privguard.training.noise.correlation import Correlation
from privguard.training.noise.exact import add_noise, grid_of, rows
from privguard.training.plan import Plan
from privguard.training.ranks import Ranks

KEPT = (4, 16)


def cost(coordinates: int, rounds: int) -> None:
    source = Stream.from_entropy("bands")
    steps = rounds + max(KEPT)
    kept = {b: Correlation(coefficients(b, steps=steps, momentum=0.9), steps=steps) for b in KEPT}
    taken: dict[int, list[float]] = {b: [] for b in (1, *KEPT)}
    for position in range(steps):
        for b, times in taken.items():
            times.append(_noised(coordinates, kept.get(b), position, source.child(position)))
    late = {b: np.array(times[max(KEPT) :]) for b, times in taken.items()}
    for b, times in late.items():
        median, least = (f(times) / f(late[1]) for f in (np.median, np.min))
        nanoseconds = np.median(times) / coordinates * 1e9
        print(f"d={coordinates:.0e}, b={b}: {nanoseconds:.1f} ns, {median:.2f} of b = 1 (least times: {least:.2f})")


def _noised(coordinates: int, correlation: Correlation | None, position: int, source: Stream) -> float:
    clipped = ClippedSum({"w": torch.full((coordinates,), 1e-3, dtype=torch.float64)}, 1.0)
    began = time.process_time()
    if correlation is None:
        add_noise(clipped, multiplier=1.0, source=source)
    else:
        deviation = grid_of(clipped, Ranks()).deviation(1.0)
        made = correlation.draw(position, rows=rows(clipped.gradients, lead=True), deviation=deviation, source=source)
        add_noise(clipped, multiplier=1.0, source=source, drawn=made.rows, gain=made.gain)
    return time.process_time() - began


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
