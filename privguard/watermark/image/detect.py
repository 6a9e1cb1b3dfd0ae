# SPDX-License-Identifier: Apache-2.0
"""Detection: pixels and the secret in, one exact p-value per picture out, with the identifier it carries.

The p-value pays for all sub-keys and all identifiers, because they share the evidence key; the search for the grid is
free, because it uses another. What else was tested beside it is paid for by whoever tests it
(``ImageDetections.verdict``).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from privguard import _check
from privguard.records import Verdict
from privguard.watermark.image.blocks import Evidence, Grid
from privguard.watermark.image.keys import PIECE_BITS, POSITIONS, ImageKeys, pieces_of, walsh, walsh_transform
from privguard.watermark.image.pixels import luma
from privguard.watermark.image.profile import ImageProfile
from privguard.watermark.image.sync import Placement, Search, place
from privguard.watermark.image.write import require_pixels
from privguard.watermark.secret import Secret
from privguard.watermark.statistics import tails
from privguard.watermark.statistics.null import SignedWeights
from privguard.watermark.statistics.tails import Floats

MIXED_TOGETHER, MIXED_RUNNER_UP = np.log10(0.04), -2.0  # together 5 % of honest pictures are not attributed
STRONGEST = 3  # one hash in three, the best of them, is taken away to see whether the rest agrees too …
EVERYWHERE = -3.0  # … at this log10 p
_AT_ONCE = 64  # hashes whose signs are held at once
NOTES = (
    "A small p-value says that this picture, or a part of it, was written under this key; not by whom, nor when.",
    "A large p-value does not say that a camera took it: regeneration, strong edits and small size remove the mark.",
    "It holds for a secret that is older than the picture: one sought afterwards can be made to fit any picture.",
    "A mark that lies on other content than its log entry was carried there; ask the log before naming anybody.",
)


@final
@dataclass(frozen=True)
class Reading:
    """One picture as read: where its grid lies, what it offers, and every score.

    ``scores`` (M, pieces, 4096) are the signed sums of each sub-key, piece and value; ``null`` is their law, given the
    picture, for all pieces together. ``parts`` (K,) is how much of the best sub-key's score each hash brings.
    """

    placement: Placement
    evidence: Evidence
    scores: Floats
    null: SignedWeights
    parts: NDArray[np.int64]

    @cached_property
    def best(self) -> tuple[int, int]:
        """The sub-key with the largest score, and the identifier that gives it."""
        return _best(self.scores)

    def scores_of(self, identifier: int) -> Floats:
        """The score of one identifier under every sub-key, (M,).

        Args:
            identifier: the identifier in question.
        """
        pieces = self.scores.shape[1]
        return self.scores[:, np.arange(pieces), pieces_of(identifier, pieces=pieces)].sum(1)

    @cached_property
    def log10_p_elsewhere(self) -> float:
        """log10 p of the evidence that is left without the third of the hashes that agree best.

        No test of its own, for what is taken away was chosen by looking: chance is then far above 0.5.
        """
        rest = np.argsort(-self.parts)[-(-len(self.parts) // STRONGEST) :]
        law = SignedWeights.of(self.evidence.weights[rest], repeats=self.scores.shape[1])
        return float(law.log10_tail(float(self.parts[rest].sum()), 1))


@final
@dataclass(frozen=True)
class ImageDetections:
    """What was found, one row per picture; arrays have shape (D,).

    ``log10_p`` is exact for the best sub-key and identifier, after Bonferroni over all of them; ``log10_e`` averages
    their e-values, so it needs no correction.
    """

    profile: ImageProfile
    readings: tuple[Reading, ...]

    @cached_property
    def log10_p(self) -> Floats:
        """log10 p of each picture after all sub-keys and identifiers are paid for."""
        return tails.bonferroni(self._single([r.scores_of(r.best[1]).max() for r in self.readings]), self.paid)

    @property
    def paid(self) -> float:
        """How many tests the p-values pay for: sub-keys times identifiers."""
        return self.profile.subkeys * 2.0**self.profile.identifier_bits

    @property
    def identifier(self) -> list[int]:
        """The likeliest identifier of each picture; worth something only where the mark was found."""
        return [reading.best[1] for reading in self.readings]

    @cached_property
    def log10_e(self) -> Floats:
        """log10 of the e-value averaged over sub-keys and identifiers."""
        return np.array([_log10_e(reading) for reading in self.readings])

    @cached_property
    def log10_p_others(self) -> Floats:
        """All other sub-keys together at the identifier that was read, (D,); 0 where there is one sub-key."""
        if self.profile.subkeys == 1:
            return np.zeros(len(self))
        rest = [np.delete(r.scores_of(r.best[1]), r.best[0]).sum() for r in self.readings]
        tails = [r.null.times(self.profile.subkeys - 1) for r in self.readings]
        return np.array([float(null.log10_tail(s, 1)) for null, s in zip(tails, rest, strict=True)])

    @cached_property
    def log10_p_runner_up(self) -> Floats:
        """The best other sub-key at its own best identifier, paid for, (D,); 0 where there is one sub-key."""
        if self.profile.subkeys == 1:
            return np.zeros(len(self))
        tops = [np.delete(r.scores.max(2).sum(1), r.best[0]).max() for r in self.readings]
        return tails.bonferroni(self._single(tops), self.paid)

    @property
    def log10_p_elsewhere(self) -> Floats:
        """``Reading.log10_p_elsewhere`` of each picture, (D,)."""
        return np.array([reading.log10_p_elsewhere for reading in self.readings])

    def accepted(self, *, log10_level: float) -> NDArray[np.bool_]:
        """Whether one sub-key fires at the level, all over the picture, and the others look like chance.

        This is the rule for attribution. A forgery learnt from pictures under many sub-keys agrees a little with all of
        them: their sum at the same identifier shows it (lost by chance: 4 %), and so does the runner-up at any
        identifier (1 %). One learnt from pictures that each have an identifier of their own agrees where a single
        picture had such content, in two or three hashes; an honest mark agrees everywhere, so the rest of it must agree
        too. A collage of two marked pictures is refused as well, and so is a marked picture that fills less than about
        half of another one.

        Guarantee: under the null, P(accepted) ≤ level. Of pictures written under the profile at most 5 % are lost to
        the rules on sub-keys, on average over secrets (their detection is not).

        Args:
            log10_level: log10 of the level, at most 0.
        """
        alone = (self.log10_p_others > MIXED_TOGETHER) & (self.log10_p_runner_up > MIXED_RUNNER_UP)
        return (self.log10_p <= log10_level) & (self.log10_p_elsewhere <= EVERYWHERE) & alone

    def verdict(self, picture: int, *, tests: float = 1.0, identifier: int | None = None) -> Verdict:
        """The verdict on one picture; ``tests`` is how many pictures and keys were tested beside it.

        With ``identifier``, named before looking, only the sub-keys are paid for.

        Args:
            picture: the row's number, from 0.
            tests: pictures and keys tested beside it, at least 1.
            identifier: named before looking; None where all are searched.
        """
        reading = self.readings[picture]
        bits = self.profile.identifier_bits
        if identifier is None:
            paid, score = self.paid, float(reading.scores_of(reading.best[1]).max())
        else:
            _check.require(0 <= identifier < 1 << bits, "identifier", identifier, wanted=f"a number of {bits} bits")
            paid, score = float(self.profile.subkeys), float(reading.scores_of(identifier).max())
        return Verdict(
            scheme=f"image/{self.profile.version}",
            null_model=f"a picture made without the secret; given the picture, {reading.null.sentence}",
            log10_p=float(tails.bonferroni(reading.null.log10_tail(score, 1), paid)),
            trials=reading.null.signs,
            matches=score,
            multiplicity=float(tests),
            bound="exact" if paid == 1 else "bonferroni over sub-keys and identifiers",
            log10_e=float(self.log10_e[picture]) if identifier is None else None,
            details=self._details(picture, paid=paid, identifier=identifier),
            notes=NOTES,
        )

    def _details(self, picture: int, *, paid: float, identifier: int | None) -> dict[str, Any]:
        reading = self.readings[picture]
        place_ = reading.placement
        return {
            "profile": self.profile.digest(),
            "key_id": self.profile.key_id,
            "identifier": reading.best[1] if identifier is None else identifier,
            "tests_paid_for": paid,
            "other_subkeys_log10_p": float(self.log10_p_others[picture]),
            "runner_up_log10_p": float(self.log10_p_runner_up[picture]),
            "elsewhere_log10_p": reading.log10_p_elsewhere,
            "blocks": int((reading.evidence.block_hash >= 0).sum()),
            "blocks_without_contrast": int((reading.evidence.block_hash < 0).sum()),
            "hashes": len(reading.evidence.hashes),
            "sync_z": place_.z,
            "scale": place_.scale,
            "angle": place_.angle,
            "orientation": place_.orientation,
        }

    def _single(self, scores: Sequence[float]) -> Floats:
        return np.array([float(r.null.log10_tail(s, 1)) for r, s in zip(self.readings, scores, strict=True)])

    def __len__(self) -> int:
        return len(self.readings)


@final
class ImageDetector:
    """Reads marks of one profile with its secret.

    Raises:
        ProfileMismatchError: the secret is not the profile's.
    """

    def __init__(self, profile: ImageProfile, secret: Secret) -> None:
        self.profile = profile
        self._keys = profile.keys(secret)

    def detect(self, pictures: Iterable[NDArray[np.uint8]], *, search: Search = Search.GRID) -> ImageDetections:
        """One row per picture (H, W, 3) of type uint8; a picture too small for one block has p = 1.

        Args:
            pictures: arrays (H, W, 3), uint8.
            search: which sizes, turns and shifts are tried.
        """
        return ImageDetections(self.profile, tuple(self.read(rgb, search=search) for rgb in pictures))

    def read(self, rgb: NDArray[np.uint8], *, search: Search = Search.GRID) -> Reading:
        """One picture.

        Args:
            rgb: pixels (H, W, 3), uint8.
            search: which sizes, turns and shifts are tried.
        """
        require_pixels(rgb)
        found = place(rgb, self._keys, search=search)
        y = luma(found.applied(rgb))
        evidence = Evidence.of(y, Grid.of(y.shape, top=found.top, left=found.left), self._keys)
        null = SignedWeights.of(evidence.weights, repeats=self.profile.pieces)
        scores = _scores(evidence, self._keys, subkeys=self.profile.subkeys)
        fields = self._fields(evidence, *_best(scores))
        return Reading(found, evidence, scores, null, (evidence.weights * fields).sum(1, dtype=np.int64))

    def binding(self, identifier: int) -> str:
        """What credentials say in this identifier's place; only the secret leads from one to the other.

        Args:
            identifier: what a picture carries.
        """
        return self._keys.binding(identifier)

    def block_z(self, reading: Reading) -> Floats:
        """How far each block agrees with the best sub-key and identifier, in deviations, (rows, columns).

        For people to look at, not a test: 0 where a block was left out.

        Args:
            reading: what one picture gave.
        """
        evidence = reading.evidence
        out = np.zeros(len(evidence.block_hash))
        used = np.flatnonzero(evidence.block_hash >= 0)
        own = evidence.block_weights[used].astype(np.float64)
        fields = self._fields(evidence, *reading.best)
        norm = np.sqrt((own * own).sum(1) * self._keys.pieces) + 1e-30
        out[used] = (own * fields[evidence.block_hash[used]]).sum(1) / norm
        return out.reshape(evidence.grid.rows, evidence.grid.columns)

    def _fields(self, evidence: Evidence, subkey: int, identifier: int) -> NDArray[np.int32]:
        """The signs of each hash under one sub-key and identifier, all pieces added, (K, 4096)."""
        turns = np.stack([walsh(m) for m in pieces_of(identifier, pieces=self._keys.pieces)])
        return (self._keys.evidence(evidence.hashes, subkey=subkey) * turns[:, None]).sum(0, dtype=np.int32)


def _best(scores: Floats) -> tuple[int, int]:
    """The sub-key with the largest score, and the identifier that gives it."""
    subkey = int(scores.max(2).sum(1).argmax())
    values = scores[subkey].argmax(1).tolist()
    return subkey, sum(value << (PIECE_BITS * i) for i, value in enumerate(values))


def _scores(evidence: Evidence, keys: ImageKeys, *, subkeys: int) -> Floats:
    """Signed sums of every sub-key, piece and value: (M, pieces, 4096). Whole numbers, exact."""
    sums = np.zeros((subkeys, keys.pieces, POSITIONS), np.float32)
    for start in range(0, len(evidence.hashes), _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        weights = evidence.weights[some].astype(np.float32)
        for subkey in range(subkeys):
            signs = keys.evidence(evidence.hashes[some], subkey=subkey)
            sums[subkey] += np.einsum("pkx,kx->px", signs, weights, dtype=np.float32)
    return walsh_transform(sums)


def _log10_e(reading: Reading) -> float:
    """Mean over sub-keys, identifiers and tilts of exp(θ·score − K(θ)), log10.

    For one θ, the mean over all identifiers is the product of the means over the values of each piece.
    """
    tilts = reading.null.tilts
    one = reading.scores[..., None, :] * tilts[:, None]  # (M, pieces, tilts, 4096)
    per_piece = tails.log10_mean_exp(one) / tails.LOG10_E
    exponents = per_piece.sum(1) - reading.null.cumulant(tilts)
    return float(tails.log10_mean_exp(exponents.ravel()))
