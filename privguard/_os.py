# SPDX-License-Identifier: Apache-2.0
"""One layer over what operating systems and file systems do differently; nothing else calls these functions directly.

Linux has all of it. macOS has no ``sched_getaffinity``, ``posix_fadvise`` or huge pages, and its ``fsync`` stops at the
drive's cache. Windows has no ``fcntl``, ``pread`` or directory descriptors. A network file system may refuse ``flock``,
or to sync a directory. A capability that only makes things faster is left out where it is missing. One that a promise
rests on either has a fallback here that keeps the promise, or raises an error that the caller can name.
"""

import contextlib
import errno
import mmap
import os
import secrets
import stat
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
try:
    import msvcrt
except ImportError:  # everywhere else
    msvcrt = None

CLOEXEC = getattr(os, "O_CLOEXEC", 0)
NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
NONBLOCK = getattr(os, "O_NONBLOCK", 0)
_BINARY = getattr(os, "O_BINARY", 0)
_DIRECTORY = getattr(os, "O_DIRECTORY", 0) if os.open in os.supports_dir_fd else 0

_UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY}
_NO_LOCKS = _UNSUPPORTED | {errno.ENOLCK, errno.EBADF}
_NO_LINKS = _UNSUPPORTED | {errno.EPERM, errno.EMLINK, errno.EACCES}
_FAR = 1 << 62  # Windows locks bytes and keeps others from reading them; no file is that long
_seeking = threading.Lock()


class LocksUnsupportedError(OSError):
    """The file system has no working lock, so nothing that needs one may begin."""


def processors() -> int:
    """How many processors this process may use; at least one."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# Files


def open_file(path: "str | os.PathLike[str]", flags: int, mode: int = 0o600, *, dir_fd: int | None = None) -> int:
    """``os.open``, closed on exec, in binary, relative to ``dir_fd`` where that is given.

    Raises:
        OSError: as ``os.open``; always with the file's name.
    """
    return os.open(path, flags | CLOEXEC | _BINARY, mode, dir_fd=dir_fd)


def open_regular(path: "str | os.PathLike[str]", flags: int = os.O_RDONLY, *, dir_fd: int | None = None) -> int:
    """Open a regular file and nothing else: a pipe or device under this name must neither be waited on nor read.

    Raises:
        OSError: there is no such file, or it is not a regular file (``EINVAL``).
    """
    descriptor = open_file(path, flags | NONBLOCK, dir_fd=dir_fd)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "expected a regular file; this is a pipe, socket or device", str(path))


def read_into(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Read up to ``len(buffer)`` bytes at ``offset``; returns the count, 0 at the end of the file."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [buffer], offset)
    data = read_at(descriptor, len(buffer), offset)
    buffer[: len(data)] = data
    return len(data)


def read_at(descriptor: int, count: int, offset: int) -> bytes:
    """Up to ``count`` bytes at ``offset``, in one read."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, count, offset)
    with _seeking:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, count)


def read_all_at(descriptor: int, count: int, offset: int) -> bytes:
    """``count`` bytes at ``offset``, or fewer only where the file ends."""
    pieces = bytearray()
    while len(pieces) < count and (piece := read_at(descriptor, count - len(pieces), offset + len(pieces))):
        pieces += piece
    return bytes(pieces)


def write_all_at(descriptor: int, content: bytes | memoryview, offset: int) -> None:
    """Write every byte at ``offset``.

    Raises:
        OSError: the disk is full or failed; a part may be written.
    """
    view = memoryview(content)
    while view:
        written = _write_at(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _write_at(descriptor: int, view: memoryview, offset: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, view, offset)
    with _seeking:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.write(descriptor, view)


# Durability


def sync(descriptor: int) -> None:
    """Return when the file is on the disk, also where the drive has a cache of its own.

    Raises:
        OSError: the disk failed; what is on it is unknown.
    """
    full = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: fsync alone stops at the drive's cache
    if fcntl is not None and full is not None:
        try:
            fcntl.fcntl(descriptor, full)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
        else:
            return
    os.fsync(descriptor)


def sync_directory(directory: "Path | int") -> None:
    """Make the names in a directory durable, where the system has such a call.

    Windows cannot open directories, and some network file systems refuse to sync them: they order names themselves.
    """
    descriptor = directory if isinstance(directory, int) else open_directory(directory)
    if descriptor is None:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    finally:
        if not isinstance(directory, int):
            os.close(descriptor)


def open_directory(path: "str | os.PathLike[str]", *, dir_fd: int | None = None, follow: bool = True) -> int | None:
    """A descriptor to name files relative to; None on systems that have none, where paths have to do."""
    if not _DIRECTORY:
        return None
    return os.open(path, os.O_RDONLY | _DIRECTORY | CLOEXEC | (0 if follow else NOFOLLOW), dir_fd=dir_fd)


def begin_writeback(descriptor: int, start: int, stop: int) -> None:
    """Let the disk begin on these bytes; it promises nothing.

    Linux starts to write dirty pages when told that they are not needed, and drops from memory only those that are on
    the disk already (mm/fadvise.c).
    """
    if stop > start and hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(descriptor, start, stop - start, os.POSIX_FADV_DONTNEED)


# Locks


def lock(descriptor: int, *, wait: bool = True) -> None:
    """Take the exclusive lock of an open file; it goes when the descriptor is closed or the process dies.

    Raises:
        BlockingIOError: somebody else holds it, and ``wait`` is false.
        LocksUnsupportedError: the file system, or the system, has none.
    """
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        elif msvcrt is not None:
            _lock_bytes(descriptor, wait=wait)
        else:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))  # noqa: TRY301 — as a file system without locks says it
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno in _NO_LOCKS:
            raise LocksUnsupportedError(error.errno, "this file system has no working lock") from error
        raise


