"""Any file or folder, sealed and opened again: checkpoints of other tools, data sets, whatever should not lie in clear.

A file becomes a sealed file; a folder becomes a sealed folder, in which names and layout are hidden too.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import final

import privguard
from privguard import _canon, _os
from privguard.checkpoint import archive, durable
from privguard.checkpoint.archive import HEAD, STATE, WEIGHTS, Advance, Audience, Contents
from privguard.checkpoint.fingerprint import is_sealed
from privguard.checkpoint.key import Key, To
from privguard.checkpoint.opened import Sealed
from privguard.errors import SealError

SUFFIX = ".sealed"
_PIECE = 1 << 20


@final
@dataclass(frozen=True)
class FileContent:
    """The content of a file that is read while it is sealed."""

    path: Path
    size: int

    @classmethod
    def of(cls, path: Path) -> "FileContent":
        """With the size that the file has now."""
        return cls(path, path.stat().st_size)

    def views(self, start: int, stop: int) -> Iterator[memoryview]:
        """The bytes from ``start`` up to ``stop``.

        Raises:
            OSError: the file became shorter meanwhile.
        """
        buffer = memoryview(bytearray(min(_PIECE, stop - start)))
        with self.path.open("rb", buffering=0) as file:
            while start < stop:
                got = _os.read_into(file.fileno(), buffer[: stop - start], start)
                if not got:
                    raise OSError(f"{self.path}: became shorter while it was sealed; try again when nobody writes it")
                yield buffer[:got]
                start += got


def seal(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    to: To,
    auditors: To = (),
    advance: Advance | None = None,
) -> None:
    """Seal the file or folder ``source`` into ``target`` for the recipients ``to``; ``source`` stays as it is.

    Raises:
        NoRecipientError: nobody could open it.
        SealError: ``target`` lies inside ``source``, or the folder holds something that is no file.
        FileExistsError: ``target`` is something in clear, which is never overwritten; an older seal is.
        OSError: ``source`` is not there, or the disk is full; nothing is left behind.
    """
    source, target, audience = Path(source), Path(target), Audience.of(to, auditors)
    _refuse_to_bury(target, folder=source.is_dir())
    if source.is_dir():
        if source.resolve() in (target.resolve(), *target.resolve().parents):
            raise SealError(f"target={str(target)!r}: expected a folder outside of the source; choose another")
        members = {name: FileContent.of(source / name) for name in _files_below(source)}
        archive.write_folder(target, Contents(members=members, manifest=manifest("folder")), audience, advance=advance)
    else:
        contents = Contents(members={source.name: FileContent.of(source)}, manifest=manifest("file"))
        archive.write_file(target, contents, audience, advance=advance)


def open_into(
    path: str | os.PathLike[str], target: str | os.PathLike[str], *, key: Key, advance: Advance | None = None
) -> list[Path]:
    """Write the content of a sealed file or folder **in clear** to ``target``, and return the paths.

    A sealed file of one member becomes the file ``target``; anything else becomes a folder of that name. Each file
    appears under its name only after all of its tags were checked.

    Raises:
        TamperedError: the key does not open it, or it is not what was written.
        FileExistsError: ``target`` is there already.
    """
    target = Path(target)
    if target.exists():
        raise FileExistsError(f"{target}: is there already; choose another place, nothing is overwritten in clear")
    with Sealed(path, key) as sealed:
        names = sealed.names()
        if sealed.manifest.get("content") == "file" and len(names) == 1:
            paths = {names[0]: target}
        else:
            paths = {name: target / _inside(name) for name in names}
        for name, where in paths.items():
            where.parent.mkdir(parents=True, exist_ok=True)
            with durable.replacing(where) as descriptor:
                sealed.decrypt(name, descriptor, advance=advance)
        return list(paths.values())


def weights_into(
    path: str | os.PathLike[str], target: str | os.PathLike[str], *, key: Key, advance: Advance | None = None
) -> Path:
    """Write the weights of a snapshot **in clear** to the new safetensors file ``target``, and nothing else of it.

    What a snapshot holds besides is not to be handed on: with the keys of a private run's streams anybody could take
    the noise off its gradients.

    Raises:
        TamperedError: the key does not open it, or it is not what was written.
        SealError: it is no snapshot.
        FileExistsError: ``target`` is there already.
    """
    target = Path(target)
    if target.exists():
        raise FileExistsError(f"{target}: is there already; choose another place, nothing is overwritten in clear")
    with Sealed(path, key) as sealed:
        if WEIGHTS not in sealed.names():
            raise SealError(f"{path}: expected a snapshot and found no {WEIGHTS} in it; open it without --weights")
        with durable.replacing(target) as descriptor:
            sealed.decrypt(WEIGHTS, descriptor, advance=advance)
    return target


def audit_into(path: str | os.PathLike[str], target: str | os.PathLike[str], *, key: Key) -> list[Path]:
    """Write what an auditor may know into the new folder ``target``: ``manifest.json``, and ``ledger.jsonl`` if any.

    Raises:
        TamperedError: the key does not open it, or it is not what was written.
        FileExistsError: ``target`` is there already.
    """
    target = Path(target)
    with Sealed(path, key) as sealed:
        parts = {"manifest.json": _canon.canonical(sealed.manifest) + b"\n", "ledger.jsonl": sealed.ledger}
    target.mkdir()
    written = {target / name: content for name, content in parts.items() if content}
    for where, content in written.items():
        durable.create(where, content, mode=0o600)
    return list(written)


def is_snapshot(paths: Iterable[Path]) -> bool:
    """Whether these are the files of a snapshot that was opened as a whole."""
    return {WEIGHTS, STATE} <= {path.name for path in paths}


def manifest(content: str) -> dict[str, str]:
    """What an auditor may know of a file that is no snapshot."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return {"content": content, "created": created, "privguard": privguard.__version__}


def _files_below(folder: Path) -> list[str]:
    found = list[str]()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found.append(path.relative_to(folder).as_posix())
        elif not path.is_dir() or path.is_symlink():
            raise SealError(f"{path}: expected files and folders only; move it away, or seal the files one by one")
    return found


def _refuse_to_bury(target: Path, *, folder: bool) -> None:
    """Only an older seal of the same form may be replaced: whatever else is there could be the only copy of it."""
    if not target.exists():
        return
    if target.is_dir() is not folder:
        raise FileExistsError(f"{target}: is a {'file' if folder else 'folder'}; choose another name")
    if folder and not (target / HEAD).is_file() and any(target.iterdir()):
        raise FileExistsError(f"{target}: holds files in clear; choose an empty folder")
    if target.is_file() and target.stat().st_size and not is_sealed(target):
        raise FileExistsError(f"{target}: is there already and not sealed; choose another name, it is not overwritten")


def _inside(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or ".." in path.parts or "\0" in name:
        raise SealError("a member's name points outside of the folder; whoever sealed this file means harm")
    return path
