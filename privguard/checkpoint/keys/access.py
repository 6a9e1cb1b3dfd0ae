# SPDX-License-Identifier: Apache-2.0
"""Change who may open a sealed file without touching what is in it.

Only the head is written, so the time does not depend on the size, and a signature over the rest still holds. What this
cannot do is take back what somebody has read: who could open the file before may have kept its key or a copy of the old
head. To shut them out of the content, seal it anew.
"""

import contextlib
import os
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import final

from cryptography.exceptions import InvalidTag

from privguard import _os
from privguard.attest import journal
from privguard.checkpoint import durable, envelope
from privguard.checkpoint.archive import HEAD
from privguard.checkpoint.content.payload import one_failure
from privguard.checkpoint.envelope import Form, Secrets
from privguard.checkpoint.keys.key import Key, Kind, One, Recipient, To, recipients
from privguard.checkpoint.keys.stanza import Role, Stanza
from privguard.checkpoint.opened import Head, head_of, head_path, left_over, refuse_other
from privguard.checkpoint.sealed_folder import alone_in
from privguard.errors import NoRecipientError, SealError
from privguard.records import Record

NOT_REVOKED = (
    "who was removed may have kept the file's key, a copy of the file, or what they read; "
    "to shut them out of the content, seal it anew"
)


@final
@dataclass(frozen=True, kw_only=True)
class Inspection(Record):
    """What can be known of a sealed file without a key; sizes are in bytes, identities in hexadecimal.

    ``leftover``: the head holds something that does not count; a re-wrap was cut short, or somebody wrote there.
    """

    path: str
    form: str
    version: int
    file_id: str
    leftover: bool
    data_bytes: int
    ledger_bytes: int
    rewraps: int
    resume: tuple[str, ...]
    audit: tuple[str, ...]


def inspect(path: str | os.PathLike[str]) -> Inspection:
    """Form, sizes and recipients of a sealed file or folder.

    Without a key nothing of this is authenticated: it is what the file says of itself.

    Args:
        path: the sealed file or folder.

    Raises:
        TamperedError: no sealed file of privguard, or a damaged one.
        PlainCheckpointError: a checkpoint in clear.
    """
    path = Path(path)
    head = head_of(path)
    return Inspection(
        path=str(path),
        form=head.preamble.form.name.lower(),
        version=envelope.VERSION,
        file_id=head.preamble.file_id.hex(),
        leftover=head.leftover and left_over(path),
        data_bytes=head.preamble.data_bytes,
        ledger_bytes=head.preamble.ledger_bytes,
        rewraps=head.slot.sequence - 1,
        resume=head.slot.names(Role.RESUME),
        audit=head.slot.names(Role.AUDIT),
    )


def rewrap(
    path: str | os.PathLike[str],
    key: Key,
    *,
    add: To = (),
    add_auditors: To = (),
    remove: To = (),
) -> Inspection:
    """Add and remove recipients of the file or folder ``path``; ``key`` must be able to resume.

    ``remove`` takes recipients, keys, paths of their files, identities as ``inspect`` shows them, or the word
    ``passphrase``. Without any of them the head is written anew, which clears what is left over.
    In a file, the new head is written beside the old one and synced, then the old one is zeroed and
    synced: at every moment one of them is whole.

    Args:
        path: the sealed file or folder.
        key: a key that may resume.
        add: who may open it from now on.
        add_auditors: who may audit it from now on.
        remove: who may not any more.

    Raises:
        TamperedError: the key does not open it, or it is not what was written.
        SealError: the key may only audit, a recipient to remove is not there, or there is no room for the new ones.
        NoRecipientError: nobody who may resume would be left.
    """
    path = Path(path)
    to, auditors = recipients(add) if add else (), recipients(add_auditors) if add_auditors else ()
    with _alone(path) as descriptor:
        refuse_other(descriptor, path)
        with journal.acting("rewrap", path) as act, contextlib.ExitStack() as grants:
            for one in (*to, *auditors):
                grants.enter_context(journal.acting("grant", f"{path} to {one.kind.label} {one.id}"))
            with one_failure(path):
                head, secrets = _unlock(descriptor, key, path)
            act.role, act.sha256 = secrets.role.name.lower(), head.preamble.digest()
            stanzas = _changed(head.slot.stanzas, envelope.wrap(secrets, to, auditors), remove, path)
            slot = envelope.pack_slot(head.preamble, secrets, stanzas, sequence=head.slot.sequence + 1)
            _switch(descriptor, path, head, slot)
    return inspect(path)


@contextlib.contextmanager
def _alone(path: Path) -> Generator[int]:
    """The file with the head, open for writing, while nobody else saves or re-wraps what it belongs to."""
    where = head_path(path)
    with contextlib.ExitStack() as stack:
        try:
            if path.is_dir():
                folder = stack.enter_context(alone_in(path)).folder
                descriptor = folder.open(HEAD, os.O_RDWR)
                stack.callback(os.close, descriptor)
            else:
                descriptor = stack.enter_context(_os.locked_path(where))
        except _os.LocksUnsupportedError:
            raise SealError(
                f"{path}: its file system has no working lock, so two re-wraps could undo each other; copy it to a "
                "local disk, re-wrap it there and copy it back"
            ) from None
        yield descriptor


def _changed(before: Iterable[Stanza], added: list[Stanza], remove: To, path: Path) -> list[Stanza]:
    names = {_identity(one) for one in added}
    stanzas = [one for one in _without(before, remove, path) if _identity(one) not in names] + added
    if not any(one.role is Role.RESUME for one in stanzas):
        raise NoRecipientError(f"{path}: nobody who may resume would be left; add a recipient, or remove fewer")
    return stanzas


def _unlock(descriptor: int, key: Key, path: Path) -> tuple[Head, Secrets]:
    head = Head.read(descriptor)
    secrets = head.slot.opened_by(key, head.preamble)
    if secrets is None:
        raise InvalidTag
    if secrets.role is not Role.RESUME:
        raise SealError(f"{path}: this key may audit and cannot re-wrap; ask somebody who may resume")
    return head, secrets


def _switch(descriptor: int, path: Path, head: Head, slot: bytes) -> None:
    preamble = head.preamble
    if preamble.form is Form.FOLDER:
        durable.replace(head_path(path), preamble.pack() + slot)
        return
    old, new = (envelope.PREAMBLE_BYTES + at * preamble.slot_bytes for at in (head.at, 1 - head.at))
    durable.pwrite_all(descriptor, slot, new)
    _os.sync(descriptor)
    durable.pwrite_all(descriptor, bytes(preamble.slot_bytes), old)
    _os.sync(descriptor)


def _without(stanzas: Iterable[Stanza], remove: To, path: Path) -> list[Stanza]:
    kept = list(stanzas)
    for wanted in (remove,) if isinstance(remove, str | os.PathLike | Recipient | Key) else remove:
        name = _wanted(wanted)
        if not any(one.name == name for one in kept):
            raise SealError(f"{path}: {name} is not among its recipients; `privguard inspect` lists them")
        kept = [one for one in kept if one.name != name]
    return kept


def _wanted(one: One) -> str:
    """How ``Stanza.name`` names what is to be removed."""
    if isinstance(one, str) and (one == Kind.PASSPHRASE.label or " " in one):
        return one
    recipient = recipients([one])[0]
    return Kind.PASSPHRASE.label if recipient.kind is Kind.PASSPHRASE else f"{recipient.kind.label} {recipient.id}"


def _identity(one: Stanza) -> tuple[Kind, Role, bytes]:
    return one.kind, one.role, one.key_id
