# SPDX-License-Identifier: Apache-2.0
"""What the losses of a batch reach: no parameter outside the model, and no row of another example.

The probe sees the loss of a loop only where it is shown to it. What a loop really sends backward is looked at here, in
its graph: a fault of the program shows in any batch, so a refusal tells nothing about the records in this one.
"""

from collections.abc import Collection, Iterator

from torch import Tensor, nn

from privguard.errors import SensitivityError
from privguard.training.bookkeeping.batch import Batch

_LEAF = "torch::autograd::AccumulateGrad"


def check_leaves(losses: Tensor, batch: Batch, own: Collection[Tensor]) -> None:
    """Refuse a graph whose backward pass would write un-noised gradients on what is none of the model's.

    Such a tensor, for instance a temperature or a head that an optimizer of its own moves, would be trained on the
    private examples without clip and noise. What holds rows of the batch itself is no parameter and may stay.

    Raises:
        SensitivityError: with the shape of the tensor.
    """
    known = {id(one) for one in own} | {id(batch.root)}
    for leaf in _leaves(losses):
        rows = leaf.dim() > 0 and len(leaf) % batch.rows == 0
        if id(leaf) not in known and (isinstance(leaf, nn.Parameter) or not rows):
            raise SensitivityError(
                f"losses: a gradient would reach a tensor of shape {tuple(leaf.shape)} that is no parameter of the "
                "model, with neither clip nor noise; make it a parameter of the model (a submodule, before privatizing "
                "it), or detach() it"
            )


def _leaves(losses: Tensor) -> Iterator[Tensor]:
    """The tensors that a backward pass from ``losses`` writes a gradient on."""
    ahead, seen = [losses.grad_fn], set[object]()
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == _LEAF:
            yield node.variable  # type: ignore[attr-defined]
        ahead.extend(following for following, _ in node.next_functions)
