# SPDX-License-Identifier: Apache-2.0
"""One physical batch, and what is heard in it."""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from privguard.errors import SensitivityError, UnsupportedModelError
from privguard.training.bookkeeping.factors import Factor, Outer
from privguard.training.bookkeeping.isolation.layout import SHARED, Layout
from privguard.training.bookkeeping.taps import tap


@final
@dataclass(frozen=True)
class Part:
    """A parameter, or the rows ``start`` to ``stop`` of it that one projection of an attention layer uses."""

    name: str
    start: int | None = None
    stop: int | None = None

    @property
    def whole(self) -> bool:
        """Whether this is all of the parameter."""
        return self.start is None

    def overlaps(self, other: "Part") -> bool:
        """Whether two different parts of one parameter have rows in common."""
        (first, end), (others, others_end) = ((p.start or 0, inf if p.stop is None else p.stop) for p in (self, other))
        return max(first, others) < min(end, others_end)

    def of(self, whole: Tensor) -> Tensor:
        """This part of a tensor of the parameter's shape."""
        return whole[self.start : self.stop] if self.start is not None else whole

    def shape(self, whole: torch.Size) -> torch.Size:
        """The shape of this part, of a parameter of that shape."""
        rows = range(whole[0])[self.start : self.stop] if self.start is not None else None
        return whole if rows is None else torch.Size((len(rows), *whole[1:]))


@final
class Batch:
    """B examples under way between *begin* and the end of *backward*, and the factors collected for them.

    ``root`` makes the graph exist below the first module; it never gets a gradient, so all batches share it.
    """

    root: ClassVar[Tensor] = torch.zeros((), requires_grad=True)

    def __init__(self, mask: Tensor, rows_each: int = 1, shapes: Hashable = ()) -> None:
        self.mask = mask
        self.size = len(mask)
        self.rows = len(mask) * rows_each
        self.collecting = False  # true only while its own backward runs
        self.shapes = shapes  # of what went forward, without the examples' dimension
        self.forward = True  # until the losses are sent backward
        self.half: Tensor | None = None  # while the losses of these examples are sent backward to see where they reach
        self.reaches: list[tuple[str, Tensor]] = []  # by module, whether they reached rows of others
        self.uses = Counter[str]()
        self.rows_at: dict[tuple[str, int], int] = {}  # by module and number of its use, its rows
        self.factors: dict[Part, list[Factor]] = defaultdict(list)
        self.reached: set[str] = set()


@final
@dataclass
class Desk:
    """What all tapped modules of a model share: the batch that is under way, if any.

    Attributes:
        batch: what is listened to.
        watched: in its place, how many examples a synthetic batch has of which the shapes alone are noted.
    """

    batch: Batch | None = None
    watched: int | None = None


@final
@dataclass(frozen=True)
class Call:
    """What one use of a module saw and what came back; a rule works from it.

    Attributes:
        module: the module itself.
        x: what the tap kept, usually the first input; example i owns rows i·k to (i+1)·k − 1 of dimension 0.
        g: the gradient of the summed loss at the output, same ownership of rows.
        batch: B, how many examples there are.
        wanted: local names of the module's trainable parameters; a rule need not work for others.
    """

    module: nn.Module
    x: Tensor
    g: Tensor
    batch: int
    wanted: frozenset[str]


Rule = Callable[[Call], Iterator[tuple[str, Factor]]]


