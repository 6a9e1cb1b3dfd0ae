# SPDX-License-Identifier: Apache-2.0
"""How much a record's own gradient depends on the shape of its batch, in the types and on the device of the training.

Kernels are chosen by shape and add up in another order, so the last bits differ. The proof of a sum's sensitivity takes
each record's gradient as given (docs/spec/mechanism-v1.md); this is the size of what it takes for granted.
"""

from typing import Any

from torch import nn

from privguard.errors import UnsupportedModelError
from privguard.training.probes.fields import first_rows
from privguard.training.probes.gradients import Losses, is_finite, largest_change, plain, without_dropout


def shape_term(model: nn.Module, losses: Losses, batch: Any, sizes: tuple[int, ...]) -> float:
    """Largest change of a record's gradient over its norm, beside fewer records than in ``batch``.

    ``sizes`` begins with that of ``batch``. A size that the model does not take is left out.
    """
    whole, *smaller = sizes
    changes = [0.0]
    with without_dropout(model):
        before = {example: plain(model, losses, batch, example) for example in (0, 2)}
        for size in smaller:
            for example in range(0, size, 2):
                try:
                    after = plain(model, losses, first_rows(batch, size, of=whole), example)
                except (UnsupportedModelError, IndexError):
                    continue
                if is_finite(before[example]) and is_finite(after):
                    changes.append(largest_change(before[example], after)[1])
    return max(changes)
