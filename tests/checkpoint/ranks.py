# SPDX-License-Identifier: Apache-2.0
"""What two processes under DDP do in ``test_ranks.py``; each function runs in both, with a rank and a folder."""

import os
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import distributed, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.nn.parallel import DistributedDataParallel

from privguard.checkpoint import Key, durable
from privguard.integrations.sealed.accelerate import load_state, save_state
from privguard.integrations.sealed.dcp import SealedReader, SealedWriter
from privguard.integrations.sealed.state import Sealing

Work = Callable[[int, Path], None]


def take_part(work: Work, rank: int, folder: Path) -> None:
    """Join the other process, work, and part."""
    torch.set_num_threads(1)
    ours = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= ours | {"MASTER_ADDR": "localhost", "MASTER_PORT": "1", "ACCELERATE_USE_CPU": "true"}  # as torchrun
    meeting = f"file://{folder / 'meeting'}"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=timedelta(seconds=120))
    work(rank, folder)
    distributed.destroy_process_group()


def key(folder: Path) -> Key:
    return Key.read(folder / "team.key")


# accelerate


def prepared(seed: int) -> tuple[Accelerator, nn.Module, torch.optim.Optimizer]:
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.5), nn.Linear(5, 2))
    model, optimizer = accelerator.prepare(model, torch.optim.Adam(model.parameters(), lr=0.1))
    assert isinstance(model, DistributedDataParallel)
    return accelerator, model, optimizer


def train(accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        accelerator.backward(model(torch.randn(4, 6)).square().mean())  # dropout and data from this rank's generator
        optimizer.step()
        optimizer.zero_grad()


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def accelerate_goes_on_exactly(rank: int, folder: Path) -> None:
    sealing = Sealing(to=[key(folder)])
    first = prepared(seed=1)
    torch.manual_seed(100 + rank)
    train(*first, steps=2)
    save_state(first[0], folder / "state", sealing)
    train(*first, steps=2)
    expected, drawn = flat(first[1]), torch.rand(3)
    again = prepared(seed=2)
    load_state(again[0], folder / "state", sealing)
    train(*again, steps=2)
    assert torch.equal(flat(again[1]), expected)
    assert torch.equal(torch.rand(3), drawn)
    torch.save({"weights": expected, "drawn": drawn}, folder / f"rank{rank}.pt")


def accelerate_saves(rank: int, folder: Path) -> None:
    parts = prepared(seed=1)
    with torch.no_grad():
        for parameter in parts[1].parameters():
            parameter.fill_(float((folder / "value").read_text()))
    die_as_told(rank, folder)
    save_state(parts[0], folder / "state", Sealing(to=[key(folder)]))


def accelerate_loads(rank: int, folder: Path) -> None:
    parts = prepared(seed=3)
    load_state(parts[0], folder / "state", Sealing(to=[key(folder)]))
    torch.save(flat(parts[1]), folder / f"rank{rank}.pt")


# torch.distributed.checkpoint


def replicated(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = DistributedDataParallel(nn.Linear(40, 30))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 40)).sum().backward()
    optimizer.step()
    return model, optimizer


def dcp_state(model: nn.Module, optimizer: torch.optim.Optimizer, rank: int, value: float) -> dict[str, object]:
    weights, moments = get_state_dict(model, optimizer)
    return {"model": weights, "optimizer": moments, f"mine{rank}": torch.full((50_000,), value + rank)}


def dcp_comes_back(rank: int, folder: Path) -> None:
    model, optimizer = replicated(seed=1)
    before = flat(model)
    dcp.save(dcp_state(model, optimizer, rank, 7.0), storage_writer=SealedWriter(folder / "dcp", to=key(folder)))
    model, optimizer = replicated(seed=2)
    assert not torch.equal(flat(model), before)
    state = dcp_state(model, optimizer, rank, 0.0)
    dcp.load(state, storage_reader=SealedReader(folder / "dcp", key=key(folder)))
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])  # type: ignore[arg-type]
    assert torch.equal(flat(model), before)
    assert torch.equal(state[f"mine{rank}"], torch.full((50_000,), 7.0 + rank))  # type: ignore[arg-type]


def dcp_saves(rank: int, folder: Path) -> None:
    state = {f"mine{rank}": torch.full((50_000,), float((folder / "value").read_text()) + rank)}
    die_as_told(rank, folder)
    dcp.save(state, storage_writer=SealedWriter(folder / "dcp", to=key(folder)))


# Dying


def die_as_told(rank: int, folder: Path) -> None:
    """Where a file says so, kill this process before it saves, or before its n-th write or rename."""
    if not (folder / "die").exists():
        return
    victim, what, number = (folder / "die").read_text().split()
    if rank != int(victim):
        return
    if what == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    left = [int(number)]

    def counted(original: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **named)

        return call

    if what == "write":
        durable.pwrite_all = counted(durable.pwrite_all)
    else:
        durable.Directory.rename = counted(durable.Directory.rename)  # type: ignore[method-assign]
