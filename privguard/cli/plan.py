# SPDX-License-Identifier: Apache-2.0
"""``privguard plan``: a budget in, the noise that meets it out."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from privguard.cli._output import AsJson, emit

if TYPE_CHECKING:
    from privguard.training.plan import Plan


class Begin(StrEnum):
    """Names of ``Start`` for the command line."""

    SCRATCH = "scratch"
    TABLE = "table"
    TUNED = "tuned"


class _Outlook(NamedTuple):
    record: dict[str, Any]
    lines: list[str]


def plan(
    epsilon: Annotated[float, typer.Option(help="ε that may be spent.")],
    delta: Annotated[float, typer.Option(help="δ of the guarantee, well below 1/N.")],
    examples: Annotated[int, typer.Option(help="Public size of the data set.")],
    batch_size: Annotated[int, typer.Option(help="Expected examples in a step.")],
    epochs: Annotated[float, typer.Option(help="Passes over the data, on average.")],
    bands: Annotated[
        str, typer.Option(help="Steps over which noise is correlated: a number, or auto for the least expected error.")
    ] = "1",
    momentum: Annotated[float, typer.Option(help="The optimizer's, for which the bands are made.")] = 0.0,
    parameters: Annotated[
        int | None, typer.Option(help="Trained parameters: says whether the run can learn, and what would help.", min=1)
    ] = None,
    start: Annotated[Begin, typer.Option(help="What the training begins with.")] = Begin.SCRATCH,
    as_json: AsJson = False,
) -> None:
    """Find the least noise whose training run fits a privacy budget."""
    from privguard.accounting.accountant import spent
    from privguard.training.plan import Plan

    made = Plan.for_budget(
        epsilon=epsilon,
        delta=delta,
        examples=examples,
        batch_size=batch_size,
        epochs=epochs,
        bands=_bands(bands),
        momentum=momentum,
        max_grad_norm=1.0,  # no part of the answer: the noise multiplier is a multiple of it, whatever it is
    )
    claim = spent(made.events(), delta=delta)
    settings = {name: getattr(made, name) for name in ("sample_rate", "steps", "noise_multiplier", "bands", "strategy")}
    outlook = None if parameters is None else _outlook(made, parameters, start)
    record = {**settings, "plan": made.facts(), "claim": claim.to_json(), **(outlook.record if outlook else {})}
    lines = [
        f"noise multiplier σ  {made.noise_multiplier:.4f}",
        f"sampling rate       {made.sample_rate:.6g}  ({batch_size} of {examples} expected in a step)",
        *_correlated(made, momentum),
        f"steps               {made.steps}",
        f"ε spent             {claim.epsilon:.4f} of {epsilon:g} at δ={delta:g}, add or remove one example",
        f"replace one example {_shown(claim.replace_one)}",
        f"RDP cross-check     {_shown(claim.cross_check)}",
    ]
    if delta * examples >= 1:
        lines.append(f"note: δ={delta:g} is not below 1/N={1 / examples:.2g}; a mechanism that leaks a record meets it")
    lines += outlook.lines if outlook else []
    emit(record, as_json=as_json, lines=lines)


def _outlook(plan: "Plan", parameters: int, start: Begin) -> _Outlook:
    """Whether a run of this plan can learn, and where it cannot, what would help."""
    from privguard.accounting.calibrate import Budget
    from privguard.accounting.outlook import Start
    from privguard.accounting.remedies import Schedule, remedies

    expected = plan.outlook(parameters, start=Start[start.name])
    ratio, limit = f"{expected.noise_over_signal:.3g}", f"{expected.limit:g}"
    line = f"noise over signal   {ratio} at best in {parameters:,} weights; {expected.start.value}"
    if not expected.faint:
        return _Outlook({"outlook": expected.facts()}, [f"{line} is expected to learn up to {limit}"])
    schedule = Schedule(examples=plan.examples or 1, batch_size=int(plan.expected_batch_size), steps=plan.steps)
    listed = remedies(Budget(epsilon=plan.epsilon or 0.0, delta=plan.delta), schedule, expected)
    lines = [
        f"{line} ends near chance above {limit}",
        *(
            f"  {each.noise_over_signal:.3g} with {each.change}: {'enough' if each.enough else 'not enough'}"
            for each in listed
        ),
    ]
    return _Outlook({"outlook": expected.facts(), "remedies": [each.to_json() for each in listed]}, lines)


def _bands(value: str) -> "int | str":
    if value == "auto" or value.isdecimal():
        return value if value == "auto" else int(value)
    raise ValueError(f"bands={value!r}: expected a whole number from 1 on, or auto")


def _correlated(plan: "Plan", momentum: float) -> list[str]:
    """What bands do, in two lines; nothing without."""
    if plan.bands == 1:
        return []
    from privguard.accounting.bands import expected_error

    error = expected_error(plan.strategy, steps=plan.steps, momentum=momentum)
    turns = f"noise correlated over as many steps; each example is in one of {plan.bands} groups, which take turns"
    what = f"root mean square over the steps, for C = 1 and learning rate 1, SGD with momentum {momentum:g}"
    return [
        f"bands               {plan.bands}  ({turns})",
        f"noise in weights    {plan.noise_multiplier * error:.4g}  ({what})",
    ]


def _shown(value: float | None) -> str:
    return "not known" if value is None else f"{value:.4f}"
