# SPDX-License-Identifier: Apache-2.0
"""What a run can say about itself in public, gathered before its first step."""

import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from torch import nn

import privguard
from privguard.accounting.outlook import Outlook
from privguard.checkpoint.keys.key import Recipient
from privguard.records import Manifest
from privguard.runs.options import RunSetup
from privguard.training.plan import Plan

FLOAT32_NOISE = (
    "The noise was drawn and added in float32, by choice: attacks on the last bits of floating-point noise (Mironov "
    "2012) are not ruled out."
)
_NOISES = {"exact": "Gaussian, rounded exactly to integers of a public grid", "float32": "Gaussian in float32"}
_HELD = {"exact": "64-bit integers", "float32": "float32"}
_TWINS = "Whether two records with equal content are one person's record put in twice."
_COPIES = (
    "Spending in copies of this run folder, or before it was put back from a backup: no head of its ledger is kept "
    "outside of it, as a budget book would."
)
_BRANCHES = (
    "What the program does only in batches of other sizes than the probe's 5, 3 and 1, or for values that no synthetic "
    "record had, as far as the checks while training do not show it."
)
UNCHECKED = (_TWINS, _COPIES)
"""Of a run that no budget book knows."""
_COPIES_OF_A_CRASH = (
    "Steps that a process took after its newest checkpoint, where its folder was then put back from a copy: the budget "
    "book knows the ledger as of each checkpoint."
)
_PLACES = (
    "Whether each resumed run read the same records in the same order, beyond those that the data commitment looks at: "
    "a record's place says in which group it is, and so in which steps it may take part."
)
"""Of a run with bands."""
_SOFTWARE = ("torch", "numpy", "opacus", "dp-accounting", "cryptography", "transformers", "accelerate")


def describe(  # noqa: PLR0913 — one argument for each thing described
    run: str,
    *,
    plan: Plan,
    model: nn.Module,
    clipper: object,
    probed: str,
    recipients: Sequence[Recipient],
    insecure: bool,
    commitment: str | None,
    mechanism: dict[str, Any],
    outlook: Outlook,
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
        noise=f"{_NOISES[mechanism['noise']]}, by Box–Muller from {_cipher(model, mechanism, plan)}, "
        + ("from a published seed" if insecure else "keyed from OS entropy")
        + (f", correlated over {plan.bands} steps" if plan.bands > 1 else ""),
        precision=f"weights {_dtypes(model)}; norms float32, sums float64, noise {_HELD[mechanism['noise']]}",
        mechanism=mechanism,
        outlook=outlook.facts(),
        software=software(),
        insecure=insecure,
        unchecked=((FLOAT32_NOISE,) if mechanism["noise"] == "float32" else ())
        + ((_PLACES,) if plan.bands > 1 else ())
        + tuple(getattr(clipper, "unchecked", ())),
    )


def unchecked(setup: RunSetup) -> tuple[str, ...]:
    """What a run cannot look at, as sentences for the claim."""
    branches = () if setup.clipper.rows == 1 else (_BRANCHES,)
    return (*setup.unchecked, *branches, *(UNCHECKED if setup.charge is None else (_TWINS, _COPIES_OF_A_CRASH)))


def software() -> dict[str, str]:
    """Versions of privguard, Python and the libraries that compute the result, by name."""
    versions = {name: metadata.version(name) for name in _SOFTWARE}
    return {"privguard": privguard.__version__, "python": platform.python_version(), **versions}


def _cipher(model: nn.Module, mechanism: dict[str, Any], plan: Plan) -> str:
    """What makes the words of the noise: the host's cipher, but for exact independent noise on an accelerator."""
    on_host = all(parameter.device.type == "cpu" for parameter in model.parameters() if parameter.requires_grad)
    return "AES-256-CTR" if on_host or mechanism["noise"] != "exact" or plan.bands > 1 else "ChaCha20"


def _dtypes(model: nn.Module) -> str:
    return ", ".join(sorted({str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()}))
