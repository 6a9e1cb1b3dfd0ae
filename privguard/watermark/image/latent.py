# SPDX-License-Identifier: Apache-2.0
"""Keyed first noise for diffusion pipelines: exactly their own distribution, one journalled nonce per picture.

The signs of the noise are keyed, its magnitudes are chance, so over keys it is a standard normal array and whatever a
pipeline makes of it (``latents=``) has that pipeline's own distribution. To read it, the owner inverts the picture with
the model; a bad inversion costs strength, never validity. One marked picture lets anybody with a similar model carry
the noise to another picture, so a finding counts only with its log entry.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from privguard import _canon, _check
from privguard.attest import journal as journals
from privguard.attest.journal import Journal
from privguard.attest.statement import Identity
from privguard.errors import MarkError, ProfileMismatchError, TamperedError
from privguard.records import Record, Verdict
from privguard.watermark.image.profile import ImageProfile
from privguard.watermark.secret import Prf, Secret
from privguard.watermark.statistics import tails
from privguard.watermark.statistics.null import SignedWeights

VERSION = "image-latent-v1"
NONCE_BYTES = 12
_PER_BLOCK = 128
_STEP, _MOST = 0.25, 12  # weights are quarters of the recovered noise, at most 3
NOTES = (
    "A small p-value says that the picture agrees with this log entry's noise, not that it is the entry's picture.",
    "One marked picture and a similar model are enough to carry the noise to another picture.",
    "A crop, a shift or regeneration removes it; a large p-value proves nothing.",
)


@final
class KeyedLatents:
    """Draws first noise under one profile; each draw has a nonce of its own, which the journal has before the caller.

    Guarantee: no nonce is given twice, also from several processes and after a crash or a lost journal: it is 96 bits
    of the operating system's chance, and none can be asked for.

    Raises:
        ProfileMismatchError: the secret is not the profile's.
    """

    def __init__(self, profile: ImageProfile, secret: Secret, journal: Journal) -> None:
        if not journal.strict:
            raise MarkError("journal: expected a strict one; noise whose nonce is not recorded cannot be found again")
        self.profile, self._journal, self._prf = profile, journal, _prf(profile, secret)

    def draw(self, shape: Sequence[int]) -> tuple[NDArray[np.float32], str]:
        """Standard normal noise of this shape, and its nonce in hexadecimal.

        Args:
            shape: of the noise.

        Raises:
            OSError: the nonce cannot be recorded; there is no noise then.
        """
        size = _check.count("size", int(np.prod(shape)))
        nonce = os.urandom(NONCE_BYTES)
        facts = {"nonce": nonce.hex(), "profile": self.profile.digest(), "shape": list(shape), "version": VERSION}
        self._journal.record("mark", "first noise", role=_canon.canonical(facts).decode())
        magnitude = np.abs(np.random.default_rng().standard_normal(size))
        noise = _signs(self._prf, nonce, size) * magnitude
        return noise.reshape(tuple(shape)).astype(np.float32), nonce.hex()

    def __reduce__(self) -> Any:
        raise TypeError("KeyedLatents: not picklable; it holds a key")


@final
@dataclass(frozen=True, kw_only=True)
class NoiseEntry(Record):
    """What the log says of one draw: its line, when, the nonce, the profile, and the shape of the noise."""

    sequence: int
    time: str
    nonce: str
    profile: str
    shape: tuple[int, ...]


def read_noise_log(path: str | os.PathLike[str], *, trusted: Sequence[Identity]) -> list[NoiseEntry]:
    """All draws in a journal whose every line is verified; the only way to a verdict on recovered noise.

    Args:
        path: the journal's file.
        trusted: who may have signed its lines.

    Raises:
        TamperedError: the journal does not hold, or a line of a draw is none.
    """
    journals.verify(path, trusted=trusted)
    return [drawn for entry in journals.read(path) if (drawn := _drawn(entry, Path(path))) is not None]


def latent_verdict(
    profile: ImageProfile, secret: Secret, recovered: NDArray[np.floating[Any]], *, entries: Sequence[NoiseEntry]
) -> Verdict:
    """The exact verdict on recovered noise: the best of these log entries, all of which are paid for.

    Conditional on the recovered noise the score is a sum of whole weights under keyed fair signs. There is no verdict
    on a nonce that is in no log: one that was sought afterwards could be made to fit any picture.

    Args:
        profile: the signed profile.
        secret: the profile's secret.
        recovered: first noise as an inversion recovered it, of the shape that was drawn.
        entries: draws of the log under this profile; all are paid for.

    Raises:
        ProfileMismatchError: the secret is not the profile's, or an entry is of another profile.
        ValueError: no entry, noise of another shape than an entry's, or noise that is not finite.
    """
    _check.require(bool(entries), "entries", entries, wanted="at least one of the log's")
    _check.require(bool(np.isfinite(recovered).all()), "recovered", "…", wanted="finite numbers")
    for entry in entries:
        if entry.profile != profile.digest():
            raise ProfileMismatchError(f"entry {entry.sequence}: of profile {entry.profile}, not {profile.digest()}")
        _check.require(entry.shape == recovered.shape, "recovered", recovered.shape, wanted=f"{entry.shape}, as drawn")
    flat = np.asarray(recovered, np.float64).ravel()
    weights = (np.sign(flat) * np.minimum(np.rint(np.abs(flat) / _STEP), _MOST)).astype(np.int64)
    prf, null = _prf(profile, secret), SignedWeights.of(weights)
    scores = [float((_signs(prf, _nonce(entry.nonce), len(weights)) * weights).sum()) for entry in entries]
    best = int(np.argmax(scores))
    return Verdict(
        scheme=f"image/{VERSION}",
        null_model=f"noise recovered from a picture made without this nonce; given it, {null.sentence}",
        log10_p=float(tails.bonferroni(null.log10_tail(scores[best], 1), len(entries))),
        trials=null.signs,
        matches=scores[best],
        bound="exact" if len(entries) == 1 else "bonferroni over log entries",
        details={
            "profile": profile.digest(),
            "key_id": profile.key_id,
            "log_entry": entries[best].to_json(),
            "entries_tried": len(entries),
        },
        notes=NOTES,
    )


def _drawn(entry: journals.Entry, path: Path) -> NoiseEntry | None:
    try:
        facts = json.loads(entry.role)
    except ValueError:
        return None
    if entry.action != "mark" or not isinstance(facts, dict) or facts.get("version") != VERSION:
        return None
    try:
        shape = tuple(map(int, facts["shape"]))
        return NoiseEntry(
            sequence=entry.sequence,
            time=entry.time,
            nonce=_nonce(str(facts["nonce"])).hex(),
            profile=str(facts["profile"]),
            shape=shape,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise TamperedError(f"{path}: line {entry.sequence} is no draw of noise ({error})") from None


def _prf(profile: ImageProfile, secret: Secret) -> Prf:
    if secret.key_id != profile.key_id:
        raise ProfileMismatchError(f"secret={secret.key_id}: expected {profile.key_id}, the one the profile names")
    return secret.prf(VERSION)


def _nonce(text: str) -> bytes:
    try:
        nonce = bytes.fromhex(text)
    except ValueError:
        nonce = b""
    _check.require(len(nonce) == NONCE_BYTES, "nonce", text, wanted="24 hexadecimal digits, as the journal has them")
    return nonce


def _signs(prf: Prf, nonce: bytes, size: int) -> NDArray[np.float64]:
    """One sign for each position: the bits of AES over (counter, nonce)."""
    inputs = np.zeros((-(-size // _PER_BLOCK), 4), "<u4")
    inputs[:, 0] = np.arange(len(inputs))
    inputs[:, 1:] = np.frombuffer(nonce, "<u4")
    bits = np.unpackbits(prf.blocks(inputs).view(np.uint8).ravel(), bitorder="little")[:size]
    return bits.astype(np.float64) * 2 - 1
