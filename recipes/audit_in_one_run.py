# SPDX-License-Identifier: Apache-2.0
"""Audit a private training in the run itself: coins before training, a verdict after it.

    python recipes/audit_in_one_run.py --run runs/audited

1,000 canaries ride along with scikit-learn's digits. Each has a dead coordinate of its own, a weight that no image
touches, and is trained on only if its coin says so. Their noisy weights are the scores. A twin without noise is the
positive control: only because the same design refutes the twin may the verdict on the run be "consistent".
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import privguard as pg
from privguard.audit import Bound, Coins, Design, Observed, OneRun, judge

LEARNING_RATE = 0.5


class WithCanaries(nn.Module):
    """A classifier, and beside it one weight per canary that only this canary moves."""

    def __init__(self, canaries: int) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
        self.canary = nn.Linear(canaries, 1, bias=False)
        nn.init.zeros_(self.canary.weight)

    def forward(self, images: Tensor, canaries: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, 10) and each row's canary score (B,)."""
        return self.network(images), self.canary(canaries)[:, 0]


def records(coins: Coins) -> TensorDataset:
    """Images without a canary, then the canaries that are in: (image, label, canary row, 1 for an image)."""
    images, labels = load_digits(return_X_y=True)
    size, chosen = len(images), np.flatnonzero(coins.included)
    rows = torch.zeros(size + len(chosen), len(coins))
    rows[torch.arange(size, len(rows)), torch.from_numpy(chosen)] = 10.0  # a raw gradient of ten clipping norms
    pictures = torch.cat([torch.from_numpy(images / 8 - 1).float(), torch.zeros(len(chosen), 64)])
    targets = torch.cat([torch.from_numpy(labels), torch.zeros(len(chosen), dtype=torch.long)])
    return TensorDataset(pictures, targets, rows, (torch.arange(len(rows)) < size).float())


def train(plan: pg.Plan, coins: Coins, run: Path) -> np.ndarray:
    """Train privately on digits and canaries; the score of every canary, in or out, in clipping norms."""
    run.mkdir(parents=True)
    pg.Key.generate().write(run / "team.key")
    model = WithCanaries(len(coins))
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    loader = DataLoader(records(coins), batch_size=1024, shuffle=True)
    private = pg.privatize(
        model, optimizer, loader, plan, run=run, seal_to=[run / "team.key"], options=pg.RunOptions(quiet=True)
    )
    for images, labels, canaries, is_image in private.batches():
        logits, canary = private.model(images, canaries)
        private.backward(functional.cross_entropy(logits, labels, reduction="none") * is_image + canary)
        private.step()
    print(f"{run.name}: {private.claim()}")
    moved = -model.canary.weight.detach()[0].double().numpy() / LEARNING_RATE
    return moved * plan.expected_batch_size / plan.max_grad_norm


def audited(run: Path, *, canaries: int, epochs: int, epsilon: float = 8.0) -> OneRun:
    """Plan, flip, train, train the control, judge."""
    size = 1797 + canaries // 2
    plan = pg.Plan.for_budget(
        epsilon=epsilon, delta=1e-5, examples=size, batch_size=size, epochs=epochs, max_grad_norm=1.0
    )
    design = Design(
        canaries=canaries,
        guesses_in=canaries // 4,
        guesses_out=canaries // 4,
        claimed=epsilon,
        delta=1e-5,
        bounds=(Bound.GAUSSIAN_THRESHOLD,),
        threshold=epochs / 2,  # an included canary scores one clipping norm per step, the others none
    )
    cap, needed = design.cap(Bound.GAUSSIAN_THRESHOLD), design.needed(Bound.GAUSSIAN_THRESHOLD)
    print(f"cap {cap:.1f}; {needed} right calls of {canaries} would refute the claim")
    coins, twin = design.flip(), design.flip()
    print(f"commitment, to be published now: {coins.commitment}")
    seen = Observed(train(plan, coins, run / "audited"), coins)
    bare = replace(plan, noise_multiplier=0.0, epsilon=None)
    control = Observed(train(bare, twin, run / "control"), twin)
    return judge(design, seen, control=control)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--run", type=Path, default=Path("runs/audited"))
    options.add_argument("--tiny", action="store_true", help="200 canaries and 10 steps, for a quick look")
    given = options.parse_args()
    torch.set_num_threads(1)
    verdict = audited(given.run, canaries=200 if given.tiny else 1_000, epochs=10 if given.tiny else 40)
    finding = verdict.findings[0]
    print(
        f"{verdict.outcome.value}: ε ≥ {finding.epsilon_low:.2f}, claimed {finding.claimed}, control {verdict.control}"
    )


if __name__ == "__main__":
    main()
