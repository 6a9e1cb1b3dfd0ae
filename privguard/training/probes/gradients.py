# SPDX-License-Identifier: Apache-2.0
"""Gradients of single examples of a synthetic batch, and a model on loan: everything is put back afterwards."""

import random
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.backends import cuda, cudnn, mkldnn

from privguard.errors import SensitivityError, UnsupportedModelError
from privguard.training import structure as trees
from privguard.training.bookkeeping.precision import uncast
from privguard.training.clip import Clipper, gradients_of, trainable
from privguard.training.probes.buffers import of_weights

Losses = Callable[[Any], Tensor]
"""The user's forward and loss: a collated batch → one loss per example, (B,)."""

Gradients = dict[str, Tensor]
"""By name of the parameter, float32."""

_SIXTEEN_BITS = {torch.float16, torch.bfloat16}
_SMALL = 0.02  # deviation of what stands in for a weight of zeros


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


@contextmanager
def float32_copies(model: nn.Module) -> Generator[set[torch.dtype]]:
    """Inside, the model computes in IEEE float32: 16-bit weights are exchanged for copies, autocast and TF32 are off.

    Tensors keep their identity, so taps and hooks stay, and at the end each holds the bits that it held before. A
    trainable matrix of zeros, as a fresh head or LoRA has, is exchanged for a small random one: it would hide whatever
    lies behind it. Yields the 16-bit types that were kept out: those of the weights at once, that of autocast when a
    forward has asked for it.
    """
    device = next(model.parameters()).device
    with ExitStack() as stack:
        stack.enter_context(_ieee())
        stack.enter_context(uncast(device))
        kept_out = stack.enter_context(_no_autocast())
        held: list[tuple[Tensor, Tensor]] = []
        source = torch.Generator().manual_seed(0)
        try:
            for tensor in {id(t): t for t in (*model.parameters(), *model.buffers())}.values():
                if (copied := _float32_copy(tensor, source)) is not None:
                    held.append((tensor, tensor.data))
                    tensor.data = copied
            kept_out.update({data.dtype for _, data in held} & _SIXTEEN_BITS)
            yield kept_out
        finally:
            for tensor, data in held:
                tensor.data = data


def run(losses: Losses, batch: Any) -> Tensor:
    """The user's losses, with every generator at the same place each time."""
    torch.default_generator.manual_seed(0)
    np.random.set_state(np.random.RandomState(0).get_state())  # noqa: NPY002 — `untouched` puts it back
    random.setstate(random.Random(0).getstate())  # noqa: S311 — synthetic data
    for place in {tensor.device for tensor in trees.tensors(batch)}:
        if place.type == "cuda":  # those that `untouched` puts back, and no other process's
            with torch.cuda.device(place):
                torch.cuda.manual_seed(0)
    try:
        with torch.enable_grad():
            return losses(batch)
    except RuntimeError as error:
        raise UnsupportedModelError(
            f"probe: the model failed on a synthetic batch: {str(error).splitlines()[0]}; check the structure's shapes "
            "and tops, and that the model takes any number of examples"
        ) from error


def plain(model: nn.Module, losses: Losses, batch: Any, example: int) -> Gradients:
    """The gradient of one example's loss by ordinary autograd, outside any batch of the clipper's."""
    parameters = trainable(model)
    with _still(model):
        gradients = gradients_of(run(losses, batch)[example], parameters)
    return {n: gradients[n] if n in gradients else torch.zeros_like(p).float() for n, p in parameters.items()}


@contextmanager
def _still(model: nn.Module) -> Generator[None]:
    """Put back what power iteration made of the weights, which would move the next gradient.

    Every other buffer stays as the forward left it: that is how a record is seen to meet those of an earlier batch.
    """
    before = [(buffer, buffer.detach().clone()) for buffer in map(model.get_buffer, of_weights(model))]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


def clipped(clipper: Clipper, losses: Losses, batch: Any, mask: Tensor, rows_each: int) -> Gradients:
    """What the clipper makes of the examples in the mask, unclipped."""
    with clipper.unclipped():
        clipper.begin(mask, rows_each=rows_each)
        values = run(losses, batch)
        try:
            clipper.backward(values)
        except SensitivityError as escaped:  # not between examples: a gradient that the clipper does not see
            raise UnsupportedModelError(str(escaped)) from escaped
        return clipper.take().gradients


def only(rows: int, example: int | None = None) -> Tensor:
    """The mask of one example, or of all."""
    return torch.ones(rows, dtype=torch.bool) if example is None else torch.arange(rows) == example


@contextmanager
def without_dropout(model: nn.Module) -> Generator[None]:
    """Dropout off: two passes need not draw alike. Recurrent layers stay in training mode, without their dropout."""
    modes = [(module, module.training) for module in model.modules()]
    recurrent = [(module, module.dropout) for module in model.modules() if isinstance(module, nn.RNNBase)]
    model.eval()
    for module, _ in recurrent:
        module.train()  # cuDNN has no backward in eval mode
        module.dropout = 0.0
    try:
        yield
    finally:
        for module, dropout in recurrent:
            module.dropout = dropout
        for module, mode in modes:
            module.training = mode


def is_finite(gradients: Gradients) -> bool:
    """Whether no number of them is NaN or infinite."""
    return all(bool(value.isfinite().all()) for value in gradients.values())


def largest_change(one: Gradients, two: Gradients, *, among: Sequence[Gradients] = ()) -> tuple[str, float]:
    """The name of the parameter whose gradients differ most, and their distance over the norm of all of ``one``.

    A sum whose terms may cancel is compared with the norm of all the terms that it is ``among``.
    """
    norms = [g.norm() for each in among or [one] for g in each.values() if g.numel()]
    whole = max(float(torch.stack(norms).norm()), 1e-30) if norms else 1e-30
    changes = {name: float((one[name] - two[name]).norm()) / whole for name in one}
    name = max(changes, key=lambda n: (changes[n] != changes[n], changes[n]))  # NaN counts as the largest
    return name, changes[name]


def _float32_copy(tensor: Tensor, source: torch.Generator) -> Tensor | None:
    """What takes the tensor's place in float32, or None where it can stay."""
    matrix = tensor.requires_grad and tensor.ndim > 1 and tensor.is_floating_point()
    if matrix and tensor.numel() and not tensor.detach().any():
        small = torch.randn(tensor.shape, generator=source) * _SMALL
        return small.to(tensor.device, torch.float32 if tensor.dtype in _SIXTEEN_BITS else tensor.dtype)
    return tensor.data.float() if tensor.dtype in _SIXTEEN_BITS else None


@contextmanager
def _ieee() -> Generator[None]:
    """Inside, no product of float32 is computed in fewer bits."""
    libraries: tuple[Any, ...] = (cudnn, mkldnn)
    switches = [cuda.matmul, libraries[1].matmul, *(part for lib in libraries for part in (lib.conv, lib.rnn))]
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = "ieee"
    try:
        yield
    finally:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision


@contextmanager
def _no_autocast() -> Generator[set[torch.dtype]]:
    """Inside, ``torch.autocast`` does nothing, also where a function of the user's enters it; yields what it wanted."""
    kind: Any = torch.amp.autocast_mode.autocast
    own, wanted = (kind.__enter__, kind.__exit__), set[torch.dtype]()

    def enter(asked: Any) -> Any:
        if asked._enabled:  # noqa: SLF001 — torch has no public name for it
            wanted.add(asked.fast_dtype)
        return asked

    kind.__enter__, kind.__exit__ = enter, lambda *_: False
    try:
        yield wanted
    finally:
        kind.__enter__, kind.__exit__ = own
