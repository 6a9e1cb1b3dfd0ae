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
from privguard.training.clip import Clipper
from privguard.training.plan import Plan

FLOAT32_NOISE = (
    "The noise was drawn and added in float32, by choice: attacks on the last bits of floating-point noise (Mironov "
    "2012) are not ruled out."
)
_NOISES = {"exact": "Gaussian, rounded exactly to integers of a public grid", "float32": "Gaussian in float32"}
_HELD = {"exact": "64-bit integers", "float32": "float32"}
_SOFTWARE = ("torch", "numpy", "opacus", "dp-accounting", "cryptography", "transformers", "accelerate")


def describe(  # noqa: PLR0913 — one argument for each thing described
    run: str,
    *,
    plan: Plan,
    model: nn.Module,
    clipper: Clipper,
    probed: str,
    recipients: Sequence[Recipient],
    streams: Stream,
    commitment: str | None,
    mechanism: dict[str, Any],
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
        noise=f"{_NOISES[mechanism['noise']]}, by Box–Muller from {_cipher(model, mechanism)}, "
        + ("from a published seed" if streams.insecure else "keyed from OS entropy"),
        precision=f"weights {_dtypes(model)}; norms float32, sums float64, noise {_HELD[mechanism['noise']]}",
        mechanism=mechanism,
        software=software(),
        insecure=streams.insecure,
        unchecked=((FLOAT32_NOISE,) if mechanism["noise"] == "float32" else ()) + clipper.unchecked,
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


def _cipher(model: nn.Module, mechanism: dict[str, Any]) -> str:
    """What makes the words of the noise: the host's cipher, but for exact noise on an accelerator."""
    on_host = all(parameter.device.type == "cpu" for parameter in model.parameters() if parameter.requires_grad)
    return "AES-256-CTR" if on_host or mechanism["noise"] != "exact" else "ChaCha20"


def _dtypes(model: nn.Module) -> str:
    return ", ".join(sorted({str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()}))
