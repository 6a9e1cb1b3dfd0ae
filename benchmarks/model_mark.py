# SPDX-License-Identifier: Apache-2.0
"""Model marks against thieves and against false claims: ``python -m benchmarks.model_mark [PART ...]``.

Parts: digits, mnist (survival tables), null (false alarms over independent models and keys), false (false claims),
honest (100 honest claims), responses (API mark against extraction), language (fingerprints on tinyshakespeare), trace
(100 recipients), cost (reading 100 M weights), private (a DP model). Each writes ``results/model_mark/PART.json``; all
that are there are put together into ``results/model_mark.md``, which the word ``tables`` does without measuring. One
thread; process CPU time.

Against in-domain distillation the model marks read p ≈ 0.3: what a model answers out of the domain is no part of what a
student sees. The API-response mark is the answer we have.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import model_mark_claims as claims
from benchmarks import model_mark_copies as copies
from benchmarks import model_mark_language as language
from benchmarks.model_mark_survival import MNIST_ATTACKS, survival_table, survive
from benchmarks.model_mark_tasks import RESULTS, digits, mnist
from privguard import _canon

PARTS: dict[str, tuple[str, Callable[[], dict[str, Any]], Callable[[dict[str, Any]], str]]] = {
    "digits": ("Survival on digits, five seeds", lambda: survive(digits), survival_table),
    "mnist": ("Survival on MNIST, five seeds", lambda: survive(mnist, MNIST_ATTACKS), survival_table),
    "null": ("False alarms", claims.false_alarms, claims.false_alarm_table),
    "false": ("False claims", claims.forge, claims.forge_table),
    "honest": ("Honest claims", claims.honest, claims.honest_table),
    "responses": (
        "Hard-label extraction with 10,000 queries, API-response mark",
        copies.extraction,
        copies.extraction_table,
    ),
    "language": ("Fingerprints on tinyshakespeare", language.measure, language.table),
    "trace": ("Tracing among 100 recipients", copies.tracing, copies.tracing_table),
    "cost": ("What reading costs", copies.reading_cost, copies.reading_table),
    "private": ("A privately trained model", copies.private, copies.private_table),
}


def main(names: list[str]) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name in [] if names == ["tables"] else names or list(PARTS):
        result = PARTS[name][1]()
        (RESULTS / f"{name}.json").write_bytes(_canon.canonical(result) + b"\n")
    text = ["# Model marks", "", "By `python -m benchmarks.model_mark`. p as powers of ten; one thread.", ""]
    for name, (title, _, table) in PARTS.items():
        path = RESULTS / f"{name}.json"
        if path.exists():
            text += [f"## {title}", "", table(json.loads(path.read_text())), ""]
    (RESULTS.parent / "model_mark.md").write_text("\n".join(text), encoding="utf-8")
    print("\n".join(text))


if __name__ == "__main__":
    main(sys.argv[1:])
