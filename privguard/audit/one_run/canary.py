# SPDX-License-Identifier: Apache-2.0
"""Coins that decide which canaries a run trains on, flipped and committed before training.

A one-run bound rests on one fact: each canary was in or out by its own fair coin, which nothing else depends on. So the
coins are flipped here, from the operating system's entropy, bound to the design they belong to, and their commitment
can be published before training. A split made by anybody else supports no bound.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from privguard import _canon, _check
from privguard._random import Stream
from privguard.errors import AuditError, TamperedError

SALT_BYTES = 32


@final
class Coins:
    """One fair coin per canary: True means that the run trains on it.

    ``commitment`` (SHA-256 over design, salt and coins) can be shown to anybody before training: it gives nothing away,
    and the coins cannot be changed under it afterwards. ``repr`` does not show the coins.
    """

    __slots__ = ("_salt", "design", "included", "insecure")

    def __init__(self, included: NDArray[np.bool_], *, salt: bytes, design: str, insecure: bool) -> None:
        self.included = included.copy()
        self.included.flags.writeable = False
        self._salt = salt
        self.design = design
        self.insecure = insecure

    @classmethod
    def flip(cls, canaries: int, *, design: str, source: Stream | None = None) -> "Coins":
        """Flip ``canaries`` coins for the design of this digest, from the operating system unless told otherwise.

        Args:
            canaries: how many coins.
            design: digest of the design.
            source: the stream that flips; None for the operating system.
        """
        _check.count("canaries", canaries)
        stream = source or Stream.from_entropy("audit coins")
        included = (stream.child("flips").words(canaries) & np.uint64(1)).astype(bool)
        salt = stream.child("salt").words(SALT_BYTES // 8).tobytes()
        return cls(included, salt=salt, design=design, insecure=stream.insecure)

    @property
    def commitment(self) -> str:
        """SHA-256 in hexadecimal, to be published before training."""
        body = _canon.canonical(self.to_json())
        return hashlib.sha256(b"privguard coins v1\0" + body).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Everything, the secret coins included; whoever reads it knows who was trained on."""
        packed = np.packbits(self.included).tobytes().hex()
        facts = {"record": "Coins", "canaries": len(self.included), "included": packed, "design": self.design}
        return {**facts, "salt": self._salt.hex(), "insecure": self.insecure}

    def write(self, path: Path) -> None:
        """Write the coins to a new file; an existing one is never overwritten, as a second flip could be a choice.

        Args:
            path: the coins' file.
        """
        with path.open("x", encoding="utf-8") as file:
            json.dump(self.to_json(), file)

    @classmethod
    def read(cls, path: Path, *, commitment: str) -> "Coins":
        """Read coins back and hold them against the commitment that was made before training.

        Args:
            path: the coins' file.
            commitment: digest of the coins, as it was published before training.

        Raises:
            TamperedError: where they are not the committed ones, or the file is no coins file.
        """
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            packed = np.frombuffer(bytes.fromhex(value["included"]), np.uint8)
            included = np.unpackbits(packed, count=int(value["canaries"])).astype(bool)
            salt = bytes.fromhex(value["salt"])
            coins = cls(included, salt=salt, design=value["design"], insecure=bool(value["insecure"]))
        except (KeyError, TypeError, ValueError) as error:
            raise TamperedError(f"{path}: not a file of coins") from error
        if coins.commitment != commitment:
            raise TamperedError(f"{path}: these are not the coins that were committed to before training")
        return coins

    def __len__(self) -> int:
        return len(self.included)

    def __repr__(self) -> str:
        return f"Coins({len(self)} canaries, commitment {self.commitment[:16]}…{', insecure' if self.insecure else ''})"


def guess(
    scores: NDArray[np.floating], *, guesses_in: int, guesses_out: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The ``guesses_in`` canaries with the largest scores, and the ``guesses_out`` with the smallest.

    Nothing is guessed of the others. Ties fall by number: a canary's number says nothing about its coin.

    Args:
        scores: one for each canary, (canaries,), larger for a likelier member.
        guesses_in: how many are guessed in.
        guesses_out: how many are guessed out.

    Raises:
        AuditError: where a score is NaN, as nobody could say then what was guessed.
    """
    values = np.asarray(scores, np.float64)
    both = _check.count("guesses_in", guesses_in, least=0) + _check.count("guesses_out", guesses_out, least=0)
    _check.require(0 < both <= len(values), "guesses", both, wanted=f"1 to {len(values)}, the number of canaries")
    if np.isnan(values).any():
        raise AuditError(f"scores: {int(np.isnan(values).sum())} of {len(values)} are NaN; score every canary")
    order = np.argsort(values, kind="stable")
    return order[len(order) - guesses_in :], order[:guesses_out]


def count_calls(scores: NDArray[np.floating], included: NDArray[np.bool_], *, threshold: float) -> dict[str, int]:
    """Who is called a member by a score above ``threshold``, held against the coins: scores and coins of any one shape.

    The names are those of the arguments of ``privguard.audit.one_run.bound.gaussian_threshold``.

    Args:
        scores: one for each canary, (canaries,), larger for a likelier member.
        included: what the coins said, of the shape of the scores.
        threshold: score above which a canary is called a member.
    """
    called = scores > threshold
    return {
        "true_positives": int((called & included).sum()),
        "members": int(included.sum()),
        "false_positives": int((called & ~included).sum()),
        "non_members": int((~included).sum()),
    }


def count_right(scores: NDArray[np.floating], included: NDArray[np.bool_], *, guesses_in: int, guesses_out: int) -> int:
    """How many of the guesses the coins bear out.

    Args:
        scores: one for each canary, (canaries,), larger for a likelier member.
        included: what the coins said, of the shape of the scores.
        guesses_in: how many are guessed in.
        guesses_out: how many are guessed out.
    """
    inside, outside = guess(scores, guesses_in=guesses_in, guesses_out=guesses_out)
    return int(included[inside].sum() + (~included[outside]).sum())
