# SPDX-License-Identifier: Apache-2.0
"""Does one example stay out of another's gradient? Asked before step 1, on synthetic data of the real data's shapes.

A loss that divides by the number of tokens in the batch, a negative drawn from the batch, a routing loss, a layer that
normalises over the batch, a mean over the batch: each changes the gradient of one example with the others, and clipping
then bounds nothing. The probe exchanges a synthetic record for another, takes records away, and looks. Nothing of the
private data enters, so a refusal tells nothing about it; the model's buffers, the generators and the training mode are
put back.

What shape-dependent kernels and 16-bit rounding do to a gradient would hide a mix of one in a thousand. So all is
compared on float32 copies of the weights, autocast and TF32 off, where sound models differ by 1e-7; and once more in
the training's own types, where an exchanged record changes nothing at all in a batch of the same shape.
"""

import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from privguard import _check
from privguard.errors import SensitivityError, UnsupportedModelError
from privguard.training import structure as trees
from privguard.training.attach import attach
from privguard.training.clip import Clipper, gradients_of, trainable
from privguard.training.one_by_one import OneByOne
from privguard.training.probes.buffers import attributes, kept_of_records, moved_by_itself, saved
from privguard.training.probes.fields import (
    Field,
    Structure,
    companies,
    exchanged,
    first_rows,
    in_float32,
    is_field,
    make,
)
from privguard.training.probes.gradients import (
    Gradients,
    Losses,
    clipped,
    float32_copies,
    is_finite,
    largest_change,
    only,
    plain,
    run,
    untouched,
    without_dropout,
)
from privguard.training.probes.shape import shape_term

SAME = 1e-5  # relative change of an example's float32 gradient that kernels for another batch size may cause
_SAME_IN_16_BITS = 1e-4  # of a 16-bit one when another record is exchanged; what was measured is 0
EXACT = 1e-4  # by which the clipper's gradient may differ from that of an ordinary backward pass, in float32
IGNORED = -100  # what labels hold where there is none
SIZES = (5, 3, 1)  # of the batches that one record stands in


def probe(model: nn.Module, clipper: Clipper, losses: Losses, structure: Structure, *, rows_each: int = 1) -> None:
    """Refuse a model or a loss through which examples interact, or that the clipper cannot serve.

    Four questions, each answered on synthetic batches: does dimension 0 of everything follow the number of examples, at
    two sizes; is every other example's gradient unchanged when one record is exchanged; is an example's gradient the
    same beside four, two and no others; and is what the clipper finds for each example the gradient that an ordinary
    backward pass gives.

    Args:
        model: the model that ``clipper`` is attached to, on the device it will train on.
        clipper: between logical batches; it is left as it was found.
        losses: the forward and loss that training will use.
        structure: see ``structure_of``.
        rows_each: rows that one example becomes inside the model, such as the choices of a question.

    Raises:
        SensitivityError: an example's gradient depends on another example.
        UnsupportedModelError: the clipper does not find the true gradients, or a buffer takes data in; by name.
        ValueError: ``losses`` does not return one loss per example, or uses no trainable parameter of the model.
    """
    device = next(model.parameters()).device
    rows = clipper.rows or 4
    with untouched(model):
        structure = _with_ignored(losses, structure, device)
        first = make(structure, rows, seed=1, device=device)
        _check_shape(losses, first, rows)
        _check_used(model, losses, first)
        sizes = (1,) if clipper.rows else (3, 5)
        pairs = [[make(structure, size, seed=seed, device=device) for seed in (1, 2)] for size in {rows, *sizes}]
        sentences = [sentence for pair in pairs for sentence in _check_buffers(model, losses, *pair)]
        clipper.unchecked += tuple(dict.fromkeys(sentences))
        for size in sizes:
            with clipper.rehearsal(size):
                run(losses, make(structure, size, seed=size, device=device))
        if clipper.rows is None:  # before the clipper is asked: where examples interact no other one helps
            _check_apart(model, losses, structure)
        for size in sizes:
            clipped(clipper, losses, make(structure, size, seed=size, device=device), only(size), rows_each)
        if clipper.rows is None:
            _check_exact(model, clipper, losses, first, rows_each)
            beside = make(structure, SIZES[0], seed=4, device=device)
            clipper.shape_term = shape_term(model, losses, beside, SIZES)


