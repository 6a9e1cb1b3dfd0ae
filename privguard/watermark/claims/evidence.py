# SPDX-License-Identifier: Apache-2.0
"""Evidence: one signed file from which anybody, without secrets and offline, gets the verdict again.

``assemble`` is the verifier's last act, ``verify`` everybody else's only one. The outcome is *proven*, *not
proven* or *protocol invalid*; there is no "not stolen", because a mark that cannot be read proves nothing.
Format: ``docs/spec/claim-v1.md``, sections 6 to 8.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, final

import numpy as np

from privguard import _canon, _check
from privguard.attest import log, statement
from privguard.attest.log import Extract
from privguard.attest.statement import Envelope, Identity, SigningKey, Statement
from privguard.errors import ProtocolInvalidError, TamperedError
from privguard.records import Digest, Measurement, Verdict
from privguard.watermark.claims import commitment as claim
from privguard.watermark.claims import kinds, predicate
from privguard.watermark.claims.challenge import (
    ChallengePlan,
    Transcript,
    burned_leaves,
    check_openings,
    query_digest,
)
from privguard.watermark.claims.commitment import UNLOGGED, Commitment, MarkPlan, Standing, Trust
from privguard.watermark.claims.leaf import Leaf, Opening
from privguard.watermark.claims.predicate import Findings
from privguard.watermark.model import fingerprints as _fingerprints  # noqa: F401  # pyright: ignore[reportUnusedImport] — enters its kind
from privguard.watermark.model import triggers, weights
from privguard.watermark.model.weights import Reading
from privguard.watermark.statistics import tails

EVIDENCE_TYPE = statement.PREDICATES + "mark-evidence/v1"
DECOYS = 999

SELF_VERIFIED = "verifier: the owner, with the same key; nobody else has seen the suspect's answers or weights"


class Outcome(StrEnum):
    """How a claim ends: proven at its level, not proven, or without a verdict, since the protocol was not kept."""

    PROVEN = "proven"
    NOT_PROVEN = "not proven"
    PROTOCOL_INVALID = "protocol invalid"


@final
@dataclass(frozen=True, kw_only=True)
class Report(Measurement):
    """The verdict on one claim against one suspect.

    ``log10_p`` is of all committed marks together: the smallest, times the ways in which they can be read (triggers and
    fingerprints with a label map and without, weights in one). ``multiplicity`` is k(k−1) where
    this challenge is the owner's k-th entry in the log (2⁴⁰ where no trusted log counts), times the beacons that the
    reader trusts, since the owner may take the pulse of any, times the models that the reader says the owner may have
    looked through. *Proven* means that ``log10_p_corrected`` is at most ``log10_level``.
    ``decoy_rank`` gives, by mark, the rank of the true labels among 999 decoys and itself.
    """

    outcome: Outcome
    reason: str
    claim: str = ""
    owner: str = ""
    verifier: str = ""
    suspect: Digest | None = None
    unmarked: Digest | None = None
    committed: str = ""
    pulse: str = ""
    verdicts: tuple[Verdict, ...] = ()
    log10_p: float = 0.0
    log10_e: float = 0.0
    multiplicity: float = UNLOGGED
    log10_level: float = -6.0
    queries: int = 0
    decoy_rank: Mapping[str, int] = field(default_factory=dict[str, int])
    controls: Mapping[str, Mapping[str, int]] = field(default_factory=dict[str, Mapping[str, int]])
    transcript: str = ""
    basis: tuple[str, ...] = ()

    @property
    def log10_p_corrected(self) -> float:
        """``log10_p`` after Bonferroni over ``multiplicity`` tests, at most 0."""
        return min(0.0, self.log10_p + math.log10(self.multiplicity))


def assemble(
    commitment: Commitment,
    *,
    plan: ChallengePlan,
    openings: Sequence[Opening],
    findings: Findings,
    by: SigningKey,
    extract: Extract | None = None,
) -> Envelope:
    """Everything in one statement about the suspect, signed by the verifier.

    Args:
        commitment: the owner's commitment.
        plan: the plan of the challenge.
        openings: the opened leaves.
        findings: answers, readings and controls.
        by: the verifier's signing key.
        extract: the log up to the challenge; None where no log counts.
    """
    body = predicate.write(commitment, plan, openings, findings, extract=extract, verifier=by.identity)
    said = Statement(subjects=(plan.suspect,), predicate_type=EVIDENCE_TYPE, predicate=body)
    return statement.sign(said, by=by)


def verify(evidence: Envelope, *, trust: Trust, suspect: Digest | None = None, candidates: int = 1) -> Report:
    """The verdict, from the file and the reader's own trust alone.

    ``suspect`` is the model that the reader has in mind; evidence about another one is invalid here. ``candidates`` is
    how many models the owner may have tried the secret on before naming this one, which no log can count: 1 where the
    suspicion has another source, the size of the collection where a collection was searched. Never raises for what is
    wrong with the evidence: that is the outcome *protocol invalid*, with the reason.

    Args:
        evidence: the signed file.
        trust: authorities, beacons, verifiers and the log that the reader believes.
        suspect: digest of the model in question; None for the one that the evidence names.
        candidates: how many models the owner may have looked through, at least 1.

    Raises:
        ValueError: ``candidates`` is below 1.
    """
    _check.count("candidates", candidates)
    try:
        said, verifier = statement.verify_any(evidence, by=trust.verifiers)
        _check_form(said, evidence, verifier)
        return _judge(said, verifier, trust, suspect, candidates)
    except (TamperedError, ProtocolInvalidError) as error:
        return Report(outcome=Outcome.PROTOCOL_INVALID, reason=str(error))
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        MemoryError,
        RecursionError,
    ) as error:  # settings that the accuser wrote, or a kind of mark that cannot read them
        return Report(outcome=Outcome.PROTOCOL_INVALID, reason=f"evidence: settings that make no mark ({error})")


def _check_form(said: Statement, evidence: Envelope, verifier: Identity) -> None:
    """Refuse what ``assemble`` would not have written, byte for byte, before anything in it is weighed.

    Duplicate keys, other spellings of a number, fields that nobody reads and types that would have to be guessed: each
    lets two readers of one signed file see different things.
    """
    if said.predicate_type != EVIDENCE_TYPE:
        raise ProtocolInvalidError(f"predicateType={said.predicate_type!r}: expected {EVIDENCE_TYPE}")
    commitment, plan, openings, findings, extract = predicate.read(said.predicate)
    body = predicate.write(commitment, plan, openings, findings, extract=extract, verifier=verifier)
    again = Statement(subjects=(plan.suspect,), predicate_type=EVIDENCE_TYPE, predicate=body)
    if _canon.canonical(again.to_json()) != evidence.payload:
        raise ProtocolInvalidError("evidence: signed, but not in the one canonical form (RFC 8785) of claim v1")


def _judge(said: Statement, verifier: Identity, trust: Trust, suspect: Digest | None, candidates: int) -> Report:
    """The verdict on a signed statement; what is wrong with it is raised, and ``verify`` says so in the report."""
    commitment, plan, openings, findings, extract = predicate.read(said.predicate)
    named = {plan.suspect.sha256, said.subjects[0].sha256} | ({suspect.sha256} if suspect is not None else set())
    if len(named) > 1:
        raise ProtocolInvalidError(f"suspect: the evidence is about {plan.suspect.sha256[:16]}…, another model")
    standing = claim.check(commitment, trust=trust)
    if plan.claim != standing.digest:
        raise ProtocolInvalidError("plan: drawn for another claim; evidence cannot be reused")
    multiplicity = candidates * len(trust.beacons) * _count(standing, plan, extract, trust)
    leaves = check_openings(standing.manifest, plan, openings)
    _check_transcript(plan, leaves, findings.transcript, standing)
    _check_readings(standing, leaves, findings.readings)
    verdicts = tuple(_for_map(_verdict(standing, name, leaves[name], findings), plan) for name in plan.asked)
    decoys = {name: _decoy_rank(standing, name, leaves[name], findings) for name in plan.asked}
    together, log10_e = _together(standing, verdicts)
    level, needed = standing.manifest.log10_level, together + math.log10(multiplicity)
    proven = needed <= level
    relation = "at most" if proven else "above"
    own = "; the owner verified this claim, with the key that made it" if verifier == standing.manifest.owner else ""
    return Report(
        outcome=Outcome.PROVEN if proven else Outcome.NOT_PROVEN,
        reason=f"p × multiplicity = 10^{min(0.0, needed):.1f}, {relation} 10^{level:g}" + own,
        claim=standing.digest,
        owner=str(standing.manifest.owner),
        verifier=str(verifier),
        suspect=plan.suspect,
        unmarked=standing.manifest.model,
        committed=standing.stamped.isoformat(),
        pulse=standing.pulse.time.isoformat(),
        verdicts=verdicts,
        log10_p=together,
        log10_e=log10_e,
        multiplicity=multiplicity,
        log10_level=level,
        queries=len(findings.transcript.answers),
        decoy_rank={name: rank for name, rank in decoys.items() if rank is not None},
        controls=findings.controls,
        transcript=findings.transcript.head,
        basis=(*standing.basis, SELF_VERIFIED) if own else standing.basis,
    )


def _together(standing: Standing, verdicts: Sequence[Verdict]) -> tuple[float, float]:
    """log10 p and log10 e of all committed marks together: the best verdict, paying for every way of reading a mark."""
    readings = max(1, sum(kinds.readings(mark.kind) for mark in standing.manifest.marks))
    best = min((verdict.log10_p for verdict in verdicts), default=0.0)
    log10_e = max((verdict.log10_e or 0.0 for verdict in verdicts), default=0.0) - math.log10(readings)
    return float(tails.bonferroni(best, readings)), log10_e


def _count(standing: Standing, plan: ChallengePlan, extract: Extract | None, trust: Trust) -> float:
    """What this challenge pays for, the owner's k-th entry: k(k−1); refuses a challenge of leaves burned before.

    Challenges come one after another and nobody knows how many there will be. Since Σ 1/(k(k−1)) over k ≥ 2 is 1, all
    that an owner ever makes err together with at most the stated chance; paying k each would let that grow with ln k.
    Later entries change nothing, so it does not matter which head of the log is shown.
    """
    if extract is None or trust.log is None or not standing.logged:
        return UNLOGGED
    owner = standing.manifest.owner.key_id
    entries = log.verify(extract, log=trust.log)
    if not any(entry.kind == "commitment" and entry.digest == standing.digest for entry in entries):
        raise ProtocolInvalidError("log: the commitment is not in it")
    own = plan.entry(owner)
    places = [place for place, entry in enumerate(entries) if entry.leaf() == own.leaf()]
    if not places:
        raise ProtocolInvalidError("log: this challenge is not in it, so it was not announced before it was run")
    asked = {(name, index) for name, indices in plan.asked.items() for index in indices}
    if asked & burned_leaves(entries[: places[0]], claim=standing.digest):
        raise ProtocolInvalidError("plan: asks for leaves that an earlier challenge has opened; they are public")
    own_number = sum(entry.identity == owner for entry in entries[: places[0] + 1])
    return float(own_number * (own_number - 1))


def _check_transcript(
    plan: ChallengePlan, leaves: Mapping[str, list[Leaf]], transcript: Transcript, standing: Standing
) -> None:
    if Transcript.chain(plan, transcript.answers).head != transcript.head:
        raise ProtocolInvalidError("transcript: its hash chain does not hold")
    for name, indices in plan.asked.items():
        mark = standing.manifest.mark(name)
        lines = {line.index: line for line in transcript.answers if line.mark == name}
        asked = _queries(mark, leaves[name], standing)
        if asked is None:
            continue
        if sorted(line.index or 0 for line in transcript.answers if line.mark == name) != sorted(indices):
            raise ProtocolInvalidError(f"transcript: not exactly one answer for each leaf asked of {name}")
        for index, query in zip(indices, asked, strict=True):
            if lines[index].query != query_digest(query):
                raise ProtocolInvalidError(f"transcript: leaf {index} of {name} does not give the query that was sent")
    strangers = {line.mark for line in transcript.answers if line.mark is not None} - set(plan.asked)
    if strangers:
        raise ProtocolInvalidError(f"transcript: answers for {sorted(strangers)}, which the plan does not ask for")
    natural = [line for line in transcript.answers if line.mark is None]
    if len(natural) != plan.natural:
        raise ProtocolInvalidError(f"transcript: {len(natural)} natural queries; the plan says {plan.natural}")


def _queries(mark: MarkPlan, leaves: Sequence[Leaf], standing: Standing) -> np.ndarray[Any, Any] | None:
    """The queries that these leaves stand for; ``None`` for marks that are read from weights."""
    kind = kinds.ANSWERED.get(mark.kind)
    return None if kind is None else kind.queries(leaves, pulse=standing.pulse.output, settings=mark.settings)


def _answers(name: str, leaves: Sequence[Leaf], transcript: Transcript) -> list[int]:
    by_leaf = {line.index: line.answer for line in transcript.answers if line.mark == name}
    return [by_leaf[leaf.index] for leaf in leaves]


def _verdict(standing: Standing, name: str, leaves: list[Leaf], findings: Findings) -> Verdict:
    mark = standing.manifest.mark(name)
    if mark.kind == "weights":
        return weights.verdict(findings.readings[name])
    answers = _answers(name, leaves, findings.transcript)
    kind = kinds.answered(name, mark.kind)
    verdict = kind.verdict(answers, leaves, pulse=standing.pulse.output, settings=mark.settings)
    if "alphabet" not in verdict.details:  # a label map would cost nothing
        raise ProtocolInvalidError(f"mark={name!r}: the verdict of {mark.kind} does not state its alphabet")
    return verdict


def _for_map(verdict: Verdict, plan: ChallengePlan) -> Verdict:
    """What a label map costs: whoever proposed it may have known answers and labels, and fitted one to the other.

    A map gives each answer its place in the alphabet; at most min(answers in the map, queries) of its entries were
    used, each with as many choices as the alphabet has places. All these maps are tests, of which the best is shown.
    """
    if not plan.label_map or "alphabet" not in verdict.details:
        return verdict
    log10_maps = min(len(plan.label_map), verdict.trials) * math.log10(verdict.details["alphabet"])
    return replace(
        verdict,
        log10_p=min(0.0, verdict.log10_p + log10_maps),
        log10_e=(verdict.log10_e or 0.0) - log10_maps,
        bound="bonferroni over label maps",
        details={**verdict.details, "log10_label_maps": log10_maps},
    )


def _check_readings(standing: Standing, leaves: Mapping[str, list[Leaf]], readings: Mapping[str, Reading]) -> None:
    """Refuse readings that no suspect can give: ‖signs‖² is the number of weights, and each |g| is bounded."""
    asked = {name for name in leaves if standing.manifest.mark(name).kind == "weights"}
    if set(readings) != asked:
        raise ProtocolInvalidError(f"readings: of {sorted(readings)}; the plan asks for those of {sorted(asked)}")
    for name in asked:
        reading, mark = readings[name], standing.manifest.mark(name)
        if list(reading.indices) != [leaf.index for leaf in leaves[name]]:
            raise ProtocolInvalidError(f"readings: expected one of {name} with exactly the opened leaves")
        if not len(reading.indices) == len(reading.dots) == len(reading.squares):
            raise ProtocolInvalidError(f"readings: {name} has not one dot and one square for each opened leaf")
        if reading.unmarked != standing.manifest.model.sha256:
            raise ProtocolInvalidError("readings: not aligned to, and compared with, the committed unmarked model")
        for index, dot, square in zip(reading.indices, reading.dots, reading.squares, strict=True):
            if not weights.possible(dot, square, elements=weights.elements(mark, index)):
                raise ProtocolInvalidError(
                    f"readings: dot={dot:g}, square={square:g} of leaf {index} of {name}: no weights give these"
                )


def _decoy_rank(standing: Standing, name: str, leaves: list[Leaf], findings: Findings) -> int | None:
    """Rank of the true labels' matches among those of 999 decoy labellings of the same answers; 1 is best."""
    mark = standing.manifest.mark(name)
    if mark.kind != "triggers":
        return None
    said = np.asarray(_answers(name, leaves, findings.transcript))
    classes = int(mark.settings["classes"])
    own = int(np.sum(said == triggers.labels(leaves, standing.pulse.output, mark.settings)))
    seed = int(findings.transcript.head[:16], 16)  # decoys only illustrate; any fixed public choice will do
    decoys = np.random.default_rng(seed).integers(0, classes, (DECOYS, len(said)))
    return 1 + int(np.sum((decoys == said).sum(1) >= own))
