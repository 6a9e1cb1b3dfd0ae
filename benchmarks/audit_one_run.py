# SPDX-License-Identifier: Apache-2.0
"""What one run shows from below, by how the guesses are placed, and how often each bound is wrong.

python -m benchmarks.audit_one_run            # both sections, some minutes
python -m benchmarks.audit_one_run power      # one of them
"""

import argparse
from collections.abc import Callable

import numpy as np

from benchmarks import audit as kept
from privguard.audit.one_run import bound, rank_bound
from privguard.audit.one_run.canary import count_right
from privguard.audit.one_run.design import Bound, Design

Rows = list[dict[str, object]]
Drawn = tuple[np.ndarray, np.ndarray]  # scores and coins
Drawing = Callable[[np.random.Generator], Drawn]
CANARIES, CLAIM, DELTA = 1_000, 8.0, 1e-5
GUESSES = ((75, 0), (50, 25), (38, 37), (100, 0), (50, 50))
LEVEL = 0.05


def one_run_power(runs: int = 200) -> Rows:
    """ε shown where every fifth canary that is in is memorised outright, a tenth of all; and a tenth too little noise
    refuted, at a claim of 8. Bounds are at 95 %.
    """
    rows: Rows = []
    for inside, outside in GUESSES:
        plan = designed(Bound.STEINKE, inside, outside)
        shown = {
            which: np.mean([plan.epsilon(which, *memorised(np.random.default_rng(seed)))[0] for seed in range(runs)])
            for which in (Bound.STEINKE, Bound.GAUSSIAN_ONE_RUN)
        }
        best = float(shown[Bound.GAUSSIAN_ONE_RUN])
        wanted = {"ok": best >= 4.5} if (inside, outside) == (75, 0) else {}
        rows.append(
            {
                "setting": "a tenth memorised",
                "guesses in, out": f"{inside}, {outside}",
                "steinke": float(shown[Bound.STEINKE]),
                "gaussian-one-run": best,
                **wanted,
            }
        )
    mu = bound.gaussian_mu(CLAIM, delta=DELTA)
    for which in (Bound.GAUSSIAN_THRESHOLD, Bound.GAUSSIAN_RANK):
        rate = refuted(which, gaussian(mu / 0.9), runs)
        wanted = {"ok": rate >= 0.6} if which is Bound.GAUSSIAN_RANK else {}
        rows.append({"setting": f"noise × 0.9, {which.value}", "refuted": rate, **wanted})
    return rows


def one_run_validity(runs: int = 10_000) -> Rows:
    """How often a run that spends its claim exactly, or less, is refuted; three standard errors above 5 % at most."""
    limit = LEVEL + 3 * (LEVEL * (1 - LEVEL) / runs) ** 0.5
    cases: list[tuple[str, Bound, Callable[[float], Drawing], float, tuple[int, int]]] = []
    for sides in ((75, 0), (0, 75), (50, 25), (500, 100)):
        cases.append(("randomised response", Bound.STEINKE, response, 2.0, sides))
        cases += [("Gaussian", Bound.GAUSSIAN_ONE_RUN, gaussian_at, claim, sides) for claim in (0.1, 3.0)]
    for claim in (0.1, 2.0, CLAIM):
        cases.append(("Gaussian", Bound.GAUSSIAN_RANK, halves, claim, (100, 100)))
    for name, draw in (("rounded to whole numbers", rounded), ("a third of the scores lost", thinned)):
        cases.append((f"Gaussian, {name}", Bound.GAUSSIAN_RANK, draw, CLAIM, (100, 100)))
    rows: Rows = []
    for name, which, draw, claim, sides in cases:
        rate = refuted(which, draw(claim), runs, sides=sides, claim=claim)
        row = {"run": name, "bound": which.value, "claim": claim, "guesses in, out": f"{sides[0]}, {sides[1]}"}
        rows.append({**row, "runs": runs, "refuted": rate, "ok": rate <= limit})
    return rows


def refuted(
    which: Bound, draw: Drawing, runs: int, *, sides: tuple[int, int] = (100, 100), claim: float = CLAIM
) -> float:
    """The share of runs that refute the claim."""
    random, plan = np.random.default_rng(20_262), designed(which, *sides, claim=claim)
    refutes = refuting(which, plan)
    return sum(refutes(*draw(random)) for _ in range(runs)) / runs


