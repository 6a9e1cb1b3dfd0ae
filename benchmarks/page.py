# SPDX-License-Identifier: Apache-2.0
"""One Markdown page from the results: each benchmark's machine, versions, tables, ratios and their spread."""

import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

VERSIONS = ("torch", "numpy", "cryptography", "dp-accounting", "opacus", "transformers", "safetensors")
ON_GPU = "_cuda"  # how the names of results end that were measured on one
LONGEST = 40  # rows of a table; the rest is in the JSON

INTRODUCTION = """\
# Benchmarks

Every figure that these pages claim, as `make bench` left it in `benchmarks/results/`. Where a ratio has two numbers,
the first is the median over interleaved rounds and the one in brackets is that of the fastest rounds: how far they lie
apart is the spread. A line without a machine was measured before machines were noted. `python -m benchmarks --quick`
tries everything on small settings in minutes and replaces nothing.
"""


def machine() -> dict[str, Any]:
    """What the figures depend on besides the code."""
    versions = {name: metadata.version(name) for name in VERSIONS}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "load": round(os.getloadavg()[0], 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def write(results: Path) -> str:
    """The page."""
    notes = results / "runs.json"
    runs: dict[str, Any] = json.loads(notes.read_text()) if notes.exists() else {}
    stems = sorted({path.stem for path in [*results.glob("*.md"), *results.glob("*.json")]} - {"runs"})
    return "\n".join([INTRODUCTION, *(_section(stem, results, runs) for stem in stems)])


def _section(stem: str, results: Path, runs: Mapping[str, Any]) -> str:
    written = results / f"{stem}.md"
    body = (
        written.read_text(encoding="utf-8")
        if written.exists()
        else tables(json.loads((results / f"{stem}.json").read_text()))
    )
    return f"## {stem.replace('_', ' ')}\n\n{_made_on(stem, results, runs)}\n\n{_demoted(body).strip()}\n"


def _made_on(stem: str, results: Path, runs: Mapping[str, Any]) -> str:
    """Where a result comes from. One that was measured on a GPU says itself on which."""
    if not stem.endswith(ON_GPU):
        return _where(next((runs[name] for name in sorted(runs, key=len, reverse=True) if stem.startswith(name)), None))
    own = json.loads((results / f"{stem}.json").read_text())
    device = "{device}, {memory}; driver {driver}, CUDA {cuda}, torch {torch}".format_map(own)
    return f"*{device}*" + (f"\n\n{_where(runs[stem])}" if stem in runs else "")


def _where(run: Mapping[str, Any] | None) -> str:
    if run is None:
        return "*machine not noted*"
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    return (
        f"*{run['cpu']}, {run['cores']} cores, {run['memory_gib']} GiB, load {run['load']} at the end; "
        f"{run['system']}, Python {run['python']}, {versions}; {run['seconds']} s, ended {run['ended']}*"
    )


def tables(value: Any, title: str = "") -> str:
    """Any result as Markdown: lists of records become tables, names of parts become headings, the rest a list."""
    if isinstance(value, Mapping) and value and all(isinstance(row, Mapping) and _flat(row) for row in value.values()):
        value = [{"": name, **row} for name, row in value.items()]
    if (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and value
        and all(isinstance(v, Mapping) for v in value)
    ):
        return _headed(title, _table([_flattened(row) for row in value]))
    if isinstance(value, Mapping):
        plain = {name: part for name, part in value.items() if not isinstance(part, Mapping | list)}
        lines = [f"* {name}: {_shown(part)}" for name, part in plain.items()]
        parts = [tables(part, str(name)) for name, part in value.items() if name not in plain]
        return _headed(title, "\n".join([*lines, *parts]))
    return _headed(title, f"* {_shown(value)}")


def _table(rows: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    lines += [f"| {' | '.join(_shown(row.get(name, '–')) for name in names)} |" for row in rows[:LONGEST]]
    left = len(rows) - LONGEST
    return "\n".join(lines) + (f"\n\n{left} more rows are in the JSON." if left > 0 else "")


def _flattened(row: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            found |= {f"{name}, {inner}": part for inner, part in _flattened(value).items()}
        else:
            found[name] = value
    return found


def _flat(row: Mapping[str, Any]) -> bool:
    return not any(isinstance(value, Mapping | list) for value in row.values())


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def _headed(title: str, body: str) -> str:
    return f"\n### {title}\n\n{body}\n" if title else body


def _demoted(body: str) -> str:
    """Headings two levels further down, at most four, so that a result fits under its own heading on the page."""
    return re.sub(r"^(#+) ", lambda found: "#" * min(4, len(found[1]) + 2) + " ", body, flags=re.MULTILINE)


def _cpu() -> str:
    names = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", names.read_text(), re.MULTILINE) if names.exists() else None
    return found[1] if found else platform.processor() or platform.machine()
