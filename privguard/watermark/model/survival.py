# SPDX-License-Identifier: Apache-2.0
"""The theft drill: every attack on one marked model, and the table and picture of what survived.

A drill uses all leaves at home and opens none in public, so it burns nothing. Its table is honest about three things at
once: what is left of the mark, what the thief lost, and what the theft cost.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import numpy as np
from torch import Tensor, nn

from privguard.records import Measurement
from privguard.watermark.claims.challenge import Answerer
from privguard.watermark.model import classifier, embed, theft
from privguard.watermark.model.bundle import Bundle
from privguard.watermark.model.classifier import Public, Suspect
from privguard.watermark.model.theft import Attack, Masked, Means

FLOOR = -6.0  # log10 p at which a mark counts as surviving
FRONTS = {  # what an operator does to queries and answers alone
    "input noise 0.2": {"noise": 0.2},
    "temperature 1": {"temperature": 1.0},
    "temperature 2": {"temperature": 2.0},
    "trigger filter": {"filter_below": 0.02},
}


@final
@dataclass(frozen=True, kw_only=True)
class Row(Measurement):
    """One attack: log10 p by mark and together, matches and z, accuracy, points lost against the marked model, cost.

    ``cost`` is examples trained on by the thief over examples trained on by the owner; ``weights`` is ``None`` where
    the suspect has other tensors.
    """

    attack: str
    triggers: float
    weights: float | None
    together: float
    matches: int
    z: float | None
    accuracy: float
    lost_points: float
    cost: float


@final
@dataclass(frozen=True, kw_only=True)
class Drill:
    """What is attacked and how it is judged: the marked model, its bundle, test data, and the owner's training work."""

    bundle: Bundle
    marked: nn.Module
    inputs: Tensor
    labels: Tensor
    owner_examples: int

    def judge(self, attack: str, suspect: nn.Module, *, spent: int = 0, front: Answerer | None = None) -> Row:
        """One row for one suspect; ``front`` answers in its stead where queries or answers are masked.

        Args:
            attack: the attack's name.
            suspect: the attacked model.
            spent: examples that the thief trained on, counted once for each pass.
            front: from queries to labels, in the model's stead; None for the model itself.
        """
        answer = front or Suspect(suspect)
        found = self.bundle.read_triggers(answer)
        read = self.bundle.read_weights(theft.tensors(suspect))
        right = np.array(answer(self.inputs.numpy())) == self.labels.numpy()
        before = theft.accuracy(self.marked, self.inputs, self.labels)
        verdicts = [found] if read is None else [found, read]
        return Row(
            attack=attack,
            triggers=found.log10_p,
            weights=None if read is None else read.log10_p,
            together=self.bundle.together(verdicts),
            matches=int(found.matches),
            z=None if read is None else read.matches,
            accuracy=float(right.mean()),
            lost_points=100 * (before - float(right.mean())),
            cost=spent / self.owner_examples,
        )

    def run(
        self, attacks: Mapping[str, Attack], *, means: Means, done: Callable[[Row], None] = lambda _: None
    ) -> tuple[Row, ...]:
        """Every attack on the marked model, and every front that only masks its answers.

        Args:
            attacks: attacks by name.
            means: what the thief has.
            done: told each row as it is there.
        """
        rows: list[Row] = []
        for name, attack in attacks.items():
            own = replace(means, examples_trained=0)
            rows.append(self.judge(name, attack(self.marked, own), spent=own.examples_trained))
            done(rows[-1])
        for name, options in FRONTS.items():
            front = Masked(self.marked, **options)
            rows.append(self.judge(name, self.marked, front=front))
            done(rows[-1])
        return tuple(rows)


