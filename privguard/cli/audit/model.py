# SPDX-License-Identifier: Apache-2.0
"""privguard audit model."""

from pathlib import Path
from typing import Annotated

import typer

from privguard.cli._output import REFUSED, AsJson, emit, progress

_SLACK = 1e-3  # what is added to the clipping norm for rounding when a claim is priced


def model(
    setup: Annotated[str, typer.Argument(help="MODULE:FUNCTION that returns (model, losses, batch).")],
    clip: Annotated[
        float | None, typer.Option(help="The clipping norm; by default half the median norm of a record.")
    ] = None,
    largest: Annotated[int, typer.Option(help="Batches have from 1 to so many records.")] = 8,
    pairs: Annotated[int, typer.Option(help="Pairs of batches that differ in one record.")] = 200,
    public: Annotated[bool, typer.Option("--public", help="The batch is public: take its records.")] = False,
    seed: Annotated[int, typer.Option(help="Of records and pairs.")] = 0,
    into: Annotated[Path | None, typer.Option("--run", help="Run folder whose ε report should carry it.")] = None,
    as_json: AsJson = False,
) -> None:
    """How far does one record move the clipped sum of your model, loss and collator? Exit code 1 above the bound."""
    from privguard.audit.loading import named
    from privguard.runs.audits.model import audit_model
    from privguard.runs.folder import keep

    made, losses, batch = named(setup)()
    with progress() as bar:
        task = bar.add_task("pairs", total=pairs)
        found = audit_model(
            made,
            losses,
            batch,
            max_grad_norm=clip,
            largest=largest,
            pairs=pairs,
            public=public,
            seed=seed,
            on_pair=lambda done: bar.update(task, completed=done),
        )
    if into is not None:
        keep([found], into, name="sensitivity")
    emit(found, as_json=as_json, lines=[str(found)])
    if not found.moved <= 1 + _SLACK:
        raise typer.Exit(REFUSED)
