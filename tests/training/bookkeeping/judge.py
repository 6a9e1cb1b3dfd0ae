# SPDX-License-Identifier: Apache-2.0
"""Whether the book-keeper is exact for a model: held against ordinary autograd of one record after the other."""

import copy

import torch
from torch import Tensor, nn

from privguard.errors import PrivguardError
from privguard.training.attach import attach

EXACT = 2e-4  # of the clipping norm, by which float32 sums may differ
PRICED = 1 + 1e-3  # of the clipping norm, by which one record may move the sum


def verdict(model: nn.Module, x: Tensor, *, tolerance: float = EXACT) -> str:
    """``exact``, ``refused: …`` by name, ``torch fails: …`` without the book-keeper, or what is wrong.

    What is promised takes each record's own gradient as given, and torch's own changes with the shape of its batch
    (the shape term of mechanism v1): a sum may be off by so much besides, where the model is that badly conditioned.

    The clipping norm is the middle of the records' norms, so that some are clipped and some are not.
    """
    try:
        each = torch.stack([_ordinary(copy.deepcopy(model), x[i : i + 1]) for i in range(len(x))])
    except Exception as error:
        return f"torch fails: {error}"
    norms = each.norm(dim=1)
    bound = float(norms.median()) * 0.9 + 1e-9
    wanted = (each * (bound / norms.clamp(min=bound))[:, None]).sum(0)
    try:
        whole, without = _clipped(model, [x, *(torch.cat([x[:i], x[i + 1 :]]) for i in range(len(x)))], bound)
    except PrivguardError as refusal:
        return f"refused: {refusal}"
    except Exception as error:
        return f"crash: {type(error).__name__}: {error}"
    off = float((whole - wanted).norm()) / bound
    moved = max(float((whole - other).norm()) / bound for other in without)
    if not off <= tolerance and not off <= tolerance + _shape_term(model, x, each, bound):
        return f"wrong sum, by {off:.2g} C"
    return "exact" if moved <= PRICED + tolerance else f"one record moves the sum by {moved:.4f} C"


def _shape_term(model: nn.Module, x: Tensor, each: Tensor, bound: float) -> float:
    """How far ordinary autograd's gradients of all records beside each other are from those of each alone, in C."""
    changes = 0.0
    for i in range(len(x)):
        twin = copy.deepcopy(model)
        _losses(twin, x)[i].backward()
        change = float((_of(twin) - each[i]).norm())
        changes += change * min(1.0, bound / float(each[i].norm().clamp(min=1e-30))) / bound
    return changes


def _losses(model: nn.Module, x: Tensor) -> Tensor:
    out = model(x)
    out = out.flatten(1).to(torch.promote_types(out.dtype, torch.float32))
    weights = (1 + torch.arange(out.shape[1])).to(out.dtype).sin()
    return (out * weights).sum(1) + out.square().mean(1)


def _ordinary(model: nn.Module, x: Tensor) -> Tensor:
    _losses(model, x).sum().backward()
    return _of(model)


def _of(model: nn.Module) -> Tensor:
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters() if p.requires_grad]
    return torch.cat([gradient.to_dense().double().flatten() for gradient in gradients])


def _clipped(model: nn.Module, batches: list[Tensor], bound: float) -> tuple[Tensor, list[Tensor]]:
    clipper = attach(model, max_grad_norm=bound)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    sums = []
    try:
        for x in batches:
            clipper.begin(torch.ones(len(x), dtype=torch.bool))
            clipper.backward(_losses(model, x))
            gradients = clipper.take().gradients
            sums.append(torch.cat([gradients[name].double().flatten() for name in names]))
    finally:
        clipper.close()
    return sums[0], sums[1:]
