# SPDX-License-Identifier: Apache-2.0
"""The rows of the report's tables: what another accountant needs to price the run again, and what its ε rests on."""

import math
from collections.abc import Mapping
from typing import Any

from privguard.records import Claim, Outcome, Relation, Unit, Verdict
from privguard.report.guarantee import downward, percent, upward
from privguard.report.record import Report

Rows = list[tuple[str, str]]
"""(name, value) pairs, both meant for people."""

_RELATIONS = {Relation.ADD_OR_REMOVE_ONE: "adding or removing one", Relation.REPLACE_ONE: "replacing one by another"}
_PROTECTED = {Unit.EXAMPLE: "a single training example", Unit.USER: "a person's whole contribution"}
_SHOWN_RATES = (1e-4, 1e-3, 1e-2, 1e-1)


def guarantee(report: Report) -> Rows:
    """What is promised, for whom, and how the figure was computed."""
    plan, claim = report.manifest.plan, report.claim
    rows = [
        ("Unit of privacy", f"one {plan['unit']}"),
        ("Neighbouring relation", plan["relation"]),
        (
            "Steps spent",
            f"{report.reserved:,} of {plan['steps']:,} planned "
            + ("(all took effect)" if report.settled else "(after a crash; some of them may not have taken effect)"),
        ),
    ]
    return rows if claim is None else [*rows, *_accounting(claim)]


def mechanism(report: Report) -> Rows:
    """How the training was done: the algorithm and its implementation."""
    manifest, plan = report.manifest, report.manifest.plan
    return [
        ("Sampler", _sampler(plan)),
        *_bands(plan),
        ("Noise multiplier σ", f"{plan['noise_multiplier']:.6g} (standard deviation over the clipping norm)"),
        ("Clipping norm C", f"{plan['max_grad_norm']:g} (L2, one bound for all parameters together)"),
        ("Clipping", manifest.clipping),
        ("Denominator", f"{plan['expected_batch_size']:g} (a constant of the plan, never the realised batch size)"),
        ("Noise source", manifest.noise),
        ("Precision", manifest.precision),
        ("Expected to learn", _outlook(manifest.outlook)),
        ("Software", ", ".join(f"{name} {version}" for name, version in manifest.software.items())),
    ]


def _sampler(plan: Mapping[str, Any]) -> str:
    bands, rate = len(plan.get("strategy", (1,))), f"{plan['sample_rate']:.6g}"
    if bands == 1:
        return f"Poisson: every record enters every step independently with rate {rate}"
    return (
        f"cyclic Poisson: every record is by chance in one of {bands} groups, which take turns, and enters each step "
        f"of its own group independently with rate {rate}"
    )


def _outlook(outlook: Mapping[str, Any]) -> str:
    """What was said before the first step about whether noise would hide what the records say."""
    verdict = "little or nothing, as was said before the first step" if outlook["faint"] else "yes"
    least = f"{outlook['noise_over_signal']:.3g} or more"
    return (
        f"{verdict}: noise over signal in the {outlook['trained']:,} trained weights is {least}, and "
        f"{outlook['start']} was seen to end near chance above {outlook['limit']:g}"
    )


def _bands(plan: Mapping[str, Any]) -> Rows:
    """Over how many steps noise is correlated; nothing where it is not."""
    strategy: list[float] = plan.get("strategy", [1.0])
    if len(strategy) == 1:
        return []
    said = (
        f"over {len(strategy)} steps; each record takes part at most every {len(strategy)}th step, and as many steps "
        "are one event. What several records of one person cost together is not computed for such noise"
    )
    return [("Noise correlated", said), ("Coefficients", ", ".join(f"{c:.6g}" for c in strategy))]


def foundation(report: Report) -> Rows:
    """What the guarantee stands on: the records, the model, the ledger, the keys."""
    manifest = report.manifest
    return [
        ("Data", f"{report.data_name} (in the words of who made this report)" if report.data_name else "not named"),
        ("Number of records", examples(manifest.data)),
        ("Data commitment", manifest.data.get("commitment") or "none was made"),
        ("Model", ", ".join(f"{key} {value}" for key, value in manifest.model.items())),
        ("Ledger", f"{report.ledger_lines} lines, head {report.ledger_head}"),
        ("Checkpoints sealed to", ", ".join(manifest.recipients)),
    ]


