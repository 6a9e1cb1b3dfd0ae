# SPDX-License-Identifier: Apache-2.0
"""The copies part of ``benchmarks.model_mark``: extraction through the API, recipients, a private model, reading."""

import sys
import time
import tracemalloc
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.stats import binom
from torch import Tensor, nn

from benchmarks.model_mark_tasks import SEEDS, Task, committed, mnist, replace_own, small_models, untrained
from privguard.attest.notary import LocalNotary
from privguard.watermark.claims.leaf import Leaf, Tree
from privguard.watermark.model import align, responses, theft, weights
from privguard.watermark.model.classifier import Public, Suspect
from privguard.watermark.model.theft import Means
from privguard.watermark.secret import Secret


def extraction() -> dict[str, Any]:
    """The API-response mark on MNIST: hard-label extraction with 10,000 in-domain queries, at most 0.5 % altered."""
    rows = []
    for seed in SEEDS:
        task = mnist(seed, attacker=10_000)
        model = task.train(seed)
        plan = responses.plan(classes=10)
        leaf = Leaf(mark="responses", index=0, seed=np.random.default_rng(seed).bytes(32))
        mark = responses.ResponseMark(leaf, pulse=bytes(64), settings=plan.settings)
        asked = task.attacker[0]
        clean = Suspect(model)(asked.numpy())
        given = torch.tensor(mark.answer(asked.numpy(), clean))
        altered = list(mark.log.values())
        queries = np.stack([line.query for line in altered])
        row: dict[str, Any] = {"altered": len(altered), "share": len(altered) / len(asked)}
        for name, student_of in (("same", partial(untrained, task, seed)), ("other", task.other)):
            for epochs in (40,):
                student = student_of()
                means = Means(
                    inputs=asked, labels=given, generator=torch.Generator().manual_seed(4000 + seed), batch_size=128
                )
                means.train(student, means.supervised, epochs=epochs, rate=1e-3)
                said = Suspect(student)(queries)
                found = responses.verdict(said, altered, classes=10)
                key = f"{name}, {epochs} epochs"
                row[key] = [found.log10_p, found.matches, theft.accuracy(student, *task.test)]
        innocent = replace_own(task, 6).train(9_000 + seed)
        row["innocent"] = [responses.verdict(Suspect(innocent)(queries), altered, classes=10).log10_p, 0, 0]
        served = mark.answer(task.test[0].numpy(), Suspect(model)(task.test[0].numpy()))
        row["accuracy_model"] = theft.accuracy(model, *task.test)
        row["accuracy_served"] = float(np.mean(np.array(served) == task.test[1].numpy()))
        print("responses", seed, row, file=sys.stderr, flush=True)
        rows.append(row)
    return {"seeds": rows}


def extraction_table(result: dict[str, Any]) -> str:
    rows = result["seeds"]
    lines = ["| student | log10 p: median / worst | matches | student's accuracy |", "|---|---|---|---|"]
    for key in [name for name in rows[0] if "epochs" in name or name == "innocent"]:
        p, hits, right = (np.array([row[key][place] for row in rows]) for place in range(3))
        lines.append(f"| {key} | {np.median(p):.1f} / {p.max():.1f} | {np.median(hits):.0f} | {np.median(right):.4f} |")
    cost = [100 * (row["accuracy_model"] - row["accuracy_served"]) for row in rows]
    altered = np.median([row["altered"] for row in rows])
    lines += [
        "",
        f"{altered:.0f} of 10,000 answers altered; accuracy of what is served: −{np.median(cost):.2f} points.",
    ]
    return "\n".join(lines)