def _lock_bytes(descriptor: int, *, wait: bool) -> None:  # pragma: no cover — Windows
    api: Any = msvcrt
    while True:
        try:
            with _seeking:
                os.lseek(descriptor, _FAR, os.SEEK_SET)
                api.locking(descriptor, api.LK_LOCK if wait else api.LK_NBLCK, 1)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EDEADLOCK):
                raise
            if not wait:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None
        else:
            return


@contextlib.contextmanager
def locked_path(path: Path, *, flags: int = os.O_RDWR, wait: bool = True) -> Generator[int]:
    """The regular file that ``path`` leads to, open and locked, also where another replaced it while this waited.

    Raises:
        FileNotFoundError: there is none.
        BlockingIOError, LocksUnsupportedError: as ``lock``.
    """
    while True:
        descriptor = open_regular(path, flags)
        try:
            lock(descriptor, wait=wait)
            if leads_to(path, descriptor):
                yield descriptor
                return
        finally:
            os.close(descriptor)


def leads_to(path: Path, descriptor: int) -> bool:
    """Whether the file under this name is the one that is open."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


# Names


def publish(temporary: str, name: str, *, directory: Path, dir_fd: int | None) -> None:
    """Give a finished file its name, which must be free: what is there is never replaced.

    Raises:
        FileExistsError: the name is taken.
    """
    both: dict[str, Any] = {} if dir_fd is None else {"src_dir_fd": dir_fd, "dst_dir_fd": dir_fd}
    old, new = (temporary, name) if dir_fd is not None else (str(directory / temporary), str(directory / name))
    try:
        os.link(old, new, **both, follow_symlinks=False)
    except FileExistsError:
        raise
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LINKS:
            raise
        if exists(name, directory=directory, dir_fd=dir_fd):  # FAT and some network file systems have no links
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(directory / name)) from None
        os.rename(old, new, **both)  # noqa: PTH104 — a path has no directory descriptor
        return
    os.unlink(old, dir_fd=dir_fd)


def exists(name: str, *, directory: Path, dir_fd: int | None = None) -> bool:
    """Whether the directory has such a name, be it a link that leads nowhere."""
    try:
        if dir_fd is None:
            os.lstat(directory / name)
        else:
            os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def fresh_token() -> str:
    """16 hexadecimal characters for a temporary name."""
    return secrets.token_hex(8)


def set_mode(descriptor: int, mode: int) -> None:
    """Set the permissions of an open file, where the system has such."""
    if hasattr(os, "fchmod"):
        os.fchmod(descriptor, mode)


# Memory and processes


def anonymous_memory(size: int) -> memoryview:
    """Fresh memory of its own, in large pages where the system has them."""
    private = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)
    memory = mmap.mmap(-1, size, flags=private) if private else mmap.mmap(-1, size)
    if hasattr(memory, "madvise") and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # kernels without large pages say EINVAL
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)


def in_forked_children(action: Callable[[], object]) -> None:
    """Call ``action`` first thing in every forked child; systems without fork have none."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=action)


def belongs_to_this_user(facts: os.stat_result) -> bool:
    """Whether nobody else owns or can read the file; on Windows the home folder's access list decides that."""
    if not hasattr(os, "geteuid"):
        return True
    return facts.st_uid == os.geteuid() and not facts.st_mode & 0o077
