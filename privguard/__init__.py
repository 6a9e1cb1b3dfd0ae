"""privguard: private training with an honest ε, sealed checkpoints, marks that hold up, audits that try to refute.

The public names live here; each is brought in when it is first used (PEP 562), so ``import privguard`` costs neither
torch nor dp_accounting.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from privguard.accounting.calibrate import Budget as Budget
    from privguard.accounting.ledger import Ledger as Ledger
    from privguard.checkpoint.key import Key as Key
    from privguard.checkpoint.key import Recipient as Recipient
    from privguard.integrations.accelerate import PrivateAccelerator as PrivateAccelerator
    from privguard.integrations.plain import privatize as privatize
    from privguard.integrations.transformers import PrivateTrainer as PrivateTrainer
    from privguard.records import Claim as Claim
    from privguard.records import Finding as Finding
    from privguard.records import Manifest as Manifest
    from privguard.records import Verdict as Verdict
    from privguard.training.plan import Plan as Plan
    from privguard.training.plan import Speed as Speed

__version__ = "0.1.0"

_HOMES = {
    "Budget": "privguard.accounting.calibrate",
    "Claim": "privguard.records",
    "Finding": "privguard.records",
    "Key": "privguard.checkpoint.key",
    "Ledger": "privguard.accounting.ledger",
    "Manifest": "privguard.records",
    "Plan": "privguard.training.plan",
    "PrivateAccelerator": "privguard.integrations.accelerate",
    "PrivateTrainer": "privguard.integrations.transformers",
    "Recipient": "privguard.checkpoint.key",
    "Speed": "privguard.training.plan",
    "Verdict": "privguard.records",
    "privatize": "privguard.integrations.plain",
}

__all__ = [
    "Budget",
    "Claim",
    "Finding",
    "Key",
    "Ledger",
    "Manifest",
    "Plan",
    "PrivateAccelerator",
    "PrivateTrainer",
    "Recipient",
    "Speed",
    "Verdict",
    "privatize",
]  # tests/test_surface.py holds it equal to the table


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'privguard' has no attribute {name!r}; the public names are {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
