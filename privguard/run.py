"""The one place where the parts meet: the demonstration, from data to a report that can be read and checked."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from privguard.checkpoint.key import Key
from privguard.checkpoint.store import load
from privguard.integrations.plain import privatize
from privguard.records import Claim, Record
from privguard.report import render
from privguard.report.assemble import assemble
from privguard.training.plan import Plan

_TEST_IMAGES = 360


@final
@dataclass(frozen=True, kw_only=True)
class Demonstration(Record):
    """What the demonstration did: what it cost, how well both models read, and where everything lies."""

    folder: str
    page: str
    claim: Claim
    private_accuracy: float
    ordinary_accuracy: float


def demo(folder: Path, *, quiet: bool = False) -> Demonstration:
    """Train on scikit-learn's digits under ε = 3, seal the checkpoints, open the last one again, write the report.

    Needs no network and no other data. ``folder`` is made anew when it holds an earlier demonstration.

    Raises:
        FileExistsError: the folder holds something that is not a demonstration.
    """
    _make_room(folder)
    Key.generate().write(folder / "demo.key")
    train, test = _digits()
    plan = Plan.for_budget(epsilon=3.0, delta=1e-4, examples=len(train), batch_size=718, epochs=40, max_grad_norm=0.5)
    claim = _train_privately(folder, plan, train, quiet=quiet)
    model = _reopen(folder)
    pages = render.write(assemble(folder), folder)
    return Demonstration(
        folder=str(folder),
        page=str(pages[-1]),
        claim=claim,
        private_accuracy=_accuracy(model, test),
        ordinary_accuracy=_accuracy(_train_ordinarily(train), test),
    )


def _train_privately(folder: Path, plan: Plan, train: TensorDataset, *, quiet: bool) -> Claim:
    model = _model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.7, momentum=0.9)
    loader = DataLoader(train, batch_size=512, shuffle=True)
    private = privatize(model, optimizer, loader, plan, run=folder, seal_to=[folder / "demo.key"], quiet=quiet)
    for images, labels in private.batches():
        private.backward(functional.cross_entropy(private.model(images), labels, reduction="none"))
        private.step()
    return private.claim()


def _train_ordinarily(train: TensorDataset) -> nn.Module:
    model = _model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(40):
        for images, labels in DataLoader(train, batch_size=256, shuffle=True):
            optimizer.zero_grad()
            functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return model


def _reopen(folder: Path) -> nn.Module:
    """The model as it comes out of the newest sealed checkpoint."""
    model = _model()
    newest = max((folder / "checkpoints").glob("*.sealed"))
    model.load_state_dict(dict(load(newest, Key.read(folder / "demo.key")).weights))
    return model


def _model() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))


def _digits() -> tuple[TensorDataset, TensorDataset]:
    """Scikit-learn's 8 × 8 digits, scaled to [-1, 1]: 1,437 to train on, 360 to test on."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / 8 - 1, labels, test_size=_TEST_IMAGES, random_state=0, stratify=labels)
    train_x, test_x, train_y, test_y = (torch.from_numpy(part) for part in parts)
    return TensorDataset(train_x.float(), train_y), TensorDataset(test_x.float(), test_y)


@torch.no_grad()
def _accuracy(model: nn.Module, test: TensorDataset) -> float:
    images, labels = test.tensors
    return (model(images).argmax(1) == labels).float().mean().item()


def _make_room(folder: Path) -> None:
    """An empty folder; an earlier demonstration is removed, anything else is left alone."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / "demo.key").exists() or not (folder / "run.json").exists():
            raise FileExistsError(f"out={folder}: holds something that is not a demonstration; name a new folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
