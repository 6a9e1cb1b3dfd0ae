# SPDX-License-Identifier: Apache-2.0
"""Drills in which we are the dishonest accuser, against models that are certainly not ours.

Each drill gives two answers for one attempt: was the false claim accepted by the protocol as it is, and would it have
been accepted with the *one* defence missing that stops it. A defence that can be missing without harm would be
decoration, and a drill that never succeeds would show nothing. Budget of every accuser: ten surrogate models, 2²⁰ keys
or pulses, any number of queries to the suspect.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from privguard import _canon
from privguard.attest import statement
from privguard.attest.notary import LocalNotary
from privguard.attest.statement import Envelope, SigningKey
from privguard.records import Digest
from privguard.watermark.claims import challenge, evidence, offline
from privguard.watermark.claims import commitment as claim
from privguard.watermark.claims.challenge import Answer, Answerer, Transcript
from privguard.watermark.claims.commitment import Commitment, MarkPlan, Standing, Trust
from privguard.watermark.claims.evidence import Outcome
from privguard.watermark.claims.leaf import Leaf, Tree
from privguard.watermark.claims.predicate import Findings
from privguard.watermark.model import align, triggers, weights
from privguard.watermark.model.weights import Tensors
from privguard.watermark.statistics import tails as statistic

KEYS = 1 << 20
INNOCENT = Digest(name="innocent model", sha256="11" * 32)
GUILTY = Digest(name="guilty model", sha256="22" * 32)
_LEVEL = -6.0


@final
@dataclass(frozen=True, kw_only=True)
class Court:
    """An innocent suspect, the accuser's means, and the honest authorities.

    ``adversarial(inputs, targets)`` makes inputs to which the accuser's surrogates give those labels, as well as the
    accuser can. ``accuser`` is a notary of the accuser's own, whom nobody else trusts. ``unmarked`` are the accuser's
    tensors before marking, ``innocent`` those of the suspect.
    """

    suspect: Answerer
    natural: NDArray[np.float32]
    truth: NDArray[np.int64]
    adversarial: Callable[[NDArray[np.float32], NDArray[np.int64]], NDArray[np.float32]]
    notary: LocalNotary
    accuser: LocalNotary
    verifier: SigningKey
    random: np.random.Generator
    unmarked: Tensors
    innocent: Tensors
    surrogates: int = 10
    classes: int = 10
    leaves: int = 100

    @property
    def mark(self) -> MarkPlan:
        """The accuser's mark: as many triggers as there may be queries."""
        shape = tuple(self.natural.shape[1:])
        return triggers.plan(triggers.Domain(shape=shape), classes=self.classes, leaves=self.leaves)

    @property
    def trust(self) -> Trust:
        """Whom the court believes."""
        return offline.trust(self.notary, self.verifier.identity)

    def proves(self, matches: int, *, tests: float = 1.0) -> bool:
        """Whether so many matches would be called proof after paying for so many tests."""
        tail = statistic.log10_binomial_tail(matches, self.leaves, 1 / self.classes)
        return float(statistic.bonferroni(tail, tests)) <= _LEVEL

    def accepts(self, file: Envelope, *, trust: Trust, suspect: Digest | None = INNOCENT, candidates: int = 1) -> bool:
        """Whether a reader with this trust calls the evidence proof."""
        report = evidence.verify(file, trust=trust, suspect=suspect, candidates=candidates)
        return report.outcome is Outcome.PROVEN

    def matches(self, leaves: Sequence[Leaf], pulse: bytes) -> NDArray[np.bool_]:
        """On which of these leaves the innocent suspect gives the label."""
        said = np.array(self.suspect(triggers.inputs(leaves, pulse, self.mark.settings)))
        return np.asarray(said == triggers.labels(leaves, pulse, self.mark.settings), np.bool_)

    def best_of(self, tests: int) -> int:
        """The most matches among so many honest keys, drawn from the exact law of that maximum."""
        counts = np.arange(self.leaves + 1)
        tails = 10.0 ** statistic.log10_binomial_tail(counts, self.leaves, 1 / self.classes)
        below = np.exp(tests * np.log1p(-np.minimum(tails[1:], 1 - 1e-15)))  # P(max ≤ k) for k = 0 … n−1
        return int(np.searchsorted(below, self.random.random()))


