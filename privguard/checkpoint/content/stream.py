# SPDX-License-Identifier: Apache-2.0
"""Sealed files as file objects: written while their size is not known yet, and read by libraries that want a file.

What goes in is sealed at once and what comes out is opened at once, so that neither side ever holds a copy in clear
anywhere but in memory.
"""

import io
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from privguard.attest import journal
from privguard.checkpoint import archive, durable, envelope
from privguard.checkpoint.archive import Audience
from privguard.checkpoint.content.payload import Place, Reader, Writer
from privguard.checkpoint.envelope import Secrets
from privguard.checkpoint.opened import Sealed

_READ_AHEAD = 256 << 10  # bytes; small reads of file formats then cost one batch of chunks, not one chunk each


@final
class SealingStream(io.RawIOBase):
    """A file object to write to; ``tell`` counts bytes of plaintext."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, content: Any, /) -> int:
        """Seal ``content``; a full disk raises ``OSError``.

        Args:
            content: bytes, or what has a buffer of bytes.
        """
        view = memoryview(content).cast("B")
        self._writer.write(view)
        return len(view)

    def tell(self) -> int:
        """Bytes written so far."""
        return self._writer.size


@contextmanager
def sealing(path: Path, name: str, audience: Audience, *, manifest: Mapping[str, Any]) -> Generator[SealingStream]:
    """A stream whose content becomes the only member, ``name``, of the sealed file ``path`` when the block ends well.

    When the block raises, ``path`` is what it was before.

    Args:
        path: the sealed file to be written.
        name: the member's name.
        audience: who may open it, and who may audit.
        manifest: JSON values for auditors.
    """
    secrets = Secrets.fresh()
    stanzas = envelope.wrap(secrets, audience.to, audience.auditors)
    head_bytes = envelope.PREAMBLE_BYTES + 2 * envelope.slot_bytes_for(stanzas)
    with journal.acting("seal", path) as act, durable.replacing(path) as descriptor:
        writer = archive.member(secrets, 0).writer(Place(path, descriptor, head_bytes, 0))
        yield SealingStream(writer)
        size = writer.finish()
        act.sha256 = archive.complete_file(path, descriptor, secrets, stanzas, sizes={name: size}, manifest=manifest)


@final
class OpeningStream(io.RawIOBase):
    """A file object to read and seek in; every byte is authenticated before it is handed out."""

    def __init__(self, content: Reader) -> None:
        self._content = content
        self._position = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move to a position counted from the start, from here, or from the end.

        Args:
            offset: bytes, counted as ``whence`` says.
            whence: ``os.SEEK_SET``, ``os.SEEK_CUR`` or ``os.SEEK_END``.
        """
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._content.size}[whence]
        if base + offset < 0:
            raise ValueError(f"offset={offset}: expected a position inside the file")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """The position, in bytes of plaintext."""
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        """Fill ``buffer`` as far as the content goes.

        Args:
            buffer: writable memory.
        """
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._content.size - self._position))
        self._content.read_into(view[:count], self._position)
        self._position += count
        return count


def opening(sealed: Sealed, name: str) -> io.BufferedReader:
    """A member of an opened file as a file object: for ``numpy.load``, ``pyarrow``, ``zipfile`` and the like.

    Args:
        sealed: an opened file.
        name: the member's name.
    """
    return io.BufferedReader(OpeningStream(sealed.reader(name)), _READ_AHEAD)
