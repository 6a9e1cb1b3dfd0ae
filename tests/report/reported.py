"""What the report's tests do to run folders: leave evidence, report, sign."""

import json

from privguard.records import Finding, Outcome
from privguard.report import render, sign
from privguard.report.assemble import Sources, assemble


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


def keep(folder, record, name="audit.json"):
    """Leave a record as evidence."""
    (folder / "evidence").mkdir(exist_ok=True)
    (folder / "evidence" / name).write_text(json.dumps(record.to_json()))
