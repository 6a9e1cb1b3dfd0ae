"""``privguard plan``: a budget in, the noise that meets it out."""

import math
from typing import Annotated

import typer

from privguard.cli._output import AsJson, emit


def plan(
    epsilon: Annotated[float, typer.Option(help="ε that may be spent.")],
    delta: Annotated[float, typer.Option(help="δ of the guarantee, well below 1/N.")],
    examples: Annotated[int, typer.Option(help="Public size of the data set.")],
    batch_size: Annotated[int, typer.Option(help="Expected examples in a step.")],
    epochs: Annotated[float, typer.Option(help="Passes over the data, on average.")],
    as_json: AsJson = False,
) -> None:
    """Find the least noise whose training run fits a privacy budget."""
    from privguard import _check
    from privguard.accounting.accountant import spent
    from privguard.accounting.calibrate import Budget, dp_sgd, least_noise

    _check.count("examples", examples)
    _check.count("batch_size", batch_size)
    _check.require(batch_size <= examples, "batch_size", batch_size, wanted=f"at most examples={examples}")
    rate = batch_size / examples
    steps = math.ceil(_check.positive("epochs", epochs) / rate - 1e-9)
    budget = Budget(epsilon=epsilon, delta=delta)
    noise = least_noise(budget, sample_rate=rate, steps=steps)
    claim = spent([(dp_sgd(sample_rate=rate, noise_multiplier=noise), steps)], delta=delta)
    record = {"sample_rate": rate, "steps": steps, "noise_multiplier": noise, "claim": claim.to_json()}
    lines = [
        f"noise multiplier σ  {noise:.4f}",
        f"sampling rate       {rate:.6g}  ({batch_size} of {examples} expected in a step)",
        f"steps               {steps}",
        f"ε spent             {claim.epsilon:.4f} of {epsilon:g} at δ={delta:g}, add or remove one example",
        f"replace one example {_shown(claim.replace_one)}",
        f"RDP cross-check     {_shown(claim.cross_check)}",
    ]
    if delta * examples >= 1:
        lines.append(f"note: δ={delta:g} is not below 1/N={1 / examples:.2g}; a mechanism that leaks a record meets it")
    emit(record, as_json=as_json, lines=lines)


def _shown(value: float | None) -> str:
    return "not known" if value is None else f"{value:.4f}"
