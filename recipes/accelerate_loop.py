# SPDX-License-Identifier: Apache-2.0
"""A loop for accelerate on scikit-learn's digits, made private; the changed lines are marked with #.

python recipes/accelerate_loop.py --run runs/digits
torchrun --nproc-per-node 2 -- recipes/accelerate_loop.py --run runs/digits     (see two_processes.sh)
"""

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import privguard as pg
from privguard import PrivateAccelerator  #


def train(run: Path, *, epochs: float) -> nn.Module:
    """Train privately into the run folder."""
    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.from_numpy(images / 16).float(), torch.from_numpy(labels))
    plan = pg.Plan.for_budget(
        epsilon=3.0, delta=1e-4, examples=1797, batch_size=256, epochs=epochs, max_grad_norm=0.5
    )  #
    accelerator = PrivateAccelerator(plan=plan, run=run, seal_to=[run.parent / "team.key"], cpu=True)  #
    model = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=4.0, momentum=0.9)
    loader = DataLoader(data, batch_size=256, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for _ in range(-(-plan.steps // len(loader))):
        for inputs, targets in loader:
            with accelerator.accumulate(model):
                losses = functional.cross_entropy(model(inputs), targets, reduction="none")  #
                accelerator.backward(losses)
                optimizer.step()
                optimizer.zero_grad()
    if accelerator.is_main_process:
        print(accelerator.claim())
    accelerator.end_training()
    return model


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--run", type=Path, default=Path("runs/digits/run"))
    options.add_argument("--tiny", action="store_true", help="two epochs, for a quick look")
    given = options.parse_args()
    key = given.run.parent / "team.key"
    if not key.exists():
        key.parent.mkdir(parents=True, exist_ok=True)
        pg.Key.generate().write(key)
    train(given.run, epochs=2 if given.tiny else 30)


if __name__ == "__main__":
    main()
