# SPDX-License-Identifier: Apache-2.0
"""Exact Gaussian noise: a clipped sum goes in, integers meet on a public grid, a noisy sum comes out.

Guarantee: what is released is a function of the *ideal* Gaussian mechanism on the rounded sum. For an integer k and a
real x, rint(k + x) = k + rint(x) but for ties, which have probability 0; so adding rint(s·z) to an integer is the same
as rounding the sum of that integer and a real Gaussian (docs/spec/mechanism-v1.md). No float is involved before the sum
of all ranks is complete, so attacks on floating-point noise (Mironov 2012) have nothing to look at.

Each ledger position has a stream of its own, of which the parameters take consecutive pieces, so no noise is ever used
twice, and two processes that share the key add the same noise, not two noises. How many threads make it, and with which
library, changes nothing.
"""

import itertools
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privguard import _check
from privguard._random import Stream
from privguard.errors import SensitivityError
from privguard.training import shards
from privguard.training.clip import MOST_RECORDS, ClippedSum
from privguard.training.noise import chacha20
from privguard.training.noise.gaussian import PAIRS, DevicePairs, HostPairs, Refiner
from privguard.training.noise.grid import Grid
from privguard.training.noise.past import Past
from privguard.training.ranks import Ranks

_BLOCK = 2 * PAIRS  # integers per block
_BYTES = 16 * PAIRS  # of the stream for each block: one word for each radius, one for each angle
_AT_ONCE = 64  # blocks that a device makes together: a million integers

Integers = NDArray[np.int64]
Drawn = Integers | NDArray[np.float64]  # the same integers; rows that are kept are in float64
Label = tuple[str | int, ...]


@final
@dataclass(frozen=True)
class NoisySum:
    """A clipped sum with noise of deviation ``deviation`` in every coordinate; only this may reach the optimizer.

    ``gradients`` maps the names of the model's parameters to float32 tensors of their shapes.
    """

    gradients: dict[str, Tensor]
    deviation: float


@final
@dataclass(frozen=True)
class Row:
    """This rank's float64 totals that take consecutive integers of one stream; ``noisy`` if they take any here."""

    label: Label
    totals: dict[str, Tensor]
    noisy: bool

    @property
    def device(self) -> torch.device:
        """Where all of them are."""
        return next(iter(self.totals.values())).device

    @property
    def count(self) -> int:
        """How many integers it takes."""
        return sum(total.numel() for total in self.totals.values())


def rows(gradients: Mapping[str, Tensor], *, lead: bool) -> list[Row]:
    """How a model's parameters share the streams of one position.

    Parameters of which each process has a copy go together, and only the one with ``lead`` adds noise to them. Of a
    parameter that is cut over ranks each process adds noise to its own part, from a stream named by the parameter and
    by where the part begins.

    Args:
        gradients: sums by parameter name.
        lead: whether this process adds the noise of what all have a copy of.
    """
    whole: dict[torch.device, dict[str, Tensor]] = {}
    cut: list[Row] = []
    for name, gradient in gradients.items():
        mine, begins = shards.part(gradient)
        if shards.is_cut(gradient):
            cut.append(Row((name, *begins), {name: mine}, noisy=True))
        else:
            whole.setdefault(mine.device, {})[name] = mine
    return cut + [Row((number,), totals, noisy=lead) for number, totals in enumerate(whole.values())]


def grid_of(clipped: ClippedSum, ranks: Ranks) -> Grid:
    """The grid of a sum, from public numbers: its bound, the sizes of its parameters, and how many ranks round.

    Args:
        clipped: the sum of all clipped gradients of this rank, and its bound.
        ranks: the processes that share the step; None for one alone.
    """
    coordinates = sum(gradient.numel() for gradient in clipped.gradients.values())
    return Grid.of(clipped.l2_bound, coordinates=coordinates, processes=ranks.size)