@final
@dataclass
class Tapped:
    """One module that owns trainable parameters, or through whose method they act.

    Attributes:
        name: as in ``model.named_modules()``.
        module: the module.
        names: local name → name in the model, of each trainable parameter it owns.
        method: the method that is listened to.
        original: that method before it was tapped.
        layout: where the examples are in what it takes and gives.
        wanted: local names of the parameters that have elements.
    """

    name: str
    module: nn.Module
    names: dict[str, str]
    desk: Desk
    method: str = "forward"
    original: Callable[..., Any] = field(init=False)
    layout: Layout = field(init=False, default_factory=Layout)
    wanted: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        self.original = getattr(self.module, self.method)
        self.wanted = frozenset(n for n, p in zip(self.names, self.own(), strict=True) if p.numel())

    def own(self) -> list[nn.Parameter]:
        """Its trainable parameters."""
        return [self.module.get_parameter(local) for local in self.names]

    def install(self, listen: "Listen") -> None:
        """Replace the method; outside a batch, or without gradients, it stays the original one.

        A compiler leaves it alone: what a tap notes on the side is no part of a graph.
        """

        def forward(*args: Any, **kwargs: Any) -> Any:
            batch = self.desk.batch
            if batch is None or not torch.is_grad_enabled():
                return self._watch(args, kwargs)
            batch.reached.update(self.names.values())
            return listen(Heard(self, batch), args, kwargs)

        setattr(self.module, self.method, torch.compiler.disable(forward))

    def _watch(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the method, and in a synthetic batch note its shapes.

        What is inside a method other than ``forward`` will have a row for each example when it is listened to, and
        none yet: its shapes would mislead.
        """
        watched = self.desk.watched
        if watched is None:
            return self.original(*args, **kwargs)
        alone = self.method == "forward"
        self.desk.watched = watched if alone else None
        try:
            output = self.original(*args, **kwargs)
        finally:
            self.desk.watched = watched
        if alone:
            self.layout.note(watched, (args, kwargs), output)
        return output

    def remove(self) -> None:
        """Give the module its own method back."""
        delattr(self.module, self.method)


@final
@dataclass(frozen=True)
class Heard:
    """One use of one tapped module in one batch, while its forward runs."""

    tapped: Tapped
    batch: Batch

    def shared(self, x: Tensor) -> Tensor:
        """One row for each example, where the whole batch shares a single one.

        Whether it does is what the layout says where the probe ran; where it did not, the first steps are checked as
        those of packed rows are: a loop over single records looks the same.
        """
        if not (x.dim() > 0 and len(x) == 1 < self.batch.rows):
            return x
        if not self.tapped.layout.learned:
            self.note_rows(1)
        return x.expand(self.batch.rows, *x.shape[1:])

    def tap(
        self,
        output: Tensor,
        *,
        kept: Tensor,
        factors: Callable[[Call], Iterable[tuple[str | Part, Factor]]],
        axis: int = 0,
    ) -> Tensor:
        """Pass ``output`` on, and note the ``factors`` of the module's parameters when its gradient comes.

        ``axis`` is the examples' dimension of ``output`` and ``kept``; ``factors`` sees it in front.
        """
        tapped, batch = self.tapped, self.batch

        def collect(kept: Tensor, g: Tensor) -> None:
            if batch.half is None and not batch.collecting:
                raise SensitivityError(
                    f"module={tapped.name!r}: a gradient came outside its own backward; call private.backward(losses) "
                    "once for each batch and nothing else"
                )
            if axis > 0:
                kept, g = kept.movedim(axis, 0), g.movedim(axis, 0)
            self.check_rows(g, shared=axis == SHARED)  # not in the forward: what is detached may have any shape
            if batch.half is not None:
                self.note_reach(g, batch.half)
                return
            if not g.numel():  # a parameter without elements has nothing to find
                return
            with torch.no_grad():
                call = Call(tapped.module, kept, g, batch.size, tapped.wanted)
                for key, factor in factors(call):
                    part = key if isinstance(key, Part) else Part(tapped.names[key])
                    batch.factors[part].append(factor.lean() if isinstance(factor, Outer) else factor)

        if batch.forward and axis >= 0:
            self.note_rows(output.shape[axis] if output.dim() else 0)
        return tap(output, kept=kept, root=batch.root, collect=collect)

    def note_rows(self, rows: int) -> None:
        """Note how many rows this use of the module gives."""
        batch, name = self.batch, self.tapped.name
        batch.rows_at[name, batch.uses[name]] = rows
        batch.uses[name] += 1

    def note_reach(self, g: Tensor, half: Tensor) -> None:
        """Note whether the gradient of the losses of one half is not zero in rows of the other.

        What is not finite says nothing: zero times a record that is not finite is NaN.
        """
        rows = g.detach().unflatten(0, (self.batch.size, -1)).flatten(1)
        reached = ((rows != 0) & rows.isfinite()).any(1)  # of all rows: to take some out, a GPU would have to wait
        self.batch.reaches.append((self.tapped.name, (reached & ~half).any()))

    def check_rows(self, g: Tensor, *, shared: bool = False) -> None:
        """Refuse an output whose dimension 0 cannot be the example, or that all examples have in common."""
        if shared and self.batch.size > 1:  # all of a batch of one is that example's
            raise UnsupportedModelError(
                f"module={self.tapped.name!r}: computes {tuple(g.shape)} once for the whole batch, and the gradient of "
                "that does not come apart by examples; freeze it, or train with physical batches of one (OneByOne)"
            )
        if g.dim() == 0 or len(g) % self.batch.size:
            raise UnsupportedModelError(
                f"module={self.tapped.name!r}: output {tuple(g.shape)} for a batch of {self.batch.size}; dimension 0 "
                "has to be the example, or k rows for each example; put the examples first"
            )


Listen = Callable[[Heard, tuple[Any, ...], dict[str, Any]], Any]
