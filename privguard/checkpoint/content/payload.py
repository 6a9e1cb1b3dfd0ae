# SPDX-License-Identifier: Apache-2.0
"""Sealed bytes: segments of Cobblestone-256, written and read in parallel, and read at random.

A member of a file is cut into segments of 64 MiB of plaintext, each a message of C2SP chunked-encryption
(https://c2sp.org/chunked-encryption, AES-256-GCM in chunks of 16 KiB) under one key with a context that names the file,
the member and the segment. Segments are independent, so threads and random access cost nothing extra; what is missing,
moved or repeated fails its tag.

Whole segments go through ``cryptography``'s own Cobblestone; a chunk read by itself is opened with the same derivation,
written out below, because that class has no random access.
"""

import contextlib
import hmac
import os
import struct
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, final

from cryptography.cobblestone import Cobblestone256Decryptor, Cobblestone256Encryptor
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from privguard import _os
from privguard.checkpoint import durable
from privguard.errors import TamperedError

SEGMENT = 64 << 20  # bytes of plaintext
CHUNK = 16 << 10
TAG = 16
PREFIX = 56  # salt and key commitment
_SALT = 24
_BATCH = 64  # chunks per call: 1 MiB stays in the second-level cache
_CONTEXT = struct.Struct(">16sII")  # file id, member, segment
_COBBLESTONE = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\0"


class Content(Protocol):
    """Plaintext of known size that can be asked for a stretch of itself, from several threads."""

    @property
    def size(self) -> int: ...  # noqa: D102

    def views(self, start: int, stop: int) -> Iterator[memoryview]: ...  # noqa: D102


@final
@dataclass(frozen=True)
class Bytes:
    """Content that is in memory."""

    content: bytes | bytearray | memoryview

    @property
    def size(self) -> int:
        """Bytes in all."""
        return memoryview(self.content).nbytes

    def views(self, start: int, stop: int) -> Iterator[memoryview]:
        """The bytes from ``start`` up to ``stop``."""
        yield memoryview(self.content).cast("B")[start:stop]


@contextlib.contextmanager
def one_failure(path: Path) -> Generator[None]:
    """Turn whatever shows that bytes are not what was written into one error, the same for every cause."""
    try:
        yield
    except (InvalidTag, MalformedError):
        raise TamperedError(f"{path}: wrong key, or the file is not what was written; nothing was released") from None


class MalformedError(Exception):
    """Bytes that no writer of this version makes; it never leaves this package."""


@final
@dataclass(frozen=True)
class Place:
    """Where the ciphertext of a member lies: ``size`` bytes at ``offset`` of the open file ``path``.

    ``opener`` opens the file anew for each read: of a folder with more members than a process has descriptors.
    """

    path: Path
    descriptor: int
    offset: int
    size: int
    opener: Callable[[], int] | None = None

    def read(self, buffer: memoryview, position: int) -> None:
        """Fill ``buffer`` from ``position`` on; running into the end raises ``InvalidTag``, like any other cut."""
        if position < 0 or position + len(buffer) > self.size:
            raise InvalidTag
        descriptor = self.descriptor if self.opener is None else self.opener()
        try:
            self._fill(descriptor, buffer, self.offset + position)
        finally:
            if self.opener is not None:
                os.close(descriptor)

    def _fill(self, descriptor: int, buffer: memoryview, offset: int) -> None:
        done = 0
        while done < len(buffer):
            got = _os.read_into(descriptor, buffer[done:], offset + done)
            if not got:
                raise InvalidTag
            done += got

    def write(self, content: bytes | memoryview, position: int) -> None:
        """Write ``content`` at ``position``."""
        start = self.offset + position
        durable.pwrite_all(self.descriptor, content, start)
        durable.begin_writeback(self.descriptor, start, start + len(content))


