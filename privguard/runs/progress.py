# SPDX-License-Identifier: Apache-2.0
"""The bar of a private run: steps, time left and ε so far. Nothing un-noised shows unless it was asked for by name."""

import contextlib
import math
from bisect import bisect_left
from collections.abc import Generator
from typing import Any, final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from privguard.accounting.accountant import epsilon_curve
from privguard.training.plan import Plan

_UNNOISED = ("loss", "grad_norm", "total_flos", "num_input_tokens_seen")  # of what Trainer logs
_POINTS = 20  # at which ε is computed, once; a bar needs no finer steps


@final
class Meter:
    """Progress on stderr. With ``show_loss`` the un-noised training loss is shown on the terminal and kept nowhere."""

    def __init__(self, plan: Plan, *, show_loss: bool, quiet: bool) -> None:
        self._plan = plan
        self._show_loss = show_loss
        self._quiet = quiet
        self._bar: Progress | None = None
        self._done = 0
        self._loss = ""
        self._spent = SpentSoFar(plan)

    @contextlib.contextmanager
    def running(self, done: int) -> Generator[None]:
        """Show the bar for as long as the block runs, ``done`` steps being behind it."""
        self._done = done
        if self._quiet:
            yield
            return
        columns = (
            TextColumn("private steps"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[said]}"),
        )
        with Progress(*columns, console=Console(stderr=True), refresh_per_second=4) as self._bar:
            self._bar.add_task("", total=self._plan.steps, completed=done, said="")
            yield
        self._bar = None

    def step(self) -> None:
        """One more step is done."""
        self._done += 1
        if self._bar is not None:
            self._bar.update(
                self._bar.task_ids[0], completed=self._done, said=f"ε ≤ {self._spent(self._done):.2f}{self._loss}"
            )

    def loss(self, losses: Tensor) -> None:
        """Show the mean loss of this batch, only where that was asked for."""
        if self._show_loss and self._bar is not None:
            self._loss = f" · un-noised loss {losses.detach().mean().item():.3f}"


@final
class SpentSoFar:
    """An upper bound on ε after any number of steps of a plan, from the plan alone.

    ε is computed at twenty points, evenly from the first step to the last; between two of them the later one's counts.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._curve: list[tuple[int, float]] = []

    def __call__(self, steps: int) -> float:
        """The bound after ``steps`` steps, infinite where there is no noise."""
        plan = self._plan
        if plan.noise_multiplier == 0:
            return math.inf
        if not self._curve:
            self._curve = list(epsilon_curve(plan.events(), delta=plan.delta, points=_POINTS))
        points = [point for point, _ in self._curve]
        return self._curve[min(bisect_left(points, plan.rounds(steps)), len(points) - 1)][1]


def public(values: dict[str, Any]) -> dict[str, Any]:
    """``values`` without those that depend on private examples and carry no noise, told apart by Trainer's names."""
    return {name: v for name, v in values.items() if name not in _UNNOISED and not name.startswith("train_")}
