# SPDX-License-Identifier: Apache-2.0
"""``privguard plans``: which plan to take, from public numbers; and two plans side by side."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privguard.cli._output import AsJson, emit
from privguard.cli.plan import Begin

if TYPE_CHECKING:
    from privguard.accounting.planning.compare import Side
    from privguard.accounting.planning.recommend import Row

_SAME = 0.01  # relative difference of two ε of one budget

app = typer.Typer(help="Which plan to take, and what two plans cost and leave.", no_args_is_help=True)


@app.command()
def recommend(
    epsilon: Annotated[float, typer.Option(help="ε that may be spent.")],
    delta: Annotated[float, typer.Option(help="δ of the guarantee, well below 1/N.")],
    examples: Annotated[int, typer.Option(help="Public size of the data set.")],
    parameters: Annotated[int, typer.Option(help="Trained parameters.")],
    epochs: Annotated[float, typer.Option(help="Passes over the data that can be afforded.")],
    momentum: Annotated[float, typer.Option(help="The optimizer's, for which the bands are made.")] = 0.0,
    start: Annotated[Begin, typer.Option(help="What the training begins with.")] = Begin.SCRATCH,
    as_json: AsJson = False,
) -> None:
    """Show batches, steps and bands that one budget allows, and the row that leaves the least noise over signal."""
    from privguard.accounting.calibrate import Budget
    from privguard.accounting.outlook import Start
    from privguard.accounting.planning.recommend import recommend as rows_of

    budget = Budget(epsilon=epsilon, delta=delta)
    kind = Start[start.name]
    rows = rows_of(budget, examples=examples, trained=parameters, epochs=epochs, momentum=momentum, start=kind)
    taken = next(row for row in rows if row.taken)
    verdict = "near chance" if taken.outlook.faint else "is expected to learn"
    lines = [
        "  batch   steps  bands  σ       noise over signal: in a step, in the weights  rows kept",
        *map(_row, rows),
        f"* taken: {verdict} (limit {taken.outlook.limit:g}; {taken.outlook.start.value}). σ is good to 1 %;",
        f"  privguard plan --batch-size {taken.batch_size} --bands {taken.bands} --epochs {epochs:g} … has it in full",
    ]
    emit({"rows": [row.to_json() for row in rows], "budget": budget.__dict__}, as_json=as_json, lines=lines)


def _row(row: "Row") -> str:
    expected = row.outlook
    ratios = f"{expected.step_noise_over_signal:<27.3g}{expected.noise_over_signal:<16.3g}"
    kept = f"{row.memory / 2**20:,.0f} MiB"
    mark = "*" if row.taken else " "
    return f"{mark} {row.batch_size:<8}{row.steps:<7}{row.bands:<7}{row.noise_multiplier:<8.3f}{ratios}  {kept}"


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="A plan: what `privguard plan --json` printed, or a run's run.json.")],
    second: Annotated[Path, typer.Argument(help="The other one.")],
    as_json: AsJson = False,
) -> None:
    """Compare two plans: ε, an attacker's error rates, advantage and odds, and the noise left in the weights."""
    sides = [_side(path) for path in (first, second)]
    emit({"first": sides[0].to_json(), "second": sides[1].to_json()}, as_json=as_json, lines=_beside(*sides))


def _side(path: Path) -> "Side":
    from privguard.accounting.planning.compare import side
    from privguard.training.plan import Plan

    plan = Plan.from_facts(_facts(path))
    return side(
        plan.events(),
        delta=plan.delta,
        strategy=plan.strategy,
        steps=plan.steps,
        noise=plan.noise_multiplier / plan.expected_batch_size,
    )


def _facts(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: is not JSON ({error}); give what privguard plan --json prints, or a run.json"
        ) from None
    if isinstance(value, dict) and isinstance(facts := value.get("plan"), dict):
        return facts
    raise ValueError(f"{path}: has no plan; give what privguard plan --json prints, or a run.json")


def _beside(a: "Side", b: "Side") -> list[str]:
    from privguard.accounting.planning.trade_off import RATES

    def line(name: str, x: str, y: str) -> str:
        return f"{name:<44}{x:<14}{y}"

    def known(value: float | None) -> str:
        return "not known" if value is None else f"{value:.4f}"

    lines = [
        line("", "first", "second"),
        line("ε, adding or removing one record", f"{a.epsilon:.4f}", f"{b.epsilon:.4f}"),
        line("  at δ", f"{a.delta:g}", f"{b.delta:g}"),
        line("ε, replacing one", known(a.replace_one), known(b.replace_one)),
        line("advantage of the best test", f"{a.advantage:.4f}", f"{b.advantage:.4f}"),
    ]
    for i, rate in enumerate(RATES):
        missed = (f"{side.false_negatives[i]:.4f} / {side.odds[i]:.3g}" for side in (a, b))
        lines.append(line(f"missed / odds raised, {rate:g} false positives", *missed))
    left = f"{b.noise_left / a.noise_left:.3f} of it" if a.noise_left > 0 else f"{b.noise_left:.3g}"
    lines.append(line("noise in a weight (C = 1, rate 1)", f"{a.noise_left:.3g}", left))
    if abs(a.epsilon - b.epsilon) > _SAME * a.epsilon:
        lines.append("note: the plans do not spend the same ε, so the rest compares two prices as well")
    return lines
