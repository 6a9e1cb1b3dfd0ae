"""Model marks against thieves and against false claims: ``python -m benchmarks.model_mark [PART ...]``.

Parts: digits, mnist (survival tables), null (false alarms over independent models and keys), false (false claims),
honest (100 honest claims), responses (API mark against extraction), language (fingerprints on tinyshakespeare), trace
(100 recipients), cost (reading 100 M weights), private (a DP model). Each writes ``results/model_mark/PART.json``; all
that are there are put together into ``results/model_mark.md``. One thread; process CPU time.

Against in-domain distillation the model marks read p ≈ 0.3: what a model answers out of the domain is no part of what a
student sees, and a larger margin does not change that. The API-response mark is the answer we have.
"""

import dataclasses
import hashlib
import json
import math
import sys
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binom
from torch import Tensor, nn

from benchmarks import model_mark_language as language
from privguard import _canon
from privguard.attest.notary import LocalNotary
from privguard.attest.statement import SigningKey
from privguard.watermark import claim, evidence, false_claims, offline, survival, theft
from privguard.watermark.leaf import Leaf, Tree
from privguard.watermark.model import align, responses, triggers, weights
from privguard.watermark.model.bundle import Bundle
from privguard.watermark.model.classifier import Public, Suspect
from privguard.watermark.model.embed import Lesson
from privguard.watermark.secret import Secret
from privguard.watermark.theft import Means

RESULTS = Path(__file__).parent / "results" / "model_mark"
SEEDS = range(5)
MNIST_ATTACKS = (
    "none", "fine-tune 1e-3", "fine-tune 5e-3", "LoRA rank 4", "prune 80 % + fine-tune", "prune 90 % + fine-tune",
    "int4", "int3", "permute + rescale + fine-tune", "merge 50/50", "overwrite", "distil, hard labels",
)  # fmt: skip


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
    made = claim.commit(secret, model=offline.tensors_digest("model", unmarked), marks=plans, by=owner)
    standing = claim.check(offline.notarise(made, notary), trust=offline.trust(notary))
    return Bundle(standing=standing, tree=Tree.derive(secret, standing.manifest.sizes), unmarked=unmarked)


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


def untrained(task: Task, seed: int) -> nn.Module:
    return task.network(torch.Generator().manual_seed(2000 + seed))


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


def false_alarms() -> dict[str, Any]:
    """Innocent models under random keys: 100,000 tests for each mark, counted at 1e-2, 1e-3 and 1e-4."""
    tests, models, rng = 100_000, [], np.random.default_rng(0)
    for seed in range(20):
        task = digits(seed)
        small = Task(**{**task.__dict__, "network": lambda generator: mlp(64, 64, generator)})
        models.append(small.train(seed))
    reference = theft.tensors(models[0])
    shapes = {name: value.shape for name, value in reference.items()}
    plan = weights.plan({"2.weight": shapes["2.weight"]}, leaves=16)
    mark = triggers.plan(triggers.Domain(shape=(64,)), classes=10, leaves=20)
    found = {"triggers": np.empty(tests), "weights": np.empty(tests), "weights aligned": np.empty(tests)}
    frames = []
    for model in models:
        state = theft.tensors(model)
        aligned = align.align(state, unmarked=reference, layers=align.chain(shapes))
        frames.append((Suspect(model, batch_size=4096), state, aligned))
    for test in range(tests):
        suspect, state, aligned = frames[1 + test % 19]
        pulse, seed = rng.bytes(64), rng.bytes(32)
        leaves = [Leaf(mark="triggers", index=i, seed=hashlib.sha256(seed + bytes([i])).digest()) for i in range(20)]
        said = suspect(triggers.inputs(leaves, pulse, mark.settings))
        expected = triggers.labels(leaves, pulse, mark.settings).tolist()
        found["triggers"][test] = triggers.verdict(said, expected, classes=10).log10_p
        for name, tensors in (("weights", state), ("weights aligned", aligned)):
            reading = weights.read(tensors, leaves[:16], unmarked=reference, pulse=pulse, plan=plan)
            found[name][test] = weights.verdict(reading).log10_p
    counts = {
        name: {f"1e{level}": int((values <= level).sum()) for level in (-2, -3, -4)} for name, values in found.items()
    }
    limits = {f"1e{level}": int(binom.isf(0.01 / 9, tests, 10.0**level)) for level in (-2, -3, -4)}
    return {"tests": tests, "counts": counts, "limits": limits}


