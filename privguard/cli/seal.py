# SPDX-License-Identifier: Apache-2.0
"""``privguard seal | open | inspect | rewrap``: keys come from files or a prompt, never from the command line."""

import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from privguard.cli._output import AsJson, emit, progress, stderr
from privguard.cli._recording import recorded

if TYPE_CHECKING:
    from privguard.checkpoint.archive import Advance
    from privguard.checkpoint.keys.access import Inspection
    from privguard.checkpoint.keys.key import Key

Sealed = Annotated[Path, typer.Argument(help="A sealed file or folder.")]
KeyFile = Annotated[Path | None, typer.Option("--key", help="The key file; without one, the passphrase is asked for.")]
PassphraseFile = Annotated[Path | None, typer.Option(help="Take the passphrase from the first line of a file.")]
To = Annotated[list[Path], typer.Option("--to", help="A recipient or key file; give it again for each recipient.")]
Auditors = Annotated[list[Path], typer.Option("--auditor", help="Who may read ledger and manifest, not the content.")]
WithPassphrase = Annotated[bool, typer.Option("--passphrase", help="Seal to a passphrase too; it is asked for.")]


def seal(
    path: Annotated[
        Path, typer.Argument(help="The file or folder to seal; it stays as it is. - is what comes in.", allow_dash=True)
    ],
    to: To = [],  # noqa: B006 — typer's way to a repeated option
    auditor: Auditors = [],  # noqa: B006
    passphrase: WithPassphrase = False,
    passphrase_file: PassphraseFile = None,
    output: Annotated[Path | None, typer.Option("-o", "--out", help="Default: PATH.sealed")] = None,
    as_json: AsJson = False,
) -> None:
    """Seal a file or folder for one or more recipients."""
    from privguard.checkpoint import files, inspect

    streamed = str(path) == "-"
    if streamed and output is None:
        raise ValueError("-: expected --out with it; what comes in has no name")
    target = output or path.with_name(path.name + files.SUFFIX)
    everybody: list[Path | Key] = [*to]
    if passphrase or passphrase_file:
        everybody.append(_passphrase(passphrase_file, confirm=True))
    size = sum(each.stat().st_size for each in (path.rglob("*") if path.is_dir() else [path]) if each.is_file())
    with recorded(), _bar(f"Sealing {path.name}", size) as advance:
        if streamed:
            files.seal_stream(sys.stdin.buffer, target, to=everybody, auditors=auditor, advance=advance)
        else:
            files.seal(path, target, to=everybody, auditors=auditor, advance=advance)
    if path.is_dir() or (path.is_file() and size):
        stderr().print(
            f"{path} is still there in clear; delete it when you have tried to open the sealed one.", style="dim"
        )
    _show(inspect(target), as_json=as_json)


