# SPDX-License-Identifier: Apache-2.0
"""Float32 means float32 while norms are taken and sums are formed, whatever the training around it has switched on.

The bound on the rounding of a norm (``KAPPA``) is that of IEEE float32.
Under autocast, or with TF32 and bfloat16 products allowed, the same lines would multiply with 8 to 11 bits, and an
example whose positions nearly cancel would contribute several per cent more than the clipping norm.
"""

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch.backends import cuda, mkldnn


@contextmanager
def exact(device: torch.device) -> Generator[None]:
    """Inside, products of float32 tensors on ``device`` are neither cast down nor computed in fewer bits."""
    switches: tuple[Any, ...] = (cuda.matmul, cast("Any", mkldnn).matmul)  # torch's older switches write to these too
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = "ieee"
    try:
        with uncast(device):
            yield
    finally:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision


def uncast(device: torch.device) -> AbstractContextManager[object]:
    """Inside, no autocast: a backward pass has its forward's types, and what taps compute on the way is exact."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