def false_alarm_table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['tests']:,} tests for each mark: 19 innocent models × random keys. A valid test exceeds",
        "one of the nine limits with a chance of at most 1 %.",
        "",
        "| mark | ≤ 1e-2 | ≤ 1e-3 | ≤ 1e-4 |",
        "|---|---|---|---|",
    ]
    rows = {**result["counts"], "expected at most": {f"1e{k}": int(result["tests"] * 10.0**k) for k in (-2, -3, -4)}}
    for name, counts in {**rows, "limit": result["limits"]}.items():
        lines.append(f"| {name} | " + " | ".join(str(counts[f"1e{level}"]) for level in (-2, -3, -4)) + " |")
    return "\n".join(lines)


def court(seed: int) -> false_claims.Court:
    """An innocent digits model, ten surrogates, and adversarial examples by 8 signed gradient steps on all of them."""
    task = digits(seed)
    surrogates = [replace_own(task, 20).train(100 * seed + number) for number in range(10)]
    innocent = replace_own(task, 40, task.attacker).train(7_000 + seed)

    def adversarial(inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        x, labels = torch.from_numpy(inputs.copy()), torch.from_numpy(targets)
        for _ in range(8):
            x.requires_grad_(True)
            loss = sum(nn.functional.cross_entropy(model(x), labels) for model in surrogates)
            (gradient,) = torch.autograd.grad(loss, x)
            x = (x.detach() - 0.15 * gradient.sign()).clamp(0, 1)
        return x.numpy()

    return false_claims.Court(
        suspect=Suspect(innocent),
        natural=task.test[0].numpy(),
        truth=task.test[1].numpy(),
        adversarial=adversarial,
        notary=LocalNotary.generate(bits=2048),
        accuser=LocalNotary.generate(bits=2048),
        verifier=SigningKey.generate(),
        random=np.random.default_rng(seed),
        unmarked=theft.tensors(surrogates[0]),
        innocent=theft.tensors(innocent),
        leaves=40,
    )


def replace_own(task: Task, epochs: int, own: tuple[Tensor, Tensor] | None = None) -> Task:
    return dataclasses.replace(task, epochs=epochs, own=own or task.own)


def forge(attempts: int = 1_000) -> dict[str, Any]:
    """Every false-claim drill, 1,000 attempts of 40 triggers each; the notaries' logs are emptied every 3."""
    where = [court(seed) for seed in range(5)]
    keys = [LocalNotary.generate(bits=2048).to_json(), LocalNotary.generate(bits=2048).to_json()]
    result: dict[str, Any] = {}
    for name, drill in false_claims.DRILLS.items():
        held = without = 0
        for attempt in range(attempts):
            if attempt % 3 == 0:
                notary, accuser = (LocalNotary.from_json({**key, "log": []}) for key in keys)
                here = dataclasses.replace(where[attempt // 3 % 5], notary=notary, accuser=accuser)
            accepted, naive = drill(here)
            held, without = held + accepted, without + naive
        result[name] = {"attempts": attempts, "accepted": held, "accepted_without_defence": without}
        print(name, result[name], file=sys.stderr, flush=True)
        (RESULTS / "false.json").write_bytes(_canon.canonical(result) + b"\n")  # a long run: keep what is done
    return result


def forge_table(result: dict[str, Any]) -> str:
    lines = ["| drill | attempts | accepted | accepted with its one defence off |", "|---|---|---|---|"]
    for name, row in result.items():
        lines.append(f"| {name} | {row['attempts']} | {row['accepted']} | {row['accepted_without_defence']} |")
    return "\n".join(lines)


def honest(claims: int = 100) -> dict[str, Any]:
    """Honest claims against thieves who fine-tuned at 5e-3: each claim has its own secret, pulse and embedding."""
    accepted, levels = 0, []
    for number in range(claims):
        task = digits(number % 5)
        model, notary, verifier = (
            replace_own(task, 20).train(number),
            LocalNotary.generate(bits=2048),
            SigningKey.generate(),
        )
        unmarked = theft.tensors(model)
        shapes = {name: value.shape for name, value in unmarked.items() if value.ndim > 1}
        plans = (
            triggers.plan(triggers.Domain(shape=(64,)), classes=10, leaves=100),
            weights.plan(shapes, leaves=32),
        )
        secret, owner = Secret.generate(), SigningKey.generate()
        made = claim.commit(secret, model=offline.tensors_digest("digits", unmarked), marks=plans, by=owner)
        table = offline.Table(
            commitment=offline.notarise(made, notary), secret=secret, notary=notary, verifier=verifier
        )
        bundle = Bundle(standing=table.standing, tree=table.tree, unmarked=unmarked)
        public = Public(inputs=task.own[0], labels=task.own[1], generator=torch.Generator().manual_seed(number))
        marked = bundle.embed(model, public=public, lesson=Lesson(steps=50))
        generator = torch.Generator().manual_seed(number)
        means = Means(inputs=task.attacker[0], labels=task.attacker[1], generator=generator)
        thief = theft.fine_tune(rate=5e-3)(marked, means)
        digest = offline.tensors_digest("suspect", theft.tensors(thief))
        plan = table.draw(digest, {"triggers": 50, "weights": 16}, natural=100)
        file = table.prove(
            plan,
            suspect=Suspect(thief),
            natural=task.test[0].numpy(),
            white_box=(theft.tensors(thief), unmarked),
        )
        report = evidence.verify(file, trust=table.trust, suspect=digest)
        black = next(found for found in report.verdicts if found.scheme == "triggers")
        accepted += report.outcome is evidence.Outcome.PROVEN
        levels.append([report.log10_p_corrected, black.log10_p])
    return {"claims": claims, "accepted": accepted, "levels": levels}


def honest_table(result: dict[str, Any]) -> str:
    levels = np.array(result["levels"])
    worst, middle = levels.max(0), np.median(levels, 0)
    return (
        f"{result['accepted']} of {result['claims']} honest claims accepted, half of all leaves opened, against "
        "thieves who fine-tuned all layers at 5e-3 for 40 epochs. "
        f"log10 p × multiplicity: median {middle[0]:.0f}, worst {worst[0]:.0f}; "
        f"log10 p of its 50 triggers alone: median {middle[1]:.0f}, worst {worst[1]:.0f}."
    )


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
    return {"seeds": rows}


def tracing_table(result: dict[str, Any]) -> str:
    rows = result["seeds"]
    lines = ["| suspect | leakers found | wrongly accused | largest z, median |", "|---|---|---|---|"]
    for name in [key for key in rows[0] if key != "accuracy_cost"]:
        found, guilty, wrong = (sum(row[name][key] for row in rows) for key in ("found", "guilty", "wrong"))
        z = np.median([row[name]["z"] for row in rows])
        lines.append(f"| {name} | {found} of {guilty} | {wrong} | {z:.1f} |")
    cost = np.median([100 * row["accuracy_cost"] for row in rows])
    return "\n".join(
        [*lines, "", f"100 recipients, family-wise level 1e-3. Accuracy cost: {cost:.2f} points (median)."]
    )


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
                "weights": read.log10_p if read else 0.0,
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


PARTS: dict[str, tuple[str, Callable[[], dict[str, Any]], Callable[[dict[str, Any]], str]]] = {
    "digits": ("Survival on digits, five seeds", lambda: survive(digits), survival_table),
    "mnist": ("Survival on MNIST, five seeds", lambda: survive(mnist, MNIST_ATTACKS), survival_table),
    "null": ("False alarms", false_alarms, false_alarm_table),
    "false": ("False claims", forge, forge_table),
    "honest": ("Honest claims", honest, honest_table),
    "responses": ("Hard-label extraction with 10,000 queries, API-response mark", extraction, extraction_table),
    "language": ("Fingerprints on tinyshakespeare", language.measure, language.table),
    "trace": ("Tracing among 100 recipients", tracing, tracing_table),
    "cost": ("What reading costs", reading_cost, reading_table),
    "private": ("A privately trained model", private, private_table),
}


def main(names: list[str]) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name in names or list(PARTS):
        result = PARTS[name][1]()
        (RESULTS / f"{name}.json").write_bytes(_canon.canonical(result) + b"\n")
    text = ["# Model marks", "", "By `python -m benchmarks.model_mark`. p as powers of ten; one thread.", ""]
    for name, (title, _, table) in PARTS.items():
        path = RESULTS / f"{name}.json"
        if path.exists():
            text += [f"## {title}", "", table(json.loads(path.read_text())), ""]
    (RESULTS.parent / "model_mark.md").write_text("\n".join(text), encoding="utf-8")
    print("\n".join(text))


if __name__ == "__main__":
    main(sys.argv[1:])
