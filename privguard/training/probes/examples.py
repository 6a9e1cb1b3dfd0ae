"""Does one example stay out of another's gradient? Asked before step 1, on made-up data of the real data's shapes.

A loss that divides by the number of tokens in the batch, a negative drawn from the batch, a routing loss, a layer that
normalises over the batch: each changes the gradient of one example when another is exchanged, and clipping then bounds
nothing. The probe exchanges one made-up record for another and looks. Nothing of the private data enters, so a refusal
tells nothing about it; the model's buffers, the generators and the training mode are put back.
"""

import random
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from privguard import _check
from privguard.errors import SensitivityError, UnsupportedModelError
from privguard.training.attach import attach
from privguard.training.clip import Clipper, OneByOne, trainable

Losses = Callable[[Any], Tensor]
"""The user's forward and loss: a collated batch → one loss per example, (B,)."""

_SAME = 1e-3  # relative change of an example's gradient that float32 kernels of another batch size can cause


@final
@dataclass(frozen=True)
class Field:
    """What one tensor of a batch looks like for one example, as public facts.

    Attributes:
        shape: without the dimension of the examples.
        dtype: of the tensor.
        top: for whole numbers, one more than the largest that may be made up: the size of the vocabulary, the number of
            classes, 2 for a mask. It has to be public.
        ignore: a value that means "nothing here", such as −100 in labels; about a third of the places get it.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    top: int = 2
    ignore: int | None = None

    def draw(self, rows: int, *, source: torch.Generator) -> Tensor:
        """Made-up values for ``rows`` examples: normal, or uniform whole numbers below ``top``."""
        if self.dtype.is_floating_point:
            return torch.randn(rows, *self.shape, generator=source).to(self.dtype)
        values = torch.randint(self.top, (rows, *self.shape), generator=source).to(self.dtype)
        if self.ignore is not None:
            values[torch.rand(values.shape, generator=source) < 1 / 3] = self.ignore
        return values


Structure = Any
"""A batch with a :class:`Field` in the place of each tensor: nested dictionaries, lists and tuples."""


def structure_of(batch: Any, *, tops: Mapping[str, int] | None = None, top: int = 2) -> Structure:
    """The shapes and types of a collated batch.

    Args:
        batch: nested dictionaries, lists and tuples of tensors whose dimension 0 is the example.
        tops: :attr:`Field.top` by dictionary key.
        top: the same for whole numbers elsewhere.
    """
    if isinstance(batch, Tensor):
        return Field(tuple(batch.shape[1:]), batch.dtype, top)
    if isinstance(batch, Mapping):
        return {key: structure_of(value, tops=tops, top=(tops or {}).get(key, top)) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(structure_of(value, tops=tops, top=top) for value in batch)
    return batch


def probe(model: nn.Module, clipper: Clipper, losses: Losses, structure: Structure, *, rows_each: int = 1) -> None:
    """Refuse a model or a loss through which examples meet, or that the clipper cannot serve.

    Three questions, each answered on made-up batches: does dimension 0 of everything follow the number of examples, at
    two sizes; is every other example's gradient unchanged when one record is exchanged; and is what the clipper finds
    for each example the gradient that an ordinary backward pass gives.

    Args:
        model: the model that ``clipper`` is attached to, on the device it will train on.
        clipper: between logical batches; it is left as it was found.
        losses: the forward and loss that training will use.
        structure: see :func:`structure_of`.
        rows_each: rows that one example becomes inside the model, such as the choices of a question.

    Raises:
        SensitivityError: an example's gradient depends on another example.
        UnsupportedModelError: the clipper does not find the true gradients, or a buffer takes data in; by name.
        ValueError: ``losses`` does not return one loss per example.
    """
    device = next(model.parameters()).device
    rows = clipper.rows or 4
    with untouched(model):
        first, second = (make(structure, rows, seed=seed, device=device) for seed in (1, 2))
        _check_shape(losses, first, rows)
        _check_buffers(model, losses, first, second)
        sizes = (1,) if clipper.rows else (3, 5)
        for size in sizes:
            with clipper.rehearsal(size):
                _run(losses, make(structure, size, seed=size, device=device))
        if clipper.rows is None:  # before the clipper is asked: where examples meet no other one helps
            _check_exchange(model, losses, first, second)
        for size in sizes:
            _gradient(clipper, losses, make(structure, size, seed=size, device=device), _only(size), rows_each)
        if clipper.rows is None:
            _check_exact(model, clipper, losses, first, rows_each)


def clipper_for(
    model: nn.Module, losses: Losses, structure: Structure, *, max_grad_norm: float, rows_each: int = 1
) -> Clipper:
    """The fastest clipper that the probe finds exact, on made-up data; a warning says when that is the slow one.

    Raises:
        SensitivityError: examples meet in the model or in its loss, so no clipper is exact.
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

    Returns:
        The attached clipper, and None or the reason for the slow one, to be announced.

    Raises:
        SensitivityError: examples meet, so no clipper can help.
        UnsupportedModelError: a module mixes examples by its nature.
    """
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


def make(structure: Structure, rows: int, *, seed: int, device: torch.device) -> Any:
    """A made-up batch of ``rows`` examples on ``device``: the structure with drawn values in the place of each field.

    Equal seeds give equal batches.
    """
    source = torch.Generator().manual_seed(seed)

    def build(part: Any) -> Any:
        if isinstance(part, Field):
            return part.draw(rows, source=source).to(device)
        if isinstance(part, Mapping):
            return {key: build(value) for key, value in part.items()}
        if isinstance(part, list | tuple):
            return type(part)(build(value) for value in part)
        return part

    return build(structure)


@contextmanager
def untouched(model: nn.Module) -> Generator[None]:
    """Put buffers, training modes and the generators of torch back at the end, whatever happens."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    modes = {name: module.training for name, module in model.named_modules()}
    devices = [d for d in {p.device for p in model.parameters()} if d.type == "cuda"]
    numpys, pythons = np.random.get_state(), random.getstate()  # noqa: NPY002 — wav2vec 2.0 masks its input by it
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            np.random.set_state(numpys)  # noqa: NPY002
            random.setstate(pythons)
            with torch.no_grad():
                for name, buffer in model.named_buffers():
                    if name in buffers and buffers[name].shape == buffer.shape:
                        buffer.copy_(buffers[name])
            for name, module in model.named_modules():
                module.training = modes[name]


