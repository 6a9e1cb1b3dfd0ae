"""One use of one module in one batch: what a rule works from."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import final

from torch import Tensor, nn

from privguard.training.bookkeeping.factors import Factor


@final
@dataclass(frozen=True)
class Call:
    """What a module saw and what came back.

    Attributes:
        module: the module itself.
        x: its first input; example i owns rows i·k to (i+1)·k − 1 of dimension 0.
        g: the gradient of the summed loss at its output, same ownership of rows.
        batch: B, how many examples there are.
        wanted: local names of its trainable parameters; a rule need not work for others.
    """

    module: nn.Module
    x: Tensor
    g: Tensor
    batch: int
    wanted: frozenset[str]


Rule = Callable[[Call], Iterator[tuple[str, Factor]]]
