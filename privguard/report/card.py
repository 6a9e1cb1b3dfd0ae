# SPDX-License-Identifier: Apache-2.0
"""Report → model card: the essentials in Markdown, under the metadata that the Hugging Face hub reads.

Only what the report knows is written; what the model is for, and how well it does, is for its makers to add. The fields
under ``privacy`` are ours: the hub keeps what it does not know.
"""

import math
from typing import Any

from privguard.report import facts, guarantee
from privguard.report.record import Report
from privguard.report.render import page

TAGS = ("differential-privacy", "dp-sgd", "privguard")


def to_card(report: Report, *, name: str = "", licence: str = "") -> str:
    """A ``README.md`` for a model repository; ``licence`` is a licence's name on the hub, such as ``apache-2.0``."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        model_name=name or None, license=licence or None, tags=list(TAGS), privacy=_privacy(report), language=None
    )
    title = name or f"Model of run {report.manifest.run}"
    text = page(
        "card.md.j2",
        report=report,
        title=title,
        **facts.sentences(report),
    )
    return f"---\n{data.to_yaml()}\n---\n\n{text}"


def _privacy(report: Report) -> dict[str, Any]:
    ledger = {"run": report.manifest.run, "ledger_head": report.ledger_head, "ledger_lines": report.ledger_lines}
    if report.claim is None:
        return {"guarantee": "none", **ledger}
    claim = report.claim
    return {
        "epsilon": float(guarantee.upward(claim.epsilon)) if math.isfinite(claim.epsilon) else "infinite",
        "delta": claim.delta,
        "unit": claim.unit.value,
        "relation": claim.relation.value,
        "accountant": claim.accountant,
        "contradicted": bool(report.contradictions),
        **ledger,
    }