def open_(
    path: Sealed,
    key: KeyFile = None,
    passphrase_file: PassphraseFile = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            allow_dash=True,
            help="Default: PATH without .sealed; .audit or .safetensors added for a part. With - to standard output.",
        ),
    ] = None,
    audit: Annotated[bool, typer.Option("--audit", help="Only what an auditor may read, into a folder.")] = False,
    weights: Annotated[
        bool, typer.Option("--weights", help="Only a snapshot's weights, into one safetensors file to hand on.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write the content of a sealed file or folder in clear; or its ledger (--audit), or its weights, alone."""
    from privguard.checkpoint import files

    if audit and weights:
        raise ValueError("--audit, --weights: expected one of them; an auditor's key opens no weights")
    ending = ".audit" if audit else ".safetensors" if weights else ""
    target = output or path.with_name(path.name.removesuffix(files.SUFFIX) + ending)
    if audit:
        with recorded(), _told():
            paths = files.audit_into(path, target, key=_key(key, passphrase_file))
        emit({"paths": [str(each) for each in paths]}, as_json=as_json, lines=map(str, paths))
        return
    opener = _key(key, passphrase_file)
    if str(output) == "-":
        if weights or as_json:
            raise ValueError("--out -: expected without --weights and --json; it is the content of one file")
        with recorded(), _told():
            files.open_stream(path, sys.stdout.buffer, key=opener)
        return
    with recorded(), _told(), _bar(f"Opening {path.name}", _size(path)) as advance:
        if weights:
            paths = [files.weights_into(path, target, key=opener, advance=advance)]
        else:
            paths = files.open_into(path, target, key=opener, advance=advance)
    if files.is_snapshot(paths):
        stderr().print(
            f"{target} holds the keys of sampling and noise: whoever has them can take a private run's noise off. "
            "Hand on no more than --weights writes."
        )
    emit({"paths": [str(each) for each in paths]}, as_json=as_json, lines=[str(target)])


def inspect(path: Sealed, as_json: AsJson = False) -> None:
    """Show what can be known of a sealed file without any key."""
    from privguard import checkpoint

    _show(checkpoint.inspect(path), as_json=as_json)


def rewrap(
    path: Sealed,
    key: KeyFile = None,
    passphrase_file: PassphraseFile = None,
    add: Annotated[list[Path], typer.Option("--add", help="A recipient or key file to let in.")] = [],  # noqa: B006
    auditor: Annotated[list[Path], typer.Option("--add-auditor", help="A recipient who may audit only.")] = [],  # noqa: B006
    remove: Annotated[
        list[str], typer.Option("--remove", help="A file, 'KIND ID' as inspect shows, or 'passphrase'.")
    ] = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Change who may open a sealed file, without touching what is in it."""
    from privguard import checkpoint
    from privguard.checkpoint.keys.access import NOT_REVOKED

    if not (add or auditor or remove or checkpoint.inspect(path).leftover):
        raise ValueError("--add, --add-auditor, --remove: expected at least one; there is nothing to change")
    with recorded():
        after = checkpoint.rewrap(path, _key(key, passphrase_file), add=add, add_auditors=auditor, remove=remove)
    if remove:
        stderr().print(f"Not revoked: {NOT_REVOKED}.")
    _show(after, as_json=as_json)


def register(app: typer.Typer) -> None:
    """Add the four commands."""
    app.command("seal")(seal)
    app.command("open")(open_)
    app.command("inspect")(inspect)
    app.command("rewrap")(rewrap)


@contextmanager
def _told() -> "Generator[None]":
    """Print what opening has to say of a file whose content is whole, without the looks of a Python warning."""
    from privguard.checkpoint.opened import LeftoverWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", LeftoverWarning)
        yield
    for each in caught:
        stderr().print(str(each.message))


def _show(found: "Inspection", *, as_json: bool) -> None:
    from privguard.checkpoint.opened import leftover_text

    lines = [
        f"{found.path}: sealed {found.form}, version {found.version}, {found.data_bytes:,} bytes of content",
        *(f"  resume  {name}" for name in found.resume),
        *(f"  audit   {name}" for name in found.audit),
    ]
    if found.leftover:
        stderr().print(leftover_text(Path(found.path)))
    emit(found, as_json=as_json, lines=lines)


def _key(path: Path | None, passphrase_file: Path | None) -> "Key":
    from privguard.checkpoint.keys.key import Key

    return Key.read(path) if path is not None else _passphrase(passphrase_file, confirm=False)


def _passphrase(path: Path | None, *, confirm: bool) -> "Key":
    from privguard.checkpoint.keys.key import Key

    if path is not None:
        try:
            return Key.from_passphrase(path.read_text(encoding="utf-8").split("\n", 1)[0])
        except UnicodeDecodeError:
            raise ValueError(f"{path}: expected a passphrase in its first line, as text in UTF-8") from None
    return Key.from_passphrase(typer.prompt("Passphrase", hide_input=True, confirmation_prompt=confirm, err=True))


def _size(path: Path) -> int:
    from privguard import checkpoint

    return checkpoint.inspect(path).data_bytes


@contextmanager
def _bar(title: str, size: int) -> "Generator[Advance]":
    with progress() as bars:
        task = bars.add_task(title, total=size)
        yield lambda count: bars.advance(task, count)
