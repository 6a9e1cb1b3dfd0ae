# SPDX-License-Identifier: Apache-2.0
"""One membership audit, whole: attacks, blind baseline, duplicates, ranking, and what may be said about them.

A ranking of natural records never gives an ε: only coins do (``privguard.audit.one_run.design``). What it can say
is whether
an attacker tells members from others better than chance, better than without the model, and for which records.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from privguard import _check
from privguard.audit.membership import score
from privguard.audit.membership.attack import Attack, Evidence, LiRA, Loss, tune_rmia
from privguard.audit.membership.blind import Baseline, Blind, blind_baseline
from privguard.audit.membership.verdict import NOT_CLAIMED, AttackResult, Exposed, Leak, weigh
from privguard.audit.references.reference import References
from privguard.records import Measurement

FEW = 1_000  # non-members below which 0.1 % false positives rest on nothing


class Assignment(StrEnum):
    """How members and non-members came about."""

    RANDOMISED = "randomised by this audit"
    CLAIMED = "said to be random"
    UNKNOWN = "unknown"


@final
@dataclass(frozen=True)
class Examples:
    """Records (n, ...) and their labels (n,); ``groups`` (n,) names a group for each, such as a site or a language."""

    inputs: Tensor
    labels: Tensor
    groups: NDArray[np.generic] | None = None

    def __len__(self) -> int:
        return len(self.labels)


@final
@dataclass(frozen=True, kw_only=True)
class Membership(Measurement):
    """Everything that a membership audit found, and what it does not claim.

    ``limit`` says how far a leak that was found goes, where this audit did not choose the members itself.
    """

    leak: Leak
    limit: str | None
    attacks: tuple[AttackResult, ...]
    blind: Blind
    members: int
    non_members: int
    duplicates: int
    assignment: Assignment
    access: str
    target: str
    references: int
    exposed: Exposed
    stability: float | None
    not_claimed: tuple[str, ...] = NOT_CLAIMED
    notes: tuple[str, ...] = field(default=())


@final
@dataclass(frozen=True)
class Attacked:
    """The record of an audit, and the statistics (n,) behind it for plots: members first.

    ``ranking`` numbers the members from the most exposed one on. It names people: it belongs in a sealed annex and
    never in a report that goes round.
    """

    record: Membership
    statistics: dict[str, NDArray[np.float64]]
    members: NDArray[np.bool_]
    blind: NDArray[np.float64]
    ranking: tuple[int, ...]


def run(
    model: object,
    members: Examples,
    non_members: Examples,
    *,
    references: References | None = None,
    attacks: Sequence[Attack] = (),
    assignment: Assignment = Assignment.UNKNOWN,
) -> Attacked:
    """Attack a torch module, an estimator with ``predict_proba`` or ``predict``, or a function from inputs to logits.

    ``references`` are models trained on rows of members followed by non-members (``included`` (R, n) in that order).
    The attacks run are the loss, with references LiRA and a tuned RMIA, and ``attacks``; every one is listed and paid
    for. Non-members that stand among the members too are left out. Where
    both sides name the group of each record, each group is tested by itself too, and paid for.

    Labels with fractions make it an audit of a regression: one number per record, scored by its residual.

    Args:
        model: what is attacked.
        members: records that it was trained on.
        non_members: records of the same kind that it was not.
        references: models trained on random halves; None for none.
        attacks: more attacks, each with a name of its own.
        assignment: how members and non-members came about.

    Raises:
        ValueError: where shapes disagree, either side has fewer than ten records, or two attacks have one name.
    """
    keep = _without_duplicates(members, non_members)
    inputs, labels = _joined(model, members, non_members)
    mask = np.arange(len(labels)) < len(members)
    evidence = _evidence(model, inputs, labels, references)
    access = str(getattr(model, "access", "outputs"))
    own = [
        Loss("label-only" if access == "labels" else "loss"),
        *((LiRA(), tune_rmia(evidence)) if references is not None else ()),
    ]
    chosen = [*own, *attacks]
    names = [attack.name for attack in chosen]
    _check.require(
        len(set(names)) == len(names), "attacks", names, wanted="a name of its own for each, so all are paid"
    )
    statistics = {attack.name: attack.statistic(evidence)[keep] for attack in chosen}
    blind = _blind(inputs[keep], labels[keep], mask[keep])
    weighed = weigh(statistics, mask[keep], blind, groups=_groups(members, non_members, keep))
    record = Membership(
        leak=weighed.leak or Leak.NOT_FOUND,
        limit=None if assignment is Assignment.RANDOMISED else weighed.limit,
        attacks=weighed.attacks,
        blind=blind.record,
        members=len(members),
        non_members=int((~mask[keep]).sum()),
        duplicates=len(labels) - len(keep),
        assignment=assignment,
        access=access if references is None else f"{access} and reference models",
        target=target_digest(model),
        references=0 if references is None else len(references.states),
        exposed=weighed.exposed,
        stability=_stability(evidence),
        notes=(*weighed.notes, *_notes(mask[keep], assignment)),
    )
    ranking = _most_exposed(statistics[weighed.exposed.attack], mask[keep], keep)
    return Attacked(record, statistics, mask[keep], blind.scores, ranking)


def target_digest(model: object) -> str:
    """SHA-256 over a module's parameters and buffers in name order; for a plain function, its name.

    Args:
        model: a module, what wraps one, or a function.
    """
    while not isinstance(model, nn.Module) and hasattr(model, "wrapped"):
        model = model.wrapped  # type: ignore[attr-defined] — what reads a model's outputs in another way
    if hasattr(model, "address"):
        return f"address {model.address}"  # type: ignore[attr-defined] — a model behind HTTP
    if not isinstance(model, nn.Module):
        return f"function {getattr(model, '__qualname__', type(model).__name__)}"
    state = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        state.update(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
        state.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def _without_duplicates(members: Examples, non_members: Examples) -> NDArray[np.int64]:
    twice = score.near_duplicates(members.inputs.numpy(), non_members.inputs.numpy())
    keep = np.ones(len(members) + len(non_members), bool)
    keep[len(members) + twice] = False
    return np.flatnonzero(keep)


def _evidence(model: object, inputs: Tensor, labels: Tensor, references: References | None) -> Evidence:
    if labels.is_floating_point():
        scale, classes = float(labels.std()), np.zeros(len(labels), np.int64)
        logits = score.regression_logits(model, inputs, labels.numpy(), scale=scale)
    else:
        logits, classes = score.model_logits(model, inputs), labels.numpy()
    if references is None:
        return Evidence(logits=logits, labels=classes)
    shape = references.included.shape
    _check.require(
        shape[1] == len(labels), "references.included", shape, wanted=f"(R, {len(labels)}), members before non-members"
    )
    _check.require(not labels.is_floating_point(), "references", "regression", wanted="no references for regression")
    return Evidence(
        logits=logits, labels=classes, reference_logits=references.logits(inputs), included=references.included
    )


def _joined(model: object, members: Examples, non_members: Examples) -> tuple[Tensor, Tensor]:
    shapes = (tuple(members.inputs.shape[1:]), tuple(non_members.inputs.shape[1:]))
    _check.require(shapes[0] == shapes[1], "shapes", shapes, wanted="members and non-members of one shape")
    labels = torch.cat([members.labels.reshape(-1), non_members.labels.reshape(-1)])
    fractions = labels.is_floating_point() and bool((labels != labels.floor()).any())
    if not fractions:
        labels = torch.from_numpy(score.class_numbers(model, labels.numpy()))
    return torch.cat([members.inputs, non_members.inputs]), labels


def _blind(inputs: Tensor, labels: Tensor, members: NDArray[np.bool_]) -> Baseline:
    """What the blind models see: tokens as a text of numbers, all else as numbers, and the labels in either."""
    if not inputs.is_floating_point() and inputs.dtype is not torch.uint8:
        rows = inputs.flatten(1).tolist()
        named = zip(labels.tolist(), rows, strict=True)
        return blind_baseline([f"label{label} {' '.join(map(str, row))}" for label, row in named], members)
    targets = labels.double().numpy()[:, None] if labels.is_floating_point() else np.eye(int(labels.max()) + 1)[labels]
    return blind_baseline(inputs.double().numpy(), members, beside=targets)


def _groups(members: Examples, non_members: Examples, keep: NDArray[np.int64]) -> NDArray[np.generic] | None:
    if members.groups is None or non_members.groups is None:
        return None
    return np.concatenate([members.groups, non_members.groups])[keep]


def _most_exposed(
    statistic: NDArray[np.float64], members: NDArray[np.bool_], keep: NDArray[np.int64]
) -> tuple[int, ...]:
    order = np.argsort(-statistic, kind="stable")
    return tuple(int(keep[i]) for i in order if members[i])


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
