# SPDX-License-Identifier: Apache-2.0
"""Keyed first noise for diffusion pipelines: exactly their own distribution, one journalled nonce per picture.

The signs of the noise are keyed, its magnitudes are chance, so over keys it is a standard normal array and whatever a
pipeline makes of it (``latents=``) has that pipeline's own distribution. To read it, the owner inverts the picture with
the model; a bad inversion costs strength, never validity. One marked picture lets anybody with a similar model carry
the noise to another picture, so a finding counts only with its log entry.
"""

import os
from collections.abc import Sequence
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from privguard import _canon, _check
from privguard.attest.journal import Journal
from privguard.errors import MarkError, ProfileMismatchError
from privguard.records import Verdict
from privguard.watermark.image.profile import ImageProfile
from privguard.watermark.secret import Prf, Secret
from privguard.watermark.statistics import tails
from privguard.watermark.statistics.null import SignedWeights

VERSION = "image-latent-v1"
NONCE_BYTES = 12
_PER_BLOCK = 128
_STEP, _MOST = 0.25, 12  # weights are quarters of the recovered noise, at most 3
NOTES = (
    "A small p-value says that the picture's noise agrees with this nonce; without its log entry it names nobody.",
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


def latent_verdict(
    profile: ImageProfile, secret: Secret, recovered: NDArray[np.floating[Any]], *, nonces: Sequence[str]
) -> Verdict:
    """The exact verdict on recovered noise of any shape: the best of these nonces, all of which are paid for.

    Conditional on the recovered noise the score is a sum of whole weights under keyed fair signs.

    Args:
        profile: the signed profile.
        secret: the profile's secret.
        recovered: first noise as an inversion recovered it, of any shape.
        nonces: recorded nonces, in hexadecimal; all are paid for.

    Raises:
        ProfileMismatchError: the secret is not the profile's.
        ValueError: no nonce, or one that is none, or noise that is not finite.
    """
    _check.require(bool(nonces), "nonces", nonces, wanted="at least one of the journal's")
    flat = np.asarray(recovered, np.float64).ravel()
    _check.require(bool(np.isfinite(flat).all()), "recovered", "…", wanted="finite numbers")
    weights = (np.sign(flat) * np.minimum(np.rint(np.abs(flat) / _STEP), _MOST)).astype(np.int64)
    prf, null = _prf(profile, secret), SignedWeights.of(weights)
    scores = [float((_signs(prf, _nonce(text), len(weights)) * weights).sum()) for text in nonces]
    best = int(np.argmax(scores))
    return Verdict(
        scheme=f"image/{VERSION}",
        null_model=f"noise recovered from a picture made without this nonce; given it, {null.sentence}",
        log10_p=float(tails.bonferroni(null.log10_tail(scores[best], 1), len(nonces))),
        trials=null.signs,
        matches=scores[best],
        bound="exact" if len(nonces) == 1 else "bonferroni over nonces",
        details={
            "profile": profile.digest(),
            "key_id": profile.key_id,
            "nonce": nonces[best],
            "nonces_tried": len(nonces),
            "needs_log_entry": True,
        },
        notes=NOTES,
    )


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
