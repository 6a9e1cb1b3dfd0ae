# SPDX-License-Identifier: Apache-2.0
"""privguard: private training with an honest ε, sealed checkpoints, marks that hold up, audits that try to refute.

The public names live here; each is brought in when it is first used (PEP 562), so ``import privguard`` costs neither
torch nor dp_accounting.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from privguard.accounting.calibrate import Budget as Budget
    from privguard.accounting.ledger import Ledger as Ledger
    from privguard.checkpoint.keys.key import Key as Key
    from privguard.checkpoint.keys.key import Recipient as Recipient
    from privguard.integrations.accelerate import PrivateAccelerator as PrivateAccelerator
    from privguard.integrations.torch_loop import privatize as privatize
    from privguard.integrations.transformers.trainer import PrivateTrainer as PrivateTrainer
    from privguard.records import Claim as Claim
    from privguard.records import Finding as Finding
    from privguard.records import Manifest as Manifest
    from privguard.records import Verdict as Verdict
    from privguard.runs.options import RunOptions as RunOptions
    from privguard.runs.privacy_unit import ByUser as ByUser
    from privguard.training.average import WeightAverage as WeightAverage
    from privguard.training.plan import Performance as Performance
    from privguard.training.plan import Plan as Plan
    from privguard.watermark.claims.commitment import Commitment as Commitment
    from privguard.watermark.claims.commitment import Trust as Trust
    from privguard.watermark.image.detect import ImageDetector as ImageDetector
    from privguard.watermark.image.profile import ImageProfile as ImageProfile
    from privguard.watermark.image.write import ImageMark as ImageMark
    from privguard.watermark.model.bundle import Bundle as Bundle
    from privguard.watermark.secret import Secret as Secret
    from privguard.watermark.text.profile import Profile as Profile
    from privguard.watermark.text.reading.detect import Detector as Detector
    from privguard.watermark.text.scheme import GreenList as GreenList
    from privguard.watermark.text.scheme import Gumbel as Gumbel
    from privguard.watermark.text.scheme import Payload as Payload
    from privguard.watermark.text.scheme import Tournament as Tournament
    from privguard.watermark.text.writing.generate import GreenListProcessor as GreenListProcessor
    from privguard.watermark.text.writing.generate import MarkedGeneration as MarkedGeneration

__version__ = "0.1.0"

_HOMES = {
    "Budget": "privguard.accounting.calibrate",
    "Bundle": "privguard.watermark.model.bundle",
    "ByUser": "privguard.runs.privacy_unit",
    "Claim": "privguard.records",
    "Commitment": "privguard.watermark.claims.commitment",
    "Detector": "privguard.watermark.text.reading.detect",
    "Finding": "privguard.records",
    "GreenList": "privguard.watermark.text.scheme",
    "GreenListProcessor": "privguard.watermark.text.writing.generate",
    "Gumbel": "privguard.watermark.text.scheme",
    "ImageDetector": "privguard.watermark.image.detect",
    "ImageMark": "privguard.watermark.image.write",
    "ImageProfile": "privguard.watermark.image.profile",
    "Key": "privguard.checkpoint.keys.key",
    "Ledger": "privguard.accounting.ledger",
    "Manifest": "privguard.records",
    "MarkedGeneration": "privguard.watermark.text.writing.generate",
    "Payload": "privguard.watermark.text.scheme",
    "Performance": "privguard.training.plan",
    "Plan": "privguard.training.plan",
    "PrivateAccelerator": "privguard.integrations.accelerate",
    "PrivateTrainer": "privguard.integrations.transformers.trainer",
    "Profile": "privguard.watermark.text.profile",
    "Recipient": "privguard.checkpoint.keys.key",
    "RunOptions": "privguard.runs.options",
    "Secret": "privguard.watermark.secret",
    "Tournament": "privguard.watermark.text.scheme",
    "Trust": "privguard.watermark.claims.commitment",
    "Verdict": "privguard.records",
    "WeightAverage": "privguard.training.average",
    "privatize": "privguard.integrations.torch_loop",
}

__all__ = [
    "Budget",
    "Bundle",
    "ByUser",
    "Claim",
    "Commitment",
    "Detector",
    "Finding",
    "GreenList",
    "GreenListProcessor",
    "Gumbel",
    "ImageDetector",
    "ImageMark",
    "ImageProfile",
    "Key",
    "Ledger",
    "Manifest",
    "MarkedGeneration",
    "Payload",
    "Performance",
    "Plan",
    "PrivateAccelerator",
    "PrivateTrainer",
    "Profile",
    "Recipient",
    "RunOptions",
    "Secret",
    "Tournament",
    "Trust",
    "Verdict",
    "WeightAverage",
    "privatize",
]  # tests/test_surface.py holds it equal to the table


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'privguard' has no attribute {name!r}; the public names are {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
