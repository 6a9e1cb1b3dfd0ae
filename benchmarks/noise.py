# SPDX-License-Identifier: Apache-2.0
"""The exact noise: what it costs, whether it is right, what an attacker gets, how far one record moves a sum.

``python -m benchmarks.noise [cost|right|attack|sums] [--coordinates D …] [--trials N]``

*cost*: nanoseconds per coordinate on one thread, cipher, rounding, integers and the way back to float32 included, by
the side of float32 noise on the same sums; process CPU time, medians of interleaved rounds.

*right*: 10⁶ coordinates of ordinary words and 10⁴ pairs beside a rounding boundary against 200-bit arithmetic on the
same words; one thread against eight; NumPy against torch.

*attack*: one step at ε = 0.16 from weights that were zero, with and without one record; the attacker asks whether noise
alone can have made every pair of coordinates (Mironov 2012), by inverting Box–Muller and looking at the neighbours.

*sums*: 40,000 records that agree, and without one of them, through the book-keeping clipper at several batch sizes.
"""

import argparse
import math
import sys
import time
from collections.abc import Iterator

import mpmath
import numpy as np
import torch
from torch import nn

from privguard._random import Stream
from privguard.accounting.accountant import spent
from privguard.accounting.calibrate import dp_sgd
from privguard.training.attach import attach
from privguard.training.clip import ROUNDING, ClippedSum, Clipper
from privguard.training.noise.exact import NoisySum, add_noise, grid_of
from privguard.training.noise.float32 import add_float32_noise
from privguard.training.noise.gaussian import PAIRS, DevicePairs, HostPairs, Refiner, error_bound
from privguard.training.ranks import Ranks

SIGMA, WIDTH = 20.0, 64  # of the attacked step
WAYS = {"exact": add_noise, "float32": add_float32_noise}


def cost(coordinates: int, rounds: int) -> None:
    source = Stream.from_entropy("noise")
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds + 1):
        for way, add in WAYS.items():
            clipped = ClippedSum({"w": torch.zeros(coordinates, dtype=torch.float64)}, 1.0)
            clipped.gradients["w"] += 1e-3  # its pages are there, as a clipper's are
            start = time.process_time()
            add(clipped, multiplier=1.0, source=source.child(number))
            taken[way].append((time.process_time() - start) / coordinates * 1e9)
    exact, quick = (float(np.median(taken[way][1:])) for way in WAYS)
    print(f"d={coordinates:.0e}: exact {exact:.1f} ns per coordinate, float32 {quick:.1f}, ratio {exact / quick:.2f}")


def truths(words: np.ndarray, s: float) -> Iterator[tuple[int, int]]:
    """rint(s·z) at 200 bits, with u and t in the middle of what the words leave open."""
    with mpmath.workprec(200):
        for radius, angle in words.T.tolist():
            r = s * mpmath.sqrt(-2 * mpmath.log(mpmath.mpf(2 * (radius & (2**63 - 1)) + 1) / 2**64))
            cosine, sine = mpmath.cos_sin(mpmath.pi * mpmath.mpf(2 * angle + 1) / 2**64)
            yield int(mpmath.nint(r * cosine)), int(mpmath.nint(r * sine))


def right(pairs: int, s: float = 2.0**28) -> None:
    rng, middle = np.random.default_rng(0), (1 << 127, 1 << 127)
    host, device, refine = HostPairs(s), DevicePairs(s), Refiner(s)
    differ = refined = libraries = 0
    for _ in range(0, pairs, PAIRS):
        words = rng.integers(-(2**63), 2**63, (2, PAIRS))
        decided, doubtful = host(words.copy())
        other, doubts = device(torch.from_numpy(words)[None])
        sure = np.ones(PAIRS, bool)
        sure[doubtful] = sure[doubts[0].numpy()] = False
        libraries += int((decided[:, sure] != other[0].numpy()[:, sure]).sum())
        for p in doubtful:
            decided[:, p] = refine(int(words[0, p]), int(words[1, p]), iter([middle] * 9))
        wanted = np.array(list(truths(words, s))).T
        differ += int((decided.astype(np.int64) != wanted).sum())
        refined += len(doubtful)
    print(f"{pairs * 2:,} ordinary coordinates: {differ} differ from 200 bits, {refined} pairs refined; ", end="")
    print(f"NumPy and torch differ in {libraries}")


