"""Plan and Performance: what touches privacy, and what touches only speed.

Sampler, clipping bound, noise and ledger event all derive from one frozen plan, so they cannot disagree. Every field is
a public constant: none is computed from the private data behind the user's back.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from privguard import _check
from privguard.records import Record, Relation, Unit
from privguard.training.sampling.sample import Poisson

if TYPE_CHECKING:
    from dp_accounting import DpEvent


@final
@dataclass(frozen=True, kw_only=True)
class Plan(Record):
    """A private training run before it starts.

    Attributes:
        sample_rate: probability with which each example enters a step.
        noise_multiplier: standard deviation of the noise over ``max_grad_norm``, dimensionless; 0 means ε = ∞.
        max_grad_norm: L2 bound of one example's contribution to the summed gradient.
        steps: number of optimizer steps; the run ends there.
        delta: δ at which ε is reported.
        expected_batch_size: what the noisy sum is divided by: a public constant, never the size of the drawn batch.
        epsilon: the budget that the run may not exceed, or None when only the noise was given.
        examples: public size of the data set if it is public, else None. The real size never enters.
        relation: neighbouring relation of the claim.
        unit: whose contribution is protected.
    """

    sample_rate: float
    noise_multiplier: float
    max_grad_norm: float
    steps: int
    delta: float
    expected_batch_size: float
    epsilon: float | None = None
    examples: int | None = None
    relation: Relation = Relation.ADD_OR_REMOVE_ONE
    unit: Unit = Unit.EXAMPLE

    def __post_init__(self) -> None:
        _check.probability("sample_rate", self.sample_rate, one=True)
        _check.non_negative("noise_multiplier", self.noise_multiplier)
        _check.positive("max_grad_norm", self.max_grad_norm, remedy="it is the clipping norm, often 0.1 to 1")
        _check.count("steps", self.steps)
        _check.probability("delta", self.delta, remedy="below 1 over the number of examples")
        _check.positive("expected_batch_size", self.expected_batch_size)
        if self.epsilon is not None:
            _check.positive("epsilon", self.epsilon)
        if self.examples is not None:
            _check.count("examples", self.examples)

    @classmethod
    def for_budget(
        cls,
        *,
        epsilon: float,
        delta: float,
        examples: int,
        batch_size: int,
        epochs: float,
        max_grad_norm: float,
    ) -> "Plan":
        """The plan with the least noise that spends at most ``epsilon`` at ``delta``.

        ``examples`` is a *public* number, for instance the published size of the data set: rate and number of steps
        follow from it (rate = batch_size / examples, steps = epochs / rate, rounded up). A different real size is never
        an error. ``batch_size`` is the expected number of examples in a step.

        Raises:
            ValueError: an argument is out of range.
            BudgetExceededError: no amount of noise meets the budget.
        """
        _check.count("examples", examples)
        _check.count("batch_size", batch_size)
        _check.require(batch_size <= examples, "batch_size", batch_size, wanted=f"at most examples={examples}")
        rate = batch_size / examples
        steps = steps_in(_check.positive("epochs", epochs), sample_rate=rate)
        from privguard.accounting.calibrate import Budget, least_noise

        noise = least_noise(Budget(epsilon=epsilon, delta=delta), sample_rate=rate, steps=steps)
        return cls(
            sample_rate=rate,
            noise_multiplier=noise,
            max_grad_norm=max_grad_norm,
            steps=steps,
            delta=delta,
            expected_batch_size=batch_size,
            epsilon=epsilon,
            examples=examples,
        )

    def sampler(self) -> Poisson:
        """The sampler that the event prices."""
        return Poisson(self.sample_rate)

    def event(self) -> "DpEvent":
        """What one step does to the data: a Gaussian mechanism on a Poisson sample."""
        from privguard.accounting.calibrate import dp_sgd

        return dp_sgd(sample_rate=self.sample_rate, noise_multiplier=self.noise_multiplier)

    def facts(self) -> dict[str, Any]:
        """The plan as plain JSON values, for manifest, ledger and report."""
        return self.to_json()


def steps_in(epochs: float, *, sample_rate: float) -> int:
    """Steps in which every record is drawn ``epochs`` times on average: epochs / sample_rate, rounded up.

    A quotient that floating point puts just above a whole number counts as that number: one epoch at rate 10/490 is 49
    steps, although 1 / (10 / 490) is 49.00000000000001.

    >>> steps_in(1, sample_rate=10 / 490)
    49
    """
    return math.ceil(epochs / sample_rate - 1e-9)


NOISES = ("exact", "float32")


@final
@dataclass(frozen=True, kw_only=True)
class Performance:
    """Settings that change how fast a step is, never what it costs in privacy.

    Attributes:
        physical_batch: most rows that go forward at once; None takes the loader's batch size.
        reserve: ledger events that share one line and one fsync. The fsync runs beside the forward and backward pass,
            so more than one is worth it only where a step takes less than some milliseconds; after a crash all reserved
            events count as spent.
        noise: ``"exact"``, integers with the law of a rounded Gaussian; or ``"float32"``, a third of the time, for
            whoever accepts that attacks on floating-point noise are not ruled out. The claim then says so.
    """

    physical_batch: int | None = None
    reserve: int = 1
    noise: str = "exact"

    def __post_init__(self) -> None:
        _check.count("reserve", self.reserve)
        _check.require(self.noise in NOISES, "noise", self.noise, wanted=" or ".join(map(repr, NOISES)))
        if self.physical_batch is not None:
            _check.count("physical_batch", self.physical_batch)