@final
@dataclass(frozen=True, kw_only=True)
class Dossier:
    """An accuser's commitment with its leaves, before any evidence."""

    commitment: Commitment
    tree: Tree
    standing: Standing
    notary: LocalNotary


Drill: TypeAlias = Callable[[Court], tuple[bool, bool]]  # accepted, accepted without the defence


def adversarial_triggers(court: Court) -> tuple[bool, bool]:
    """Queries optimised on ten surrogates to get the labels; stopped by recomputing every query from its leaf."""
    labels = court.random.integers(0, court.classes, court.leaves)
    start = court.natural[court.random.integers(0, len(court.natural), court.leaves)]
    return _own_queries(court, court.adversarial(start, labels), labels)


def natural_leaves(court: Court) -> tuple[bool, bool]:
    """Natural images with their true labels handed in as triggers; stopped by the same recomputation."""
    chosen = court.random.choice(len(court.natural), court.leaves, replace=False)
    return _own_queries(court, court.natural[chosen], court.truth[chosen])


def key_grinding(court: Court) -> tuple[bool, bool]:
    """Leaf seeds drawn again until the suspect gives the label; stopped by the pulse, which comes after the seeds."""
    ground = _ground(court, b"")
    dossier = _commit(court, tree=Tree({"triggers": ground}))
    held = court.accepts(_forge(court, dossier, answers=_said(court, dossier)), trust=court.trust)
    return held, court.proves(int(court.matches(ground, b"").sum()))


def many_claims(court: Court) -> tuple[bool, bool]:
    """The best of 2²⁰ honest claims against ten models; stopped by counting claims, or by 2⁴⁰ where nobody counts."""
    best = court.best_of(KEYS * court.surrogates)
    return court.proves(best, tests=(KEYS + 1) * KEYS), court.proves(best)  # the challenge is entry 2²⁰ + 1


def beacon_grinding(court: Court) -> tuple[bool, bool]:
    """Waiting for a pulse that suits, up to 2²⁰ of them against ten models; stopped by "only the first one counts"."""
    dossier = _commit(court)
    late = dossier.standing.pulse.time + timedelta(minutes=int(court.random.integers(0, KEYS)))
    moved = replace(dossier, commitment=dossier.commitment.with_pulse(court.notary.pulse_after(late)))
    held = court.accepts(_forge(court, moved), trust=court.trust)
    return held, court.proves(court.best_of(KEYS * court.surrogates))


def back_dating(court: Court) -> tuple[bool, bool]:
    """Seeds ground for an old pulse, stamped for before it by the accuser's server; stopped by whom readers trust."""
    then = datetime.now(UTC).replace(microsecond=0) - timedelta(days=int(court.random.integers(30, 3000)))
    old = court.notary.pulse_after(then + claim.WAIT)
    ground = _ground(court, bytes.fromhex(old["pulse"]["outputValue"]))
    made = claim.sign_root(
        Tree({"triggers": ground}).root, model=INNOCENT, marks=(court.mark,), by=SigningKey.generate()
    )
    dated = offline.notarise(made, court.accuser, at=then).with_pulse(old)
    fooled = Trust(
        authorities=(court.accuser.server.authority,),
        beacons=(court.notary.beacon.beacon,),
        verifiers=(court.verifier.identity,),
        log=court.accuser.trusted,
    )
    standing = claim.check(dated, trust=fooled)
    dossier = Dossier(commitment=dated, tree=Tree({"triggers": ground}), standing=standing, notary=court.accuser)
    file = _forge(court, dossier, answers=_said(court, dossier))
    return court.accepts(file, trust=court.trust), court.accepts(file, trust=fooled)


def replayed_evidence(court: Court) -> tuple[bool, bool]:
    """True evidence against a guilty model shown against an innocent one; stopped by naming the suspect."""
    file = _forge(court, _commit(court), suspect=GUILTY)
    return court.accepts(file, trust=court.trust), court.accepts(file, trust=court.trust, suspect=None)


def burned_leaves(court: Court) -> tuple[bool, bool]:
    """Leaves opened before, whose answers were planted since; stopped by the log of challenges."""
    dossier = _commit(court)
    first, again = _forge(court, dossier), _forge(court, dossier)
    return court.accepts(again, trust=court.trust), court.accepts(first, trust=court.trust)


