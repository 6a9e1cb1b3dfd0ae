# SPDX-License-Identifier: Apache-2.0
"""Files and folders that are there whole or not at all, also after a crash or a power cut.

The order is always the same: write under a temporary name in the same folder, sync the file, rename it, sync the
folder (Pillai et al., OSDI 2014, "All file systems are not created equal"). Names are used relative to a directory that
is held open, so nobody can put another one in its place meanwhile; new files are made where nothing is, never through
a link. A temporary file is locked while its writer lives; the next writer beside it takes away those of dead ones.
"""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Generator
from pathlib import Path
from typing import final

from privguard import _os

_STRETCH = 16 << 20
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.[0-9a-f]{16}\.sealing")  # of which name, which attempt


@final
class Directory:
    """A directory held open. Where the system has no descriptors of directories, paths have to do."""

    def __init__(self, path: Path, *, fd: int | None = None) -> None:
        self.path = path
        self.fd = _os.open_directory(path) if fd is None else fd

    def __enter__(self) -> "Directory":
        return self

    def __exit__(self, *_: object) -> None:
        if self.fd is not None:
            os.close(self.fd)

    def name(self, name: str) -> str:
        """How system calls name ``name`` in here."""
        return name if self.fd is not None else str(self.path / name)

    def create(self, name: str, mode: int = 0o600) -> int:
        """A new file, open for reading and writing.

        Raises:
            FileExistsError: the name is taken, be it by a link that leads nowhere.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _os.NOFOLLOW
        return _os.open_file(self.name(name), flags, mode, dir_fd=self.fd)

    def write(self, name: str, content: bytes, mode: int = 0o600) -> None:
        """A new file with this content, synced."""
        descriptor = self.create(name, mode)
        try:
            _os.set_mode(descriptor, mode)
            pwrite_all(descriptor, content, 0)
            _os.sync(descriptor)
        finally:
            os.close(descriptor)

    def open(self, name: str, flags: int = os.O_RDONLY) -> int:
        """A regular file in here, not through a link."""
        return _os.open_regular(self.name(name), flags | _os.NOFOLLOW, dir_fd=self.fd)

    def below(self, name: str, *, make: bool = False) -> "Directory":
        """A directory in here, not through a link; ``make`` makes a new one (mode 0700) where there is none."""
        if make:
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.name(name), 0o700, dir_fd=self.fd)
        fd = _os.open_directory(self.name(name), dir_fd=self.fd, follow=False)
        return Directory(self.path / name, fd=fd)

    def rename(self, old: str, new: str, *, into: "Directory | None" = None) -> None:
        """Rename at once; a file named ``new`` is replaced."""
        there = into or self
        os.rename(self.name(old), there.name(new), src_dir_fd=self.fd, dst_dir_fd=there.fd)

    def unlink(self, name: str) -> None:
        """Remove a file; one that is not there is none of our business."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.name(name), dir_fd=self.fd)

    def exists(self, name: str) -> bool:
        """Whether the name is taken, be it by a link that leads nowhere."""
        return _os.exists(name, directory=self.path, dir_fd=self.fd)

    def sync(self) -> None:
        """Make the names in here durable."""
        _os.sync_directory(self.path if self.fd is None else self.fd)

    def names(self) -> list[str]:
        """All names in here."""
        return os.listdir(self.path if self.fd is None else self.fd)  # noqa: PTH208 — of the open directory


@contextlib.contextmanager
def replacing(path: Path) -> Generator[int]:
    """A descriptor to write and read a new file, which takes the place of ``path`` when the block ends well.

    The file has mode 0600, or the one of the file that it replaces. Who else replaces or re-wraps that file waits until
    the block has ended. When the block raises, ``path`` is untouched and nothing is left beside it.

    Raises:
        FileExistsError: ``path`` is a link that leads nowhere; it is not followed to a new file.
    """
    named, path = path, _target(path)
    with contextlib.ExitStack() as stack:
        mode = _hold(path, stack)
        directory = stack.enter_context(Directory(path.parent))
        sweep(directory)
        temporary, descriptor = _temporary(directory, path.name)
        try:
            with naming(named, temporary):
                if mode is not None:
                    _os.set_mode(descriptor, mode)
                yield descriptor
                _os.sync(descriptor)
                directory.rename(temporary, path.name)
        except BaseException:
            directory.unlink(temporary)
            raise
        finally:
            os.close(descriptor)
        directory.sync()


@contextlib.contextmanager
def appearing(path: Path, *, mode: int = 0o600) -> Generator[int]:
    """A descriptor to write a new file that appears under ``path`` when the block ends well.

    Raises:
        FileExistsError: something is there already, or came there meanwhile; it is never replaced.
    """
    with Directory(path.parent) as directory:
        _require_free(directory, path)
        sweep(directory)
        temporary, descriptor = _temporary(directory, path.name, mode)
        try:
            with naming(path, temporary):
                yield descriptor
                _os.sync(descriptor)
                _os.publish(temporary, path.name, directory=path.parent, dir_fd=directory.fd)
        except BaseException:
            directory.unlink(temporary)
            raise
        finally:
            os.close(descriptor)
        directory.sync()


@contextlib.contextmanager
def appearing_folder(path: Path) -> Generator[Directory]:
    """A new folder to fill (mode 0700), which appears under ``path`` when the block ends well; a hidden one till then.

    Raises:
        FileExistsError: something is there already, or came there meanwhile; it is never replaced.
    """
    with Directory(path.parent) as directory:
        _require_free(directory, path)
        with staging(directory, path.name) as stage:
            yield stage
            stage.sync()
            try:
                directory.rename(stage.path.name, path.name)
            except OSError:
                _require_free(directory, path)
                raise
        directory.sync()


