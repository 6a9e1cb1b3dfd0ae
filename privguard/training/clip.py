# SPDX-License-Identifier: Apache-2.0
"""Per-example gradients, clipped and summed: the one number in a private run whose size is bounded.

A ``Clipper`` goes through *begin → forward → backward* once for every physical batch and hands the sum over with
*take* at the end of the logical batch. Two of them exist: ``privguard.training.bookkeeping``, which needs a single
backward pass, and ``privguard.training.one_by_one``, slow and obviously right, for any model at all.

Source: Abadi et al. 2016, "Deep Learning with Differential Privacy", Algorithm 1.
"""

from collections.abc import Hashable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, cast, final

import torch
from torch import Tensor, nn

from privguard import _check
from privguard.errors import SensitivityError, UnsupportedModelError
from privguard.training import shards

NO_BOUND = 1e18  # a clipping norm that clips nothing
ROUNDING = 1e-3  # of the clipping norm: all that norms, products and sums may round; docs/spec/mechanism-v1.md
MOST_RECORDS = 1 << 20  # examples of one step and rank, for which float64 totals stay within that


@final
@dataclass(frozen=True)
class ClippedSum:
    """Σᵢ clip(gᵢ): the sum over the examples of a logical batch of their clipped gradients.

    Guarantee: given the gradient of each example, adding or removing one moves the sum, taken over all parameters
    together, by at most ``l2_bound``, rounding included, also when its gradient is NaN or infinite. It is *not* private
    yet: only ``privguard.training.noise.exact`` makes it so.

    Attributes:
        gradients: float64 tensor per name of ``model.named_parameters()``; tied parameters once, untouched ones zero.
            A parameter that is cut over ranks has the total over all ranks, cut like it.
        l2_bound: what an example can move the sum by, in the unit of the gradient: the clipping norm times
            1 + ``ROUNDING``.
        records: how many examples went into it at most; no more than that, and 2²⁰, on each rank.
    """

    gradients: dict[str, Tensor]
    l2_bound: float
    records: int = MOST_RECORDS

    def __repr__(self) -> str:
        return f"ClippedSum(l2_bound={self.l2_bound}, parameters={len(self.gradients)})"  # never the values


class Checks(Protocol):
    """Which steps of a run are checked for examples that interact.

    Attributes:
        checked: how many were, since the clipper was attached.
    """

    checked: int

    def seed(self, seed: str) -> None:
        """Draw the steps by a public word that all ranks share.

        Args:
            seed: a public word.
        """
        ...


class Clipper(Protocol):
    """What a private step needs: from the losses of a batch to the sum of its clipped gradients.

    Attributes:
        rows: how many rows may go forward at once, or None for as many as fit in memory.
        shape_term: by how much of its norm a record's gradient changed with the batch's shape, where a probe measured
            it (``privguard.training.probes.shape``), else None.
        checks: the checks while training, or None where single examples leave nothing to check.
        unchecked: sentences about what the probe could not check; manifest, claim and report carry them.
    """

    rows: int | None
    shape_term: float | None
    checks: "Checks | None"
    unchecked: tuple[str, ...]

    def begin(self, mask: Tensor, *, rows_each: int = 1, shapes: Hashable = ()) -> None:
        """Announce that ``B`` units are about to go forward; ``mask`` is bool (B,), False where a unit is padding.

        A unit is an example, or one of ``rows_each`` rows that lie side by side: the choices of one question, the
        records of one user. ``shapes`` are those of what goes forward, without the examples' dimension.

        Args:
            mask: bool (B,), False where a row is padding.
            rows_each: rows that lie side by side for one unit.
            shapes: shapes of what goes forward, without the examples' dimension.
        """
        ...

    def backward(self, losses: Tensor) -> None:
        """Add the clipped gradients of ``losses``, shape (B,), one per example; padding rows count as zero.

        Args:
            losses: (B,), one loss for each example.
        """
        ...

    def take(self) -> ClippedSum:
        """End the logical batch: hand the sum over, zeros where nothing came, and start anew."""
        ...

    def close(self) -> None:
        """Give the model back as it was; the clipper is of no use afterwards."""
        ...

    def unclipped(self) -> AbstractContextManager[None]:
        """Inside, nothing is clipped: for the probe, on synthetic data."""
        ...

    def rehearsal(self, size: int) -> AbstractContextManager[None]:
        """Inside, a forward of ``size`` synthetic examples shows where in each tensor the examples are.

        It takes two sizes to tell, and no batch may be open.

        Args:
            size: how many synthetic examples go forward.
        """
        ...


