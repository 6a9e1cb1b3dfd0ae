"""A training state at one step, sealed whole, and loaded whole or not at all."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final

from torch import Tensor

import privguard
from privguard import _canon, _check
from privguard.attest import merkle
from privguard.checkpoint import archive, tensors, tree
from privguard.checkpoint.archive import Advance, Audience, Contents
from privguard.checkpoint.key import Key, To
from privguard.checkpoint.opened import Sealed
from privguard.checkpoint.payload import Bytes
from privguard.errors import RollbackError, TamperedError

WEIGHTS, STATE, STATE_TENSORS = "weights.safetensors", "state.json", "state.safetensors"


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
        hexadecimal = len(self.ledger_head) == 64 and set(self.ledger_head) <= set("0123456789abcdef")  # noqa: PLR2004 — SHA-256
        _check.require(hexadecimal, "ledger_head", self.ledger_head, wanted="64 hexadecimal characters")


_STATE_FIELDS = ("optimizer", "scheduler", "generators", "extra")
_PUBLIC_FIELDS = ("run", "step", "ledger_head", "ledger_size")


def save(
    snapshot: Snapshot,
    path: str | os.PathLike[str],
    *,
    to: To,
    auditors: To = (),
    advance: Advance | None = None,
) -> None:
    """Seal ``snapshot`` into the file ``path`` for the recipients ``to``; an older file stays whole until the end.

    ``auditors`` may read the ledger and the manifest (run, step, ledger head), not the weights. ``advance`` is called
    with each number of bytes sealed.

    Guarantee: no byte of the state is written in clear, not even for a moment, and after a crash at any point ``path``
    is the old file or the new one.

    Raises:
        NoRecipientError: nobody could open it.
        TypeError: a value in the state that cannot be stored without code.
        OSError: the disk is full, or the folder is not there; nothing is left behind.
    """
    archive.write_file(Path(path), _contents(snapshot), Audience.of(to, auditors), advance=advance)


def load(path: str | os.PathLike[str], key: Key, *, min_step: int = 0, advance: Advance | None = None) -> Snapshot:
    """The snapshot in the sealed file ``path``.

    Raises:
        TamperedError: the key does not open it, or it is not what was written.
        RollbackError: it is older than ``min_step``.
        PlainCheckpointError: it is a checkpoint in clear.
    """
    with Sealed(path, key) as sealed:
        manifest = sealed.manifest
        _expect_snapshot(manifest, sealed.path)
        if manifest["step"] < min_step:
            raise RollbackError(f"{path}: step {manifest['step']} stands where at least step {min_step} is wanted")
        weights = tensors.from_buffer(_whole(sealed, WEIGHTS, advance))
        state = tree.unpack(
            json.loads(_whole(sealed, STATE, advance).tobytes()),
            tensors.from_buffer(_whole(sealed, STATE_TENSORS, advance)),
        )
        public = {name: manifest[name] for name in _PUBLIC_FIELDS}
        return Snapshot(weights=weights, **state, **public, ledger=sealed.ledger)


def _contents(snapshot: Snapshot) -> Contents:
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
    return Contents(members=members, manifest=manifest, ledger=snapshot.ledger)


def _whole(sealed: Sealed, name: str, advance: Advance | None) -> memoryview:
    memory = tensors.allocate(sealed.size(name))
    sealed.read_into(name, memory, advance=advance)
    return memory


def _expect_snapshot(manifest: Mapping[str, Any], path: Path) -> None:
    if manifest.get("content") != "snapshot":
        raise TamperedError(
            f"{path}: expected a snapshot and found {manifest.get('content')!r}; open it with `privguard open`"
        )
