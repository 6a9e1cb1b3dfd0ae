# SPDX-License-Identifier: Apache-2.0
"""``privguard ledger``: what a run did to its data, what it cost, and whether the record is whole."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privguard.cli._output import AsJson, emit
from privguard.cli.ledger import spending

if TYPE_CHECKING:
    from privguard.accounting.history import History

app = typer.Typer(
    no_args_is_help=True, help="Read and check the record of private steps, and the budget of a data set."
)
app.add_typer(spending.app, name="budget")

Where = Annotated[Path, typer.Argument(help="A run folder or its ledger.jsonl.", exists=True)]


@app.command()
def show(
    path: Where,
    delta: Annotated[float | None, typer.Option(help="δ to price at; by default the run's own.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what was spent: events, ε under both relations, and the head that stands for it all."""
    from privguard.accounting.accountant import spent
    from privguard.records import Relation, Unit

    history = _read(path)
    facts = _facts(history)
    relation = Relation(facts.get("relation", Relation.ADD_OR_REMOVE_ONE))
    unit = Unit(facts.get("unit", Unit.EXAMPLE))
    claim = spent(history, delta=_delta(history) if delta is None else delta, relation=relation, unit=unit)
    events = [{"first": entry.first, "times": entry.times, "event": entry.event} for entry in history.entries]
    lines = [
        *(f"VOID, no claim can be made: {reason}" for reason in history.void),
        str(claim) if not history.void else f"the events cost {claim}",
        f"replace one: {'not known' if claim.replace_one is None else f'ε={claim.replace_one:.4f}'}",
        f"{history.position} events in {history.size} lines; {_stop(history)}",
        f"head {history.head}",
    ]
    record = {
        "claim": None if history.void else claim.to_json(),
        "void": list(history.void),
        "events": events,
        "facts": history.facts,
        **_identity(history),
    }
    emit(record, as_json=as_json, lines=lines)


@app.command()
def verify(
    path: Where,
    head: Annotated[str, typer.Option(help="A head kept elsewhere, as a report or a snapshot states it.")] = "",
    size: Annotated[int, typer.Option(help="The number of lines that this head stands for.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Check every line; with --head and --size also that nothing was cut off since they were written down."""
    from privguard.errors import LedgerError

    if bool(head) != bool(size):
        raise ValueError("--head, --size: expected both; a head stands for a number of lines")
    history = _read(path)
    if head and not history.extends(head, size):
        raise LedgerError(
            f"ledger={path}: its first {size} lines are not those of head {head[:16]}…; it was cut or rewritten"
        )
    held = f"extends {head[:16]}… ({size} lines)" if head else "whole; give --head and --size to find a cut at its end"
    lines = [f"{history.size} lines, {history.position} events: {held}", f"head {history.head}"]
    emit({**_identity(history), "extends": bool(head)}, as_json=as_json, lines=lines)


def _read(path: Path) -> "History":
    from privguard.accounting.ledger import Ledger
    from privguard.runs import folder

    return Ledger.read(folder.ledger(path))


def _delta(history: "History") -> float:
    """The δ that the run was planned for."""
    facts = _facts(history)
    if "delta" not in facts:
        raise ValueError("--delta: expected a number; this ledger does not state its δ")
    return float(facts["delta"])


def _facts(history: "History") -> dict[str, Any]:
    """What the ledger opens with; those of its plan stand one level lower."""
    plan = history.facts.get("plan")
    return {**(plan if isinstance(plan, dict) else {}), **history.facts}


def _identity(history: "History") -> dict[str, Any]:
    return {"head": history.head, "size": history.size, "position": history.position, "settled": history.settled}


def _stop(history: "History") -> str:
    torn = f", {history.torn} bytes of an unfinished line left aside" if history.torn else ""
    crashed = ", after a crash before, whose reservation counts as spent" if history.crashed else ""
    stop = "stopped cleanly" if history.settled else "open or cut short: all that was reserved counts as spent"
    return stop + crashed + torn
