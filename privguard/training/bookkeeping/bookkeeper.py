"""The clipper that needs one backward pass: Bu et al. 2023, "Differentially Private Optimization on Large Model".

Forward: every module that owns trainable parameters is tapped. Backward: the taps collect factors. Afterwards: one norm
per example over all parameters, one clip factor, and one weighted sum per parameter.
"""

from collections import defaultdict
from typing import Any, final

import torch
from torch import Tensor, nn

from privguard import _check
from privguard.errors import SensitivityError, UnsupportedModelError
from privguard.training.bookkeeping.call import Call, Rule
from privguard.training.bookkeeping.factors import Factor, Gradient, gather
from privguard.training.bookkeeping.rules import rule_for
from privguard.training.bookkeeping.taps import frozen, tap
from privguard.training.clip import ClippedSum, EscapeAlarm, Total, Turn, clip_factors, trainable

BUDGET = 1 << 27  # numbers of per-example gradients that may be held at once: 512 MiB


@final
class BookKeeper:
    """A :class:`~privguard.training.clip.Clipper` by book-keeping; see :func:`privguard.training.clip.attach`.

    Between *begin* and *backward* every forward with gradients is tapped, whether the model is in training mode or not.
    At any other time forwards are left alone, and a gradient that reaches a parameter is refused.
    """

    def __init__(self, model: nn.Module, *, max_grad_norm: float, budget: int = BUDGET) -> None:
        self._bound = float(_check.positive("max_grad_norm", max_grad_norm))
        self._parameters = trainable(model)
        self._budget = budget
        names = {id(p): name for name, p in self._parameters.items()}
        chosen = [(name, module, rule_for(name, module)) for name, module in _owners(model)]
        self._turn, self._total = Turn(), Total(self._parameters)
        self._root = torch.zeros((), requires_grad=True)
        self._factors: dict[str, list[Factor]] = defaultdict(list)
        self._reached: set[str] | None = set()  # None once the first batch has shown that all were reached
        self._alarm = EscapeAlarm(self._parameters)
        self._tapped = [_Tapped(self, name, module, rule, names) for name, module, rule in chosen]

    def begin(self, mask: Tensor) -> None:
        """See :meth:`~privguard.training.clip.Clipper.begin`."""
        self._turn.begin(mask)
        self._factors.clear()

    def backward(self, losses: Tensor) -> None:
        """See :meth:`~privguard.training.clip.Clipper.backward`."""
        mask = self._turn.check(losses)
        try:
            torch.autograd.backward(losses, mask.to(losses))
            self._check_reached(mask)
            self._close_books(mask)
        finally:
            self._turn.spend()
            self._factors.clear()

    def take(self) -> ClippedSum:
        """See :meth:`~privguard.training.clip.Clipper.take`."""
        self._turn.end()
        return ClippedSum(self._total.take(), self._bound)

    def close(self) -> None:
        """See :meth:`~privguard.training.clip.Clipper.close`."""
        self._alarm.close()
        for tapped in self._tapped:
            tapped.close()

    def open_mask(self) -> Tensor | None:
        """The mask of the batch that is under way."""
        return self._turn.mask

    def root(self) -> Tensor:
        """The scalar every tap hangs on."""
        return self._root

    def reach(self, names: frozenset[str]) -> None:
        """Note that these parameters took part in the forward."""
        if self._reached is not None:
            self._reached |= names

    def record(self, name: str, factor: Factor) -> None:
        """Note one factor of one parameter."""
        self._factors[name].append(factor)

    def _check_reached(self, mask: Tensor) -> None:
        if self._reached is None or not mask.any():
            return
        if missing := [name for name in self._parameters if name not in self._reached]:
            raise UnsupportedModelError(
                f"parameters={missing}: trainable, but nothing in the forward used them through a tapped module; "
                "freeze them with requires_grad_(False), or use them through their own module's forward"
            )
        self._reached = None

    @torch.no_grad()
    def _close_books(self, mask: Tensor) -> None:
        gradients: dict[str, Gradient] = {}
        budget = self._budget
        for name in list(self._factors):
            shape = self._parameters[name].shape
            gradients[name] = gather(self._factors.pop(name), shape, budget=budget)
        if not gradients:
            return
        norms = torch.stack([g.square_norms() for g in gradients.values()]).sum(0).sqrt()
        norms = torch.where(mask.to(norms.device), norms, torch.inf)
        factors = clip_factors(norms, max_norm=self._bound)
        silent = ~norms.isfinite()
        for name in list(gradients):
            gradient = gradients.pop(name)
            if silent.any():
                gradient.silence(silent)
            gradient.add_weighted(factors.float(), self._total.into(name))


@final
class _Tapped:
    """One module whose forward is listened to."""

    def __init__(self, books: BookKeeper, name: str, module: nn.Module, rule: Rule, names: dict[int, str]) -> None:
        self._books, self._name, self._module, self._rule = books, name, module, rule
        own = dict(module.named_parameters(recurse=False))
        self._names = {local: names[id(p)] for local, p in own.items() if id(p) in names}
        self._own = [own[local] for local in self._names]
        self._original = module.forward
        module.forward = self._forward

    def close(self) -> None:
        """Give the module its own forward back."""
        del self._module.forward

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        mask = self._books.open_mask()
        if mask is None or not torch.is_grad_enabled():
            return self._original(*args, **kwargs)
        args, kwargs = (
            _per_example(args, len(mask)),
            dict(zip(kwargs, _per_example(kwargs.values(), len(mask)), strict=True)),
        )
        with frozen(self._own):
            output = self._original(*args, **kwargs)
        self._check_rows(output, len(mask))
        self._books.reach(frozenset(self._names.values()))
        x = args[0] if args else next(iter(kwargs.values()))
        return tap(output, x=x, root=self._books.root(), collect=self._collector(mask))

    def _check_rows(self, output: Any, batch: int) -> None:
        if not isinstance(output, Tensor) or output.dim() == 0 or len(output) % batch:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise UnsupportedModelError(
                f"module={self._name!r}: output {shape} for a batch of {batch}; dimension 0 has to be the example, "
                "or k rows for each example; put the examples first"
            )

    def _collector(self, mask: Tensor):  # noqa: ANN202 — a closure of type Collect
        def collect(x: Tensor, g: Tensor) -> None:
            if self._books.open_mask() is not mask:
                raise SensitivityError(
                    f"module={self._name!r}: a gradient came outside its own backward; call private.backward(losses) "
                    "once for each batch"
                )
            with torch.no_grad():
                call = Call(self._module, x, g, len(mask), frozenset(self._names))
                for local, factor in self._rule(call):
                    self._books.record(self._names[local], factor)

        return collect


def _owners(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules that own trainable parameters, by name."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if any(p.requires_grad for p in module.parameters(recurse=False))
    ]


def _per_example(values: Any, batch: int) -> tuple[Any, ...]:
    """Tensors of one row shared by the whole batch become one row per example."""
    return tuple(
        v.expand(batch, *v.shape[1:]) if isinstance(v, Tensor) and v.dim() > 0 and len(v) == 1 < batch else v
        for v in values
    )
