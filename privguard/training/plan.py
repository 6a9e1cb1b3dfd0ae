# SPDX-License-Identifier: Apache-2.0
"""Plan and Performance: what touches privacy, and what touches only speed.

Sampler, clipping bound, noise and ledger event all derive from one frozen plan, so they cannot disagree. Every field is
a public constant: none is computed from the private data behind the user's back.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from privguard import _check
from privguard._random import Stream
from privguard.accounting.outlook import Outlook, Start, outlook
from privguard.records import Record, Relation, Unit
from privguard.training.sampling.sample import CyclicPoisson, Poisson, Sampler

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dp_accounting import DpEvent

    from privguard.accounting.events import Events
    from privguard.accounting.planning.trade_off import TradeOff


@final
@dataclass(frozen=True, kw_only=True)
class Plan(Record):
    """A private training run before it starts.

    Attributes:
        sample_rate: probability with which each example enters a step; with bands, a step of its own group.
        noise_multiplier: standard deviation of the noise over ``max_grad_norm``, dimensionless; 0 means ε = ∞.
        max_grad_norm: L2 bound of one example's contribution to the summed gradient.
        steps: number of optimizer steps; the run ends there.
        delta: δ at which ε is reported.
        expected_batch_size: what the noisy sum is divided by: a public constant, never the size of the drawn batch.
        epsilon: the budget that the run may not exceed, or None when only the noise was given.
        examples: public size of the data set if it is public, else None. The real size never enters.
        relation: neighbouring relation of the claim.
        unit: whose contribution is protected.
        strategy: coefficients of banded noise (``privguard.accounting.bands``), the first one 1; as many as there
            are bands. (1,) is independent noise.
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
    strategy: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        object.__setattr__(self, "strategy", tuple(map(float, self.strategy)))
        whole = self.strategy[:1] == (1.0,) and all(map(math.isfinite, self.strategy))
        _check.require(whole, "strategy", self.strategy, wanted="finite coefficients, the first of them 1")
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
        fits = self.bands == 1 or self.bands <= self.steps
        _check.require(fits, "strategy", f"{self.bands} bands", wanted=f"at most steps={self.steps}")

    @classmethod
    def for_budget(  # noqa: PLR0913 — one keyword for each thing that a run is planned by
        cls,
        *,
        epsilon: float,
        delta: float,
        examples: int,
        batch_size: int,
        epochs: float,
        max_grad_norm: float,
        bands: "int | str" = 1,
        momentum: float = 0.0,
    ) -> "Plan":
        """The plan with the least noise that spends at most ``epsilon`` at ``delta``.

        ``examples`` is a *public* number, for instance the published size of the data set: rate and number of steps
        follow from it (rate = batch_size / examples, steps = epochs / rate, rounded up). A different real size is never
        an error. ``batch_size`` is the expected number of examples in a step.

        With ``bands`` above 1 the noise of a step takes back part of what the steps before it added, so that less of it
        ends in the weights at the same ε; ``"auto"`` takes the number, up to 16, with the least expected error for SGD
        with this ``momentum``. Bands help where passes are few and ε is 3 or more; each one above the first keeps eight
        bytes for every trained parameter.

        Args:
            epsilon: the budget's ε, above 0.
            delta: the budget's δ, in (0, 1).
            examples: public number of examples.
            batch_size: expected examples in a step.
            epochs: passes over the data, on average.
            max_grad_norm: the clipping norm C, in the unit of the gradient.
            bands: how many steps share noise, or ``"auto"``.
            momentum: of the SGD that the noise is chosen for, in [0, 1).

        Raises:
            ValueError: an argument is out of range.
            BudgetExceededError: no amount of noise meets the budget.
        """
        _check.count("examples", examples)
        _check.count("batch_size", batch_size)
        _check.require(batch_size <= examples, "batch_size", batch_size, wanted=f"at most examples={examples}")
        steps = steps_in(_check.positive("epochs", epochs), sample_rate=batch_size / examples)
        from privguard.accounting.bands import Schedule, choose
        from privguard.accounting.calibrate import Budget

        schedule = Schedule(examples=examples, batch_size=batch_size, steps=steps, momentum=momentum)
        choice = choose(Budget(epsilon=epsilon, delta=delta), schedule, bands=bands)
        return cls(
            sample_rate=schedule.rate(len(choice.strategy)),
            noise_multiplier=choice.noise_multiplier,
            strategy=choice.strategy,
            max_grad_norm=max_grad_norm,
            steps=steps,
            delta=delta,
            expected_batch_size=batch_size,
            epsilon=epsilon,
            examples=examples,
        )

    @classmethod
    def recommend(
        cls,
        *,
        epsilon: float,
        delta: float,
        examples: int,
        parameters: int,
        epochs: float,
        max_grad_norm: float,
        **options: Any,
    ) -> "Plan":
        """The plan that leaves the least noise over signal in the weights, by ``recommend``, which has the table.

        Args:
            epsilon: ε that may be spent.
            delta: δ of the guarantee.
            examples: public number of records.
            parameters: number of trained parameters.
            epochs: passes over the data that can be afforded.
            max_grad_norm: the clipping norm.
            options: ``momentum`` and ``start``, as for ``privguard.accounting.planning.recommend.recommend``.

        Raises:
            ValueError: an argument is out of range.
            BudgetExceededError: no amount of noise meets the budget.
        """
        from privguard.accounting.calibrate import Budget
        from privguard.accounting.planning.recommend import recommend

        budget = Budget(epsilon=epsilon, delta=delta)
        rows = recommend(budget, examples=examples, trained=parameters, epochs=epochs, **options)
        row = next(row for row in rows if row.taken)
        return cls.for_budget(
            epsilon=epsilon,
            delta=delta,
            examples=examples,
            batch_size=row.batch_size,
            epochs=epochs,
            max_grad_norm=max_grad_norm,
            bands=row.bands,
            momentum=options.get("momentum", 0.0),
        )

    @property
    def bands(self) -> int:
        """Over how many steps the noise is correlated; 1 is independent noise."""
        return len(self.strategy)

    @property
    def share(self) -> float:
        """Of all examples, the part that is expected in a step: the rate, over the number of groups."""
        return self.sample_rate / self.bands

    def sampler(self, groups: Stream) -> Sampler:
        """The sampler that the event prices; ``groups`` says who is in which group, and lasts for the whole run.

        Args:
            groups: a stream of randomness for the assignment to groups; read where ``bands`` is above 1.
        """
        return Poisson(self.sample_rate) if self.bands == 1 else CyclicPoisson(self.sample_rate, self.bands, groups)

    def event(self) -> "DpEvent":
        """What ``bands`` steps do to the data, together: a Gaussian mechanism on a Poisson sample."""
        from privguard.accounting.calibrate import dp_sgd

        return dp_sgd(sample_rate=self.sample_rate, noise_multiplier=self.noise_multiplier)

    def rounds(self, steps: int) -> int:
        """How many events the first ``steps`` steps cost; what was begun counts whole.

        Args:
            steps: how many steps were begun.
        """
        return -(-steps // self.bands)

    def events(self) -> "Events":
        """All that the run does to the data."""
        return [(self.event(), self.rounds(self.steps))]

    def outlook(self, trained: int, *, start: Start = Start.SCRATCH) -> Outlook:
        """Whether a run of this plan can learn with so many trained parameters; see ``outlook``.

        Args:
            trained: number of trained parameters.
            start: what the training begins with.
        """
        return outlook(
            noise_multiplier=self.noise_multiplier,
            batch_size=self.expected_batch_size,
            steps=self.steps,
            trained=trained,
            strategy=self.strategy,
            start=start,
        )

    def trade_off(self) -> "TradeOff":
        """What the best membership test can do against the whole run: error rates, advantage, posterior odds.

        Raises:
            UnknownEventError: the plan's noise is 0, so there is nothing to price.
        """
        from privguard.accounting.planning.trade_off import trade_off

        return trade_off(self.events(), delta=self.delta, relation=self.relation)

    @classmethod
    def from_facts(cls, facts: "Mapping[str, Any]") -> "Plan":
        """The plan that ``facts`` gave, for instance out of a manifest.

        Args:
            facts: the fields of a plan, as JSON values.

        Raises:
            ValueError: a field is missing, unknown or out of range.
        """
        values = {name: value for name, value in facts.items() if name != "record"}
        try:
            values["noise_multiplier"] = float(values["noise_multiplier"])
            values["relation"], values["unit"] = Relation(values["relation"]), Unit(values["unit"])
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise ValueError(f"plan: {error}; give the facts of a plan, as a run's run.json holds them") from None

    def facts(self) -> dict[str, Any]:
        """The plan as plain JSON values, for manifest, ledger and report."""
        return self.to_json()


def steps_in(epochs: float, *, sample_rate: float) -> int:
    """Steps in which every record is drawn ``epochs`` times on average: epochs / sample_rate, rounded up.

    A quotient that floating point puts just above a whole number counts as that number: one epoch at rate 10/490 is 49
    steps, although 1 / (10 / 490) is 49.00000000000001.

    >>> steps_in(1, sample_rate=10 / 490)
    49

    Args:
        epochs: passes over the data, on average.
        sample_rate: the chance that a record is in one step.
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
