# SPDX-License-Identifier: Apache-2.0
"""What a model keeps of the records outside its parameters: buffers, and tensors as plain attributes.

A buffer is in every checkpoint and no noise protects it. The probe looks at what two synthetic batches leave behind
(``privguard.training.probes.examples``); here the same is asked of real forwards, since a model may write one only
in a batch of another size or kind. A buffer that moves in the probe moves by itself, such as an average of the weights:
there it was the same after two batches. The vectors of spectral normalisation follow the weights alone and move when
these do, so no probe has to see them move. What moves by itself moves once in every forward, though, and how many
forwards there were depends on the draws: the claim names it.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.utils import _pytree as pytree

from privguard.errors import InteractionError

_COPIED = 1 << 22  # numbers of a tensor that is compared by a copy; a larger one by torch's count of its changes

_Kept = dict[str, tuple[Tensor, int]]


@final
class BufferChecks:
    """Whether real forwards write the buffers of ``model`` that its ``state_dict`` holds.

    Whole numbers without a dimension may count batches.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._moving = set(of_weights(model))
        self._before: _Kept | None = None

    @contextmanager
    def learning(self) -> Generator[None]:
        """Inside, forwards are of synthetic batches: what they change moves by itself."""
        before = _kept(self._model)
        try:
            yield
        finally:
            self._moving |= set(_changed(before, _kept(self._model)))

    def begin(self) -> None:
        """A real forward is about to start."""
        self._before = _kept(self._model)

    def changed(self) -> str | None:
        """The first buffer that changed since ``begin``, if it was called."""
        before, self._before = self._before, None
        if before is None:
            return None
        return next((name for name in _changed(before, _kept(self._model)) if name not in self._moving), None)


def refuse_changed(name: str | None) -> None:
    """Refuse a forward in which this buffer changed.

    Raises:
        InteractionError: there is one; where steps were released, the claim is void.
    """
    if name is not None:
        raise InteractionError(
            f"buffer={name!r}: changed in a forward, so it may hold the records of the batch, without noise; "
            "freeze or remove it, and update what follows from the weights alone after private.step()"
        )


def saved(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the buffers that ``state_dict`` holds, by name, counts of batches included."""
    return {name: buffer.detach().clone() for name, buffer in _persistent(model, counts=True)}


def moved_by_itself(model: nn.Module, before: dict[str, Tensor], after: dict[str, Tensor]) -> str | None:
    """A sentence about buffers that every forward updates, whatever the records are, or None.

    Args:
        model: the model, whose spectral normalisations may stand still for now.
        before: ``saved`` before a forward.
        after: ``saved`` after it, with nothing that depends on the records.
    """
    moving = [name for name, value in after.items() if name not in before or not _same(before[name], value)]
    if not (names := sorted({*moving, *of_weights(model)})):
        return None
    return (
        f"Every forward updates buffers that checkpoints hold ({', '.join(names[:3])}): they follow no record's "
        "values, but can tell how many physical batches were drawn, without noise."
    )


def attributes(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the tensors that modules keep as plain attributes, by place; neither parameters nor buffers."""
    places: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name.startswith("_") and name in vars(nn.Module()):  # torch's own: parameters, buffers, hooks
                continue
            held: Any = value if isinstance(value, Tensor | list | tuple | dict) else ()
            for number, leaf in enumerate(pytree.tree_leaves(held)):
                if isinstance(leaf, Tensor) and not isinstance(leaf, nn.Parameter) and leaf.numel() <= _COPIED:
                    places[f"{path}.{name}[{number}]".removeprefix(".").removesuffix("[0]")] = leaf.detach().clone()
    return places


def kept_of_records(one: dict[str, Tensor], other: dict[str, Tensor]) -> str | None:
    """A sentence about plain attributes that differ after two batches, or None."""
    differing = [name for name, value in one.items() if name not in other or not _same(value, other[name])]
    if not differing:
        return None
    return (
        f"The model keeps tensors that depend on the records as plain attributes ({', '.join(differing[:3])}): no "
        "checkpoint of this run holds them, but a pickled model object carries them out without noise."
    )


def _persistent(model: nn.Module, *, counts: bool = False) -> Iterator[tuple[str, Tensor]]:
    for path, module in model.named_modules():
        hidden = module._non_persistent_buffers_set  # noqa: SLF001 — torch has no public name for it
        for name, buffer in module.named_buffers(recurse=False):
            is_count = buffer.dim() == 0 and not buffer.is_floating_point()
            if name not in hidden and (counts or not is_count):
                yield f"{path}.{name}".removeprefix("."), buffer


def of_weights(model: nn.Module) -> Iterator[str]:
    """The vectors of torch's own spectral normalisations, which power iteration makes of the weight alone.

    Args:
        model: the model to train.

    Yields:
        Names of buffers.
    """
    for path, module in model.named_modules():
        names = ["_u", "_v"] if type(module) is _SpectralNorm else []
        hooks: list[Any] = list(module._forward_pre_hooks.values())  # noqa: SLF001 — where the older form keeps itself
        for hook in hooks:
            if type(hook) is SpectralNorm:
                names += [f"{hook.name}_u", f"{hook.name}_v"]
        yield from (f"{path}.{name}".removeprefix(".") for name in names)


def _kept(model: nn.Module) -> _Kept:
    def version(buffer: Tensor) -> int:
        return 0 if buffer.is_inference() else buffer._version  # noqa: SLF001 — autograd's own count

    return {
        name: (buffer.detach().clone() if buffer.numel() <= _COPIED else buffer, version(buffer))
        for name, buffer in _persistent(model)
    }


def _changed(before: _Kept, after: _Kept) -> list[str]:
    def same(name: str) -> bool:
        if name not in before:
            return False
        (old, count), (new, count_now) = before[name], after[name]
        return _same(old, new) if max(old.numel(), new.numel()) <= _COPIED else old is new and count == count_now

    return [name for name in after if not same(name)]


def _same(one: Tensor, other: Tensor) -> bool:
    alike = one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
    return alike and torch.equal(one.nan_to_num(), other.nan_to_num())
