# SPDX-License-Identifier: Apache-2.0
"""What a budget book is told of besides runs: releases of other tools, sweeps, and data sets that share no person."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from privguard.cli._output import AsJson, emit
from privguard.cli.ledger.budget import Content, Place, app, digest, lines_of
from privguard.cli.ledger.officers import Key, Team, drafted_to
from privguard.records import Relation

Name = Annotated[str, typer.Argument(help="What it is called in the book; each name once.")]
Releases = Annotated[
    list[str],
    typer.Argument(
        metavar="RELEASE",
        help="'laplace SCALE' or 'gaussian SIGMA', in units of what one record moves, and 'sampled RATE' after it or "
        "not; 'discrete-laplace SCALE [SENSITIVITY]', 'discrete-gaussian SIGMA [SENSITIVITY]', 'randomised-response P "
        "BUCKETS', 'dp EPSILON [DELTA]', 'zcdp RHO'; with 'x N' at the end for N of them. @FILE reads one a line.",
    ),
]
Neighbours = Annotated[
    Relation | None,
    typer.Option("--relation", help="Whose neighbours 'dp' and 'zcdp' mean, as their tool's documentation says."),
]
Purpose = Annotated[str, typer.Option(help="What for, and by which tool; it stays in the book.")]


class Law(StrEnum):
    """How the number of a sweep's trials is drawn."""

    GEOMETRIC = "geometric"
    LOGARITHMIC = "logarithmic"
    POISSON = "poisson"


@app.command()
def spend(
    book: Place,
    data_set: Content,
    name: Name,
    releases: Releases,
    relation: Neighbours = None,
    planned: Annotated[
        bool, typer.Option("--planned", help="It is not released yet: refuse it where it does not fit.")
    ] = False,
    team: Team = "",
    purpose: Purpose = "",
    as_json: AsJson = False,
) -> None:
    """Enter what another tool released. Without --planned it has happened, and counts even where it passes a limit."""
    from privguard.accounting.budget.book import Book
    from privguard.accounting.budget.tally import Writer
    from privguard.accounting.releases import parse

    opened, sha256 = Book.open(book), digest(data_set)
    parsed = parse(_texts(releases), relation=relation)
    opened.spend(name, sha256, parsed, by=Writer(team=team, purpose=purpose), planned=planned)
    standing = opened.standing(sha256)
    emit(standing, as_json=as_json, lines=lines_of(standing))


@app.command()
def sweep(
    book: Place,
    data_set: Content,
    name: Name,
    candidate: Releases,
    mean: Annotated[float, typer.Option(help="Expected number of trials.")],
    law: Annotated[Law, typer.Option(help="How the number of trials is drawn.")] = Law.GEOMETRIC,
    team: Team = "",
    purpose: Purpose = "",
    as_json: AsJson = False,
) -> None:
    """Reserve a sweep whose number of trials is random, then draw the number. Keep it secret; release only the best."""
    from privguard.accounting.budget.book import Book
    from privguard.accounting.budget.tally import Writer
    from privguard.accounting.releases import one_event, parse
    from privguard.accounting.sweep import RandomStopping

    shape = {Law.GEOMETRIC: 1.0, Law.LOGARITHMIC: 0.0, Law.POISSON: float("inf")}[law]
    opened, sha256, stopping = Book.open(book), digest(data_set), RandomStopping(mean, shape)
    whole = stopping.event(one_event(parse(_texts(candidate))))
    opened.spend(name, sha256, [(whole, 1)], by=Writer(team=team, purpose=purpose), planned=True)
    trials, standing = stopping.draw(), opened.standing(sha256)
    advice = f"{trials} trials, each without a book: {name} has paid for all. Keep the number secret, release the best"
    emit({"trials": trials, "standing": standing.to_json()}, as_json=as_json, lines=[advice, *lines_of(standing)])


@app.command()
def disjoint(
    book: Place,
    data_set: Content,
    part: Annotated[list[str], typer.Option(help="A data set made from it, by SHA-256 or file; repeat for each part.")],
    key: Key,
    reason: Annotated[str, typer.Option(help="How it is known that no person is in two parts; it stays in the book.")],
    out: Annotated[Path | None, typer.Option(help="Write a draft for other officers to sign instead.")] = None,
    as_json: AsJson = False,
) -> None:
    """Declare, on an officer's word, that no person is in two parts: then the worst part counts, not their sum."""
    from privguard.accounting.budget.book import Book
    from privguard.attest.statement import SigningKey

    opened, parent = Book.open(book), digest(data_set)
    drafted = opened.draft_partition(parent, [digest(one) for one in part], reason=reason)
    envelope = drafted.sign(SigningKey.read(key))
    if drafted_to(out, envelope, drafted, as_json=as_json):
        return
    opened.partition(envelope)
    standing = opened.standing(parent)
    emit(standing, as_json=as_json, lines=lines_of(standing))


def _texts(releases: list[str]) -> list[str]:
    """The releases as typed, and the lines of the files among them; blank lines and # comments say nothing."""
    texts: list[str] = []
    for one in releases:
        lines = Path(one[1:]).read_text("utf-8").splitlines() if one.startswith("@") else [one]
        texts += filter(None, (line.partition("#")[0].strip() for line in lines))
    return texts