def tracing() -> dict[str, Any]:
    """100 recipients of one MNIST model: who leaked, also after fine-tuning and after averaging two copies."""
    rows = []
    for seed in SEEDS:
        task = mnist(seed)
        model = task.train(seed)
        unmarked = theft.tensors(model)
        shapes = {name: value.shape for name, value in unmarked.items() if value.ndim > 1}
        plan = weights.recipients_plan(shapes, recipients=100)
        pulse = np.random.default_rng(seed).bytes(64)
        secret = Secret.generate()
        leaves = Tree.derive(secret, [("recipients", 100)]).leaves["recipients"]
        rng = np.random.default_rng(seed)
        first, second = (int(value) for value in rng.choice(100, 2, replace=False))
        copies = [
            weights.embed_recipient(unmarked, leaves[who], unmarked=unmarked, pulse=pulse, settings=plan.settings)
            for who in (first, second)
        ]
        means = Means(inputs=task.attacker[0], labels=task.attacker[1], generator=torch.Generator().manual_seed(seed))
        average = {name: (copies[0][name] + copies[1][name]) / 2 for name in unmarked}
        tuned = theft.tensors(theft.fine_tune(rate=1e-3, epochs=20)(theft.load(model, copies[0]), means))
        both = theft.tensors(theft.fine_tune(rate=1e-3, epochs=20)(theft.load(model, average), means))
        innocent = align.align(
            theft.tensors(replace_own(task, 6).train(6_000 + seed)), unmarked=unmarked,
            layers=align.chain({name: value.shape for name, value in unmarked.items()}),
        )  # fmt: skip
        row = {
            "accuracy_cost": theft.accuracy(model, *task.test)
            - theft.accuracy(theft.load(model, copies[0]), *task.test)
        }
        suspects = {
            "leaked": (copies[0], {first}), "fine-tuned": (tuned, {first}), "two averaged": (average, {first, second}),
            "two averaged, fine-tuned": (both, {first, second}), "innocent": (innocent, set()),
        }  # fmt: skip
        for name, (suspect, guilty) in suspects.items():
            accused, verdicts = weights.trace(suspect, leaves, unmarked=unmarked, pulse=pulse, plan=plan)
            z = max(found.matches for found in verdicts)
            row[name] = {
                "found": len(guilty & set(accused)),
                "guilty": len(guilty),
                "wrong": len(set(accused) - guilty),
                "z": z,
            }
        print("trace", seed, row, file=sys.stderr, flush=True)
        rows.append(row)
    return {"seeds": rows, "family": false_accusations()}


