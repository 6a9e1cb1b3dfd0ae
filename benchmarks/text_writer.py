# SPDX-License-Identifier: Apache-2.0
"""The writer of the text benchmarks: the product's own choosers over rows of logits, under one fixed secret."""

from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.text_corpus import WIDTH
from privguard.watermark.secret import Secret
from privguard.watermark.text.prf.streams import ContextStream
from privguard.watermark.text.profile import Profile
from privguard.watermark.text.scheme import GreenList, Scheme, Tournament
from privguard.watermark.text.writing import device, host

SECRET = Secret(bytes(range(32)))


def profile_of(scheme: Scheme, *, width: int = 4, subkeys: int = 1, logits_width: int = WIDTH) -> Profile:
    """A profile of the fixed secret; ``width`` is that of the context."""
    return Profile(
        scheme=scheme,
        key_id=SECRET.key_id,
        vocabulary="synthetic",
        logits_width=logits_width,
        context_width=width,
        subkeys=subkeys,
    )


def choose(profile: Profile, streams: Sequence[ContextStream], logits: np.ndarray, contexts: np.ndarray) -> np.ndarray:
    """One marked token for each row of logits, by the torch chooser."""
    scores = torch.from_numpy(logits)
    if isinstance(profile.scheme, GreenList):
        raised = device.raise_green(scores, contexts, list(streams), scheme=profile.scheme)
        return torch.multinomial(torch.softmax(raised, -1), 1)[:, 0].numpy()
    none = np.zeros(len(logits), np.bool_)
    return device.choose(scores, contexts, list(streams), profile=profile, repeated=none).numpy()


def choose_on_host(
    profile: Profile,
    streams: Sequence[ContextStream],
    logits: np.ndarray,
    contexts: np.ndarray,
    *,
    rng: np.random.Generator,
) -> np.ndarray:
    """As :func:`choose`, by the chooser that works on one row at a time."""
    scheme = profile.scheme
    pick = host.PickTournament(scheme) if isinstance(scheme, Tournament) else host.PickGumbel()
    rows = zip(logits, streams, contexts, rng.random((len(logits), 3)), strict=True)
    return np.array([pick(row, stream, context[None], chance=chance) for row, stream, context, chance in rows])
