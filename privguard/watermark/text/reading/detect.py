"""Detection: token ids and the secret in, one exact p-value per document out. No model, no text, no torch.

Documents are scored together: one sort removes repeated n-grams, one AES call per sub-key makes all words, and one
vectorised tail makes all p-values. The p-value already pays for the sub-keys; ``keys`` and ``documents`` tested beside
it are paid for by whoever tests them (:meth:`Detections.verdict`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, final

import numpy as np
from numpy.typing import NDArray

from privguard import _check
from privguard.errors import MarkError
from privguard.records import Verdict
from privguard.watermark.secret import Secret
from privguard.watermark.statistics import tails
from privguard.watermark.statistics.tails import Floats
from privguard.watermark.text.prf.streams import ContextStream, Ids, Lookup
from privguard.watermark.text.profile import Profile
from privguard.watermark.text.reading.ngrams import Documents, Ngrams, scored_ngrams
from privguard.watermark.text.scheme import Payload

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

    ``log10_p`` is exact for the best sub-key after Bonferroni over all ``profile.subkeys``; ``log10_e`` averages the
    e-values of the sub-keys, so it needs no correction and may be watched while a text grows; ``others`` is the sum of
    all other sub-keys' scores.
    """

    profile: Profile
    log10_p: Floats
    log10_e: Floats
    score: Floats
    others: Floats
    scored: NDArray[np.int64]
    subkey: NDArray[np.int64]

    @cached_property
    def log10_p_others(self) -> Floats:
        """The exact tail of all other sub-keys' scores together, (D,); 0 where there is one sub-key."""
        return self.profile.scheme.null.log10_tail(self.others, self.scored * (self.profile.subkeys - 1))

    def accepted(self, *, log10_level: float) -> NDArray[np.bool_]:
        """Whether one sub-key fires at the level and the others together look like chance: the rule for attribution.

        Guarantee: under the null, P(accepted) ≤ level; of text written under the profile, 5 % is lost to the second
        condition (its detection is not; on average over secrets). Text of one sub-key is chance to all others; a
        forgery learnt from texts under many agrees a little with all of them (arXiv 2507.07871), which their sum shows
        long before any single one does. With one sub-key the rule is the p-value's alone.
        """
        return (self.log10_p <= log10_level) & (self.log10_p_others > MIXED)

    def verdict(self, document: int, *, tests: float = 1.0) -> Verdict:
        """The verdict on one document; ``tests`` is how many documents and keys were tested beside it."""
        row = int(document)
        log10_m = np.log10(self.profile.subkeys)
        return Verdict(
            scheme=f"text/{self.profile.scheme.name}",
            null_model=f"text written without the secret; per unique n-gram: {self.profile.scheme.null.sentence}",
            log10_p=float(self.log10_p[row]),
            trials=int(self.scored[row]),
            matches=float(self.score[row]),
            multiplicity=float(tests),
            bound="exact" if self.profile.subkeys == 1 else "bonferroni over sub-keys",
            log10_e=float(self.log10_e[row]),
            details={
                "profile": self.profile.digest(),
                "key_id": self.profile.key_id,
                "subkeys_tried": self.profile.subkeys,
                "log10_p_before_subkeys": float(self.log10_p[row] - log10_m) if self.log10_p[row] < 0 else 0.0,
                "other_subkeys_log10_p": float(self.log10_p_others[row]),
                "mean_score": float(self.score[row] / max(1, self.scored[row])),
                "mean_without_mark": self.profile.scheme.null.mean,
            },
            notes=NOTES,
        )

    def where(self, chosen: NDArray[np.bool_], other: "Detections") -> "Detections":
        """These rows where ``chosen`` (D,) is set, the rows of ``other`` elsewhere; same profile, same documents."""
        names = ("log10_p", "log10_e", "score", "others", "scored", "subkey")
        return Detections(self.profile, *(np.where(chosen, getattr(self, n), getattr(other, n)) for n in names))

    def __len__(self) -> int:
        return len(self.log10_p)


class _ScoringScheme(Protocol):
    """A scheme whose n-grams have scores without knowing a message."""

    def lookup(self, contexts: Ids, tokens: Ids, *, block_bytes: int) -> Lookup: ...
    def scores(self, words: Any, /) -> Floats: ...


