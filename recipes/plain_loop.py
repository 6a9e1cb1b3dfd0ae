# SPDX-License-Identifier: Apache-2.0
"""A plain PyTorch loop on scikit-learn's digits, made private by four changed lines (marked with #).

python recipes/plain_loop.py --run runs/digits
"""

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import privguard as pg


def digits() -> tuple[TensorDataset, TensorDataset]:
    """1,437 training and 360 test images of 8 × 8 pixels, scaled to [-1, 1]."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / 8 - 1, labels, test_size=360, random_state=0, stratify=labels)
    train_x, test_x, train_y, test_y = (torch.from_numpy(part) for part in parts)
    return TensorDataset(train_x.float(), train_y), TensorDataset(test_x.float(), test_y)


def accuracy(model: nn.Module, test: TensorDataset) -> float:
    images, labels = test.tensors
    with torch.no_grad():
        return (model(images).argmax(1) == labels).float().mean().item()


def train(run: Path, *, epochs: float, quiet: bool = False) -> float:
    """Train privately into the run folder and return the test accuracy."""
    train_set, test_set = digits()
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.7, momentum=0.9)
    loader = DataLoader(train_set, batch_size=512, shuffle=True)
    run.mkdir(parents=True, exist_ok=True)
    pg.Key.generate().write(run / "team.key")  # keep this file elsewhere: it opens the checkpoints

    plan = pg.Plan.for_budget(
        epsilon=3.0, delta=1e-4, examples=1437, batch_size=718, epochs=epochs, max_grad_norm=0.5
    )  #
    private = pg.privatize(
        model, optimizer, loader, plan, run=run, seal_to=[run / "team.key"], options=pg.RunOptions(quiet=quiet)
    )  #
    for images, labels in private.batches():  #
        losses = functional.cross_entropy(private.model(images), labels, reduction="none")
        private.backward(losses)  #
        private.step()  #
    print(private.claim())
    return accuracy(model, test_set)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--run", type=Path, default=Path("runs/digits"))
    options.add_argument("--tiny", action="store_true", help="two epochs, for a quick look")
    given = options.parse_args()
    torch.set_num_threads(1)  # so small a model gains nothing from more
    print(f"test accuracy {train(given.run, epochs=2 if given.tiny else 40):.3f}")


if __name__ == "__main__":
    main()
