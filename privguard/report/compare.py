# SPDX-License-Identifier: Apache-2.0
"""Two reports side by side. Two ε can be compared only at one relation, one unit and one δ; that is said first."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from privguard.records import Measurement, Record
from privguard.report import facts
from privguard.report.guarantee import best_accuracy, downward, percent, upward
from privguard.report.record import Report
from privguard.report.render import page

if TYPE_CHECKING:
    from rich.table import Table


@final
@dataclass(frozen=True)
class Row(Record):
    """One fact of both reports."""

    name: str
    first: str
    second: str


@final
@dataclass(frozen=True, kw_only=True)
class Comparison(Measurement):
    """Two runs by their names, why their ε cannot be compared (empty where they can), and every fact of both."""

    first: str
    second: str
    incomparable: tuple[str, ...]
    rows: tuple[Row, ...]


def compare(first: Report, second: Report) -> Comparison:
    """Every fact of both reports, in the order of the report's sections; the figures that decide come first.

    Args:
        first: one report.
        second: the other.
    """
    both = [dict(_facts(report)) for report in (first, second)]
    names = list(dict.fromkeys([*both[0], *both[1]]))
    return Comparison(
        first=first.manifest.run,
        second=second.manifest.run,
        incomparable=tuple(_incomparable(first, second)),
        rows=tuple(Row(name, *(each.get(name, "none") for each in both)) for name in names),
    )


def to_html(comparison: Comparison) -> str:
    """The comparison as one self-contained page; rows that differ are set apart.

    Args:
        comparison: what compare gave.
    """
    return page("compare.html.j2", comparison=comparison)


def to_table(comparison: Comparison) -> "Table":
    """The comparison for a terminal; rows that differ are in bold.

    Args:
        comparison: what compare gave.
    """
    from rich.markup import escape
    from rich.table import Table

    table = Table("", f"run {comparison.first}", f"run {comparison.second}", caption=_caption(comparison))
    for row in comparison.rows:
        cells = map(escape, (row.name, row.first, row.second))
        table.add_row(*cells, style="bold" if row.first != row.second else "dim")
    return table


def _caption(comparison: Comparison) -> str:
    return "; ".join(comparison.incomparable) or "The two ε may be compared: one relation, one unit, one δ."


def _incomparable(first: Report, second: Report) -> list[str]:
    if first.claim is None or second.claim is None:
        return ["at least one of the runs has no claim"]
    said = {
        "relations": (first.claim.relation, second.claim.relation),
        "units of privacy": (first.claim.unit, second.claim.unit),
        "δ": (first.claim.delta, second.claim.delta),
    }
    return [
        f"the two ε cannot be compared: their {name} differ, {a} and {b}" for name, (a, b) in said.items() if a != b
    ]


def _facts(report: Report) -> facts.Rows:
    claim = report.claim
    headline = [("ε", "no guarantee")] if claim is None else [("ε", upward(claim.epsilon)), ("δ", f"{claim.delta:g}")]
    if report.profile:
        headline.append(("Attacker right, at even odds, at most", percent(best_accuracy(report.profile))))
    return [
        *headline,
        ("Contradicted by an attack", "yes" if report.contradictions else "no"),
        ("Audits", "; ".join(_audit(report)) or "none was run"),
        *facts.guarantee(report),
        *facts.mechanism(report),
        *facts.foundation(report),
    ]


def _audit(report: Report) -> list[str]:
    return [f"{each.method}: ε ≥ {downward(each.epsilon_low)}, {each.outcome.value}" for each in report.findings]
