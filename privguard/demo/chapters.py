# SPDX-License-Identifier: Apache-2.0
"""The chapters of the demonstration, each a few calls of the library: what a team would write for its own model."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias, final

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from privguard.audit import Assignment, Coins, Examples, Membership, Observed, OneRun, Schedule, judge
from privguard.audit.membership.audit import run as attack
from privguard.audit.references.reference import draw_inclusion, train_references
from privguard.checkpoint.keys.key import Key
from privguard.checkpoint.store import Snapshot, load, save
from privguard.demo.digits import OTHERS, Digits, WithCanaries, network, with_canaries
from privguard.demo.settings import Settings
from privguard.integrations.torch_loop import privatize
from privguard.records import Claim, Measurement, Verdict
from privguard.runs.folder import EVIDENCE, keep, snapshots
from privguard.runs.options import RunOptions
from privguard.training.plan import Plan
from privguard.watermark.claims.evidence import Outcome, Report
from privguard.watermark.claims.offline import Table
from privguard.watermark.model import theft, triggers, weights
from privguard.watermark.model.bundle import Bundle
from privguard.watermark.model.classifier import Public, Suspect
from privguard.watermark.model.embed import Lesson

Tensors: TypeAlias = dict[str, NDArray[np.float32]]

WEIGHT_LEAVES = 64
SUSPECTS = ("fine-tuned", "pruned", "quantised", "honest")
_ATTACKED = 2 * OTHERS  # members in the membership attack, against as many others: the owner's public ones, the thief's


@final
@dataclass(frozen=True)
class Stage:
    """Where a demonstration plays: its folder, its settings and its data."""

    folder: Path
    settings: Settings
    data: Digits

    @property
    def key(self) -> Path:
        """The key that opens what this demonstration seals."""
        return self.folder / "demo.key"

    def accuracy(self, model: nn.Module) -> float:
        """Share of the test images that a model reads rightly."""
        return theft.accuracy(model, self.data.test.inputs, self.data.test.labels)


@final
@dataclass(frozen=True, kw_only=True)
class Theft(Measurement):
    """One suspect: how well it reads digits, what the challenge said, log10 of the corrected p, and the signed file."""

    suspect: str
    accuracy: float
    outcome: Outcome
    log10_p: float
    evidence: str


def train(
    stage: Stage,
    plan: Plan,
    images: Examples,
    coins: Coins,
    *,
    folder: Path,
    done: Callable[[float], None] = lambda _: None,
) -> tuple[Observed, Claim]:
    """Train on images and on the canaries that are in; every canary's score in clipping norms, and the claim."""
    model = WithCanaries(stage.settings.hidden, len(coins))
    optimizer = torch.optim.SGD(
        [
            {"params": model.network.parameters(), "lr": stage.settings.learning_rate, "momentum": 0.9},
            {"params": model.canary.parameters(), "lr": 1.0},  # without momentum a score is the plain sum of its steps
        ]
    )
    loader = DataLoader(with_canaries(images, coins), batch_size=4096, shuffle=True)

    def losses(batch: Sequence[torch.Tensor]) -> torch.Tensor:
        inputs, labels, canaries, is_image = batch
        logits, canary = model(inputs, canaries)
        return functional.cross_entropy(logits, labels, reduction="none") * is_image + canary

    private = privatize(
        model, optimizer, loader, plan, run=folder, seal_to=[stage.key], losses=losses, options=RunOptions(quiet=True)
    )
    for taken, batch in enumerate(private.batches(), start=1):
        private.backward(losses(batch))
        private.step()
        done(taken / plan.steps)
    moved = -model.canary.weight.detach()[0].double().numpy()
    return Observed(moved * plan.expected_batch_size / plan.max_grad_norm, coins), private.claim()


def reopen(stage: Stage) -> nn.Module:
    """The classifier as it comes out of the newest sealed checkpoint; the canaries' weights stay behind."""
    newest = snapshots(stage.folder)[-1]
    held = load(newest, Key.read(stage.key)).weights
    model = network(stage.settings.hidden)
    own = "network."
    model.load_state_dict({name.removeprefix(own): value for name, value in held.items() if name.startswith(own)})
    return model


def commit(stage: Stage, unmarked: Tensors) -> Table:
    """Fix the marks of a model before anybody can know them; the claim's folder is what ``privguard mark`` reads."""
    shapes = {name: value.shape for name, value in unmarked.items() if value.ndim > 1}
    domain = triggers.Domain(shape=(64,))
    marks = (
        triggers.plan(domain, classes=10, leaves=stage.settings.triggers),
        weights.plan(shapes, leaves=WEIGHT_LEAVES, strength=0.06),  # a quarter of it is proven after pruning, too
    )
    table = Table.commit("digits", unmarked, marks=marks)
    table.write(stage.folder / "claim")
    return table


