# SPDX-License-Identifier: Apache-2.0
"""Whether a scheme of a text mark keeps its null, writes without distortion, and is found again."""

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from privguard.testing.promise import FALSE_ALARMS, law_holds, promise
from privguard.watermark.secret import Secret
from privguard.watermark.text.profile import Profile
from privguard.watermark.text.reading.detect import Detector
from privguard.watermark.text.reading.ngrams import Documents
from privguard.watermark.text.scheme import TextScheme
from privguard.watermark.text.writing.host import chooser_of

_SECRETS, _NGRAMS, _WIDTH, _TOKENS = 1_000, 64, 128, 200


def check_text_scheme(scheme: TextScheme) -> None:
    """Read text that nobody marked under many secrets, then write marked text and read that.

    Args:
        scheme: a scheme that ``register_scheme`` has entered, or one of
            privguard's own without a message.

    Raises:
        AssertionError: it does not come back from a profile, its null does not hold, its tokens do not have their
            softmax probabilities over secrets, or 200 tokens without any preference are not found at p = 10⁻⁶.
    """
    profile = _profile(scheme, Secret(bytes(32)))
    promise(Profile.from_json(profile.to_json()) == profile, f"{scheme.name}: comes back from the profile as it was")
    _check_null(scheme)
    if scheme.samples:
        _check_distribution(scheme)
        _check_power(scheme)


def _profile(scheme: TextScheme, secret: Secret) -> Profile:
    fields = {"vocabulary": "conformance", "logits_width": _WIDTH, "subkeys": 1, "free_start": False}
    return Profile(scheme=scheme, key_id=secret.key_id, **fields)  # pyright: ignore[reportArgumentType]


def _secrets(purpose: str) -> list[Secret]:
    owner = Secret(bytes(range(32)))
    return [owner.child("conformance", purpose, number) for number in range(_SECRETS)]


def _check_null(scheme: TextScheme) -> None:
    """Sums over distinct n-grams under secrets that had no part in them."""
    random = np.random.default_rng(1)
    contexts, tokens = random.integers(0, _WIDTH, (_NGRAMS, 4)), np.arange(_NGRAMS)
    sums = np.empty(_SECRETS)
    for row, secret in enumerate(_secrets("null")):
        stream = _profile(scheme, secret).stream(secret, subkey=0)
        words = scheme.lookup(contexts, tokens, block_bytes=stream.block_bytes).read(stream)
        scores = scheme.scores(words)
        promise(scores.shape == (_NGRAMS,), f"{scheme.name}: one score for each n-gram; got {scores.shape}")
        sums[row] = scores.sum()
    null = scheme.null
    law_holds(null.log10_tail(sums, _NGRAMS), null.log10_e(sums, _NGRAMS), scheme.name)


def _check_distribution(scheme: TextScheme) -> None:
    """The chosen token of one context over secrets, against the softmax."""
    random, choose = np.random.default_rng(2), chooser_of(scheme)
    row = random.normal(0, 1, 8).astype(np.float32)
    context = random.integers(0, 8, (1, 4))
    chosen: list[int] = []
    for secret in _secrets("distribution"):
        stream = _profile(scheme, secret).stream(secret, subkey=0)
        chosen.append(choose(row.copy(), stream, context, chance=random.random(3)))
    expected = special.softmax(row.astype(np.float64)) * _SECRETS
    p = float(stats.chisquare(np.bincount(chosen, minlength=8), expected).pvalue)
    promise(p > FALSE_ALARMS, f"{scheme.name}: each token has its softmax probability over secrets; p = {p:.1g}")


def _check_power(scheme: TextScheme) -> None:
    secret = Secret(bytes(range(1, 33)))
    profile = _profile(scheme, secret)
    found = Detector(profile, secret).detect(Documents.of_lists([_written(scheme, profile, secret)]))
    sign = float(found.log10_p[0])
    promise(sign <= np.log10(FALSE_ALARMS), f"{scheme.name}: {_TOKENS} marked tokens are found; p = 10^{sign:.1f}")


def _written(scheme: TextScheme, profile: Profile, secret: Secret) -> NDArray[np.int64]:
    """Tokens that a model without any preference would write under the mark."""
    random, choose, stream = np.random.default_rng(3), chooser_of(scheme), profile.stream(secret, subkey=0)
    ids = random.integers(0, _WIDTH, 4).tolist()
    for _ in range(_TOKENS):
        row = np.zeros(_WIDTH, np.float32)
        ids.append(choose(row, stream, np.array([ids[-4:]]), chance=random.random(3)))
    return np.array(ids)
