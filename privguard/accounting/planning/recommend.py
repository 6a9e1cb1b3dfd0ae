# SPDX-License-Identifier: Apache-2.0
"""Which batch, how many steps and bands: a table from public numbers alone, and the row that leaves the least noise.

Noise over signal (``privguard.accounting.outlook``) falls with the batch, since σ grows more slowly than it, until
hardly any steps are left to learn in. What a task needs of those no public number says, so rows with few are not taken.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import final

from privguard import _check
from privguard.accounting.bands import Schedule, coefficients, least_error
from privguard.accounting.calibrate import Budget
from privguard.accounting.outlook import Outlook, Start, outlook
from privguard.records import Record

ENOUGH_STEPS = 100
"""A row with fewer steps is taken only where no row has as many."""
_SMALLEST = 64
_ROWS = 6


@final
@dataclass(frozen=True, kw_only=True)
class Row(Record):
    """One way to spend a budget.

    Attributes:
        batch_size: expected records in a step.
        steps: steps of the run.
        bands: steps over which noise is correlated.
        noise_multiplier: σ, to about 1 %.
        outlook: noise over signal, in a step and in the weights at the end.
        memory: bytes of kept rows of noise.
        taken: whether this is the row that is recommended.
    """

    batch_size: int
    steps: int
    bands: int
    noise_multiplier: float
    outlook: Outlook
    memory: int
    taken: bool = False


def recommend(
    budget: Budget,
    *,
    examples: int,
    trained: int,
    epochs: float,
    momentum: float = 0.0,
    start: Start = Start.SCRATCH,
) -> list[Row]:
    """Rows of doubling batch, with the number of bands that leaves the least noise; one of them is ``taken``.

    Args:
        budget: what may be spent.
        examples: public number of records.
        trained: number of trained parameters.
        epochs: passes over the data that can be afforded; every row takes as many.
        momentum: the optimizer's.
        start: what the training begins with.

    Raises:
        ValueError: a number is out of range.
        BudgetExceededError: no amount of noise fits.
    """
    _check.count("examples", examples)
    _check.count("trained", trained)
    _check.positive("epochs", epochs)
    rows = [_row(budget, schedule, trained, start) for schedule in _schedules(examples, epochs, momentum)]
    fair = [row for row in rows if row.steps >= ENOUGH_STEPS] or [max(rows, key=lambda row: row.steps)]
    best = min(fair, key=lambda row: row.outlook.noise_over_signal)
    return [replace(row, taken=row is best) for row in rows]


def _schedules(examples: int, epochs: float, momentum: float) -> Iterator[Schedule]:
    """Batches of powers of two, the largest ones that still leave a few steps."""
    batch = min(_SMALLEST, examples)
    sizes = [batch]
    while 2 * batch <= examples and epochs * examples / (2 * batch) >= ENOUGH_STEPS / 4:
        batch *= 2
        sizes.append(batch)
    for size in sizes[-_ROWS:]:
        steps = max(1, round(epochs * examples / size))
        yield Schedule(examples=examples, batch_size=size, steps=steps, momentum=momentum)


def _row(budget: Budget, schedule: Schedule, trained: int, start: Start) -> Row:
    bands, noise = least_error(budget, schedule)
    expected = outlook(
        noise_multiplier=noise,
        batch_size=schedule.batch_size,
        steps=schedule.steps,
        trained=trained,
        strategy=coefficients(bands, steps=schedule.steps, momentum=schedule.momentum),
        start=start,
    )
    return Row(
        batch_size=schedule.batch_size,
        steps=schedule.steps,
        bands=bands,
        noise_multiplier=noise,
        outlook=expected,
        memory=8 * trained * (bands - 1),
    )
