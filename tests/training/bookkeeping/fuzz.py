# SPDX-License-Identifier: Apache-2.0
"""The book-keeper on layers by their settings and on random models; a failure is printed as its smallest program.

``python -m tests.training.bookkeeping.fuzz [--models N] [--cells N] [--seed S]``. Every sum is held against ordinary
autograd of one record after the other, and against the sum without each record. Refusals by name are counted, not
failures: a wrong sum in silence and a raw error are.
"""

import argparse
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from tests.training.bookkeeping.grid import Called, cells
from tests.training.bookkeeping.judge import verdict

WIDTH, LENGTH, TOP = 6, 4, 9
GOOD = ("exact", "refused", "torch fails")

Program = tuple[str, ...]


class Residual(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x).tanh()


class Twice(Residual):
    """One layer used two times, the second time on its own output."""

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.sin(self.layer(x)))


class Scale(nn.Module):
    """A parameter without a rule, and an in-place operation behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 2, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        y = x * self.scale
        y += 1
        return y


class Positions(nn.Module):
    """A table of positions that all examples share."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(LENGTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table(torch.arange(x.shape[1])[None])


class LengthFirst(Residual):
    """A module between two transpositions, as LSTMs and old transformers have."""

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(1, 2)).transpose(1, 2)


def _attended(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x, x, x, need_weights=False)[0]


def _first(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x)[0]


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "linear without bias": lambda: nn.Linear(WIDTH, WIDTH, bias=False),
    "residual": lambda: Residual(nn.Linear(WIDTH, WIDTH)),
    "twice": lambda: Twice(nn.Linear(WIDTH, WIDTH)),
    "layer norm": lambda: nn.LayerNorm(WIDTH),
    "rms norm": lambda: nn.RMSNorm(WIDTH),
    "group norm": lambda: LengthFirst(nn.GroupNorm(2, WIDTH)),
    "instance norm": lambda: LengthFirst(nn.InstanceNorm1d(WIDTH, affine=True)),
    "convolution": lambda: LengthFirst(nn.Conv1d(WIDTH, WIDTH, 3, padding=1)),
    "grouped convolution": lambda: LengthFirst(nn.Conv1d(WIDTH, WIDTH, 3, padding="same", groups=2)),
    "transposed convolution": lambda: LengthFirst(nn.ConvTranspose1d(WIDTH, WIDTH, 3, padding=1)),
    "attention": lambda: Called(nn.MultiheadAttention(WIDTH, 2, batch_first=True), _attended),
    "encoder": lambda: nn.TransformerEncoderLayer(WIDTH, 2, 8, dropout=0.0, batch_first=True),
    "gru": lambda: Called(nn.GRU(WIDTH, WIDTH, batch_first=True), _first),
    "lstm both ways": lambda: Called(nn.LSTM(WIDTH, WIDTH // 2, bidirectional=True, batch_first=True), _first),
    "scale": Scale,
    "positions": Positions,
    "prelu": lambda: nn.PReLU(LENGTH),
    "relu in place": lambda: nn.ReLU(inplace=True),
    "tanh": nn.Tanh,
}
FIRST: dict[str, Callable[[], nn.Module]] = {
    "points": nn.Identity,
    "table": lambda: nn.Embedding(TOP, WIDTH),
    "table with padding": lambda: nn.Embedding(TOP, WIDTH, padding_idx=0),
}


def build(program: Program, seed: int) -> tuple[nn.Module, Tensor]:
    """The model of a program, and four records for it; equal arguments give equal numbers."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        first, *blocks = program
        parts = [FIRST[first](), *(BLOCKS[name]() for name in blocks), nn.Flatten(), nn.Linear(LENGTH * WIDTH, 3)]
        x = torch.randn(4, LENGTH, WIDTH) if first == "points" else torch.randint(TOP, (4, LENGTH))
        return nn.Sequential(*parts), x


def programs(count: int, seed: int) -> Iterator[tuple[Program, int]]:
    """Random programs of one to seven blocks, each with the seed of its numbers."""
    draw = random.Random(seed)
    for _ in range(count):
        blocks = draw.choices(list(BLOCKS), k=draw.randint(1, 7))
        yield (draw.choice(list(FIRST)), *blocks), draw.getrandbits(31)


def smallest(program: Program, fails: Callable[[Program], bool]) -> Program:
    """The program without every block that it fails without."""
    place = 1
    while place < len(program):
        shorter = (*program[:place], *program[place + 1 :])
        if fails(shorter):
            program = shorter
        else:
            place += 1
    return program


def is_good(said: str) -> bool:
    """Whether a verdict is no failure of the book-keeper's."""
    return said.startswith(GOOD)


def fuzz_models(count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """How many programs got which verdict, and the failures, each with its smallest program."""
    tally, failures = Counter[str](), list[str]()
    for program, numbers in programs(count, seed):
        said = verdict(*build(program, numbers))
        tally[said.split(":")[0]] += 1
        if not is_good(said):
            least = smallest(program, lambda p, numbers=numbers: not is_good(verdict(*build(p, numbers))))
            failures.append(f"build({least!r}, {numbers}): {verdict(*build(least, numbers))}")
    return tally, failures


def fuzz_cells(places: Sequence[int] | None, seed: int) -> tuple[Counter[str], list[str]]:
    """The same of the grid; ``places`` are those of the cells to try, None all of them."""
    tally, failures = Counter[str](), list[str]()
    every = list(cells())
    for place in range(len(every)) if places is None else places:
        cell = every[place]
        with torch.random.fork_rng():
            torch.default_generator.manual_seed(seed + place)
            model, x = cell.make()
        said = verdict(model, x, tolerance=cell.tolerance)
        tally[said.split(":")[0]] += 1
        if not is_good(said):
            failures.append(f"{cell.program}, seed {seed + place}: {said}")
    return tally, failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=2000)
    parser.add_argument("--cells", type=int, help="how many of the grid, at random; default: all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    every = len(list(cells()))
    chosen = None if options.cells is None else random.Random(options.seed).sample(range(every), options.cells)
    failures: list[str] = []
    for what, (tally, failed) in {
        f"grid, of {every} cells": fuzz_cells(chosen, options.seed),
        "random models": fuzz_models(options.models, options.seed),
    }.items():
        print(f"{what}: {dict(tally)}")
        failures += failed
    print(*failures, sep="\n")
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    main()
