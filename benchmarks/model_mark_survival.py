# SPDX-License-Identifier: Apache-2.0
"""The survival part of ``benchmarks.model_mark``: what is left of the marks after every theft, and what it cost."""

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.model_mark_tasks import RESULTS, SEEDS, Task, committed, untrained
from privguard.attest.notary import LocalNotary
from privguard.watermark.model import survival, theft
from privguard.watermark.model.classifier import Public
from privguard.watermark.model.embed import Lesson
from privguard.watermark.model.theft import Means

MNIST_ATTACKS = (
    "none", "fine-tune 1e-3", "fine-tune 5e-3", "LoRA rank 4", "prune 80 % + fine-tune", "prune 90 % + fine-tune",
    "int4", "int3", "permute + rescale + fine-tune", "merge 50/50", "overwrite", "distil, hard labels",
)  # fmt: skip


def survive(task_of: Callable[[int], Task], only: tuple[str, ...] = ()) -> dict[str, Any]:
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
        fresh = partial(untrained, task, seed)
        suite = survival.attacks(fresh, task.other)
        chosen = {name: suite[name] for name in only} or suite
        rows = drill.run(chosen, means=means, done=partial(say, task.name, seed))
        plain = bundle.embed(model, public=public, lesson=Lesson(thieves=(), steps=800))
        naive = survival.Drill(
            bundle=bundle, marked=plain, inputs=task.test[0], labels=task.test[1], owner_examples=owner_examples
        )
        few = {name: suite[name] for name in ("none", "fine-tune 1e-3", "fine-tune 5e-3", "prune 80 % + fine-tune")}
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
        "| attack | triggers: median / worst | weights | z | together | points lost (median) | cost |",
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
