"""``privguard demo``: see the whole flow on real data in a minute."""

from pathlib import Path
from typing import Annotated

import typer

from privguard.cli._output import AsJson, emit, stderr


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demonstration makes.")] = Path("demo-run"),
    as_json: AsJson = False,
) -> None:
    """Train on real data under ε, seal the checkpoints, write the report. Needs no network."""
    import torch

    from privguard.run import demo as run_demo

    torch.set_num_threads(1)  # so small a model gains nothing from more
    stderr().print("Training on scikit-learn's digits with ε = 3 at δ = 1e-4 …")
    done = run_demo(out)
    emit(
        done,
        as_json=as_json,
        lines=[
            str(done.claim),
            (
                f"accuracy on 360 test images: {done.private_accuracy:.1%} private, "
                f"{done.ordinary_accuracy:.1%} without privacy"
            ),
            f"checkpoints, sealed with AES-256-GCM: {done.folder}/checkpoints (key: {done.folder}/demo.key)",
            f"report: {done.page}",
        ],
    )
