"""``privguard report``: a run folder as JSON, Markdown and a page."""

from pathlib import Path
from typing import Annotated

import typer

from privguard.cli._output import AsJson, emit


def report(
    run: Annotated[Path, typer.Argument(help="A run folder.", exists=True, file_okay=False)],
    html: Annotated[Path | None, typer.Option(help="Where to write the page; by default RUN/report.html.")] = None,
    as_json: AsJson = False,
) -> None:
    """Price a run's ledger again and write its ε report."""
    from privguard.report import render
    from privguard.report.assemble import assemble

    made = assemble(run)
    pages = render.write(made, run)
    if html is not None:
        html.write_text(render.to_html(made), encoding="utf-8")
    said = str(made.claim) if made.claim is not None else made.summary[0]
    emit(
        made,
        as_json=as_json,
        lines=[said, *(f"{line}" for line in made.contradictions), f"report: {html or pages[-1]}"],
    )
