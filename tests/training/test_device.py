# SPDX-License-Identifier: Apache-2.0
"""A step away from the host: nothing on the wrong device, few waits; and, where there is a GPU, the guarantee itself.

Torch's ``meta`` device stands in for an accelerator where there is none: its tensors have no values, so every
mixture of devices and every question that the host puts to the device shows.
"""

import copy

import pytest
import torch
from scipy.stats import kstest, norm
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.models import CASES, Case, predict, tokens
from privguard._random import Stream
from privguard.errors import UnsupportedModelError
from privguard.training.attach import attach
from privguard.training.bookkeeping import BookKeeper
from privguard.training.clip import ClippedSum, trainable
from privguard.training.noise.exact import NoisySum, add_noise
from privguard.training.one_by_one import OneByOne
from privguard.training.step import hand_over

aten = torch.ops.aten
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


class Elsewhere(TorchDispatchMode):
    """``meta`` as an accelerator would be: ``waits`` notes each time that the host waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, kind = kwargs or {}, func.overloadpacket
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if not any(x.is_meta for x in tensors) and torch.device(kwargs.get("device") or "cpu").type != "meta":
            return func(*args, **kwargs)
        if kind in {aten._to_copy, aten.copy_}:
            return self.copied(func, args, kwargs)
        strangers = [tuple(x.shape) for x in tensors if not x.is_meta and x.dim() > 0]
        assert not strangers, f"{func}: {strangers} on the host, the rest on the device"
        if kind is aten._local_scalar_dense:
            return self.wait(func, False if args[0].dtype is torch.bool else 1)
        if kind is aten.nonzero:
            return self.wait(func, torch.empty(0, args[0].dim(), dtype=torch.int64, device="meta"))
        if kind is aten._unique2:
            return self.wait(func, tuple(torch.empty_like(args[0], dtype=torch.int64) for _ in range(3)))
        if kind is aten.index and any(x.dtype is torch.bool for x in tensors[1:]):
            return self.wait(func, torch.empty_like(args[0]))
        return func(*args, **kwargs)

    def copied(self, func, args, kwargs):
        if func.overloadpacket is aten.copy_:
            into, source = args[:2]
            blocks = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        else:
            into, source, blocks = None, args[0], not kwargs.get("non_blocking", False)
        to = torch.device(kwargs.get("device") or source.device) if into is None else into.device
        if to.type == source.device.type:
            return func(*args, **kwargs)
        if to.type == "cpu":
            return self.wait(func, torch.zeros(source.shape, dtype=source.dtype))
        if blocks and source.dim() > 0:
            self.waits.append(f"{func} {tuple(source.shape)}")
        return func(*args, **kwargs)

    def wait(self, func, answer):
        self.waits.append(str(func))
        return answer


def away(case: Case) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return case.model().to("meta"), tuple(x.to("meta") for x in case.data(4))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_a_step_on_a_device_mixes_no_devices_and_seldom_waits(case: Case) -> None:
    """Beyond the model's own waits: two for the batch, one for where the first batch's losses reach, four for a table,
    and five for both halves of a step that is checked, as the first one is.

    A wait costs what the device still has to do; one for each parameter, or each example, would cost the step.
    """
    model, batch = away(case)
    with Elsewhere() as device, torch.no_grad():
        case.losses(model, batch)
    own = len(device.waits)
    clipper, parameters = attach(model, max_grad_norm=1.0), trainable(model)
    optimizer = torch.optim.AdamW(model.parameters())
    tables = sum(isinstance(module, nn.Embedding) for module in model.modules())
    with Elsewhere() as device:
        clipper.begin(torch.tensor([True, True, False, True]))
        clipper.backward(case.losses(model, batch))
        clipped = clipper.take()
        hand_over(parameters, NoisySum(clipped.gradients, 1.0), denominator=4.0)
        assert all(p.grad is not None and p.grad.is_meta for p in parameters.values())
        optimizer.step()
    assert len(device.waits) <= own + 3 + 5 + 4 * tables


def test_noise_for_a_device_is_made_there_and_waited_for_twice() -> None:
    """For the norm of the sum, which is an invariant, and for the pairs in doubt, however many blocks there are."""
    clipped = ClippedSum({"large": torch.empty(3_000_000, device="meta"), "small": torch.empty((), device="meta")}, 1.0)
    with Elsewhere() as device:
        noisy = add_noise(clipped, multiplier=1.0, source=Stream.from_entropy("noise"))
    assert all(value.is_meta for value in noisy.gradients.values())
    assert [wait.split(".")[1] for wait in device.waits if "_to_copy" not in wait] == ["_local_scalar_dense", "nonzero"]
    assert len(device.waits) <= 3


def test_a_model_on_two_devices_is_refused_by_their_names() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2, device="meta"))
    for way in (BookKeeper, OneByOne):
        with pytest.raises(UnsupportedModelError, match=r"devices=\['cpu', 'meta'\].*move the model to one device"):
            way(model, max_grad_norm=1.0)


def small_gpt2() -> Case:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=200, n_embd=64, n_layer=2, n_head=4, n_positions=32, use_cache=False,
                        bos_token_id=0, eos_token_id=0)  # fmt: skip
    return Case("small GPT-2", lambda: GPT2LMHeadModel(config), tokens(32, 200), predict, 4, 0.0)


HERE = [*(case for case in CASES if case.name in {"MLP", "WRN", "BERT"}), small_gpt2()]


def clipped(model: nn.Module, case: Case, batch: tuple[Tensor, ...], way: type, *, rows: int) -> dict[str, Tensor]:
    clipper = way(model, max_grad_norm=0.1)
    for start in range(0, 6, rows):
        clipper.begin(torch.ones(rows, dtype=torch.bool))
        clipper.backward(case.losses(model, tuple(x[start : start + rows] for x in batch)))
    found = clipper.take().gradients
    clipper.close()
    return {name: value.cpu().double() for name, value in found.items()}


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("case", HERE, ids=lambda c: c.name)
def test_the_sum_of_a_gpu_is_that_of_the_host_one_example_at_a_time(case: Case) -> None:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        model, batch = case.model().eval(), case.data(6)
    wanted = clipped(copy.deepcopy(model), case, batch, OneByOne, rows=1)
    model, batch = model.cuda(), tuple(x.cuda() for x in batch)
    with torch.backends.cudnn.flags(allow_tf32=False):
        found = clipped(model, case, batch, BookKeeper, rows=6)
    whole = sum(float(value.square().sum()) for value in wanted.values()) ** 0.5
    apart = sum(float((found[name] - wanted[name]).square().sum()) for name in wanted) ** 0.5
    assert apart <= 1e-3 * whole


@gpu
@pytest.mark.gpu
def test_noise_made_for_a_gpu_has_the_stated_deviation_and_is_the_hosts() -> None:
    """KS at 10⁶ draws of a fixed seed; the host's noise from the same words differs in the last bits alone."""
    source = Stream.from_insecure_seed(3, "noise")
    here, there = (
        add_noise(ClippedSum({"w": torch.zeros(1_000_000, device=device)}, 1.0), multiplier=1.1, source=source)
        for device in ("cpu", "cuda")
    )
    # the first child of `source` is drawn for each device
    assert torch.allclose(here.gradients["w"], there.gradients["w"].cpu(), atol=1e-4)
    assert kstest(there.gradients["w"].double().cpu().numpy(), norm(scale=1.1).cdf).pvalue > 1e-3


@gpu
@pytest.mark.gpu
def test_a_module_that_draws_on_the_gpu_is_refused_where_it_would_be_run_again() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale * torch.rand_like(x)

    model = Noisy().cuda()
    clipper = BookKeeper(model, max_grad_norm=1.0)
    clipper.begin(torch.ones(2, dtype=torch.bool))
    with pytest.raises(UnsupportedModelError, match="draws random numbers"):
        model(torch.ones(2, 3, device="cuda"))
