# SPDX-License-Identifier: Apache-2.0
"""The profile of an image mark: one immutable, signed record that writer and detector share. It holds no secret."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self, final

from privguard import _check
from privguard.attest import statement
from privguard.attest.statement import Envelope, Identity, SigningKey, Statement
from privguard.errors import ProfileMismatchError, TamperedError
from privguard.records import Digest, Record
from privguard.watermark.image.keys import PIECE_BITS, VERSION, ImageKeys
from privguard.watermark.secret import Secret

PREDICATE_TYPE = f"{statement.PREDICATES}image-mark-profile/v1"
IDENTIFIER_BITS = (24, 36, 48)
_MOST_SUBKEYS = 256
_LEAST_PSNR, _MOST_PSNR = 34.0, 50.0


@final
@dataclass(frozen=True, kw_only=True)
class ImageProfile(Record):
    """What writer and detector of an image mark agree on.

    ``key_id`` names the secret. ``identifier_bits`` is 24, 36 or 48: detection tries all of them and pays for it.
    ``subkeys`` is M: each picture is written under one of M sub-keys, and detection pays a factor M. ``target_psnr`` is
    the strength in decibels, at most 50: less is invisible to reader and eye alike.
    """

    key_id: str
    identifier_bits: int = 24
    subkeys: int = 16
    target_psnr: float = 42.0
    version: str = VERSION

    def __post_init__(self) -> None:
        bits = self.identifier_bits
        _check.require(bits in IDENTIFIER_BITS, "identifier_bits", bits, wanted="24, 36 or 48")
        _check.require(self.subkeys in range(1, _MOST_SUBKEYS + 1), "subkeys", self.subkeys, wanted="1 to 256")
        _check.positive("target_psnr", self.target_psnr)
        inside = _LEAST_PSNR <= self.target_psnr <= _MOST_PSNR
        _check.require(inside, "target_psnr", self.target_psnr, wanted="34 to 50 decibels")
        _check.require(self.version == VERSION, "version", self.version, wanted=VERSION)

    @classmethod
    def create(cls, secret: Secret, *, identifier_bits: int = 24, subkeys: int = 16, target_psnr: float = 42.0) -> Self:
        """The profile of a secret's image mark.

        Args:
            secret: the owner's secret.
            identifier_bits: bits of the number that a picture carries.
            subkeys: how many sub-keys pictures are written under.
            target_psnr: picture quality aimed at, in decibels.
        """
        return cls(
            key_id=secret.key_id, identifier_bits=identifier_bits, subkeys=subkeys, target_psnr=float(target_psnr)
        )

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ImageProfile":
        """The inverse of ``to_json``; law: ``ImageProfile.from_json(p.to_json()) == p``.

        Args:
            value: JSON values, as they were read.

        Raises:
            ProfileMismatchError: a field or version that this release does not know.
        """
        try:
            if value["record"] != cls.__name__ or set(value) - {"record"} != {f.name for f in fields(cls)}:
                raise ProfileMismatchError(f"profile: unknown record or field; this release reads {VERSION}")
            return cls(**{key: item for key, item in value.items() if key != "record"})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ProfileMismatchError(f"profile: {error}; this release reads {VERSION}") from None

    def write(self, path: str | Path, *, by: SigningKey) -> None:
        """Write the profile as a signed statement (in-toto in DSSE).

        Args:
            path: the profile's file.
            by: who signs, or has signed.
        """
        subject = Digest(name="image-mark-profile", sha256=self.digest())
        told = Statement(subjects=(subject,), predicate_type=PREDICATE_TYPE, predicate=self.to_json())
        statement.sign(told, by=by).write(Path(path))

    @classmethod
    def read(cls, path: str | Path, *, by: Identity) -> "ImageProfile":
        """Read a profile that ``by`` signed.

        Args:
            path: the profile's file.
            by: who signs, or has signed.

        Raises:
            TamperedError: not signed by that identity, or no profile of an image mark.
            ProfileMismatchError: signed, but not of a version that this release reads.
        """
        told = statement.verify(Envelope.read(Path(path)), by=by)
        if told.predicate_type != PREDICATE_TYPE:
            raise TamperedError(f"{path}: a signed {told.predicate_type}, expected {PREDICATE_TYPE}")
        profile = cls.from_json(told.predicate)
        if [subject.sha256 for subject in told.subjects] != [profile.digest()]:
            raise TamperedError(f"{path}: the signed digest is not that of the profile in it")
        return profile

    @property
    def pieces(self) -> int:
        """Fields per block, each of which carries 12 bits of the identifier."""
        return self.identifier_bits // PIECE_BITS

    def keys(self, secret: Secret) -> ImageKeys:
        """The keyed arrays of this profile.

        Args:
            secret: the owner's secret.

        Raises:
            ProfileMismatchError: the secret is not the one that the profile names.
        """
        if secret.key_id != self.key_id:
            raise ProfileMismatchError(f"secret={secret.key_id}: expected {self.key_id}, the one the profile names")
        return ImageKeys(secret, pieces=self.pieces)