def _exchanged(batch: Any, other: Any, row: int) -> Any:
    """``batch`` with one record taken from ``other``."""
    if isinstance(batch, Tensor):
        mixed = batch.clone()
        mixed[row] = other[row]
        return mixed
    if isinstance(batch, Mapping):
        return {key: _exchanged(value, other[key], row) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(_exchanged(a, b, row) for a, b in zip(batch, other, strict=True))
    return batch


def _only(rows: int, example: int | None = None) -> Tensor:
    """The mask of one example, or of all."""
    return torch.ones(rows, dtype=torch.bool) if example is None else torch.arange(rows) == example


def _run(losses: Losses, batch: Any) -> Tensor:
    """The user's losses, with every generator at the same place each time."""
    torch.default_generator.manual_seed(0)
    np.random.set_state(np.random.RandomState(0).get_state())  # noqa: NPY002 — `untouched` puts it back
    random.setstate(random.Random(0).getstate())  # noqa: S311 — made-up data
    for place in {tensor.device for tensor in pytree.tree_leaves(batch) if isinstance(tensor, Tensor)}:
        if place.type == "cuda":  # those that `untouched` puts back, and no other process's
            with torch.cuda.device(place):
                torch.cuda.manual_seed(0)
    try:
        with torch.enable_grad():
            return losses(batch)
    except RuntimeError as error:
        raise UnsupportedModelError(
            f"probe: the model failed on a made-up batch: {str(error).splitlines()[0]}; check the structure's shapes "
            "and tops, and that the model takes any number of examples"
        ) from error


def _gradient(clipper: Clipper, losses: Losses, batch: Any, mask: Tensor, rows_each: int) -> dict[str, Tensor]:
    """What the clipper makes of the examples in the mask, unclipped."""
    with clipper.unclipped():
        clipper.begin(mask, rows_each=rows_each)
        found = _run(losses, batch)
        try:
            clipper.backward(found)
        except SensitivityError as escaped:  # not between examples: a gradient that the clipper does not see
            raise UnsupportedModelError(str(escaped)) from escaped
        return clipper.take().gradients


def _plain(model: nn.Module, losses: Losses, batch: Any, example: int) -> dict[str, Tensor]:
    """The gradient of one example's loss by ordinary autograd, outside any batch of the clipper's."""
    parameters = trainable(model)
    found = torch.autograd.grad(_run(losses, batch)[example], list(parameters.values()), materialize_grads=True)
    return {name: value.float() for name, value in zip(parameters, found, strict=True)}


def _check_shape(losses: Losses, batch: Any, rows: int) -> None:
    with torch.no_grad():
        shape = tuple(_run(losses, batch).shape)
    _check.require(
        shape == (rows,),
        "losses.shape",
        shape,
        wanted=f"({rows},), one loss per example",
        remedy="pass reduction='none' and reduce over everything but the examples",
    )


def _check_exchange(model: nn.Module, losses: Losses, first: Any, second: Any) -> None:
    """Exchange the first record, and then the last, and compare the gradient of every other one with what it was."""
    rows = _run(losses, first).shape[0]
    before = [_plain(model, losses, first, other) for other in range(rows)]
    for row in (0, rows - 1):
        mixed = _exchanged(first, second, row)
        for other in set(range(rows)) - {row}:
            name, change = _largest_change(before[other], _plain(model, losses, mixed, other))
            if not change <= _SAME:
                raise SensitivityError(
                    f"probe: exchanging example {row} changed example {other}'s gradient of {name!r} by "
                    f"{change:.2g} of its norm; take the mean of each example's own loss, never over the tokens of the "
                    "batch, and use no negatives and no statistics from the batch"
                )


def _check_exact(model: nn.Module, clipper: Clipper, losses: Losses, batch: Any, rows_each: int) -> None:
    """Compare what the clipper finds, unclipped, with the gradients of ordinary backward passes.

    Dropout is off meanwhile, because the two passes need not draw alike.
    """
    _still(model)
    with _without_dropout(model):
        rows = _run(losses, batch).shape[0]
        each = [_plain(model, losses, batch, example) for example in range(rows)]
        for example in range(rows):
            found = _gradient(clipper, losses, batch, _only(rows, example), rows_each)
            name, change = _largest_change(each[example], found)
            if not change <= _SAME:
                raise UnsupportedModelError(
                    f"probe: the gradient found for parameter {name!r} is off by {change:.2g} of the norm; "
                    "the examples may not come first in a tensor that reaches it; train with physical batches of one "
                    "(OneByOne)"
                )
        together = _gradient(clipper, losses, batch, _only(rows), rows_each)
        name, change = _largest_change(
            {n: torch.stack([one[n] for one in each]).sum(0) for n in together}, together, among=each
        )
        if not change <= _SAME:
            raise UnsupportedModelError(
                f"probe: all examples together give parameter {name!r} another gradient than they give one by one, by "
                f"{change:.2g} of the norm; something on the way back (a hook, a backward pass of your own) looks at "
                "the whole batch; train with physical batches of one (OneByOne)"
            )


def check_same_alone(model: nn.Module, losses: Losses, beside: Any, alone: Any) -> None:
    """Refuse a model in which example 0's gradient is another in the batch ``beside`` than in the batch ``alone``.

    Both hold the same example, padded in the one as a longer record beside it wants, and unpadded in the other.

    Raises:
        SensitivityError: the model reads its padding.
    """
    with untouched(model):
        _still(model)
        with _without_dropout(model):
            pair = [_plain(model, losses, batch, 0) for batch in (alone, beside)]
    name, change = _largest_change(*pair)
    finite = all(bool(value.isfinite().all()) for value in pair[0].values())
    if finite and not change <= _SAME:
        raise SensitivityError(
            f"probe: the padding that a longer record brings changed an example's gradient of {name!r} by {change:.2g} "
            "of its norm; pad every record to one public length (padding='max_length'), or keep padding out of the "
            "model with a mask"
        )


def _still(model: nn.Module) -> None:
    """Dropout off: the two passes need not draw alike."""
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.RNNBase):  # cuDNN has no backward in eval mode
            module.train()


