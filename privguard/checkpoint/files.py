# SPDX-License-Identifier: Apache-2.0
"""Any file or folder, sealed and opened again: checkpoints of other tools, data sets, whatever should not lie in clear.

A file becomes a sealed file; a folder becomes a sealed folder, in which names and layout are hidden too.
"""

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO, final

import privguard
from privguard import _canon, _os
from privguard.checkpoint import archive, durable
from privguard.checkpoint.archive import HEAD, STATE, WEIGHTS, Advance, Audience, Contents
from privguard.checkpoint.content import stream
from privguard.checkpoint.durable import Directory
from privguard.checkpoint.fingerprint import is_sealed
from privguard.checkpoint.keys.key import Key, To
from privguard.checkpoint.opened import Sealed
from privguard.checkpoint.sealed_folder import LOCK, write_folder
from privguard.errors import SealError

SUFFIX = ".sealed"
_PIECE = 1 << 20


@final
@dataclass(frozen=True)
class FileContent:
    """The content of a regular file that is read while it is sealed, and must not change meanwhile."""

    path: Path
    size: int
    changed: int  # nanoseconds

    @classmethod
    def of(cls, path: Path) -> "FileContent":
        """With the size that the file has now.

        Args:
            path: a file in clear.
        """
        facts = path.stat()
        return cls(path, facts.st_size, facts.st_mtime_ns)

    def views(self, start: int, stop: int) -> Iterator[memoryview]:
        """The bytes from ``start`` up to ``stop``.

        Args:
            start: the first byte.
            stop: the byte after the last.

        Raises:
            OSError: the file became shorter, longer or was written to meanwhile.
        """
        buffer = memoryview(bytearray(min(_PIECE, stop - start)))
        descriptor = _os.open_regular(self.path)
        try:
            while start < stop:
                got = _os.read_into(descriptor, buffer[: stop - start], start)
                if not got:
                    raise self._changed()
                yield buffer[:got]
                start += got
            if stop == self.size:
                self._require_unchanged(descriptor)
        finally:
            os.close(descriptor)

    def _require_unchanged(self, descriptor: int) -> None:
        facts = os.fstat(descriptor)  # files of /proc say that they are empty, so the end is read as well
        if (facts.st_size, facts.st_mtime_ns) != (self.size, self.changed) or _os.read_at(descriptor, 1, self.size):
            raise self._changed()

    def _changed(self) -> OSError:
        return OSError(f"{self.path}: changed while it was sealed; try again when nobody writes it")


def seal(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    to: To,
    auditors: To = (),
    advance: Advance | None = None,
) -> None:
    """Seal the file or folder ``source`` into ``target`` for the recipients ``to``; ``source`` stays as it is.

    What has no size of its own (a pipe of the shell, a file of ``/proc``) is read to its end. Inside a folder, links to
    files are followed and links to folders are refused; a named source may be a link.

    Args:
        source: a file or folder in clear.
        target: where the result is to appear.
        to: who may open all of it: recipients, keys or paths of their files.
        auditors: who may read ledger and manifest alone.
        advance: called with each number of bytes done; None for nobody.

    Raises:
        NoRecipientError: nobody could open it.
        SealError: ``target`` lies inside ``source``, the folder holds something that is no file or has a name that is
            not UTF-8, or the source is a named pipe or a device.
        FileExistsError: ``target`` is something in clear, which is never overwritten; an older seal is.
        OSError: ``source`` is not there or changes meanwhile, or the disk is full; nothing is left behind.
    """
    source, target, audience = Path(source), Path(target), Audience.of(to, auditors)
    _refuse_to_bury(target, folder=source.is_dir())
    if source.is_dir():
        if source.resolve() in (target.resolve(), *target.resolve().parents):
            raise SealError(f"target={str(target)!r}: expected a folder outside of the source; choose another")
        members = {name: FileContent.of(source / name) for name in _files_below(source)}
        write_folder(target, Contents(members=members, manifest=manifest("folder")), audience, advance=advance)
        return
    facts = source.stat()
    if stat.S_ISREG(facts.st_mode) and facts.st_size:
        contents = Contents(members={_text(source.name): FileContent.of(source)}, manifest=manifest("file"))
        archive.write_file(target, contents, audience, advance=advance)
        return
    _refuse_to_wait(source, facts.st_mode)
    with source.open("rb", buffering=0) as file:
        seal_stream(file, target, to=to, auditors=auditors, name=_text(source.name), advance=advance)


