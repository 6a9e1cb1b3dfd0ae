# SPDX-License-Identifier: Apache-2.0
"""MNIST to (ε = 2.93, δ = 1e-5) with a small convolutional network.

    python recipes/image_classifier.py                       # data from the hub, through `datasets`
    python recipes/image_classifier.py --data mnist.npz      # arrays train_x, train_y, test_x, test_y
    python recipes/image_classifier.py --choose              # how the settings were chosen

The network is the tanh one of Papernot et al. 2021 ("Tempered Sigmoid Activations for Deep Learning with
Differential Privacy"). Its settings were chosen on 10,000 of the 60,000 training images, never on the test images.
"""

import argparse
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import privguard as pg


@dataclass(frozen=True)
class Settings:
    """Chosen with --choose on a split of the training set."""

    batch_size: int = 2048
    epochs: float = 40
    max_grad_norm: float = 0.1
    learning_rate: float = 2.0
    momentum: float = 0.9


def network() -> nn.Module:
    """26,010 parameters."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 8, stride=2, padding=3), nn.Tanh(), nn.MaxPool2d(2, 1)),
        *(nn.Conv2d(16, 32, 4, stride=2), nn.Tanh(), nn.MaxPool2d(2, 1)),
        *(nn.Flatten(), nn.Linear(512, 32), nn.Tanh(), nn.Linear(32, 10)),
    )


def from_file(path: Path) -> tuple[TensorDataset, TensorDataset]:
    arrays = np.load(path)
    return _data(arrays["train_x"], arrays["train_y"]), _data(arrays["test_x"], arrays["test_y"])


def from_hub() -> tuple[TensorDataset, TensorDataset]:
    from datasets import load_dataset

    parts = load_dataset("ylecun/mnist")
    train, test = (
        _data(np.stack([np.asarray(image) for image in parts[name]["image"]]), np.array(parts[name]["label"]))
        for name in ("train", "test")
    )
    return train, test


def _data(images: np.ndarray, labels: np.ndarray) -> TensorDataset:
    """Pixels to [-1, 1], constants that do not come from the data."""
    pixels = torch.from_numpy(images.astype(np.float32)).div_(127.5).sub_(1).unsqueeze(1)
    return TensorDataset(pixels, torch.from_numpy(labels.astype(np.int64)))


def split(train: TensorDataset, *, held_out: int) -> tuple[TensorDataset, TensorDataset]:
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    chosen, rest = order[:held_out], order[held_out:]
    return tuple(TensorDataset(*(tensor[part] for tensor in train.tensors)) for part in (rest, chosen))


@torch.no_grad()
def accuracy(model: nn.Module, data: TensorDataset) -> float:
    images, labels = data.tensors
    right = [
        (model(x).argmax(1) == y).sum().item() for x, y in zip(images.split(1000), labels.split(1000), strict=True)
    ]
    return sum(right) / len(labels)


def train_privately(train: TensorDataset, settings: Settings, *, run: Path, quiet: bool = False) -> nn.Module:
    plan = pg.Plan.for_budget(
        epsilon=2.93,
        delta=1e-5,
        examples=len(train),
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        max_grad_norm=settings.max_grad_norm,
    )
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.learning_rate, momentum=settings.momentum)
    loader = DataLoader(train, batch_size=min(settings.batch_size, 512), shuffle=True)
    run.mkdir(parents=True, exist_ok=True)
    pg.Key.generate().write(run / "team.key")
    private = pg.privatize(
        model, optimizer, loader, plan, run=run, seal_to=[run / "team.key"], options=pg.RunOptions(quiet=quiet)
    )
    for images, labels in private.batches():
        private.backward(functional.cross_entropy(private.model(images), labels, reduction="none"))
        private.step()
    print(private.claim())
    return model


def choose(train: TensorDataset, *, epochs: float) -> None:
    """Accuracy on 10,000 held-out training images; on real data these runs spend budget too."""
    part, held_out = split(train, held_out=10_000)
    for bound in (0.05, 0.1, 0.2):
        for rate in (1.0, 2.0, 4.0):
            settings = Settings(max_grad_norm=bound, learning_rate=rate * 0.1 / bound, epochs=epochs)
            with tempfile.TemporaryDirectory() as folder:
                model = train_privately(part, settings, run=Path(folder) / "run", quiet=True)
            print(f"C {bound:g}, learning rate {settings.learning_rate:g}: {accuracy(model, held_out):.4f}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, help=".npz file; without it the hub's copy is used")
    options.add_argument("--run", type=Path, default=Path("runs/mnist"))
    options.add_argument("--repeats", type=int, default=1, help="independent runs, for a median")
    options.add_argument("--epochs", type=float, default=Settings.epochs)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--choose", action="store_true", help="compare settings on a split of the training set")
    options.add_argument("--tiny", action="store_true", help="2,000 images and one epoch, for a quick look")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    train, test = from_file(given.data) if given.data else from_hub()
    if given.choose:
        choose(train, epochs=given.epochs)
        return
    settings = Settings(epochs=given.epochs)
    if given.tiny:
        train, _ = split(train, held_out=len(train) - 2000)
        settings = Settings(batch_size=256, epochs=1)
    found = []
    for number in range(given.repeats):
        folder = given.run if given.repeats == 1 else given.run / str(number)
        found.append(accuracy(train_privately(train, settings, run=folder), test))
        print(f"test accuracy {found[-1]:.4f}", flush=True)
    if given.repeats > 1:
        print(f"median of {given.repeats}: {statistics.median(found):.4f}")


if __name__ == "__main__":
    main()
