# SPDX-License-Identifier: Apache-2.0
"""What makes a faint run learn, with numbers: the same budget spent on larger batches, more passes or fewer weights."""

from dataclasses import dataclass
from typing import final

from privguard.accounting.bands import Schedule
from privguard.accounting.calibrate import Budget, least_noise
from privguard.accounting.outlook import LIMITS, Outlook, Start, outlook
from privguard.records import Record

_TIMES = 4  # as many records in a step, or passes


@final
@dataclass(frozen=True, kw_only=True)
class Remedy(Record):
    """One change of a run, and the noise over signal in its weights thereafter."""

    change: str
    noise_over_signal: float
    enough: bool


def remedies(budget: Budget, schedule: Schedule, faint: Outlook) -> list[Remedy]:
    """Changes that lower noise over signal at the same ε, with independent noise, the cheapest to compute first.

    Larger batches at as many passes cost nothing; with fewer trained parameters a step costs less; more passes cost
    their own time. What does not help by a tenth is left out.

    Raises:
        BudgetExceededError: no amount of noise fits.
    """
    batch = min(_TIMES * schedule.batch_size, schedule.examples)
    larger = Schedule(
        examples=schedule.examples,
        batch_size=batch,
        steps=max(1, round(schedule.steps * schedule.batch_size / batch)),
    )
    longer = Schedule(examples=schedule.examples, batch_size=schedule.batch_size, steps=_TIMES * schedule.steps)
    changes = [
        (f"a batch of {batch:,} for {schedule.batch_size:,}, and as many passes", _with(budget, larger, faint)),
        (f"at most {faint.most_trained:,} trained parameters (LoRA, or frozen layers)", faint.limit),
        (f"{_TIMES} times as many passes", _with(budget, longer, faint)),
    ]
    listed = [
        Remedy(change=change, noise_over_signal=ratio, enough=ratio <= faint.limit)
        for change, ratio in changes
        if ratio < 0.9 * faint.noise_over_signal
    ]
    if faint.start is Start.TUNED:
        return listed
    ratio = faint.noise_over_signal
    return [*listed, Remedy(change="pre-trained weights", noise_over_signal=ratio, enough=ratio <= LIMITS[Start.TUNED])]


def _with(budget: Budget, schedule: Schedule, faint: Outlook) -> float:
    noise = least_noise(budget, sample_rate=schedule.rate(1), steps=schedule.steps)
    return outlook(
        noise_multiplier=noise,
        batch_size=schedule.batch_size,
        steps=schedule.steps,
        trained=faint.trained,
        start=faint.start,
    ).noise_over_signal
