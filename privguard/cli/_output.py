"""How commands speak: records to stdout, everything for people to stderr."""

import json
import sys
from collections.abc import Iterable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from privguard import _canon

AsJson = Annotated[bool, typer.Option("--json", help="Print the record as JSON on stdout.")]


def stderr() -> Console:
    """The console for talk; made anew so that redirections in tests are seen."""
    return Console(stderr=True, highlight=False)


def emit(record: object, *, as_json: bool, lines: Iterable[str] = ()) -> None:
    """Print one record: as indented JSON, or as the lines meant for people."""
    if as_json:
        value: Any = record.to_json() if hasattr(record, "to_json") else _canon.to_json(record)  # type: ignore[attr-defined]
        sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n")
    else:
        sys.stdout.writelines(line + "\n" for line in lines)


def complain(error: Exception) -> None:
    """One line on stderr for a refusal: its kind and its message, without a traceback."""
    stderr().print(f"[bold red]{type(error).__name__}[/]: ", end="")
    said = str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        said = f"{error.filename}: {error.strerror}"
    stderr().print(said, markup=False)


def progress() -> Progress:
    """A bar with the share done and the time left, on stderr; it vanishes when it is done."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=stderr(),
        transient=True,
    )