def refuting(which: Bound, plan: Design) -> Callable[[np.ndarray, np.ndarray], bool]:
    """Whether scores and coins refute the claim: by the counts that do, which the bound's root search would repeat."""
    mu, needed = bound.gaussian_mu(plan.claimed, delta=DELTA), plan.needed(which)

    def by_rank(scores: np.ndarray, included: np.ndarray) -> bool:
        counts = rank_bound.count_wins(scores, included)
        least = rank_bound.wins_needed(mu, members=counts["members"], non_members=counts["non_members"])
        return least is not None and counts["wins"] >= least

    def by_guesses(scores: np.ndarray, included: np.ndarray) -> bool:
        right = count_right(scores, included, guesses_in=plan.guesses_in, guesses_out=plan.guesses_out)
        return needed is not None and right >= needed

    if which is Bound.GAUSSIAN_THRESHOLD:
        return lambda scores, included: plan.epsilon(which, scores, included)[0] > plan.claimed
    return by_rank if which is Bound.GAUSSIAN_RANK else by_guesses


def designed(which: Bound, inside: int, outside: int, *, claim: float = CLAIM) -> Design:
    """A design of this bound against the claim; the threshold lies midway between what is in and what is out."""
    midway = 0.0 if which is Bound.GAUSSIAN_THRESHOLD else None
    return Design(
        canaries=CANARIES,
        guesses_in=inside,
        guesses_out=outside,
        claimed=claim,
        delta=DELTA,
        bounds=(which,),
        threshold=midway,
    )


def memorised(random: np.random.Generator) -> Drawn:
    """Every fifth canary that is in stands far above all others; nothing tells of the rest."""
    included = random.random(CANARIES) < 0.5
    return random.standard_normal(CANARIES) + 8 * (included & (random.random(CANARIES) < 0.2)), included


def response(epsilon: float) -> Drawing:
    """The boundary of Steinke's theorem: each guess right with probability e^ε / (1 + e^ε)."""

    def draw(random: np.random.Generator) -> Drawn:
        included = random.random(CANARIES) < 0.5
        truth = random.random(CANARIES) < 1 / (1 + np.exp(-epsilon))
        return np.where(included == truth, 1.0, -1.0) + 0.1 * random.random(CANARIES), included

    return draw


def fair(random: np.random.Generator) -> np.ndarray:
    """A coin for each canary."""
    return random.random(CANARIES) < 0.5


def gaussian(mu: float, coins: Callable[[np.random.Generator], np.ndarray] = fair) -> Drawing:
    """Scores of the Gaussian mechanism of this μ."""

    def draw(random: np.random.Generator) -> Drawn:
        included = coins(random)
        return random.standard_normal(CANARIES) + mu * (included - 0.5), included

    return draw


def halved(random: np.random.Generator) -> np.ndarray:
    """Half of the coins in: the rank bound holds for each number that is in, and each needs draws of its own."""
    return random.permutation(CANARIES) < CANARIES // 2


def gaussian_at(epsilon: float) -> Drawing:
    """Scores of the Gaussian mechanism that spends ε exactly."""
    return gaussian(bound.gaussian_mu(epsilon, delta=DELTA))


def halves(epsilon: float) -> Drawing:
    """The same, with half of the canaries in."""
    return gaussian(bound.gaussian_mu(epsilon, delta=DELTA), halved)


def rounded(epsilon: float) -> Drawing:
    """The same, with many ties."""

    def draw(random: np.random.Generator) -> Drawn:
        scores, included = halves(epsilon)(random)
        return np.round(scores), included

    return draw


def thinned(epsilon: float) -> Drawing:
    """The same, with a third of the scores replaced by noise: no more revealing, and of another shape."""

    def draw(random: np.random.Generator) -> Drawn:
        scores, included = halves(epsilon)(random)
        return np.where(random.random(CANARIES) < 1 / 3, 3 * random.standard_normal(CANARIES), scores), included

    return draw


SECTIONS = {each.__name__: each for each in (one_run_power, one_run_validity)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", help="power or validity; both where none is named")
    for name in parser.parse_args().sections or [each.removeprefix("one_run_") for each in SECTIONS]:
        kept.SECTIONS[f"one_run_{name}"] = SECTIONS[f"one_run_{name}"]
        kept.show(f"one_run_{name}", SECTIONS[f"one_run_{name}"]())


if __name__ == "__main__":
    main()
