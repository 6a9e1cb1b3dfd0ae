# SPDX-License-Identifier: Apache-2.0
"""From documents of token ids to the n-grams that count: whole, unique, without prompt, padding or special tokens.

Every null model here needs each n-gram (context and token) once: a repeated n-gram repeats its score, and counting it
twice is what makes textbook p-values wrong by factors of thousands on program code. Nothing else in privguard scores a
text, so nothing can forget it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from privguard import _check
from privguard.errors import ProfileMismatchError
from privguard.watermark.text.prf.streams import FILLER, Ids
from privguard.watermark.text.profile import Profile

_SHORT = 256  # up to this length numpy sorts rows in vector registers
_PAD = np.uint64(0xFFFFFFFFFFFFFFFF)
_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93), np.uint64(32))


@final
@dataclass(frozen=True)
class Documents:
    """Documents one after another: ``tokens`` (T,), ``lengths`` (D,), and which tokens may be part of a scored n-gram.

    ``usable`` (T,) is False for padding and special tokens, which break a window; ``target`` (T,) is False for a
    prompt, which may be context but is never scored.
    """

    tokens: NDArray[np.int64]
    lengths: NDArray[np.int64]
    usable: NDArray[np.bool_]
    target: NDArray[np.bool_]

    @classmethod
    def of_lists(cls, documents: Sequence[ArrayLike], *, prompts: Sequence[int] = ()) -> "Documents":
        """Documents of any lengths; ``prompts`` gives how many leading tokens of each are its prompt (default none).

        Raises:
            ValueError: a document is not one-dimensional, or ids are no whole numbers in [0, 2²⁴).
        """
        rows = [_ids(document, dimensions=1) for document in documents]
        lengths = np.array([len(row) for row in rows], np.int64)
        tokens = np.concatenate(rows) if rows else np.empty(0, np.int64)
        start = np.zeros(len(rows), np.int64) if len(prompts) == 0 else np.asarray(prompts, np.int64)
        _check.require(
            start.shape == lengths.shape, "len(prompts)", len(start), wanted=f"one per document, {len(rows)}"
        )
        target = _within(lengths) >= np.repeat(start, lengths)
        return cls(_in_range(tokens), lengths, np.ones(len(tokens), np.bool_), target)

    @classmethod
    def of_batch(cls, tokens: ArrayLike, *, mask: ArrayLike | None = None, prompt: int = 0) -> "Documents":
        """A (D, T) batch; ``mask`` is the attention mask (0 for padding), ``prompt`` the width of the prompt.

        Raises:
            ValueError: shapes differ, or ids are no whole numbers in [0, 2²⁴) where the mask is set.
        """
        ids = _ids(tokens, dimensions=2)
        usable = np.ones(ids.shape, np.bool_) if mask is None else np.asarray(mask).astype(np.bool_)
        _check.require(usable.shape == ids.shape, "mask.shape", usable.shape, wanted=f"{ids.shape}, as the tokens")
        target = np.broadcast_to(np.arange(ids.shape[1]) >= prompt, ids.shape)
        lengths = np.full(len(ids), ids.shape[1], np.int64)
        flat = np.where(usable, ids, 0).ravel()
        return cls(_in_range(flat), lengths, usable.ravel(), target.ravel())

    def without(self, special_ids: Sequence[int]) -> "Documents":
        """The same documents with these tokens made unusable."""
        usable = self.usable
        for special in special_ids:
            usable = usable & (self.tokens != special)
        return replace(self, usable=usable)

    def below(self, width: int) -> "Documents":
        """The same documents with ids of ``width`` and above made unusable: no model of that width wrote them."""
        return replace(self, usable=self.usable & (self.tokens < width))

    def behind_start(self, width: int) -> "Documents":
        """The same documents in which a token is only a target when the one ``width`` before it is one too."""
        target = self.target.copy()
        target[width:] &= self.target[: max(0, len(target) - width)]
        return replace(self, target=target)

    @property
    def owner(self) -> NDArray[np.int64]:
        """The document of each token, (T,)."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @property
    def offset(self) -> NDArray[np.int64]:
        """Where each document begins in the flat tokens, (D,)."""
        return np.cumsum(self.lengths) - self.lengths

    def __len__(self) -> int:
        return len(self.lengths)


