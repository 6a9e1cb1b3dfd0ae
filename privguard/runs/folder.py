"""What audits and marks leave in a run folder, where the ε report finds it."""

import json
from collections.abc import Iterable
from pathlib import Path

from privguard.records import Record


def keep(records: Iterable[Record], run: Path, *, name: str) -> list[Path]:
    """Write each record to ``evidence/NAME-DIGEST.json`` of the run folder; the same record is written once.

    Raises:
        FileNotFoundError: the folder holds no run.
    """
    if not (run / "run.json").exists():
        raise FileNotFoundError(f"run={run}: expected a run folder; this one has no run.json")
    folder = run / "evidence"
    folder.mkdir(exist_ok=True)
    paths: list[Path] = []
    for record in records:
        path = folder / f"{name.replace(' ', '-')}-{record.digest()[:8]}.json"
        path.write_text(json.dumps(record.to_json(), indent=2, ensure_ascii=False), encoding="utf-8")
        paths.append(path)
    return paths
