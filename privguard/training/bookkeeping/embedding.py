"""Tables looked up by id."""

from collections.abc import Iterator
from typing import cast

from torch import nn

from privguard.training.bookkeeping.call import Call
from privguard.training.bookkeeping.factors import Factor, Lookup


def embedding(call: Call) -> Iterator[tuple[str, Factor]]:
    """Y = W[ids]; the padding row receives nothing."""
    module = cast("nn.Embedding", call.module)
    ids = call.x.reshape(call.batch, -1)
    if module.padding_idx is not None:
        ids = ids.masked_fill(ids == module.padding_idx, -1)
    yield "weight", Lookup(ids, call.g.reshape(*ids.shape, -1))
