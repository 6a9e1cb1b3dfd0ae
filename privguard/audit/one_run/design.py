# SPDX-License-Identifier: Apache-2.0
"""What an audit in one run will count, fixed before training, and what it can and cannot show.

A design names the number of canaries and guesses, the bounds, the claim and the confidence. From these alone follows
its cap: the ε that a perfect attack would show. Where the cap does not exceed the claim, the only possible verdict is
*uninformative*, and it is cheaper to learn that before training.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache, partial
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from scipy import special

from privguard import _check
from privguard._random import Stream
from privguard.audit.one_run import bound, rank_bound
from privguard.audit.one_run.canary import Coins, count_calls, count_right
from privguard.errors import AuditError
from privguard.records import Claim, Finding, Measurement, Outcome, Record, Relation, Unit


class Bound(StrEnum):
    """Which claim a count is held against; see ``privguard.audit.one_run.bound``."""

    STEINKE = "steinke"
    GAUSSIAN_ONE_RUN = "gaussian-one-run"
    GAUSSIAN_THRESHOLD = "gaussian-threshold"
    GAUSSIAN_RANK = "gaussian-rank"


SPEAKS_OF = {
    Bound.STEINKE: "any (ε, δ) mechanism",
    Bound.GAUSSIAN_ONE_RUN: "Gaussian privacy matched to (ε, δ), not the (ε, δ) claim itself",
    Bound.GAUSSIAN_THRESHOLD: "Gaussian privacy matched to (ε, δ), with canaries that do not influence each other",
    Bound.GAUSSIAN_RANK: (
        "Gaussian privacy matched to (ε, δ), with canaries that are alike and do not influence each other"
    ),
}
OF_ALL = (Bound.GAUSSIAN_THRESHOLD, Bound.GAUSSIAN_RANK)  # look at every canary, whatever the number of guesses


@final
@dataclass(frozen=True, kw_only=True)
class Design(Record):
    """An audit of one run, fixed before it.

    ``canaries`` are included by fair coins; the ``guesses_in`` with the largest scores are guessed in, the
    ``guesses_out`` with the smallest are guessed out, and nothing is guessed of the rest. Where a model remembers a few
    of its records, those stand out and nothing tells who was left out: guess in alone. ``bounds`` names the primary
    bound, or several that share 1 - ``confidence`` evenly. ``threshold`` (in units of the score) is for the threshold
    bound alone. ``claimed`` is the ε at ``delta`` to be refuted, ``unit`` what one canary is.
    """

    canaries: int
    guesses_in: int
    guesses_out: int
    claimed: float
    delta: float
    confidence: float = 0.95
    bounds: tuple[Bound, ...] = (Bound.STEINKE,)
    threshold: float | None = None
    unit: Unit = Unit.EXAMPLE

    def __post_init__(self) -> None:
        object.__setattr__(self, "canaries", _check.count("canaries", self.canaries, least=2))
        for side in ("guesses_in", "guesses_out"):
            object.__setattr__(self, side, _check.count(side, getattr(self, side), least=0))
        most = f"1 to {self.canaries}, the number of canaries"
        _check.require(0 < self.guesses <= self.canaries, "guesses_in + guesses_out", self.guesses, wanted=most)
        _check.require(
            Bound.GAUSSIAN_RANK not in self.bounds or self.canaries <= rank_bound.MOST,
            "canaries",
            self.canaries,
            wanted=f"at most {rank_bound.MOST:,} with gaussian-rank",
        )
        _check.non_negative("claimed", self.claimed)
        _check.probability("delta", self.delta, zero=True)
        pure = self.delta > 0 or set(self.bounds) <= {Bound.STEINKE}
        _check.require(pure, "bounds", self.bounds, wanted="steinke at δ = 0, where no Gaussian mechanism is private")
        _check.probability("confidence", self.confidence)
        distinct = len(set(self.bounds)) == len(self.bounds) > 0
        _check.require(distinct, "bounds", self.bounds, wanted="one primary bound, or several different ones")
        needs = (Bound.GAUSSIAN_THRESHOLD in self.bounds) == (self.threshold is not None)
        _check.require(needs, "threshold", self.threshold, wanted="a number exactly when the threshold bound is named")

    @classmethod
    def for_claim(
        cls,
        claim: Claim,
        *,
        canaries: int,
        guesses: tuple[int, int],
        unit: Unit,
        bounds: tuple[Bound, ...] = (Bound.STEINKE,),
        threshold: float | None = None,
    ) -> "Design":
        """A design against a claim of the same unit, with so many ``guesses`` in and out.

        Args:
            claim: the claim that is held against the run.
            canaries: how many canaries get a coin.
            guesses: how many are guessed in, and how many out.
            unit: what a canary stands for, an example or a user.
            bounds: the bounds that will be computed, all paid for.
            threshold: score above which a canary is called a member; None where no bound needs one.

        Raises:
            AuditError: where one canary is not what one neighbour of the claim is. An example says nothing about a
                claim for whole users, and a user may move more than a claim for examples promises.
        """
        if claim.unit is not unit:
            raise AuditError(
                f"unit={unit.value!r}: the claim speaks of one {claim.unit.value}; "
                f"use canaries that are whole {claim.unit.value}s"
            )
        if claim.relation is not Relation.ADD_OR_REMOVE_ONE:
            raise AuditError(
                f"relation={claim.relation.value!r}: coins add or remove a canary; "
                "state the claim for add-or-remove-one"
            )
        return cls(
            canaries=canaries,
            guesses_in=guesses[0],
            guesses_out=guesses[1],
            claimed=claim.epsilon,
            delta=claim.delta,
            bounds=bounds,
            threshold=threshold,
            unit=unit,
        )

    @property
    def guesses(self) -> int:
        """Guesses in all, in and out."""
        return self.guesses_in + self.guesses_out

    @property
    def share(self) -> float:
        """The confidence that each bound works at: the error is divided evenly over them."""
        return 1 - (1 - self.confidence) / len(self.bounds)

    def cap(self, which: Bound) -> float:
        """The largest ε that ``which`` could show: every guess right, and half of the coins in.

        Args:
            which: one of the design's bounds.
        """
        half, others = self.canaries // 2, self.canaries - self.canaries // 2
        if which is Bound.GAUSSIAN_THRESHOLD:
            return self._at_threshold(half, half, 0, others)
        if which is Bound.GAUSSIAN_RANK:
            return self._by_rank(half * others, half, others)
        return self._one_run(which, self.guesses)

    def needed(self, which: Bound) -> int | None:
        """The least number of right guesses that refutes the claim; None where even all of them would not.

        For the threshold bound: right calls of all canaries, with both sides equally often wrong. For the rank bound:
        pairs of one that is in and one that is out, ranked right, where half are in.

        Args:
            which: one of the design's bounds.
        """
        if self.cap(which) <= self.claimed:
            return None
        half = self.canaries // 2
        if which is Bound.GAUSSIAN_RANK:
            return self._pairs_needed(half)
        if which is Bound.GAUSSIAN_THRESHOLD:
            refutes = [
                self._at_threshold(half - wrong, half, wrong, self.canaries - half) > self.claimed
                for wrong in range(half + 1)
            ]
            return self.canaries - 2 * (refutes.index(False) - 1)
        low, high = 0, self.guesses  # the bound rises with the count: bisect
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._one_run(which, middle) > self.claimed else (middle, high)
        return high

    def epsilon(
        self, which: Bound, scores: NDArray[np.floating], included: NDArray[np.bool_]
    ) -> tuple[float, dict[str, int]]:
        """The bound and its counts, for scores (canaries,) and what the coins said.

        Args:
            which: one of the design's bounds.
            scores: one for each canary, (canaries,), larger for a likelier member.
            included: what the coins said, (canaries,).
        """
        if which is Bound.GAUSSIAN_THRESHOLD:
            counts = count_calls(scores, included, threshold=self.threshold or 0.0)
            return self._at_threshold(**counts), counts
        if which is Bound.GAUSSIAN_RANK:
            counts = rank_bound.count_wins(scores, included)
            return self._by_rank(**counts), counts
        right = count_right(scores, included, guesses_in=self.guesses_in, guesses_out=self.guesses_out)
        return self._one_run(which, right), {"guesses": self.guesses, "right": right}

    def flip(self, source: Stream | None = None) -> Coins:
        """The coins of this design, once, before training.

        Args:
            source: the stream that flips; None for the operating system.
        """
        return Coins.flip(self.canaries, design=self.digest(), source=source)

    def _one_run(self, which: Bound, right: int) -> float:
        rule = bound.steinke if which is Bound.STEINKE else bound.gaussian_one_run
        return rule(right, canaries=self.canaries, guesses=self.guesses, delta=self.delta, confidence=self.share)

    def _at_threshold(self, true_positives: int, members: int, false_positives: int, non_members: int) -> float:
        if not members or not non_members:
            return 0.0
        mu = bound.gaussian_threshold(
            true_positives=true_positives,
            members=members,
            false_positives=false_positives,
            non_members=non_members,
            confidence=self.share,
        )
        return bound.gaussian_epsilon(mu, delta=self.delta)

    def _by_rank(self, wins: int, members: int, non_members: int) -> float:
        if not members or not non_members:
            return 0.0
        mu = rank_bound.gaussian_rank(wins, members=members, non_members=non_members, confidence=self.share)
        return bound.gaussian_epsilon(mu, delta=self.delta)

    def _pairs_needed(self, half: int) -> int | None:
        mu = bound.gaussian_mu(self.claimed, delta=self.delta)
        return rank_bound.wins_needed(mu, members=half, non_members=self.canaries - half, confidence=self.share)


@final
@dataclass(frozen=True)
class Observed:
    """The scores (canaries,) of one run and the coins that it was trained with."""

    scores: NDArray[np.floating]
    coins: Coins


@final
@dataclass(frozen=True, kw_only=True)
class OneRun(Measurement):
    """The verdict on one run: one finding per bound, all of them under one confidence.

    ``control`` says what the same design found on a twin without protection, None where no twin was trained.
    """

    outcome: Outcome
    findings: tuple[Finding, ...]
    design: dict[str, Any]
    coins: str
    control: Outcome | None = None
    notes: tuple[str, ...] = field(default=())


def judge(design: Design, run: Observed, *, control: Observed | None = None) -> OneRun:
    """Hold the scores of a run against its claim.

    Guarantee: a run that keeps its claim is called refuted with probability at most 1 - ``design.confidence``, over all
    bounds of the design. It is called consistent only where the design could have refuted the claim and did refute it
    on ``control``, a run of the same design without noise; otherwise it is uninformative.

    Args:
        design: the design, fixed before training.
        run: scores of the run, with the coins.
        control: the same of a run without noise; None where there is none.

    Raises:
        AuditError: where the coins belong to another design, or a score is NaN.
    """
    found = _refuted(design, run)
    twin = None if control is None else _verdict(design, _refuted(design, control), control=None)
    findings = tuple(_finding(design, which, *found[which], twin) for which in design.bounds)
    return OneRun(
        outcome=_verdict(design, found, control=twin),
        findings=findings,
        design=design.to_json(),
        coins=run.coins.commitment,
        control=twin,
        notes=("coins from a published seed, so the verdict binds nobody",) if run.coins.insecure else (),
    )


def least_canaries(
    which: Bound, *, claimed: float, delta: float, confidence: float = 0.95, most: int = 100_000
) -> int | None:
    """The least number of canaries with which a perfect attack that guesses all of them refutes the claim.

    None where ``most`` do not suffice; ``Bound.STEINKE`` has a highest reach, as δ weighs more with every canary.

    Args:
        which: one of the design's bounds.
        claimed: ε of the claim.
        delta: δ of the claim.
        confidence: of the bound, in (0, 1).
        most: the most canaries that are tried.
    """
    at = partial(_perfect, which, delta=delta, confidence=confidence)
    high = 2
    while at(high) <= claimed:
        high *= 2
        if high > most:
            return None
    low = high // 2
    while high - low > 2:  # noqa: PLR2004 — even numbers: as many in as out
        middle = (low + high) // 4 * 2
        low, high = (low, middle) if at(middle) > claimed else (middle, high)
    return high


@lru_cache(maxsize=64)
def ideal(design: Design, *, runs: int = 200, seed: int = 0) -> dict[str, float]:
    """What each bound shows on average where Gaussian noise spends the claim exactly and the attack is the best one.

    A simulation with exact scores: what a correct run should come near to. The threshold is set midway. At δ = 0 it is
    randomised response that spends the claim.

    Args:
        design: the design, fixed before training.
        runs: how many simulated runs.
        seed: of the simulation.
    """
    random, mu = np.random.default_rng(seed), 0.0
    if design.delta > 0:
        mu = bound.gaussian_mu(design.claimed, delta=design.delta)
    right = special.expit(design.claimed)  # at δ = 0 each record is told apart by randomised response
    sums = dict.fromkeys(design.bounds, 0.0)
    for _ in range(runs):
        included = random.random(design.canaries) < 0.5  # noqa: PLR2004 — a fair coin
        scores = random.standard_normal(design.canaries) + mu * (included - 0.5) + (design.threshold or 0.0)
        if design.delta == 0:
            scores = np.where(random.random(design.canaries) < right, included, ~included) + 1e-3 * scores
        for which in design.bounds:
            sums[which] += design.epsilon(which, scores, included)[0]
    return {which.value: total / runs for which, total in sums.items()}


def _perfect(which: Bound, canaries: int, *, delta: float, confidence: float) -> float:
    threshold = 0.0 if which is Bound.GAUSSIAN_THRESHOLD else None
    whole = Design(
        canaries=canaries,
        guesses_in=canaries // 2,
        guesses_out=canaries // 2,
        claimed=0.0,
        delta=delta,
        confidence=confidence,
        bounds=(which,),
        threshold=threshold,
    )
    return whole.cap(which)


def _refuted(design: Design, run: Observed) -> dict[Bound, tuple[float, dict[str, int]]]:
    if run.coins.design != design.digest():
        raise AuditError(
            f"coins of design {run.coins.design[:16]}…: expected {design.digest()[:16]}…; "
            "flip coins with design.flip() before training"
        )
    shape = np.shape(run.scores)
    _check.require(
        shape == (design.canaries,), "scores.shape", shape, wanted=f"({design.canaries},), one score per canary"
    )
    if not np.isfinite(run.scores).all():
        raise AuditError("scores: NaN or inf among them; score every canary with a finite number")
    return {which: design.epsilon(which, run.scores, run.coins.included) for which in design.bounds}


def _verdict(design: Design, found: dict[Bound, tuple[float, dict[str, int]]], *, control: Outcome | None) -> Outcome:
    if any(epsilon > design.claimed for epsilon, _ in found.values()):
        return Outcome.REFUTED
    able = any(design.cap(which) > design.claimed for which in design.bounds)
    return Outcome.CONSISTENT if able and control is Outcome.REFUTED else Outcome.UNINFORMATIVE


def _finding(design: Design, which: Bound, epsilon: float, counts: dict[str, int], control: Outcome | None) -> Finding:
    cap = design.cap(which)
    outcome = Outcome.REFUTED if epsilon > design.claimed else Outcome.UNINFORMATIVE
    if outcome is not Outcome.REFUTED and cap > design.claimed and control is Outcome.REFUTED:
        outcome = Outcome.CONSISTENT
    return Finding(
        epsilon_low=epsilon,
        delta=design.delta,
        confidence=design.share,
        method=which.value,
        outcome=outcome,
        cap=cap,
        claimed=design.claimed,
        counts={"canaries": design.canaries, **counts},
        settings={
            "guesses_in": design.guesses_in,
            "guesses_out": design.guesses_out,
            "threshold": design.threshold,
            "unit": design.unit.value,
        },
        notes=(f"speaks of {SPEAKS_OF[which]}", *_why_uninformative(design, cap, outcome, control)),
    )


def _why_uninformative(design: Design, cap: float, outcome: Outcome, control: Outcome | None) -> Sequence[str]:
    if outcome is not Outcome.UNINFORMATIVE:
        return ()
    if cap <= design.claimed:
        return (f"the cap of this design, {cap:.2f}, does not exceed the claim of {design.claimed:g}",)
    return (
        ("no positive control was run",)
        if control is None
        else ("the positive control was not refuted, so the attack has no power",)
    )