@final
class Detector:
    """Reads marks of one profile with its secret; with ``user`` those written for one user.

    Raises:
        ProfileMismatchError: the secret is not the profile's.
        MarkError: the profile carries a payload, which :mod:`privguard.watermark.text.reading.message` reads.
    """

    def __init__(self, profile: Profile, secret: Secret, *, user: str | None = None) -> None:
        self.profile = profile
        self._scheme = _scoring(profile)
        self._streams = [profile.stream(secret, subkey=j, user=user) for j in range(profile.subkeys)]

    def detect(self, documents: Documents) -> Detections:
        """One result per document, each n-gram counted once in its document."""
        ngrams = scored_ngrams(self.profile, documents)
        return self.judge(ngrams)

    def detect_corpus(self, documents: Documents) -> Detections:
        """One result for all documents together, each n-gram counted once in the corpus.

        For templated text, where the same n-grams come back in every document.
        """
        ngrams = scored_ngrams(self.profile, documents, corpus=True)
        return self.judge(Ngrams(ngrams.contexts, ngrams.tokens, np.zeros_like(ngrams.document), ngrams.place, 1))

    def detect_text(self, texts: Sequence[str], tokenizer: Any) -> Detections:
        """Tokenize with the profile's tokenizer (no special tokens added), then :meth:`detect`.

        Raises:
            ProfileMismatchError: another tokenizer.
        """
        return self.detect(encode(texts, tokenizer, profile=self.profile))

    def lookup(self, ngrams: Ngrams) -> Lookup:
        """Where the words of n-grams stand: the same for all users and secrets of a profile, so make it once."""
        return self._scheme.lookup(ngrams.contexts, ngrams.tokens, block_bytes=self._streams[0].block_bytes)

    def scores(self, ngrams: Ngrams) -> Floats:
        """Score of every n-gram under every sub-key: (M, N)."""
        lookup = self.lookup(ngrams)
        return np.stack([self._scheme.scores(lookup.read(stream)) for stream in self._streams])

    def judge(self, ngrams: Ngrams, *, lookup: Lookup | None = None) -> Detections:
        """Sum the scores of unique n-grams per document and find the best sub-key."""
        sums = _sums(self._scheme, self._streams, ngrams, lookup or self.lookup(ngrams))
        return _judge(self.profile, sums, ngrams.count())


def _sums(scheme: _ScoringScheme, streams: Sequence[ContextStream], ngrams: Ngrams, lookup: Lookup) -> Floats:
    """Sum of scores per sub-key and document, (M, D)."""
    out = np.zeros((len(streams), ngrams.documents))
    some, starts = np.unique(ngrams.document, return_index=True)  # n-grams stand in the order of their documents
    if some.size:
        for row, stream in zip(out, streams, strict=True):
            row[some] = np.add.reduceat(scheme.scores(lookup.read(stream)), starts)
    return out


def _judge(profile: Profile, sums: Floats, count: NDArray[np.int64]) -> Detections:
    null, subkeys = profile.scheme.null, len(sums)
    best = sums.argmax(0)
    top = sums[best, np.arange(sums.shape[1])]
    log10_p = tails.bonferroni(null.log10_tail(top, count), subkeys)
    rest = np.maximum(sums.sum(0) - top, 0.0)
    log10_e = tails.log10_mean_exp(null.log10_e(sums, count).T / tails.LOG10_E)
    return Detections(profile, log10_p, log10_e, top, rest, count, best)


def decoy_ranks(profile: Profile, secret: Secret, documents: Documents, *, decoys: int = 999) -> Floats:
    """p-value per document from the rank of the true key among ``decoys`` other keys on the same text.

    Whatever the text looks like, the true key is exchangeable with the decoys where there is no mark, so over secrets
    the rank is uniform. For one given secret it is not: a template that all documents share gives all of them the same
    rank, as it gives them the same p-value; only :meth:`Detector.detect_corpus` counts a template once. Its smallest
    value is 1/(decoys+1). The decoys come from the secret, so the result is repeatable.
    """
    _check.count("decoys", decoys)
    scheme = _scoring(profile)
    ngrams = scored_ngrams(profile, documents)

    true = [profile.stream(secret, subkey=j) for j in range(profile.subkeys)]
    lookup = scheme.lookup(ngrams.contexts, ngrams.tokens, block_bytes=true[0].block_bytes)
    own = _sums(scheme, true, ngrams, lookup).max(0)
    at_least = np.zeros(len(own))
    for i in range(decoys):
        decoy = secret.child("decoy", i)
        streams = [profile.stream_of_any(decoy, subkey=j) for j in range(profile.subkeys)]
        at_least += _sums(scheme, streams, ngrams, lookup).max(0) >= own
    return (1 + at_least) / (1 + decoys)


def encode(texts: Sequence[str], tokenizer: Any, *, profile: Profile) -> Documents:
    """Token ids of texts, without special tokens, after checking that the tokenizer is the profile's.

    Ids that lie beyond the model's logits, which it cannot have written, break a window and are not scored.
    """
    profile.require_tokenizer(tokenizer)
    lists = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    return Documents.of_lists(lists).below(profile.logits_width)


def _scoring(profile: Profile) -> _ScoringScheme:
    if isinstance(profile.scheme, Payload):
        raise MarkError(
            "profile: its mark carries a payload; read it with privguard.watermark.text.reading.message.read"
        )
    return profile.scheme
