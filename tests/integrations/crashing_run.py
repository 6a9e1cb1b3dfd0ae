# SPDX-License-Identifier: Apache-2.0
"""A private run in a process of its own, which the tests kill, interrupt or starve of disk.

python crashing_run.py FOLDER KEY [resume] [disk BYTES] [hold STEP] [slow STEP]

Held, it stays inside its loop after that step, however long the test needs to see it; slow, each step from there on
takes half a second, so that an interrupt, which ends a run after its step, comes before the last one.
"""

import resource
import signal
import sys
import time
from pathlib import Path

import torch
from small import SmallRun, small_plan
from torch.nn import functional

from privguard.checkpoint.keys.key import Key


def main(folder, key, *flags):
    run = SmallRun(Path(folder))
    run.key = Key.read(key)
    if "disk" in flags:
        signal.signal(
            signal.SIGXFSZ, signal.SIG_IGN
        )  # a write past the limit then fails with an error, as on a full disk
        limit = int(flags[flags.index("disk") + 1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    hold = int(flags[flags.index("hold") + 1]) if "hold" in flags else None
    slow = int(flags[flags.index("slow") + 1]) if "slow" in flags else 200
    private = run.start(small_plan(steps=200), resume="resume" in flags, checkpoint_every=10)
    print("started", flush=True)
    done = 0
    for inputs, targets in private.batches():
        private.backward(functional.cross_entropy(private.model(inputs), targets, reduction="none"))
        if private.step():
            done += 1
            print(f"step {done}", flush=True)
        while done == hold:
            time.sleep(0.01)
        if slow <= done < 200:
            time.sleep(0.5)
    print("finished", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
