# SPDX-License-Identifier: Apache-2.0
"""Reference models: what the target would say had it seen, or not seen, a record.

Each is trained on its own random half of the records. Where the architecture allows it they are trained as one stack of
batched products (``privguard.audit.references.stack``), otherwise through ``torch.func``, and one by one where a
model keeps
buffers such as running means. Records are included by independent fair coins and not in exact halves: in exact halves,
the number of references that hold a record would give its membership away.

Reference models have memorised the records they were trained on; keep their folder as you keep the records.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from privguard import _canon, _check
from privguard.audit.references.stack import stack_modules, stackable
from privguard.audit.references.store import ReferenceStore

MakeModel = Callable[[], nn.Module]
OnProgress = Callable[[int, int, float], None]  # models done, models in all, seconds left


@final
@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How every reference model is trained: SGD with momentum and a cosine from ``learning_rate`` to zero.

    Keep it as close to the target's own training as you can. ``batch_size`` is in examples, ``at_once`` in models.
    ``precision`` is that of the products; weights and updates stay float32.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float = 0.9
    weight_decay: float = 1e-4
    seed: int = 0
    at_once: int = 8
    precision: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        _check.count("epochs", self.epochs)
        _check.count("batch_size", self.batch_size)
        _check.count("at_once", self.at_once)
        _check.positive("learning_rate", self.learning_rate)


@final
@dataclass(frozen=True, kw_only=True)
class Place:
    """Where references are trained and kept.

    With a ``folder`` each finished group of models is on disk before the next begins, and a second call goes on from
    there. ``share`` (index, of how many) divides the groups over processes that see the same folder: with accelerate,
    pass ``(state.process_index, state.num_processes)`` and ``state.device``.
    """

    folder: Path | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    share: tuple[int, int] = (0, 1)
    on_progress: OnProgress | None = None


@final
@dataclass(frozen=True)
class References:
    """Trained reference models: ``included`` (R, n) says which records each saw, ``states`` holds their parameters."""

    included: NDArray[np.bool_]
    states: list[dict[str, Tensor]]
    make_model: MakeModel

    def logits(self, inputs: Tensor, *, batch: int = 4096) -> NDArray[np.float32]:
        """Outputs (R, n, classes) of every model on ``inputs`` (n, ...).

        Args:
            inputs: records, (n, ...).
            batch: records in one forward pass.
        """
        model = self.make_model().eval()
        return np.stack([_logits(_with_state(model, state), inputs, batch) for state in self.states])


def draw_inclusion(references: int, records: int, *, seed: int) -> NDArray[np.bool_]:
    """Independent fair coins (R, n): whether reference r is trained on record i.

    Args:
        references: how many models.
        records: how many records.
        seed: of the coins.
    """
    _check.count("references", references)
    _check.count("records", records)
    return np.random.default_rng(seed).random((references, records)) < 0.5  # noqa: PLR2004 — a fair coin


def train_references(
    make_model: MakeModel,
    inputs: Tensor,
    labels: Tensor,
    *,
    included: NDArray[np.bool_],
    schedule: Schedule,
    place: Place | None = None,
) -> References:
    """Train one model per row of ``included`` (R, n) on the records (n, ...) that the row marks.

    Every labelled member is seen exactly once in every epoch, also where the rows differ in size. The models do not
    depend on how many are trained at once, up to rounding. ``make_model`` returns a freshly initialised network.

    Args:
        make_model: makes an untrained model.
        inputs: records, (n, ...).
        labels: labels, (n,).
        included: which reference is trained on which record, (R, n).
        schedule: epochs, batch size, learning rate and seed.
        place: where trained models are kept; None for memory.

    Raises:
        ValueError: where shapes disagree or a row marks no record.
        AuditError: where ``place.folder`` holds references of other settings, or, after a shared run, not all groups.
    """
    _check_sets(inputs, labels, included)
    place = place or Place()
    groups = [
        range(first, min(first + schedule.at_once, len(included)))
        for first in range(0, len(included), schedule.at_once)
    ]
    settings = _settings(schedule, included, inputs, labels)
    store = ReferenceStore(place.folder, {**settings, "architecture": _architecture(_fresh(make_model, 0, 0))})
    mine = [group for number, group in enumerate(groups) if number % place.share[1] == place.share[0]]
    missing = [group for group in mine if not store.has(group)]
    kind = schedule.precision if inputs.is_floating_point() else inputs.dtype  # tokens stay whole numbers
    records = _Records(inputs.to(place.device, kind), labels.to(place.device), included, int(included.sum(1).max()))
    _train_groups(make_model, records, missing, schedule, store=store, place=place)
    states = [state for group in groups for state in store.read(group)]
    return References(included, states, make_model)


class Trainable(Protocol):
    """K models with float32 ``parameters`` (K, ...) or lists of them, and gradients in the same order."""

    parameters: list[Tensor]

    def gradients(self, inputs: Tensor, labels: Tensor, weights: Tensor) -> list[Tensor]:
        """Gradients of the weighted sum of cross-entropies: inputs (K, B, ...), labels and weights (K, B).

        Args:
            inputs: (K, B, ...).
            labels: (K, B).
            weights: weights of the examples, (K, B).
        """
        ...

    def state(self, model: int, names: Sequence[str]) -> dict[str, Tensor]:
        """One model's parameters and buffers by name.

        Args:
            model: the model's number, from 0.
            names: names of the parameters, in order.
        """
        ...


def batches(
    included: NDArray[np.bool_], batch_size: int, generators: Sequence[torch.Generator], *, largest: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch for K models at once: steps of record numbers (K, B) and weights (K, B).

    Each model's members are spread evenly over the steps; the rest of a row is padding of weight 0, and the weights
    of a row add up to 1. ``largest`` is the most members that any model has, of this group or of another: it sets the
    number of steps, which would otherwise depend on who is trained together.

    Guarantee: over the epoch, model k meets each of its members exactly once and nothing else.

    Args:
        included: which reference is trained on which record, (R, n).
        batch_size: expected records of a step.
        generators: one for each model.
        largest: the most rows of a step; None for as many as needed.
    """
    sizes = included.sum(1)
    steps = math.ceil(max(largest or 0, int(sizes.max())) / batch_size)
    width = math.ceil(int(sizes.max()) / steps)
    starts = np.stack([np.arange(steps + 1) * int(size) // steps for size in sizes])  # (K, steps + 1)
    slots = starts[:, :-1, None] + np.arange(width)  # (K, steps, B)
    real = slots < starts[:, 1:, None]
    counts = np.maximum(real.sum(2, keepdims=True), 1)
    order = np.zeros((len(included), int(sizes.max())), np.int64)
    for k, generator in enumerate(generators):
        members = np.flatnonzero(included[k])
        order[k, : len(members)] = members[torch.randperm(len(members), generator=generator).numpy()]
    taken = np.take_along_axis(order, np.where(real, slots, 0).reshape(len(order), -1), 1).reshape(slots.shape)
    weights = torch.from_numpy((real / counts).astype(np.float32))
    for step in range(steps):
        yield torch.from_numpy(taken[:, step].copy()), weights[:, step]


@dataclass(frozen=True)
class _Records:
    """What is trained on: inputs (n, ...) and labels (n,) on the device, who sees what (K, n), and the most of it."""

    inputs: Tensor
    labels: Tensor
    included: NDArray[np.bool_]
    largest: int


def _train_groups(
    make_model: MakeModel,
    records: _Records,
    groups: list[range],
    schedule: Schedule,
    *,
    store: ReferenceStore,
    place: Place,
) -> None:
    """Train the groups one after the other, and keep each before the next begins."""
    begun, total = time.monotonic(), sum(len(group) for group in groups)
    done = 0
    for group in groups:
        modules = [_fresh(make_model, schedule.seed, k).to(place.device) for k in group]
        names = [name for name, _ in modules[0].named_parameters()]
        stack = _stacked(modules, schedule.precision, [_seed(schedule.seed, k) for k in group])
        own = replace(records, included=records.included[group.start : group.stop])
        _train_stack(stack, own, schedule, first=group.start)
        store.write(
            group, [{name: value.cpu() for name, value in stack.state(i, names).items()} for i in range(len(group))]
        )
        done += len(group)
        if place.on_progress is not None:
            place.on_progress(done, total, (time.monotonic() - begun) / done * (total - done))


def _train_stack(stack: Trainable, records: _Records, schedule: Schedule, *, first: int) -> None:
    """Train the models of one group side by side; ``first`` is the number of its first model."""
    inputs, labels, included = records.inputs, records.labels, records.included
    generators = [torch.Generator().manual_seed(_seed(schedule.seed, first + k)) for k in range(len(included))]
    momenta = [torch.zeros_like(parameter) for parameter in stack.parameters]
    steps = schedule.epochs * math.ceil(records.largest / schedule.batch_size)
    taken, step = inputs.new_empty(0), 0
    for _ in range(schedule.epochs):
        for chosen, weights in batches(included, schedule.batch_size, generators, largest=records.largest):
            chosen, weights = chosen.to(inputs.device), weights.to(inputs.device)  # noqa: PLW2901 — the same batch, moved
            torch.index_select(inputs, 0, chosen.view(-1), out=taken)  # the first step gives it its size
            batch = taken.view(*chosen.shape, *inputs.shape[1:])
            gradients = stack.gradients(batch, labels[chosen], weights)
            rate = schedule.learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
            _sgd(stack.parameters, gradients, momenta, rate, schedule)
            step += 1


def _sgd(
    parameters: list[Tensor], gradients: list[Tensor], momenta: list[Tensor], rate: float, schedule: Schedule
) -> None:
    """One step of SGD with momentum and weight decay in a single pass over memory."""
    torch._fused_sgd_(  # type: ignore[attr-defined]
        parameters,
        gradients,
        momenta,
        weight_decay=schedule.weight_decay,
        momentum=schedule.momentum,
        lr=rate,
        dampening=0.0,
        nesterov=False,
        maximize=False,
        is_first_step=False,
    )


def _stacked(modules: list[nn.Module], precision: torch.dtype, seeds: Sequence[int]) -> Trainable:
    if stackable(modules[0]):
        return stack_modules(modules, precision=precision)
    buffers = any(True for _ in modules[0].buffers())
    random = any("Dropout" in type(part).__name__ and getattr(part, "p", 1.0) for part in modules[0].modules())
    # a transformer's output is an object, and its attention does not map over models
    return _OneByOne(modules, seeds) if buffers or random or hasattr(modules[0], "config") else _Mapped(modules)


@final
class _Mapped:
    """Any architecture without buffers, through ``torch.func``: one vectorised gradient for K models."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self._module = modules[0]
        self._names = [name for name, _ in modules[0].named_parameters()]
        self.parameters = [
            torch.stack([dict(module.named_parameters())[name].detach() for module in modules]) for name in self._names
        ]
        self._gradients = torch.func.vmap(torch.func.grad(self._loss), in_dims=(0, 0, 0, 0), randomness="error")

    def _loss(self, parameters: list[Tensor], inputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        outputs = torch.func.functional_call(self._module, dict(zip(self._names, parameters, strict=True)), (inputs,))
        return (nn.functional.cross_entropy(outputs.float(), labels, reduction="none") * weights).sum()

    def gradients(self, inputs: Tensor, labels: Tensor, weights: Tensor) -> list[Tensor]:
        return self._gradients(self.parameters, _floats(inputs), labels, weights)

    def state(self, model: int, names: Sequence[str]) -> dict[str, Tensor]:
        return {name: parameter[model].clone() for name, parameter in zip(names, self.parameters, strict=True)}


@final
class _OneByOne:
    """Models with buffers or dropout: each has its own pass on its real examples, and its own random numbers.

    Without those of its own, a model's dropout would depend on which others are trained beside it.
    """

    def __init__(self, modules: list[nn.Module], seeds: Sequence[int]) -> None:
        self._modules = [module.train() for module in modules]
        self._seeds, self._steps = seeds, 0
        self.parameters = [parameter.data for module in modules for parameter in module.parameters()]

    def gradients(self, inputs: Tensor, labels: Tensor, weights: Tensor) -> list[Tensor]:
        self._steps += 1
        return [
            gradient
            for k, module in enumerate(self._modules)
            for gradient in self._one(module, inputs[k], labels[k], weights[k], seed=self._seeds[k])
        ]

    def _one(
        self, module: nn.Module, inputs: Tensor, labels: Tensor, weights: Tensor, *, seed: int
    ) -> Sequence[Tensor]:
        real = weights > 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed * 1_000_003 + self._steps)  # noqa: TID251 — dropout knows no other; restored on exit
            outputs = _outputs(module(_floats(inputs[real])))
        losses = nn.functional.cross_entropy(outputs.float(), labels[real], reduction="none")
        total = (losses * weights[real]).sum()
        return torch.autograd.grad(total, list(module.parameters()), allow_unused=True, materialize_grads=True)

    def state(self, model: int, names: Sequence[str]) -> dict[str, Tensor]:  # noqa: ARG002 — buffers go along
        return {name: value.detach().clone() for name, value in self._modules[model].state_dict().items()}


def _settings(schedule: Schedule, included: NDArray[np.bool_], inputs: Tensor, labels: Tensor) -> dict[str, Any]:
    facts = {name: str(value) for name, value in vars(schedule).items()}
    rows = inputs.detach().cpu().contiguous()
    content = rows.reshape(-1).view(torch.uint8).numpy().tobytes()
    return {
        **facts,
        "included": _canon.digest(np.packbits(included).tobytes()),
        "labels": _canon.digest(labels.cpu().numpy().tobytes()),
        "inputs": f"{rows.dtype} {tuple(rows.shape)} {_canon.digest(content)}",
    }


def _architecture(model: nn.Module) -> str:
    """Digest of what a model computes with: its layers as they print, its shapes, and the names its code speaks of."""
    shapes = [f"{name} {tuple(value.shape)}" for name, value in model.state_dict().items()]
    code = [
        f"{type(part).__qualname__} {code.co_code.hex()} {code.co_names} {code.co_consts!r:.2000}"
        for part in model.modules()
        if type(part).__module__.partition(".")[0] not in {"torch", "transformers"}
        and (code := getattr(type(part).forward, "__code__", None)) is not None
    ]
    return _canon.digest([repr(model), *shapes, *code])


def _floats(inputs: Tensor) -> Tensor:
    """Inputs of a model: float32, but whole numbers as they are, because they are tokens."""
    return inputs.float() if inputs.is_floating_point() else inputs


def _outputs(output: Any) -> Tensor:
    return getattr(output, "logits", output)


def _seed(seed: int, number: int) -> int:
    """The seed of one model; two schedules' seeds lie so far apart that no two models of theirs share one."""
    return seed * 1_000_003 + number


def _fresh(make_model: MakeModel, seed: int, number: int) -> nn.Module:
    """The untrained model of this number, the same however many are trained at once."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_seed(seed, number))  # noqa: TID251 — nn.Module knows no other generator; restored on exit
        return make_model()


def _with_state(model: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    missing, unexpected = model.load_state_dict(state, strict=False)
    wrong = unexpected or [name for name in missing if name in dict(model.named_parameters())]
    _check.require(not wrong, "make_model", wrong, wanted="the architecture that the references were trained with")
    return model


@torch.no_grad()
def _logits(model: nn.Module, inputs: Tensor, batch: int) -> NDArray[np.float32]:
    return np.concatenate([_outputs(model(_floats(part))).float().numpy() for part in inputs.split(batch)])


def _check_sets(inputs: Tensor, labels: Tensor, included: NDArray[np.bool_]) -> None:
    records = included.shape[1] if included.ndim == 2 else -1  # noqa: PLR2004 — (R, n)
    shapes = (tuple(inputs.shape), tuple(labels.shape), included.shape)
    _check.require(
        len(inputs) == records and tuple(labels.shape) == (records,),
        "shapes",
        shapes,
        wanted="inputs (n, ...), labels (n,), included (R, n)",
    )
    _check.require(
        bool((included.sum(1) > 0).all()),
        "included",
        included.sum(1).min(),
        wanted="at least one record for every reference",
    )