def beside_a_boundary(pairs: int, s: float = 2.0**28) -> None:
    rng, middle = np.random.default_rng(1), (1 << 127, 1 << 127)
    words = rng.integers(-(2**63), 2**63, (2, pairs))
    with mpmath.workprec(200):
        for p, radius in enumerate(words[0].tolist()):
            u = mpmath.mpf(2 * (radius & (2**63 - 1)) + 1) / 2**64
            r = mpmath.sqrt(-2 * mpmath.log(u))
            bound = float(error_bound(np.array([float(u)]), np.array([float(r)]), s)[0])
            edge = int(rng.uniform(-0.7, 0.7) * float(r) * s) + mpmath.mpf(0.5) + rng.uniform(-1, 1) * 0.9 * bound
            words[1, p] = int(mpmath.acos(edge / (s * r)) / mpmath.pi * 2**63)
    refine, wanted = Refiner(s), list(truths(words, s))
    trusted = wrong = missed = 0
    for start in range(0, pairs, PAIRS):
        part = words[:, start : start + PAIRS]
        decided, doubtful = HostPairs(s)(part.copy())
        missed += part.shape[1] - len(doubtful)
        for p in range(part.shape[1]):
            true = wanted[start + p]
            trusted += tuple(decided[:, p].astype(int)) != true
            wrong += refine(int(part[0, p]), int(part[1, p]), iter([middle] * 9)) != true
    print(f"{pairs:,} pairs beside a boundary: {missed} not in doubt, {wrong} wrong after refining, ", end="")
    print(f"{trusted} had float64 been trusted")


def threads(coordinates: int) -> None:
    made = []
    before = torch.get_num_threads()
    for count in (1, 8):
        torch.set_num_threads(count)
        clipped = ClippedSum({"w": torch.zeros(coordinates, dtype=torch.float64)}, 1.0)
        made.append(add_noise(clipped, multiplier=1.0, source=Stream.from_insecure_seed(1, "n")).gradients["w"])
    torch.set_num_threads(before)
    print(f"{coordinates:,} coordinates by 1 and by 8 threads: {int((made[0] != made[1]).sum())} differ")


def released(way: str, *, taking_part: bool) -> tuple[NoisySum, float]:
    """One step's noisy sum, and the grid's step; the record is unknown to the attacker."""
    model = nn.Linear(WIDTH, 1, bias=False)
    nn.init.zeros_(model.weight)
    clipper, x = attach(model, max_grad_norm=1.0), torch.zeros(10, WIDTH)
    if taking_part:
        x[3] = torch.randn(WIDTH) * 3
    clipper.begin(torch.ones(10, dtype=torch.bool))
    clipper.backward(model(x)[:, 0])
    clipped = clipper.take()
    clipper.close()
    step = grid_of(clipped, Ranks()).step
    return WAYS[way](clipped, multiplier=SIGMA, source=Stream.from_entropy("noise")), step


def noise_alone(noisy: NoisySum, step: float) -> bool:
    """Whether noise alone can have made every pair: words near the inverse of Box–Muller give these very floats."""
    first, second = noisy.gradients["weight"][0].double().numpy().reshape(2, -1)
    s = noisy.deviation / step
    refine = Refiner(s)
    return all(_reachable(a, b, step, s, refine) for a, b in zip(first, second, strict=True))


def _reachable(a: float, b: float, step: float, s: float, refine: Refiner) -> bool:
    for da in (0, 1, -1):
        for db in (0, 1, -1):
            x, y = round(a / step) + da, round(b / step) + db
            with mpmath.workprec(200):
                u = mpmath.exp(-(mpmath.mpf(x) ** 2 + mpmath.mpf(y) ** 2) / (2 * mpmath.mpf(s) ** 2))
                words = int(u * 2**63), int(mpmath.atan2(y, x) / mpmath.pi * 2**63)
            i, j = refine(words[0], words[1], iter([(1 << 127, 1 << 127)] * 9))
            if np.float32(i * step) == np.float32(a) and np.float32(j * step) == np.float32(b):
                return True
    return False


