# SPDX-License-Identifier: Apache-2.0
"""The per-step audit: does an implementation of clip and noise do what its accountant is told?

Each canary has a coordinate of its own that no other record touches, a raw gradient far above the clipping norm, and a
fresh fair coin in every step that decides whether it is in. The noisy sum at that coordinate over the clipping norm
is 1 or 0 plus noise, so every step of every canary is one trial of a Gaussian mechanism: thousands in a second. It
tests clip and noise; the sampler and the independence of the noise have checks of their own
(``privguard.audit.steps.checks``).
"""

from dataclasses import dataclass
from typing import Protocol, final

import numpy as np
from numpy.typing import NDArray

from privguard import _check
from privguard._random import Stream
from privguard.audit.one_run import bound
from privguard.audit.one_run.canary import count_calls
from privguard.errors import AuditError
from privguard.records import Finding, Outcome

FloatArray = NDArray[np.float64]
MIDWAY = 0.5  # between what an absent and a present canary score; fixed before looking
# The accountant's ε lies above the exact one, by less than 0.1 %: a bound from below gives twice that back.
ROUNDING = 1 - 2e-3


class Stepper(Protocol):
    """An implementation of the private step, with ``canaries`` records of one coordinate each.

    Record j < canaries has its gradient along coordinate j alone; records from ``canaries`` on have gradient zero.
    """

    canaries: int

    def step(self, records: NDArray[np.int64]) -> FloatArray:
        """Take one private step on these records; the movement (canaries,), as a multiple of the clipping norm.

        Args:
            records: numbers of the records in the batch.
        """
        ...


@final
@dataclass(frozen=True, kw_only=True)
class StepDesign:
    """What is fixed before: the mechanism that is claimed, and how many trials it gets.

    ``noise_multiplier`` (dimensionless), ``sample_rate`` and ``steps`` make the claim at ``delta``; ``trials`` steps
    are taken with ``canaries`` canaries, so there are trials · canaries coins.
    """

    canaries: int
    trials: int
    noise_multiplier: float
    sample_rate: float
    steps: int
    delta: float
    confidence: float = 0.95

    def __post_init__(self) -> None:
        object.__setattr__(self, "canaries", _check.count("canaries", self.canaries, least=2))
        object.__setattr__(self, "trials", _check.count("trials", self.trials))
        _check.positive("noise_multiplier", self.noise_multiplier)
        _check.probability("sample_rate", self.sample_rate, one=True)
        object.__setattr__(self, "steps", _check.count("steps", self.steps))
        _check.probability("delta", self.delta)
        _check.probability("confidence", self.confidence)

    def epsilon(self, noise_multiplier: float) -> float:
        """ε of the claimed sampling and steps at another noise, by the accountant's privacy-loss distribution.

        Args:
            noise_multiplier: σ, dimensionless.
        """
        from privguard.accounting.accountant import epsilon
        from privguard.accounting.calibrate import dp_sgd

        event = dp_sgd(sample_rate=self.sample_rate, noise_multiplier=noise_multiplier)
        return epsilon([(event, self.steps)], delta=self.delta)


@final
@dataclass(frozen=True)
class Trace:
    """What the steps showed: ``scores`` and ``included`` (trials, canaries), and the size of each batch (trials,)."""

    scores: FloatArray
    included: NDArray[np.bool_]
    sizes: NDArray[np.int64]

    @property
    def residuals(self) -> FloatArray:
        """What is left of the scores when the canaries' own contributions are taken off: the noise."""
        return self.scores - self.included


def observe(stepper: Stepper, design: StepDesign, *, source: Stream | None = None) -> Trace:
    """Run the trials: each flips a coin for every canary, and adds a random number of records without gradient.

    Those records change the size of the batch and nothing else, so that a step which divides by it gives itself away.

    Args:
        stepper: what takes the steps.
        design: trials, canaries and claim, fixed beforehand.
        source: the stream that flips; None for the operating system.
    """
    _check.require(
        stepper.canaries == design.canaries, "stepper.canaries", stepper.canaries, wanted=f"{design.canaries}"
    )
    stream = source or Stream.from_entropy("audit steps")
    scores = np.empty((design.trials, design.canaries))
    included = np.empty((design.trials, design.canaries), bool)
    sizes = np.empty(design.trials, np.int64)
    for trial in range(design.trials):
        words = stream.child(trial).words(design.canaries + 1)
        included[trial] = (words[1:] & np.uint64(1)).astype(bool)
        fill = np.arange(design.canaries, design.canaries + int(words[0] % np.uint64(design.canaries)))
        records = np.concatenate([np.flatnonzero(included[trial]), fill])
        scores[trial], sizes[trial] = stepper.step(records), len(records)
    return Trace(scores, included, sizes)


def step_finding(trace: Trace, design: StepDesign, *, control: Trace | None = None) -> Finding:
    """Hold the trials against the claim: μ from below, hence σ from above, hence ε from below.

    Guarantee: an implementation whose every step is the claimed Gaussian mechanism is refuted with probability at most
    1 - ``confidence``. *Consistent* needs ``control``, the trials of a twin without noise, to be refuted.

    Args:
        trace: the observed trials.
        design: trials, canaries and claim, fixed beforehand.
        control: the same of a step without noise; None where there is none.

    Raises:
        AuditError: where a score is not finite.
    """
    counts = _counts(trace)
    claimed = design.epsilon(design.noise_multiplier)
    low, sigma_high = _epsilon_low(counts, design)
    half = trace.included.size // 2
    cap, _ = _epsilon_low({"true_positives": half, "members": half, "false_positives": 0, "non_members": half}, design)
    outcome = Outcome.REFUTED if low > claimed else Outcome.UNINFORMATIVE
    if outcome is Outcome.UNINFORMATIVE and control is not None and _epsilon_low(_counts(control), design)[0] > claimed:
        outcome = Outcome.CONSISTENT
    return Finding(
        epsilon_low=low,
        delta=design.delta,
        confidence=design.confidence,
        method="per-step gaussian threshold",
        outcome=outcome,
        cap=cap,
        claimed=claimed,
        counts=counts,
        settings={
            "noise_multiplier": design.noise_multiplier,
            "noise_multiplier_high": sigma_high if np.isfinite(sigma_high) else None,
            "sample_rate": design.sample_rate,
            "steps": design.steps,
            "canaries": design.canaries,
            "trials": design.trials,
        },
        notes=(
            "tests clip and noise of the step; the sampler and the independence of the noise have their own checks",
            *(("no positive control, or it was not refuted",) if outcome is Outcome.UNINFORMATIVE else ()),
        ),
    )


def _counts(trace: Trace) -> dict[str, int]:
    if not np.isfinite(trace.scores).all():
        raise AuditError("scores: NaN or inf among the movements; a step has to be finite whatever its batch")
    return count_calls(trace.scores, trace.included, threshold=MIDWAY)


def _epsilon_low(counts: dict[str, int], design: StepDesign) -> tuple[float, float]:
    """ε from below, and the noise multiplier from above that it belongs to (inf where nothing was shown)."""
    mu = bound.gaussian_threshold(**counts, confidence=design.confidence)
    return (design.epsilon(1 / mu) * ROUNDING, 1 / mu) if mu > 0 else (0.0, float("inf"))
