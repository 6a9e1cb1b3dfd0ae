# SPDX-License-Identifier: Apache-2.0
"""What can be chosen about the demonstration, by a TOML file for instance, and what follows from it beforehand."""

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, final

from privguard import _check
from privguard.audit.one_run.design import Bound, Design
from privguard.demo.digits import PRIVATE
from privguard.records import Record
from privguard.training.plan import Plan


@final
@dataclass(frozen=True, kw_only=True)
class Settings(Record):
    """The demonstration's choices; the defaults tell the whole story in seconds.

    Attributes:
        epsilon: what the training may spend.
        delta: δ of the guarantee.
        steps: private steps, each on everybody (sampling rate 1).
        max_grad_norm: clipping norm of one example.
        learning_rate: of SGD with momentum 0.9.
        hidden: units between the two layers.
        canaries: records that ride along by a fair coin each, so that the run can be audited.
        confidence: of the two audits. They split their error over both sides of a threshold, and to refute an exact run
            both sides have to err, which at 0.999 happens in 1 run of 400,000.
        false_alarm: chance that a correct step fails any of its checks.
        references: models that show what the target would say had it not seen a record.
        triggers: committed trigger inputs; a quarter of them is opened for each suspect.
        teaching: steps in which the released model learns them.
        thief_epochs: passes of each thief over its own 200 images.
        prune: share of the weights that the pruning thief removes.
        bits: bits of a weight that the quantising thief keeps.
    """

    epsilon: float = 3.0
    delta: float = 1e-4
    steps: int = 40
    max_grad_norm: float = 0.5
    learning_rate: float = 2.0
    hidden: int = 256
    canaries: int = 500
    confidence: float = 0.999
    false_alarm: float = 1e-6
    references: int = 8
    triggers: int = 72
    teaching: int = 300
    thief_epochs: int = 40
    prune: float = 0.5
    bits: int = 4

    def __post_init__(self) -> None:
        for name in ("epsilon", "learning_rate"):
            _check.positive(name, getattr(self, name))
        clip = 0 < self.max_grad_norm <= 10  # noqa: PLR2004 — a tenth of a canary's raw gradient
        _check.require(clip, "max_grad_norm", self.max_grad_norm, wanted="a number in (0, 10]")
        for name in ("steps", "hidden", "teaching", "thief_epochs"):
            _check.count(name, getattr(self, name))
        _check.probability("delta", self.delta, remedy="below 1 over the number of examples")
        for name in ("prune", "confidence", "false_alarm"):
            _check.probability(name, getattr(self, name))
        _check.count("canaries", self.canaries, least=40, remedy="fewer could not refute anything")
        _check.count("references", self.references, least=2, remedy="a record has to be in some and out of others")
        _check.count("triggers", self.triggers, least=32, remedy="each of four suspects is asked a quarter of them")
        _check.count("bits", self.bits, least=2)

    @classmethod
    def read(cls, path: Path) -> "Settings":
        """The settings in a TOML file; what it leaves out keeps its default.

        Raises:
            ValueError: not TOML, or a name or a value that is no setting.
        """
        try:
            given: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"config={str(path)!r}: expected TOML such as 'epsilon = 3.0'; {error}") from None
        known = {entry.name for entry in fields(cls)}
        for name in given:
            _check.require(
                name in known, f"config={str(path)!r}: setting", name, wanted=f"one of {', '.join(sorted(known))}"
            )
        return cls(**given)

    def plan(self) -> Plan:
        """The plan of the private training: everybody in every step, canaries counted at half their number."""
        size = PRIVATE + self.canaries // 2
        return Plan.for_budget(
            epsilon=self.epsilon,
            delta=self.delta,
            examples=size,
            batch_size=size,
            epochs=self.steps,
            max_grad_norm=self.max_grad_norm,
        )

    def design(self) -> Design:
        """The audit of the run itself: a canary that is in scores one clipping norm a step, the others none."""
        return Design(
            canaries=self.canaries,
            guesses_in=self.canaries // 4,
            guesses_out=self.canaries // 4,
            claimed=self.epsilon,
            delta=self.delta,
            confidence=self.confidence,
            bounds=(Bound.GAUSSIAN_THRESHOLD,),
            threshold=self.steps / 2,
        )

    def outline(self) -> "Outline":
        """What would be done, from public numbers alone; nothing is trained and nothing is written."""
        plan, design = self.plan(), self.design()
        return Outline(
            settings=self,
            plan=plan,
            audit_cap=design.cap(Bound.GAUSSIAN_THRESHOLD),
            right_calls_to_refute=design.needed(Bound.GAUSSIAN_THRESHOLD),
        )


@final
@dataclass(frozen=True, kw_only=True)
class Outline(Record):
    """A demonstration before it runs: its plan, the ε that a perfect attack could show, and the calls that refute."""

    settings: Settings
    plan: Plan
    audit_cap: float
    right_calls_to_refute: int | None
