"""One membership audit, whole: attacks, blind baseline, duplicates, ranking, and what may be said about them.

A ranking of natural records never gives an ε: only coins do (:mod:`privguard.audit.design`). What it can say is whether
an attacker tells members from others better than chance, better than without the model, and for which records.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from torch import Tensor, nn

from privguard import _check
from privguard.audit import roc, score
from privguard.audit.attack import Attack, Evidence, LiRA, Loss, tune_rmia
from privguard.audit.blind import SHARED, Baseline, Blind, blind_baseline
from privguard.audit.reference import References
from privguard.audit.roc import Auc, Rate
from privguard.records import Measurement

LEVEL = 0.05  # of all attacks together, after Holm
FEW = 1_000  # non-members below which 0.1 % false positives rest on nothing

NOT_CLAIMED = (
    "that the model is private: an attack that fails may be a weak attack",
    "an ε: records that were not included by recorded coins support no bound",
    "that any one record was a member: read the precision at a prior instead",
)


class Assignment(StrEnum):
    """How members and non-members came about."""

    RANDOMISED = "randomised by this audit"
    CLAIMED = "said to be random"
    UNKNOWN = "unknown"


class Leak(StrEnum):
    """What the attacks found, in words that the split supports."""

    FOUND = "members stand out beyond the blind baseline"
    NOT_FOUND = "no attack tells members from others better than chance"
    EXPLAINED = "the split alone explains what the attacks found"


@final
@dataclass(frozen=True)
class Examples:
    """Records (n, ...) and their labels (n,)."""

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@final
@dataclass(frozen=True, kw_only=True)
class AttackResult(Measurement):
    """One attack: its ranking, the p-value that members do not score higher, and that value after Holm.

    Holm is taken over all attacks of the audit. ``beyond_blind`` is the one-sided 99 % lower end of its AUC less the
    blind baseline's, for all attacks together; None where no baseline was run.
    """

    attack: str
    auc: Auc
    rates: tuple[Rate, ...]
    p_value: float
    p_holm: float
    beyond_blind: float | None


@final
@dataclass(frozen=True, kw_only=True)
class Membership(Measurement):
    """Everything that a membership audit found, and what it does not claim."""

    leak: Leak
    attacks: tuple[AttackResult, ...]
    blind: Blind
    members: int
    non_members: int
    duplicates: int
    assignment: Assignment
    access: str
    target: str
    references: int
    vulnerable: tuple[int, ...]
    stability: float | None
    not_claimed: tuple[str, ...] = NOT_CLAIMED
    notes: tuple[str, ...] = field(default=())


@final
@dataclass(frozen=True)
class Attacked:
    """The record of an audit, and the statistics (n,) behind it for plots: members first."""

    record: Membership
    statistics: dict[str, NDArray[np.float64]]
    members: NDArray[np.bool_]
    blind: NDArray[np.float64]


def run(
    model: nn.Module | score.ScoringFunction,
    members: Examples,
    non_members: Examples,
    *,
    references: References | None = None,
    attacks: Sequence[Attack] = (),
    assignment: Assignment = Assignment.UNKNOWN,
) -> Attacked:
    """Attack a model, or any function from inputs to logits, with everything that the evidence allows.

    ``references`` are models trained on rows of members followed by non-members (``included`` (R, n) in that order).
    The attacks run are the loss, with references LiRA and a tuned RMIA, and ``attacks``; every one is listed and paid
    for. Non-members that stand among the members too are left out.

    Raises:
        ValueError: where shapes disagree or either side has fewer than ten records.
    """
    keep = _without_duplicates(members, non_members)
    inputs, labels = _joined(members, non_members)
    mask = np.arange(len(labels)) < len(members)
    evidence = _evidence(model, inputs, labels, references)
    own = [Loss(), *((LiRA(), tune_rmia(evidence)) if references is not None else ())]
    chosen = [*own, *attacks]
    statistics = {attack.name: attack.statistic(evidence)[keep] for attack in chosen}
    features = np.concatenate([inputs.flatten(1).numpy(), np.eye(int(labels.max()) + 1)[labels.numpy()]], 1)
    blind = blind_baseline(features[keep], mask[keep])
    results = weigh(statistics, mask[keep], blind)
    record = Membership(
        leak=leak_of(results, blind.record),
        attacks=results,
        blind=blind.record,
        members=len(members),
        non_members=int((~mask[keep]).sum()),
        duplicates=len(labels) - len(keep),
        assignment=assignment,
        access="logits" if references is None else "logits and reference models",
        target=target_digest(model),
        references=0 if references is None else len(references.states),
        vulnerable=_most_exposed(statistics[own[-1].name], mask[keep], keep),
        stability=_stability(evidence),
        notes=_notes(mask[keep], assignment),
    )
    return Attacked(record, statistics, mask[keep], blind.scores)


def weigh(
    statistics: dict[str, NDArray[np.float64]], members: ArrayLike, blind: Baseline | None
) -> tuple[AttackResult, ...]:
    """AUC, rates and p-values of every attack that was run; each pays for all of them (Holm)."""
    p_values = {name: roc.above_chance_p(values, members) for name, values in statistics.items()}
    adjusted = roc.holm(p_values)
    return tuple(
        AttackResult(
            attack=name,
            auc=roc.auc(values, members),
            rates=tuple(roc.rates(values, members)),
            p_value=p_values[name],
            p_holm=adjusted[name],
            beyond_blind=None
            if blind is None
            else roc.auc_gain_low99(values, blind.scores, members, tests=len(statistics), inflation=SHARED),
        )
        for name, values in statistics.items()
    )


def target_digest(model: nn.Module | score.ScoringFunction) -> str:
    """SHA-256 over a module's parameters and buffers in name order; for a plain function, its name."""
    if not isinstance(model, nn.Module):
        return f"function {getattr(model, '__qualname__', type(model).__name__)}"
    state = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        state.update(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
        state.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def leak_of(results: Sequence[AttackResult], blind: Blind) -> Leak:
    """The word that the attacks and the split support together."""
    significant = [result for result in results if result.p_holm <= LEVEL]
    if not significant:
        return Leak.NOT_FOUND
    beyond = any(result.beyond_blind is not None and result.beyond_blind > 0 for result in significant)
    return Leak.EXPLAINED if blind.flagged and not beyond else Leak.FOUND


def _without_duplicates(members: Examples, non_members: Examples) -> NDArray[np.int64]:
    twice = score.near_duplicates(members.inputs.numpy(), non_members.inputs.numpy())
    keep = np.ones(len(members) + len(non_members), bool)
    keep[len(members) + twice] = False
    return np.flatnonzero(keep)


def _evidence(
    model: nn.Module | score.ScoringFunction, inputs: Tensor, labels: Tensor, references: References | None
) -> Evidence:
    logits = score.model_logits(model, inputs)
    if references is None:
        return Evidence(logits=logits, labels=labels.numpy())
    shape = references.included.shape
    _check.require(
        shape[1] == len(labels), "references.included", shape, wanted=f"(R, {len(labels)}), members before non-members"
    )
    return Evidence(
        logits=logits, labels=labels.numpy(), reference_logits=references.logits(inputs), included=references.included
    )


def _joined(members: Examples, non_members: Examples) -> tuple[Tensor, Tensor]:
    shapes = (tuple(members.inputs.shape[1:]), tuple(non_members.inputs.shape[1:]))
    _check.require(shapes[0] == shapes[1], "shapes", shapes, wanted="members and non-members of one shape")
    return torch.cat([members.inputs, non_members.inputs]), torch.cat([members.labels, non_members.labels])


def _most_exposed(
    statistic: NDArray[np.float64], members: NDArray[np.bool_], keep: NDArray[np.int64]
) -> tuple[int, ...]:
    order = np.argsort(-statistic, kind="stable")
    return tuple(int(keep[i]) for i in order if members[i])[:20]


def _stability(evidence: Evidence) -> float | None:
    """Spearman correlation of LiRA from the odd and from the even references: how much the ranking is their draw."""
    if evidence.reference_logits is None or evidence.included is None or len(evidence.included) < 4:  # noqa: PLR2004 — two halves of two
        return None
    halves = [
        LiRA().statistic(
            Evidence(
                logits=evidence.logits,
                labels=evidence.labels,
                reference_logits=evidence.reference_logits[half::2],
                included=evidence.included[half::2],
            )
        )
        for half in (0, 1)
    ]
    ranks = [stats.rankdata(half) for half in halves]
    return float(np.corrcoef(ranks)[0, 1])


def _notes(members: NDArray[np.bool_], assignment: Assignment) -> tuple[str, ...]:
    others = int((~members).sum())
    few = (
        (f"{others} non-members: rates below {1 / others:.2%} false positives cannot be measured",)
        if others < FEW
        else ()
    )
    doubt = (
        ()
        if assignment is Assignment.RANDOMISED
        else (f"how members were chosen is {assignment.value}; only the blind baseline speaks for it",)
    )
    return (
        *few,
        *doubt,
        "one target was attacked: another draw of members may move low-rate figures by several points",
        "thresholds were taken on the target's own non-members",
    )
