# SPDX-License-Identifier: Apache-2.0
"""Audit a claim for whole users in the run itself: the canaries are users, each with several records.

    python recipes/audit_users_in_one_run.py --run runs/users

The owners of scikit-learn's digits have three images each. Beside them stand canary users, whose two to five records
all pull at one weight that nobody else touches; a fair coin for each *user* takes all of them in or none. Whatever a
user owns, PrivateTrainer lets it move the sum by one clipping norm, so the weight leaks membership only as far as the
claim allows. A design of example canaries is refused here: an example is less than a user.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import privguard as pg
from privguard import PrivateTrainer
from privguard.audit import Bound, Coins, Design, Observed, OneRun, judge
from privguard.records import Claim, Unit
from privguard.runs.privacy_unit import ByUser

LEARNING_RATE = 0.5
MOST = 3  # records of one user that enter a step
PEOPLE = 599  # owners of three digits each


class WithCanaries(nn.Module):
    """A classifier, and beside it one weight per canary user that only this user's records move."""

    main_input_name = "pixels"

    def __init__(self, canaries: int) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
        self.canary = nn.Linear(canaries, 1, bias=False)
        nn.init.zeros_(self.canary.weight)

    def forward(self, pixels: Tensor, rows: Tensor) -> dict[str, Tensor]:
        """Logits (B, 10) and each record's pull at its canary's weight (B,)."""
        return {"logits": self.network(pixels), "pull": self.canary(rows)[:, 0]}


@dataclass
class Records:
    """Digits and the records of the canary users that are in, with the user of each; canary j owns 2 to 5 of them."""

    coins: Coins

    def __post_init__(self) -> None:
        images, labels = load_digits(return_X_y=True)
        self.pixels, self.labels = torch.from_numpy(images / 8 - 1).float(), torch.from_numpy(labels)
        self.canaries = [int(j) for j in np.flatnonzero(self.coins.included) for _ in range(2 + j % 4)]
        self.users = [f"person {i // 3}" for i in range(3 * PEOPLE)] + [f"canary {j}" for j in self.canaries]

    def __len__(self) -> int:
        return len(self.users)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        row = torch.zeros(len(self.coins))
        if i < 3 * PEOPLE:
            return {"pixels": self.pixels[i], "rows": row, "digit": self.labels[i], "real": torch.ones(())}
        row[self.canaries[i - 3 * PEOPLE]] = 10.0  # a raw gradient of ten clipping norms
        return {"pixels": torch.zeros(64), "rows": row, "digit": torch.tensor(0), "real": torch.zeros(())}


def losses(outputs: Any, batch: Any) -> Tensor:
    """Cross-entropy of an image, the pull of a canary's record; (B,)."""
    entropy = functional.cross_entropy(outputs["logits"], batch["digit"], reduction="none")
    return entropy * batch["real"] + outputs["pull"]


def train(plan: pg.Plan, coins: Coins, run: Path) -> tuple[np.ndarray, Claim]:
    """Train privately by users; the score of every canary user, in or out, in clipping norms, and the claim."""
    run.mkdir(parents=True)
    pg.Key.generate().write(run / "team.key")
    records, model = Records(coins), WithCanaries(len(coins))
    arguments = hf.TrainingArguments(
        output_dir=str(run), max_steps=plan.steps, per_device_train_batch_size=int(plan.expected_batch_size),
        learning_rate=LEARNING_RATE, lr_scheduler_type="constant", optim="sgd", remove_unused_columns=False,
        label_names=["digit", "real"], report_to=[], disable_tqdm=True, use_cpu=True, logging_strategy="no",
        save_strategy="no",
    )  # fmt: skip
    trainer = PrivateTrainer(
        model,
        arguments,
        train_dataset=records,
        plan=plan,
        per_example_loss=losses,
        seal_to=[run / "team.key"],
        users=ByUser(ids=records.users, most=MOST),
    )
    trainer.train()
    moved = -model.canary.weight.detach()[0].double().numpy() / LEARNING_RATE
    return moved * plan.expected_batch_size / plan.max_grad_norm, trainer.claim()


def audited(run: Path, *, canaries: int, steps: int, epsilon: float = 8.0) -> OneRun:
    """Plan, flip, train, train the control, judge."""
    users = PEOPLE + canaries // 2
    plan = pg.Plan.for_budget(
        epsilon=epsilon, delta=1e-5, examples=users, batch_size=users, epochs=steps, max_grad_norm=1.0
    )
    plan = replace(plan, unit=Unit.USER)
    design = Design.for_claim(
        Claim(epsilon=epsilon, delta=1e-5, unit=Unit.USER),
        canaries=canaries,
        guesses_in=canaries // 4,
        guesses_out=canaries // 4,
        unit=Unit.USER,
        bounds=(Bound.GAUSSIAN_THRESHOLD,),
        threshold=steps / 2,  # a user that is in scores one clipping norm per step, the others none
    )
    print(f"cap {design.cap(Bound.GAUSSIAN_THRESHOLD):.1f} against a claim of {epsilon:g} for one user")
    coins, twin = design.flip(), design.flip()
    print(f"commitment, to be published now: {coins.commitment}")
    scores, claim = train(plan, coins, run / "audited")
    print(claim)
    bare, _ = train(replace(plan, noise_multiplier=0.0, epsilon=None), twin, run / "control")
    return judge(design, Observed(scores, coins), control=Observed(bare, twin))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--run", type=Path, default=Path("runs/users"))
    options.add_argument("--tiny", action="store_true", help="200 canary users and 5 steps, for a quick look")
    given = options.parse_args()
    torch.set_num_threads(1)
    verdict = audited(given.run, canaries=200 if given.tiny else 1_000, steps=5 if given.tiny else 40)
    finding = verdict.findings[0]
    print(
        f"{verdict.outcome.value}: ε ≥ {finding.epsilon_low:.2f} for one user, claimed {finding.claimed}, "
        f"control {verdict.control}"
    )


if __name__ == "__main__":
    main()
