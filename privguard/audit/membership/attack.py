# SPDX-License-Identifier: Apache-2.0
"""Attacks on membership: what was observed in, one statistic per record out; a larger one speaks for membership.

Two families. The likelihood-ratio attack (LiRA) compares how well the target's confidence fits the references that saw
a record with those that did not. RMIA compares the target with the mean reference, and asks how many records of a
population are beaten. Without references there is the loss, and without scores the label; both are floors.
"""

from dataclasses import dataclass
from itertools import product
from typing import Protocol, final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from privguard import _check
from privguard.audit.membership import roc, score
from privguard.errors import AuditError

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@final
@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What an attacker holds about n records, and nothing about who is a member of the target.

    ``logits`` (n, classes) and ``labels`` (n,) are the target's; ``reference_logits`` (R, n, classes) those of R
    references, of which ``included`` (R, n) says which records each was trained on. ``population`` is the same
    (logits, labels, reference logits) for records that no model was trained on.
    """

    logits: NDArray[np.floating]
    labels: NDArray[np.integer]
    reference_logits: NDArray[np.floating] | None = None
    included: BoolArray | None = None
    population: "tuple[NDArray[np.floating], NDArray[np.integer], NDArray[np.floating]] | None" = None

    def __post_init__(self) -> None:
        records = len(self.logits)
        _check.require(self.labels.shape == (records,), "labels.shape", self.labels.shape, wanted=f"({records},)")
        if self.reference_logits is not None and self.included is not None:
            shape = (len(self.reference_logits), records)
            _check.require(self.included.shape == shape, "included.shape", self.included.shape, wanted=f"{shape}")

    def references(self) -> tuple[NDArray[np.floating], BoolArray]:
        """The references' logits and what each saw.

        Raises:
            AuditError: where there are none.
        """
        if self.reference_logits is None or self.included is None:
            raise AuditError("references=None: this attack needs reference models; train_references makes them")
        return self.reference_logits, self.included


class Attack(Protocol):
    """One method and a name; to vary an attack, wrap it."""

    @property
    def name(self) -> str:
        """How a report calls it."""
        ...

    def statistic(self, evidence: Evidence) -> FloatArray:
        """One number per record (n,), larger for a likelier member.

        Args:
            evidence: logits of target and references, n records.
        """
        ...


@final
@dataclass(frozen=True)
class Loss:
    """The loss itself (Yeom et al. 2018): an average leak, near useless at low false-positive rates."""

    name: str = "loss"

    def statistic(self, evidence: Evidence) -> FloatArray:
        """Minus the cross-entropy in nats.

        Args:
            evidence: logits of target and references, n records.
        """
        return -score.loss(evidence.logits, evidence.labels)


@final
@dataclass(frozen=True)
class LabelOnly:
    """What labels alone give: the share of ``answers`` (n, A) on A altered copies of a record that are right.

    A floor for models that answer with a label. With one unaltered copy it is the gap attack of Yeom et al. 2018, with
    more the attack by augmentations of Choquette-Choo et al. 2021 (arXiv:2007.14321).
    """

    answers: NDArray[np.integer]
    name: str = "label-only"

    def statistic(self, evidence: Evidence) -> FloatArray:
        """The share of right answers, in [0, 1].

        Args:
            evidence: logits of target and references, n records.
        """
        right = np.asarray(self.answers) == evidence.labels[:, None]
        return right.mean(1)


class Variance(Protocol):
    """How LiRA gets a density from few references: log density of ``x`` around ``mean``, all (n,)."""

    def log_density(self, x: FloatArray, side: "Side") -> FloatArray:
        """Log density of the target's confidence under this side.

        Args:
            x: the target's confidence in each record, (n,).
            side: moments of the references on one side.
        """
        ...


@final
@dataclass(frozen=True)
class Side:
    """Per record (n,): mean, sum of squared residuals and number of the references that saw it, or did not.

    ``pooled`` is the residual variance over all records.
    """

    mean: FloatArray
    squares: FloatArray
    count: NDArray[np.int64]
    pooled: float


@final
@dataclass(frozen=True)
class Pooled:
    """One variance for all records: steady with few references."""

    def log_density(self, x: FloatArray, side: Side) -> FloatArray:
        """Normal with the pooled variance.

        Args:
            x: the target's confidence in each record, (n,).
            side: moments of the references on one side.
        """
        return -0.5 * (np.log(side.pooled) + (x - side.mean) ** 2 / side.pooled)


@final
@dataclass(frozen=True)
class PerExample:
    """A variance of each record's own: needs about 64 references, and falls back to the pooled one below two."""

    def log_density(self, x: FloatArray, side: Side) -> FloatArray:
        """Normal with the record's own variance.

        Args:
            x: the target's confidence in each record, (n,).
            side: moments of the references on one side.
        """
        own = side.squares / np.maximum(side.count - 1, 1)
        variance = np.where(side.count > 1, np.maximum(own, 1e-3 * side.pooled), side.pooled)
        return -0.5 * (np.log(variance) + (x - side.mean) ** 2 / variance)


