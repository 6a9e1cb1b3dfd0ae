# SPDX-License-Identifier: Apache-2.0
"""Train, seal, resume, read one tensor, let an auditor in, and shut somebody out again.

    python recipes/seal_a_checkpoint.py [--tiny] [--out FOLDER]

The training machine needs ``team.pub`` alone; whoever resumes needs ``team.key``.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from torch import nn

from privguard.attest.journal import Journal, recorded_in, verify
from privguard.attest.statement import SigningKey
from privguard.checkpoint import Key, Snapshot, inspect, load, open_sealed, rewrap, save
from privguard.errors import TamperedError


def trained(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A small model after three steps."""
    model = nn.Sequential(nn.Linear(20, width), nn.ReLU(), nn.Linear(width, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(3):
        model(torch.randn(8, 20)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def main(folder: Path, width: int) -> None:
    team, officer, run = Key.generate(), Key.generate_x25519(), SigningKey.generate()
    team.write(folder / "team.key")
    team.recipient().write(folder / "team.pub")
    journal = Journal(folder / "access.jsonl", by=run, who="recipe")

    with recorded_in(journal):  # every seal, open and re-wrap in this block leaves a signed line
        model, optimizer = trained(width)
        snapshot = Snapshot(weights=model.state_dict(), optimizer=optimizer.state_dict(), run="recipe", step=3)
        path = folder / "run.sealed"
        save(snapshot, path, to=[folder / "team.pub"], auditors=[officer.recipient()], signer=run)
        print(f"sealed {path.stat().st_size:,} bytes for {', '.join(inspect(path).resume)}")

        again = load(path, Key.read(folder / "team.key"), signer=run.identity, min_step=3)
        model.load_state_dict(dict(again.weights))
        optimizer.load_state_dict(again.optimizer)
        print(f"resumed at step {again.step}")

        with open_sealed(path, team) as sealed:
            print(f"one tensor: {tuple(sealed['0.weight'].shape)}")
        with open_sealed(path, officer) as sealed:
            print(f"the auditor sees step {sealed.manifest['step']} and no weights")

        new = Key.generate()
        rewrap(path, team, add=[new], remove=[folder / "team.pub"])
        try:
            load(path, team)
        except TamperedError as refusal:
            print(f"the old key: {refusal}")

    found = verify(folder / "access.jsonl", trusted=[run.identity])
    print(f"{found.entries} lines in the journal hold; head {found.head[:16]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a model of a few kilobytes")
    parser.add_argument("--out", type=Path, help="keep the files here instead of in a temporary folder")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        place = arguments.out or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        main(place, width=8 if arguments.tiny else 4096)