def float32_alone(noisy: NoisySum) -> bool:
    """The same for the float32 sampler: radii and angles beside the inverse, a few units in the last place around."""
    first, second = noisy.gradients["weight"][0].numpy().reshape(2, -1)
    scale, f32 = -2.0 * noisy.deviation * noisy.deviation, np.float32
    u = np.exp((first.astype(float) ** 2 + second.astype(float) ** 2) / scale).astype(f32)
    turn = (np.arctan2(second.astype(float), first.astype(float)) / (math.pi * 2.0**-31)).astype(f32)
    hit = np.zeros(len(first), bool)
    for m in _units(turn, 2):
        angle = m.copy()
        angle *= math.pi * 2.0**-31
        cosine, sine = np.cos(angle), np.sin(angle)
        for near in _units(u, 4):
            r = near.copy()
            np.log(r, out=r)
            r *= scale
            np.sqrt(r, out=r)
            hit |= (r * cosine == first) & (r * sine == second)
    return bool(hit.all())


def _units(x: np.ndarray, most: int) -> list[np.ndarray]:
    return [(x.view(np.int32) + i).view(np.float32) for i in range(-most, most + 1)]


def attack(way: str, trials: int) -> None:
    epsilon = spent([(dp_sgd(sample_rate=1.0, noise_multiplier=SIGMA), 1)], delta=1e-5).epsilon
    most = (math.exp(epsilon) + 1e-5) / (1 + math.exp(epsilon))
    correct = 0
    for number in range(trials):
        taking_part = bool(number % 2)
        noisy, step = released(way, taking_part=taking_part)
        alone = noise_alone(noisy, step) if way == "exact" else float32_alone(noisy)
        correct += alone != taking_part
    print(
        f"{way}: an attacker is right in {correct / trials:.3f} of {trials} trials; ε={epsilon:.3f} allows {most:.3f}"
    )


def sums() -> None:
    """Largest movement of the sum over five removed records, in clipping norms."""
    torch.manual_seed(0)
    for width, rows in ((1, 64), (1, 4096), (16, 64), (16, 4096), (256, 64)):
        model = nn.Linear(width, 1, bias=False)
        clipper, count = attach(model, max_grad_norm=1.0), 40_000
        x = 5 * (torch.randn(width) * 0.01 + 1 + torch.randn(count, width) * 0.05)

        whole = _total(clipper, model, x, rows)
        worst = max(
            float((whole - _total(clipper, model, torch.cat([x[:k], x[k + 1 :]]), rows)).norm())
            for k in (0, 1, 7, count // 2, count - 1)
        )
        print(f"width {width}, batches of {rows}: one record moves the sum by {worst:.9f} C; priced {1 + ROUNDING} C")
        clipper.close()


def _total(clipper: Clipper, model: nn.Module, x: torch.Tensor, rows: int) -> torch.Tensor:
    for part in x.split(rows):
        clipper.begin(torch.ones(len(part), dtype=torch.bool))
        clipper.backward(model(part)[:, 0])
    return clipper.take().gradients["weight"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=["cost", "right", "attack", "sums", []], help="default: all")
    parser.add_argument("--coordinates", type=float, nargs="+", default=[1e6, 1e7])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=500_000)
    options = parser.parse_args()
    parts = options.parts or ["cost", "right", "attack", "sums"]
    torch.set_num_threads(1)
    if "cost" in parts:
        for coordinates in options.coordinates:
            cost(int(coordinates), options.rounds)
    if "right" in parts:
        threads(10**6)
        beside_a_boundary(10_000)
        right(options.pairs)
    if "attack" in parts:
        for way in WAYS:
            attack(way, options.trials)
    if "sums" in parts:
        sums()
    sys.stdout.flush()


if __name__ == "__main__":
    main()
