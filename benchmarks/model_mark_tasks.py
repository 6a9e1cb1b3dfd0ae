# SPDX-License-Identifier: Apache-2.0
"""The models that the model-mark benchmarks mark and steal: digits and MNIST, split for owner, attacker and test."""

import dataclasses
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from privguard.attest.notary import LocalNotary
from privguard.attest.statement import SigningKey
from privguard.watermark.claims import commitment, offline
from privguard.watermark.claims.leaf import Tree
from privguard.watermark.model import theft, triggers, weights
from privguard.watermark.model.bundle import Bundle
from privguard.watermark.model.theft import Means
from privguard.watermark.secret import Secret

RESULTS = Path(__file__).parent / "results" / "model_mark"
SEEDS = range(5)


@dataclass(frozen=True)
class Task:
    """One data set, split between owner, attacker and test, with an untrained network and the owner's training."""

    name: str
    own: tuple[Tensor, Tensor]
    attacker: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    network: Callable[[torch.Generator], nn.Module]
    other: Callable[[], nn.Module]
    epochs: int
    batch_size: int

    def train(self, seed: int) -> nn.Module:
        """The owner's model."""
        generator = torch.Generator().manual_seed(seed)
        model = self.network(generator)
        means = Means(inputs=self.own[0], labels=self.own[1], generator=generator, batch_size=self.batch_size)
        means.train(model, means.supervised, epochs=self.epochs, rate=1e-3)
        return model


def mlp(inputs: int, hidden: int, generator: torch.Generator) -> nn.Module:
    model = nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 10)
    )
    with torch.no_grad():
        for item in model.parameters():
            if item.dim() > 1:
                item.copy_((2 * torch.rand(item.shape, generator=generator) - 1) / math.sqrt(item.shape[1]))
            else:
                item.zero_()
    return model


def digits(seed: int) -> Task:
    """700 images for the owner, 700 for the attacker, 397 for the test; MLP 64-256-256-10."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    x, y = torch.from_numpy((x[order] / 16).astype(np.float32)), torch.from_numpy(y[order])
    return Task(
        "digits", (x[:700], y[:700]), (x[700:1400], y[700:1400]), (x[1400:], y[1400:]),
        lambda generator: mlp(64, 256, generator),
        lambda: nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 10)),
        epochs=40, batch_size=64,
    )  # fmt: skip


def mnist(seed: int, *, attacker: int = 1_000) -> Task:
    """50,000 images for the owner, 1,000 for the attacker, the usual 10,000 for the test; MLP 784-256-256-10."""
    folder = Path(os.environ.get("PRIVGUARD_DATA", Path(__file__).parents[2] / "shared" / "data"))
    data = np.load(folder / "mnist" / "mnist.npz")
    order = np.random.default_rng(seed).permutation(60_000)
    x = torch.from_numpy(data["train_x"][order].astype(np.float32) / 255).flatten(1)
    y = torch.from_numpy(data["train_y"][order].astype(np.int64))
    test = torch.from_numpy(data["test_x"].astype(np.float32) / 255).flatten(1)
    labels = torch.from_numpy(data["test_y"].astype(np.int64))
    taken = slice(50_000, 50_000 + attacker)
    return Task(
        "mnist", (x[:50_000], y[:50_000]), (x[taken], y[taken]), (test, labels),
        lambda generator: mlp(784, 256, generator),
        lambda: nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 10)),
        epochs=4, batch_size=128,
    )  # fmt: skip


def committed(model: nn.Module, inputs: int, notary: LocalNotary, *, strength: float = 0.1) -> Bundle:
    """A claim of 100 triggers and 32 weight leaves on an unmarked model, through the local notary."""
    unmarked = theft.tensors(model)
    shapes = {name: value.shape for name, value in unmarked.items() if value.ndim > 1}
    plans = (
        triggers.plan(triggers.Domain(shape=(inputs,)), classes=10, leaves=100),
        weights.plan(shapes, leaves=32, strength=strength),
    )
    secret, owner = Secret.generate(), SigningKey.generate()
    made = commitment.commit(secret, model=offline.tensors_digest("model", unmarked), marks=plans, by=owner)
    standing = commitment.check(offline.notarise(made, notary), trust=offline.trust(notary))
    return Bundle(standing=standing, tree=Tree.derive(secret, standing.manifest.sizes), unmarked=unmarked)


def untrained(task: Task, seed: int) -> nn.Module:
    return task.network(torch.Generator().manual_seed(2000 + seed))


def replace_own(task: Task, epochs: int, own: tuple[Tensor, Tensor] | None = None) -> Task:
    return dataclasses.replace(task, epochs=epochs, own=own or task.own)


def small_models(count: int) -> list[nn.Module]:
    """Innocent digits models, MLP 64-64-64-10, each with its own split and start."""
    tasks = [digits(seed) for seed in range(count)]
    small = [dataclasses.replace(task, network=lambda generator: mlp(64, 64, generator)) for task in tasks]
    return [task.train(seed) for seed, task in enumerate(small)]
