# SPDX-License-Identifier: Apache-2.0
"""A private run that is stopped, and goes on: after a clean stop, and after a crash; the line that does it has a #.

python recipes/resume.py --run runs/digits

Each part is a process of its own, as it would be on another day. A clean stop (Ctrl-C, ``break``, SIGTERM) loses no
step. After a crash the steps since the last checkpoint stay spent. Either way samples and noise are drawn afresh, and
the run ends where its budget does.
"""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import privguard as pg

PLAN = {"epsilon": 3.0, "delta": 1e-4, "examples": 1797, "batch_size": 512, "max_grad_norm": 0.5}


def train(run: Path, *, epochs: int, resume: bool, stop: int | None = None, crash: int | None = None) -> None:
    """Train to the end of the plan, to a clean stop after step ``stop``, or until the process dies in ``crash``."""
    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.from_numpy(images / 16).float(), torch.from_numpy(labels))
    model = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    loader = DataLoader(data, batch_size=256, shuffle=True)
    plan = pg.Plan.for_budget(epochs=epochs, **PLAN)
    key = run.parent / "team.key"
    private = pg.privatize(
        model, optimizer, loader, plan, run=run, seal_to=[key], resume=resume, options=pg.RunOptions(quiet=True)
    )  #
    done = 0
    for inputs, targets in private.batches():
        private.backward(functional.cross_entropy(private.model(inputs), targets, reduction="none"))
        done += private.step()
        if done == stop:
            break
        if done == crash:
            os.kill(os.getpid(), signal.SIGKILL)
    history = pg.Ledger.read(run / "ledger.jsonl")
    print(f"{done} steps here, {history.position} of {plan.steps} spent: {private.claim()}", flush=True)
    print(f"keys so far: {', '.join(f'{key.nonce[:8]}… from step {key.first}' for key in history.streams)}", flush=True)


def in_a_process(*arguments: str) -> int:
    return subprocess.run([sys.executable, __file__, *arguments], check=False).returncode


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--run", type=Path, default=Path("runs/digits/run"))
    options.add_argument("--tiny", action="store_true", help="ten epochs, for a quick look")
    options.add_argument("--part", choices=("stop", "crash", "end"), help="one of the three processes")
    given = options.parse_args()
    torch.set_num_threads(1)  # so small a model gains nothing from more
    epochs = 10 if given.tiny else 40
    if given.part is not None:
        stop, crash = {"stop": (12, None), "crash": (None, 9), "end": (None, None)}[given.part]
        train(given.run, epochs=epochs, resume=given.part != "stop", stop=stop, crash=crash)
        return
    given.run.parent.mkdir(parents=True, exist_ok=True)
    pg.Key.generate().write(given.run.parent / "team.key")
    same = ["--run", str(given.run), *(["--tiny"] if given.tiny else [])]
    print("a clean stop after 12 steps")
    in_a_process(*same, "--part", "stop")
    print("resumed, and killed in the middle: its process says nothing")
    in_a_process(*same, "--part", "crash")
    print("resumed to the end: what the dead process took since its last checkpoint is spent, and not trained again")
    sys.exit(in_a_process(*same, "--part", "end"))


if __name__ == "__main__":
    main()
