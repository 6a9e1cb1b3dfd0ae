# SPDX-License-Identifier: Apache-2.0
"""Sealed folders: saved, saved again and taken away so that every reader sees one whole state, whoever else writes.

A new folder is filled under a hidden name beside its own and appears by one rename. A folder that is there is saved
again in place: its lock is held from start to end; the new parts are written into a hidden folder inside, moved beside
the old ones, and one rename of the head makes them count. What may then be deleted is written into the lock file first:
the parts of the new save and those that the replaced head named, nothing else. Whoever gets the lock next finds there
what a killed writer left, and takes away what the head does not name.
"""

import contextlib
import os
import re
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import final

from privguard import _os
from privguard.attest import journal
from privguard.checkpoint import archive, durable, envelope
from privguard.checkpoint.archive import HEAD, SMALL, Advance, Audience, Contents, Places
from privguard.checkpoint.content.payload import Bytes, MalformedError, Place
from privguard.checkpoint.durable import Directory
from privguard.checkpoint.envelope import PREAMBLE_BYTES, Form, Preamble, Secrets
from privguard.errors import SealError

LOCK = ".privguard.lock"
_PART = re.compile(r"([0-9a-f]{32})\.(\d{1,9}|index|ledger|manifest)")
_INTENT = re.compile(rb"[0-9a-f]{32}")


def write_folder(
    path: Path,
    contents: Contents,
    audience: Audience,
    *,
    beside: Mapping[str, bytes] | None = None,
    advance: Advance | None = None,
) -> None:
    """Seal ``contents`` into a folder; what the folder held before opens until the new head is in place.

    ``beside`` are small files, not sealed, that appear together with the parts.

    Raises:
        SealError: the folder is there already, and its file system has no working lock.
        OSError: the disk is full, or the place cannot be written; nothing is left behind.
    """
    path = Path(os.path.realpath(path))
    secrets = Secrets.fresh()
    with journal.acting("seal", path) as act, durable.naming(path), contextlib.ExitStack() as stack:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = stack.enter_context(alone_in(path)) if _occupied(path) else None
        home = stack.enter_context(Directory(path.parent if lock is None else path))
        stage = stack.enter_context(durable.staging(home, path.name))
        preamble = _fill(stage, contents, secrets, audience, mode=_mode_of_head(path), advance=advance)
        for name, content in (beside or {}).items():
            stage.write(name, content)
        stage.sync()
        act.sha256 = preamble.digest()
        if lock is None and not _appear(home, stage, path):
            lock = stack.enter_context(alone_in(path))  # somebody else's save came first; this one replaces it
        if lock is not None:
            lock.adopt(stage, preamble.file_id.hex())


def remove(path: Path) -> None:
    """Take a sealed folder away: for its readers at once, and then its files.

    Raises:
        SealError: its file system has no working lock.
        FileNotFoundError: it is not there.
    """
    with alone_in(path):
        durable.remove_folder(path)


@final
class FolderLock:
    """The right to change a sealed folder, held by one writer at a time."""

    def __init__(self, folder: Directory, descriptor: int) -> None:
        self.folder = folder
        self._descriptor = descriptor

    def adopt(self, stage: Directory, file_id: str) -> None:
        """Move a save in: its parts, then its head; then delete the parts that the replaced head named."""
        self.intend(name for name in (file_id, self._named_by_head()) if name)
        for name in stage.names():
            if name != HEAD:
                stage.rename(name, name, into=self.folder)
        self.folder.sync()
        stage.rename(HEAD, HEAD, into=self.folder)
        self.settle()

    def intend(self, file_ids: Iterable[str]) -> None:
        """Write down whose parts may be deleted if this process dies."""
        _os.write_all_at(self._descriptor, "".join(f"{each}\n" for each in file_ids).encode(), 0)
        _os.sync(self._descriptor)

    def settle(self) -> None:
        """Delete the parts that were written down and that the head does not name.

        The folder is synced before: parts must not go while a power cut could bring back the head that names them.
        """
        size = os.fstat(self._descriptor).st_size
        intended = {name.decode() for name in _INTENT.findall(_os.read_all_at(self._descriptor, size, 0))}
        if not intended:
            return
        self.folder.sync()
        unwanted = intended - {self._named_by_head()}
        for name in self.folder.names():
            part = _PART.fullmatch(name)
            if part and part[1] in unwanted:
                self.folder.unlink(name)
        self.folder.sync()
        os.ftruncate(self._descriptor, 0)

    def _named_by_head(self) -> str:
        """The file id in the head, empty where there is no head."""
        try:
            descriptor = self.folder.open(HEAD)
        except FileNotFoundError:
            return ""
        try:
            return Preamble.unpack(_os.read_all_at(descriptor, PREAMBLE_BYTES, 0)).file_id.hex()
        except (MalformedError, SealError):
            return ""
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def alone_in(path: Path) -> Generator[FolderLock]:
    """Wait for the lock of a folder, clear away what a killed writer left, and hold it.

    Raises:
        SealError: the file system has no working lock.
        FileNotFoundError: there is no such folder.
    """
    with Directory(path) as folder:
        descriptor = _take(folder)
        lock = FolderLock(folder, descriptor)
        try:
            lock.settle()
            yield lock
        except BaseException:
            with contextlib.suppress(OSError):
                lock.settle()
            raise
        finally:
            if not os.fstat(descriptor).st_size:  # else what is written down is for the next writer
                folder.unlink(LOCK)
            os.close(descriptor)