def message_size(plain: int) -> int:
    """Bytes of one Cobblestone message: prefix, chunks, and the last chunk that is always shorter than a whole one."""
    return PREFIX + plain + TAG * (plain // CHUNK + 1)


def sealed_size(plain: int) -> int:
    """Bytes on disk of a member with ``plain`` bytes: at least one segment, also where it is empty."""
    whole, rest = divmod(plain, SEGMENT)
    return whole * message_size(SEGMENT) + (message_size(rest) if rest or not whole else 0)


def plain_size(sealed: int) -> int:
    """The plaintext's size of a member of ``sealed`` bytes; sizes that no member has raise ``InvalidTag``."""
    whole, rest = divmod(sealed, message_size(SEGMENT))
    chunks, last = divmod(max(rest - PREFIX, 0), CHUNK + TAG)
    plain = whole * SEGMENT + (chunks * CHUNK + last - TAG if rest else 0)
    if plain < 0 or sealed_size(plain) != sealed:
        raise InvalidTag
    return plain


@final
@dataclass(frozen=True)
class Member:
    """The key and the name, inside the file, of one member; it seals and opens the member's bytes.

    Guarantee: bytes come out only as they went in, under the same key, file, member and position; anything else raises
    ``TamperedError``, always with the same words.
    """

    key: bytes = field(repr=False)
    file_id: bytes
    number: int

    def seal(self, content: Content, place: Place, *, advance: Callable[[int], object] | None = None) -> None:
        """Write ``content`` to ``place``, segments side by side; ``advance`` hears of every byte sealed."""

        def one(segment: int) -> None:
            start = segment * SEGMENT
            stop = min(start + SEGMENT, content.size)
            self._seal_segment(segment, content.views(start, stop), place)
            if advance:
                advance(stop - start)

        _side_by_side(one, _segments(content.size))

    def open(self, place: Place, into: memoryview, *, advance: Callable[[int], object] | None = None) -> None:
        """Decrypt the whole member into ``into``, which has the plaintext's size.

        Until this returns, nothing in ``into`` has been shown to be what was written.
        """
        self._open_into(place, Memory(into), advance)

    def open_file(
        self, place: Place, descriptor: int, size: int, *, advance: Callable[[int], object] | None = None
    ) -> None:
        """Decrypt the whole member of ``size`` bytes into an open file, by plain writes.

        A mapping of the file would need space set aside and shared memory, which some file systems lack, and would
        turn a full disk into a dead process. Until this returns, nothing in the file has been shown to be what was
        written.
        """
        self._open_into(place, OpenFile(descriptor, size), advance)

    def check(self, place: Place, size: int) -> None:
        """Authenticate the whole member of ``size`` bytes and keep nothing of it."""
        self._open_into(place, Nowhere(size), None)

    def _open_into(self, place: Place, sink: "Sink", advance: Callable[[int], object] | None) -> None:
        def one(segment: int) -> None:
            start = segment * SEGMENT
            stop = min(start + SEGMENT, sink.size)
            self._open_segment(segment, place, sink, start=start, stop=stop)
            if advance:
                advance(stop - start)

        with one_failure(place.path):
            if place.size != sealed_size(sink.size):
                raise InvalidTag
            _side_by_side(one, _segments(sink.size))

    def writer(self, place: Place) -> "Writer":
        """A writer for content whose size is not known yet; the place's size is not read."""
        return Writer(self, place)

    def reader(self, place: Place, size: int) -> "Reader":
        """Random access to the plaintext of ``size`` bytes."""
        with one_failure(place.path):
            if place.size != sealed_size(size):
                raise InvalidTag
        return Reader(self, place, size)

    def context(self, segment: int) -> bytes:
        """The Cobblestone context of one segment."""
        return b"privguard/v1 payload\0" + _CONTEXT.pack(self.file_id, self.number, segment)

    def _seal_segment(self, segment: int, views: Iterable[memoryview], place: Place) -> None:
        encryptor = Cobblestone256Encryptor(self.key, self.context(segment))
        position = segment * message_size(SEGMENT)
        buffer = memoryview(bytearray(PREFIX + (_BATCH + 1) * (CHUNK + TAG)))
        for view in views:
            for start in range(0, len(view), _BATCH * CHUNK):
                count = encryptor.update_into(view[start : start + _BATCH * CHUNK], buffer)
                place.write(buffer[:count], position)
                position += count
        place.write(encryptor.finalize(), position)

    def _open_segment(self, segment: int, place: Place, sink: "Sink", *, start: int, stop: int) -> None:
        decryptor = Cobblestone256Decryptor(self.key, self.context(segment))
        position = segment * message_size(SEGMENT)
        prefix = memoryview(bytearray(PREFIX))
        place.read(prefix, position)
        decryptor.update(prefix)
        position += PREFIX
        end = position - PREFIX + message_size(stop - start)
        scratch = memoryview(bytearray(_BATCH * (CHUNK + TAG)))
        while position < end:
            batch = scratch[: min(len(scratch), end - position)]
            place.read(batch, position)
            start += sink.take(partial(decryptor.update_into, batch), start, stop)
            position += len(batch)
        rest = decryptor.finalize()
        if start + len(rest) != stop:
            raise InvalidTag
        sink.put(rest, start)


class Sink(Protocol):
    """Where plaintext goes; ``take`` lets ``decrypt`` fill a buffer that stands for ``start`` up to ``stop``."""

    @property
    def size(self) -> int: ...  # noqa: D102

    def take(self, decrypt: Callable[[memoryview], int], start: int, stop: int) -> int: ...  # noqa: D102
    def put(self, content: bytes, start: int) -> None: ...  # noqa: D102


@final
@dataclass(frozen=True)
class Memory:
    """Plaintext that goes into memory, with no copy on the way."""

    into: memoryview

    @property
    def size(self) -> int:
        """Bytes in all."""
        return len(self.into)

    def take(self, decrypt: Callable[[memoryview], int], start: int, stop: int) -> int:
        """Decrypt in place."""
        return decrypt(self.into[start:stop])

    def put(self, content: bytes, start: int) -> None:
        """The end of a segment."""
        self.into[start : start + len(content)] = content


@final
@dataclass(frozen=True)
class Nowhere:
    """Plaintext that is only authenticated."""

    size: int

    def take(self, decrypt: Callable[[memoryview], int], start: int, stop: int) -> int:
        """Decrypt a batch and forget it."""
        return decrypt(memoryview(bytearray(min(stop - start, (_BATCH + 1) * CHUNK))))

    def put(self, content: bytes, start: int) -> None:
        """The end of a segment."""


@final
@dataclass(frozen=True)
class OpenFile:
    """Plaintext that goes into an open file."""

    descriptor: int
    size: int

    def take(self, decrypt: Callable[[memoryview], int], start: int, stop: int) -> int:
        """Decrypt a batch, which stays in the cache, and write it."""
        buffer = memoryview(bytearray(min(stop - start, (_BATCH + 1) * CHUNK)))
        count = decrypt(buffer)
        _os.write_all_at(self.descriptor, buffer[:count], start)
        return count

    def put(self, content: bytes, start: int) -> None:
        """The end of a segment."""
        _os.write_all_at(self.descriptor, content, start)


@final
class Writer:
    """Seals one stretch after the other, segment by segment, into a place that grows."""

    def __init__(self, member: Member, place: Place) -> None:
        self.size = 0
        self._member = member
        self._place = place
        self._position = 0
        self._encryptor = Cobblestone256Encryptor(member.key, member.context(0))
        self._buffer = memoryview(bytearray(PREFIX + (_BATCH + 1) * (CHUNK + TAG)))

    def write(self, content: memoryview) -> None:
        """Seal ``content`` behind what came before."""
        while content:
            room = SEGMENT - self.size % SEGMENT
            piece = content[: min(room, _BATCH * CHUNK)]
            self._put(self._buffer[: self._encryptor.update_into(piece, self._buffer)])
            content, self.size = content[len(piece) :], self.size + len(piece)
            if len(piece) == room:
                self._put(self._encryptor.finalize())
                self._encryptor = Cobblestone256Encryptor(self._member.key, self._member.context(self.size // SEGMENT))

    def finish(self) -> int:
        """Seal the end, and return the size of the plaintext."""
        if not self.size or self.size % SEGMENT:
            self._put(self._encryptor.finalize())
        return self.size

    def _put(self, sealed: bytes | memoryview) -> None:
        self._place.write(sealed, self._position)
        self._position += len(sealed)


@final
class Reader:
    """Random access to one member: a stretch costs its own chunks, and one prefix for each segment it touches."""

    def __init__(self, member: Member, place: Place, size: int) -> None:
        self.size = size
        self._member = member
        self._place = place
        self._ciphers: dict[int, tuple[AESGCM, int]] = {}

    def read(self, start: int, stop: int) -> bytearray:
        """The plaintext from ``start`` up to ``stop``, every byte of it authenticated."""
        into = bytearray(stop - start)
        self.read_into(memoryview(into), start)
        return into

    def read_into(self, into: memoryview, start: int) -> None:
        """Fill ``into`` with the plaintext from ``start`` on."""
        if start < 0 or start + len(into) > self.size:
            raise ValueError(f"stretch={start}:{start + len(into)}: expected to lie within {self.size} bytes")
        with one_failure(self._place.path):
            while into:
                segment, offset = divmod(start, SEGMENT)
                count = min(len(into), SEGMENT - offset)
                self._read_segment(segment, offset, into[:count])
                into, start = into[count:], start + count

    def _read_segment(self, segment: int, offset: int, into: memoryview) -> None:
        size = min(SEGMENT, self.size - segment * SEGMENT)
        base = segment * message_size(SEGMENT)
        chunk, last = offset // CHUNK, (offset + len(into) - 1) // CHUNK
        aside = offset - chunk * CHUNK
        while chunk <= last:
            count = min(_BATCH, last + 1 - chunk)
            begin = base + PREFIX + chunk * (CHUNK + TAG)
            end = min(begin + count * (CHUNK + TAG), base + message_size(size))
            sealed = memoryview(bytearray(end - begin))
            self._place.read(sealed, begin)
            for each in range(count):
                piece = sealed[each * (CHUNK + TAG) : (each + 1) * (CHUNK + TAG)]
                taken = min(len(piece) - TAG - aside, len(into))
                self._open_chunk(segment, chunk + each, piece, into[:taken], aside)
                into, aside = into[taken:], 0
            chunk += count

    def _open_chunk(self, segment: int, chunk: int, sealed: memoryview, into: memoryview, aside: int) -> None:
        """One chunk, of which ``into`` wants the bytes from ``aside`` on."""
        cipher, base_nonce = self._cipher(segment)
        nonce = (base_nonce ^ chunk).to_bytes(12, "big")
        if len(into) == len(sealed) - TAG:
            cipher.decrypt_into(nonce, sealed, None, into)
        else:
            into[:] = memoryview(cipher.decrypt(nonce, sealed, None))[aside : aside + len(into)]

    def _cipher(self, segment: int) -> tuple[AESGCM, int]:
        if segment not in self._ciphers:
            prefix = memoryview(bytearray(PREFIX))
            self._place.read(prefix, segment * message_size(SEGMENT))
            self._ciphers[segment] = _chunk_cipher(self._member.key, bytes(prefix), self._member.context(segment))
        return self._ciphers[segment]


def _chunk_cipher(key: bytes, prefix: bytes, context: bytes) -> tuple[AESGCM, int]:
    """Chunk cipher and base nonce of one message, after its key commitment was checked."""
    derived = HKDFExpand(SHA512(), 76, _COBBLESTONE + prefix[:_SALT] + context).derive(key)
    if not hmac.compare_digest(derived[44:], prefix[_SALT:]):
        raise InvalidTag
    return AESGCM(derived[:32]), int.from_bytes(derived[32:44], "big")


def _segments(plain: int) -> int:
    return max(1, -(-plain // SEGMENT))


def _side_by_side(work: Callable[[int], Any], count: int) -> None:
    """Run ``work`` for each segment on as many threads as there are processors for this process."""
    threads = min(count, _os.processors())
    if threads == 1:
        for segment in range(count):
            work(segment)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="privguard-seal") as pool:
        for _ in pool.map(work, range(count)):
            pass
