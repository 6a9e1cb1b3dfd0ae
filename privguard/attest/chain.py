# SPDX-License-Identifier: Apache-2.0
"""The file behind a chain of lines: it grows by whole lines that are on disk when an append returns, or not at all.

The run's ledger and the access journal are such files. What a line says of the lines before it is theirs: the ledger
carries a Merkle head, the journal the SHA-256 of the line before. This is what they share: one writer at a time, every
short write noticed, a line that could not be finished taken back, and a file that was replaced or changed under its
writer found before the next line.
"""

import contextlib
import os
from pathlib import Path
from typing import final

from privguard import _os


class ChangedError(Exception):
    """The file is no longer the one that its writer left: replaced, removed, or of another length."""


@final
class ChainFile:
    """An append-only file of lines, open and locked for one writer.

    ``size`` counts the bytes of whole lines; what a crash left behind them is cut off by ``mend`` and never read.
    """

    def __init__(self, path: Path, descriptor: int, size: int) -> None:
        self.path = path
        self.size = size
        self._descriptor: int | None = descriptor

    @classmethod
    def create(cls, path: Path, *, mode: int) -> "ChainFile":
        """A new, empty and locked file.

        Raises:
            FileExistsError: there is one already.
            LocksUnsupportedError: the file system has no working lock; nothing was created.
        """
        descriptor = _os.open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        try:
            _os.lock(descriptor, wait=False)
        except BaseException:
            os.close(descriptor)
            path.unlink()
            raise
        return cls(path, descriptor, 0)

    @classmethod
    def open(cls, path: Path, *, wait: bool, create_mode: int | None = None) -> "ChainFile":
        """An existing file, locked; ``create_mode`` makes an empty one where there is none.

        Raises:
            FileNotFoundError: there is none.
            BlockingIOError: another writer has it, and ``wait`` is false.
            LocksUnsupportedError: the file system has no working lock.
        """
        while True:
            descriptor, new = _open_or_create(path, create_mode)
            try:
                _os.lock(descriptor, wait=wait)
                if not _os.leads_to(path, descriptor):  # replaced while this waited
                    os.close(descriptor)
                    continue
                if new:
                    _os.sync_directory(path.parent)
            except BaseException:
                os.close(descriptor)
                raise
            return cls(path, descriptor, os.fstat(descriptor).st_size)

    @property
    def descriptor(self) -> int:
        """The open file.

        Raises:
            ValueError: it was closed.
        """
        if self._descriptor is None:
            raise ValueError(f"{self.path}: closed; open it again")
        return self._descriptor

    @property
    def closed(self) -> bool:
        """Whether nothing can be appended any more."""
        return self._descriptor is None

    def last_line(self, *, longest: int) -> bytes:
        """The last whole line without its newline, empty where there is none; ``size`` ends there afterwards.

        What follows the last newline is a line that a crash cut short: it was never acknowledged.

        Raises:
            ValueError: more than ``longest`` bytes without a newline, which no writer leaves.
        """
        end = os.fstat(self.descriptor).st_size
        start = max(0, end - 2 * longest)
        tail = _os.read_all_at(self.descriptor, end - start, start)
        cut = tail.rfind(b"\n") + 1
        line = tail[tail.rfind(b"\n", 0, cut - 1) + 1 : cut - 1] if cut else b""
        if (start and not cut) or len(tail) - cut > longest or len(line) >= longest:
            raise ValueError(f"more than {longest} bytes without the end of a line")
        self.size = start + cut
        return line

    def mend(self, size: int) -> None:
        """Cut the file to its whole lines, ``size`` bytes."""
        os.ftruncate(self.descriptor, size)
        self.size = size

    def append(self, line: bytes) -> None:
        """Add one line and its newline, and return when it is on disk.

        Raises:
            OSError: the disk is full or failed; the line was taken back as far as the disk allowed.
            ChangedError: the file was replaced, or is not as long as this writer left it.
        """
        self.require_untouched()
        try:
            _os.write_all_at(self.descriptor, line + b"\n", self.size)
            _os.sync(self.descriptor)
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(self.descriptor, self.size)
            raise
        self.size += len(line) + 1

    def require_untouched(self) -> None:
        """Return when the file under this name is still the one that is open, and as long as it was left.

        Raises:
            ChangedError: it is not.
        """
        status = os.fstat(self.descriptor)
        if status.st_size != self.size or not _os.leads_to(self.path, self.descriptor):
            raise ChangedError(str(self.path))

    def close(self) -> None:
        """Close the file and let the lock go; harmless when done twice."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)

    def __enter__(self) -> "ChainFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open_or_create(path: Path, mode: int | None) -> tuple[int, bool]:
    """The file, and whether it is new; never what a planted link that leads nowhere points to."""
    while True:
        try:
            return _os.open_regular(path, os.O_RDWR), False
        except FileNotFoundError:
            if mode is None:
                raise
        try:
            return _os.open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode), True
        except FileExistsError:
            if not path.exists():  # a link that leads nowhere; O_EXCL does not follow it
                raise
