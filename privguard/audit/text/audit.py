# SPDX-License-Identifier: Apache-2.0
"""One audit of a language model, whole: who was in, how far planted secrets stand out, and what comes out verbatim.

Each model sees each text once. Everything else, extraction and exposure included, is worked out from what it said of
the tokens then.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from privguard import _check
from privguard.audit.membership.blind import Blind, blind_baseline
from privguard.audit.membership.verdict import NOT_CLAIMED, AttackResult, Exposed, Leak, weigh
from privguard.audit.text import attacks
from privguard.audit.text.attacks import TokenScores
from privguard.audit.text.extraction import Exposure, exposure, queries_needed
from privguard.audit.text.sources import Source
from privguard.records import Measurement

SAMPLES = (1, 100, 10_000, 1_000_000)  # at the most, after which a text is counted
EVEN = 0.5  # chance with which it then came out
FloatArray = NDArray[np.float64]


@final
@dataclass(frozen=True, kw_only=True)
class Extracted(Measurement):
    """Texts whose second half the model says after the first half.

    ``verbatim`` of ``texts`` by greedy decoding; ``within[i]`` with probability one half among ``samples[i]`` samples
    at temperature 1 ((n, p)-discoverable extraction, Hayes et al. 2025, arXiv:2410.19482).
    """

    texts: int
    verbatim: int
    samples: tuple[int, ...]
    within: tuple[int, ...]


@final
@dataclass(frozen=True, kw_only=True)
class TextAudit(Measurement):
    """Everything that an audit of a language model found, and what it does not claim.

    ``extracted_of_others`` is the same for texts that the model was not trained on: what it says of these it has
    from elsewhere. ``limit`` says how far a leak that was found goes, as no coins chose the members.
    """

    leak: Leak | None
    limit: str | None
    attacks: tuple[AttackResult, ...]
    blind: Blind
    members: int
    non_members: int
    duplicates: int
    target: str
    base: str | None
    exposed: Exposed
    extracted: Extracted
    extracted_of_others: Extracted
    not_claimed: tuple[str, ...] = NOT_CLAIMED
    notes: tuple[str, ...] = ()


def audit_texts(
    target: Source, members: Sequence[str], non_members: Sequence[str], *, base: Source | None = None
) -> TextAudit:
    """Attack a language model with texts that it was trained on and texts that it was not.

    Args:
        target: the model.
        members: texts that it was trained on, at least ten.
        non_members: texts like them that it was not; those that stand among the members too are left out.
        base: the model before fine-tuning, which makes the attacks far stronger.

    Returns:
        Loss, zlib, Min-K%, Min-K%++ and, with a base, reference ratio and windows (WBC), as one test against chance and
        against the blind baseline, and what can be extracted.

    Raises:
        ValueError: too few texts, or one of fewer than two tokens.
    """
    known = set(members)
    others = [text for text in non_members if text not in known]
    texts, inside = [*members, *others], np.arange(len(members) + len(others)) < len(members)
    blind = blind_baseline(texts, inside)
    said = target.scores(texts)
    before = base.scores(texts) if base is not None else None
    weighed = weigh(statistics(said, texts, before), inside, blind)
    return TextAudit(
        leak=weighed.leak,
        limit=weighed.limit,
        attacks=weighed.attacks,
        blind=blind.record,
        members=len(members),
        non_members=len(others),
        duplicates=len(non_members) - len(others),
        target=target.name,
        base=base.name if base is not None else None,
        exposed=weighed.exposed,
        extracted=extracted(said[: len(members)]),
        extracted_of_others=extracted(said[len(members) :]),
        notes=weighed.notes,
    )


def statistics(
    said: Sequence[TokenScores], texts: Sequence[str], before: Sequence[TokenScores] | None = None
) -> dict[str, FloatArray]:
    """One score per text (n,) by attack, larger for a likelier member; those that what was said allows.

    Args:
        said: what the model says of each text, n of them.
        texts: the texts.
        before: what its base says of each.
    """
    scores: Mapping[str, FloatArray] = {
        "loss": attacks.mean_log_probability(said),
        "zlib": attacks.zlib_ratio(said, texts),
        "min-k": attacks.min_k(said),
    }
    found = dict(scores)
    if all(np.isfinite(text.mean).all() for text in said):
        found["min-k++"] = attacks.min_k_plus_plus(said)
    if before is not None:
        lengths = [len(each.observed) for each in said] == [len(each.observed) for each in before]
        _check.require(lengths, "base", "other tokens", wanted="a base that cuts texts into the tokens of the target")
        found["ratio"] = attacks.reference_ratio(said, before)
        found["windows"] = attacks.window_votes(said, before)
    return found


def extracted(said: Sequence[TokenScores]) -> Extracted:
    """How many of the texts come out, from what a model said of their tokens: no further pass is needed.

    Args:
        said: what the model says of each text.
    """
    halves = [len(each.observed) // 2 for each in said]
    verbatim = sum(bool(each.greedy[half:].all()) for each, half in zip(said, halves, strict=True))
    needed = [
        queries_needed(float(each.observed[half:].sum()), chance=EVEN) for each, half in zip(said, halves, strict=True)
    ]
    within = tuple(sum(count <= samples for count in needed) for samples in SAMPLES)
    return Extracted(texts=len(said), verbatim=verbatim, samples=SAMPLES, within=within)


def canary_scores(target: Source, canaries: Sequence[str], *, base: Source | None = None) -> FloatArray:
    """One score per canary (m,): the log-probability of all its tokens, over that of the base where there is one.

    Args:
        target: the model.
        canaries: the texts that coins put in or left out, m of them.
        base: the model before fine-tuning.
    """
    said = np.array([each.observed.sum() for each in target.scores(canaries)])
    return said if base is None else said - np.array([each.observed.sum() for each in base.scores(canaries)])


def exposures(scores: FloatArray, included: NDArray[np.bool_]) -> list[Exposure]:
    """Exposure of each canary that was in among those that coins left out (Carlini et al. 2019), in their order.

    Args:
        scores: one for each canary, (m,).
        included: whether its coin put it in, (m,).
    """
    _check.require(bool((~included).any()), "canaries left out", 0, wanted="at least one, to rank against")
    return [exposure(float(score), scores[~included]) for score in scores[included]]
