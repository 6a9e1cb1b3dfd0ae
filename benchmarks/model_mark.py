"""Model marks against thieves and against false claims: ``python -m benchmarks.model_mark [PART ...]``.

Parts: digits, mnist (survival tables), null (false alarms over independent models and keys), false (false claims),
honest (100 honest claims), responses (API mark against extraction), language (fingerprints on tinyshakespeare), trace
(100 recipients), cost (reading 100 M weights), private (a DP model). Each writes ``results/model_mark/PART.json``; all
that are there are put together into ``results/model_mark.md``. One thread; process CPU time.

Tried without success against in-domain distillation (the model marks read p ≈ 0.3 there): triggers blended into natural
images (a student agrees on them with the natural label), larger margins, teaching at distilled students' offsets. Out of
domain answers are not part of what a student sees. The API-response mark is the answer we have.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from privguard import _canon
from privguard.attest.notary import LocalNotary
from privguard.attest.statement import SigningKey
from privguard.watermark import claim, offline, survival, theft
from privguard.watermark.leaf import Tree
from privguard.watermark.model import triggers, weights
from privguard.watermark.model.bundle import Bundle
from privguard.watermark.model.classifier import Public
from privguard.watermark.model.embed import Lesson
from privguard.watermark.secret import Secret
from privguard.watermark.theft import Means

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


def mnist(seed: int, *, attacker: int = 5_000) -> Task:
    """50,000 images for the owner, 5,000 for the attacker, the usual 10,000 for the test; MLP 784-256-256-10."""
    import os

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
        epochs=6, batch_size=128,
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
    made = claim.commit(secret, model=offline.tensors_digest("model", unmarked), marks=plans, by=owner)
    standing = claim.check(offline.notarise(made, notary), trust=offline.trust(notary))
    return Bundle(standing=standing, tree=Tree.derive(secret, standing.manifest.sizes), unmarked=unmarked)


def survive(task_of: Callable[[int], Task]) -> dict[str, Any]:
    """The survival table over five seeds, with embedding by plain training beside it on the first two rows."""
    notary, seeds = LocalNotary.generate(), []
    for seed in SEEDS:
        task = task_of(seed)
        model = task.train(seed)
        bundle = committed(model, task.own[0].shape[1], notary)
        public = Public(inputs=task.own[0], labels=task.own[1], generator=torch.Generator().manual_seed(seed))
        start = time.process_time()
        marked = bundle.embed(model, public=public)
        seconds = time.process_time() - start
        owner_examples = task.epochs * len(task.own[0])
        drill = survival.Drill(
            bundle=bundle, marked=marked, inputs=task.test[0], labels=task.test[1], owner_examples=owner_examples
        )
        generator = torch.Generator().manual_seed(1000 + seed)
        means = Means(inputs=task.attacker[0], labels=task.attacker[1], generator=generator)
        fresh = lambda task=task, seed=seed: task.network(torch.Generator().manual_seed(2000 + seed))
        rows = drill.run(survival.attacks(fresh, task.other), means=means, done=lambda row: say(task.name, seed, row))
        plain = bundle.embed(model, public=public, lesson=Lesson(thieves=(), steps=800))
        naive = survival.Drill(
            bundle=bundle, marked=plain, inputs=task.test[0], labels=task.test[1], owner_examples=owner_examples
        )
        tests = survival.attacks(fresh, task.other)
        few = {name: tests[name] for name in ("none", "fine-tune 1e-3", "fine-tune 5e-3", "prune 80 % + fine-tune")}
        beside = [naive.judge(f"plain training: {name}", attack(plain, means)) for name, attack in few.items()]
        before = theft.accuracy(model, *task.test)
        seeds.append(
            {
                "accuracy_before": before,
                "accuracy_marked": theft.accuracy(marked, *task.test),
                "seconds": seconds,
                "rows": [row.to_json() for row in rows],
                "plain": [row.to_json() for row in beside],
            }
        )
        survival.picture(rows, RESULTS / f"{task.name}-seed-{seed}.svg") if seed == 0 else None
    return {"seeds": seeds}


def say(name: str, seed: int, row: survival.Row) -> None:
    print(f"{name} {seed} {row.attack}: together 1e{row.together:.0f}", file=sys.stderr, flush=True)


def survival_table(result: dict[str, Any]) -> str:
    """Median and worst seed of every row, and the cost of embedding."""
    lines = [
        "| attack | triggers: median / worst | weights: median / worst | z: median / worst "
        "| together: median / worst | points lost (median) | cost |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in ("rows", "plain"):
        for place, first in enumerate(result["seeds"][0][kind]):
            rows = [seed[kind][place] for seed in result["seeds"]]
            cell = {key: spread([row[key] for row in rows]) for key in ("triggers", "weights", "together")}
            z = [row["z"] for row in rows if row["z"] is not None]
            zs = f"{np.median(z):.1f} / {min(z):.1f}" if z else "–"
            lost, cost = np.median([row["lost_points"] for row in rows]), np.median([row["cost"] for row in rows])
            lines.append(
                f"| {first['attack']} | {cell['triggers']} | {cell['weights']} | {zs} "
                f"| {cell['together']} | {lost:+.2f} | {100 * cost:.0f} % |"
            )
    costs = [100 * (seed["accuracy_before"] - seed["accuracy_marked"]) for seed in result["seeds"]]
    lines.append("")
    lines.append(f"Accuracy cost of embedding, points, paired: median {np.median(costs):.2f}, worst {max(costs):.2f}.")
    return "\n".join(lines)


def spread(values: list[float | None]) -> str:
    found = [value for value in values if value is not None]
    return f"1e{np.median(found):.0f} / 1e{max(found):.0f}" if found else "–"


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "digits": lambda: survive(digits),
    "mnist": lambda: survive(mnist),
}


def main(names: list[str]) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name in names or list(PARTS):
        result = PARTS[name]()
        (RESULTS / f"{name}.json").write_bytes(_canon.canonical(result) + b"\n")
    written = {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}
    text = ["# Model marks", ""]
    for name in ("digits", "mnist"):
        if name in written:
            text += [f"## Survival on {name}", "", survival_table(written[name]), ""]
    (RESULTS.parent / "model_mark.md").write_text("\n".join(text), encoding="utf-8")
    print("\n".join(text))


if __name__ == "__main__":
    main(sys.argv[1:])