def seal_stream(
    file: IO[bytes],
    target: str | os.PathLike[str],
    *,
    to: To,
    auditors: To = (),
    name: str = "stream",
    advance: Advance | None = None,
) -> None:
    """Seal all that comes out of ``file`` into ``target``, without a copy in clear; ``name`` is its name in there.

    Args:
        file: an open file or pipe, read to its end.
        target: where the result is to appear.
        to: who may open all of it: recipients, keys or paths of their files.
        auditors: who may read ledger and manifest alone.
        name: the name that the content has inside.
        advance: called with each number of bytes done; None for nobody.

    Raises:
        NoRecipientError: nobody could open it.
        FileExistsError: ``target`` is something in clear.
        OSError: reading failed, or the disk is full; nothing is left behind.
    """
    target, audience = Path(target), Audience.of(to, auditors)
    _refuse_to_bury(target, folder=False)
    with stream.sealing(target, name, audience, manifest=manifest("file")) as out:
        while piece := file.read(_PIECE):
            out.write(piece)
            if advance:
                advance(len(piece))


def open_into(
    path: str | os.PathLike[str], target: str | os.PathLike[str], *, key: Key, advance: Advance | None = None
) -> list[Path]:
    """Write the content of a sealed file or folder **in clear** to ``target``, and return the paths.

    A sealed file of one member becomes the file ``target``; anything else becomes a folder of that name. Until all tags
    of all members were checked, everything lies under a hidden name beside ``target``, which is removed when anything
    is wrong; then it gets its name by one rename. Nothing that is there is written over or written through.

    Args:
        path: the sealed file or folder.
        target: where the result is to appear.
        key: what opens it.
        advance: called with each number of bytes done; None for nobody.

    Raises:
        TamperedError: the key does not open it, or it is not what was written.
        SealError: members whose names cannot stand side by side in one folder.
        FileExistsError: ``target`` is there already, be it a link that leads nowhere.
    """
    target = Path(target)
    _refuse_taken(target)
    with Sealed(path, key) as sealed:
        names = sealed.names()
        if sealed.manifest.get("content") == "file" and len(names) == 1:
            with durable.appearing(target) as descriptor:
                sealed.decrypt(names[0], descriptor, advance=advance)
            return [target]
        places = _places(names)
        with durable.appearing_folder(target) as folder:
            _fill(folder, sealed, places, advance)
        return [target / place for place in places.values()]


def open_stream(path: str | os.PathLike[str], out: IO[bytes], *, key: Key, member: str | None = None) -> None:
    """Write one member **in clear** to ``out``, such as a pipe, after all of its tags were checked.

    It is decrypted twice: once to be sure of its end, which a stream cannot take back, and once to be written.

    Args:
        path: the sealed file or folder.
        out: an open file or pipe, written to.
        key: what opens it.
        member: which file of a sealed folder; None where there is one.

    Raises:
        TamperedError: the key does not open it, or it is not what was written; nothing was written.
        SealError: there are several members and none was named, or none of that name.
    """
    with Sealed(path, key) as sealed:
        names = sealed.names()
        name = names[0] if member is None and len(names) == 1 else member
        if name not in names:
            raise SealError(f"member={member!r}: expected one of {', '.join(names[:8])}; open a folder into a folder")
        sealed.check(name)
        with stream.opening(sealed, name) as content:
            while piece := content.read(_PIECE):
                out.write(piece)
    out.flush()


def _fill(folder: Directory, sealed: Sealed, places: dict[str, PurePosixPath], advance: Advance | None) -> None:
    """Write every member where its name says, each directory opened once and never through a link."""
    with contextlib.ExitStack() as opened:
        directories = {PurePosixPath(): folder}
        for name, place in places.items():
            for parent in reversed(place.parents):
                if parent not in directories:
                    below = directories[parent.parent].below(parent.name, make=True)
                    directories[parent] = opened.enter_context(below)
            descriptor = directories[place.parent].create(place.name)
            try:
                sealed.decrypt(name, descriptor, advance=advance)
                _os.sync(descriptor)
            finally:
                os.close(descriptor)
        for directory in directories.values():
            directory.sync()


def _places(names: list[str]) -> dict[str, PurePosixPath]:
    """Where each member goes; no two in one place, and none below a file."""
    places = {name: _inside(name) for name in names}
    taken = set(places.values())
    folders = {parent for place in taken for parent in place.parents}
    if len(taken) < len(names) or taken & folders:
        raise SealError("two members would be written to one place; whoever sealed this file made it so by hand")
    return places


