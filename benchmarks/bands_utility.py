# SPDX-License-Identifier: Apache-2.0
"""MNIST at one ε, with independent and with correlated noise, and with an average of the weights beside the last ones.

``python -m benchmarks.bands_utility [--seeds N] [--rates R …] [--first SEED]``

The recipe's network, 50,000 of the training images, batches of 500, three passes, C = 0.1, momentum 0.9 and
(ε = 3, δ = 1e-5); accuracy on the 10,000 test images. Seeds are paired: first weights are the same for both mechanisms.
Rates are to be chosen on the 10,000 held-out images, whose accuracy is printed too. One run takes a minute or two.
"""

import argparse
import os
import statistics
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import privguard as pg
from privguard.training.average import WeightAverage
from recipes.image_classifier import accuracy, from_file, network, split

DATA = Path(os.environ.get("PRIVGUARD_DATA", Path(__file__).parents[2] / "shared" / "data")) / "mnist" / "mnist.npz"
BANDS = (1, 16)


class Result(NamedTuple):
    """Accuracy of the last weights on test images, of the averaged ones, and of the last on held-out images."""

    last: float
    averaged: float
    held_out: float


def train(parts: dict[str, TensorDataset], *, bands: int, rate: float, seed: int) -> Result:
    plan = pg.Plan.for_budget(
        epsilon=3.0, delta=1e-5, examples=50_000, batch_size=500, epochs=3, max_grad_norm=0.1, bands=bands, momentum=0.9
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
        return Result(last, accuracy(model, parts["test"]), held_out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--rates", type=float, nargs="+", default=[3.0])
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    whole, test = from_file(DATA)
    part, held_out = split(whole, held_out=10_000)
    parts = {"train": part, "test": test, "held out": held_out}
    for rate in given.rates:
        ratios: list[float] = []
        for seed in range(given.first, given.first + given.seeds):
            found = {b: train(parts, bands=b, rate=rate, seed=seed) for b in BANDS}
            shown = "; ".join(
                f"{b} band(s) {r.last:.4f}, averaged {r.averaged:.4f}, held out {r.held_out:.4f}"
                for b, r in found.items()
            )
            print(f"rate {rate:g}, seed {seed}: {shown}", flush=True)
            ratios.append((1 - found[16].last) / (1 - found[1].last))
        spread = f" ± {np.std(ratios, ddof=1):.3f}" if len(ratios) > 1 else ""
        print(f"rate {rate:g}: errors at 16 bands over those at 1: {statistics.mean(ratios):.3f}{spread}", flush=True)


if __name__ == "__main__":
    main()
