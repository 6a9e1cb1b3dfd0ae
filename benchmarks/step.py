# SPDX-License-Identifier: Apache-2.0
"""What a private step costs: time and peak memory over ordinary training of the same model.

``python -m benchmarks.step [--device cpu|cuda] [--mode MODE] [--rounds N] [--model NAME] [--skip-opacus]
[--skip-memory]``

Every way of training takes its step on the same draw, in turn, in one process with one thread; a ratio is the median
over the rounds of a way's time over that of the ordinary step in the same mode and the same round.

On a CPU, time is process CPU time; beside it stands the time on the wall, in which noise is made on a core that torch
does not use, where there is one idle. privguard's contains sampler, AES noise and ledger, and each way's contains
fetching a batch by its own loader, the ordinary one's a shuffling ``DataLoader``. Peak memory is that of a process of
its own for each way, all of it, the interpreter and the accounting libraries included, the median of five. A run sends
the halves of one step in 32 backward on their own (and of its first two): "checked" does so in every step, "unchecked"
in none, so a run pays a 32nd of their difference, and its peak memory over that of "unchecked".

On a GPU, time is that between two CUDA events around four steps, from rest; noise and ledger, which are the host's
work, are in it as far as the device has to wait for them. Batches lie on the device beforehand, since loader processes
fetch for every way meanwhile; the host's time for a draw is noted beside. Peak memory is what torch's allocator handed
out. The models are larger there (see :mod:`benchmarks.models`), and four modes are measured: float32, bfloat16
autocast, ``model.compile()``, and both. What a way refuses or cannot do in a mode is written where its figure would
stand.

Opacus is measured afterwards, against the ordinary step again: the memory that it takes and gives back leaves the
allocator in a state that slows the others.

What helped, on CPU: dropping the noisy gradients when the next batch begins and not when the step ends (memory that is
free all at once goes back to the system, and faulting it in again cost BERT 4 %); one set of noise buffers for all
parameters (3 %); NumPy's float32 log, cos and sin in place of torch's (half the noise), and its conversions and sums (a
tenth of it); a last block of noise no longer than needed (two thirds of a small model's); a heap that keeps what the
factors leave (1 to 2 % of BERT); one weighted input for query, key and value (0.5 %); leaving out the positions that
add nothing (6 % of BERT, which reads one; nothing where a mean is read). What did not: leaving out the upper triangle
of the Gram matrices (a quarter of their work, and nothing on the clock); a BLAS call per example in place of the
batched product; fewer random bits per pair of Gaussians (what AES saves, the unpacking takes).
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import clock as clocks
from benchmarks.clock import Clock, timed
from benchmarks.models import CASES, LARGE, Case
from benchmarks.ways import MODES, WAYS, Batch, Setting, ways_of
from privguard._random import Stream
from privguard.errors import UnsupportedModelError
from privguard.training.sampling.batches import PoissonLoader, to_device
from privguard.training.sampling.sample import Poisson

OURS = "privguard"
_PROCESSES = 5  # whose peaks are compared
Found = dict[str, dict[str, Any]]


def draws(setting: Setting) -> Iterator[tuple[Batch, float, float]]:
    """Poisson batches of the case's data, and the seconds of fetching one by our loader and by an ordinary one."""
    data, case = TensorDataset(*setting.case.data(setting.examples)), setting.case
    plain = DataLoader(data, batch_size=case.batch, shuffle=True, drop_last=True)
    sampler = Poisson(case.batch / setting.examples)
    loader = PoissonLoader(plain, sampler=sampler, source=Stream.from_entropy("s"), limit=10**6)
    ours, theirs = loader(0, 10**6), itertools.chain.from_iterable(itertools.repeat(plain))
    move, host = to_device(setting.device), clocks.HostClock()
    while True:
        start = host.mark()
        _, batch = next(ours)
        middle = host.mark()
        next(theirs)
        end = host.mark()
        yield tuple(move(batch)), host.between(start, middle), host.between(middle, end)


