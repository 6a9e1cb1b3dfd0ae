# SPDX-License-Identifier: Apache-2.0
"""The ways of taking one training step that are measured against each other, and the modes in which they take it."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from benchmarks.models import Case
from privguard._random import Stream
from privguard.accounting.ledger import Ledger
from privguard.training.attach import attach
from privguard.training.noise.exact import NoisySum
from privguard.training.plan import Plan
from privguard.training.step import PrivateStep, hand_over

Batch = tuple[Tensor, ...]


@final
@dataclass(frozen=True)
class Mode:
    """How a model is run: in float32 or under bfloat16 autocast, as written or by ``model.compile()``."""

    name: str
    bf16: bool = False
    compiled: bool = False

    def autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.bf16)


MODES = {
    mode.name: mode
    for mode in (
        Mode("float32"),
        Mode("bf16", bf16=True),
        Mode("compile", compiled=True),
        Mode("bf16 compile", bf16=True, compiled=True),
    )
}


@final
@dataclass(frozen=True)
class Setting:
    """A case in a mode on a device."""

    case: Case
    mode: Mode
    device: torch.device

    @property
    def examples(self) -> int:
        """Records of the data set that batches are drawn from."""
        return max(2048, 4 * self.case.batch)

    def model(self) -> nn.Module:
        return self.case.model().to(self.device)

    def compiled(self, model: nn.Module) -> nn.Module:
        """The same module; its next forward is compiled where the mode says so."""
        if self.mode.compiled:
            model.compile()
        return model

    def losses(self, model: nn.Module, batch: Batch, *, spelt_out: bool = False) -> Tensor:
        losses = (self.case.spelt_out if spelt_out else None) or self.case.losses
        with self.mode.autocast(self.device):
            return losses(model, batch).float()

    def batch(self) -> Batch:
        return tuple(tensor.to(self.device) for tensor in self.case.data(self.case.batch))


class Ordinary:
    """zero_grad, forward, backward of the mean, step."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.model = setting, setting.compiled(setting.model())
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)

    def __call__(self, batch: Batch) -> None:
        self.optimizer.zero_grad()
        self.setting.losses(self.model, batch).mean().backward()
        self.optimizer.step()


class Private:
    """One logical batch in one physical batch: mask, forward, clip, AES noise on a reserved event, step."""

    def __init__(self, setting: Setting, *, noise: float = 0.8) -> None:
        self.setting, self.model = setting, setting.compiled(setting.model())
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        size = setting.case.batch
        self.plan = Plan(
            sample_rate=size / setting.examples,
            noise_multiplier=noise,
            max_grad_norm=1.0,
            steps=10**6,
            delta=1e-5,
            expected_batch_size=size,
        )
        self.clipper = attach(self.model, max_grad_norm=1.0)
        self.parameters = dict(self.model.named_parameters())
        folder = Path(tempfile.mkdtemp())
        ledger = Ledger.create(folder / "ledger.jsonl", self.plan.facts())
        source = Stream.from_entropy("noise")
        self.step = PrivateStep(self.plan, clipper=self.clipper, ledger=ledger, noise=source, reserve=8)

    def __call__(self, batch: Batch) -> None:
        self.step.position()
        self.clip(batch)
        self.step.finish(self.optimizer, self.parameters)

    def clip(self, batch: Batch) -> None:
        self.clipper.begin(torch.ones(len(batch[0]), dtype=torch.bool))
        self.clipper.backward(self.setting.losses(self.model, batch))


class Checked(Private):
    """The same with the halves of every step sent backward on their own first, where a run checks one of 32."""

    def clip(self, batch: Batch) -> None:
        self.clipper.checks.steps = 0
        super().clip(batch)


class Unchecked(Private):
    """The same with no step checked: what the checks cost is the difference."""

    def clip(self, batch: Batch) -> None:
        self.clipper.checks.impossible = "not in this way of the benchmark"
        super().clip(batch)


class WithoutNoise(Private):
    """The same without noise and ledger: what clipping alone costs."""

    def __call__(self, batch: Batch) -> None:
        self.clip(batch)
        clipped = NoisySum(self.clipper.take().gradients, 0.0)
        hand_over(self.parameters, clipped, denominator=self.setting.case.batch)
        self.optimizer.step()


def wrapped_by_the_compiler(setting: Setting) -> object:
    """What ``torch.compile(model)`` returns has layers that nothing can listen to: this raises, and says so."""
    return attach(torch.compile(setting.model()), max_grad_norm=1.0)  # type: ignore[arg-type]


class Opacus:
    """Opacus' optimizer and a model wrapped by it, noise included."""

    def __init__(self, setting: Setting, *, ghost: bool) -> None:
        from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
        from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
        from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

        self.setting, inner = setting, setting.model()
        optimizer = torch.optim.AdamW(inner.parameters(), lr=1e-4)
        options: dict[str, Any] = {"noise_multiplier": 0.8, "max_grad_norm": 1.0}
        options["expected_batch_size"] = setting.case.batch
        if ghost:
            self.model: nn.Module = GradSampleModuleFastGradientClipping(
                inner, max_grad_norm=1.0, use_ghost_clipping=True
            )
            self.optimizer: Any = DPOptimizerFastGradientClipping(optimizer, **options)
            criterion = _Given()
            self.criterion: Any = DPLossFastGradientClipping(self.model, self.optimizer, criterion, "mean")
        else:
            self.model, self.criterion = GradSampleModule(inner), None
            self.optimizer = DPOptimizer(optimizer, **options)
        setting.compiled(self.model)

    def __call__(self, batch: Batch) -> None:
        self.optimizer.zero_grad()
        losses = self.setting.losses(self.model, batch, spelt_out=True)
        if self.criterion is None:
            losses.mean().backward()
        else:
            self.criterion(losses, torch.zeros_like(losses)).backward()
        self.optimizer.step()


class _Given(nn.Module):
    """A criterion that finds its losses computed."""

    reduction = "mean"

    def forward(self, losses: Tensor, _: Tensor) -> Tensor:
        return losses if self.reduction == "none" else losses.mean()


WAYS: dict[str, Callable[[Setting], Any]] = {
    "ordinary": Ordinary,
    "privguard": Private,
    "privguard, no noise": WithoutNoise,
    "privguard, checked": Checked,
    "privguard, unchecked": Unchecked,
    "privguard, torch.compile": wrapped_by_the_compiler,
    "Opacus hooks": lambda setting: Opacus(setting, ghost=False),
    "Opacus ghost": lambda setting: Opacus(setting, ghost=True),
}


def ways_of(mode: Mode, *, opacus: bool) -> list[str]:
    """The ways that a mode has; a model is only wrapped by the compiler where something is compiled."""
    left = [] if opacus else ["Opacus hooks", "Opacus ghost"]
    return [way for way in WAYS if way not in left and (mode.compiled or way != "privguard, torch.compile")]
