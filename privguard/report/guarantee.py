# SPDX-License-Identifier: Apache-2.0
"""The guarantee in sentences: what was spent, what an attacker can gain, what is not covered.

Each sentence follows from the claim and the manifest alone. The attacker's odds come from the definition of
(ε, δ)-differential privacy (Dwork & Roth 2014, 2.3) and its hypothesis-testing form (Kairouz et al. 2015, Theorem 2.1).
"""

import math
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from privguard.records import Claim, Manifest, Relation, Unit

Profile: TypeAlias = "Sequence[tuple[float, float]]"
"""(ε, δ) pairs that all hold for one history."""

_UNITS = {
    Unit.EXAMPLE: (
        "one training example",
        "A person who gave several examples is protected for each of them, not for all at once.",
    ),
    Unit.USER: ("all examples of one person together", "The guarantee covers a person's whole contribution."),
}


def guarantee(claim: Claim) -> str:
    """The claim in one sentence for readers without mathematics: what changes by which factor, with which exception."""
    who, _ = _UNITS[claim.unit]
    act = "adding or removing" if claim.relation is Relation.ADD_OR_REMOVE_ONE else "replacing"
    return (
        f"Whatever this training published, {act} {who} changes the probability of any outcome by a factor of at most "
        f"{factor(claim.epsilon)} (e to the power ε = {upward(claim.epsilon)}), except with probability δ = "
        f"{claim.delta:g}."
    )


def odds(claim: Claim, profile: Profile) -> str:
    """What the guarantee means to an attacker who guesses whether somebody took part."""
    right, found = percent(best_accuracy(profile)), percent(best_tpr(profile, fpr=1e-3))
    return (
        f"An attacker who must decide whether {_UNITS[claim.unit][0]} was used, with even odds beforehand, "
        "is right at most "
        f"{right} of the time. One who accepts a false accusation in a thousand finds at most {found} of "
        "those who took part."
    )


def connection(claim: Claim, profile: Profile) -> str:
    """Why the factor of ``guarantee`` and the share of ``odds`` are one guarantee and not two figures."""
    alone, together = percent(_accuracy(claim.epsilon, claim.delta)), percent(best_accuracy(profile))
    most = factor(claim.epsilon)
    turned = f"A factor of at most {most} turns even odds into at most {most} to 1"
    if alone == together:
        return f"{turned}, which is being right {alone} of the time: the factor and the share say the same."
    return (
        f"{turned}, which alone would let the attacker be right {alone} of the time; but only rare outcomes come near "
        f"that factor, and over all outcomes together the share is at most {together}."
    )


def signed(signer: str | None) -> str:
    """Whether a signature was made beside a page, and with which key; the page itself cannot prove it."""
    if signer is None:
        return "No signature was made with this page, so nobody vouches for it."
    return (
        f"A signature was made beside this page, in report.dsse.json, with the key {signer}. That this line says so "
        "proves nothing, since anybody can write it; only the command privguard report verify proves it."
    )


def reach(claim: Claim) -> str:
    """Whose whole contribution the unit covers."""
    return _UNITS[claim.unit][1]


def best_accuracy(profile: Profile) -> float:
    """Highest chance to be right about one unit's membership when both answers were equally likely before.

    Half of one plus the total variation that (ε, δ) allows: (e^ε + δ) / (1 + e^ε) (Kairouz et al. 2015, Theorem 2.1);
    every pair of the profile bounds it, so the smallest bound holds.
    """
    return min(_accuracy(epsilon, delta) for epsilon, delta in profile)


def best_tpr(profile: Profile, *, fpr: float) -> float:
    """Highest true-positive rate of any membership test at this ``fpr`` (Kairouz et al. 2015, Theorem 2.1)."""
    return min(_tpr(epsilon, delta, fpr) for epsilon, delta in profile)


def trade_off(profile: Profile) -> list[tuple[float, float]]:
    """(false-positive rate, highest true-positive rate) pairs from 1 in 10,000 to 1, evenly on a logarithmic axis.

    No membership test against this history lies above the curve, whatever it knows besides (Kairouz et al. 2015, 2.1).
    """
    if not profile:
        return []
    rates = [10.0 ** (-4 + step / 10) for step in range(40)]
    return [(rate, best_tpr(profile, fpr=rate)) for rate in (*rates, 1.0)]


def _accuracy(epsilon: float, delta: float) -> float:
    shrink = math.exp(-epsilon) if math.isfinite(epsilon) else 0.0
    return min(1.0, (1 + delta * shrink) / (1 + shrink))


def _tpr(epsilon: float, delta: float, fpr: float) -> float:
    if epsilon > 700:  # noqa: PLR2004 — e⁷⁰⁰ is still a double
        return 1.0
    growth = math.exp(epsilon)
    return min(1.0, growth * fpr + delta, 1 - (1 - delta - fpr) / growth)


