# SPDX-License-Identifier: Apache-2.0
"""What the report's tests do to run folders: leave evidence, report, sign."""

import json

import torch

from privguard.audit.membership.audit import Assignment, Examples, run
from privguard.records import Finding, Outcome
from privguard.report import render
from privguard.report.assemble import Sources, assemble
from privguard.report.signed import sign


def sign_report(folder, by, **sources):
    """Report on the folder and sign it; the folder comes back."""
    report = assemble(folder, sources=Sources(**sources))
    render.write(report, folder)
    sign.sign(report, folder, by=by).write(folder / sign.SIGNED)
    return folder


def finding(low, **changes):
    """What an audit of the small run could have found."""
    facts = {"delta": 1e-3, "confidence": 0.95, "method": "one-run", "outcome": Outcome.UNINFORMATIVE, "cap": 1.5}
    return Finding(epsilon_low=low, **{**facts, **changes})


def membership():
    """A real membership audit of a model that says nothing: every logit is made from the input alone."""
    chance = torch.Generator().manual_seed(0)
    inputs, labels = torch.randn(120, 4, generator=chance), torch.randint(0, 3, (120,), generator=chance)
    members, others = (Examples(inputs[half::2], labels[half::2]) for half in (0, 1))
    return run(lambda inputs: inputs[:, :3].numpy(), members, others, assignment=Assignment.RANDOMISED).record


def keep(folder, record, name="audit.json"):
    """Leave a record as evidence."""
    (folder / "evidence").mkdir(exist_ok=True)
    (folder / "evidence" / name).write_text(json.dumps(record.to_json()))
