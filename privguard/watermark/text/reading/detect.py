# SPDX-License-Identifier: Apache-2.0
"""Detection: token ids and the secret in, one exact p-value per document out. No model, no text, no torch.

Documents are scored together: one sort removes repeated n-grams, one AES call per sub-key makes all words, and one
vectorised tail makes all p-values. The p-value already pays for the sub-keys; ``keys`` and ``documents`` tested beside
it are paid for by whoever tests them (``Detections.verdict``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from privguard import _check
from privguard.errors import MarkError
from privguard.records import Verdict
from privguard.watermark.secret import Secret
from privguard.watermark.statistics import tails
from privguard.watermark.statistics.tails import Floats
from privguard.watermark.text.prf.streams import ContextStream, Lookup
from privguard.watermark.text.profile import Profile
from privguard.watermark.text.reading.along import Stretch, read_along
from privguard.watermark.text.reading.ngrams import Documents, Ngrams, scored_ngrams
from privguard.watermark.text.scheme import Payload, TextScheme

_AT_ONCE = 100_000  # n-grams whose scores under all sub-keys are held
MIXED = -1.3  # log10 of 5 %: below it, the other sub-keys together no longer look like chance
NOTES = (
    "A small p-value says that the text was written under this key or copied from such text; it does not say by whom.",
    "A large p-value does not say that a person wrote it: low entropy, editing and paraphrase remove the mark.",
    "It holds for a secret that is older than the text: one that was sought afterwards can be made to fit any text.",
)


@final
@dataclass(frozen=True)
class Detections:
    """What was found, one row per document; all arrays have shape (D,).

    ``log10_p`` is the smaller of two p-values, doubled: ``log10_p_best``, exact for the best sub-key of the whole text
    after Bonferroni over all ``profile.subkeys``, and ``log10_p_along``, which follows pieces under different sub-keys.
    ``log10_e`` is an e-value, the mean of the two kinds of bets on the whole text; it may be watched while a text grows
    and averaged or multiplied. ``stretches`` says which sub-keys wrote what of each document.
    """

    profile: Profile
    log10_p: Floats
    log10_p_best: Floats
    log10_p_along: Floats
    log10_e: Floats
    score: Floats
    others: Floats
    beside: Floats
    compared: NDArray[np.int64]
    scored: NDArray[np.int64]
    subkey: NDArray[np.int64]
    stretches: tuple[tuple[Stretch, ...], ...]

    @cached_property
    def log10_p_others(self) -> Floats:
        """The exact tail of the scores of all sub-keys but the best one, over the whole text, (D,)."""
        return self.profile.scheme.null.log10_tail(self.others, self.scored * (self.profile.subkeys - 1))

    @cached_property
    def log10_p_beside(self) -> Floats:
        """The same for a text of several pieces: of all sub-keys but the one that wrote each stretch, (D,)."""
        return self.profile.scheme.null.log10_tail(self.beside, self.compared)

    def accepted(self, *, log10_level: float) -> NDArray[np.bool_]:
        """Whether the mark is found at the level and written by one sub-key at a time: the rule for attribution.

        One sub-key fires for the whole text, or some are named for stretches of it, and all others together look like
        chance. Guarantee: under the null, P(accepted) ≤ level; of text written under the profile about 5 % is lost to
        the second condition (its detection is not; on average over secrets), and texts whose pieces are too short to
        name anybody. Text of one sub-key is chance to all others, whatever stands beside it; a forgery learnt from
        texts under many agrees a little with all of them at once (arXiv 2507.07871), which their sum shows long before
        any single one does. With one sub-key the rule is the p-value's alone.

        Args:
            log10_level: log10 of the level, at most 0.
        """
        whole = (self.log10_p_best <= log10_level) & (self.log10_p_others > MIXED)
        named = np.array([len(stretches) > 0 for stretches in self.stretches], np.bool_)
        return (self.log10_p <= log10_level) & (whole | (named & (self.log10_p_beside > MIXED)))

    def mixed(self, *, log10_level: float) -> NDArray[np.bool_]:
        """Whether many sub-keys agree with a text beyond what its stretches explain: short pieces, or a forgery.

        Args:
            log10_level: log10 of the level, at most 0.
        """
        found = self.log10_p <= log10_level
        return found & ~self.accepted(log10_level=log10_level) & (self.log10_p_beside <= MIXED)

    def verdict(self, document: int, *, tests: float = 1.0, details: Mapping[str, Any] | None = None) -> Verdict:
        """The verdict on one document; ``tests`` is how many documents, keys and variants were tested beside it.

        Args:
            document: the document's number, from 0.
            tests: documents, keys and variants tested beside it, at least 1.
            details: more facts for the verdict; None for none.
        """
        row = int(document)
        return Verdict(
            scheme=f"text/{self.profile.scheme.name}",
            null_model=f"text written without the secret; per unique n-gram: {self.profile.scheme.null.sentence}",
            log10_p=float(self.log10_p[row]),
            trials=int(self.scored[row]),
            matches=float(self.score[row]),
            multiplicity=float(tests),
            bound="twice the smaller of: bonferroni over sub-keys; Ville along the text",
            log10_e=float(self.log10_e[row]),
            details={
                "profile": self.profile.digest(),
                "key_id": self.profile.key_id,
                "subkeys_tried": self.profile.subkeys,
                "log10_p_best_subkey": float(self.log10_p_best[row]),
                "log10_p_along_the_text": float(self.log10_p_along[row]),
                "stretches": [stretch.to_json() for stretch in self.stretches[row]],
                "other_subkeys_log10_p": float(self.log10_p_others[row]),
                "beside_stretches_log10_p": float(self.log10_p_beside[row]),
                "mean_score": float(self.score[row] / max(1, self.scored[row])),
                "mean_without_mark": self.profile.scheme.null.mean,
                **(details or {}),
            },
            notes=NOTES,
        )

    def __len__(self) -> int:
        return len(self.log10_p)


@final
class Detector:
    """Reads marks of one profile with its secret; with ``user`` those written for one user.

    Raises:
        ProfileMismatchError: the secret is not the profile's.
        MarkError: the profile carries a payload, which ``privguard.watermark.text.reading.message`` reads.
    """

    def __init__(self, profile: Profile, secret: Secret, *, user: str | None = None) -> None:
        self.profile = profile
        self._scheme = _scoring(profile)
        self._streams = [profile.stream(secret, subkey=j, user=user) for j in range(profile.subkeys)]

    def detect(self, documents: Documents) -> Detections:
        """One result per document, each n-gram counted once in its document.

        Args:
            documents: token ids of all documents.
        """
        ngrams = scored_ngrams(self.profile, documents)
        return self.judge(ngrams)

    def detect_corpus(self, documents: Documents) -> Detections:
        """One result for all documents together, each n-gram counted once in the corpus.

        For templated text, where the same n-grams come back in every document.

        Args:
            documents: token ids of all documents.
        """
        return self.judge(scored_ngrams(self.profile, documents, corpus=True).as_one())

    def detect_text(self, texts: Sequence[str], tokenizer: Any) -> Detections:
        """Tokenize with the profile's tokenizer (no special tokens added), then ``detect``.

        Args:
            texts: texts, as they are read.
            tokenizer: the profile's tokenizer.

        Raises:
            ProfileMismatchError: another tokenizer.
        """
        return self.detect(encode(texts, tokenizer, profile=self.profile))

    def lookup(self, ngrams: Ngrams) -> Lookup:
        """Where the words of n-grams stand: the same for all users and secrets of a profile, so make it once.

        Args:
            ngrams: unique n-grams of all documents, N of them.
        """
        return self._scheme.lookup(ngrams.contexts, ngrams.tokens, block_bytes=self._streams[0].block_bytes)

    def scores(self, ngrams: Ngrams) -> Floats:
        """Score of every n-gram under every sub-key: (M, N).

        Args:
            ngrams: unique n-grams of all documents, N of them.
        """
        lookup = self.lookup(ngrams)
        return np.stack([self._scheme.scores(lookup.read(stream)) for stream in self._streams])

    def best(self, ngrams: Ngrams, *, lookup: Lookup) -> Floats:
        """log10 p of the best sub-key of each document, after all sub-keys: what tracing compares users by, (D,).

        Args:
            ngrams: unique n-grams of all documents, N of them.
            lookup: where their words stand.
        """
        sums = sums_of(self._scheme, self._streams, ngrams, lookup)
        return best_subkey(self.profile, sums, ngrams.count())[0]

    def judge(self, ngrams: Ngrams) -> Detections:
        """Score unique n-grams, some documents at a time, for the best sub-key of each and along its text.

        Args:
            ngrams: unique n-grams of all documents, N of them.
        """
        counts, starts = ngrams.count(), np.searchsorted(ngrams.document, np.arange(ngrams.documents + 1))
        group = (np.cumsum(counts) - counts) // _AT_ONCE
        cuts = [*(np.flatnonzero(np.diff(group)) + 1).tolist(), ngrams.documents]
        parts: list[Detections] = []
        for first, last in zip([0, *cuts[:-1]], cuts, strict=True):
            part = ngrams.part(first, last, rows=slice(int(starts[first]), int(starts[last])))
            parts.append(_judge(self.profile, self.scores(part), part))
        return _joined(self.profile, parts)


def best_subkey(profile: Profile, sums: Floats, count: NDArray[np.int64]) -> tuple[Floats, NDArray[np.int64]]:
    """From sums per sub-key and document (M, D): log10 p of the best, paid for, and which it is.

    Args:
        profile: the signed profile.
        sums: sums of scores by sub-key and document, (M, D).
        count: scored n-grams of each document, (D,).
    """
    best = sums.argmax(0)
    top = sums[best, np.arange(sums.shape[1])]
    return tails.bonferroni(profile.scheme.null.log10_tail(top, count), len(sums)), best


def sums_of(scheme: TextScheme, streams: Sequence[ContextStream], ngrams: Ngrams, lookup: Lookup) -> Floats:
    """Sum of scores per sub-key and document, (M, D).

    Args:
        scheme: the profile's scheme.
        streams: the streams of the sub-keys, M of them.
        ngrams: unique n-grams of all documents, N of them.
        lookup: where their words stand.
    """
    return np.stack([_reduced(scheme.scores(lookup.read(stream))[None], ngrams)[0] for stream in streams])


def _reduced(scores: Floats, ngrams: Ngrams) -> Floats:
    out = np.zeros((len(scores), ngrams.documents))
    some, starts = np.unique(ngrams.document, return_index=True)  # n-grams stand in the order of their documents
    if some.size:
        out[:, some] = np.add.reduceat(scores, starts, axis=1)
    return out


def _judge(profile: Profile, scores: Floats, ngrams: Ngrams) -> Detections:
    null, sums, count = profile.scheme.null, _reduced(scores, ngrams), ngrams.count()
    log10_best, best = best_subkey(profile, sums, count)
    along = read_along(profile, scores, ngrams, log10_p=log10_best)
    log10_p = tails.bonferroni(np.minimum(log10_best, along.log10_p), 2)
    bets = [tails.log10_mean_exp(null.log10_e(sums, count).T / tails.LOG10_E), along.log10_e]
    log10_e = tails.log10_mean_exp(np.stack(bets, 1) / tails.LOG10_E)
    top = sums[best, np.arange(ngrams.documents)]
    return Detections(
        profile=profile,
        log10_p=log10_p,
        log10_p_best=log10_best,
        log10_p_along=along.log10_p,
        log10_e=log10_e,
        score=top,
        others=np.maximum(sums.sum(0) - top, 0.0),
        beside=along.beside,
        compared=along.compared,
        scored=count,
        subkey=best,
        stretches=along.stretches,
    )


def _joined(profile: Profile, parts: Sequence[Detections]) -> Detections:
    """Parts one after another."""
    names = [entry.name for entry in fields(Detections) if entry.name not in {"profile", "stretches"}]
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    stretches = tuple(found for part in parts for found in part.stretches)
    return Detections(profile=profile, stretches=stretches, **arrays)


def decoy_ranks(profile: Profile, secret: Secret, documents: Documents, *, decoys: int = 999) -> Floats:
    """p-value per document from the rank of the true key among ``decoys`` other keys on the same text.

    Whatever the text looks like, the true key is exchangeable with the decoys where there is no mark, so over secrets
    the rank is uniform. For one given secret it is not: a template that all documents share gives all of them the same
    rank, as it gives them the same p-value; only ``Detector.detect_corpus`` counts a template once. Its smallest
    value is 1/(decoys+1). The decoys come from the secret, so the result is repeatable.

    Args:
        profile: the signed profile.
        secret: the profile's secret.
        documents: token ids of all documents.
        decoys: how many other keys.
    """
    _check.count("decoys", decoys)
    scheme = _scoring(profile)
    ngrams = scored_ngrams(profile, documents)

    true = [profile.stream(secret, subkey=j) for j in range(profile.subkeys)]
    lookup = scheme.lookup(ngrams.contexts, ngrams.tokens, block_bytes=true[0].block_bytes)
    own = sums_of(scheme, true, ngrams, lookup).max(0)
    at_least = np.zeros(len(own))
    for i in range(decoys):
        decoy = secret.child("decoy", i)
        streams = [profile.stream_of_any(decoy, subkey=j) for j in range(profile.subkeys)]
        at_least += sums_of(scheme, streams, ngrams, lookup).max(0) >= own
    return (1 + at_least) / (1 + decoys)


def encode(texts: Sequence[str], tokenizer: Any, *, profile: Profile) -> Documents:
    """Token ids of texts, without special tokens, after checking that the tokenizer is the profile's.

    Ids that lie beyond the model's logits, which it cannot have written, break a window and are not scored.

    Args:
        texts: texts, as they are read.
        tokenizer: the profile's tokenizer.
        profile: the signed profile.
    """
    profile.require_tokenizer(tokenizer)
    lists = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    return Documents.of_lists(lists).below(profile.logits_width)


def _scoring(profile: Profile) -> TextScheme:
    if isinstance(profile.scheme, Payload):
        raise MarkError(
            "profile: its mark carries a payload; read it with privguard.watermark.text.reading.message.read"
        )
    return profile.scheme