def whose(report: Report) -> str:
    """Whose records were used, in one sentence."""
    name = f"{report.data_name}, in the words of who made this report" if report.data_name else "not named here"
    count = examples(report.manifest.data)
    return f"{name}. Records: {count}. What is protected is {_PROTECTED[Unit(report.manifest.plan['unit'])]}."


def protects(report: Report) -> str:
    """Against whom the claim protects, in one sentence."""
    if report.claim is None or not math.isfinite(report.claim.epsilon):
        return "nothing. There is no guarantee."
    return (
        "anybody who sees what was published, whatever else they know, and tries to find out whether "
        f"{_PROTECTED[report.claim.unit]} was used: their odds are bounded as above."
    )


def attacked(report: Report) -> str:
    """What the audits found, in one sentence; that none contradicts the claim is never called a proof."""
    if report.contradictions:
        return "at least one audit contradicts the claim. Read what stands above it first."
    members = "".join(f" Membership audit: {each.leak}." for each in report.memberships)
    if not report.findings:
        return f"no audit of ε was run, so no attack has tried to contradict the claim.{members}"
    best = max(report.findings, key=lambda finding: finding.epsilon_low)
    able = sum(finding.outcome is Outcome.CONSISTENT for finding in report.findings)
    return (
        f"{len(report.findings)} audited figures, none above the claim. The highest shows ε ≥ "
        f"{downward(best.epsilon_low)} ({best.method}). {able} of them could have refuted it; an audit never confirms."
        f"{members}"
    )


def audits(report: Report) -> list[str]:
    """What an audit is, and the words of its table that a reader may not know."""
    said = [
        "An audit attacks the training and tries to refute the claim; it never confirms it.",
        (
            "The cap of an audit is the highest ε that it could have shown at all, had its attack been right every "
            "time. It belongs to the audit and not to the model: with many trials it lies in the hundreds or "
            "thousands, and nothing of that size was spent. An audit whose cap does not exceed the claim could not "
            "have refuted it."
        ),
    ]
    if any("canaries" in {*finding.counts, *finding.settings} for finding in report.findings):
        said.append(
            "Canaries are synthetic records that belong to nobody. A coin decides for each if the training sees it, "
            "so that it is known afterwards how often the attack guessed right. Canaries that were put into this "
            "training count among its records."
        )
    return said


def sentences(report: Report) -> dict[str, str]:
    """The three sentences above, by the names under which the templates know them."""
    return {"whose": whose(report), "protects": protects(report), "attacked": attacked(report)}


def groups(report: Report) -> list[tuple[str, str, str]]:
    """What the run cost a person with several records: how many, ε, the chance to be right about them, at most."""
    return [(f"{each.records}", upward(each.epsilon), percent(each.accuracy)) for each in report.groups]


def figures(report: Report) -> list[tuple[str, str, str]]:
    """(relation, δ, ε) for each figure that holds of the same history."""
    return [(_RELATIONS[each.relation], f"{each.delta:g}", upward(each.epsilon)) for each in report.figures]


def trade_off(report: Report) -> Rows:
    """A few points of the trade-off curve: (false accusations, members found at most)."""
    near = [min(report.trade_off, key=lambda pair: abs(pair[0] - rate)) for rate in _SHOWN_RATES if report.trade_off]
    return [(f"{found:.4g}", percent(tpr)) for found, tpr in near]


def statistic(verdict: Verdict) -> str:
    """What a mark's verdict rests on: a count of matches, a signed sum, or a statistic over so many trials."""
    if verdict.scheme.startswith("image/"):
        return f"sum {verdict.matches:g} of whole weights under {verdict.trials} signs"
    whole = float(verdict.matches).is_integer()
    return (
        f"{verdict.matches:g} of {verdict.trials}"
        if whole
        else f"statistic {verdict.matches:.2f}, {verdict.trials} trials"
    )


def examples(data: Mapping[str, Any]) -> str:
    """How many records there were, where that is public."""
    return "not public" if data.get("examples") is None else f"{data['examples']:,} (treated as a public number)"


def _accounting(claim: Claim) -> Rows:
    return [
        ("Accountant", f"{claim.accountant}, privacy-loss distribution, interval {claim.interval:g}"),
        ("ε when one record is replaced", "not computed" if claim.replace_one is None else upward(claim.replace_one)),
        (
            "ε by Rényi accounting (cross-check)",
            "not computed" if claim.cross_check is None else upward(claim.cross_check),
        ),
    ]
