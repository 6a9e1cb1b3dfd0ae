# SPDX-License-Identifier: Apache-2.0
"""The global random generators, which dropout and augmentation draw from: their states, read and put back.

A run that is resumed puts them where its snapshot found them, so that it goes on exactly. Sampler and noise never draw
from them; those have streams of their own (``privguard._random``).
"""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def states() -> dict[str, Any]:
    """The states of this process's generators: ``python``, ``numpy``, ``torch``, and ``cuda`` where there are GPUs."""
    found: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002 — the frameworks draw from it, so it is kept
        "torch": torch.random.get_rng_state(),
    }
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state_all()
    return found


def restore(found: Mapping[str, Any]) -> None:
    """Put this process's generators where ``states`` found them; GPUs that are not here any more are left out."""
    random.setstate(found["python"])
    np.random.set_state(found["numpy"])  # noqa: NPY002
    torch.random.set_rng_state(found["torch"])
    if torch.cuda.is_available() and "cuda" in found:
        torch.cuda.set_rng_state_all(found["cuda"][: torch.cuda.device_count()])


def states_of_all_processes() -> list[dict[str, Any]]:
    """``states`` of every process of ``torch.distributed``, in order of rank. Every process has to call this."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [states()]
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, states())
    return gathered