def measure(setting: Setting, clock: Clock, ways: list[str], rounds: int) -> Found:
    """Median seconds, and median ratio to ordinary, of each way that runs; the words of each that does not."""
    steps, found = ready(setting, ways)
    times: dict[str, list[float]] = {way: [] for way in steps}
    walls: dict[str, list[float]] = {way: [] for way in steps}
    for batch, ours, theirs in itertools.islice(draws(setting), rounds):
        for way, step in steps.items():
            fetching = (ours if way.startswith("privguard") else theirs) if clock.fetching else 0.0
            began = time.perf_counter()
            times[way].append(timed(clock, lambda step=step, batch=batch: step(batch)) + fetching)
            walls[way].append(time.perf_counter() - began + fetching)
    for way, taken in times.items():
        found[way] = {
            "seconds": statistics.median(taken),
            "ratio": _ratio(taken, times["ordinary"]),
            "least": min(taken) / min(times["ordinary"]),
        }
        if clock.fetching:
            found[way]["wall"] = _ratio(walls[way], walls["ordinary"])
    return found


def _ratio(taken: list[float], ordinary: list[float]) -> float:
    """The median over the rounds."""
    return statistics.median(t / o for t, o in zip(taken, ordinary, strict=True))


def ready(setting: Setting, ways: list[str]) -> tuple[dict[str, Any], Found]:
    """The ways that work, each after three steps of warming up, and what the others said."""
    steps: dict[str, Any] = {}
    found: Found = {}
    for way in ways:
        try:
            step = WAYS[way](setting)
            for _ in range(3):
                step(setting.batch())
            steps[way] = step
        except UnsupportedModelError as refusal:
            found[way] = {"refused": str(refusal)}
        except Exception as error:
            found[way] = {"failed": f"{type(error).__name__}: {(str(error).strip() or '–').splitlines()[0]}"}
        if way in found:
            print(f"  {setting.mode.name}, {way}: {found[way]}", file=sys.stderr)
    return (steps, found) if "ordinary" in steps else ({}, found)  # nothing to compare with


def peak(setting: Setting, way: str, *options: str) -> float | None:
    """Peak MiB of a process that takes four steps in this way, the median of five processes; None where it cannot.

    One process differs from the next by up to 5 %: how an allocator cuts its heap up is chance.
    """
    command = [sys.executable, "-m", "benchmarks.step", "--peak-of", way, "--model", setting.case.name]
    command += ["--mode", setting.mode.name, "--device", setting.device.type, *options]

    def once(_: int) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    together = 1 if setting.device.type == "cuda" else os.cpu_count()
    try:
        with ThreadPoolExecutor(together) as pool:
            return statistics.median(float(said.split()[-1]) for said in pool.map(once, range(_PROCESSES)))
    except subprocess.CalledProcessError:
        return None


def report_peak(setting: Setting, clock: Clock, way: str) -> None:
    step = WAYS[way](setting)
    for _ in range(4):
        step(setting.batch())
    print(clock.peak())


def table(results: dict[str, Any], cases: list[Case]) -> str:
    """A table for each mode, and below it what was refused or failed, in its own words."""
    parts: list[str] = []
    for mode, by_case in results.items():
        ways = [way for way in WAYS if way != "ordinary" and any(way in case["time"] for case in by_case.values())]
        heading = [] if len(results) == 1 else [f"## {mode}", ""]
        holding = [way for way in ways if _holds(way)]
        columns = ["model", "bar", "ordinary, ms", *ways, "wall: bar", OURS, "memory: bar", *holding]
        rows = [_row(case, by_case[case.name], ways) for case in cases if case.name in by_case]
        parts.append("\n".join([*heading, _line(columns), "|---" * len(columns) + "|", *rows, *_said(by_case)]))
    return "\n\n".join(parts)


def _row(case: Case, found: dict[str, Any], ways: list[str]) -> str:
    taken, peaks = found["time"], found.get("peak", {})
    base = peaks.get("ordinary")
    memory = [_number(peaks[way] / base) if base and peaks.get(way) else "–" for way in ways if _holds(way)]
    cells = [_cell(taken.get(way, {})) for way in ways]
    seconds = taken["ordinary"].get("seconds")
    ordinary = next(iter(taken["ordinary"])) if seconds is None else f"{1000 * seconds:,.0f}"
    wall = [_number(case.wall), _number(taken.get(OURS, {}).get("wall"))]
    return _line([case.name, _number(case.bar), ordinary, *cells, *wall, _number(case.memory), *memory])


def _cell(found: dict[str, Any]) -> str:
    if "ratio" in found:
        return f"{found['ratio']:.2f} [{found['least']:.2f}]"
    return next(iter(found), "–")  # refused, failed, or not tried


