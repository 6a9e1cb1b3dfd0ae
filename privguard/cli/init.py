# SPDX-License-Identifier: Apache-2.0
"""``privguard init``: a starting script for the way in which somebody trains."""

import json
import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from privguard import _check
from privguard.cli._output import AsJson, emit, require_place


class Way(StrEnum):
    """The loops that a starting script can be written for."""

    LOOP = "loop"
    TRAINER = "trainer"
    ACCELERATE = "accelerate"


def init(
    way: Annotated[Way, typer.Argument(help="loop: plain PyTorch; trainer: transformers; accelerate.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The script to write; an existing file is not replaced.")],
    examples: Annotated[int, typer.Option(help="Public size of the data set.")] = 1000,
    features: Annotated[int, typer.Option(help="Numbers in one record (loop and accelerate).")] = 20,
    classes: Annotated[int, typer.Option(help="Classes to tell apart.")] = 2,
    batch_size: Annotated[int, typer.Option(help="Expected examples in a step.")] = 100,
    epochs: Annotated[float, typer.Option(help="Passes over the data, on average.")] = 10,
    epsilon: Annotated[float, typer.Option(help="ε that may be spent.")] = 3.0,
    delta: Annotated[float, typer.Option(help="δ of the guarantee, well below 1/N.")] = 1e-5,
    book: Annotated[str, typer.Option(help="The team's budget book, to which the run is charged.")] = "",
    data: Annotated[Path | None, typer.Option(help="With --book, the data set's file, as the book knows it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a starting script for a private run: your data and model go where it says so."""
    import hashlib

    from jinja2 import Environment, PackageLoader, StrictUndefined

    for name, value in {
        "examples": examples,
        "features": features,
        "classes": classes,
        "batch-size": batch_size,
    }.items():
        _check.count(name, value)
    _check.require(bool(book) == (data is not None), "--book, --data", (book, data), wanted="both or neither")
    require_place(out)
    if out.exists():
        raise FileExistsError(f"{out}: is there already; name another file, or move it away first")
    digest = "" if data is None else hashlib.sha256(data.read_bytes()).hexdigest()
    options = f", options=pg.RunOptions(book={json.dumps(book)}, data_set={json.dumps(digest)})" if book else ""
    run = f"Run it: python {out}" + (" --model NAME_OR_FOLDER" if way is Way.TRAINER else "")
    environment = Environment(  # noqa: S701 — a Python script, and no HTML
        loader=PackageLoader("privguard.cli", "starters"), undefined=StrictUndefined, keep_trailing_newline=True
    )
    text = environment.get_template(f"{way.value}.py.j2").render(
        examples=examples,
        features=features,
        classes=classes,
        batch_size=batch_size,
        epochs=f"{epochs:g}",
        epsilon=epsilon,
        delta=delta,
        passes=math.ceil(epochs),
        accumulation=max(1, round(batch_size / 16)),
        lines={"options": options, "run": run + "."},
    )
    out.write_text(text, encoding="utf-8")
    lines = [f"wrote {out}", "next: privguard key new team.key", f"then: {run.removeprefix('Run it: ')}"]
    emit({"script": str(out), "way": way.value}, as_json=as_json, lines=lines)