def clipper_for(
    model: nn.Module, losses: Losses, structure: Structure, *, max_grad_norm: float, rows_each: int = 1
) -> Clipper:
    """The fastest clipper that the probe finds exact, on synthetic data; a warning says when that is the slow one.

    Args:
        model: the model to train.
        losses: from model and batch to one loss for each example, (B,).
        structure: what a batch is made of, with a field in the place of each tensor.
        max_grad_norm: the clipping norm C, in the unit of the gradient.
        rows_each: rows that lie side by side for one unit of privacy.

    Raises:
        SensitivityError: examples interact in the model or in its loss, so no clipper is exact.
        UnsupportedModelError: a module mixes examples by its nature.
    """
    clipper, reason = choose(model, losses, structure, max_grad_norm=max_grad_norm, rows_each=rows_each)
    if reason is not None:
        warnings.warn(f"one backward pass for each example, which is exact and slow: {reason}", stacklevel=2)
    return clipper


def choose(
    model: nn.Module, losses: Losses, structure: Structure, *, max_grad_norm: float, rows_each: int = 1
) -> tuple[Clipper, str | None]:
    """The book-keeping clipper where the probe finds it exact, else one example at a time, and why.

    Args:
        model: the model to train.
        losses: from model and batch to one loss for each example, (B,).
        structure: what a batch is made of, with a field in the place of each tensor.
        max_grad_norm: the clipping norm C, in the unit of the gradient.
        rows_each: rows that lie side by side for one unit of privacy.

    Returns:
        The attached clipper, and None or the reason for the slow one, to be announced.

    Raises:
        SensitivityError: examples interact, so no clipper can help.
        UnsupportedModelError: a module mixes examples by its nature.
    """
    try:
        return _chosen(model, losses, structure, max_grad_norm, rows_each)
    except IndexError:  # a class out of range: real numbers that hold one
        unit = trees.mapped(
            lambda leaf: replace(leaf, unit=True) if isinstance(leaf, Field) else leaf, structure, whole=is_field
        )
        return _chosen(model, losses, unit, max_grad_norm, rows_each)


def _chosen(
    model: nn.Module, losses: Losses, structure: Structure, max_grad_norm: float, rows_each: int
) -> tuple[Clipper, str | None]:
    try:
        return _probed(attach(model, max_grad_norm=max_grad_norm), model, losses, structure, rows_each), None
    except UnsupportedModelError as refusal:
        slow = OneByOne(model, max_grad_norm=max_grad_norm)
        return _probed(slow, model, losses, structure, rows_each), str(refusal)


def _probed(clipper: Clipper, model: nn.Module, losses: Losses, structure: Structure, rows_each: int) -> Clipper:
    try:
        probe(model, clipper, losses, structure, rows_each=rows_each)
    except BaseException:
        clipper.close()
        raise
    return clipper


def check_same_alone(model: nn.Module, losses: Losses, beside: Any, alone: Any) -> None:
    """Refuse a model in which example 0's gradient is another in the batch ``beside`` than in the batch ``alone``.

    Both hold the same example, padded in the one as a longer record beside it wants, and unpadded in the other.

    Args:
        model: the model to train.
        losses: from model and batch to one loss for each example, (B,).
        beside: a batch whose first example is padded as a longer one beside it wants.
        alone: the same example alone, without padding.

    Raises:
        SensitivityError: the model reads its padding.
    """
    with untouched(model), without_dropout(model), float32_copies(model):
        pair = [plain(model, losses, in_float32(batch), 0) for batch in (alone, beside)]
    name, change = largest_change(*pair)
    if is_finite(pair[0]) and not change <= SAME:
        raise SensitivityError(
            f"probe: the padding that a longer record brings changed an example's gradient of {name!r} by {change:.2g} "
            "of its norm; pad every record to one public length (padding='max_length'), or keep padding out of the "
            "model with a mask"
        )


def _with_ignored(losses: Losses, structure: Structure, device: torch.device) -> Structure:
    """``structure`` with −100 among the whole numbers of every field in which the loss takes it.

    Which fields are labels is not known, so each is tried. On a GPU an index that is out of range ends the process, so
    there only what is called a label and has several places is tried.
    """

    def takes(candidate: Structure) -> bool:
        try:
            with torch.no_grad():
                return bool(run(losses, make(candidate, 4, seed=3, device=device)).isfinite().all())
        except Exception:  # not a label
            return False

    fields: list[Any] = []
    trees.named(lambda leaf, name: fields.append((leaf, name)), structure, whole=is_field)
    for place, (field, name) in enumerate(fields):
        if not isinstance(field, Field) or not field.whole_numbers or field.ignore is not None or "mask" in name:
            continue
        if device.type != "cpu" and not ("label" in name and field.shape):
            continue
        count = iter(range(len(fields)))
        marked = replace(field, ignore=IGNORED)
        candidate = trees.mapped(
            lambda leaf, count=count, place=place, marked=marked: marked if next(count) == place else leaf,
            structure,
            whole=is_field,
        )
        structure = candidate if takes(candidate) else structure
    return structure


