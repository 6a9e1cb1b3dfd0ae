# SPDX-License-Identifier: Apache-2.0
"""``privguard journal``: who sealed, opened, re-wrapped, marked and granted."""

from pathlib import Path
from typing import Annotated

import typer

from privguard.cli._output import AsJson, emit

app = typer.Typer(no_args_is_help=True, help="Show and verify the access journal.")

Where = Annotated[Path, typer.Argument(help="The journal.")]


@app.command()
def show(path: Where, as_json: AsJson = False) -> None:
    """Print the entries; nothing is verified."""
    from privguard.attest import journal

    entries = list(journal.read(path))
    lines = [f"{e.sequence:>5}  {e.time}  {e.who}  {e.action} {e.role}  {e.subject}  {e.result}" for e in entries]
    emit([entry.to_json() for entry in entries], as_json=as_json, lines=lines)


@app.command()
def verify(
    path: Where,
    trust: Annotated[list[Path], typer.Option("--trust", help="PEM file of a signer to believe; again for each.")],
    size: Annotated[int | None, typer.Option(help="A size noted earlier; with --head.")] = None,
    head: Annotated[str | None, typer.Option(help="The head noted with it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check every line's place and signature, and an anchor noted earlier."""
    from privguard.attest import journal
    from privguard.attest.statement import Identity

    if (size is None) is not (head is None):
        raise ValueError("--size --head: expected both or neither; they were noted together")
    anchor = None if size is None or head is None else (size, head)
    found = journal.verify(path, trusted=[Identity.read(each) for each in trust], anchor=anchor)
    lines = [f"{found.entries} entries hold. Note elsewhere: --size {found.entries} --head {found.head}"]
    lines += [f"line {number} began and did not end" for number in found.unfinished]
    emit(found, as_json=as_json, lines=lines)