@contextlib.contextmanager
def staging(directory: Directory, name: str) -> Generator[Directory]:
    """A hidden new folder in ``directory``, locked while this lives; what is left of it at the end is removed."""
    sweep(directory)
    temporary, stage = _new_stage(directory, name)
    try:
        yield stage
    finally:
        with stage:  # its lock goes last
            _remove_tree(directory, temporary)


def _new_stage(directory: Directory, name: str) -> tuple[str, Directory]:
    while True:
        temporary = _temporary_name(name)
        os.mkdir(directory.name(temporary), 0o700, dir_fd=directory.fd)
        try:
            stage = directory.below(temporary)
        except FileNotFoundError:
            continue
        if stage.fd is not None:
            _lock_if_possible(stage.fd)
        if directory.exists(temporary):  # else it was swept before it was locked
            return temporary, stage
        with stage:
            pass


@contextlib.contextmanager
def naming(path: Path, temporary: str | None = None) -> Generator[None]:
    """Give an ``OSError`` that names no file, or the temporary one, the name that its reader knows."""
    try:
        yield
    except OSError as error:
        hidden = isinstance(error.filename, str) and Path(error.filename).name == temporary
        if error.errno is not None and (error.filename is None or hidden):
            error.filename = str(path)
        raise


def replace(path: Path, content: bytes) -> None:
    """Put ``content`` in the place of ``path``, whole or not at all."""
    with replacing(path) as descriptor:
        pwrite_all(descriptor, content, 0)


def create(path: Path, content: bytes, *, mode: int) -> None:
    """Write a new file, synced and whole or not at all; an existing one is refused with ``FileExistsError``."""
    with appearing(path, mode=mode) as descriptor:
        pwrite_all(descriptor, content, 0)


def pwrite_all(descriptor: int, content: bytes | memoryview, offset: int) -> None:
    """Write every byte at ``offset``; a full disk raises ``OSError``."""
    _os.write_all_at(descriptor, content, offset)


def begin_writeback(descriptor: int, start: int, stop: int) -> None:
    """Let the disk begin on each 16 MiB that are written; otherwise it idles until the sync."""
    begin, end = start // _STRETCH * _STRETCH, stop // _STRETCH * _STRETCH
    _os.begin_writeback(descriptor, begin, end)


def remove_folder(path: Path) -> None:
    """Take a folder away at once, for whoever looks at its name, and then its content."""
    with Directory(path.parent) as directory:
        hidden = _temporary_name(path.name)
        directory.rename(path.name, hidden)
        directory.sync()
        _remove_tree(directory, hidden)


def sweep(directory: Directory) -> None:
    """Take away the temporary files and folders in here that no living process holds.

    Where the file system has no locks nobody can know who lives, so nothing is taken away.
    """
    for name in directory.names():
        if _TEMPORARY.fullmatch(name):
            with contextlib.suppress(OSError):
                _sweep_one(directory, name)


def _sweep_one(directory: Directory, name: str) -> None:
    facts = os.stat(directory.name(name), dir_fd=directory.fd, follow_symlinks=False)
    if not stat.S_ISDIR(facts.st_mode):
        descriptor = directory.open(name)
        try:
            _os.lock(descriptor, wait=False)
            directory.unlink(name)
        finally:
            os.close(descriptor)
        return
    with directory.below(name) as stage:
        if stage.fd is not None:
            _os.lock(stage.fd, wait=False)
            _remove_tree(directory, name)


def _temporary(directory: Directory, name: str, mode: int = 0o600) -> tuple[str, int]:
    """A new temporary file for ``name``, locked."""
    while True:
        temporary = _temporary_name(name)
        descriptor = directory.create(temporary, mode)
        _lock_if_possible(descriptor)
        if directory.exists(temporary):  # else it was swept before it was locked
            return temporary, descriptor
        os.close(descriptor)


def _temporary_name(name: str) -> str:
    """Of fixed length, so that every name that the file system takes can be written."""
    return f".{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}.{_os.fresh_token()}.sealing"


def _lock_if_possible(descriptor: int) -> None:
    with contextlib.suppress(_os.LocksUnsupportedError):  # it only keeps others from sweeping this one
        _os.lock(descriptor)


def _hold(path: Path, stack: contextlib.ExitStack) -> int | None:
    """Lock the file that is going to be replaced, as far as that can be done, and return its mode; None without one."""
    for flags in (os.O_RDWR, os.O_RDONLY):  # network file systems lock only what is open for writing
        try:
            descriptor = stack.enter_context(_os.locked_path(path, flags=flags))
        except (PermissionError, _os.LocksUnsupportedError):
            continue
        except FileNotFoundError:
            return None
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    return stat.S_IMODE(path.stat().st_mode)


def _target(path: Path) -> Path:
    """Where a link leads, if that is there; a named link to an older file is how people name the newest one."""
    if not path.is_symlink():
        return path
    if not path.exists():
        raise FileExistsError(
            errno.EEXIST, "is a link that leads nowhere; remove it, or choose another name", str(path)
        )
    return Path(os.path.realpath(path))


def _require_free(directory: Directory, path: Path) -> None:
    if directory.exists(path.name):
        raise FileExistsError(f"{path}: is there already; choose another place, nothing is overwritten in clear")


def _remove_tree(directory: Directory, name: str) -> None:
    if directory.fd is not None and shutil.rmtree.avoids_symlink_attacks:
        shutil.rmtree(name, ignore_errors=True, dir_fd=directory.fd)
    else:
        shutil.rmtree(directory.path / name, ignore_errors=True)