def clip_factors(norms: Tensor, *, max_norm: float) -> Tensor:
    """The factor min(1, C / normᵢ) of each example, zero where the norm is NaN or infinite.

    Guarantee: factor · norm ≤ C to float64 rounding. Shapes: (B,) → (B,), float64.

    >>> clip_factors(torch.tensor([0.0, 1.0, 4.0, float("nan"), float("inf")]), max_norm=2.0).tolist()
    [1.0, 1.0, 0.5, 0.0, 0.0]

    Args:
        norms: (B,), the L2 norm of each example's gradient.
        max_norm: the clipping norm C, in the unit of the gradient.
    """
    norms = norms.double()
    return torch.where(norms.isfinite(), max_norm / norms.clamp(min=max_norm), 0.0)


@final
class Turn:
    """The order of things in one logical batch: *begin* before *backward*, each backward once, then *take*."""

    def __init__(self) -> None:
        self.mask: Tensor | None = None
        self._spent = False

    def begin(self, mask: Tensor) -> None:
        """Open a physical batch of ``len(mask)`` rows.

        Args:
            mask: bool (B,), False where a row is padding.
        """
        ok = mask.dtype == torch.bool and mask.dim() == 1 and len(mask) > 0
        shown = f"{mask.dtype} {tuple(mask.shape)}"
        _check.require(ok, "mask", shown, wanted="torch.bool (B,), B ≥ 1", remedy="an empty draw is one padding row")
        self.mask, self._spent = mask, False

    def check(self, losses: Tensor) -> Tensor:
        """The mask of the open batch, after making sure that ``losses`` belongs to it.

        Args:
            losses: (B,), one loss for each example.

        Returns:
            The mask, bool (B,).
        """
        if self.mask is None:
            if self._spent:
                raise SensitivityError(
                    "backward: called a second time over the same examples, which would count each of them twice; "
                    "add the losses up per example and call backward once"
                )
            raise SensitivityError("backward: no batch is open; take each batch from private.batches()")
        batch = len(self.mask)
        _check.require(
            tuple(losses.shape) == (batch,),
            "losses.shape",
            tuple(losses.shape),
            wanted=f"({batch},), one loss per example",
            remedy="pass reduction='none' and reduce over everything but the examples",
        )
        _check.require(
            losses.requires_grad,
            "losses.requires_grad",
            losses.requires_grad,
            wanted="losses computed from the model's output",
            remedy="leave out torch.no_grad() and detach()",
        )
        return self.mask

    def spend(self) -> None:
        """Close the physical batch: its examples have been counted."""
        self.mask, self._spent = None, True

    def reset(self) -> None:
        """Forget an open batch."""
        self.mask, self._spent = None, False

    def end(self) -> None:
        """End the logical batch."""
        if self.mask is not None:
            raise SensitivityError("take: a batch went forward without backward; call private.backward(losses) first")
        self._spent = False


