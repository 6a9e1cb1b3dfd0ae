# SPDX-License-Identifier: Apache-2.0
"""Radioactivity: was a model trained on text that carries our mark?

A model that learnt from marked text prefers marked n-grams itself (Sander et al. 2024, "Watermarking makes language
models radioactive"). With open access we read texts to the suspect and look at its own next-token predictions; with
closed access we look at what it writes. Each n-gram counts once over everything that was read or written, and none
that the suspect could have copied from what stood before it, so the null is exact: a model that never saw the mark
predicts tokens independently of the secret.

The verdict adds up the scores of all sub-keys, because marked training text uses them all alike; a corpus that is
meant to be radioactive is best written under few sub-keys and a short context.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from privguard import _check
from privguard.errors import ProfileMismatchError
from privguard.records import Verdict
from privguard.watermark.secret import Secret
from privguard.watermark.statistics.null import verdict
from privguard.watermark.text.profile import Profile
from privguard.watermark.text.reading.detect import Detector
from privguard.watermark.text.reading.ngrams import Documents, Ngrams, scored_ngrams

NOTES = (
    "A small p-value says that the model learnt from text under this key, at first hand or through another model.",
    "A large p-value does not say that it did not: too little such text, low entropy or paraphrase leave no trace.",
)


def closed_access(profile: Profile, secret: Secret, documents: Documents) -> Verdict:
    """Verdict on texts that the suspect wrote; give its prompts as prompts, so that what it quotes never counts.

    Args:
        profile: the signed profile.
        secret: the profile's secret.
        documents: texts that the suspect wrote, with its prompts as prompts.

    Raises:
        ProfileMismatchError: the secret is not the profile's.
    """
    ngrams = scored_ngrams(profile, documents, corpus=True)
    return _judge(profile, secret, ngrams, access="closed")


def open_access(
    profile: Profile, secret: Secret, documents: Sequence[ArrayLike], *, predictions: Sequence[ArrayLike]
) -> Verdict:
    """Verdict on a suspect's own predictions: ``predictions[d][i]`` is its likeliest token after ``documents[d][:i]``.

    The documents may be marked or not; most evidence is in marked texts like those that it may have learnt from.
    Predictions that complete an n-gram standing earlier in the same document are left out: the suspect may just repeat
    it. ``predict`` makes the predictions of a transformers model.

    Guarantee: the p-value is exact where the documents were written without the secret. In marked documents each
    prediction is still made before its own token is seen, but which predictions follow can depend on how earlier ones
    scored, since a marked token leads to the next context. So show unmarked documents where the figure has to stand.

    Args:
        profile: the signed profile.
        secret: the profile's secret.
        documents: token ids of texts, one array each.
        predictions: token ids, one array for each document and of its length.

    Raises:
        ValueError: a document and its predictions differ in length.
        ProfileMismatchError: the secret is not the profile's, or an id lies beyond the profile's width.
    """
    rows: list[NDArray[np.int64]] = []
    width, special = profile.context_width, set(profile.special_ids)
    seen: set[tuple[int, ...]] = set()
    for document, predicted in zip(documents, predictions, strict=True):
        text, guess = np.asarray(document, np.int64).tolist(), np.asarray(predicted, np.int64).tolist()
        _check.require(len(text) == len(guess), "len(predictions)", len(guess), wanted=f"{len(text)}, as the document")
        before: set[tuple[int, ...]] = set()
        for i in range(width, len(text)):
            gram = (*text[i - width : i], guess[i])
            if gram not in before and gram not in seen and not special.intersection(gram):
                seen.add(gram)
                rows.append(np.array(gram, np.int64))
            before.add(tuple(text[i - width : i + 1]))
    grams = np.array(rows, np.int64).reshape(-1, width + 1)
    largest = int(grams.max(initial=0))
    if largest >= profile.logits_width:
        raise ProfileMismatchError(f"token id {largest}: expected below {profile.logits_width}, the profile's width")
    zeros = np.zeros(len(grams), np.int64)
    return _judge(
        profile,
        secret,
        Ngrams(
            grams[:, :-1],
            grams[:, -1],
            zeros,
            np.arange(len(grams)),
            zeros[:1] if len(zeros) else np.zeros(1, np.int64),
        ),
        access="open",
    )


def predict(model: Any, documents: Sequence[ArrayLike]) -> list[NDArray[np.int64]]:
    """The likeliest next tokens of a causal transformers model, aligned as ``open_access`` wants them.

    Args:
        model: a causal language model of transformers.
        documents: token ids of texts, one array each.
    """
    import torch

    out: list[NDArray[np.int64]] = []
    with torch.no_grad():
        for document in documents:
            ids = torch.from_numpy(np.asarray(document, np.int64))[None].to(model.device)
            likeliest = model(ids).logits[0].argmax(-1).cpu().numpy()
            out.append(np.concatenate([[0], likeliest[:-1]]))  # nothing is predicted before the first token
    return out


def _judge(profile: Profile, secret: Secret, ngrams: Ngrams, *, access: str) -> Verdict:
    scores = Detector(profile, secret).scores(ngrams)
    return verdict(
        profile.scheme.null,
        scheme=f"text/{profile.scheme.name}/radioactivity",
        score=float(scores.sum()),
        trials=int(scores.size),
        details={"access": access, "unique_ngrams": len(ngrams), "subkeys": len(scores), "profile": profile.digest()},
        notes=NOTES,
    )
