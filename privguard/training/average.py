# SPDX-License-Identifier: Apache-2.0
"""An exponential average of the weights, beside the last ones: post-processing of what was released, so it is free.

Noise that the last steps added is averaged out: 8 to 12 % of what is left in the weights with independent noise, little
more with bands; before a run has converged an average lags behind and may be worse. Fix the decay in advance, to span
about a tenth of the run: to choose among averages by private validation data is one more use of that data.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from privguard import _check
from privguard.training.clip import trainable


@final
class WeightAverage:
    """a ← decay · a + (1 - decay) · w after every step of the optimizer, from the weights that it began with.

    It works beside every wrapper, for it listens to the optimizer alone. To keep it in the sealed checkpoints, and to
    go on with it, name it in ``RunOptions(also={"average": average})``.

    >>> model = nn.Linear(1, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    >>> average = WeightAverage(model, optimizer, decay=0.9)
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, *, decay: float) -> None:
        """Begin with the weights as they are.

        Args:
            model: the model that is trained.
            optimizer: its optimizer; torch's own, where a wrapper has wrapped it.
            decay: the weight of what was before, above 0 and below 1; 1 - 10 / steps spans a tenth of a run.

        Raises:
            ValueError: ``decay`` is out of range.
        """
        self._decay = _check.probability("decay", decay)
        self._weights = trainable(model)
        self._average = {name: weight.detach().float().clone() for name, weight in self._weights.items()}
        optimizer.register_step_post_hook(lambda *_: self._update())

    @torch.no_grad()
    def _update(self) -> None:
        for name, weight in self._weights.items():
            self._average[name].lerp_(weight.detach().float(), 1 - self._decay)

    @contextmanager
    def swapped(self) -> Generator[None]:
        """Inside, the model has the averaged weights: to evaluate it, or to save it."""
        last = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self._set(self._average)
        try:
            yield
        finally:
            self._set(last)

    @torch.no_grad()
    def _set(self, values: dict[str, Tensor]) -> None:
        for name, weight in self._weights.items():
            weight.copy_(values[name])

    def state_dict(self) -> dict[str, Any]:
        """The averages by the names of the parameters, float32."""
        return dict(self._average)

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Go on from the averages of a stopped run.

        Raises:
            ValueError: they are those of other parameters.
        """
        same = {name: value.shape for name, value in state_dict.items()} == {
            n: w.shape for n, w in self._average.items()
        }
        _check.require(same, "average", sorted(state_dict), wanted="the trained parameters of this model")
        for name, value in state_dict.items():
            self._average[name].copy_(value)