def fitted_label_map(court: Court) -> tuple[bool, bool]:
    """A suspect's classes renamed so that its answers fit, which a dry run shows; stopped by paying for all maps.

    The suspect here has a thousand classes and answers by a hash of the query, as innocent as can be.
    """
    dossier = _commit(court)
    leaves, labels = dossier.tree.leaves["triggers"], _labels(court, dossier)
    asked = triggers.inputs(leaves, dossier.standing.pulse.output, court.mark.settings)
    said = np.array([int(challenge.query_digest(query)[:8], 16) % 1000 for query in asked])
    fitted = [int(np.bincount(labels[said == answer], minlength=1).argmax()) for answer in range(1000)]
    mapped = np.array(fitted)[said]
    file = _forge(court, dossier, answers=mapped.tolist(), label_map=tuple(fitted))
    return court.accepts(file, trust=court.trust), court.proves(int((mapped == labels).sum()))


def searched_collection(court: Court) -> tuple[bool, bool]:
    """The best of ten times 2²⁰ models that the accuser tried at home; stopped by the reader's count of candidates."""
    models = KEYS * court.surrogates
    best = court.best_of(models)
    dossier = _commit(court)
    labels = _labels(court, dossier)
    lucky = np.where(np.arange(court.leaves) < best, labels, (labels + 1) % court.classes).tolist()
    file = _forge(court, dossier, answers=lucky)
    return court.accepts(file, trust=court.trust, candidates=models), court.proves(best)


def edited_transcript(court: Court) -> tuple[bool, bool]:
    """All answers changed to the right labels and the chain made anew; stopped by the verifier's signature."""
    accuser = SigningKey.generate()
    said = _canon.loads(_forge(court, _commit(court)).payload)
    said["predicate"]["verifier"] = accuser.identity.to_json()
    file = statement.countersign(Envelope(payload=_canon.canonical(said)), by=accuser)
    fooled = replace(court.trust, verifiers=(accuser.identity,))
    return court.accepts(file, trust=court.trust), court.accepts(file, trust=fooled)


def aligned_to_marked(court: Court) -> tuple[bool, bool]:
    """The suspect rotated onto the accuser's *marked* copy; stopped by comparing with the committed copy alone."""
    shapes = {name: value.shape for name, value in court.unmarked.items() if value.ndim > 1}
    mark = weights.plan(shapes, leaves=32)
    tree = Tree({"weights": [Leaf(mark="weights", index=i, seed=court.random.bytes(32)) for i in range(32)]})
    model = offline.tensors_digest("unmarked", court.unmarked)
    made = claim.sign_root(tree.root, model=model, marks=(mark,), by=SigningKey.generate())
    done = offline.notarise(made, court.notary)
    standing = claim.check(done, trust=court.trust)
    pulse, leaves = standing.pulse.output, tree.leaves["weights"]
    marked = weights.embed(court.unmarked, leaves, pulse=pulse, settings=mark.settings)
    turned = dict(court.innocent)
    for name in shapes:
        turned = align.rotate(turned, unmarked=marked, anchor=name, sides={name: "in"})
    reading = weights.read(turned, leaves, unmarked=court.unmarked, pulse=pulse, plan=mark)
    reading = replace(reading, unmarked=offline.tensors_digest("marked", marked).sha256, aligned="to the marked copy")
    plan = challenge.draw(standing, suspect=INNOCENT, sizes={"weights": 32})
    extract = court.notary.record(plan.entry(standing.manifest.owner.key_id))
    findings = Findings(transcript=Transcript.chain(plan, ()), readings={"weights": reading})
    openings = challenge.open_leaves(tree, plan)
    file = evidence.assemble(done, plan=plan, openings=openings, findings=findings, by=court.verifier, extract=extract)
    without = replace(findings, readings={"weights": replace(reading, unmarked=model.sha256)})
    naive = evidence.assemble(done, plan=plan, openings=openings, findings=without, by=court.verifier, extract=extract)
    return court.accepts(file, trust=court.trust), court.accepts(naive, trust=court.trust)


