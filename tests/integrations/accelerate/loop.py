# SPDX-License-Identifier: Apache-2.0
"""An accelerate loop, private; also a script for several processes.

python loop.py RUN OUT STEPS NOISE RATE [cut] [bands] [resume STATE] [stop STEP] [die RANK STEP]
"""

import os
import signal
import sys
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import InitProcessGroupKwargs
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from privguard.accounting.bands import coefficients
from privguard.checkpoint.keys.key import Key
from privguard.integrations.accelerate import PrivateAccelerator
from privguard.runs.options import RunOptions
from privguard.training.plan import Plan


def data(count=60):
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(count, 6, generator=generator), torch.randint(0, 3, (count,), generator=generator))


def network(width=8):
    generator = torch.Generator().manual_seed(1)
    net = torch.nn.Sequential(torch.nn.Linear(6, width), torch.nn.Tanh(), torch.nn.Linear(width, 3))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return net


def plan(**changes):
    facts = {
        "sample_rate": 0.3,
        "noise_multiplier": 0.0,
        "max_grad_norm": 0.5,
        "steps": 8,
        "delta": 1e-3,
        "expected_batch_size": 18,
    }
    return Plan(**{**facts, **changes})


def cut(net):
    """Cut every parameter over the ranks, the layers one by one and the rest with the whole, as one does for FSDP2."""
    for layer in [layer for layer in net if list(layer.parameters())][1:]:
        fully_shard(layer)
    return fully_shard(net)


def start(
    folder,
    key,
    *,
    seed=1,
    net=None,
    lr=0.5,
    momentum=0.0,
    batch_size=7,
    prepare=lambda net: net,
    losses=None,
    **changes,
):
    several = [InitProcessGroupKwargs(backend="gloo", timeout=timedelta(seconds=120))] if "RANK" in os.environ else []
    accelerator = PrivateAccelerator(
        plan=plan(**changes),
        run=folder,
        seal_to=[key],
        losses=losses,
        cpu=True,
        kwargs_handlers=several,
        options=RunOptions(insecure_seed=seed),
    )
    net = prepare(net or network())
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=momentum)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.9)
    loader = DataLoader(data(), batch_size=batch_size, shuffle=True)
    return accelerator, *accelerator.prepare(net, optimizer, loader, schedule)


def go(accelerator, net, optimizer, loader, schedule, *, stop=None, every=lambda done: None):
    done = 0
    while accelerator._begun().run.remaining:
        for inputs, targets in loader:
            with accelerator.accumulate(net):
                accelerator.backward(functional.cross_entropy(net(inputs), targets, reduction="none"))
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            done += accelerator.sync_gradients
            if accelerator.sync_gradients:
                every(done)
            if accelerator.sync_gradients and done == stop:
                return done
    return done


def weights(net):
    values = [p.detach() for p in net.parameters()]
    return torch.cat([(p.full_tensor() if isinstance(p, DTensor) else p).flatten() for p in values])


def main(folder, out, steps, noise, rate, *flags):
    torch.set_num_threads(1)
    key = Key.read(Path(out) / "key")
    rank = int(os.environ.get("RANK", "0"))
    width = 3000 if float(noise) else 8
    settings = {"steps": int(steps), "noise_multiplier": float(noise), "sample_rate": float(rate), "batch_size": 3}
    if "bands" in flags:
        settings["strategy"] = coefficients(4, steps=int(steps))
    if "cut" in flags:
        settings["prepare"] = cut
    parts = start(Path(folder), key, net=network(width), lr=1.0 if float(noise) else 0.5, momentum=0.9, **settings)
    assert "cut" not in flags or all(isinstance(p, DTensor) for p in parts[1].parameters())
    if "resume" in flags:
        parts[0].load_state(flags[flags.index("resume") + 1])
    before = weights(parts[1]).clone()

    def every(done):
        if "die" in flags:
            parts[0].save_state(Path(out) / "state")
            victim, step = (int(n) for n in flags[flags.index("die") + 1 :][:2])
            if (rank, done) == (victim, step):
                os.kill(os.getpid(), signal.SIGKILL)

    go(*parts, every=every, stop=int(flags[flags.index("stop") + 1]) if "stop" in flags else None)
    if "stop" in flags:
        parts[0].save_state(Path(out) / "state")
    torch.save({"moved": weights(parts[1]) - before, "after": weights(parts[1])}, Path(out) / f"rank{rank}.pt")
    parts[0].end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