@torch.no_grad()
def add_noise(
    clipped: ClippedSum,
    *,
    multiplier: float,
    source: Stream,
    ranks: Ranks | None = None,
    drawn: Mapping[Label, Drawn] | None = None,
    gain: float = 1.0,
) -> NoisySum:
    """Round to the grid, add rint of N(0, (multiplier · Δ)²) to every coordinate, and add up over ``ranks``.

    ``clipped`` is used up. Every rank has to call this. ``drawn`` holds integers of ``source`` that were made
    beforehand (``draw``); the others are made now. Where noise is correlated, ``gain`` is how many times
    larger its deviation is in this step.

    Guarantee: the Gaussian mechanism for a sum of L2 sensitivity Δ = ``Grid.sensitivity`` under add-or-remove-one
    (Dwork & Roth 2014, A.1; Abadi et al. 2016, Algorithm 1), followed by rounding. ``source`` must belong to one ledger
    position alone. ``multiplier`` is dimensionless; 0 adds nothing, and the claim of such a run is infinite.

    Args:
        clipped: the sum of all clipped gradients of this rank, and its bound.
        multiplier: the noise multiplier σ, dimensionless.
        source: the stream of randomness of this ledger position.
        ranks: the processes that share the step; None for one alone.
        drawn: integers made beforehand, by row; None for none.
        gain: how many times larger the deviation is in this step, dimensionless.

    Raises:
        PrivacyError: public numbers that do not fit; see ``Grid.check``.
        SensitivityError: the sum is larger than its records can make it, or not finite: a bug of privguard. Nothing was
            released.
    """
    ranks = ranks or Ranks()
    grid = grid_of(clipped, ranks)
    s = grid.deviation(_check.non_negative("multiplier", multiplier))
    grid.check(multiplier, records=ranks.size * MOST_RECORDS)
    integers: dict[str, Tensor] = {}
    squares = 0.0
    for row in rows({name: _total(gradient) for name, gradient in clipped.gradients.items()}, lead=ranks.lead):
        noise = _Noise(s, source.child(*row.label), (drawn or {}).get(row.label)) if row.noisy and s > 0 else None
        rounded, square = (_on_host if row.device.type == "cpu" else _on_device)(row.totals, grid.step, noise)
        integers |= rounded
        squares += square
    _check_norm(squares, clipped, ranks)
    gradients = clipped.gradients
    ranks.add_up(integers[name] for name, gradient in gradients.items() if not shards.is_cut(gradient))
    released = {name: _released(integers[name], gradient, grid.step) for name, gradient in gradients.items()}
    return NoisySum(released, gain * multiplier * grid.sensitivity)


def draw(into: Integers, *, deviation: float, source: Stream) -> Integers:
    """Overwrite ``into`` with rint(deviation · N(0, 1)) of a stream, on the host, in this thread alone; return it.

    Args:
        into: int64 (n,), overwritten.
        deviation: standard deviation, in steps of the grid.
        source: the stream of randomness.
    """
    for start, block in zip(range(0, len(into), _BLOCK), _Noise(deviation, source).blocks(0, len(into)), strict=True):
        into[start : start + len(block)] = block
    return into


