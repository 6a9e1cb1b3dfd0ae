"""What a private step costs: time and peak memory over ordinary training of the same model.

``python -m benchmarks.step [--rounds N] [--model NAME] [--skip-opacus] [--skip-memory]``

Every way of training takes its step on the same draw, in turn, in one process with one thread; a ratio is the median
over the rounds of process CPU time over that of the ordinary step in the same round. privguard's figure contains
sampler, AES noise and ledger; each way's contains fetching a batch by its own loader, the ordinary one's a shuffling
``DataLoader``. Opacus is measured afterwards, against the ordinary step again: the memory that it takes and gives back
leaves the allocator in a state that slows the others. Peak memory is that of a process of its own for each way, all of
it, the interpreter and the accounting libraries included.

What helped, on CPU: dropping the noisy gradients when the next batch begins and not when the step ends (memory that is
free all at once goes back to the system, and faulting it in again cost BERT 4 %); one set of noise buffers for all
parameters (3 %); NumPy's float32 log, cos and sin in place of torch's (half the noise); a heap that keeps what the
factors leave (1 to 2 % of BERT); one weighted input for query, key and value (0.5 %). What did not: leaving out the
upper triangle of the Gram matrices (a quarter of their work, and nothing on the clock); a BLAS call per example in
place of the batched product; fewer random bits per pair of Gaussians (what AES saves, the unpacking takes).
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.models import CASES, Case
from privguard._random import Stream
from privguard.accounting.ledger import Ledger
from privguard.training.batches import PoissonLoader
from privguard.training.clip import attach
from privguard.training.plan import Plan
from privguard.training.sample import Poisson
from privguard.training.step import PrivateStep, hand_over

EXAMPLES = 2048
Batch = tuple[Tensor, ...]
Step = Callable[[], None]


class Ordinary:
    """zero_grad, forward, backward of the mean, step."""

    def __init__(self, case: Case) -> None:
        self.model, self.case = case.model(), case
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)

    def __call__(self, batch: Batch) -> None:
        self.optimizer.zero_grad()
        self.case.losses(self.model, batch).mean().backward()
        self.optimizer.step()


class Private:
    """One logical batch in one physical batch: mask, forward, clip, AES noise on a reserved event, step."""

    def __init__(self, case: Case, *, noise: float = 0.8) -> None:
        self.model, self.case = case.model(), case
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.plan = Plan(
            sample_rate=case.batch / EXAMPLES,
            noise_multiplier=noise,
            max_grad_norm=1.0,
            steps=10**6,
            delta=1e-5,
            expected_batch_size=case.batch,
        )
        self.clipper = attach(self.model, max_grad_norm=1.0)
        self.parameters = dict(self.model.named_parameters())
        folder = Path(tempfile.mkdtemp())
        ledger = Ledger.create(folder / "ledger.jsonl", self.plan.facts())
        source = Stream.from_entropy("noise")
        self.step = PrivateStep(self.plan, clipper=self.clipper, ledger=ledger, noise=source, reserve=8)

    def __call__(self, batch: Batch) -> None:
        self.step.position()
        self.clipper.begin(torch.ones(len(batch[0]), dtype=torch.bool))
        self.clipper.backward(self.case.losses(self.model, batch))
        self.step.finish(self.optimizer, self.parameters)


class WithoutNoise(Private):
    """The same without noise and ledger: what clipping alone costs."""

    def __call__(self, batch: Batch) -> None:
        from privguard.training.noise import NoisySum

        self.clipper.begin(torch.ones(len(batch[0]), dtype=torch.bool))
        self.clipper.backward(self.case.losses(self.model, batch))
        clipped = NoisySum(self.clipper.take().gradients, 0.0)
        hand_over(self.parameters, clipped, denominator=self.case.batch)
        self.optimizer.step()


class Opacus:
    """Opacus' optimizer and a model wrapped by it, noise included."""

    def __init__(self, case: Case, *, ghost: bool) -> None:
        from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
        from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
        from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

        self.case, inner = case, case.model()
        optimizer = torch.optim.AdamW(inner.parameters(), lr=1e-4)
        options: dict[str, Any] = {"noise_multiplier": 0.8, "max_grad_norm": 1.0, "expected_batch_size": case.batch}
        if ghost:
            self.model: nn.Module = GradSampleModuleFastGradientClipping(
                inner, max_grad_norm=1.0, use_ghost_clipping=True
            )
            self.optimizer: Any = DPOptimizerFastGradientClipping(optimizer, **options)
            criterion = _Given()
            self.criterion: Any = DPLossFastGradientClipping(self.model, self.optimizer, criterion, "mean")
        else:
            self.model, self.criterion = GradSampleModule(inner), None
            self.optimizer = DPOptimizer(optimizer, **options)

    def __call__(self, batch: Batch) -> None:
        self.optimizer.zero_grad()
        losses = (self.case.spelt_out or self.case.losses)(self.model, batch)
        if self.criterion is None:
            losses.mean().backward()
        else:
            self.criterion(losses, torch.zeros(len(losses))).backward()
        self.optimizer.step()


class _Given(nn.Module):
    """A criterion that finds its losses computed."""

    reduction = "mean"

    def forward(self, losses: Tensor, _: Tensor) -> Tensor:
        return losses if self.reduction == "none" else losses.mean()


