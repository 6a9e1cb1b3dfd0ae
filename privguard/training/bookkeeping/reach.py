"""What the losses of a batch reach: no parameter outside the model, and no row of another example.

The probe sees the loss of a loop only where it is shown to it. What a loop really sends backward is looked at here, in
its graph: a fault of the program shows in any batch, so a refusal tells nothing about the records in this one.
"""

from collections.abc import Collection, Iterator

import torch
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


def check_rows(losses: Tensor, batch: Batch) -> bool:
    """Refuse losses of which one reaches rows of other examples; True once that has been looked at.

    One more backward pass, from a single loss. It cannot be seen in a batch of one, nor by an example that is not
    finite, nor where the graph can be walked through only once (compiled parts, re-entrant checkpoints).

    Raises:
        SensitivityError: with the name of the module.
    """
    if batch.size == 1 or not batch.mask.any():
        return False
    example = int(batch.mask.nonzero()[0])
    batch.alone = example
    try:
        torch.autograd.grad(losses[example], batch.root, retain_graph=True, allow_unused=True)
    except RuntimeError:
        return True
    finally:
        batch.alone = None
    if not batch.reaches:
        return True
    found = torch.stack([seen for _, seen in batch.reaches]).tolist()
    for (module, _), (reached, _) in zip(batch.reaches, found, strict=True):
        if reached:
            raise SensitivityError(
                f"module={module!r}: the loss of example {example} reaches rows of other examples; use no negatives "
                "and no means from the batch, and put several rows of one example side by side "
                "(x.repeat_interleave(2, 0), not torch.cat([x, x])); or pass losses= where the run begins, so that "
                "the probe can choose a slower way"
            )
    return not any(broken for _, broken in found)


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
