# SPDX-License-Identifier: Apache-2.0
"""The run folder: what each file in it is called, and what audits and marks leave there for the ε report."""

import json
from collections.abc import Iterable
from pathlib import Path

from privguard.records import Record

MANIFEST, LEDGER, BOOK_KEY = "run.json", "ledger.jsonl", "book.key"
CHECKPOINTS, EVIDENCE = "checkpoints", "evidence"
REPORT_JSON, REPORT_MARKDOWN, REPORT_PAGE = "report.json", "report.md", "report.html"
SEALED = ".sealed"


def snapshot(run: Path, step: int) -> Path:
    """Where the snapshot of a step is kept."""
    return run / CHECKPOINTS / f"step-{step:08d}{SEALED}"


def snapshots(run: Path) -> list[Path]:
    """The run's snapshots, oldest first."""
    return sorted((run / CHECKPOINTS).glob(f"step-*{SEALED}"))


def ledger(place: Path) -> Path:
    """The ledger at ``place``: a run folder, or the file itself."""
    return place / LEDGER if place.is_dir() else place


def keep(records: Iterable[Record], run: Path, *, name: str) -> list[Path]:
    """Write each record to ``evidence/NAME-DIGEST.json`` of the run folder; the same record is written once.

    Raises:
        FileNotFoundError: the folder holds no run.
    """
    if not (run / MANIFEST).exists():
        raise FileNotFoundError(f"run={run}: expected a run folder; this one has no {MANIFEST}")
    folder = run / EVIDENCE
    folder.mkdir(exist_ok=True)
    paths: list[Path] = []
    for record in records:
        path = folder / f"{name.replace(' ', '-')}-{record.digest()[:8]}.json"
        path.write_text(json.dumps(record.to_json(), indent=2, ensure_ascii=False), encoding="utf-8")
        paths.append(path)
    return paths
