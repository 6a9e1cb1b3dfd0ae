# SPDX-License-Identifier: Apache-2.0
"""Reading a payload: every message is tried, the best one is given with the confidence of each of its bits.

Under message piece m, token t of a context has word (t + m) mod R of that context's stream, so one stream holds the
evidence for all 2^16 values of a piece side by side. The p-value of "some message is in here" pays for all of them.
"""

import math
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray
from scipy import special

from privguard import _check
from privguard.errors import MarkError
from privguard.records import Record, Verdict
from privguard.watermark.secret import Secret
from privguard.watermark.statistics import tails
from privguard.watermark.statistics.tails import Floats
from privguard.watermark.text.prf.streams import ContextStream
from privguard.watermark.text.profile import Profile, rotation
from privguard.watermark.text.reading.detect import NOTES
from privguard.watermark.text.reading.ngrams import Documents, Ngrams, scored_ngrams, slice_of
from privguard.watermark.text.scheme import Payload, exponential
from privguard.watermark.text.writing import host

_TILTS = np.array([0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8])
_BATCH = 8  # contexts whose streams are held at once


@final
@dataclass(frozen=True, kw_only=True)
class Message(Record):
    """The likeliest message of a document.

    ``confidence`` holds, for each bit from the lowest, the posterior probability that it is right, given that some
    message is there, every message was equally likely, and every token carries the same unknown evidence. ``verdict``
    says whether anything is there at all: its p-value pays for all 2^bits messages and all sub-keys.
    """

    value: int
    bits: int
    confidence: tuple[float, ...]
    verdict: Verdict


def read(profile: Profile, secret: Secret, documents: Documents, *, user: str | None = None) -> list[Message]:
    """The likeliest message of each document.

    Args:
        profile: a profile with a payload.
        secret: the profile's secret.
        documents: token ids of all documents.
        user: for whom the text was written; None where users are not traced.

    Raises:
        MarkError: the profile carries no payload.
        ProfileMismatchError: the secret is not the profile's.
    """
    scheme = _scheme(profile)
    ngrams = scored_ngrams(profile, documents)
    streams = [profile.stream(secret, subkey=j, user=user) for j in range(profile.subkeys)]
    out: list[Message] = []
    for document in range(ngrams.documents):
        own = slice_of(ngrams, ngrams.document == document)
        tables = [_tables(profile, stream, own) for stream in streams]
        best = max(range(len(streams)), key=lambda j: sum(scores.max() for scores, _ in tables[j]))
        out.append(_message(profile, scheme, tables[best], subkey=best))
    return out


def expect(
    profile: Profile, secret: Secret, documents: Documents, *, message: int, user: str | None = None
) -> list[Verdict]:
    """The exact verdict on one message that was named before looking; only the sub-keys are paid for.

    The null is "nobody with the secret wrote this". Text that carries another message refutes it too where the two
    share a 16-bit piece: to tell messages apart, compare with ``read``.

    Args:
        profile: a profile with a payload.
        secret: the profile's secret.
        documents: token ids of all documents.
        message: the message in question, a number of the profile's bits.
        user: for whom the text was written; None where users are not traced.
    """
    scheme = _scheme(profile)
    _check.require(0 <= message < 1 << scheme.bits, "message", message, wanted=f"a number of {scheme.bits} bits")
    ngrams = scored_ngrams(profile, documents)
    out: list[Verdict] = []
    for document in range(ngrams.documents):
        own = slice_of(ngrams, ngrams.document == document)
        scores: list[float] = []
        for subkey in range(profile.subkeys):
            tables = _tables(profile, profile.stream(secret, subkey=subkey, user=user), own)
            scores.append(
                sum(float(t[(message >> (Payload.PIECE * i)) & (len(t) - 1)]) for i, (t, _) in enumerate(tables))
            )
        out.append(_verdict(profile, max(scores), len(own), messages=1, subkey=int(np.argmax(scores))))
    return out


def _tables(profile: Profile, stream: ContextStream, ngrams: Ngrams) -> list[tuple[Floats, int]]:
    """For each piece the summed score of every value, (2^bits,), and how many n-grams it comes from."""
    pieces, modulus = _scheme(profile).pieces, rotation(profile)
    piece = _piece(stream, ngrams, len(pieces))
    out: list[tuple[Floats, int]] = []
    for number, bits in enumerate(pieces):
        rows, table = np.flatnonzero(piece == number), np.zeros(1 << bits)
        turn = np.arange(1 << bits)
        for start in range(0, len(rows), _BATCH):
            some = rows[start : start + _BATCH]
            words = stream.vocabulary(ngrams.contexts[some], 4 * modulus).view(np.uint32)
            at = (ngrams.tokens[some, None] + turn) % modulus
            table += exponential(np.take_along_axis(words, at, 1)).sum(0)
        out.append((table, len(rows)))
    return out


def _piece(stream: ContextStream, ngrams: Ngrams, pieces: int) -> NDArray[np.int64]:
    if pieces == 1 or not len(ngrams):
        return np.zeros(len(ngrams), np.int64)
    return (host.selector_words(stream, ngrams.contexts) % np.uint32(pieces)).astype(np.int64)


def _message(profile: Profile, scheme: Payload, tables: list[tuple[Floats, int]], *, subkey: int) -> Message:
    value, confidence = 0, []
    for number, (table, count) in enumerate(tables):
        best = int(table.argmax())
        value |= best << (Payload.PIECE * number)
        confidence += _confidence(table, count, best)
    score, trials = sum(float(t.max()) for t, _ in tables), sum(n for _, n in tables)
    verdict = _verdict(profile, score, trials, messages=1 << scheme.bits, subkey=subkey)
    return Message(value=value, bits=scheme.bits, confidence=tuple(confidence), verdict=verdict)


def _confidence(table: Floats, count: int, best: int) -> list[float]:
    """Posterior probability of each bit of ``best`` under a uniform prior and exponential tilts averaged per value."""
    tilted = table[:, None] * _TILTS + count * np.log1p(-_TILTS)
    evidence: Floats = np.asarray(special.logsumexp(tilted, axis=1))
    weight = np.exp(evidence - evidence.max())
    bits = int(math.log2(len(table)))
    same = [((np.arange(len(table)) >> i) & 1) == ((best >> i) & 1) for i in range(bits)]
    return [float(weight[agrees].sum() / weight.sum()) for agrees in same]


def _verdict(profile: Profile, score: float, trials: int, *, messages: int, subkey: int) -> Verdict:
    null = profile.scheme.null
    tests = messages * profile.subkeys
    return Verdict(
        scheme=f"text/{profile.scheme.name}",
        null_model=f"text written without the secret; per unique n-gram and message: {null.sentence}",
        log10_p=float(tails.bonferroni(null.log10_tail(score, trials), tests)),
        trials=trials,
        matches=score,
        bound="exact" if tests == 1 else "bonferroni over messages and sub-keys",
        details={"profile": profile.digest(), "key_id": profile.key_id, "tests_paid_for": tests, "subkey": subkey},
        notes=NOTES,
    )


def _scheme(profile: Profile) -> Payload:
    if not isinstance(profile.scheme, Payload):
        raise MarkError(f"profile: scheme {profile.scheme.name} carries no payload; use Detector")
    return profile.scheme