def _take(folder: Directory) -> int:
    while True:
        try:
            descriptor = folder.create(LOCK)
        except FileExistsError:
            try:
                descriptor = folder.open(LOCK, os.O_RDWR)
            except FileNotFoundError:
                continue
        try:
            _os.lock(descriptor)
        except _os.LocksUnsupportedError:
            folder.unlink(LOCK)
            os.close(descriptor)
            raise SealError(
                f"{folder.path}: its file system has no working lock, so two writers could destroy each other's parts; "
                "seal into a single file or a new folder, or use a local disk"
            ) from None
        if _os.leads_to(folder.path / LOCK, descriptor):
            return descriptor
        os.close(descriptor)


def _occupied(path: Path) -> bool:
    return path.is_dir() and (os.path.ismount(path) or any(path.iterdir()))


def _mode_of_head(path: Path) -> int:
    try:
        return (path / HEAD).stat().st_mode & 0o777
    except (FileNotFoundError, NotADirectoryError):
        return 0o600


def _appear(home: Directory, stage: Directory, path: Path) -> bool:
    """Give the folder its name, unless somebody else's has it by now."""
    try:
        with contextlib.suppress(FileNotFoundError):
            mode = path.stat().st_mode & 0o777
            if stage.fd is not None:
                _os.set_mode(stage.fd, mode)
        home.rename(stage.path.name, path.name)
    except OSError:
        if _occupied(path):
            return False
        raise
    home.sync()
    return True


def _fill(
    stage: Directory, contents: Contents, secrets: Secrets, audience: Audience, *, mode: int, advance: Advance | None
) -> Preamble:
    """All parts and the head, synced one by one: a folder may have more members than a process has descriptors."""
    stanzas = envelope.wrap(secrets, audience.to, audience.auditors)
    small = contents.small(secrets)
    draft = archive.draft(Form.FOLDER, secrets, stanzas, contents.sizes, small)
    places: Places = archive.places_in_file(stage.path, -1, draft, contents.sizes)
    digests = dict[str, bytes]()
    for number, content in enumerate(contents.members.values()):
        with _part(stage, draft, number, places, mode=mode) as place:
            archive.member(secrets, number).seal(content, place, advance=advance)
    for name in SMALL:
        with _part(stage, draft, name, places, mode=mode) as place:
            archive.small_part(secrets, name).seal(Bytes(small[name]), place)
            digests[name] = archive.digest(place)
    preamble = archive.finished(draft, digests)
    stage.write(HEAD, preamble.pack() + envelope.pack_slot(preamble, secrets, stanzas, sequence=1), mode)
    return preamble


@contextlib.contextmanager
def _part(stage: Directory, draft: Preamble, name: int | str, places: Places, *, mode: int) -> Generator[Place]:
    descriptor = stage.create(archive.part_name(draft, name))
    try:
        _os.set_mode(descriptor, mode)
        yield Place(stage.path, descriptor, 0, places[name].size)
        _os.sync(descriptor)
    finally:
        os.close(descriptor)