def release(stage: Stage, model: nn.Module, *, table: Table, unmarked: Tensors) -> nn.Module:
    """The marked copy that goes out: only the secret and the owner's public images enter, so it spends nothing."""
    open_to_all = stage.data.public
    generator = torch.Generator().manual_seed(0)
    public = Public(inputs=open_to_all.inputs, labels=open_to_all.labels, generator=generator)
    bundle = Bundle(standing=table.standing, tree=table.tree, unmarked=unmarked)
    marked = bundle.embed(model, public=public, lesson=Lesson(steps=stage.settings.teaching, keep=100.0))
    (stage.folder / "models").mkdir()
    for name, one in {"unmarked": model, "released": marked}.items():
        snapshot = Snapshot(weights=one.state_dict(), optimizer={}, run=name, step=0)
        save(snapshot, stage.folder / "models" / f"{name}.sealed", to=[stage.key])
    return marked


def steal(stage: Stage, released: nn.Module) -> dict[str, nn.Module]:
    """Three thieves at work on the released model, and somebody honest who trained an own one on the same images."""
    own = stage.data.thief
    means = theft.Means(inputs=own.inputs, labels=own.labels, generator=torch.Generator().manual_seed(1))
    epochs = stage.settings.thief_epochs
    honest = network(stage.settings.hidden)
    means.train(honest, means.supervised, epochs=epochs, rate=2e-3)
    models = (
        theft.fine_tune(rate=1e-3, epochs=epochs)(released, means),
        theft.prune(stage.settings.prune, epochs=epochs)(released, means),
        theft.quantise(stage.settings.bits)(released, means),
        honest,
    )
    return dict(zip(SUSPECTS, models, strict=True))


def challenge(stage: Stage, name: str, suspect: nn.Module, *, table: Table, unmarked: Tensors) -> Theft:
    """Challenge one suspect; the signed evidence and the suspect lie in the folder, for anybody to verify again."""
    tensors = theft.tensors(suspect)
    sizes = {"triggers": stage.settings.triggers // len(SUSPECTS), "weights": WEIGHT_LEAVES // len(SUSPECTS)}
    natural = stage.data.test.inputs[:100].numpy()
    file, proof = table.challenge(
        name, Suspect(suspect), tensors=tensors, unmarked=unmarked, sizes=sizes, natural=natural
    )
    table.notary.write(stage.folder / "claim" / "notary.json")  # it remembers which leaves are burned
    (stage.folder / "suspects").mkdir(exist_ok=True)
    safetensors.numpy.save_file(tensors, stage.folder / "suspects" / f"{name}.safetensors")
    path = stage.folder / EVIDENCE / f"mark-{name}.json"
    keep(_verdicts(name, proof), stage.folder, name=f"mark-{name}")
    file.write(path)
    return Theft(
        suspect=name,
        accuracy=stage.accuracy(suspect),
        outcome=proof.outcome,
        log10_p=proof.log10_p_corrected,
        evidence=str(path),
    )


def audit_run(stage: Stage, plan: Plan, seen: Observed) -> OneRun:
    """Hold the run's canaries against its claim. The positive control is a twin without noise, on public images."""
    design = stage.settings.design()
    bare, coins = replace(plan, noise_multiplier=0.0, epsilon=None), design.flip()
    with tempfile.TemporaryDirectory() as folder:
        control, _ = train(stage, bare, stage.data.public, coins, folder=Path(folder) / "control")
    verdict = judge(design, seen, control=control)
    keep(verdict.findings, stage.folder, name="audit")
    return verdict


def attack_membership(stage: Stage, model: nn.Module) -> Membership:
    """The strongest attack without canaries: does the model tell its members from images that it never saw?"""
    settings, data = stage.settings, stage.data
    members = Examples(data.private.inputs[:_ATTACKED], data.private.labels[:_ATTACKED])
    others = Examples(
        torch.cat([data.public.inputs, data.thief.inputs]), torch.cat([data.public.labels, data.thief.labels])
    )
    references = train_references(
        lambda: network(settings.hidden),
        torch.cat([members.inputs, others.inputs]),
        torch.cat([members.labels, others.labels]),
        included=draw_inclusion(settings.references, 2 * _ATTACKED, seed=1),
        schedule=Schedule(epochs=30, batch_size=64, learning_rate=0.1),
    )
    found = attack(model, members, others, references=references, assignment=Assignment.RANDOMISED).record
    keep([found], stage.folder, name="membership")
    return found


def train_ordinarily(stage: Stage) -> nn.Module:
    """The same network without privacy, for comparison; it is kept nowhere."""
    images, model = stage.data.private, network(stage.settings.hidden)
    means = theft.Means(inputs=images.inputs, labels=images.labels, generator=torch.Generator().manual_seed(0))
    means.train(model, means.supervised, epochs=30, rate=2e-3)
    return model


def _verdicts(suspect: str, proof: Report) -> list[Verdict]:
    """The verdict on each mark, with the tests that it pays for: marks, claims and challenges of this owner."""
    tests = proof.multiplicity * len(proof.verdicts)
    return [
        replace(verdict, multiplicity=tests, details={**verdict.details, "suspect": suspect})
        for verdict in proof.verdicts
    ]
