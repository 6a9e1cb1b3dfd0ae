# SPDX-License-Identifier: Apache-2.0
"""Run every benchmark in turn, each in a process of its own, and write ``docs/benchmarks.md`` from what they left.

python -m benchmarks                 hours: every figure that a page claims
python -m benchmarks --quick         minutes: that each of them works, on small settings; no result is replaced
python -m benchmarks --page          no run: the page again, from the results that are there
python -m benchmarks step seal       only these

Where there is a CUDA device, the benchmarks of training run on it too, after the CPU.
"""

import argparse
import itertools
import json
import os
import pkgutil
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks import page

HERE = Path(__file__).parent
PARTS = {"__main__", "clock", "models", "page", "ways"}  # not benchmarks themselves
ON_DEVICES = {"step", "trainer"}  # measured on a GPU as well
SHARED = ("bf16_", "image_pictures", "text_corpus", "text_writer", "model_mark_", "seal_")  # parts of others
QUICK: Mapping[str, list[str]] = {
    "audit": ["times"],
    "bands": ["cost", "--rounds", "3"],
    "bands_utility": ["--seeds", "1", "--tuning", "1", "--rates", "6"],
    "bf16": ["--model", "Llama", "--seeds", "1"],
    "book": ["--kills", "20"],
    "calibrate": ["--rounds", "1"],
    "image_forgery": ["--quick", "forge"],
    "image_latents": ["--quick", "flow"],
    "image_mark": ["--quick", "survival", "time"],
    "image_oracle": ["--quick"],
    "model_mark": ["cost"],
    "report_index": ["--runs", "20"],
    "seal": ["--rounds", "1", "--mib", "16"],
    "step": ["--rounds", "2", "--model", "MLP", "--skip-opacus", "--skip-memory"],
    "text_mark": [],
    "text_pieces": ["--documents", "10", "--keys", "2"],
    "text_null": ["--trials", "1e4"],
    "trainer": ["--rounds", "1", "--tiny"],
}


def names() -> list[str]:
    """The benchmarks, in the order of their names."""
    found = [module.name for module in pkgutil.iter_modules([str(HERE)])]
    return [name for name in found if name not in PARTS and not name.startswith(SHARED)]


def run(chosen: Iterable[str], root: Path, options: Mapping[str, list[str]]) -> list[str]:
    """Run benchmarks of the copy in ``root``, note where and how long in its ``runs.json``; those that failed."""
    notes = root / "benchmarks" / "results" / "runs.json"
    runs: dict[str, Any] = json.loads(notes.read_text()) if notes.exists() else {}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), str(HERE.parent)])}
    failed: list[str] = []
    for name, (result, device) in itertools.chain.from_iterable(map(_with_devices, chosen)):
        print(f"== benchmarks.{name} {' '.join(device)}".rstrip(), flush=True)
        began = time.monotonic()
        command = [sys.executable, "-m", f"benchmarks.{name}", *options.get(name, []), *device]
        if subprocess.run(command, cwd=root, env=environment, check=False).returncode:
            failed.append(result)
            continue
        ended = datetime.now(UTC).isoformat(timespec="minutes")
        runs[result] = {"ended": ended, "seconds": round(time.monotonic() - began), **page.machine()}
        notes.write_text(json.dumps(runs, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    return failed


def _with_devices(name: str) -> Iterable[tuple[str, tuple[str, list[str]]]]:
    """A benchmark, and for each device that it runs on the stem of its results and its option."""
    if name not in ON_DEVICES:
        return [(name, (name, []))]
    here = [(name, (name, ["--device", "cpu"]))]
    return [*here, (name, (f"{name}_cuda", ["--device", "cuda"]))] if torch.cuda.is_available() else here


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="all where none is named")
    parser.add_argument("--quick", action="store_true", help="small settings, in a copy; the page goes to stdout")
    parser.add_argument("--page", action="store_true", help="write the page only")
    given = parser.parse_args()
    wanted = given.names or names()
    if strangers := set(wanted) - set(names()):
        parser.error(f"{', '.join(sorted(strangers))}: expected some of {', '.join(names())}")
    if given.page:
        failed = []
    elif given.quick:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "benchmarks"
            shutil.copytree(HERE, copy, ignore=shutil.ignore_patterns("results", "__pycache__"))
            (copy / "results").mkdir()
            failed = run([name for name in wanted if name in QUICK], Path(folder), QUICK)
            print(page.write(copy / "results"))
        print(f"without a quick mode: {', '.join(name for name in wanted if name not in QUICK) or 'none'}")
    else:
        failed = run(wanted, HERE.parent, {})
    if not given.quick:
        (HERE.parent / "docs" / "benchmarks.md").write_text(page.write(HERE / "results"), encoding="utf-8")
    print("all done" if not failed else f"failed: {', '.join(failed)}")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
