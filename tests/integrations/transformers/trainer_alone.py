# SPDX-License-Identifier: Apache-2.0
"""A PrivateTrainer run in processes of its own, which the tests kill or start as ranks.

python trainer_alone.py RUN OUT STEPS NOISE [resume] [die RANK STEP] [hold STEP]
"""

import hashlib
import os
import signal
import sys
import time
from pathlib import Path

import torch
import transformers as hf

sys.path.insert(0, str(Path(__file__).parents[1]))  # where small.py is

from drive import arguments, make_plan, private_trainer
from zoo import ZOO

from privguard.checkpoint.keys.key import Key


class Tell(hf.TrainerCallback):
    """Says each step; where that was asked for, stays at one until it is killed, or kills its own rank."""

    def __init__(self, rank, flags):
        self.rank = rank
        self.victim = [int(n) for n in flags[flags.index("die") + 1 :][:2]] if "die" in flags else None
        self.hold = int(flags[flags.index("hold") + 1]) if "hold" in flags else None

    def on_step_end(self, args, state, control, **_):
        print(f"step {state.global_step}", flush=True)
        while state.global_step == self.hold:
            time.sleep(0.02)
        if [self.rank, state.global_step] == self.victim:
            os.kill(os.getpid(), signal.SIGKILL)


def main(folder, out, steps, noise, *flags):
    torch.set_num_threads(1)
    hf.logging.set_verbosity_error()
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    make, data = ZOO["bert-sequence"]
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        model = make()
    plan = make_plan(4, sample_rate=0.34, noise_multiplier=float(noise), max_grad_norm=0.5, steps=int(steps))
    args = arguments(
        folder, 4, per_device_train_batch_size=4 // ranks, learning_rate=0.1, save_strategy="steps", save_steps=2,
        **({"ddp_backend": "gloo", "ddp_timeout": 120} if ranks > 1 else {}),
    )  # fmt: skip
    secret = None if float(noise) else 1
    trainer = private_trainer(
        model, data(), folder, plan=plan, args=args, seal_to=[Key.read(Path(out) / "key")], insecure_seed=secret,
        callbacks=[Tell(rank, flags)],
    )  # fmt: skip
    begin = trainer._begin

    def beginning(checkpoint):
        private = begin(checkpoint)
        print("keyed", hashlib.sha256(private.run._streams.current.secret()).hexdigest(), flush=True)
        return private

    trainer._begin = beginning
    result = trainer.train(resume_from_checkpoint="resume" in flags)
    print(f"ended at {result.global_step}", flush=True)
    torch.save(torch.cat([p.detach().flatten() for p in model.parameters()]), Path(out) / f"rank{rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
