# SPDX-License-Identifier: Apache-2.0
"""What the first ``mark commit`` commits to, and how ``mark embed`` teaches what has to be taught."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from privguard import _check
from privguard.cli._output import progress, stderr
from privguard.cli._recording import recorded
from privguard.cli.mark import _files as files
from privguard.cli.mark import _models as models

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import nn

    from privguard.watermark.claims.challenge import Answerer
    from privguard.watermark.claims.commitment import Commitment, MarkPlan, Standing
    from privguard.watermark.model.bundle import Bundle
    from privguard.watermark.secret import Secret


@final
@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The options of a new claim: triggers only where the shape of an input is given."""

    classes: int
    shape: str
    triggers: int
    recipients: int
    network: str


@final
@dataclass(frozen=True, kw_only=True)
class Teaching:
    """How triggers are taught: steps, by how much their label leads, and the share below which nothing is written."""

    steps: int
    margin: float
    least: float


def first(weights: Path | None, identity: Path | None, wanted: Wanted) -> "tuple[Secret, Commitment]":
    """A new claim's secret, and the signed commitment to its marks, without a time yet; nothing is written."""
    from privguard.watermark.claims import commitment as claims
    from privguard.watermark.claims import offline
    from privguard.watermark.secret import Secret

    if weights is None or identity is None:
        raise ValueError("--weights, --identity: expected both for a new claim")
    state = models.tensors(weights)
    marks = _marks(weights, state, wanted)
    secret, owner = Secret.generate(), files.signing_key(identity)
    model = offline.tensors_digest(weights.name, state)
    return secret, claims.commit(secret, model=model, marks=marks, by=owner)


def _marks(weights: Path, state: "dict[str, NDArray[Any]]", wanted: Wanted) -> "tuple[MarkPlan, ...]":
    from privguard.watermark.model import triggers as trigger_marks
    from privguard.watermark.model import weights as weight_marks

    matrices = {name: value.shape for name, value in state.items() if value.ndim > 1}
    marks: list[MarkPlan] = []
    structure, order = models.structure(weights, state), None
    if structure is not None:
        matrices = {name: matrices[name] for name in structure.tensors}
    if wanted.shape:
        sizes = [part.strip() for part in wanted.shape.split(",")]
        _check.require(all(map(str.isdecimal, sizes)), "shape", wanted.shape, wanted="whole numbers such as 1,28,28")
        domain = trigger_marks.Domain(shape=tuple(map(int, sizes)))
        order = files.order(files.network(wanted.network, state), domain.shape)
        marks.append(trigger_marks.plan(domain, classes=wanted.classes, leaves=wanted.triggers))
    else:
        stderr().print("No --shape, so no triggers: this claim can only be read from a suspect's weights.")
    marks.append(weight_marks.plan(matrices, order=order, structure=structure))
    if wanted.recipients:
        marks.append(
            weight_marks.recipients_plan(matrices, recipients=wanted.recipients, order=order, structure=structure)
        )
    if structure is None and not marks[-1].settings["order"]:
        stderr().print("Neither a chain nor a transformer that is known: a renamed tensor will not be read.")
    return tuple(marks)


def grown(
    made: "Commitment", *, notary: Path | None, log: Path | None, timestamp: Path | None, pulse: Path | None
) -> "Commitment":
    """The commitment with what authorities have answered: a local notary all at once, outside ones in their order.

    Raises:
        ValueError: the log's last entry is another, or the commitment is timestamped already.
    """
    from privguard.attest import merkle
    from privguard.attest import timestamp as stamping
    from privguard.watermark.claims import commitment as claims
    from privguard.watermark.claims import offline

    if notary is not None and made.timestamp is None:
        authority = files.local_notary(notary)
        made = offline.notarise(made, authority)
        authority.write(notary)
    if log is not None:
        extract, own = files.extract(log), made.entry(claims.read_manifest(made).owner)
        leaves = [entry.leaf() for entry in extract.entries]
        if made.timestamp is not None or not leaves or leaves[-1] != own.leaf():
            raise ValueError(
                f"{log}: expected an extract that ends with entry.json, before the commitment is timestamped"
            )
        made = made.logged(extract.head, proof=merkle.inclusion_proof(leaves, len(leaves) - 1))
    if timestamp is not None:
        answer = timestamp.read_bytes()
        stated = stamping.stated_time(answer, data=made.message())
        made = made.stamped(answer)
        start = "the log's time" if made.head is not None else "it"
        stderr().print(
            f"Timestamped {stated:%Y-%m-%d %H:%M:%S} UTC; the first pulse over five minutes after {start} counts."
        )
    return made if pulse is None else made.with_pulse(files.pulse(pulse))


def has_triggers(standing: "Standing") -> bool:
    """Whether this claim has secret inputs."""
    return any(mark.name == "triggers" for mark in standing.manifest.marks)


def taught(
    bundle: "Bundle", model: "nn.Module", public: Path | None, teaching: Teaching
) -> "tuple[dict[str, NDArray[Any]], dict[str, Any]]":
    """The tensors of a copy that was taught its triggers and given its carriers, and what that cost.

    Raises:
        PrivguardError: fewer triggers than the least share were taught.
    """
    from privguard.errors import PrivguardError
    from privguard.watermark.model import theft
    from privguard.watermark.model.embed import Lesson

    if public is None:
        raise ValueError("--public: expected an npz with inputs and labels, to teach the triggers with")
    examples = files.public(public)
    with recorded(), progress() as bar:
        task = bar.add_task("teaching the triggers", total=teaching.steps)
        lesson = Lesson(steps=teaching.steps, watch=lambda done: bar.update(task, completed=done))
        marked = bundle.embed(model, public=examples, lesson=lesson, margin=teaching.margin)
    found = bundle.read_triggers(files.answerer(marked))
    before, after = (theft.accuracy(item, examples.inputs, examples.labels) for item in (model, marked))
    if found.matches < teaching.least * found.trials:
        raise PrivguardError(
            f"triggers: {found.matches:.0f} of {found.trials} taught, --least wants {teaching.least:.0%}, so nothing "
            f"was written (accuracy on --public {before:.1%} before, {after:.1%} after); give more --steps or a lower "
            "--least"
        )
    facts = {"accuracy_before": before, "accuracy_after": after, "triggers": found.matches, "of": found.trials}
    return theft.tensors(marked), facts


def answerer(model: "nn.Module | None") -> "Answerer":
    """The model as a black box; without one there is nothing to ask."""
    return _nobody if model is None else files.answerer(model)


def _nobody(queries: "NDArray[Any]") -> "Sequence[int]":
    raise ValueError(f"suspect: {len(queries)} queries and no network to answer them; name it with --network")
