# SPDX-License-Identifier: Apache-2.0
"""The clipper that needs one backward pass: Bu et al. 2023, "Differentially Private Optimization on Foundation Models".

Forward: every module that owns trainable parameters is tapped. Backward: the taps collect factors. Afterwards: one norm
per example over all parameters, one clip factor, and one weighted sum per parameter.
"""

import itertools
from collections.abc import Collection, Generator, Hashable, Iterable
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor, nn

from privguard import _check
from privguard.errors import UnsupportedModelError
from privguard.training import shards
from privguard.training.bookkeeping.batch import Batch, Desk, Part, Tapped
from privguard.training.bookkeeping.factors import gather
from privguard.training.bookkeeping.gradients import Gradient, Inputs
from privguard.training.bookkeeping.isolation.halves import HalfChecks, on_any_rank
from privguard.training.bookkeeping.isolation.reach import check_leaves
from privguard.training.bookkeeping.norms import example_norms
from privguard.training.bookkeeping.precision import exact, uncast
from privguard.training.bookkeeping.rules import listen_to
from privguard.training.bookkeeping.shared import (
    is_of_all_windows,
    looks_up_bias,
    repeats_a_prompt,
    shared_method,
)
from privguard.training.clip import NO_BOUND, Checks, ClippedSum, EscapeAlarm, Total, Turn, clip_factors, trainable
from privguard.training.probes.buffers import BufferChecks, refuse_changed
from privguard.training.probes.modules import refuse_mixing
from privguard.training.ranks import Ranks

_HEAP_BLOCK = (32 << 20) - (8 << 10)  # bytes of the largest block that teaches glibc's malloc
BUDGET = 1 << 27  # numbers of per-example gradients that may be held at once: 512 MiB


@final
class BookKeeper:
    """A ``Clipper`` by book-keeping; see ``privguard.training.clip.attach``.

    Between *begin* and *backward* every forward with gradients is listened to, whether the model is in training mode or
    not. At any other time forwards are left alone, and a gradient that reaches a parameter is refused.
    """

    rows: int | None = None  # as many as fit in memory
    shape_term: float | None = None

    def __init__(self, model: nn.Module, *, max_grad_norm: float, budget: int = BUDGET) -> None:
        self._bound = float(_check.positive("max_grad_norm", max_grad_norm))
        refuse_mixing(model)
        self._parameters = trainable(model)
        self._cut = {name: p for name, p in self._parameters.items() if shards.is_cut(p)}
        self._budget = budget
        self._turn, self._total, self._desk = Turn(), Total(self._parameters), Desk()
        self._all_reached = False
        self._halves, self._new_step = HalfChecks(), True
        self._buffers = BufferChecks(model)
        self.checks: Checks | None = self._halves
        self.unchecked: tuple[str, ...] = ()
        tapped = tapped_modules(model, self._parameters, self._desk)
        ways = [listen_to(t.name, t.module) for t in tapped]  # everything is checked before anything is changed
        for one, way in zip(tapped, ways, strict=True):
            one.install(way)
        self._tapped = tapped
        self._alarm = EscapeAlarm(model, self._parameters)
        _keep_heap()

    def begin(self, mask: Tensor, *, rows_each: int = 1, shapes: Hashable = ()) -> None:
        """See ``Clipper.begin``."""
        self._alarm.begin()
        self._turn.begin(mask)
        self._total.count(len(mask))
        self._desk.batch = Batch(mask, rows_each, shapes)
        if self._new_step and self._bound != NO_BOUND:
            self._halves.begin_step()
            self._new_step = False
        if self._halves.due and self._bound != NO_BOUND:
            self._buffers.begin()

    def backward(self, losses: Tensor) -> None:
        """See ``Clipper.backward``."""
        mask, batch = self._turn.check(losses), self._desk.batch
        assert batch is not None  # noqa: S101 — the turn is open
        mask = mask.to(losses.device, non_blocking=True)  # once, and without waiting for the forward to be done
        device = next(iter(self._parameters.values())).device  # the model's: losses may have been moved
        try:
            with uncast(device):
                batch.forward = False
                self._check_reach(losses, batch)
                batch.collecting = True
                torch.autograd.backward(losses, mask.to(losses.dtype))
            batch.collecting = False
            self._check_reached(batch)
            with exact(device):
                self._close_books(batch, mask)
        finally:
            batch.collecting, self._desk.batch = False, None
            batch.factors.clear()
            self._turn.spend()

    def take(self) -> ClippedSum:
        """See ``Clipper.take``."""
        self._turn.end()
        self._new_step = True
        return self._total.take(self._bound)

    def close(self) -> None:
        """See ``Clipper.close``."""
        self._alarm.close()
        while self._tapped:
            self._tapped.pop().remove()

    @contextmanager
    def unclipped(self) -> Generator[None]:
        """See ``Clipper.unclipped``."""
        bound, self._bound = self._bound, NO_BOUND
        try:
            yield
        finally:
            self._bound, self._desk.batch = bound, None
            self._turn.reset()
            self._total.take(bound)

    @contextmanager
    def rehearsal(self, size: int) -> Generator[None]:
        """See ``Clipper.rehearsal``."""
        for one in self._tapped:
            one.layout.forget(size)
        self._desk.watched = size
        try:
            with self._buffers.learning():
                yield
        finally:
            self._desk.watched = None

    def _check_reach(self, losses: Tensor, batch: Batch) -> None:
        """What the probe asks of synthetic data, of the losses that are really sent backward; not in the probe itself.

        A model that is cut over ranks exchanges its parameters in every forward, so that the alarm alone tells its own
        from others.
        """
        if self._bound == NO_BOUND:
            return
        if not self._cut:
            check_leaves(losses, batch, self._parameters.values())
        together = Ranks.current().size > 1
        if self._halves.due:
            self._refuse_changed_buffer(losses, together=together)
        if self._halves.wanted(batch, together=together):
            self._halves.check(losses, batch, together=together)

    def _refuse_changed_buffer(self, losses: Tensor, *, together: bool) -> None:
        name = self._buffers.changed()
        if on_any_rank(name is not None, losses.device, together=together):
            refuse_changed(name or "of another rank")

    def _check_reached(self, batch: Batch) -> None:
        if self._all_reached or not batch.mask.any():
            return
        if missing := [name for name in self._parameters if name not in batch.reached]:
            raise UnsupportedModelError(
                f"parameters={missing}: trainable, but nothing in the forward used them through their own module; "
                "freeze them with requires_grad_(False), or train with physical batches of one (OneByOne)"
            )
        self._all_reached = True

    @torch.no_grad()
    def _close_books(self, batch: Batch, mask: Tensor) -> None:
        _check_apart(batch.factors)
        gradients: dict[Part, Gradient] = {}
        inputs = Inputs()
        for part in list(batch.factors):
            shape = part.shape(self._parameters[part.name].shape)
            gradients[part] = gather(batch.factors.pop(part), shape, budget=self._budget, inputs=inputs)
        factors = self._factors(gradients.values(), mask)
        silent = factors == 0
        any_silent = bool(silent.any())

        def add(part: Part, into: Tensor) -> None:
            gradient = gradients.pop(part)
            if any_silent:
                gradient.silence(silent)
            gradient.add_weighted(factors, part.of(into))

        for part in [part for part in gradients if part.name not in self._cut]:
            add(part, self._total.slot(part.name))
        for name, parameter in self._cut.items():  # in the model's order, and all of them: every rank comes along
            mine = torch.zeros(parameter.shape, dtype=torch.float64, device=parameter.device)
            for part in [part for part in gradients if part.name == name]:
                add(part, mine)
            self._total.add_over_ranks(name, mine)

    def _factors(self, gradients: Collection[Gradient], mask: Tensor) -> Tensor:
        """The clip factor of each example, (B,) float64; zero where it is padding or not finite."""
        if not gradients:
            return torch.zeros(len(mask), dtype=torch.float64)
        norms = example_norms(gradients, max_norm=self._bound)
        norms = torch.where(mask.to(norms.device), norms, torch.inf)
        return clip_factors(norms, max_norm=self._bound)


