# SPDX-License-Identifier: Apache-2.0
"""``privguard ledger budget``: what may be spent on a data set over all runs, who allowed it, and what is left."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from privguard.cli._output import AsJson, emit

if TYPE_CHECKING:
    from privguard.accounting.history import History

app = typer.Typer(no_args_is_help=True, help="The budget of a data set over all runs and people.")

Place = Annotated[str, typer.Argument(help="The book: a file, or an SQLAlchemy URL.", envvar="PRIVGUARD_BOOK")]
Content = Annotated[str, typer.Argument(metavar="DATA_SET", help="SHA-256 of the data set's content, or its file.")]
Reason = Annotated[str, typer.Option(help="Why; it stays in the book.")]


@app.command("open")
def open_book(
    book: Place,
    officer: Annotated[list[Path], typer.Option(help="Public key (PEM) of a person who may grant; repeat for more.")],
    quorum: Annotated[int, typer.Option(help="How many of them have to sign a grant or a release.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Begin a book whose limits only these officers can raise."""
    from privguard.accounting.budget.book import Book
    from privguard.attest.statement import Identity

    made = Book.create(book, officers=[Identity.read(path) for path in officer], quorum=quorum).verify()
    emit({"id": made.id, "head": made.head}, as_json=as_json, lines=[f"book {made.id} with {len(officer)} officer(s)"])


