# SPDX-License-Identifier: Apache-2.0
"""What the tests of the clippers share: run one over some batches, and compare two sums."""

from torch import Tensor, nn

from privguard.training.clip import Clipper


def clipped(clipper: Clipper, model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """The sum of ``model(x)``, a loss per example, over batches of (x, mask)."""
    for x, mask in batches:
        size = clipper.rows or len(x)
        for rows, real in zip(x.split(size), mask.split(size), strict=True):
            clipper.begin(real)
            clipper.backward(model(rows))
    total = clipper.take()
    clipper.close()
    assert all(p.grad is None for p in model.parameters())
    return total.gradients


def distance(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    """‖one − two‖ / ‖two‖ over all parameters together."""
    assert one.keys() == two.keys()
    gap = sum(float((one[n].double() - two[n].double()).square().sum()) for n in one)
    return (gap / sum(float(t.double().square().sum()) for t in two.values())) ** 0.5