def _check_apart(parts: Iterable[Part]) -> None:
    """Refuse uses of one parameter that overlap without being the same: their norms lack what they have in common."""
    by_name: dict[str, list[Part]] = {}
    for part in parts:
        by_name.setdefault(part.name, []).append(part)
    for name, mine in by_name.items():
        for one, two in itertools.combinations(mine, 2):
            if one.overlaps(two):
                raise UnsupportedModelError(
                    f"parameter={name!r}: used as a whole in one place and by its rows in another; give each use a "
                    "parameter of its own, or train with physical batches of one (OneByOne)"
                )


def _keep_heap() -> None:
    """Let the process keep the memory that the factors of one batch leave to those of the next.

    They are freed all at once, and glibc gives the end of its heap back to the system when more is free there than
    twice the largest block that was ever mapped and freed (mallopt(3), M_MMAP_THRESHOLD): 2 % of a step goes into
    faulting it in again. So the largest block that counts is mapped and freed once; nothing touches its pages.
    """
    torch.empty(_HEAP_BLOCK, dtype=torch.uint8)


def tapped_modules(model: nn.Module, parameters: dict[str, nn.Parameter], desk: Desk) -> list[Tapped]:
    """The modules that own trainable parameters, and those that repeat one computed prompt for the batch.

    One that is never called itself, such as a list or a dictionary of parameters, leaves them to the module around it.
    """
    names = {id(p): name for name, p in parameters.items()}
    found: dict[str, dict[str, str]] = {}
    for path, module in model.named_modules():
        for local, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in names:
                continue
            owner = _owner(model, path)
            inside = f"{path}.{local}".removeprefix(owner).strip(".")
            found.setdefault(owner, {})[inside] = names[id(parameter)]
    for path, module in model.named_modules():
        if repeats_a_prompt(module):
            found.setdefault(path, {})
    owners = {owner: model.get_submodule(owner) for owner in found}
    return [Tapped(owner, module, found[owner], desk, shared_method(module)) for owner, module in owners.items()]


def _owner(model: nn.Module, path: str) -> str:
    above, _, child = path.rpartition(".")
    if isinstance(model.get_submodule(path), nn.ParameterList | nn.ParameterDict):
        return _owner(model, above)
    if path and type(model.get_submodule(above)) is nn.MultiheadAttention:  # uses its out_proj without calling it
        return above
    if looks_up_bias(model.get_submodule(above), child):
        return above
    steps = path.split(".")
    for place, step in enumerate(steps):
        around = ".".join(steps[:place])
        if step == "parametrizations" or is_of_all_windows(model.get_submodule(around), step):
            return around
    return path
