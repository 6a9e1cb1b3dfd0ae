# SPDX-License-Identifier: Apache-2.0
"""How a conformance suite says that a promise does not hold."""

from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from scipy import stats

FALSE_ALARMS = 1e-6  # chance that a statistical check fails where everything is right


def promise(holds: object, sentence: str) -> None:
    """Raise where a promise does not hold.

    Args:
        holds: whether it does.
        sentence: the promise, with the figures that speak against it.

    Raises:
        AssertionError: it does not hold.
    """
    if not holds:
        raise AssertionError(sentence)


@contextmanager
def refused(kind: type[Exception], sentence: str) -> Generator[None]:
    """Ask that the block raises one kind of error.

    Args:
        kind: the error wanted.
        sentence: what has to be refused, for the message.

    Raises:
        AssertionError: nothing was raised.
    """
    try:
        yield
    except kind:
        return
    raise AssertionError(f"{sentence}: expected {kind.__name__}, and nothing was raised")


def law_holds(log10_p: NDArray[np.float64], log10_e: NDArray[np.float64], what: str) -> None:
    """Ask that p-values and e-values of independent experiments without a mark keep their promise.

    Markov's inequality and the definition of a p-value: each level α is passed with chance at most α, which exact
    binomial tails test at five levels for both.

    Args:
        log10_p: log10 of p-values (n,).
        log10_e: log10 of e-values (n,).
        what: what they are of, for the message.

    Raises:
        AssertionError: a level is passed too often; the chance of that by accident is at most 10⁻⁶.
    """
    levels = (0.5, 0.2, 0.05, 0.01, 0.002)
    for name, evidence in (("p", -log10_p), ("e", log10_e)):
        for level in levels:
            passed = int((evidence >= -np.log10(level) - 1e-9).sum())
            chance = float(stats.binom.sf(passed - 1, len(evidence), level))
            promise(
                chance > FALSE_ALARMS / (2 * len(levels)),
                f"{what}: {name}-values pass the level {level} in {passed} of {len(evidence)} cases without a mark",
            )
