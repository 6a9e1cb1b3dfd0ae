# SPDX-License-Identifier: Apache-2.0
"""An Opacus loop on scikit-learn's digits, taken over: ledger, claim, sealed state, report; then some more steps.

python recipes/from_opacus.py --run runs/digits

The loop is Opacus' own, unchanged. The lines marked with # take the run over and go on with privguard's engine.
"""

import argparse
import warnings
from pathlib import Path

import torch
from opacus import PrivacyEngine
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import privguard as pg
from privguard.integrations.opacus import take_over  #
from privguard.report import render
from privguard.report.assemble import assemble


def train(run: Path, *, epochs: int) -> None:
    """Train with Opacus, take the run over, and train as long again with privguard."""
    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.from_numpy(images / 16).float(), torch.from_numpy(labels))
    model = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    train_loader = DataLoader(data, batch_size=256, shuffle=True)
    engine = PrivacyEngine()
    model, optimizer, loader = engine.make_private(
        module=model, optimizer=optimizer, data_loader=train_loader, noise_multiplier=1.5, max_grad_norm=0.5
    )
    for _ in range(epochs):
        for inputs, targets in loader:
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    print(f"Opacus:     ε={engine.get_epsilon(1e-4):.3f} at δ=0.0001 (its own accountant)")

    key = run.parent / "team.key"
    steps = 2 * epochs * len(loader)
    taken = take_over(engine, model, optimizer, loader, delta=1e-4, run=run, seal_to=[key], steps=steps)  #
    print(f"taken over: {taken.claim}")

    model, optimizer = model.to_standard_module(), optimizer.original_optimizer  #
    private = pg.privatize(model, optimizer, train_loader, taken.plan, run=run, seal_to=[key], resume=True)  #
    for inputs, targets in private.batches():  #
        private.backward(functional.cross_entropy(private.model(inputs), targets, reduction="none"))  #
        private.step()  #
    print(f"gone on:    {private.claim()}")
    print(render.write(assemble(run), run)[-1])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--run", type=Path, default=Path("runs/digits/run"))
    options.add_argument("--tiny", action="store_true", help="one epoch with each engine, for a quick look")
    given = options.parse_args()
    warnings.filterwarnings("ignore", module="opacus")
    torch.set_num_threads(1)  # so small a model gains nothing from more
    key = given.run.parent / "team.key"
    if not key.exists():
        key.parent.mkdir(parents=True, exist_ok=True)
        pg.Key.generate().write(key)
    train(given.run, epochs=1 if given.tiny else 15)


if __name__ == "__main__":
    main()
