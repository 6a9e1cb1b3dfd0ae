# SPDX-License-Identifier: Apache-2.0
"""Keyed triggers: inputs that nobody chose, with labels that nobody chose, which the marked model has learned.

Null: for a suspect made independently of the secret, each label is uniform over the alphabet whatever the suspect
answers, so matches of n triggers are exactly Bin(n, 1/K). No reference models are needed. That covers neither an
accuser who planted the answers in the suspect's training data nor one who chose the leaves; the protocol excludes the
second.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from privguard import _check
from privguard.records import Verdict
from privguard.watermark.claims import kinds
from privguard.watermark.claims.commitment import MarkPlan
from privguard.watermark.claims.leaf import Leaf
from privguard.watermark.statistics import null

PLANTED = "excludes an accuser who planted the marked answers in the suspect's training data"


@final
@dataclass(frozen=True, kw_only=True)
class Domain:
    """What a trigger looks like: ``shape`` without the batch axis, each element ``low`` or ``high`` with equal chance.

    Two levels are the strongest contrast that an input in [low, high] allows; such patterns hardly project on natural
    images, which is why training on natural images hardly moves what was learned on them.
    """

    shape: tuple[int, ...]
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        _check.require(all(size > 0 for size in self.shape), "shape", self.shape, wanted="positive sizes")
        _check.require(self.low < self.high, "low", self.low, wanted=f"below high={self.high}")

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "Domain":
        """The domain in a mark's committed settings.

        Args:
            settings: the mark's committed settings.
        """
        return cls(shape=tuple(settings["shape"]), low=float(settings["low"]), high=float(settings["high"]))


def plan(domain: Domain, *, classes: int, leaves: int, name: str = "triggers") -> MarkPlan:
    """A mark of ``leaves`` triggers over ``classes`` labels, for the manifest.

    Args:
        domain: what a trigger looks like.
        classes: size K of the label alphabet, at least 2.
        leaves: how many triggers.
        name: the mark's name.
    """
    _check.count("classes", classes, least=2)
    settings = {"shape": list(domain.shape), "low": domain.low, "high": domain.high, "classes": classes}
    return MarkPlan(name=name, kind="triggers", leaves=leaves, settings=settings)


def inputs(leaves: Sequence[Leaf], pulse: bytes, settings: Mapping[str, Any]) -> NDArray[np.float32]:
    """The triggers of these leaves, (n, *shape).

    Args:
        leaves: the leaves, n of them.
        pulse: the beacon's 64 random bytes.
        settings: the mark's committed settings.
    """
    domain = Domain.from_settings(settings)
    size = int(np.prod(domain.shape))
    drawn = [np.frombuffer(leaf.expand(pulse, "input", (size + 7) // 8), np.uint8) for leaf in leaves]
    if not drawn:
        return np.empty((0, *domain.shape), np.float32)
    bits = np.unpackbits(np.stack(drawn), axis=1, bitorder="little")[:, :size]
    return (domain.low + (domain.high - domain.low) * bits).astype(np.float32).reshape(-1, *domain.shape)


def labels(leaves: Sequence[Leaf], pulse: bytes, settings: Mapping[str, Any]) -> NDArray[np.int64]:
    """The labels of these leaves, (n,), uniform in [0, classes) and independent of the triggers.

    Args:
        leaves: the leaves, n of them.
        pulse: the beacon's 64 random bytes.
        settings: the mark's committed settings.
    """
    return np.array([leaf.below(int(settings["classes"]), pulse, "label") for leaf in leaves], np.int64)


def verdict(answers: Sequence[int], expected: Sequence[int], *, classes: int, multiplicity: float = 1.0) -> Verdict:
    """The exact verdict on one answer per trigger; an answer outside the alphabet is a miss.

    Args:
        answers: the suspect's label for each trigger, (n,).
        expected: the right labels, (n,).
        classes: size K of the label alphabet, at least 2.
        multiplicity: tests that the p-value pays for, at least 1.
    """
    _check.require(len(answers) == len(expected), "len(answers)", len(answers), wanted=f"{len(expected)}, one each")
    matches = int(np.sum(np.asarray(answers, np.int64) == np.asarray(expected, np.int64)))
    return null.verdict(
        null.BinomialCount(Fraction(1, classes)),
        scheme="triggers",
        score=matches,
        trials=len(expected),
        multiplicity=multiplicity,
        details={"alphabet": classes},
        notes=(f"null model: the suspect was made independently of the secret; {PLANTED}",),
    )


@final
@dataclass(frozen=True)
class Triggers:
    """The kind of mark: triggers as queries, labels as answers."""

    name: str = "triggers"
    readings: int = 2

    def queries(self, leaves: Sequence[Leaf], *, pulse: bytes, settings: Mapping[str, Any]) -> NDArray[np.float32]:
        """The triggers, (n, *shape).

        Args:
            leaves: the leaves, n of them.
            pulse: the beacon's 64 random bytes.
            settings: the mark's committed settings.
        """
        return inputs(leaves, pulse, settings)

    def verdict(
        self, answers: Sequence[int], leaves: Sequence[Leaf], *, pulse: bytes, settings: Mapping[str, Any]
    ) -> Verdict:
        """Matches with the leaves' labels.

        Args:
            answers: the suspect's label for each trigger, (n,).
            leaves: the leaves, n of them.
            pulse: the beacon's 64 random bytes.
            settings: the mark's committed settings.
        """
        return verdict(answers, labels(leaves, pulse, settings).tolist(), classes=int(settings["classes"]))


kinds.register_mark(Triggers())
