# SPDX-License-Identifier: Apache-2.0
"""Parameters that are cut over ranks, as torch's ``fully_shard`` (FSDP2) leaves them: tensors of type ``DTensor``.

Clipping needs nothing of this: an example's gradient is formed, and its norm taken, on the one rank that has the
example. Only the weighted sum of a parameter meets the other ranks', and each rank keeps its own rows of it.
"""

import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from privguard.training import structure

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_cut(tensor: object) -> "TypeGuard[DTensor]":
    """Whether ranks hold parts of this tensor."""
    home = sys.modules.get("torch.distributed.tensor")  # slow to import, and without it there are no such tensors
    return home is not None and isinstance(tensor, home.DTensor)


def add_over_ranks(mine: Tensor, into: Tensor) -> None:
    """Add the sum of all ranks' ``mine`` to ``into``, which is cut: one reduce-scatter. Every rank has to call this."""
    from torch.distributed.tensor import DTensor, Partial

    assert is_cut(into)  # noqa: S101 — only such a slot is handed over
    mesh = into.device_mesh
    summed = DTensor.from_local(mine, mesh, [Partial()] * mesh.ndim).redistribute(mesh, into.placements)
    into.to_local().add_(summed.to_local())


def part(tensor: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """What this rank holds of a tensor, and the position of its first number in the whole: () where it is not cut.

    Ranks that hold the same part get the same position.
    """
    if not is_cut(tensor):
        return tensor, ()
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset  # there is no public way to ask

    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tensor.to_local(), tuple(offset)


def norm(tensors: Iterable[Tensor]) -> Tensor:
    """The L2 norm over all the tensors together, parts on other ranks included."""
    tensors = list(tensors)
    groups = [[t for t in tensors if is_cut(t) is cut] for cut in (False, True)]
    norms = [get_total_norm(group) for group in groups if group]
    return torch.stack([one.full_tensor() if is_cut(one) else one for one in norms]).norm()


def whole(tree: Any) -> Any:
    """The tree of a state dictionary with each cut tensor gathered. Every rank has to call this."""
    return structure.tensors_mapped(lambda tensor: tensor.full_tensor() if is_cut(tensor) else tensor, tree)


def cut_like(value: Any, pattern: object) -> Any:
    """``value`` cut as ``pattern`` is, where that is cut and the shapes agree. Every rank holds all of ``value``."""
    if not (is_cut(pattern) and isinstance(value, Tensor) and value.shape == pattern.shape):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(pattern.device), pattern.device_mesh, pattern.placements, src_data_rank=None)


def cut_state(optimizer: Mapping[str, Any], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """The state dictionary of an optimizer, each tensor cut as its parameter in ``groups`` is."""
    parameters = [parameter for group in groups for parameter in group["params"]]
    if not any(map(is_cut, parameters)):
        return dict(optimizer)
    indices = [index for group in optimizer["param_groups"] for index in group["params"]]
    of = dict(zip(indices, parameters, strict=True))
    state = {
        index: {name: cut_like(value, of[index]) for name, value in entry.items()}
        for index, entry in optimizer["state"].items()
    }
    return {**optimizer, "state": state}
