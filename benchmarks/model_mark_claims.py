# SPDX-License-Identifier: Apache-2.0
"""The claims part of ``benchmarks.model_mark``: false alarms, false claims, honest claims."""

import dataclasses
import hashlib
import sys
from typing import Any

import numpy as np
import torch
from scipy.stats import binom
from torch import nn

from benchmarks.model_mark_tasks import RESULTS, digits, replace_own, small_models
from privguard import _canon
from privguard.attest.notary import LocalNotary
from privguard.attest.statement import SigningKey
from privguard.watermark.claims import commitment, evidence, false_claims, offline
from privguard.watermark.claims.leaf import Leaf
from privguard.watermark.model import align, theft, triggers, weights
from privguard.watermark.model.bundle import Bundle
from privguard.watermark.model.classifier import Public, Suspect
from privguard.watermark.model.embed import Lesson
from privguard.watermark.model.theft import Means
from privguard.watermark.secret import Secret


def false_alarms() -> dict[str, Any]:
    """Innocent models under random keys: 100,000 tests for each mark, counted at 1e-2, 1e-3 and 1e-4."""
    tests, models, rng = 100_000, small_models(20), np.random.default_rng(0)
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
        leaves=20,
    )


def forge(attempts: int = 1_000) -> dict[str, Any]:
    """Every false-claim drill, 1,000 attempts of 20 triggers each; the notaries' logs are emptied every 3."""
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
    lines += [
        "",
        "Budget of each attempt: ten surrogate models, eight gradient steps on all of them for each adversarial input,",
        "2²⁰ keys or pulses (the luckiest of them drawn from its exact law), 20 triggers, any number of queries.",
    ]
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
        made = commitment.commit(secret, model=offline.tensors_digest("digits", unmarked), marks=plans, by=owner)
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