def attacks(fresh: Callable[[], nn.Module], other: Callable[[], nn.Module], *, epochs: int = 40) -> dict[str, Attack]:
    """The suite for a classifier; ``fresh`` makes an untrained twin, ``other`` one of another architecture.

    Args:
        fresh: makes an untrained twin.
        other: makes an untrained network of another architecture.
        epochs: passes that an attack trains.
    """
    tune = theft.fine_tune
    return {
        "none": theft.nothing,
        "fine-tune 1e-3": tune(rate=1e-3, epochs=epochs),
        "fine-tune 5e-3": tune(rate=5e-3, epochs=epochs),
        "LoRA rank 4": theft.low_rank(epochs=epochs),
        "new head": theft.new_head(epochs=epochs),
        "prune 50 % + fine-tune": theft.prune(0.5, epochs=epochs),
        "prune 80 % + fine-tune": theft.prune(0.8, epochs=epochs),
        "prune 90 % + fine-tune": theft.prune(0.9, epochs=epochs),
        "int8": theft.quantise(8),
        "int4": theft.quantise(4),
        "int3": theft.quantise(3),
        "permute + rescale": theft.reorder,
        "permute + rescale + fine-tune": theft.then(theft.reorder, tune(rate=1e-3, epochs=epochs)),
        "merge 50/50": theft.merge(fresh, epochs=epochs),
        "task vector 1.5": theft.task_vector(epochs=epochs),
        "overwrite": overwrite,
        "prune 80 % + fine-tune + int4": theft.then(theft.prune(0.8, epochs=epochs), theft.quantise(4)),
        "permute + overwrite + fine-tune": theft.then(theft.reorder, overwrite, tune(rate=1e-3, epochs=epochs // 4)),
        "distil, soft": theft.distil(fresh, queries=theft.in_domain, epochs=epochs),
        "distil, soft, with noise": theft.distil(fresh, queries=theft.with_noise, epochs=epochs),
        "distil, hard labels": theft.distil(fresh, queries=theft.in_domain, hard=True, epochs=epochs),
        "distil, hard, with noise": theft.distil(fresh, queries=theft.with_noise, hard=True, epochs=epochs),
        "distil, hard, other architecture": theft.distil(other, queries=theft.in_domain, hard=True, epochs=epochs),
    }


def overwrite(model: nn.Module, means: Means) -> nn.Module:
    """The thief teaches 100 triggers of the same kind with labels of its own, as the owner would.

    Args:
        model: the stolen model.
        means: what the thief has.
    """
    shape = (100, *means.inputs.shape[1:])
    rng = np.random.default_rng(means.generator.initial_seed() ^ 0x0E77)
    own = rng.integers(0, 2, shape).astype(np.float32)
    labels = rng.integers(0, int(means.labels.max()) + 1, 100)
    public = Public(inputs=means.inputs, labels=means.labels, generator=means.generator)
    lesson = embed.Lesson()
    work = lesson.steps * public.batch_size * 2
    work += len(lesson.thieves) * (lesson.steps // lesson.rehearse_every) * lesson.thieves[0].steps * public.batch_size
    means.examples_trained += work
    return classifier.embed(model, triggers=own, labels=labels, public=public, lesson=lesson)


def markdown(rows: Sequence[Row]) -> str:
    """The survival table in Markdown; p as powers of ten.

    Args:
        rows: rows of the table.
    """
    lines = [
        "| attack | triggers | weights | together | accuracy | points lost | cost |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        weights = "–" if row.weights is None or row.z is None else f"1e{row.weights:.0f} (z {row.z:.1f})"
        lines.append(
            f"| {row.attack} | 1e{row.triggers:.0f} ({row.matches}) | {weights} | 1e{row.together:.0f} "
            f"| {row.accuracy:.3f} | {row.lost_points:+.1f} | {100 * row.cost:.0f} % |"
        )
    return "\n".join(lines) + "\n"


def picture(rows: Sequence[Row], path: Path) -> None:
    """The survival picture: −log10 p of every mark under every attack, with the line that proves, as SVG or PNG.

    Args:
        rows: rows of the table.
        path: where the picture is written; its ending says as what.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.32 * len(rows) + 1.4), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(rows))
    shown = [max(0.0, -row.triggers) for row in rows], [max(0.0, -(row.weights or 0.0)) for row in rows]
    for offset, (name, values, colour) in zip(
        (-0.2, 0.2), (("triggers", shown[0], "#3465a4"), ("weights", shown[1], "#c17d11")), strict=True
    ):
        axes.barh(places + offset, values, height=0.38, label=name, color=colour)
    axes.axvline(-FLOOR, color="black", linewidth=1, linestyle="--", label="p = 1e-6")
    axes.set_yticks(places, [f"{row.attack}  ({row.lost_points:+.1f} points)" for row in rows])
    axes.set_xscale("symlog", linthresh=10)
    axes.set_xlim(left=0)
    axes.invert_yaxis()
    axes.set_xlabel("−log10 p (more is stronger evidence)")
    axes.legend(loc="lower right")
    figure.savefig(path)
