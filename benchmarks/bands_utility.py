# SPDX-License-Identifier: Apache-2.0
"""MNIST at one ε, with independent and with correlated noise, each at the learning rate that suits it best.

``python -m benchmarks.bands_utility [--seeds N] [--rates R …] [--tuning N]``

The recipe's network, 50,000 of the training images, batches of 500, three passes, C = 0.1, momentum 0.9 and
(ε = 3, δ = 1e-5). Both kinds of noise are tuned alike: the same rates, on seeds of their own, by the accuracy on 10,000
held-out images. Then pairs of runs that begin with the same weights are counted by their errors on the 10,000 test
images; the bound is one-sided, by Student's t. The average of the weights is evaluated beside the last ones, untuned.
One run takes about half a minute.
"""

import argparse
import json
import os
import statistics
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy import stats
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import privguard as pg
from privguard.training.average import WeightAverage
from recipes.image_classifier import accuracy, from_file, network, split

DATA = Path(os.environ.get("PRIVGUARD_DATA", Path(__file__).parents[2] / "shared" / "data")) / "mnist" / "mnist.npz"
RESULTS = Path(__file__).parent / "results" / "bands_utility.json"
KINDS = {"independent": 1, "correlated": "auto"}
RATES = (2.0, 3.0, 4.5, 6.0, 9.0, 13.0)
FIRST_TUNED = 1_000  # seeds from here on choose the rates and are in no result


class Accuracy(NamedTuple):
    """Of the last weights on test images, of the averaged ones, and of the last on held-out images."""

    last: float
    averaged: float
    held_out: float


def train(parts: dict[str, TensorDataset], *, kind: str, rate: float, seed: int) -> Accuracy:
    plan = pg.Plan.for_budget(
        epsilon=3.0,
        delta=1e-5,
        examples=50_000,
        batch_size=500,
        epochs=3,
        max_grad_norm=0.1,
        bands=KINDS[kind],
        momentum=0.9,
    )
    torch.manual_seed(seed)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    average = WeightAverage(model, optimizer, decay=0.97)
    loader = DataLoader(parts["train"], batch_size=512, shuffle=True)
    with tempfile.TemporaryDirectory() as folder:
        key = Path(folder) / "team.key"
        pg.Key.generate().write(key)
        options = pg.RunOptions(quiet=True, checkpoint_every=plan.steps)
        private = pg.privatize(model, optimizer, loader, plan, run=f"{folder}/run", seal_to=[key], options=options)
        for images, labels in private.batches():
            private.backward(functional.cross_entropy(private.model(images), labels, reduction="none"))
            private.step()
    model.eval()
    last, held_out = accuracy(model, parts["test"]), accuracy(model, parts["held out"])
    with average.swapped():
        return Accuracy(last, accuracy(model, parts["test"]), held_out)


def tuned(parts: dict[str, TensorDataset], kind: str, *, rates: Sequence[float], seeds: Iterable[int]) -> float:
    """The rate with the best mean accuracy on held-out images."""
    means: dict[float, float] = {}
    for rate in rates:
        means[rate] = statistics.mean(train(parts, kind=kind, rate=rate, seed=seed).held_out for seed in seeds)
        print(f"{kind} noise, rate {rate:g}: {means[rate]:.4f} of held-out images", flush=True)
    return max(means, key=lambda rate: means[rate])


def summary(pairs: Sequence[dict[str, Accuracy]]) -> dict[str, Any]:
    """Errors with correlated noise over those with independent noise: mean and upper 95 % bound."""
    lines: dict[str, Any] = {}
    for which in ("last", "averaged"):
        ratios = [(1 - getattr(p["correlated"], which)) / (1 - getattr(p["independent"], which)) for p in pairs]
        mean, spread = statistics.mean(ratios), statistics.stdev(ratios) if len(ratios) > 1 else float("nan")
        bound = mean + float(stats.t.ppf(0.95, len(ratios) - 1)) * spread / len(ratios) ** 0.5
        medians = {kind: statistics.median(getattr(p[kind], which) for p in pairs) for kind in KINDS}
        lines[which] = {"errors, mean ratio": mean, "upper 95 % bound": bound, "median accuracy": medians}
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--tuning", type=int, default=2, help="seeds that choose the rates")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    images, test = from_file(DATA)
    part, held_out = split(images, held_out=10_000)
    parts = {"train": part, "test": test, "held out": held_out}
    seeds = range(FIRST_TUNED, FIRST_TUNED + options.tuning)
    rates = {kind: tuned(parts, kind, rates=options.rates, seeds=seeds) for kind in KINDS}
    pairs: list[dict[str, Accuracy]] = []
    for seed in range(options.seeds):
        pairs.append({kind: train(parts, kind=kind, rate=rates[kind], seed=seed) for kind in KINDS})
        shown = "; ".join(f"{kind} {a.last:.4f}, averaged {a.averaged:.4f}" for kind, a in pairs[-1].items())
        print(f"seed {seed}: {shown}", flush=True)
    result = {
        "rates": rates,
        "runs": [{kind: a._asdict() for kind, a in pair.items()} for pair in pairs],
        **summary(pairs),
    }
    for which in ("last", "averaged"):
        print(which, json.dumps(result[which]))
    if (options.seeds, options.tuning) == (10, 2):  # anything less replaces no result
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