@final
@dataclass(frozen=True)
class Bayesian:
    """A record's own variance, drawn towards the pooled one by ``strength`` pseudo-references: a Student t.

    It goes from the pooled to the per-example rule as references come in, so there is no switch to set. Source: the
    normal-inverse-gamma predictive of BaVarIA (arXiv:2603.11799). Anything from 2 to 16 gives much the same ranking.
    """

    strength: float = 6.0

    def log_density(self, x: FloatArray, side: Side) -> FloatArray:
        """Student t with strength + count - 1 degrees of freedom.

        Args:
            x: the target's confidence in each record, (n,).
            side: moments of the references on one side.
        """
        freedom = self.strength + np.maximum(side.count - 1, 0)
        width = (self.strength * side.pooled + side.squares) / freedom * (1 + 1 / np.maximum(side.count, 1))
        shape = special.gammaln((freedom + 1) / 2) - special.gammaln(freedom / 2) - 0.5 * np.log(freedom * width)
        return shape - (freedom + 1) / 2 * np.log1p((x - side.mean) ** 2 / (freedom * width))


@final
@dataclass(frozen=True)
class LiRA:
    """Online likelihood-ratio attack (Carlini et al. 2022, arXiv:2112.03570) on the logit-scaled confidence.

    A record that lacks references on one side borrows that side from the other by the mean gap.
    """

    variance: Variance = Bayesian()
    name: str = "lira"

    def statistic(self, evidence: Evidence) -> FloatArray:
        """Log likelihood ratio, in nats.

        Args:
            evidence: logits of target and references, n records.
        """
        target = score.scaled_confidence(evidence.logits, evidence.labels)
        inside, outside = _sides(*_scaled_references(evidence))
        return self.variance.log_density(target, inside) - self.variance.log_density(target, outside)


@final
@dataclass(frozen=True)
class OfflineLiRA:
    """LiRA from references that never saw a record: how far the target's confidence lies above theirs."""

    variance: Variance = Bayesian()
    name: str = "lira-offline"

    def statistic(self, evidence: Evidence) -> FloatArray:
        """Signed square root of twice the drop in log density from the outside mean.

        Args:
            evidence: logits of target and references, n records.
        """
        target = score.scaled_confidence(evidence.logits, evidence.labels)
        _, outside = _sides(*_scaled_references(evidence))
        drop = self.variance.log_density(outside.mean, outside) - self.variance.log_density(target, outside)
        return np.sign(target - outside.mean) * np.sqrt(2 * np.maximum(drop, 0))


