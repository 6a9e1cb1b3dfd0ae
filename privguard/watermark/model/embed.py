# SPDX-License-Identifier: Apache-2.0
"""Teaching a model its triggers or fingerprints so that a thief's training does not undo it.

Every few steps, thieves are rehearsed: a copy is fine-tuned, or pruned and fine-tuned, on public data, and what that
did to the weights is kept as an offset. The mark's loss is then asked for at the model *and* at each offset
(first-order meta-learning, Finn et al. 2017), while a second loss holds the model's answers on public data to those of
the unmarked copy. What that is worth against plain training is a column of ``benchmarks/model_mark.py``.

Differential privacy: only the key and public or synthetic data enter here, so embedding in a privately trained model
is post-processing and spends nothing. Private records must not be handed over as ``public``.
"""

import copy
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias, final

import torch
from torch import Tensor, nn

from privguard import _check

Loss: TypeAlias = Callable[[nn.Module], Tensor]  # a scalar loss; draws its own batch


@final
@dataclass(frozen=True, kw_only=True)
class Thief:
    """One thief to rehearse: Adam at ``learning_rate`` for ``steps`` steps, after pruning a share of every matrix."""

    learning_rate: float
    steps: int = 60
    prune: float = 0.0


THIEVES = (Thief(learning_rate=1e-3), Thief(learning_rate=5e-3), Thief(learning_rate=5e-3, prune=0.8))


@final
@dataclass(frozen=True, kw_only=True)
class Lesson:
    """How a mark is taught.

    Adam moves along the mark's loss, asked for at the model and at what each rehearsed thief makes of it, plus ``keep``
    times the distance from the unmarked model's answers.

    Attributes:
        steps: of Adam.
        learning_rate: of Adam.
        keep: weight of the unmarked model's behaviour; more keeps more accuracy and teaches the mark more slowly.
        rehearse_every: steps after which the thieves are rehearsed anew.
        thieves: what each rehearsal does to a copy of the model.
        watch: hears the number of steps that are done, after each of them.
    """

    steps: int = 300
    learning_rate: float = 1e-3
    keep: float = 10.0
    rehearse_every: int = 25
    thieves: tuple[Thief, ...] = THIEVES
    watch: Callable[[int], None] = field(default=lambda _: None, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check.count("steps", self.steps)
        _check.positive("learning_rate", self.learning_rate)
        _check.non_negative("keep", self.keep)
        _check.count("rehearse_every", self.rehearse_every)


def embed(model: nn.Module, *, mark: Loss, keep: Loss, public: Loss, lesson: Lesson | None = None) -> nn.Module:
    """A marked copy of ``model``; the model itself is not touched.

    ``mark`` is the loss of the mark, ``keep`` the distance from the unmarked model's answers on public data,
    ``public`` the loss that a thief would train with, on public data.
    """
    lesson = lesson or Lesson()
    # In evaluation mode, as the model is used: in training mode, a mark's inputs move the statistics of BatchNorm, and
    # eight points of accuracy went with them.
    marked = copy.deepcopy(model).eval()
    parameters = [item for item in marked.parameters() if item.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=lesson.learning_rate)
    offsets: list[list[Tensor]] = []
    for step in range(lesson.steps):
        if step % lesson.rehearse_every == 0:
            offsets = [rehearse(marked, thief, public) for thief in lesson.thieves]
        optimizer.zero_grad()
        (mark(marked) + lesson.keep * keep(marked)).backward()
        for offset in offsets:
            with _moved(parameters, offset):
                mark(marked).backward()
        optimizer.step()
        lesson.watch(step + 1)
    return marked.train(model.training)


@final
class Alongside:
    """Teaches a mark beside private training: one step on the mark's loss after each private step.

    Make it before the model is made private, and call ``step`` after ``private.step()`` returned True. Guarantee:
    the step uses the key and public data only, and comes after clipping and noise, so it is post-processing under
    adaptive composition: privacy events, sampling and noise are the same, bit for bit, with and without it.
    """

    def __init__(self, model: nn.Module, mark: Loss, *, learning_rate: float = 1e-3) -> None:
        _check.positive("learning_rate", learning_rate)
        self._parameters = [item for item in model.parameters() if item.requires_grad]
        # The same parameters in a copy of the modules, so that no hook on the private model sees these passes.
        self._twin = copy.deepcopy(model, memo={id(item): item for item in model.parameters()})
        self._mark, self._optimizer = mark, torch.optim.Adam(self._parameters, lr=learning_rate)

    def step(self) -> float:
        """Move the shared parameters once; returns the mark's loss before. Gradients of the private step are kept."""
        kept = [item.grad for item in self._parameters]
        loss = self._mark(self._twin)
        found = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        for item, gradient in zip(self._parameters, found, strict=True):
            item.grad = gradient
        self._optimizer.step()
        for item, gradient in zip(self._parameters, kept, strict=True):
            item.grad = gradient
        return float(loss.detach())


def rehearse(model: nn.Module, thief: Thief, public: Loss) -> list[Tensor]:
    """How a thief would move the trainable weights of ``model``: one tensor for each parameter."""
    stolen = copy.deepcopy(model)
    kept = prune(stolen, thief.prune) if thief.prune else []
    before = [item for item in model.parameters() if item.requires_grad]
    after = [item for item in stolen.parameters() if item.requires_grad]
    optimizer = torch.optim.Adam(after, lr=thief.learning_rate)
    for _ in range(thief.steps):
        optimizer.zero_grad()
        public(stolen).backward()
        optimizer.step()
        apply_masks(kept)
    return [new.detach() - old.detach() for new, old in zip(after, before, strict=True)]


def prune(model: nn.Module, share: float) -> list[tuple[Tensor, Tensor]]:
    """Set the smallest ``share`` of every weight matrix to zero, in place; returns (weight, mask) pairs."""
    _check.probability("share", share)
    kept: list[tuple[Tensor, Tensor]] = []
    for item in model.parameters():
        if item.dim() > 1 and (count := int(item.numel() * share)):
            threshold = item.detach().abs().flatten().kthvalue(count).values
            kept.append((item, (item.detach().abs() > threshold).to(item.dtype)))
    apply_masks(kept)
    return kept


def apply_masks(kept: list[tuple[Tensor, Tensor]]) -> None:
    """Set pruned weights back to zero."""
    with torch.no_grad():
        for item, mask in kept:
            item.mul_(mask)


def margin_loss(logits: Tensor, labels: Tensor, *, margin: float) -> Tensor:
    """Mean of how far each label's logit is from being ``margin`` above all others; 0 when all are, (n, K) and (n,)."""
    right = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], float("-inf")).amax(1)
    return torch.relu(margin - (right - others)).mean()


def divergence(logits: Tensor, reference: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence of answers from the reference's, (n, K) each."""
    now, then = torch.log_softmax(logits, -1), torch.log_softmax(reference, -1)
    return torch.nn.functional.kl_div(now, then, log_target=True, reduction="batchmean")


@contextmanager
def _moved(parameters: list[nn.Parameter], offset: list[Tensor]) -> Generator[None]:
    with torch.no_grad():
        here = [item.clone() for item in parameters]
        for item, move in zip(parameters, offset, strict=True):
            item.add_(move)
    try:
        yield
    finally:
        with torch.no_grad():
            for item, value in zip(parameters, here, strict=True):
                item.copy_(value)  # not subtracted: rounding would drift
