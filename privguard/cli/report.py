# SPDX-License-Identifier: Apache-2.0
"""``privguard report``: a run folder as JSON, Markdown and a page; signed, verified and compared."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from privguard.cli._output import AsJson, emit, require_place, stderr

if TYPE_CHECKING:
    from privguard.report.assemble import Sources
    from privguard.report.findings import Judge
    from privguard.report.index.overview import Overview
    from privguard.report.record import Report


class _MakeByDefault(TyperGroup):
    """``privguard report RUN`` is ``privguard report make RUN``; a run called like a command is ``./verify``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, "-h", "--help"}:
            args = ["make", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_MakeByDefault,
    no_args_is_help=True,
    help="Price a run's ledger again and write its ε report; sign it, verify it, compare it with another.",
)

Run = Annotated[Path, typer.Argument(help="A run folder.", exists=True, file_okay=False)]
DataName = Annotated[str, typer.Option(help="Whose data it was, in a few words; nothing checks them.")]
Journal = Annotated[Path | None, typer.Option(envvar="PRIVGUARD_JOURNAL", help="The access journal.")]
Trust = Annotated[Path | None, typer.Option(help="A trust file, to judge bundles of mark evidence with.")]


@app.command("make")
def make(
    run: Run,
    html: Annotated[Path | None, typer.Option(help="Write the page here as well as to RUN/report.html.")] = None,
    sign: Annotated[Path | None, typer.Option(help="A signing key: writes RUN/report.dsse.json too.")] = None,
    data_name: DataName = "",
    journal: Journal = None,
    trust: Trust = None,
    as_json: AsJson = False,
) -> None:
    """Price a run's ledger again and write report.html, report.md and report.json into its folder."""
    from privguard.attest.statement import SigningKey
    from privguard.report import render
    from privguard.report.assemble import assemble
    from privguard.report.signed import kept
    from privguard.report.signed import sign as signing
    from privguard.runs.folder import REPORT_PAGE

    signer = None if sign is None else SigningKey.read(sign)
    if html is not None:
        require_place(html)
    made = assemble(run, sources=_sources(data_name, journal, trust))
    still_signed = signer is None and kept.stands(made, run)
    place = None if still_signed else kept.set_aside(run)
    if not still_signed:
        render.write(made, run)
    if signer is not None:
        signing.sign(made, run, by=signer).write(run / signing.SIGNED)
    if html is not None:
        html.write_bytes((run / REPORT_PAGE).read_bytes())
    claim = str(made.claim) if made.claim is not None else made.summary[0]
    lines = [claim, *made.contradictions, f"report: {html or run / REPORT_PAGE}"]
    lines += [f"signed: {run / signing.SIGNED}"] if signer is not None or still_signed else []
    if place is not None:
        stderr().print(f"note: the signed report that was here is kept in {place}", markup=False, soft_wrap=True)
    emit(made, as_json=as_json, lines=lines)


@app.command()
def verify(
    report: Annotated[Path, typer.Argument(help="A signed report, or the run folder it lies in.", exists=True)],
    run: Annotated[Path | None, typer.Option(help="The run folder; by default the one the report lies in.")] = None,
    signer: Annotated[
        list[Path] | None, typer.Option(help="PEM public key of who must have signed; again for each.")
    ] = None,
    journal: Journal = None,
    as_json: AsJson = False,
) -> None:
    """Check a signed report against ledger, checkpoints, evidence and pages. Exit 3 names everything that differs."""
    from privguard.attest.statement import Identity
    from privguard.report.signed.verify import verify as check

    held = check(report, run=run, signers=[Identity.read(path) for path in signer or []], journal=journal)
    for note in held.notes:
        stderr().print(f"note: {note}", markup=False)
    who = held.signer if held.named else f"{held.signer}, whom you did not name"
    emit(held, as_json=as_json, lines=[f"{held.files} files of run {held.run} are as they were signed by {who}"])