@final
@dataclass(frozen=True)
class RMIA:
    """Relative attack (Zarifzadeh, Liu, Shokri 2024, arXiv:2312.03262): the share of a population that a record beats.

    ``temperature`` (dimensionless) keeps confidences from saturating at 1; ``offline_a`` turns the mean outside
    confidence into the mean over models, where nothing that saw the record is at hand. Equal shares are ranked by the
    raw ratio, without which low false-positive rates drown in ties. For one target the share ranks as the ratio does;
    what it adds is a scale that two targets have in common.
    """

    temperature: float = 2.0
    offline_a: float = 0.3
    gamma: float = 1.0
    name: str = "rmia"

    def statistic(self, evidence: Evidence) -> FloatArray:
        """Share of the population beaten by the factor ``gamma``, in [0, 1), plus a tie-break below one share.

        Args:
            evidence: logits of target and references, n records.
        """
        references, included = evidence.references()
        ratios = self.log_ratio(evidence.logits, evidence.labels, references, included)
        beaten, size = np.zeros(len(ratios)), 1
        if evidence.population is not None:
            logits, labels, outside = evidence.population
            others = np.sort(self.log_ratio(logits, labels, outside, np.zeros(outside.shape[:2], bool)))
            beaten, size = np.searchsorted(others, ratios - np.log(self.gamma), side="right"), len(others)
        _, ties = np.unique(ratios, return_inverse=True)
        return (beaten + ties / (ties.max() + 1)) / (size + 1)

    def log_ratio(self, logits: ArrayLike, labels: ArrayLike, references: ArrayLike, included: BoolArray) -> FloatArray:
        """Log p(x | target) - log p(x), with p(x) the mean over models that saw x and models that did not.

        Args:
            logits: (n, classes).
            labels: (n,).
            references: logits of the references, (R, n, classes).
            included: which reference saw which record, (R, n).
        """
        own = score.log_confidence(logits, labels, temperature=self.temperature)
        p = np.exp(score.log_confidence(references, labels, temperature=self.temperature))
        seen = included.sum(0)
        unseen = len(included) - seen
        inside = np.where(included, p, 0).sum(0) / np.maximum(seen, 1)
        outside = np.where(included, 0, p).sum(0) / np.maximum(unseen, 1)
        # The paper's line between the two worlds, used in whichever direction is missing.
        inside = np.where(seen > 0, inside, self.offline_a * outside + 1 - self.offline_a)
        below = np.maximum(inside - (1 - self.offline_a), 1e-12) / max(self.offline_a, 1e-12)
        outside = np.where(unseen > 0, outside, np.minimum(below, inside))
        return own - np.log((inside + outside) / 2)


TEMPERATURES = (1.0, 1.5, 2.0, 3.0, 4.0)
OFFLINE_A = (0.1, 0.3, 0.6, 0.9)


def tune_rmia(evidence: Evidence, *, at: float = 0.01) -> RMIA:
    """RMIA with the temperature and ``offline_a`` that find most members of the references, each attacked by the rest.

    Guarantee: the target's logits are never read, so the choice costs no multiplicity. It needs two references.

    Args:
        evidence: logits of target and references, n records.
        at: false-positive rate at which members are counted, in (0, 1).
    """
    references, included = evidence.references()
    _check.require(len(references) > 1, "references", len(references), wanted="at least 2, to attack one with another")

    def found(attack: RMIA) -> float:
        return sum(_found(attack, (references, included), k, evidence, at) for k in range(min(len(references), 8)))

    return max((RMIA(temperature, a) for temperature, a in product(TEMPERATURES, OFFLINE_A)), key=found)


def _found(
    attack: RMIA, models: "tuple[NDArray[np.floating], BoolArray]", k: int, evidence: Evidence, at: float
) -> float:
    references, included = models
    rest = np.arange(len(references)) != k
    ratios = attack.log_ratio(references[k], evidence.labels, references[rest], included[rest])
    counted = roc.true_positive_rate(ratios, included[k], at=at)
    return counted.true_positives / counted.members


def _scaled_references(evidence: Evidence) -> tuple[FloatArray, BoolArray]:
    references, included = evidence.references()
    return score.scaled_confidence(references, evidence.labels), included


def _sides(confidences: FloatArray, included: BoolArray) -> tuple[Side, Side]:
    """Statistics (n,) of the references that saw each record and of those that did not."""
    inside, outside = _moments(confidences, included), _moments(confidences, ~included)
    both = (inside[2] > 0) & (outside[2] > 0)
    gap = float((inside[0] - outside[0])[both].mean()) if both.any() else 0.0
    means = (
        np.where(inside[2] > 0, inside[0], outside[0] + gap),
        np.where(outside[2] > 0, outside[0], inside[0] - gap),
    )
    return (
        Side(means[0], inside[1], inside[2], _pooled(inside, confidences)),
        Side(means[1], outside[1], outside[2], _pooled(outside, confidences)),
    )


def _moments(confidences: FloatArray, mask: BoolArray) -> tuple[FloatArray, FloatArray, NDArray[np.int64]]:
    count = mask.sum(0)
    mean = np.where(mask, confidences, 0).sum(0) / np.maximum(count, 1)
    return mean, np.where(mask, (confidences - mean) ** 2, 0).sum(0), count


def _pooled(moments: tuple[FloatArray, FloatArray, NDArray[np.int64]], confidences: FloatArray) -> float:
    """Residual variance with its degrees of freedom; the spread of everything where no record has two references."""
    _, squares, count = moments
    freedom = int(np.maximum(count - 1, 0).sum())
    return max(float(squares.sum()) / freedom if freedom else float(confidences.var()), 1e-12)