def weights_into(
    path: str | os.PathLike[str], target: str | os.PathLike[str], *, key: Key, advance: Advance | None = None
) -> Path:
    """Write the weights of a snapshot **in clear** to the new safetensors file ``target``, and nothing else of it.

    What a snapshot holds besides is not to be handed on: with the keys of a private run's streams anybody could take
    the noise off its gradients.

    Args:
        path: the sealed file or folder.
        target: where the result is to appear.
        key: what opens it.
        advance: called with each number of bytes done; None for nobody.

    Raises:
        TamperedError: the key does not open it, or it is not what was written.
        SealError: it is no snapshot.
        FileExistsError: ``target`` is there already.
    """
    target = Path(target)
    _refuse_taken(target)
    with Sealed(path, key) as sealed:
        if WEIGHTS not in sealed.names():
            raise SealError(f"{path}: expected a snapshot and found no {WEIGHTS} in it; open it without --weights")
        with durable.appearing(target) as descriptor:
            sealed.decrypt(WEIGHTS, descriptor, advance=advance)
    return target


def audit_into(path: str | os.PathLike[str], target: str | os.PathLike[str], *, key: Key) -> list[Path]:
    """Write what an auditor may know into the new folder ``target``: ``manifest.json``, and ``ledger.jsonl`` if any.

    Args:
        path: the sealed file or folder.
        target: where the result is to appear.
        key: what opens it.

    Raises:
        TamperedError: the key does not open it, or it is not what was written.
        FileExistsError: ``target`` is there already.
    """
    target = Path(target)
    _refuse_taken(target)
    with Sealed(path, key) as sealed:
        parts = {"manifest.json": _canon.canonical(sealed.manifest) + b"\n", "ledger.jsonl": sealed.ledger}
    written = {name: content for name, content in parts.items() if content}
    with durable.appearing_folder(target) as folder:
        for name, content in written.items():
            folder.write(name, content)
    return [target / name for name in written]


def is_snapshot(paths: Iterable[Path]) -> bool:
    """Whether these are the files of a snapshot that was opened as a whole.

    Args:
        paths: paths of files in clear.
    """
    return {WEIGHTS, STATE} <= {path.name for path in paths}


def manifest(content: str) -> dict[str, str]:
    """What an auditor may know of a file that is no snapshot.

    Args:
        content: the kind of content, ``file`` or ``folder``.
    """
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return {"content": content, "created": created, "privguard": privguard.__version__}


def _files_below(folder: Path) -> list[str]:
    found = list[str]()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            if _text(name) != name:
                raise SealError(f"{name!r}: expected names in UTF-8; rename the file, or seal it by itself")
            found.append(name)
        elif not path.is_dir() or path.is_symlink():
            raise SealError(f"{path}: expected files and folders only; move it away, or seal the files one by one")
    return found


def _text(name: str) -> str:
    """The name as text that JSON carries, bytes that are not UTF-8 replaced."""
    return os.fsencode(name).decode("utf-8", "replace")


def _refuse_to_wait(source: Path, mode: int) -> None:
    """A named pipe without a writer would be waited on for ever, and a device may have no end."""
    named = not str(source.absolute()).startswith(("/dev/fd/", "/dev/std", "/proc/"))
    if (stat.S_ISFIFO(mode) and named) or stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        raise SealError(
            f"{source}: is a pipe, socket or device; send its content through `privguard seal - < {source}`"
        )


def _refuse_taken(target: Path) -> None:
    if target.exists() or target.is_symlink():
        raise FileExistsError(f"{target}: is there already; choose another place, nothing is overwritten in clear")


def _refuse_to_bury(target: Path, *, folder: bool) -> None:
    """Only an older seal of the same form may be replaced: whatever else is there could be the only copy of it."""
    if not target.exists():
        return
    if target.is_dir() is not folder:
        raise FileExistsError(f"{target}: is a {'file' if folder else 'folder'}; choose another name")
    if folder and not (target / HEAD).is_file() and any(each.name != LOCK for each in target.iterdir()):
        raise FileExistsError(f"{target}: holds files in clear; choose an empty folder")
    if target.is_file() and target.stat().st_size and not is_sealed(target):
        raise FileExistsError(f"{target}: is there already and not sealed; choose another name, it is not overwritten")


def _inside(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or ".." in path.parts or "\0" in name:
        raise SealError("a member's name points outside of the folder: the path escapes the output folder")
    return path
