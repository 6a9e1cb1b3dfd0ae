# SPDX-License-Identifier: Apache-2.0
"""How the audit commands say what membership audits found."""

from pathlib import Path
from typing import TYPE_CHECKING

from privguard.cli._output import emit

if TYPE_CHECKING:
    from privguard.audit.membership.audit import Membership
    from privguard.audit.membership.roc import Rate
    from privguard.audit.membership.verdict import AttackResult, Exposed


def emit_scores(file: Path, *, as_json: bool) -> None:
    """Audit a file of scores and print what it shows."""
    from privguard.audit.membership.scores import audit_scores, read_scores

    found = audit_scores(read_scores(file))
    head = found.leak.value if found.leak else "no verdict on a leak: no records were given for the blind baseline"
    lines = [
        head,
        *([found.limit] if found.limit else []),
        *attack_lines(found.attacks),
        exposed_line(found.exposed),
        *found.notes,
        *not_claimed(found.not_claimed),
    ]
    emit(found, as_json=as_json, lines=lines)


def membership(found: "Membership") -> list[str]:
    """A whole membership audit, the verdict first."""
    flag = "  FLAGGED: the split shows without the model" if found.blind.flagged else ""
    return [
        found.leak.value,
        *([found.limit] if found.limit else []),
        f"{found.members} members, {found.non_members} non-members, {found.references} references",
        *attack_lines(found.attacks),
        f"blind baseline  AUC {found.blind.auc.value:.3f}{flag}; it flags 4 of 5 splits of {found.blind.detects:.3f}",
        exposed_line(found.exposed),
        *found.notes,
        *not_claimed(found.not_claimed),
    ]


def attack_lines(results: "tuple[AttackResult, ...]") -> list[str]:
    """One attack a line, with its rates beneath."""
    lines: list[str] = []
    for result in results:
        area = f"AUC {result.auc.value:.3f} [{result.auc.low:.3f}, {result.auc.high:.3f}]"
        beyond = "" if result.p_beyond is None else f"; beyond the records p = {result.p_beyond:.2g}"
        lines.append(f"{result.attack:14s}  {area}  p = {result.p_adjusted:.2g} ({result.statistic}){beyond}")
        lines += [f"    TPR at {rate.asked:.2%} FPR: {_rate(rate)}" for rate in result.rates]
    return lines


def exposed_line(found: "Exposed") -> str:
    """How many members stand out, from below."""
    if not found.low:
        return "exposed        no member stands out so far above all others that a number can be given"
    return (
        f"exposed        at least {found.low} members stand above all others (95 %), by {found.attack}: "
        f"{found.false_alarms} false among the first {found.depth}"
    )


def _rate(rate: "Rate") -> str:
    shown = "not measurable" if rate.rate is None else f"{rate.rate:.1%} [{rate.low:.1%}, {rate.high:.1%}]"
    return f"{shown}  ({rate.true_positives} of {rate.members}, {rate.false_positives} false of {rate.non_members})"


def not_claimed(sentences: tuple[str, ...]) -> list[str]:
    """What nobody should read into it."""
    return ["not claimed:", *(f"  {sentence}" for sentence in sentences)]