DRILLS: dict[str, Drill] = {
    "adversarial triggers": adversarial_triggers,
    "natural images as leaves": natural_leaves,
    "key grinding": key_grinding,
    "many claims": many_claims,
    "beacon grinding": beacon_grinding,
    "back-dated commitment": back_dating,
    "replayed evidence": replayed_evidence,
    "burned leaves": burned_leaves,
    "edited transcript": edited_transcript,
    "fitted label map": fitted_label_map,
    "searched collection": searched_collection,
    "alignment to the marked copy": aligned_to_marked,
}


def honest(court: Court, answer: Callable[[Dossier], Answerer]) -> bool:
    """One honest claim against a model that was stolen, ``answer(dossier)``: it has to be accepted."""
    dossier = _commit(court)
    pulse, settings = dossier.standing.pulse.output, court.mark.settings
    said = answer(dossier)(triggers.inputs(dossier.tree.leaves["triggers"], pulse, settings))
    return court.accepts(_forge(court, dossier, answers=said, suspect=GUILTY), trust=court.trust, suspect=GUILTY)


def _commit(court: Court, *, tree: Tree | None = None) -> Dossier:
    """A claim on the innocent model, notarised by the honest authorities: up to here the accuser plays by the rules."""
    tree = tree or Tree({"triggers": _seeds(court)})
    made = claim.sign_root(tree.root, model=INNOCENT, marks=(court.mark,), by=SigningKey.generate())
    done = offline.notarise(made, court.notary)
    standing = claim.check(done, trust=court.trust)
    return Dossier(commitment=done, tree=tree, standing=standing, notary=court.notary)


def _forge(
    court: Court,
    dossier: Dossier,
    *,
    answers: Sequence[int] | None = None,
    queries: NDArray[np.float32] | None = None,
    suspect: Digest = INNOCENT,
    label_map: tuple[int, ...] = (),
) -> Envelope:
    """Evidence over all leaves with these answers; by default the right ones, as if the suspect had been perfect."""
    leaves, pulse, settings = dossier.tree.leaves["triggers"], dossier.standing.pulse.output, court.mark.settings
    sizes = {"triggers": court.leaves}
    plan = challenge.draw(dossier.standing, suspect=suspect, sizes=sizes, label_map=label_map)
    extract = dossier.notary.record(plan.entry(dossier.standing.manifest.owner.key_id))
    asked = triggers.inputs(leaves, pulse, settings) if queries is None else queries
    said = triggers.labels(leaves, pulse, settings).tolist() if answers is None else answers
    lines = [
        Answer(query=challenge.query_digest(query), answer=int(label), mark="triggers", index=index)
        for index, (query, label) in enumerate(zip(asked, said, strict=True))
    ]
    findings = Findings(transcript=Transcript.chain(plan, lines))
    openings = challenge.open_leaves(dossier.tree, plan)
    return evidence.assemble(
        dossier.commitment, plan=plan, openings=openings, findings=findings, by=court.verifier, extract=extract
    )


def _own_queries(court: Court, queries: NDArray[np.float32], labels: NDArray[np.int64]) -> tuple[bool, bool]:
    dossier = _commit(court)
    said = np.array(court.suspect(queries))
    # In the file the accuser may claim any answer that helps, so the true labels of the leaves are claimed.
    held = court.accepts(_forge(court, dossier, queries=queries), trust=court.trust)
    return held, court.proves(int((said == labels).sum()))


def _ground(court: Court, pulse: bytes) -> list[Leaf]:
    """Leaves drawn again, one by one, until the suspect gives their label under a pulse known beforehand."""
    ground = _seeds(court)
    for _ in range(KEYS // court.leaves):
        wrong = np.flatnonzero(~court.matches(ground, pulse))
        if not len(wrong):
            break
        for place in wrong:
            ground[place] = Leaf(mark="triggers", index=int(place), seed=court.random.bytes(32))
    return ground


def _seeds(court: Court) -> list[Leaf]:
    return [Leaf(mark="triggers", index=index, seed=court.random.bytes(32)) for index in range(court.leaves)]


def _labels(court: Court, dossier: Dossier) -> NDArray[np.int64]:
    return triggers.labels(dossier.tree.leaves["triggers"], dossier.standing.pulse.output, court.mark.settings)


def _said(court: Court, dossier: Dossier) -> list[int]:
    leaves, pulse = dossier.tree.leaves["triggers"], dossier.standing.pulse.output
    return list(court.suspect(triggers.inputs(leaves, pulse, court.mark.settings)))
