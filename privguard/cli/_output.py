# SPDX-License-Identifier: Apache-2.0
"""How commands speak: records to stdout, everything for people to stderr, and one rule for exit codes."""

import json
import os
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from privguard import _canon
from privguard.errors import PrivguardError, ProtocolInvalidError, TamperedError

REFUSED, USAGE, TAMPERED, BUG, INTERRUPTED = 1, 2, 3, 70, 130  # 70 is EX_SOFTWARE of sysexits, 130 is 128 + SIGINT
DEBUG = "PRIVGUARD_DEBUG"

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


def require_place(path: Path) -> None:
    """Refuse a file that could not be written where it is wanted, before the work that it is to hold.

    Raises:
        OSError: a folder has this name, or there is no folder to write it into.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; name a file in it")
    if not path.parent.is_dir():
        raise NotADirectoryError(f"{path}: {path.parent} is not a directory; create it, or name another place")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{path}: {path.parent} cannot be written to; name another place")


def exit_code(error: Exception) -> int:
    """What a command exits with when it ends in this error."""
    if isinstance(error, ValueError | OSError):
        return USAGE
    if isinstance(error, TamperedError | ProtocolInvalidError):
        return TAMPERED
    return REFUSED if isinstance(error, PrivguardError) else BUG


def complain(error: Exception) -> None:
    """One line on stderr: the error's kind and its message; the traceback only where ``-v`` or the variable asks."""
    if os.environ.get(DEBUG):
        stderr().print("".join(traceback.format_exception(error)), markup=False, end="")
        return
    stderr().print(f"[bold red]{type(error).__name__}[/]: ", end="")
    said = str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        said = f"{error.filename}: {error.strerror}"
    stderr().print(said, markup=False)
    if exit_code(error) == BUG:
        stderr().print(f"This should not happen. {DEBUG}=1, or privguard -v, shows where; please report it.")


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
