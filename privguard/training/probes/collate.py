# SPDX-License-Identifier: Apache-2.0
"""What a collate function does to records that go forward together: asked before step 1, with synthetic records.

One that mixes records (mixup, CutMix) puts one record into several rows, and clipping rows bounds none of them. One
that pads to the longest lets a long record change how much padding the others see, which is harmless only where the
model does not read padding. Both are checked with records of the real ones' shapes and synthetic values.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader

from privguard.errors import SensitivityError
from privguard.training import rng_state
from privguard.training.clip import Clipper
from privguard.training.probes.examples import check_same_alone
from privguard.training.probes.gradients import Losses
from privguard.training.probes.synthetic import Pattern

Collate = Callable[[list[Any]], Any]
_TRIES = 8  # a collate function may mix only now and then
_LONGER = 5  # places by which the longer of two synthetic records exceeds the other


def refuse_meeting(
    clipper: Clipper,
    model: nn.Module,
    losses: Losses | None,
    loader: DataLoader[Any],
    *,
    top: int = 2,
    outputs: Losses | None = None,
) -> Clipper:
    """``clipper`` itself, unless records meet where the loader puts them together; it is closed where they do.

    Where one record goes forward at a time there is nothing to meet. For the other arguments see the functions below.

    Raises:
        SensitivityError: the collate function mixes records, or the model reads the padding that it makes.
    """
    dataset = cast("Any", loader.dataset)
    if clipper.rows == 1 or len(dataset) == 0:
        return clipper
    pattern = Pattern(dataset[0], top)
    try:
        open_questions = [refuse_mixing(loader.collate_fn, pattern)]
        if losses is not None:
            open_questions.append(refuse_read_padding(model, losses, loader.collate_fn, pattern, outputs=outputs))
    except BaseException:
        clipper.close()
        raise
    clipper.unchecked += tuple(sentence for sentence in open_questions if sentence is not None)
    return clipper


def refuse_mixing(collate: Collate, pattern: Pattern) -> str | None:
    """Refuse a collate function by which one record changes the rows of others.

    Returns:
        None, or a sentence about what could not be checked: a function that fails on synthetic records, or that draws
        from a generator of its own, tells nothing.

    Raises:
        SensitivityError: it mixes records.
    """
    mixes = _mixes(collate, pattern)
    if isinstance(mixes, str):
        return mixes
    if mixes:
        raise SensitivityError(
            f"collate_fn={getattr(collate, '__name__', type(collate).__name__)}: exchanging the last record changed "
            "the rows of others; each row has to come from one record, so leave mixup, CutMix and negatives from the "
            "batch out"
        )
    return None


def _mixes(collate: Collate, pattern: Pattern) -> bool | str:
    before = rng_state.states()
    try:
        first = [pattern.made_up(number) for number in range(4)]
        for attempt in range(_TRIES):
            here, exchanged = rng_state.states(), [*first[:3], pattern.made_up(4 + attempt)]
            one, again, other = (_collated(collate, records, here) for records in (first, first, exchanged))
            if _differ(one, again, rows=4):
                return _unchecked("the collate function mixes records", "it draws from a generator of its own")
            if _differ(one, other, rows=4, but=1):
                return True
    except Exception as error:  # synthetic records need not make sense to a function of the user's: no fault of its
        return _unchecked("the collate function mixes records", f"{type(error).__name__} on synthetic records")
    finally:
        rng_state.restore(before)
    return False


def refuse_read_padding(
    model: nn.Module, losses: Losses, collate: Collate, pattern: Pattern, *, outputs: Losses | None = None
) -> str | None:
    """Refuse a model that reads the padding that its collate function makes.

    Args:
        model: the model, outside any batch of its clipper.
        losses: the forward and loss that training will use.
        collate: the loader's own function.
        pattern: what synthetic records look like.
        outputs: where the loss is made up, what it is made from: if an example's part of that grows with the padding,
            so does the synthetic loss, which tells nothing.

    Returns:
        None, or a sentence about what could not be checked. A function that takes no records of several lengths makes
        no padding, so there is nothing to check.

    Raises:
        SensitivityError: a longer record beside it changes an example's gradient.
    """
    before = rng_state.states()
    try:
        if not _takes_lengths(collate, pattern):
            return None
        pair = _padded(collate, pattern, next(model.parameters()).device)
        if pair is None:
            return None
        beside, alone = pair
        if outputs is not None:
            with torch.no_grad():
                if outputs(beside).shape[1:] != outputs(alone).shape[1:]:
                    return _unchecked("the loop's loss reads padding", "the model's outputs grow with it")
        check_same_alone(model, losses, beside, alone)
    except SensitivityError:
        raise
    except Exception as error:  # as above; the model, too, may refuse what is made up
        return _unchecked("the model reads padding", f"{type(error).__name__} on synthetic records")
    finally:
        rng_state.restore(before)
    return None


def _unchecked(what: str, reason: str) -> str:
    """That the claim rests on the user's word here. No text of an error, which may quote a record."""
    return f"Whether {what} could not be checked: {reason}. The claim assumes that it does not."


