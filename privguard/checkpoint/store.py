# SPDX-License-Identifier: Apache-2.0
"""A training state at one step, sealed whole, and loaded whole or not at all."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final

from torch import Tensor

import privguard
from privguard import _canon, _check
from privguard.attest import merkle
from privguard.attest.statement import Identity, SigningKey
from privguard.checkpoint import archive
from privguard.checkpoint.archive import STATE, STATE_TENSORS, WEIGHTS, Advance, Audience, Contents
from privguard.checkpoint.content import tensors, tree
from privguard.checkpoint.content.payload import Bytes
from privguard.checkpoint.keys.key import Key, To
from privguard.checkpoint.keys.trust import require_step
from privguard.checkpoint.opened import Sealed
from privguard.errors import RollbackError, TamperedError


@final
@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Everything a run needs to go on: what it is, what it learned, and what it had spent.

    ``weights`` is a state dictionary. ``optimizer``, ``scheduler``, ``generators`` (states of random generators, and
    stream keys as bytes) and ``extra`` are any tree of numbers, text, bytes, tensors, arrays, lists, tuples and
    dictionaries. ``run`` names the run, ``step`` counts logical batches, ``ledger_head`` (64 hexadecimal characters)
    and ``ledger_size`` (entries) say how far the ledger was; ``ledger`` may carry its lines for auditors.
    """

    weights: Mapping[str, Tensor] = field(repr=False)
    run: str
    step: int
    optimizer: Any = field(default=None, repr=False)
    scheduler: Any = field(default=None, repr=False)
    generators: Any = field(default=None, repr=False)
    extra: Any = field(default=None, repr=False)
    ledger_head: str = merkle.EMPTY_ROOT.hex()
    ledger_size: int = 0
    ledger: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        _check.count("step", self.step, least=0)
        _check.count("ledger_size", self.ledger_size, least=0)
        head = self.ledger_head
        _check.require(_canon.is_digest(head), "ledger_head", head, wanted="64 hexadecimal characters")


_STATE_FIELDS = ("optimizer", "scheduler", "generators", "extra")
_PUBLIC_FIELDS = ("run", "step", "ledger_head", "ledger_size")


def save(
    snapshot: Snapshot,
    path: str | os.PathLike[str],
    *,
    to: To,
    auditors: To = (),
    signer: SigningKey | None = None,
    advance: Advance | None = None,
) -> None:
    """Seal ``snapshot`` into the file ``path`` for the recipients ``to``; an older file stays whole until the end.

    ``auditors`` may read the ledger and the manifest (run, step, ledger head), not the weights. ``signer`` lets
    whoever resumes know whose it is. ``advance`` is called with each number of bytes sealed.

    Guarantee: no byte of the state is written in clear, not even for a moment, and after a crash at any point ``path``
    is the old file or the new one.

    Args:
        snapshot: the state to be sealed.
        path: the sealed file.
        to: who may open all of it: recipients, keys or paths of their files.
        auditors: who may read ledger and manifest alone.
        signer: the key that signs; None for no signature.
        advance: called with each number of bytes done; None for nobody.

    Raises:
        NoRecipientError: nobody could open it.
        TypeError: a value in the state that cannot be stored without code.
        OSError: the disk is full, or the folder is not there; nothing is left behind.
    """
    archive.write_file(Path(path), _contents(snapshot, signer), Audience.of(to, auditors), advance=advance)


def load(
    path: str | os.PathLike[str],
    key: Key,
    *,
    signer: Identity | Sequence[str] | None = None,
    min_step: int = 0,
    expect: Callable[[int], str] | None = None,
    advance: Advance | None = None,
) -> Snapshot:
    """The snapshot in the sealed file ``path``.

    ``signer`` is who must have sealed it, an identity or several key ids: anybody can seal to a public key.
    ``Trust`` tells whom a run believes. ``expect`` gives the head of the ledger
    at hand when it had so many entries; a snapshot whose head is another one does not belong to that ledger.

    Args:
        path: the sealed file.
        key: what opens it.
        signer: who must have sealed it: an identity or key ids; None for anybody.
        min_step: the least step that is taken.
        expect: from a number of entries to the head of the ledger at hand; None where there is no ledger.
        advance: called with each number of bytes done; None for nobody.

    Raises:
        TamperedError: the key does not open it, it is not what was written, or ``signer`` did not seal it.
        RollbackError: it is older than ``min_step``, or the ledger at hand does not extend it.
        PlainCheckpointError: it is a checkpoint in clear.
    """
    with Sealed(path, key) as sealed:
        public = _public_facts(sealed)
        if signer is not None:
            sealed.verify_signer(*([signer] if isinstance(signer, Identity) else signer))
        require_step(sealed, min_step)
        if expect is not None and expect(public["ledger_size"]) != public["ledger_head"]:
            raise RollbackError(
                f"{path}: the ledger at hand does not extend the one of this snapshot; find the right one"
            )
        weights = tensors.from_buffer(_whole(sealed, WEIGHTS, advance))
        state_tensors = tensors.from_buffer(_whole(sealed, STATE_TENSORS, advance))
        state = tree.loads(bytes(_whole(sealed, STATE, advance)), state_tensors)
        if not isinstance(state, dict) or set(state) != set(_STATE_FIELDS):
            raise TamperedError(f"{path}: the state inside the file is not what privguard writes")
        return Snapshot(weights=weights, **state, **public, ledger=sealed.ledger)


def _contents(snapshot: Snapshot, signer: SigningKey | None) -> Contents:
    state, state_tensors = tree.pack({name: getattr(snapshot, name) for name in _STATE_FIELDS}, prefix="state")
    members = {
        WEIGHTS: tensors.Layout(snapshot.weights),
        STATE: Bytes(_canon.canonical(state)),
        STATE_TENSORS: tensors.Layout(state_tensors),
    }
    manifest = {
        "content": "snapshot",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "privguard": privguard.__version__,
        **{name: getattr(snapshot, name) for name in _PUBLIC_FIELDS},
    }
    return Contents(members=members, manifest=manifest, ledger=snapshot.ledger, signer=signer)


def _whole(sealed: Sealed, name: str, advance: Advance | None) -> memoryview:
    memory = tensors.allocate(sealed.size(name))
    sealed.read_into(name, memory, advance=advance)
    return memory


def _public_facts(sealed: Sealed) -> dict[str, Any]:
    """What the manifest of a snapshot says, each value of its type."""
    content = sealed.manifest.get("content")
    if content != "snapshot":
        raise TamperedError(f"{sealed.path}: expected a snapshot, found {content!r}; open it with `privguard open`")
    facts = {name: sealed.manifest.get(name) for name in _PUBLIC_FIELDS}
    types = {name: type(value) for name, value in facts.items()}
    if types != {"run": str, "step": int, "ledger_head": str, "ledger_size": int}:
        raise TamperedError(f"{sealed.path}: the manifest is not what privguard writes")
    return facts
