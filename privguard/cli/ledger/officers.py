# SPDX-License-Identifier: Apache-2.0
"""What officers do to a budget book: grants and releases, signed on the spot or drafted, signed one by one, entered."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from privguard.cli._output import AsJson, emit
from privguard.cli.ledger.budget import Content, Place, Reason, app, digest, lines_of
from privguard.records import Relation

if TYPE_CHECKING:
    from privguard.accounting.budget.grants import Terms
    from privguard.attest.statement import Envelope
    from privguard.records import Record

Epsilon = Annotated[float, typer.Option(help="What all runs together may spend, over the lifetime.")]
Delta = Annotated[float, typer.Option(help="δ of the guarantee, well below 1/N.")]
Neighbours = Annotated[
    Relation, typer.Option("--relation", help="What neighbours differ by: a record more or less, or one exchanged.")
]
Key = Annotated[Path, typer.Option(help="The officer's signing key (PEM).")]
Until = Annotated[str | None, typer.Option(help="Last day (UTC, 2027-12-31) for new reservations.")]
Window = Annotated[
    tuple[int, float] | None,
    typer.Option(metavar="DAYS EPSILON", help="Limit of what is reserved within so many days, beside the lifetime's."),
]
Team = Annotated[str, typer.Option(help="The limit is this team's share; every run then names its team.")]
Draft = Annotated[Path, typer.Argument(metavar="FILE", help="The draft, which each officer signs in turn.")]


@app.command()
def grant(
    book: Place,
    data_set: Content,
    epsilon: Epsilon,
    delta: Delta,
    key: Key,
    reason: Reason = "",
    relation: Neighbours = Relation.ADD_OR_REMOVE_ONE,
    until: Until = None,
    window: Window = None,
    team: Team = "",
    as_json: AsJson = False,
) -> None:
    """Set a limit, signed with an officer's key. Where the book asks for two, see draft, sign and enter."""
    from privguard.accounting.budget.book import Book
    from privguard.accounting.calibrate import Budget
    from privguard.attest.statement import SigningKey

    opened, limit = Book.open(book), Budget(epsilon=epsilon, delta=delta, relation=relation)
    terms = _terms(until, window, team)
    opened.grant(digest(data_set), limit, by=SigningKey.read(key), reason=reason, terms=terms)
    standing = opened.standing(digest(data_set))
    emit(standing, as_json=as_json, lines=lines_of(standing))


@app.command()
def draft(
    book: Place,
    data_set: Content,
    epsilon: Epsilon,
    delta: Delta,
    key: Key,
    out: Annotated[Path, typer.Option(help="Where to write the draft; no file is overwritten.")],
    reason: Reason = "",
    relation: Neighbours = Relation.ADD_OR_REMOVE_ONE,
    until: Until = None,
    window: Window = None,
    team: Team = "",
    as_json: AsJson = False,
) -> None:
    """Draft a grant with a first officer's signature, for others to sign. It changes nothing before it is entered."""
    from privguard.accounting.budget.book import Book
    from privguard.accounting.calibrate import Budget
    from privguard.attest.statement import SigningKey

    limit, terms = Budget(epsilon=epsilon, delta=delta, relation=relation), _terms(until, window, team)
    drafted = Book.open(book).draft(digest(data_set), limit, reason=reason, terms=terms)
    drafted_to(out, drafted.sign(SigningKey.read(key)), drafted, as_json=as_json)


@app.command()
def sign(draft: Draft, key: Key, as_json: AsJson = False) -> None:
    """Read a draft and add an officer's signature to it."""
    from privguard import _canon
    from privguard.attest.statement import Envelope, SigningKey, countersign

    signed = countersign(Envelope.read(draft), by=SigningKey.read(key))
    content = _canon.loads(signed.payload)["predicate"]
    signed.write(draft)
    summary = f"{draft}: signed by {len(signed.signatures)}: {_canon.canonical(content).decode()}"
    emit({"signatures": len(signed.signatures), "content": content}, as_json=as_json, lines=[summary])


@app.command()
def enter(book: Place, draft: Draft, as_json: AsJson = False) -> None:
    """Enter a grant, a release or a partition that enough officers signed."""
    from privguard import _canon
    from privguard.accounting.budget.book import Book
    from privguard.accounting.budget.grants import PARTITION, RELEASE
    from privguard.attest.statement import Envelope

    opened, envelope = Book.open(book), Envelope.read(draft)
    statement = _canon.loads(envelope.payload)
    if statement.get("predicateType") == RELEASE:
        balance = opened.release(envelope)
        emit(balance, as_json=as_json, lines=[f"{balance.spent} events spent, {balance.returned} returned"])
        return
    parted = statement.get("predicateType") == PARTITION
    (opened.partition if parted else opened.enter)(envelope)
    standing = opened.standing(statement["predicate"]["parent" if parted else "sha256"])
    emit(standing, as_json=as_json, lines=lines_of(standing))


@app.command()
def release(
    book: Place,
    run: Annotated[str, typer.Argument(help="The run's name in the book.")],
    used: Annotated[int, typer.Option(help="How many of its events count as spent; never fewer than it began.")],
    key: Key,
    out: Annotated[Path | None, typer.Option(help="Write a draft for other officers to sign instead.")] = None,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Give back, on an officer's word, what a run reserved and never began; for a run whose folder is lost."""
    from privguard.accounting.budget.book import Book
    from privguard.attest.statement import SigningKey

    opened = Book.open(book)
    drafted = opened.draft_release(run, used, reason=reason)
    envelope = drafted.sign(SigningKey.read(key))
    if drafted_to(out, envelope, drafted, as_json=as_json):
        return
    balance = opened.release(envelope)
    emit(balance, as_json=as_json, lines=[f"{run}: {balance.spent} events spent, {balance.returned} returned"])


def drafted_to(out: Path | None, envelope: "Envelope", content: "Record", *, as_json: bool) -> bool:
    """Write a first officer's signature to a draft, where one is wanted; whether it was."""
    if out is None:
        return False
    _require_new(out)
    envelope.write(out)
    emit(content, as_json=as_json, lines=[_next(out)])
    return True


def _terms(until: str | None, window: tuple[int, float] | None, team: str) -> "Terms":
    from privguard.accounting.budget.grants import Terms

    days, epsilon = window or (None, None)
    return Terms(until=until, window_days=days, window_epsilon=epsilon, team=team)


def _require_new(out: Path) -> None:
    if out.exists():
        raise FileExistsError(f"out={str(out)!r}: is there already; choose another name, no draft is overwritten")


def _next(out: Path) -> str:
    return f"{out}: signed by 1; next: privguard ledger budget sign {out} --key KEY"
