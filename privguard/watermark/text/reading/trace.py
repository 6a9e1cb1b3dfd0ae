# SPDX-License-Identifier: Apache-2.0
"""Tracing: which of N users was a text written for, with a family-wise error over all users.

Each user writes under keys of their own, so for everybody else the text is a text without a mark, and a false
accusation anywhere costs a factor N of the p-value and nothing more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from privguard import _check
from privguard.records import Verdict
from privguard.watermark.secret import Secret
from privguard.watermark.text.profile import Profile
from privguard.watermark.text.reading.detect import Detector
from privguard.watermark.text.reading.ngrams import Documents, scored_ngrams, slice_of


@final
@dataclass(frozen=True)
class Trace:
    """The likeliest user of one document; ``verdict`` pays for all users, ``runner_up_log10_p`` belongs to the second.

    ``user`` is a name to look at, not an accusation: compare ``verdict.log10_p_corrected`` with a level chosen
    beforehand.
    """

    user: str
    verdict: Verdict
    runner_up_log10_p: float


def trace(profile: Profile, secret: Secret, documents: Documents, *, users: Sequence[str]) -> list[Trace]:
    """Test every document against every user's keys.

    Guarantee: for a document written for none of them, P(any user's corrected p ≤ α) ≤ α.

    Args:
        profile: the signed profile.
        secret: the profile's secret.
        documents: token ids of all documents.
        users: everybody who is asked about, each once.

    Raises:
        ValueError: no users, or one twice.
        ProfileMismatchError: the secret is not the profile's.
    """
    _check.require(len(users) > 0 and len(set(users)) == len(users), "users", len(users), wanted="distinct names")
    ngrams = scored_ngrams(profile, documents)
    lookup, rows = Detector(profile, secret).lookup(ngrams), np.arange(ngrams.documents)
    log10_p = np.zeros((2, ngrams.documents))  # of the best user so far and of the second
    number = np.zeros(ngrams.documents, np.int64)
    for place, user in enumerate(users):
        found = Detector(profile, secret, user=user).best(ngrams, lookup=lookup)
        better = found < log10_p[0]
        log10_p[1] = np.where(better, log10_p[0], np.minimum(log10_p[1], found))
        log10_p[0], number = np.where(better, found, log10_p[0]), np.where(better, place, number)
    out: list[Trace] = []
    for row in rows.tolist():
        user = users[int(number[row])]
        own = slice_of(ngrams, ngrams.document == row).only(row)
        told = Detector(profile, secret, user=user).judge(own).verdict(0, tests=len(users))
        out.append(Trace(user, told, float(log10_p[1, row])))
    return out
