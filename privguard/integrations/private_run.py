"""One private run: plan, ledger, clipper, noise and sealed snapshots kept in step with each other.

Every wrapper (the plain loop, accelerate, transformers) is a thin shell around a :class:`PrivateRun`. The run folder holds
``run.json`` (public manifest), ``ledger.jsonl``, ``checkpoints/`` (sealed), ``evidence/`` and the report.
"""

import dataclasses
import json
import os
import secrets
import shutil
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, final

import torch
from torch import nn
from torch.optim import Optimizer

from privguard._random import Stream
from privguard.accounting.accountant import spent
from privguard.accounting.ledger import Ledger
from privguard.checkpoint import durable
from privguard.checkpoint.key import Key, Recipient, recipients
from privguard.checkpoint.store import Snapshot, Store
from privguard.errors import PrivacyError, ResumeError
from privguard.integrations.manifest import Manifest
from privguard.records import Claim
from privguard.training.clip import Clipper, attach, trainable
from privguard.training.noise import NoisySum
from privguard.training.plan import Plan, Speed
from privguard.training.step import PrivateStep, check_optimizer


class Stateful(Protocol):
    """Anything with torch's pair of state methods: a schedule, an average of weights."""

    def state_dict(self) -> dict[str, Any]: ...  # noqa: D102
    def load_state_dict(self, state_dict: dict[str, Any], /) -> object: ...  # noqa: D102
