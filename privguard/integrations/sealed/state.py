# SPDX-License-Identifier: Apache-2.0
"""What the adapters of transformers and accelerate share: who may open a checkpoint, and what its members are.

A checkpoint of theirs becomes a sealed folder with members named as other tools know them (``model.safetensors``,
``config.json``) where those hold data, and with ``state.json`` and ``state.safetensors`` in the place of pickles.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from torch import Tensor

from privguard import _canon
from privguard.attest.statement import SigningKey
from privguard.checkpoint import files
from privguard.checkpoint.archive import HEAD, STATE, STATE_TENSORS, Audience, Contents
from privguard.checkpoint.content import tensors, tree
from privguard.checkpoint.content.payload import Bytes, Content
from privguard.checkpoint.keys.key import Key, To, key_among
from privguard.checkpoint.keys.trust import Trust, require_step
from privguard.checkpoint.opened import Sealed
from privguard.checkpoint.sealed_folder import write_folder
from privguard.errors import PlainCheckpointError, SealError

WEIGHTS = "model.safetensors"


@final
@dataclass(frozen=True)
class Sealing:
    """Who checkpoints are sealed to, and the key that opens them again.

    ``key`` may be left out where a key (or the path of a key file) stands in ``to``, and where nothing is resumed.
    ``allow_plain`` lets a checkpoint in clear be loaded by the tool's own code, pickles included. ``trust`` says who
    signs checkpoints and whose are resumed from: the run's own signer's, where nothing else is said.
    """

    to: To
    auditors: To = ()
    key: Key | None = field(default=None, repr=False)
    allow_plain: bool = False
    trust: Trust = field(default_factory=Trust)

    def __post_init__(self) -> None:
        self.audience()

    def audience(self) -> Audience:
        """The recipients; none is refused here, before any training was done."""
        return Audience.of(self.to, self.auditors)

    def open(self, folder: str | Path) -> Sealed:
        """Open a sealed checkpoint folder that the run's own signer sealed.

        Args:
            folder: the checkpoint's folder.

        Raises:
            TamperedError: the key does not open it, it is not what was written, or somebody else sealed it.
            PlainCheckpointError: it is in clear.
            SealError: there is no key.
        """
        if not self.is_sealed(folder):
            raise PlainCheckpointError(
                f"{folder}: expected a sealed checkpoint and found one in clear; seal it with `privguard seal`, "
                "or pass allow_plain=True where you trust whoever wrote it"
            )
        key = self._key()
        with contextlib.ExitStack() as until_trusted:
            sealed = until_trusted.enter_context(Sealed(folder, key))
            sealed.verify_signer(*self.trust.signers(key))
            until_trusted.pop_all()
        return sealed

    def resume(self, folder: str | Path) -> Sealed:
        """As ``open``, of a checkpoint that is new enough to go on from.

        Args:
            folder: the checkpoint's folder.

        Raises:
            RollbackError: it is older than ``trust.min_step``.
        """
        with contextlib.ExitStack() as until_trusted:
            sealed = until_trusted.enter_context(self.open(folder))
            require_step(sealed, self.trust.min_step)
            until_trusted.pop_all()
        return sealed

    def signing_key(self) -> SigningKey:
        """What signs the checkpoints."""
        return self.trust.signing_key(self.to, self.key)

    def is_sealed(self, folder: str | Path) -> bool:
        """Whether the folder holds the head of a sealed one.

        Args:
            folder: the checkpoint's folder.
        """
        return (Path(folder) / HEAD).is_file()

    def _key(self) -> Key:
        key = self.key or key_among(self.to)
        if key is None:
            raise SealError("key=None: a recipient opens nothing; pass the key to resume with")
        return key


def write(
    folder: str | Path,
    sealing: Sealing,
    *,
    parts: Mapping[str, Mapping[str, Tensor] | str],
    state: Any,
    facts: Mapping[str, Any],
    beside: Mapping[str, bytes] | None = None,
) -> None:
    """Seal one checkpoint: tensor files and texts by name, a tree of everything else, facts for the auditor.

    ``beside`` are small files in clear that appear together with it.

    Args:
        folder: the checkpoint's folder.
        sealing: keys, signer and trust.
        parts: tensors, or a text, by name of the file.
        state: nested dicts, lists, tensors and plain values; nothing that needs code.
        facts: JSON values for auditors.
        beside: files in clear by name; None for none.
    """
    packed, found = tree.pack(state, prefix="state")
    members: dict[str, Content] = {
        name: Bytes(part.encode()) if isinstance(part, str) else tensors.Layout(part) for name, part in parts.items()
    }
    members |= {STATE: Bytes(_canon.canonical(packed)), STATE_TENSORS: tensors.Layout(found)}
    facts = dict(facts)
    ledger: bytes = facts.pop("ledger", b"")
    contents = Contents(
        members=members,
        manifest=files.manifest("training") | facts,
        ledger=ledger,
        signer=sealing.signing_key(),
    )
    write_folder(Path(folder), contents, sealing.audience(), beside=beside)


def read_tensors(sealed: Sealed, name: str) -> dict[str, Tensor]:
    """The tensors of one member by name; all of it is decrypted and authenticated.

    Args:
        sealed: an opened checkpoint.
        name: the member's name.
    """
    memory = tensors.allocate(sealed.size(name))
    sealed.read_into(name, memory)
    return tensors.from_buffer(memory)


def read_state(sealed: Sealed) -> Any:
    """The state that is no weight, such as optimizer, schedule and generators, as ``write`` was given it.

    Args:
        sealed: an opened checkpoint.
    """
    return tree.loads(sealed.read(STATE), read_tensors(sealed, STATE_TENSORS))