def false_accusations(*, trials: int = 20_000) -> dict[str, Any]:
    """How often anybody is accused wrongly: half the suspects innocent, half the copy of one recipient.

    Each trial has fresh leaves and a fresh pulse; the models are small (one matrix of 64 × 64), so that there can be
    many. A copy of recipient 0 makes 99 innocents beside one leaker.
    """
    rng, models = np.random.default_rng(0), [theft.tensors(model) for model in small_models(20)]
    unmarked, plan = models[0], weights.recipients_plan({"2.weight": (64, 64)}, recipients=100)
    wrong = {"innocent model": 0, "another's copy": 0}
    found = 0
    for trial in range(trials // 2):
        leaves = [Leaf(mark="recipients", index=index, seed=rng.bytes(32)) for index in range(100)]
        pulse = rng.bytes(64)
        leaked = weights.embed_recipient(unmarked, leaves[0], unmarked=unmarked, pulse=pulse, settings=plan.settings)
        blurred = {name: value + 0.05 * rng.standard_normal(value.shape, np.float32) for name, value in leaked.items()}
        for name, suspect in (("innocent model", models[1 + trial % 19]), ("another's copy", blurred)):
            accused = set(weights.trace(suspect, leaves, unmarked=unmarked, pulse=pulse, plan=plan)[0])
            found += name == "another's copy" and 0 in accused
            wrong[name] += bool(accused - {0} if name == "another's copy" else accused)
    limit = int(binom.isf(0.01, trials, 1e-3))
    return {"trials": trials, "wrong": wrong, "leaker_found": found, "limit": limit}


def tracing_table(result: dict[str, Any]) -> str:
    rows = result["seeds"]
    lines = ["| suspect | leakers found | wrongly accused | largest z, median |", "|---|---|---|---|"]
    for name in [key for key in rows[0] if key != "accuracy_cost"]:
        found, guilty, wrong = (sum(row[name][key] for row in rows) for key in ("found", "guilty", "wrong"))
        z = np.median([row[name]["z"] for row in rows])
        lines.append(f"| {name} | {found} of {guilty} | {wrong} | {z:.1f} |")
    cost, family = np.median([100 * row["accuracy_cost"] for row in rows]), result["family"]
    wrong = sum(family["wrong"].values())
    lines += [
        "",
        f"100 recipients, family-wise level 1e-3. Accuracy cost: {cost:.2f} points (median).",
        "",
        f"Somebody accused wrongly: {wrong} of {family['trials']:,} trials (small models, fresh keys, half of them",
        f"another's copy); at 1e-3, {family['trials'] // 1000} are expected, more than {family['limit']} come with",
        f"a chance of 1 %. Leaker found: {family['leaker_found']:,} of {family['trials'] // 2:,}.",
    ]
    return "\n".join(lines)


def reading_cost() -> dict[str, Any]:
    """One pass over 100 M parameters in 25 tensors of 2,000 × 2,000; CPU seconds, and memory beyond the two models."""
    rng, names = np.random.default_rng(0), [f"layer.{number}.weight" for number in range(25)]
    unmarked = {name: rng.standard_normal((2000, 2000), np.float32) for name in names}
    leaves = [Leaf(mark="weights", index=index, seed=rng.bytes(32)) for index in range(32)]
    plan = weights.plan(dict.fromkeys(names, (2000, 2000)), leaves=32)
    suspect = weights.embed(unmarked, leaves, pulse=bytes(64), settings=plan.settings)
    seconds = []
    for _ in range(5):
        start = time.process_time()
        reading = weights.read(suspect, leaves, unmarked=unmarked, pulse=bytes(64), plan=plan)
        seconds.append(time.process_time() - start)
    tracemalloc.start()
    weights.read(suspect, leaves, unmarked=unmarked, pulse=bytes(64), plan=plan)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {"seconds": seconds, "peak_bytes": peak, "tensor_bytes": 2000 * 2000 * 4, "z": reading.z}


def reading_table(result: dict[str, Any]) -> str:
    return (
        f"Reading 32 leaves on 100 M float32 parameters: {np.median(result['seconds']):.2f} CPU s (median of 5), "
        f"extra memory at its peak {result['peak_bytes'] / 1e6:.1f} MB, "
        f"the largest tensor being {result['tensor_bytes'] / 1e6:.0f} MB."
    )


def private() -> dict[str, Any]:
    """A model trained by DP-SGD, marked afterwards with 10,000 public images that it never saw: nothing is spent."""
    rows = []
    for seed in SEEDS:
        task = mnist(seed, attacker=10_000)
        public_inputs, public_labels = task.attacker
        model = dp_sgd(task, seed)
        bundle = committed(model, 784, LocalNotary.generate(bits=2048))
        public = Public(inputs=public_inputs, labels=public_labels, generator=torch.Generator().manual_seed(seed))
        marked = bundle.embed(model, public=public)
        found = bundle.read_triggers(Suspect(marked))
        read = bundle.read_weights(theft.tensors(marked))
        rows.append(
            {
                "before": theft.accuracy(model, *task.test),
                "after": theft.accuracy(marked, *task.test),
                "triggers": found.log10_p,
                "weights": 0.0 if read is None else read.log10_p,
            }
        )
        print("private", seed, rows[-1], file=sys.stderr, flush=True)
    return {"seeds": rows}


def dp_sgd(task: Task, seed: int, *, steps: int = 200, batch: int = 256, sigma: float = 1.0) -> nn.Module:
    """Textbook DP-SGD (clip 1, noise sigma) by functional per-example gradients; here only the mark is measured."""
    generator = torch.Generator().manual_seed(seed)
    model = task.network(generator)
    names = [name for name, _ in model.named_parameters()]

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(torch.func.functional_call(model, parameters, (x[None],)), y[None])

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(steps):
        chosen = torch.randint(len(task.own[0]), (batch,), generator=generator)
        found = gradients(dict(model.named_parameters()), task.own[0][chosen], task.own[1][chosen])
        sizes = torch.stack([found[name].flatten(1).norm(dim=1) for name in names]).norm(dim=0)
        factors = (1.0 / sizes).clamp(max=1.0)
        for name, item in model.named_parameters():
            clipped = torch.einsum("b,b...->...", factors, found[name])
            item.grad = (clipped + sigma * torch.randn(item.shape, generator=generator)) / batch
        optimizer.step()
    return model


def private_table(result: dict[str, Any]) -> str:
    rows = result["seeds"]
    cost = [100 * (row["before"] - row["after"]) for row in rows]
    middle = {key: np.median([row[key] for row in rows]) for key in rows[0]}
    return (
        f"DP-SGD (σ 1, C 1, 200 steps of 256): accuracy {middle['before']:.4f}, after embedding {middle['after']:.4f}; "
        f"cost {np.median(cost):.2f} points (worst {max(cost):.2f}). "
        f"Triggers 1e{middle['triggers']:.0f}, weights 1e{middle['weights']:.0f}."
    )
