# SPDX-License-Identifier: Apache-2.0
"""privguard's own private step behind the per-step audit: the real clipper, ledger, noise and optimizer.

The model is a row of linear layers without bias whose loss is the sum of their outputs, so a record's gradient is the
record itself: canary j is a row with one entry at coordinate j, and a record of zeros has no gradient. The coordinates
are cut into tensors of several sizes, because a step may be right for one tensor and wrong for the next: noise that
reaches half of them, or the same noise in each, shows only where several are watched.
"""

import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from privguard._random import Stream
from privguard.accounting.ledger import Ledger
from privguard.audit.steps import checks
from privguard.audit.steps.audit import StepDesign, Trace, observe, step_finding
from privguard.audit.steps.checks import FALSE_ALARM, Examination, examine
from privguard.errors import PrivacyError
from privguard.records import Finding
from privguard.runs.folder import LEDGER
from privguard.training.attach import attach
from privguard.training.clip import Clipper, trainable
from privguard.training.plan import Plan
from privguard.training.step import PrivateStep

RAW_NORM = 10.0  # of a canary's gradient before the clip, in clipping norms
GIANT_NORM = 1e4  # the same for the first canary: without a clip of its own it would drown all others
TENSORS = 6  # that the canaries' coordinates are spread over, from 1 part in 21 to 6
_RECORDS = 2_000  # of the synthetic data set that the sampler is drawn over


@final
class _Tensors(nn.Module):
    """Linear layers side by side, ``TENSORS`` or as many as there are canaries: the sum of their outputs (n,)."""

    def __init__(self, canaries: int) -> None:
        super().__init__()
        shares = np.arange(1, min(TENSORS, canaries) + 1)
        ends = np.unique(np.maximum(np.arange(1, len(shares) + 1), canaries * np.cumsum(shares) // int(shares.sum())))
        self._sizes: list[int] = np.diff(ends, prepend=0).tolist()
        self.layers = nn.ModuleList(nn.Linear(size, 1, bias=False) for size in self._sizes)
        for layer in self.layers:
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        parts = inputs.split(self._sizes, dim=1)
        return torch.cat([layer(part) for layer, part in zip(self.layers, parts, strict=True)], 1).sum(1)

    def coordinates(self) -> torch.Tensor:
        """All weights (canaries,), in the order of the canaries."""
        return torch.cat([layer.weight.detach()[0] for layer in self.layers]).clone()  # type: ignore[index]


@final
class AuditedStep:
    """A ``Stepper`` around the parts that a private run is made of.

    ``ledger`` is written in ``folder``. Canary 0 is a giant, whose raw gradient is 10⁴ clipping norms long.
    """

    def __init__(self, plan: Plan, *, canaries: int, folder: Path, source: Stream | None = None) -> None:
        self.canaries = canaries
        self.plan = plan
        self._rows = torch.full((canaries,), RAW_NORM * plan.max_grad_norm)
        self._rows[0] = GIANT_NORM * plan.max_grad_norm
        self._model = _Tensors(canaries)
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=1.0)
        self.clipper: Clipper = attach(self._model, max_grad_norm=plan.max_grad_norm)
        self.ledger = Ledger.create(folder / LEDGER, {"plan": plan.facts()})
        noise = source or Stream.from_entropy("audited step")
        self.private = PrivateStep(
            plan, clipper=self.clipper, ledger=self.ledger, noise=noise.child("noise"), reserve=64
        )

    def step(self, records: NDArray[np.int64]) -> NDArray[np.float64]:
        """See ``privguard.audit.steps.audit.Stepper.step``."""
        before = self._model.coordinates()
        self.private.position()
        padding = torch.zeros(1, dtype=torch.bool)  # an empty draw goes forward as one masked row
        self.clipper.begin(torch.ones(len(records), dtype=torch.bool) if len(records) else padding)
        self.clipper.backward(self._model(self._inputs(records)))
        self.private.finish(self._optimizer, trainable(self._model))
        moved = (before - self._model.coordinates()).double()
        return (moved * self.plan.expected_batch_size / self.plan.max_grad_norm).numpy()

    def close(self) -> None:
        """Settle the ledger and give the model back."""
        self.private.settle()
        self.ledger.close()
        self.clipper.close()

    def _inputs(self, records: NDArray[np.int64]) -> torch.Tensor:
        inputs = torch.zeros(max(1, len(records)), self.canaries)
        own = np.flatnonzero(records < self.canaries)
        chosen = torch.from_numpy(records[own])
        inputs[torch.from_numpy(own), chosen] = self._rows[chosen]
        return inputs


def audit_step(
    plan: Plan, *, canaries: int = 1_000, trials: int = 200, confidence: float = 0.95, level: float = FALSE_ALARM
) -> tuple[Finding, Examination]:
    """Audit this installation's private step: a finding against the plan's claim, and a check for each known bug.

    The positive control is the same step without noise. The sampler is drawn as often as the step is taken. A correct
    step is refuted with probability at most 1 - ``confidence``, and fails any check with probability ``level``.

    Args:
        plan: the plan whose step is audited.
        canaries: how many canaries get a coin in each trial.
        trials: how many steps are taken.
        confidence: of the bound, in (0, 1).
        level: chance that a correct step fails any check, in (0, 1).

    Raises:
        PrivacyError: the plan has bands, of which the checks know nothing.
    """
    if plan.bands > 1:
        raise PrivacyError(
            f"bands={plan.bands}: this audit knows independent noise and plain Poisson sampling alone; audit the plan "
            "without bands, and the run with bands by its canaries"
        )
    design = StepDesign(
        canaries=canaries,
        trials=trials,
        noise_multiplier=plan.noise_multiplier,
        sample_rate=plan.sample_rate,
        steps=plan.steps,
        delta=plan.delta,
        confidence=confidence,
    )
    trace, recorded = _traced(plan, design)
    bare, _ = _traced(replace(plan, noise_multiplier=0.0, epsilon=None), design)
    others = {"every step recorded": recorded, **_sampled(plan, trials)}
    examination = examine(trace, noise_multiplier=plan.noise_multiplier, giant=0, others=others, level=level)
    return step_finding(trace, design, control=bare), examination


def _traced(plan: Plan, design: StepDesign) -> tuple[Trace, float]:
    """What the steps of ``plan`` showed, and the p-value that its ledger recorded every one of them."""
    whole = replace(plan, steps=max(plan.steps, design.trials))
    with tempfile.TemporaryDirectory() as folder:
        step = AuditedStep(whole, canaries=design.canaries, folder=Path(folder))
        try:
            trace = observe(step, design)
            return trace, checks.every_step_recorded(taken=step.private.taken, recorded=step.ledger.position)
        finally:
            step.close()


def _sampled(plan: Plan, trials: int) -> dict[str, float]:
    """The p-value that the plan's sampler is Poisson; nothing where it takes every record in every step."""
    if plan.sample_rate == 1:
        return {}
    source, epoch = Stream.from_entropy("audited sampler"), math.ceil(1 / plan.sample_rate)
    sampler, steps = plan.sampler(source.child("groups")), range(max(trials, epoch))
    draws = [sampler.draw(examples=_RECORDS, source=source.child(step), position=step) for step in steps]
    return {"Poisson inclusion": checks.poisson_inclusion(draws, records=_RECORDS, rate=plan.sample_rate)}
