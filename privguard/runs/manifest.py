"""What a run can say about itself in public, gathered before its first step."""

import hashlib
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import privguard
from privguard._random import Stream
from privguard.checkpoint.key import Recipient
from privguard.records import Manifest
from privguard.training.plan import Plan

_SOFTWARE = ("torch", "numpy", "opacus", "dp-accounting", "cryptography", "transformers", "accelerate")


def describe(  # noqa: PLR0913 — one argument for each thing described
    run: str,
    *,
    plan: Plan,
    model: nn.Module,
    clipper: object,
    probed: str,
    recipients: Sequence[Recipient],
    streams: Stream,
    commitment: str | None,
) -> Manifest:
    """The public manifest of a run; nothing in it depends on the private data, except through the salted commitment."""
    return Manifest(
        run=run,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        plan=plan.facts(),
        model={
            "class": type(model).__name__,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "trained": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        },
        data={"examples": plan.examples, "commitment": commitment},
        recipients=tuple(f"{one.kind.label} {one.id}" for one in recipients),
        clipping=f"per {plan.unit.value}, flat, by {type(clipper).__name__}; non-finite examples count as zero",
        probe=probed,
        noise="Gaussian by Box–Muller from AES-256-CTR, "
        + ("from a published seed" if streams.insecure else "keyed from OS entropy"),
        precision=f"weights {_dtypes(model)}; norms, sums and noise float32",
        software=software(),
        insecure=streams.insecure,
    )


def software() -> dict[str, str]:
    """Versions of privguard, Python and the libraries that compute the result, by name."""
    versions = {name: metadata.version(name) for name in _SOFTWARE}
    return {"privguard": privguard.__version__, "python": platform.python_version(), **versions}


def commitment(loader: DataLoader[Any], salt: bytes) -> str | None:
    """SHA-256 over a secret salt and the records of a tensor data set; None for other data sets.

    The salt stays in the sealed snapshot: a plain digest would let whoever knows all records but one test a guess at
    it.
    """
    if not isinstance(loader.dataset, TensorDataset):
        return None
    state = hashlib.sha256(b"privguard data commitment v1\0" + salt)
    for tensor in loader.dataset.tensors:
        state.update(f"{tensor.dtype} {tuple(tensor.shape)}\0".encode())
        state.update(tensor.detach().cpu().contiguous().view(-1).numpy().tobytes())
    return state.hexdigest()


def _dtypes(model: nn.Module) -> str:
    return ", ".join(sorted({str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()}))