@final
@dataclass(frozen=True)
class Ngrams:
    """Unique n-grams: ``contexts`` (N, h), ``tokens`` (N,), their document (N,) and place in the flat tokens (N,).

    ``offset`` (D,) is where each document begins in the flat tokens.
    """

    contexts: NDArray[np.int64]
    tokens: NDArray[np.int64]
    document: NDArray[np.int64]
    place: NDArray[np.int64]
    offset: NDArray[np.int64]

    @property
    def documents(self) -> int:
        """How many documents there are, with or without n-grams."""
        return len(self.offset)

    def part(self, first: int, last: int, *, rows: slice) -> "Ngrams":
        """The documents from ``first`` up to ``last``, whose n-grams are ``rows``."""
        document = self.document[rows] - first
        return Ngrams(self.contexts[rows], self.tokens[rows], document, self.place[rows], self.offset[first:last])

    def only(self, document: int) -> "Ngrams":
        """One document alone, of which all n-grams here are."""
        return Ngrams(
            self.contexts, self.tokens, np.zeros_like(self.document), self.place, self.offset[document : document + 1]
        )

    def as_one(self) -> "Ngrams":
        """All n-grams as those of one document."""
        return Ngrams(self.contexts, self.tokens, np.zeros_like(self.document), self.place, np.zeros(1, np.int64))

    def count(self) -> NDArray[np.int64]:
        """How many n-grams each document has, (D,)."""
        return np.bincount(self.document, minlength=self.documents)

    def __len__(self) -> int:
        return len(self.tokens)


def scored_ngrams(profile: Profile, documents: Documents, *, corpus: bool = False) -> Ngrams:
    """What a profile's readers score: unique n-grams without special ids, once per document or once per ``corpus``.

    Where the profile leaves the start of a text to chance, the first tokens behind a prompt are not scored.

    Raises:
        ProfileMismatchError: an id that the profile's model cannot have written. Such ids would be read all the same,
            some as others (a residue of the width), so a list made of them could look marked without any key.
    """
    strange = documents.usable & (documents.tokens >= profile.logits_width)
    if strange.any():
        at = int(np.flatnonzero(strange)[0])
        raise ProfileMismatchError(
            f"token id {documents.tokens[at]} in document {documents.owner[at]}: expected below "
            f"{profile.logits_width}, the profile's width of the logits; encode with the tokenizer of the profile"
        )
    found = documents.without(profile.special_ids)
    if profile.free_start:
        found = found.behind_start(profile.context_width)
    return (unique_in_corpus if corpus else unique_ngrams)(found, width=profile.context_width)


def unique_ngrams(documents: Documents, *, width: int) -> Ngrams:
    """The n-grams of ``width`` context tokens and one token, each once per document, in the order of the text.

    An n-gram that stands in a document's prompt does not count when it comes again after it.
    """
    return _unique(documents, width, owner=documents.owner)


def unique_in_corpus(documents: Documents, *, width: int) -> Ngrams:
    """As ``unique_ngrams``, each n-gram once over all documents; it stays with the document that has it first."""
    return _unique(documents, width, owner=np.zeros(len(documents.tokens), np.int64))


def _unique(documents: Documents, width: int, *, owner: NDArray[np.int64]) -> Ngrams:
    document = documents.owner
    inside = np.zeros(len(document), np.bool_)
    if len(document) <= width:
        none = np.empty(0, np.int64)
        return Ngrams(none.reshape(0, width), none, none, none, documents.offset)
    inside[width:] = document[width:] == document[: len(document) - width]
    for back in range(width + 1):
        inside[width:] &= documents.usable[width - back : len(document) - back]
    place = np.flatnonzero(inside)
    columns = [owner[place], *(documents.tokens[place - back] for back in range(width, -1, -1))]
    first = _first_of_equal(columns)
    first = first[documents.target[place[first]]]
    contexts = (
        np.stack([column[first] for column in columns[1:-1]], 1) if len(first) else np.empty((0, width), np.int64)
    )
    place = place[first]
    return Ngrams(contexts, documents.tokens[place], document[place], place, documents.offset)