WAYS: dict[str, Callable[[Case], Any]] = {
    "ordinary": Ordinary,
    "privguard": Private,
    "privguard, no noise": WithoutNoise,
    "Opacus hooks": lambda case: Opacus(case, ghost=False),
    "Opacus ghost": lambda case: Opacus(case, ghost=True),
}


def draws(case: Case) -> Iterator[tuple[Batch, float, float]]:
    """Poisson batches of the case's data, and the CPU time of fetching one by our loader and by an ordinary one."""
    data = TensorDataset(*case.data(EXAMPLES))
    plain = DataLoader(data, batch_size=case.batch, shuffle=True, drop_last=True)
    loader = PoissonLoader(plain, sampler=Poisson(case.batch / EXAMPLES), source=Stream.from_entropy("s"), limit=10**6)
    ours, theirs = loader(0, 10**6), itertools.chain.from_iterable(itertools.repeat(plain))
    while True:
        start = time.process_time()
        _, batch = next(ours)
        middle = time.process_time()
        next(theirs)
        yield tuple(batch), middle - start, time.process_time() - middle


def measure(case: Case, ways: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds, and median ratio to ordinary, of each way that runs."""
    steps: dict[str, Any] = {}
    for way in ways:
        try:
            steps[way] = WAYS[way](case)
            steps[way](tuple(t[: case.batch] for t in case.data(case.batch)))  # warm-up
            steps[way](tuple(t[: case.batch] for t in case.data(case.batch)))
        except Exception as error:
            print(f"  {way}: {type(error).__name__}: {str(error).splitlines()[0][:100]}", file=sys.stderr)
            steps.pop(way, None)
    times: dict[str, list[float]] = {way: [] for way in steps}
    for batch, ours, theirs in itertools.islice(draws(case), rounds):
        for way, step in steps.items():
            start = time.process_time()
            step(batch)
            fetching = ours if way.startswith("privguard") else theirs
            times[way].append(time.process_time() - start + fetching)
    ordinary = times["ordinary"]
    return {
        way: {
            "seconds": statistics.median(taken),
            "ratio": statistics.median(t / o for t, o in zip(taken, ordinary, strict=True)),
            "least": min(taken) / min(ordinary),
        }
        for way, taken in times.items()
    }


def peak(case: Case, way: str) -> float:
    """Peak resident MiB of a process that takes four steps in this way; NaN where it cannot."""
    command = [sys.executable, "-m", "benchmarks.step", "--peak-of", way, "--model", case.name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return float(done.stdout.split()[-1]) if done.returncode == 0 else float("nan")


def report_peak(case: Case, way: str) -> None:
    step = WAYS[way](case)
    for _ in range(4):
        step(case.data(case.batch))
    status = Path("/proc/self/status").read_text()  # not ru_maxrss, which a child inherits from its parent
    print(int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1024)


def table(results: dict[str, Any]) -> str:
    lines = [
        "| model | bar | " + " | ".join(list(WAYS)[1:]) + " | memory: bar | privguard | Opacus hooks | Opacus ghost |"
    ]
    lines.append("|---" * (3 + len(WAYS) - 1 + 3) + "|")
    for case in CASES:
        if case.name not in results:
            continue
        found, peaks = results[case.name]["time"], results[case.name].get("peak", {})
        cells = [f"{found[w]['ratio']:.2f} [{found[w]['least']:.2f}]" if w in found else "–" for w in list(WAYS)[1:]]
        base = peaks.get("ordinary", np.nan)
        memory = [f"{peaks.get(w, np.nan) / base:.2f}" for w in ("privguard", "Opacus hooks", "Opacus ghost")]
        lines.append(
            f"| {case.name} | {case.bar:.2f} | {' | '.join(cells)} | {case.memory:.2f} | {' | '.join(memory)} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--model", choices=[c.name for c in CASES], action="append")
    parser.add_argument("--skip-opacus", action="store_true")
    parser.add_argument("--skip-memory", action="store_true")
    parser.add_argument("--peak-of", choices=list(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    cases = [c for c in CASES if options.model is None or c.name in options.model]
    if options.peak_of:
        report_peak(cases[0], options.peak_of)
        return
    ways = [w for w in WAYS if not (options.skip_opacus and w.startswith("Opacus"))]
    results: dict[str, Any] = {}
    for case in cases:
        foreign = [way for way in ways if way.startswith("Opacus")]
        found = measure(case, [way for way in ways if way not in foreign], options.rounds)
        if foreign:
            rounds = max(3, options.rounds // 4)
            found |= {w: f for w, f in measure(case, ["ordinary", *foreign], rounds).items() if w in foreign}
        results[case.name] = {"time": found}
        if not options.skip_memory:
            results[case.name]["peak"] = {way: peak(case, way) for way in ways if way != "privguard, no noise"}
        print(case.name, json.dumps(results[case.name]["time"]), file=sys.stderr)
    print(table(results))
    options.out.mkdir(exist_ok=True)
    stamp = {"torch": torch.__version__, "threads": 1, "load": os.getloadavg()[0], "results": results}
    options.out.joinpath("step.json").write_text(json.dumps(stamp, indent=1) + "\n")
    options.out.joinpath("step.md").write_text(table(results) + "\n")


if __name__ == "__main__":
    main()
