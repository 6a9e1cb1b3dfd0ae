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
    as_json: AsJson = False,
) -> None:
    """Begin a book whose limits only these officers can raise."""
    from privguard.accounting.budget.book import Book
    from privguard.attest.statement import Identity

    made = Book.create(book, officers=[Identity.read(path) for path in officer]).verify()
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
    as_json: AsJson = False,
) -> None:
    """Enter a data set, by content and lineage. It has no budget before a grant."""
    from privguard.accounting.budget.book import Book
    from privguard.accounting.budget.lineage import Lineage
    from privguard.accounting.budget.rules import DataSet

    noted = Lineage.beside(Path(data_set))
    entered = DataSet(
        sha256=_digest(data_set),
        name=name,
        source=source or noted.source,
        version=version or noted.version,
        parent=parent,
        transformations=tuple(transformation or ()),
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
    wanted = [_digest(data_set)] if data_set else [one.sha256 for one in opened.data_sets()]
    standings = [opened.standing(one) for one in wanted]
    lines = [line for standing in standings for line in _lines(standing)]
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
    opened.cap(_digest(data_set), epsilon, reason=reason)
    standing = opened.standing(_digest(data_set))
    emit(standing, as_json=as_json, lines=_lines(standing))


@app.command()
def grant(
    book: Place,
    data_set: Content,
    epsilon: Annotated[float, typer.Option(help="What all runs together may spend.")],
    delta: Annotated[float, typer.Option(help="δ of the guarantee, well below 1/N.")],
    key: Annotated[Path, typer.Option(help="The officer's signing key (PEM).")],
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Set a limit, signed with an officer's key."""
    from privguard.accounting.budget.book import Book
    from privguard.accounting.calibrate import Budget
    from privguard.attest.statement import SigningKey

    opened = Book.open(book)
    opened.grant(_digest(data_set), Budget(epsilon=epsilon, delta=delta), by=SigningKey.read(key), reason=reason)
    standing = opened.standing(_digest(data_set))
    emit(standing, as_json=as_json, lines=_lines(standing))


@app.command()
def settle(
    book: Place,
    run: Annotated[str, typer.Argument(help="The run's folder; or with --lost, its name in the book.")],
    lost: Annotated[
        bool, typer.Option("--lost", help="The ledger is lost: count everything that was reserved as spent.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """End the reservation of a run that crashed and will not go on: its ledger is spent, the rest returned."""
    from privguard.accounting.budget.book import Book

    opened = Book.open(book)
    if lost:
        name, balance = run, opened.settle(run, opened.held(run))
    else:
        name, history = _ended(Path(run))
        balance = opened.settle(name, history.position, ledger=history)
    emit(balance, as_json=as_json, lines=[f"{name}: {balance.spent} events spent, {balance.returned} returned"])


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
    opened.take_over(name, _digest(data_set), history)
    standing = opened.standing(_digest(data_set))
    emit(standing, as_json=as_json, lines=_lines(standing))


def _ended(folder: Path) -> "tuple[str, History]":
    """Name and ledger of a run that nobody is writing to."""
    from privguard.accounting.ledger import Ledger
    from privguard.runs.folder import LEDGER

    with Ledger.open(folder / LEDGER) as ledger:  # held by a run that is under way
        return str(ledger.facts["run"]), Ledger.read(ledger.path)


def _digest(data_set: str) -> str:
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


def _lines(standing: object) -> list[str]:
    from privguard.accounting.budget.book import Standing

    assert isinstance(standing, Standing)  # noqa: S101 — narrows the late import's type
    limit = standing.limit
    of = f" of {limit.epsilon:g} at δ={limit.delta:g} ({limit.relation.value})" if limit else "; nothing was granted"
    runs = [
        f"  {name}: {run.spent} events spent, {run.open} open, {run.returned} returned"
        for name, run in standing.runs.items()
    ]
    return [f"{standing.data_set.name} {standing.data_set.sha256[:16]}…: ε={standing.epsilon:.4f}{of}", *runs]