@app.command("index")
def index(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders of them.", exists=True, file_okay=False)],
    html: Annotated[Path | None, typer.Option("--html", "-o", help="Write the page here.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the runs here, one a line.")] = None,
    book: Annotated[
        str | None, typer.Option(envvar="PRIVGUARD_BOOK", help="The budget book: data sets, teams and what is left.")
    ] = None,
    signer: Annotated[
        list[Path] | None,
        typer.Option(help="PEM public key of who signs reports; again for each. Others are priced anew."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Put all runs on one offline page: ε, audits, signatures, checkpoints, and what is left of each data set."""
    from privguard.accounting.budget.book import Book
    from privguard.attest.statement import Identity
    from privguard.cli._output import progress
    from privguard.report.index import page
    from privguard.report.index.entry import folders
    from privguard.report.index.overview import overview

    for place in filter(None, (html, csv)):
        require_place(place)
    opened, places = None if book is None else Book.open(book), folders(runs)
    believed = [Identity.read(path) for path in signer or []]
    with progress() as bar:
        task = bar.add_task("runs", total=len(places))
        made = overview(places, book=opened, signers=believed, done=lambda: bar.advance(task))
    if html is not None:
        html.write_text(page.to_html(made, beside=html.parent), encoding="utf-8")
    if csv is not None:
        csv.write_text(page.to_csv(made), encoding="utf-8")
    emit(made, as_json=as_json, lines=_index_lines(made, html))


def _index_lines(made: "Overview", html: Path | None) -> list[str]:
    from privguard.report.guarantee import upward

    balances = [
        f"{each.name}: ε={upward(each.epsilon)} of {'nothing granted' if each.limit is None else f'{each.limit:g}'}"
        for each in made.balances
    ]
    alarms = [f"{entry.run}: {entry.alarm}" for entry in made.entries if entry.alarm]
    signed = sum(entry.basis == "signed report" for entry in made.entries)
    page = [] if html is None else [f"page: {html}"]
    return [f"{len(made.entries)} runs, {signed} by a signed report", *balances, *alarms, *page]


@app.command()
def schema(as_json: AsJson = False) -> None:  # noqa: ARG001 — it is JSON either way, and every command takes --json
    """Print the JSON Schema (2020-12) of report.json."""
    from privguard.report.schema import text

    sys.stdout.write(text())


@app.command()
def card(
    run: Run,
    name: Annotated[str, typer.Option(help="The model's name.")] = "",
    license_: Annotated[str, typer.Option("--license", help="The model's licence, as the hub names it.")] = "",
    data_name: DataName = "",
    as_json: AsJson = False,
) -> None:
    """Print a model card with the report's essentials, with the metadata of the Hugging Face hub on top."""
    from privguard.report.assemble import Sources, assemble
    from privguard.report.card import to_card

    text = to_card(assemble(run, sources=Sources(data_name=data_name)), name=name, licence=license_)
    emit({"card": text}, as_json=as_json, lines=text.splitlines())


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="A run folder, or a report.json.", exists=True)],
    second: Annotated[Path, typer.Argument(help="Another.", exists=True)],
    html: Annotated[Path | None, typer.Option(help="Write a page with the comparison.")] = None,
    as_json: AsJson = False,
) -> None:
    """Put two reports side by side, and say first whether their ε can be compared at all."""
    from rich.console import Console

    from privguard.report import compare as comparing

    made = comparing.compare(_report(first), _report(second))
    if html is not None:
        html.write_text(comparing.to_html(made), encoding="utf-8")
    if as_json:
        emit(made, as_json=True)
    else:
        Console().print(comparing.to_table(made))


def _report(path: Path) -> "Report":
    import json

    from privguard.report.assemble import assemble
    from privguard.report.record import Report

    if path.is_dir():
        return assemble(path)
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: expected a run folder or its report.json; {error}") from None
    return Report.from_json(found)


def _sources(data_name: str, journal: Path | None, trust: Path | None) -> "Sources":
    from privguard.report.assemble import Sources

    return Sources(data_name=data_name, journal=journal, judge=None if trust is None else _judge(trust))


def _judge(trust: Path) -> "Judge":
    from privguard.watermark.claims import evidence
    from privguard.watermark.claims.commitment import Trust as Believed

    believed = Believed.read(trust)
    return lambda envelope: evidence.verify(envelope, trust=believed)
