"""Files that are there whole or not at all, also after a crash or a power cut.

The order is always the same: write under a temporary name in the same folder, sync the file, rename it, sync the
folder (Pillai et al., OSDI 2014, "All file systems are not created equal").
"""

import contextlib
import os
import secrets
from collections.abc import Generator
from pathlib import Path

from privguard import _os

_SUFFIX = ".sealing"
_STRETCH = 16 << 20


@contextlib.contextmanager
def replacing(path: Path) -> Generator[int]:
    """A descriptor to write and read a new file, mode 0600, which takes the place of ``path`` when the block ends well.

    When the block raises, ``path`` is untouched and nothing is left beside it. After a kill, the temporary file
    stays; the next writer of the same path takes it away, unless a living process still holds it.
    """
    named, path = path, Path(os.path.realpath(path))
    sweep(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{_SUFFIX}")
    with naming(named, temporary):
        descriptor = _os.open_file(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            with contextlib.suppress(_os.LocksUnsupportedError):  # the lock only keeps others from sweeping this file
                _os.lock(descriptor)
            yield descriptor
            _os.sync(descriptor)
            temporary.rename(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
    _os.sync_directory(path.parent)


@contextlib.contextmanager
def naming(path: Path, temporary: Path | None = None) -> Generator[None]:
    """Give an ``OSError`` that names no file, or the temporary one, the name that its reader knows."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise


def replace(path: Path, content: bytes) -> None:
    """Put ``content`` in the place of ``path``, whole or not at all."""
    with replacing(path) as descriptor:
        pwrite_all(descriptor, content, 0)


def create(path: Path, content: bytes, *, mode: int) -> None:
    """Write a new file, synced; an existing one is refused with ``FileExistsError``."""
    descriptor = _os.open_file(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        pwrite_all(descriptor, content, 0)
        _os.sync(descriptor)
    finally:
        os.close(descriptor)
    _os.sync_directory(path.parent)


def pwrite_all(descriptor: int, content: bytes | memoryview, offset: int) -> None:
    """Write every byte at ``offset``; a full disk raises ``OSError``."""
    _os.write_all_at(descriptor, content, offset)


def begin_writeback(descriptor: int, start: int, stop: int) -> None:
    """Let the disk begin on each 16 MiB that are written; otherwise it idles until the sync."""
    begin, end = start // _STRETCH * _STRETCH, stop // _STRETCH * _STRETCH
    _os.begin_writeback(descriptor, begin, end)


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable."""
    _os.sync_directory(folder)


def sweep(path: Path) -> None:
    """Take away temporary files of ``path`` that no living process holds."""
    sweep_folder(path.parent, _literal(path.name))


def sweep_folder(folder: Path, pattern: str) -> None:
    """Take away temporary files in ``folder`` that no living process holds, of all names that match ``pattern``."""
    for orphan in folder.glob(f".{pattern}.*{_SUFFIX}"):
        with contextlib.suppress(OSError):
            descriptor = _os.open_regular(orphan)
            try:
                _os.lock(descriptor, wait=False)
                orphan.unlink()
            finally:
                os.close(descriptor)


def _literal(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
