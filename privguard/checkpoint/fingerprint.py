# SPDX-License-Identifier: Apache-2.0
"""What others may write down of a sealed file, so that it can be recognised later: without a key, and without torch.

Two digests, because a re-wrap is no new content: one over all bytes, one over all but the slots, which a re-wrap
replaces. Whoever has no key cannot tell a re-wrap from a forged slot; that the content is the same holds either way.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, final

from privguard.checkpoint import envelope
from privguard.checkpoint.content.payload import MalformedError
from privguard.checkpoint.envelope import MAGIC, PREAMBLE_BYTES, Preamble, Slot
from privguard.checkpoint.keys.stanza import Role
from privguard.errors import TamperedError
from privguard.records import Record

_PIECE = 1 << 20


@final
@dataclass(frozen=True, kw_only=True)
class Fingerprint(Record):
    """A sealed file, or the head of a sealed folder, as anybody can see it; digests are SHA-256 in hexadecimal.

    ``sha256`` is of all bytes and ``content`` of all but the slots. ``preamble`` is what the access journal calls the
    file. ``resume`` and ``audit`` are the recipients that the newest slot names, ``rewraps`` how often they changed.
    """

    form: str
    size: int
    sha256: str
    content: str
    preamble: str
    rewraps: int
    resume: tuple[str, ...]
    audit: tuple[str, ...]


def is_sealed(path: str | os.PathLike[str]) -> bool:
    """Whether the file begins as a sealed file, or the head of a sealed folder, does; nothing more is looked at."""
    with Path(path).open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def fingerprint(path: str | os.PathLike[str]) -> Fingerprint:
    """Read all of a sealed file, or the head of a sealed folder, once.

    Raises:
        TamperedError: no sealed file, or one whose head is damaged.
        SealError: a later version of privguard wrote it.
    """
    path = Path(path)
    with path.open("rb") as file:
        try:
            preamble, slot, slots = _head(file)
        except MalformedError as error:
            raise TamperedError(f"{path}: not a sealed file, or its head is damaged ({error})") from None
        packed = preamble.pack()
        whole, content = hashlib.sha256(packed + slots), hashlib.sha256(packed)
        for piece in _pieces(file):
            whole.update(piece)
            content.update(piece)
        size = file.tell()
    return Fingerprint(
        form=preamble.form.name.lower(),
        size=size,
        sha256=whole.hexdigest(),
        content=content.hexdigest(),
        preamble=hashlib.sha256(packed).hexdigest(),
        rewraps=slot.sequence - 1,
        resume=slot.names(Role.RESUME),
        audit=slot.names(Role.AUDIT),
    )


def _head(file: BinaryIO) -> tuple[Preamble, Slot, bytes]:
    preamble = Preamble.unpack(file.read(PREAMBLE_BYTES))
    slots = file.read(preamble.head_bytes - PREAMBLE_BYTES)
    cuts = range(0, preamble.slots * preamble.slot_bytes, preamble.slot_bytes)
    _, slot = envelope.active([slots[at : at + preamble.slot_bytes] for at in cuts])
    return preamble, slot, slots


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(_PIECE):
        yield piece
