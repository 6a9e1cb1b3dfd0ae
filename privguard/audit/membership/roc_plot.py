# SPDX-License-Identifier: Apache-2.0
"""ROC curves as SVG: log axes, the 95 % band of the first curve, and the blind curve beside them."""

import io
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from privguard.audit.membership import roc


def roc_svg(
    statistics: Mapping[str, NDArray[np.float64]], members: ArrayLike, *, blind: NDArray[np.float64] | None = None
) -> str:
    """The curves of all attacks on one set of records, as SVG text.

    Axes end at one record: nothing is drawn below 1 / non-members, where nothing was measured.
    """
    mask = np.asarray(members, bool)
    floor = 1 / max(2, int((~mask).sum()))
    figure = Figure(figsize=(5.2, 5.0), layout="constrained")
    axes = figure.add_subplot()

    def draw(name: str, values: NDArray[np.float64], colour: str) -> roc.Roc:
        curve, label = roc.curve(values, mask), f"{name} (AUC {roc.auc(values, mask).value:.3f})"
        axes.step(curve.false, curve.true, where="post", label=label, color=colour)
        return curve

    for number, (name, values) in enumerate(statistics.items()):
        curve = draw(name, values, f"C{number}")
        if number == 0:
            axes.fill_between(curve.false, curve.low, curve.high, step="post", alpha=0.2, color="C0", linewidth=0)
    if blind is not None:
        draw("blind, no model", blind, "grey")
    axes.plot([floor, 1], [floor, 1], linestyle=":", color="black", linewidth=0.8, label="chance")
    axes.set(
        xscale="log",
        yscale="log",
        xlim=(floor, 1),
        ylim=(floor, 1),
        xlabel="false-positive rate",
        ylabel="true-positive rate",
    )
    axes.legend(fontsize=8, loc="lower right")
    return svg_text(figure)


def svg_text(figure: Figure) -> str:
    """A figure as SVG, without the date of its making, so that equal figures give equal text."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