@final
class Total:
    """The running sum of one logical batch, one float64 tensor per trainable parameter, and how many examples it has.

    Float64, since the rounding of a float32 total grows with the number of examples: 40,000 that agree moved it by
    1.0008 of the clipping norm.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = parameters
        self._sums: dict[str, Tensor] = {}
        self._records = 0

    def count(self, records: int) -> None:
        """Note that so many examples are about to be added.

        Args:
            records: how many examples.
        """
        self._records += records

    def slot(self, name: str) -> Tensor:
        """The tensor of this parameter, to add to.

        Args:
            name: the parameter's name in the model.
        """
        if name not in self._sums:
            self._sums[name] = self._zeros(name)
        return self._sums[name]

    def add_over_ranks(self, name: str, mine: Tensor) -> None:
        """Add all ranks' sums of a parameter that is cut, one part to each rank. Every rank has to call this.

        Args:
            name: the parameter's name in the model.
            mine: this rank's partial sum over the whole parameter, of its full shape.
        """
        shards.add_over_ranks(mine, self.slot(name))

    def take(self, max_norm: float) -> ClippedSum:
        """Hand every sum over and start from zero; ``max_norm`` is what each example was clipped to.

        Args:
            max_norm: the clipping norm C, in the unit of the gradient.
        """
        sums, self._sums = self._sums, {}
        records, self._records = self._records, 0
        whole = {name: sums[name] if name in sums else self._zeros(name) for name in self._parameters}
        return ClippedSum(whole, max_norm * (1 + ROUNDING), records)

    def _zeros(self, name: str) -> Tensor:
        parameter = self._parameters[name]
        if shards.is_cut(parameter):
            return torch.zeros_like(parameter, dtype=torch.float64, requires_grad=False)
        return torch.zeros(parameter.shape, dtype=torch.float64, device=parameter.device)


@final
class EscapeAlarm:
    """Refuses a gradient that autograd writes on a trainable parameter: it would be neither clipped nor noised.

    Under a clipper no gradient ever reaches ``p.grad`` by itself. One that does belongs to a parameter used behind its
    module's back (``F.linear(x, layer.weight)``) or to a ``losses.backward()`` that bypassed privguard.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
        self._model = model
        self._any_cut = any(map(shards.is_cut, parameters.values()))
        self._watched = self._marks()
        self._handles = [p.register_post_accumulate_grad_hook(self._refuse(n)) for n, p in parameters.items()]

    def begin(self) -> None:
        """Drop the noisy gradients of the step before, and refuse a model whose trainable parameters have changed.

        They are dropped no earlier, as in ordinary training: memory that is free all at once goes back to the system,
        and to get it again costs 5 % of a step.

        Raises:
            SensitivityError: a parameter was unfrozen, frozen, added or replaced since the clipper was attached.
        """
        now = self._marks(drop=True)
        if now != self._watched:
            raise SensitivityError(
                f"model={type(self._model).__name__}: {len(now ^ self._watched)} trainable parameters changed since "
                "the clipper was attached, so their gradients would not be watched; freeze and add first, then attach"
            )

    def close(self) -> None:
        """Remove the hooks and the last step's gradients, which whoever trains on would add to."""
        for handle in self._handles:
            handle.remove()
        self._marks(drop=True)

    def _marks(self, *, drop: bool = False) -> set[object]:
        """The trainable parameters, on request without their gradients; one walk over the model does both.

        They go by name where FSDP2 exchanges the objects from one forward to the next.
        """
        found = set[object]()
        for name, parameter in self._model.named_parameters():
            if parameter.requires_grad:
                found.add(name if self._any_cut else id(parameter))
                if drop:
                    parameter.grad = None
        return found

    @staticmethod
    def _refuse(name: str):  # noqa: ANN205 — the type of a gradient hook is torch's own
        def escaped(parameter: Tensor) -> None:
            parameter.grad = None  # nothing un-noised stays on an object of the user's
            raise SensitivityError(
                f"parameter={name!r}: a gradient reached it that was not clipped; call private.backward(losses) "
                "instead of losses.backward(), and use the parameter only through its own module's forward "
                "(or train with physical batches of one: privguard.training.one_by_one.OneByOne)"
            )

        return escaped


def gradients_of(loss: Tensor, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The gradients of a scalar by ordinary autograd, float32, of those parameters that take part in it.

    Args:
        loss: a scalar with a graph.
        parameters: parameters by name.

    Raises:
        UnsupportedModelError: the graph has re-entrant checkpoints, which autograd cannot ask for chosen parameters.
    """
    try:
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
        raise UnsupportedModelError(
            "checkpoint: re-entrant checkpointing gives no gradients of chosen parameters, so none can be checked or "
            "clipped one by one; pass use_reentrant=False (gradient_checkpointing_kwargs={'use_reentrant': False})"
        ) from error
    gradients = cast("tuple[Tensor | None, ...]", gradients)
    found = {name: value for name, value in zip(parameters, gradients, strict=True) if value is not None}
    return {name: (value.to_dense() if value.is_sparse else value).float() for name, value in found.items()}


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters to train by name, tied ones once; an error when there are none.

    Args:
        model: the model to train.

    Returns:
        Parameters that require gradients, by their first name.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    _check.require(bool(parameters), "model", type(model).__name__, wanted="at least one parameter with requires_grad")
    return parameters