def not_covered(manifest: Manifest) -> Iterator[str]:
    """What the claim says nothing about, whatever its number."""
    yield "The choice of hyper-parameters: runs made to find them on the same data spend budget of their own."
    yield (
        "Evaluation and selection on other people's records, such as a validation set: those records are not protected."
    )
    yield "Preprocessing, vocabulary, augmentation and pre-trained weights that were made from the same data."
    yield (
        "Whoever can read the training machine's memory, or open the checkpoints: training state is protected "
        "by keys, not by ε."
    )
    yield "What is true of the population: the model may teach it about a person who never took part."
    if manifest.data.get("examples") is None:
        yield "Nothing here says how many records there were; the denominator and the rate are constants of the plan."
    else:
        yield f"The size of the data set, {manifest.data['examples']:,}, is treated as public."


def assumptions(manifest: Manifest, unchecked: Sequence[str] = ()) -> Iterator[str]:
    """What the claim rests on and no part of this report has checked; ``unchecked`` is what the training left open."""
    yield from manifest.unchecked
    yield from unchecked
    yield (
        "Each record of the data set belongs to one unit of privacy, and what the data set gives for a record is made "
        "from that record alone."
    )
    yield from _arithmetic(manifest)
    yield "The operating system's entropy and the ciphers that expand it (AES-256, ChaCha20) are sound."
    yield "The shapes and types of the records, such as image size or padded length, are public."
    yield f"Each loss depends on its own example only. {_probe(manifest.probe)}"
    delta, examples = manifest.plan["delta"], manifest.data.get("examples")
    if examples and delta >= 1 / examples:
        yield (
            f"δ = {delta:g} is not below 1/{examples:,}: publishing one whole record at random would be within "
            "this δ. Choose a smaller one."
        )


def _shape_term(measured: float | None) -> str:
    """By how much that assumption was seen to fail, as a share of a record's norm."""
    if measured is None:
        return "By how much its last bits depend on the batch's shape was not measured."
    if measured == 0:
        return "No dependence on the batch's shape was seen."
    return (
        f"Kernels are chosen by the batch's shape: on this device and in these types a synthetic record's gradient "
        f"changed by up to {measured:.1e} of its norm between batches of 5, 3 and 1."
    )


def _arithmetic(manifest: Manifest) -> Iterator[str]:
    """What the proof of the sum's sensitivity, and of the noise, takes for granted."""
    facts = manifest.mechanism
    sensitivity = facts["sensitivity"] / manifest.plan["max_grad_norm"]
    yield (
        f"One record moves the sum by at most {sensitivity:.5f} clipping norms, all rounding included; this is proved "
        f"({facts['specification']}) given each record's own gradient, and given that float32 errs on a Gram matrix no "
        "more than the worst that the tests could provoke. The noise is scaled to it."
    )
    yield f"A record's own gradient is the same whichever batch it is computed in. {_shape_term(facts['shape_term'])}"
    if facts["noise"] == "exact":
        yield (
            "Logarithm, sine and cosine in float64 are within 4 units in the last place; the tests measure them. Then "
            "the noise is the rounded Gaussian exactly, and attacks on floating-point noise (Mironov 2012) find none."
        )


def _probe(probed: str) -> str:
    """Whether anything looked for leaks between examples; a run says ``nothing: why`` where nothing could."""
    missing, _, why = probed.partition("nothing: ")
    if not missing and why:
        return f"Nothing looked for leaks between examples before the first step: {why}."
    return f"Before the first step a probe on synthetic records found no leak between examples; it covered {probed}."


def factor(epsilon: float) -> str:
    """``e^epsilon``, rounded up to three figures."""
    if epsilon > 20:  # noqa: PLR2004 — beyond this a factor is no comfort to anybody
        return "more than 400 million"
    value = math.exp(epsilon)
    digits = max(0, 2 - math.floor(math.log10(value)))
    return f"{math.ceil(value * 10**digits) / 10**digits:,.{digits}f}"


def upward(epsilon: float) -> str:
    """Three decimals, rounded up; a printed ε is never below the computed one."""
    return f"{math.ceil(epsilon * 1000) / 1000:.3f}" if math.isfinite(epsilon) else "∞"


def downward(epsilon: float) -> str:
    """Three decimals, rounded down; a printed lower bound is never above the computed one."""
    return f"{math.floor(epsilon * 1000) / 1000:.3f}" if math.isfinite(epsilon) else "∞"


def percent(share: float) -> str:
    """A share as per cent, rounded up to one decimal; the sign stays on the number's line."""
    return f"{math.ceil(share * 1000) / 10:.1f}\N{NO-BREAK SPACE}%"