@app.command()
def add(
    book: Place,
    data_set: Content,
    name: Annotated[str, typer.Option(help="What people call it.")],
    source: Annotated[str, typer.Option(help="Where it comes from; by default what DVC or lakeFS say.")] = "",
    version: Annotated[str, typer.Option(help="Its version; by default the one that DVC or lakeFS noted.")] = "",
    parent: Annotated[str | None, typer.Option(help="SHA-256 of the data set that it was made from.")] = None,
    transformation: Annotated[list[str] | None, typer.Option(help="How it was made from it; repeat in order.")] = None,
    population: Annotated[
        str, typer.Option(help="Whose records these are; data sets of one population may share people.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Enter a data set, by content and lineage. It has no budget before a grant."""
    from privguard.accounting.budget.book import Book
    from privguard.accounting.budget.grants import DataSet
    from privguard.accounting.budget.lineage import Lineage

    noted = Lineage.beside(Path(data_set))
    entered = DataSet(
        sha256=digest(data_set),
        name=name,
        source=source or noted.source,
        version=version or noted.version,
        parent=parent,
        transformations=tuple(transformation or ()),
        population=population,
    )
    Book.open(book).add(entered)
    emit(entered, as_json=as_json, lines=[" ".join(filter(None, (entered.sha256, name, entered.version)))])


@app.command()
def show(
    book: Place,
    data_set: Annotated[str | None, typer.Argument(metavar="DATA_SET", help="One data set; all without it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show limits, what is spent over all runs, and what is left."""
    from privguard.accounting.budget.book import Book

    opened = Book.open(book)
    wanted = [digest(data_set)] if data_set else [one.sha256 for one in opened.data_sets()]
    standings = [opened.standing(one) for one in wanted]
    lines = [line for standing in standings for line in lines_of(standing)]
    emit([standing.to_json() for standing in standings], as_json=as_json, lines=lines)


@app.command("set")
def set_limit(
    book: Place,
    data_set: Content,
    epsilon: Annotated[float, typer.Option(help="The new, lower limit.")],
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Lower a limit. No key is needed; raising one takes a grant."""
    from privguard.accounting.budget.book import Book

    opened = Book.open(book)
    opened.cap(digest(data_set), epsilon, reason=reason)
    standing = opened.standing(digest(data_set))
    emit(standing, as_json=as_json, lines=lines_of(standing))


@app.command()
def settle(
    book: Place,
    run: Annotated[str, typer.Argument(help="The run's folder; or with --lost, its name in the book.")],
    lost: Annotated[
        bool, typer.Option("--lost", help="The ledger is lost: count everything that was reserved as spent.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """End the reservation of a run that crashed and will not go on: what it began is spent, the rest returned."""
    from privguard.accounting.budget.book import Book
    from privguard.runs import budget

    opened = Book.open(book)
    if lost:
        name, balance = run, opened.settle(run, opened.held(run))
    else:
        name, history = _ended(Path(run))
        balance = budget.settle(opened, name, Path(run), history)
    emit(balance, as_json=as_json, lines=[f"{name}: {balance.spent} events spent, {balance.returned} returned"])


@app.command()
def verify(
    book: Place,
    head: Annotated[str, typer.Option(help="A head that was kept elsewhere; with --size.")] = "",
    size: Annotated[int, typer.Option(help="How many rows that head stands for.", min=0)] = 0,
    as_json: AsJson = False,
) -> None:
    """Check every row and signature, and that nothing was cut since a head was kept. Exit 3 where it was."""
    from privguard.accounting.budget.book import Book

    if bool(head) != bool(size):
        raise ValueError(f"head={head!r}, size={size}: expected both, as verify and show printed them")
    account = Book.open(book).verify(head=head, size=size)
    now = {"id": account.id, "head": account.head, "size": account.size, "time": account.time}
    line = f"{account.size} rows hold; keep elsewhere: --head {account.head} --size {account.size}"
    emit(now, as_json=as_json, lines=[line])


@app.command("import")
def take_over(
    book: Place,
    data_set: Content,
    run: Annotated[Path, typer.Argument(help="The folder of a run that was trained without the book.")],
    as_json: AsJson = False,
) -> None:
    """Enter what a run spent without asking the book. It counts from now on, even where it passes the limit."""
    from privguard.accounting.budget.book import Book

    opened, (name, history) = Book.open(book), _ended(run)
    opened.take_over(name, digest(data_set), history)
    standing = opened.standing(digest(data_set))
    emit(standing, as_json=as_json, lines=lines_of(standing))


def _ended(folder: Path) -> "tuple[str, History]":
    """Name and ledger of a run that nobody is writing to."""
    from privguard.accounting.ledger import Ledger
    from privguard.runs.folder import LEDGER

    with Ledger.open(folder / LEDGER) as ledger:  # held by a run that is under way
        return str(ledger.facts["run"]), Ledger.read(ledger.path)


def digest(data_set: str) -> str:
    """A digest as given, or that of the file named."""
    import hashlib
    import re

    if re.fullmatch("[0-9a-f]{64}", data_set):
        return data_set
    if not Path(data_set).is_file():
        found = "a folder" if Path(data_set).is_dir() else "no file of that name"
        raise ValueError(
            f"DATA_SET={data_set!r}: {found}; expected a file, or the SHA-256 of the content in 64 lower-case "
            "hexadecimal characters; pack a folder into one file first"
        )
    with Path(data_set).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lines_of(standing: object) -> list[str]:
    """A standing as the terminal shows it."""
    from privguard.accounting.budget.limits import Standing

    assert isinstance(standing, Standing)  # noqa: S101 — narrows the late import's type
    limit = standing.limit
    of = f" of {limit.epsilon:g} at δ={limit.delta:g} ({limit.relation.value})" if limit else "; nothing was granted"
    runs = [
        f"  {name}: {run.spent} events spent, {run.open} open, {run.returned} returned"
        for name, run in standing.runs.items()
    ]
    terms, notes = standing.terms, list[str]()
    if terms.until is not None:
        notes.append(f"  new reservations until {terms.until}")
    if standing.recent is not None:
        notes.append(f"  within {terms.window_days} days: ε={standing.recent:.4f} of {terms.window_epsilon:g}")
    notes += [f"  team {team}: ε={epsilon:.4f}" for team, epsilon in standing.teams.items()]
    if standing.person is not None:
        notes.append(f"  one person, over all data sets of this population: ε={standing.person:.4f}")
    return [f"{standing.data_set.name} {standing.data_set.sha256[:16]}…: ε={standing.epsilon:.4f}{of}", *notes, *runs]