def _check_shape(losses: Losses, batch: Any, rows: int) -> None:
    with torch.no_grad():
        shape = tuple(run(losses, batch).shape)
    _check.require(
        shape == (rows,),
        "losses.shape",
        shape,
        wanted=f"({rows},), one loss per example",
        remedy="pass reduction='none' and reduce over everything but the examples",
    )


def _check_used(model: nn.Module, losses: Losses, batch: Any) -> None:
    """Refuse losses that are of another model than the one to train, or of none."""
    total = run(losses, batch).sum()
    used = total.requires_grad and bool(gradients_of(total, trainable(model)))
    _check.require(
        used,
        "losses",
        "a function that uses no trainable parameter of this model",
        wanted="losses of the model that is trained",
        remedy="call that model, not a copy or another one, outside torch.no_grad()",
    )


def _check_apart(model: nn.Module, losses: Losses, structure: Structure) -> None:
    """Examples that interact: on float32 copies first, and in the training's own types where those are others."""
    device = next(model.parameters()).device
    first, second = (make(structure, 4, seed=seed, device=device) for seed in (1, 2))
    with float32_copies(model) as kept_out:
        _check_exchange(model, losses, in_float32(first), in_float32(second), tolerance=SAME)
        for company in companies(structure, 4, device=device):
            _check_company(model, losses, in_float32(first), in_float32(company))
        _check_sizes(model, losses, in_float32(make(structure, SIZES[0], seed=4, device=device)))
    if kept_out:
        _check_exchange(model, losses, first, second, tolerance=_SAME_IN_16_BITS)


def _check_exchange(model: nn.Module, losses: Losses, first: Any, second: Any, *, tolerance: float) -> None:
    """Exchange the first record, and then the last, and compare the gradient of every other one with what it was.

    A device that adds in no fixed order changes a gradient when the same batch is repeated; so much is allowed for.
    """
    rows = run(losses, first).shape[0]
    before = [plain(model, losses, first, other) for other in range(rows)]
    others = {other for other in range(rows) if is_finite(before[other])}  # zero times infinity is no evidence
    _, repeated = largest_change(before[0], plain(model, losses, first, 0)) if 0 in others else ("", 0.0)
    for row in (0, rows - 1):
        mixed = exchanged(first, second, row)
        for other in others - {row}:
            name, change = largest_change(before[other], plain(model, losses, mixed, other))
            if not change <= tolerance + 4 * repeated:
                raise SensitivityError(
                    f"probe: exchanging example {row} changed example {other}'s gradient of {name!r} by "
                    f"{change:.2g} of its norm; take the mean of each example's own loss, never over the tokens of the "
                    "batch, and use no negatives and no statistics from the batch"
                )

    _, carried = largest_change(before[0], plain(model, losses, first, 0)) if 0 in others else ("", 0.0)
    if not carried <= tolerance + 4 * repeated:
        raise SensitivityError(
            f"probe: the batch before changed an example's gradient by {carried:.2g} of its norm; keep nothing of one "
            "batch for the next (a queue, a centre, a hidden state, a running mean)"
        )


def _check_company(model: nn.Module, losses: Losses, batch: Any, company: Any) -> None:
    """Exchange all records but one, which a loss of the hardest examples of a batch would tell.

    A gradient is taken only where the example's loss is another.
    """
    for row, loss in enumerate(run(losses, batch).detach()):
        mixed = exchanged(company, batch, row)
        try:
            beside = run(losses, mixed)[row].detach()
        except (UnsupportedModelError, IndexError):  # numbers of that size need make no sense to it
            continue
        if not (beside - loss).abs() > SAME * loss.abs():
            continue
        before, after = plain(model, losses, batch, row), plain(model, losses, mixed, row)
        name, change = largest_change(before, after)
        if is_finite(before) and is_finite(after) and not change <= SAME:
            raise SensitivityError(
                f"probe: exchanging all other examples changed example {row}'s gradient of {name!r} by {change:.2g} of "
                "its norm; select and weight no example by what others are (hard examples, medians, ranks in a batch)"
            )


