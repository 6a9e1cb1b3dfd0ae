# SPDX-License-Identifier: Apache-2.0
"""Model inversion: what a record of a class looks like to the model, and whether it looks like a member.

A picture and a comparison, never a bound: gradient ascent finds an input that the model likes (Fredrikson et al.
2015), and the comparison asks whether it lies nearer to a member than to any of as many non-members of the class. A
class average lies equally near to both.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from privguard import _check
from privguard.audit.membership.score import evaluating
from privguard.records import Measurement

_SMOOTH = 1e-3  # weight of the total variation: enough to keep the ascent from noise of single pixels


@final
@dataclass(frozen=True, kw_only=True)
class Nearness(Measurement):
    """Cosine similarity, after centring, of a reconstruction to its nearest member and its nearest non-member.

    ``gap`` is the first less the second; ``members_nearer`` of ``reconstructions`` have a positive one.
    """

    to_member: float
    to_non_member: float
    gap: float
    members_nearer: int
    reconstructions: int


def reconstruct(
    model: nn.Module, label: int, *, shape: tuple[int, ...], starts: int = 8, steps: int = 200, seed: int = 0
) -> NDArray[np.float32]:
    """Inputs (starts, *shape) in [0, 1] that the model takes for ``label``, by gradient ascent from random noise.

    The model's parameters and mode are left as they were.
    """
    _check.count("starts", starts)
    _check.count("steps", steps)
    inputs = torch.rand(starts, *shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    labels = torch.full((starts,), label)
    optimizer = torch.optim.Adam([inputs], lr=0.05)
    with evaluating(model):
        for _ in range(steps):
            loss = nn.functional.cross_entropy(model(inputs), labels, reduction="sum") + _SMOOTH * _roughness(inputs)
            (inputs.grad,) = torch.autograd.grad(loss, [inputs])
            optimizer.step()
            inputs.data.clamp_(0, 1)
    return inputs.detach().numpy()


def nearness(
    reconstructions: NDArray[np.floating], *, members: NDArray[np.floating], non_members: NDArray[np.floating]
) -> Nearness:
    """Compare reconstructions with as many members as non-members of the class: neither side has more chances."""
    size = min(len(members), len(non_members))
    _check.require(size > 0, "members, non_members", (len(members), len(non_members)), wanted="at least one of each")
    ours = _directions(reconstructions)
    to_member = (ours @ _directions(members[:size]).T).max(1)
    to_other = (ours @ _directions(non_members[:size]).T).max(1)
    return Nearness(
        to_member=float(to_member.mean()),
        to_non_member=float(to_other.mean()),
        gap=float((to_member - to_other).mean()),
        members_nearer=int((to_member > to_other).sum()),
        reconstructions=len(ours),
    )


def picture(reconstructions: NDArray[np.floating], *, nearest: NDArray[np.floating]) -> str:
    """Reconstructions (n, h, w) above the member nearest to each, as SVG text."""
    from matplotlib.figure import Figure

    from privguard.audit.membership.roc_plot import svg_text

    figure = Figure(figsize=(1.1 * len(reconstructions), 2.4), layout="constrained")
    for row, images in enumerate((reconstructions, nearest)):
        for column, image in enumerate(images):
            axes = figure.add_subplot(2, len(reconstructions), row * len(reconstructions) + column + 1)
            axes.imshow(np.squeeze(image), cmap="gray", vmin=0, vmax=1)
            axes.set_axis_off()
    return svg_text(figure)


def nearest_members(reconstructions: NDArray[np.floating], members: NDArray[np.floating]) -> NDArray[np.int64]:
    """Numbers of the members that the reconstructions are most like."""
    return (_directions(reconstructions) @ _directions(members).T).argmax(1)


def _directions(rows: NDArray[np.floating]) -> NDArray[np.float64]:
    flat = np.asarray(rows, np.float64).reshape(len(rows), -1)
    flat = flat - flat.mean(1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)


def _roughness(inputs: Tensor) -> Tensor:
    """Total variation of images; nothing for rows of features."""
    if inputs.dim() < 3:  # noqa: PLR2004 — (n, features)
        return inputs.new_zeros(())
    return (inputs[..., 1:, :] - inputs[..., :-1, :]).abs().sum() + (inputs[..., 1:] - inputs[..., :-1]).abs().sum()
