# SPDX-License-Identifier: Apache-2.0
"""``privguard doctor``: whether this machine can train, seal and report, and what to do where it cannot."""

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, final

import typer

from privguard import _os
from privguard.cli._output import USAGE, AsJson, emit
from privguard.records import Record

_REQUIRED = ("torch", "transformers", "accelerate", "opacus", "cryptography", "dp-accounting", "safetensors", "numpy")
_OPTIONAL = {
    "trl": "PrivateSFTTrainer and preference training",
    "peft": "LoRA adapters",
    "datasets": "tables as training data",
}
_LEAST_SPACE = 2 * 2**30  # bytes: room for two checkpoints of a small model


@final
@dataclass(frozen=True)
class Check(Record):
    """One thing that was checked: ``ok``, ``note`` (works, with less) or ``problem``; ``remedy`` says what to do."""

    name: str
    state: str
    detail: str
    remedy: str = ""


def doctor(
    folder: Annotated[Path, typer.Option(help="Where runs will be kept.", exists=True, file_okay=False)] = Path(),
    key: Annotated[Path | None, typer.Option(help="A key file that should open checkpoints.")] = None,
    book: Annotated[str, typer.Option(help="A budget book: a path or a database URL.")] = "",
    as_json: AsJson = False,
) -> None:
    """Check Python, libraries, locks, disk, keys and book, and say what to do. Exit 2 where something is missing."""
    checks = [*_software(), *_storage(folder), *_keys(key), *_book(book)]
    lines = [
        f"{check.state:8} {check.name}: {check.detail}{'; ' * bool(check.remedy)}{check.remedy}" for check in checks
    ]
    emit({"checks": [check.to_json() for check in checks]}, as_json=as_json, lines=lines)
    if any(check.state == "problem" for check in checks):
        raise typer.Exit(USAGE)


def _software() -> Iterator[Check]:
    supported = sys.platform in {"linux", "darwin"}
    system = (
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}, {_os.processors()} processors"
    )
    remedy = "" if supported else "Linux and macOS are supported; on Windows nothing is tested"
    yield Check("system", "ok" if supported else "note", system, remedy)
    for name in _REQUIRED:
        version = _version(name)
        remedy = "" if version else f"pip install {name}"
        yield Check(name, "ok" if version else "problem", version or "not installed", remedy)
    for name, use in _OPTIONAL.items():
        version = _version(name)
        yield Check(name, "ok" if version else "note", version or f"not installed, which {use} would need")
    yield _attempt("torch", _devices)


def _storage(folder: Path) -> Iterator[Check]:
    free = shutil.disk_usage(folder).free
    remedy = "" if free >= _LEAST_SPACE else "free some space, or name another folder with --folder"
    yield Check("disk", "ok" if not remedy else "note", f"{free / 1e9:.1f} GB free in {folder.resolve()}", remedy)
    yield _attempt("locks", lambda: _lock(folder), "keep runs on a local disk, or on a file system with locks")


def _keys(key: Path | None) -> Iterator[Check]:
    from privguard.checkpoint.keys.key import Key
    from privguard.checkpoint.keys.trust import own_signer

    yield _attempt("signing key", lambda: f"this user signs with {own_signer().identity}")
    if key is not None:
        yield _attempt("key", lambda: f"{key} is {Key.read(key).recipient()}", "make one with `privguard key new`")


def _book(place: str) -> Iterator[Check]:
    place = place or os.environ.get("PRIVGUARD_BOOK", "")
    if place:
        from privguard.accounting.budget.book import Book

        yield _attempt("book", lambda: f"{Book.open(place).verify().size} rows, each one follows from those before it")


def _attempt(name: str, look: Callable[[], str], remedy: str = "") -> Check:
    """A check that holds unless ``look`` raises; what it raises is the detail."""
    try:
        return Check(name, "ok", look())
    except Exception as error:  # whatever it is, it is what the person has to know
        return Check(name, "problem", f"{type(error).__name__}: {error}", remedy)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _devices() -> str:
    import torch

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"trains on {', '.join(devices)}" if devices else "trains on the CPU; no accelerator is visible"


def _lock(folder: Path) -> str:
    with tempfile.TemporaryFile(dir=folder) as file:
        _os.lock(file.fileno())
        _os.sync(file.fileno())
    return f"{folder.resolve()} can be locked and synced"