def _check_sizes(model: nn.Module, losses: Losses, batch: Any) -> None:
    """Compare a record's gradient beside four, two and no others."""
    whole, *smaller = SIZES
    with without_dropout(model):
        before = {example: plain(model, losses, batch, example) for example in (0, 2)}
        for size in smaller:
            for example in range(0, size, 2):
                after = _of_size(model, losses, first_rows(batch, size, of=whole), example, size)
                name, change = ("", 0.0) if after is None else largest_change(before[example], after)
                if not change <= SAME:
                    raise SensitivityError(
                        f"probe: example {example}'s gradient of {name!r} changed by {change:.2g} of its norm when the "
                        f"batch had {size} examples instead of {whole}; {_remedy(model, size)}"
                    )


def _remedy(model: nn.Module, size: int) -> str:
    """For a gradient that depends on the size; torch's own of one example can be wrong in channels_last."""
    kinds = {4: torch.channels_last, 5: torch.channels_last_3d}
    if size == 1 and any(
        p.dim() in kinds and not p.is_contiguous() and p.is_contiguous(memory_format=kinds[p.dim()])
        for p in model.parameters()
    ):
        return (
            "in the memory format channels_last torch's own gradient of one example is wrong behind some layers, "
            "such as InstanceNorm2d before a Conv2d with a stride; use model.to(memory_format=torch.contiguous_format)"
        )
    return (
        "divide by no batch size and scale by none (privguard divides the noisy sum by the plan's expected batch size)"
    )


def _of_size(model: nn.Module, losses: Losses, batch: Any, example: int, size: int) -> Gradients | None:
    """The gradient of one example; None where the model takes no batch of one, as a Poisson draw of one will show."""
    try:
        return plain(model, losses, batch, example)
    except (UnsupportedModelError, IndexError):
        if size > 1:
            raise
        return None


def _check_exact(model: nn.Module, clipper: Clipper, losses: Losses, batch: Any, rows_each: int) -> None:
    """Compare what the clipper finds, unclipped, with the gradients of ordinary backward passes, on float32 copies.

    Dropout is off meanwhile, because the two passes need not draw alike.
    """
    with without_dropout(model), float32_copies(model):
        batch = in_float32(batch)
        rows = run(losses, batch).shape[0]
        each = {example: plain(model, losses, batch, example) for example in range(rows)}
        each = {example: gradients for example, gradients in each.items() if is_finite(gradients)}
        for example, wanted in each.items():
            gradients = clipped(clipper, losses, batch, only(rows, example), rows_each)
            name, change = largest_change(wanted, gradients)
            if not change <= EXACT:
                raise UnsupportedModelError(
                    f"probe: the gradient found for parameter {name!r} is off by {change:.2g} of the norm; "
                    "the examples may not come first in a tensor that reaches it; train with physical batches of one "
                    "(OneByOne)"
                )
        if not each:
            return
        together = clipped(clipper, losses, batch, only(rows), rows_each)
        terms = list(each.values())
        total = {name: torch.stack([gradients[name] for gradients in terms]).sum(0) for name in together}
        name, change = largest_change(total, together, among=terms)
        if not change <= EXACT:
            raise UnsupportedModelError(
                f"probe: all examples together give parameter {name!r} another gradient than they give one by one, by "
                f"{change:.2g} of the norm; something on the way back (a hook, a backward pass of your own) looks at "
                "the whole batch; train with physical batches of one (OneByOne)"
            )


def _check_buffers(model: nn.Module, losses: Losses, first: Any, second: Any) -> tuple[str, ...]:
    """Refuse a model with a buffer that depends on the data after a forward: it would carry them out without noise.

    Returns:
        Sentences about plain attributes that do, and about buffers that count forwards.
    """
    before = saved(model)
    after: list[dict[str, Tensor]] = []
    plainly: list[dict[str, Tensor]] = []
    for batch in (first, second):
        with untouched(model), torch.no_grad():
            run(losses, batch)
            moved = moved_by_itself(model, before, saved(model))
            after.append({name: buffer.clone() for name, buffer in model.named_buffers()})
            plainly.append(attributes(model))
    for name, value in after[0].items():
        if not torch.equal(value, after[1][name]):
            raise UnsupportedModelError(
                f"buffer={name!r}: takes the data in during the forward, where no noise protects it; freeze or "
                "remove it"
            )
    return tuple(sentence for sentence in (kept_of_records(*plainly), moved) if sentence is not None)