def _said(by_case: dict[str, Any]) -> list[str]:
    """Each refusal and each failure once, with the models that met it."""
    met: dict[str, list[str]] = {}
    for name, found in by_case.items():
        for way, one in found["time"].items():
            for what in {"refused", "failed"} & set(one):
                met.setdefault(f"{way}, {what}: {one[what]}", []).append(name)
    return [line for said, names in met.items() for line in ("", f"* {', '.join(names)}: {said}")]


def _holds(way: str) -> bool:
    return way in {OURS, "privguard, unchecked", "Opacus hooks", "Opacus ghost"}


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def case_in_mode(setting: Setting, clock: Clock, options: argparse.Namespace) -> dict[str, Any]:
    """Everything about one model in one mode."""
    ways = ways_of(setting.mode, opacus=not options.skip_opacus)
    foreign = [way for way in ways if way.startswith("Opacus")]
    found = measure(setting, clock, [way for way in ways if way not in foreign], options.rounds)
    if foreign:
        theirs = measure(setting, clock, ["ordinary", *foreign], max(3, options.rounds // 4))
        found |= {way: one for way, one in theirs.items() if way in foreign}
    result: dict[str, Any] = {"time": found}
    if not clock.fetching:
        ours, theirs = zip(*(d[1:] for d in itertools.islice(draws(setting), 5)), strict=True)
        result["host seconds of a draw"] = {"ours": statistics.median(ours), "theirs": statistics.median(theirs)}
    if not options.skip_memory:
        size = ["--tiny"] * options.tiny
        result["peak"] = {way: peak(setting, way, *size) for way in ways if way == "ordinary" or _holds(way)}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    clocks.add_option(parser)
    parser.add_argument("--mode", choices=list(MODES), action="append", help="default: all on a GPU, float32 on a CPU")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--model", choices=[c.name for c in CASES], action="append")
    parser.add_argument("--tiny", action="store_true", help="the small models on a GPU too; no result is replaced")
    parser.add_argument("--skip-opacus", action="store_true")
    parser.add_argument("--skip-memory", action="store_true")
    parser.add_argument("--peak-of", choices=list(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    clock = clocks.chosen(parser, options.device)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    every = LARGE if clock.device.type == "cuda" and not options.tiny else CASES
    cases = [c for c in every if options.model is None or c.name in options.model]
    modes = options.mode or (list(MODES) if clock.device.type == "cuda" else ["float32"])
    if options.peak_of:
        report_peak(Setting(cases[0], MODES[modes[0]], clock.device), clock, options.peak_of)
        return
    results: dict[str, Any] = {mode: {} for mode in modes}
    for mode, case in itertools.product(modes, cases):
        torch.compiler.reset()
        results[mode][case.name] = case_in_mode(Setting(case, MODES[mode], clock.device), clock, options)
        print(mode, case.name, json.dumps(results[mode][case.name]["time"]), file=sys.stderr)
    print(table(results, cases))
    if not options.tiny:
        stem = f"step{clock.suffix}"
        results = beside(options.out / f"{stem}.json", results)
        write(options.out, stem, clock, table(results, every), results)


def beside(path: Path, results: dict[str, Any]) -> dict[str, Any]:
    """``results`` among those that the file holds: what was not measured now, a model or a way, stays."""
    kept: dict[str, Any] = json.loads(path.read_text())["results"] if path.exists() else {}
    merged = {mode: dict(by_case) for mode, by_case in kept.items()}
    for mode, by_case in results.items():
        for name, found in by_case.items():
            rows = merged.setdefault(mode, {})
            old = rows.get(name, {})
            rows[name] = {**old, **found, "time": {**old.get("time", {}), **found["time"]}}
    return merged


def write(folder: Path, stem: str, clock: Clock, said: str, results: dict[str, Any]) -> None:
    """The results as JSON, with what they were measured on, and as the table that the page shows."""
    folder.mkdir(exist_ok=True)
    stamp = {**clock.machine(), "threads": 1, "load": os.getloadavg()[0], "results": results}
    folder.joinpath(f"{stem}.json").write_text(json.dumps(stamp, indent=1, ensure_ascii=False) + "\n")
    folder.joinpath(f"{stem}.md").write_text(said + "\n")


if __name__ == "__main__":
    main()
