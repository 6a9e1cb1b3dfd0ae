# SPDX-License-Identifier: Apache-2.0
"""Whose snapshots a run goes on from: its own signer's, unless told otherwise.

Anybody can seal to a public key, so what opens need not come from the run. Every snapshot is therefore signed, and
resuming asks who signed it. Nobody has to set this up: who holds a key signs with a key derived from it, one way, and
who holds public halves only signs with a key of their own, made on first use outside of every run folder. An attacker
who can write to the folder and knows the recipients has neither.
"""

import contextlib
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from privguard import _canon, _check, _os
from privguard.attest.statement import Identity, SigningKey
from privguard.checkpoint import durable
from privguard.checkpoint.keys.key import Key, To, key_among
from privguard.checkpoint.opened import Sealed
from privguard.errors import RollbackError, SealError

Signer = SigningKey | str | os.PathLike[str]


@final
@dataclass(frozen=True, kw_only=True)
class Trust:
    """Who signs the snapshots of a run, and what one has to show before the run goes on from it.

    Nothing has to be said for the usual case: a run's own signer signs, and only its snapshots are resumed from.

    Attributes:
        signer: a signing key or the path of its file (``privguard key new --signing``). Where None, the key derived
            from the first key among the recipients; where they are public halves, passphrases or key services, this
            user's own signing key (``own_signer``).
        sealed_by: who must have signed what is resumed from, where that is somebody else: an identity, the path of its
            PEM file, or its 64 hexadecimal characters as an error message shows them.
        min_step: the least step to resume from; an older snapshot is refused.
        expect_head: a head of the ledger that was noted elsewhere (64 hexadecimal characters, as ``privguard ledger
            show`` prints it); a ledger that does not extend it was rolled back, and is refused.
    """

    signer: Signer | None = field(default=None, repr=False)
    sealed_by: Identity | str | os.PathLike[str] | None = None
    min_step: int = 0
    expect_head: str | None = None

    def __post_init__(self) -> None:
        _check.count("min_step", self.min_step, least=0)
        head = self.expect_head
        _check.require(head is None or _canon.is_digest(head), "expect_head", head, wanted="64 hexadecimal characters")

    def signing_key(self, to: To, key: Key | None = None) -> SigningKey:
        """The key that signs what is sealed to ``to``; ``key`` is what opens it again, where that is at hand.

        Args:
            to: whom the snapshots are sealed to.
            key: what opens them again; None where it is not at hand.

        Raises:
            ValueError: the file named as signer holds no signing key.
            SealError: this user's own signing key can be read by others, or cannot be made.
        """
        if self.signer is not None:
            return self.signer if isinstance(self.signer, SigningKey) else SigningKey.read(Path(self.signer))
        holder = key or key_among(to)
        return (holder.signer() if holder is not None else None) or own_signer()

    def signers(self, key: Key) -> tuple[str, ...]:
        """Key ids of those whose snapshots are resumed from when ``key`` opens them.

        Args:
            key: what opens the snapshots.
        """
        if self.sealed_by is not None:
            return (_key_id(self.sealed_by),)
        if self.signer is not None:
            return (self.signing_key(()).identity.key_id,)
        own = own_signer() if _own_path().exists() else None
        return tuple(one.identity.key_id for one in (key.signer(), own) if one is not None)


def require_step(sealed: Sealed, least: int) -> None:
    """Return when the step in the manifest is ``least`` or later.

    Args:
        sealed: an opened snapshot.
        least: the least step that is taken.

    Raises:
        RollbackError: it is older, or a step is wanted and none is there.
    """
    step = sealed.manifest.get("step")
    if least and (type(step) is not int or step < least):
        raise RollbackError(
            f"{sealed.path}: step {step} stands where at least step {least} is wanted; find the newer snapshot, or ask "
            "for less (min_step) where going back is meant"
        )


def own_signer() -> SigningKey:
    """This user's own signing key, made on first use: ``privguard/signing.pem`` in ``$XDG_DATA_HOME``.

    Where the variable is not set, in ``~/.local/share``. The file is readable by its owner only and lies outside of
    every run folder, so that who can write there has no part in it.

    Raises:
        SealError: it belongs to or can be read by others, or cannot be made; the message says what to do.
    """
    path = _own_path()
    try:
        with contextlib.suppress(FileExistsError):
            _make(path)
        facts = path.stat()
    except OSError as error:
        raise SealError(
            f"signer=None: this user's signing key cannot be made at {path} ({error.strerror}), and snapshots that "
            "nobody signed are not resumed from; pass signer=, a file from `privguard key new --signing`"
        ) from None
    if not _os.belongs_to_this_user(facts):
        raise SealError(
            f"{path}: expected to belong to this user alone; make sure that nobody changed it, and chmod 600"
        )
    return SigningKey.read(path)


def _own_path() -> Path:
    home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(home) / "privguard" / "signing.pem"


def _make(path: Path) -> None:
    """A new key under ``path``, whole at once: of several processes that come first together, one wins."""
    if path.exists():
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{secrets.token_hex(8)}.pem")
    durable.create(draft, SigningKey.generate().to_pem().encode("ascii"), mode=0o600)
    try:
        path.hardlink_to(draft)
    finally:
        draft.unlink()
    _os.sync_directory(path.parent)


def _key_id(who: Identity | str | os.PathLike[str]) -> str:
    if isinstance(who, Identity):
        return who.key_id
    return str(who) if _canon.is_digest(who) else Identity.read(Path(who)).key_id
