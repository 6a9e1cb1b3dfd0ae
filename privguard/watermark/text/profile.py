# SPDX-License-Identifier: Apache-2.0
"""The profile: one immutable, signed record that writer and detector share; a mismatch is refused, never guessed away.

It names everything on which the two must agree and holds no secret. The keys come from the owner's secret under labels
that name scheme, PRF and context width, so two profiles never read the same words in two ways.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self, final

from privguard import _canon, _check
from privguard.attest import statement
from privguard.attest.statement import Envelope, Identity, SigningKey, Statement
from privguard.errors import ProfileMismatchError, TamperedError
from privguard.records import Digest, Record
from privguard.watermark.secret import Secret
from privguard.watermark.text.prf.streams import FILLER, SLOTS, STREAMS, ContextStream
from privguard.watermark.text.scheme import SCHEMES, Gumbel, Payload, Scheme

VERSION = "text-mark-v1"
DEDUPLICATION = "unique-ngrams-v1"
PREDICATE_TYPE = f"{statement.PREDICATES}text-mark-profile/v1"
MOST_SUBKEYS = 256


class Tokenizer(Protocol):
    """What is asked of a tokenizer; every tokenizer of transformers has it."""

    all_special_ids: list[int]

    def get_vocab(self) -> dict[str, int]:
        """Token text → id."""
        ...


def vocabulary_digest(tokenizer: Tokenizer) -> str:
    """SHA-256 over the vocabulary and the special ids: two tokenizers that agree give each token the same id.

    Args:
        tokenizer: a tokenizer of transformers, or one with its two names.
    """
    return _canon.digest({"vocabulary": tokenizer.get_vocab(), "special": sorted(tokenizer.all_special_ids)})


@final
@dataclass(frozen=True, kw_only=True)
class Profile(Record):
    """What writer and detector of a text mark agree on.

    ``vocabulary`` is the digest of the tokenizer (``vocabulary_digest``), or a name of your own where there is
    none; ``logits_width`` is the width of the model's logits, which may exceed the vocabulary; ``context_width`` is
    how many tokens before a token choose its words (4 resists stealing, 1 or 2 survives editing); ``subkeys`` is M:
    each sequence is written under one of M sub-keys, and detection pays a factor M for trying them all; ``special_ids``
    are never scored. ``key_id`` names the secret. ``model`` names the model, such as its weights' digest, where one
    secret marks several that share a tokenizer: vocabulary, width and model are part of every key, so no two models
    ever read alike.

    ``free_start`` leaves the first ``context_width`` tokens of each text to ordinary chance: their context lies in the
    prompt, which in a chat is one template, so the mark would favour the same few openings in all chats.
    """

    scheme: Scheme = field(default_factory=Gumbel)
    key_id: str
    vocabulary: str
    logits_width: int
    context_width: int = SLOTS
    prf: str = "aes256-v1"
    subkeys: int = 16
    mask_repeats: bool = True
    free_start: bool = True
    model: str = ""
    special_ids: tuple[int, ...] = ()
    deduplication: str = DEDUPLICATION
    version: str = VERSION

    def __post_init__(self) -> None:
        _check.count("logits_width", self.logits_width, least=2)
        _check.require(self.logits_width <= FILLER, "logits_width", self.logits_width, wanted="below 2**24")
        _check.require(self.context_width in range(1, SLOTS + 1), "context_width", self.context_width, wanted="1 to 4")
        _check.require(self.prf in STREAMS, "prf", self.prf, wanted=" or ".join(STREAMS))
        _check.require(self.subkeys in range(1, MOST_SUBKEYS + 1), "subkeys", self.subkeys, wanted="1 to 256")
        _check.require(self.version == VERSION, "version", self.version, wanted=VERSION)
        _check.require(self.deduplication == DEDUPLICATION, "deduplication", self.deduplication, wanted=DEDUPLICATION)

    @classmethod
    def for_tokenizer(
        cls, tokenizer: Tokenizer, secret: Secret, *, logits_width: int, scheme: Scheme | None = None, model: str = ""
    ) -> Self:
        """The default profile for this tokenizer, secret and width of the model's logits; ``model`` as above.

        Args:
            tokenizer: a tokenizer of transformers, or one with its two names.
            secret: the profile's secret.
            logits_width: width of the model's logits.
            scheme: how the mark is written; None for Gumbel.
            model: a name of the model; empty where the secret marks one.
        """
        return cls(
            scheme=Gumbel() if scheme is None else scheme,
            key_id=secret.key_id,
            vocabulary=vocabulary_digest(tokenizer),
            logits_width=logits_width,
            special_ids=tuple(sorted(tokenizer.all_special_ids)),
            model=model,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; the scheme becomes its name and its numbers, the statistic stands beside it."""
        scheme = {"name": self.scheme.name, **_canon.to_json(self.scheme), "statistic": self.scheme.statistic}
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "scheme"}
        return {"record": "TextMarkProfile", "scheme": scheme, **_canon.to_json(fields)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Profile":
        """The inverse of ``to_json``; law: ``Profile.from_json(p.to_json()) == p``.

        Args:
            value: JSON values, as they were read.

        Raises:
            ProfileMismatchError: a field, scheme, statistic or version that this release does not know.
        """
        try:
            fields: dict[str, Any] = {key: item for key, item in value.items() if key not in {"record", "scheme"}}
            numbers = {key: item for key, item in value["scheme"].items() if key not in {"name", "statistic"}}
            kind = SCHEMES[value["scheme"]["name"]]
            if value["record"] != "TextMarkProfile" or value["scheme"]["statistic"] != kind.statistic:
                raise ProfileMismatchError(f"profile: unknown record or statistic; this release reads {VERSION}")
            special_ids = tuple(fields.pop("special_ids"))
            return cls(scheme=kind(**numbers), special_ids=special_ids, **fields)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ProfileMismatchError(f"profile: {error}; this release reads {VERSION}") from None

    def write(self, path: str | Path, *, by: SigningKey) -> None:
        """Write the profile as a signed statement (in-toto in DSSE).

        Args:
            path: the profile's file.
            by: who signs, or has signed.
        """
        subject = Digest(name="text-mark-profile", sha256=self.digest())
        predicate = Statement(subjects=(subject,), predicate_type=PREDICATE_TYPE, predicate=self.to_json())
        statement.sign(predicate, by=by).write(Path(path))

    @classmethod
    def read(cls, path: str | Path, *, by: Identity) -> "Profile":
        """Read a profile that ``by`` signed.

        Args:
            path: the profile's file.
            by: who signs, or has signed.

        Raises:
            TamperedError: not signed by that identity, or no profile.
            ProfileMismatchError: signed, but not of a version that this release reads.
        """
        told = statement.verify(Envelope.read(Path(path)), by=by)
        if told.predicate_type != PREDICATE_TYPE:
            raise TamperedError(f"{path}: a signed {told.predicate_type}, expected {PREDICATE_TYPE}")
        profile = cls.from_json(told.predicate)
        if [subject.sha256 for subject in told.subjects] != [profile.digest()]:
            raise TamperedError(f"{path}: the signed digest is not that of the profile in it")
        return profile

    def require_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Refuse a tokenizer other than the profile's.

        Args:
            tokenizer: a tokenizer of transformers, or one with its two names.

        Raises:
            ProfileMismatchError: its vocabulary has another digest.
        """
        found = vocabulary_digest(tokenizer)
        if found != self.vocabulary:
            raise ProfileMismatchError(
                f"tokenizer={found[:16]}…: expected {self.vocabulary[:16]}…; use the one the text was written with"
            )

    def stream(self, secret: Secret, *, subkey: int, user: str | None = None) -> ContextStream:
        """The secret bytes of one sub-key, of one user where the mark traces users.

        Args:
            secret: the profile's secret.
            subkey: the sub-key's number, from 0.
            user: for whom the text is; None where users are not traced.

        Raises:
            ProfileMismatchError: the secret is not the one that the profile names.
            ValueError: no such sub-key.
        """
        if secret.key_id != self.key_id:
            raise ProfileMismatchError(f"secret={secret.key_id}: expected {self.key_id}, the one the profile names")
        return self.stream_of_any(secret, subkey=subkey, user=user)

    def stream_of_any(self, secret: Secret, *, subkey: int, user: str | None = None) -> ContextStream:
        """As ``stream``, for a decoy: a secret that is not the profile's, to see what chance alone gives.

        Args:
            secret: the profile's secret.
            subkey: the sub-key's number, from 0.
            user: for whom the text is; None where users are not traced.
        """
        _check.require(subkey in range(self.subkeys), "subkey", subkey, wanted=f"0 to {self.subkeys - 1}")
        owner = secret if user is None else secret.child("user", user)
        model = [self.vocabulary, self.logits_width, self.model]
        numbers = _canon.to_json(self.scheme)
        family = json.dumps([VERSION, self.scheme.name, numbers, self.prf, self.context_width, *model])
        return STREAMS[self.prf](owner.derive(VERSION, family, subkey))


def rotation(profile: Profile) -> int:
    """R of the payload scheme: the larger of the logits width and 2^piece.

    Args:
        profile: a profile with a payload.
    """
    assert isinstance(profile.scheme, Payload)  # noqa: S101 — for the type checker
    return max(profile.logits_width, 1 << max(profile.scheme.pieces))