def _takes_lengths(collate: Collate, pattern: Pattern) -> bool:
    """Whether the function puts records of two lengths together; one that takes neither has its say elsewhere."""
    add = -_LONGER if pattern.length > _LONGER else _LONGER
    try:
        collate([pattern.made_up(0, longer=add), pattern.made_up(1)])
    except Exception:  # default_collate on fixed widths: no record can bring padding
        return False
    return True


def _collated(collate: Collate, records: Sequence[Any], chance: Mapping[str, Any]) -> Any:
    rng_state.restore(chance)
    return collate(copy.deepcopy(list(records)))  # some take what they are given apart


def _differ(one: Any, other: Any, *, rows: int, but: int = 0) -> bool:
    """Whether two batches differ in rows other than the last ``but``, or in a number for the whole batch."""
    pairs = zip(_all_numbers(one), _all_numbers(other), strict=True)
    seen = [(a[: rows - but], b[: rows - but]) if a.ndim else (a, b) for a, b in pairs if not a.ndim or len(a) == rows]
    return any(a.shape != b.shape or not torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in seen)


def _tensors(batch: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(_plain(batch)) if isinstance(leaf, Tensor)]


def _all_numbers(batch: Any) -> list[Tensor]:
    """Tensors, numbers and lists of numbers."""

    def whole(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(one, int | float) for one in cast("list[Any]", value))

    leaves = pytree.tree_leaves(_plain(batch), is_leaf=whole)
    return [torch.as_tensor(leaf) for leaf in leaves if isinstance(leaf, Tensor | int | float) or whole(leaf)]


def _plain(batch: Any) -> Any:
    """Mappings of any class as dictionaries, which torch knows how to take apart."""
    if isinstance(batch, Mapping):
        return {key: _plain(value) for key, value in cast("Mapping[str, Any]", batch).items()}
    if isinstance(batch, list | tuple):
        return [_plain(value) for value in batch]
    return batch


def _padded(collate: Collate, pattern: Pattern, device: torch.device) -> tuple[Any, Any] | None:
    """A batch of a short record beside a longer one, and the same batch's short record without its padding."""
    add = (-_LONGER, 0) if pattern.length > _LONGER else (0, _LONGER)  # no longer than the model can take
    short, longer = (pattern.made_up(number, longer=add[number]) for number in (0, 1))
    beside, alone = (_plain(collate(copy.deepcopy(records))) for records in ([short, longer], [short]))
    wide = [(a, b) for a, b in zip(_tensors(beside), _tensors(alone), strict=True) if a.shape[1:] != b.shape[1:]]
    if not wide:
        return None
    ends = [_cut(a[:1], b.shape) for a, b in wide]
    agree = [sum(int((pair[side] == b).sum()) for pair, (_, b) in zip(ends, wide, strict=True)) for side in (0, 1)]
    side = 0 if agree[0] >= agree[1] else 1
    shapes = iter(_tensors(alone))

    def own(value: Tensor) -> Tensor:
        shape = next(shapes).shape
        return (_cut(value[:1], shape)[side] if shape else value).to(device)

    without = pytree.tree_map_only(Tensor, own, beside)
    return pytree.tree_map_only(Tensor, lambda value: value.to(device), beside), without


def _cut(row: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """The beginning and the end of a row, as long as ``shape`` says in each dimension."""
    first = last = row
    for dimension, size in enumerate(shape):
        first = first.narrow(dimension, 0, size)
        last = last.narrow(dimension, row.shape[dimension] - size, size)
    return first, last