def _first_of_equal(columns: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Indices of the first row of each group of equal rows, ascending.

    Rows are sorted by a fingerprint with the index in its low bits; rows that share a fingerprint are compared in
    full, and where a fingerprint lies, its rows are sorted properly. So a collision, even one made on purpose, costs
    time and never a wrong count.
    """
    size = len(columns[0])
    if size == 0:
        return np.empty(0, np.int64)
    low = np.uint64((1 << size.bit_length()) - 1)  # above every index, so no row is all ones
    ordered = _sort_by_owner((_fingerprint(columns) & ~low) | np.arange(size, dtype=np.uint64), columns[0])
    index = (ordered & low).astype(np.int64)
    twin = np.flatnonzero((ordered[1:] ^ ordered[:-1]) <= low) + 1  # same fingerprint as the row before
    keep = np.ones(size, np.bool_)
    keep[twin] = False
    equal = np.ones(len(twin), np.bool_)
    for column in columns:
        equal &= column[index[twin]] == column[index[twin - 1]]
    if not equal.all():
        keep = _settle_collisions(columns, index, keep, twin[~equal])
    first = np.zeros(size, np.bool_)
    first[index[keep]] = True
    return np.flatnonzero(first)


def _sort_by_owner(values: NDArray[np.uint64], owner: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Sort the values of each owner, which stand together; short documents as rows of one array, many times faster."""
    starts = np.flatnonzero(np.diff(owner, prepend=owner[0] - 1))
    lengths = np.diff(starts, append=len(owner))
    if lengths.max() > _SHORT or lengths.max() * len(lengths) > 2 * len(owner):
        return np.sort(values)
    rows = np.full((len(lengths), int(lengths.max())), _PAD)
    inside = np.arange(rows.shape[1]) < lengths[:, None]
    rows[inside] = values
    rows.sort(axis=1)
    return rows[inside]  # the padding sorts behind everything


def _settle_collisions(
    columns: list[NDArray[np.int64]], index: NDArray[np.int64], keep: NDArray[np.bool_], liars: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Sort the rows of every lying fingerprint in full and keep the first of each group of equal rows."""
    group = np.cumsum(keep)
    rows = np.flatnonzero(np.isin(group, group[liars]))
    order = rows[np.lexsort([index[rows], *(column[index[rows]] for column in columns)])]
    fresh = np.ones(len(order), np.bool_)
    same = np.ones(len(order) - 1, np.bool_)
    for column in columns:
        same &= column[index[order[1:]]] == column[index[order[:-1]]]
    fresh[1:] = ~same
    keep = keep.copy()
    keep[order] = fresh
    return keep


def _fingerprint(columns: list[NDArray[np.int64]]) -> NDArray[np.uint64]:
    mixed = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        mixed ^= column.view(np.uint64)
        mixed *= _MIX[0]
        mixed ^= mixed >> _MIX[2]
    mixed *= _MIX[1]
    return mixed


def _within(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each token's place inside its document."""
    starts = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) - np.repeat(starts, lengths)


def _ids(value: ArrayLike, *, dimensions: int) -> NDArray[np.int64]:
    ids: NDArray[Any] = np.asarray(value)
    if ids.size == 0:
        ids = ids.astype(np.int64)
    if ids.ndim != dimensions or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"token ids of shape {ids.shape} and type {ids.dtype}: expected {dimensions}-D whole numbers")
    return ids.astype(np.int64)


def _in_range(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= FILLER):
        raise ValueError(f"token ids from {ids.min()} to {ids.max()}: expected 0 to {FILLER - 1}, 24 bits each")
    return np.ascontiguousarray(ids)


def slice_of(ngrams: Ngrams, chosen: NDArray[np.bool_]) -> Ngrams:
    """Only the chosen n-grams."""
    return Ngrams(
        ngrams.contexts[chosen], ngrams.tokens[chosen], ngrams.document[chosen], ngrams.place[chosen], ngrams.offset
    )


__all__ = ["Documents", "Ids", "Ngrams", "scored_ngrams", "slice_of", "unique_in_corpus", "unique_ngrams"]