@contextmanager
def _without_dropout(model: nn.Module) -> Generator[None]:
    """Switch off the dropout inside recurrent layers, which are kept in training mode."""
    recurrent = [(module, module.dropout) for module in model.modules() if isinstance(module, nn.RNNBase)]
    for module, _ in recurrent:
        module.dropout = 0.0
    try:
        yield
    finally:
        for module, dropout in recurrent:
            module.dropout = dropout


def _largest_change(
    one: dict[str, Tensor], two: dict[str, Tensor], *, among: Sequence[dict[str, Tensor]] = ()
) -> tuple[str, float]:
    """The name of the parameter whose gradients differ most, and their distance over the norm of all of ``one``.

    A sum whose terms may cancel is compared with the norm of all the terms that it is ``among``.
    """
    whole = max(float(torch.stack([g.norm() for each in among or [one] for g in each.values()]).norm()), 1e-30)
    changes = {name: float((one[name] - two[name]).norm()) / whole for name in one}
    name = max(changes, key=lambda n: (changes[n] != changes[n], changes[n]))  # NaN counts as the largest
    return name, changes[name]


def _check_buffers(model: nn.Module, losses: Losses, first: Any, second: Any) -> None:
    """Refuse a model with a buffer that depends on the data after a forward: it would carry them out without noise."""
    after: list[dict[str, Tensor]] = []
    for batch in (first, second):
        with untouched(model), torch.no_grad():
            _run(losses, batch)
            after.append({name: buffer.clone() for name, buffer in model.named_buffers()})
    for name, value in after[0].items():
        if not torch.equal(value, after[1][name]):
            raise UnsupportedModelError(
                f"buffer={name!r}: takes the data in during the forward, where no noise protects it; freeze or "
                "remove it"
            )