def draw_row(into: NDArray[np.float64], *, deviation: float, source: Stream, past: Past | None) -> float:
    """Overwrite ``into`` with integers as ``draw`` makes them, in as many threads as torch uses.

    ``into`` may be a row of the past itself, of which each block is read before it is written.

    Args:
        into: float64 (n,), overwritten.
        deviation: standard deviation, in steps of the grid.
        source: the stream of randomness.
        past: the noise of the steps before, for correlated noise; None for none.

    Returns:
        The largest absolute value.
    """
    count, noise = len(into), _Noise(deviation, source, past=past)
    share = max(1, -(-count // (_BLOCK * torch.get_num_threads()))) * _BLOCK

    def work(first: int) -> float:
        stop, largest = min(count, first + share), 0.0
        for start, block in zip(range(first, stop, _BLOCK), noise.decided(first, stop), strict=True):
            into[start : start + len(block)] = block
            largest = max(largest, float(block.max()), -float(block.min()))
        return largest

    return max(_in_threads(work, range(0, count, share)), default=0.0)


@final
@dataclass(frozen=True)
class _Noise:
    """The integers of one stream with deviation ``s``; ``drawn`` where they have been made already.

    Less what they take back of ``past`` rows: rint(s·z - Σ w·k), where in doubt with further bits of z.
    """

    s: float
    source: Stream
    drawn: Drawn | None = None
    past: Past | None = None

    def blocks(self, first: int, stop: int) -> Iterator[Integers]:
        """Block by block on the host, from integer number ``first``, a multiple of a block, up to ``stop``.

        A block stays until the next one.
        """
        ready = np.empty(_BLOCK, np.int64)
        for block in self.decided(first, stop):
            if block.dtype == np.int64:
                yield block
            else:
                np.copyto(ready[: len(block)], block, casting="unsafe")
                yield ready[: len(block)]

    def decided(self, first: int, stop: int) -> Iterator[NDArray[Any]]:
        """The same in float64, or as they were drawn."""
        if self.drawn is not None:
            yield from (self.drawn[start : min(start + _BLOCK, stop)] for start in range(first, stop, _BLOCK))
            return
        pairs, refine = HostPairs(self.s), self._refine()
        fill = self.source.reader(first // _BLOCK * _BYTES)
        words = np.empty(2 * PAIRS, np.int64)
        for start in range(first, stop, _BLOCK):
            count = min(_BLOCK, stop - start)
            used = words[: count + count % 2]
            fill(used)
            mine = used.reshape(2, -1)
            decided, doubtful = pairs(mine) if self.past is None else pairs.after(self.past, mine, first=start)
            for p in doubtful:
                decided[:, p] = refine(start // 2 + p, *mine[:, p].tolist(), **self._exactly(start, mine.shape[1], p))
            yield decided.reshape(-1)[:count]

    def on_device(self, count: int, device: torch.device) -> Tensor:
        """The integers made on an accelerator, int64 (count,), from ChaCha20 under the stream's key.

        The host waits once, for the numbers of the pairs in doubt, and makes their words again by itself.
        """
        if self.drawn is not None:
            return torch.from_numpy(self.drawn).to(device, torch.int64)
        pairs, edge = DevicePairs(self.s), count - count % _BLOCK
        made, doubts = list[Tensor](), list[Tensor]()
        starts = list(range(0, edge, _AT_ONCE * _BLOCK))
        for start, stop in [
            *zip(starts, [*starts[1:], edge], strict=False),
            *([(edge, count)] if edge < count else []),
        ]:
            size = stop - start + count % 2 * (stop == count)
            words = self._words(start, size, device).view(-1, 2, min(PAIRS, size // 2))
            decided, doubtful = pairs(words)
            made.append(decided.long().flatten()[: stop - start])
            doubts.append(doubtful.flatten())
        if not made:
            return torch.empty(0, dtype=torch.int64, device=device)
        integers, refine = torch.cat(made), self._refine()
        for pair in torch.cat(doubts).nonzero().flatten().tolist():
            block, inside = divmod(pair, PAIRS)
            first = block * _BLOCK + inside
            second = first + min(PAIRS, -(-(count - block * _BLOCK) // 2))  # where its angle, and its sine, are
            angle, radius = (int(self._words(at - at % 8, 8, torch.device("cpu"))[at % 8]) for at in (second, first))
            for at, value in zip((first, second), refine(pair, radius, angle), strict=True):
                integers[at : at + 1] = value  # nothing where an odd row ends before its last sine
        return integers

    def _words(self, start: int, count: int, device: torch.device) -> Tensor:
        """``count`` words from number ``start`` on, a multiple of 8."""
        blocks = -(-count * 8 // chacha20.BLOCK)
        stream = chacha20.keystream(
            self.source.secret(), first=start * 8 // chacha20.BLOCK, blocks=blocks, device=device
        )
        return stream.flatten().view(torch.int64)[:count]

    def _refine(self) -> Any:
        """A function of a pair's number in the row and its two words; its further bits are a stream of that number."""
        decide, source = Refiner(self.s), self.source.child("further bits")
        return lambda pair, radius, angle, **past: decide(radius, angle, _further(source.child(pair)), **past)

    def _exactly(self, start: int, size: int, pair: int) -> dict[str, Any]:
        """For the refiner: what a pair of the block from ``start`` on takes back of the past, as fractions."""
        if self.past is None:
            return {}
        return {"past": (self.past.exactly(start + pair), self.past.exactly(start + size + pair))}


def _further(source: Stream) -> Iterator[tuple[int, int]]:
    fill, words = source.reader(), np.empty(4, np.uint64)
    while True:
        fill(words)
        yield int.from_bytes(words[:2].tobytes(), "little"), int.from_bytes(words[2:].tobytes(), "little")


def _total(gradient: Tensor) -> Tensor:
    """A sum in float64 and in its order in memory; a clipper's own totals are."""
    return gradient if shards.is_cut(gradient) else gradient.double().contiguous()


def _on_host(totals: dict[str, Tensor], step: float, noise: _Noise | None) -> tuple[dict[str, Tensor], float]:
    """Totals rounded to multiples of ``step`` plus noise, in their place, and the sum of their squares before that.

    As many threads as torch uses make consecutive blocks each, and what they need lies in the cache.
    """
    flat = [total.view(-1).numpy() for total in totals.values()]
    ends = list(itertools.accumulate(map(len, flat)))
    count = ends[-1]
    share = max(1, -(-count // (_BLOCK * torch.get_num_threads()))) * _BLOCK

    def work(first: int) -> float:
        stop, squares, scratch = min(count, first + share), 0.0, np.empty(_BLOCK)
        blocks = itertools.repeat(None) if noise is None else noise.blocks(first, stop)
        for start, block in zip(range(first, stop, _BLOCK), blocks, strict=False):
            for number, part, inside in _pieces(ends, start, min(_BLOCK, stop - start)):
                total, rounded = flat[number][part], scratch[inside]
                squares += float(np.dot(total, total))
                np.multiply(total, 1 / step, out=rounded)  # exact: a power of two
                np.rint(rounded, out=rounded)
                integers = total.view(np.int64)
                with np.errstate(invalid="ignore"):  # what is not finite is refused before it is used
                    np.copyto(integers, rounded, casting="unsafe")
                if block is not None:
                    integers += block[inside]
        return squares

    squares = sum(_in_threads(work, range(0, count, share)))
    return {name: total.view(torch.int64) for name, total in totals.items()}, squares


def _in_threads(work: Callable[[int], float], firsts: range) -> list[float]:
    """What the work gives for each first number; in one thread each, if there are several."""
    if len(firsts) > 1:
        with ThreadPoolExecutor(len(firsts)) as pool:
            return list(pool.map(work, firsts))
    return list(map(work, firsts))


def _pieces(ends: Sequence[int], start: int, count: int) -> Iterator[tuple[int, slice, slice]]:
    """Where ``count`` numbers of a row from ``start`` on lie: number of the tensor, part of it, part of the block."""
    done, number = 0, bisect_right(ends, start)
    while done < count:
        begin = start + done - (ends[number - 1] if number else 0)
        room = min(count - done, ends[number] - start - done)
        yield number, slice(begin, begin + room), slice(done, done + room)
        done, number = done + room, number + 1


def _on_device(totals: dict[str, Tensor], step: float, noise: _Noise | None) -> tuple[dict[str, Tensor], float]:
    """See ``_on_host``; on an accelerator."""
    flat = torch.cat([total.flatten() for total in totals.values()])
    squares = float(torch.dot(flat, flat))
    integers = flat.mul_(1 / step).round_().long()
    if noise is not None:
        integers += noise.on_device(len(integers), flat.device)
    parts = integers.split([total.numel() for total in totals.values()])
    return {name: part.view(total.shape) for (name, total), part in zip(totals.items(), parts, strict=True)}, squares


def _check_norm(squares: float, clipped: ClippedSum, ranks: Ranks) -> None:
    """An invariant: n records of norm at most C have a sum of norm at most n·C. NaN and infinity fail it too."""
    if not squares <= (ranks.size * clipped.records * clipped.l2_bound) ** 2:
        raise SensitivityError(
            "clipped sum: larger than its records can make it, or not finite; nothing was released. This is a bug of "
            "privguard: please report the model's layers and its dtype"
        )


def _released(integers: Tensor, like: Tensor, step: float) -> Tensor:
    """The integers in the gradient's unit, float32; post-processing from here on."""
    if not shards.is_cut(like):
        return integers.float().mul_(step)
    released = torch.empty_like(like, dtype=torch.float32)
    shards.part(released)[0].copy_(integers.float().mul_(step))
    return released
