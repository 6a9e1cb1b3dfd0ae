# SPDX-License-Identifier: Apache-2.0
"""Plots as SVG that takes its colours from the page around it, so that light and dark both read well."""

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from privguard.report.guarantee import percent, upward

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _LINE, _SOFT = "#010203", "#040506", "#070809"  # stand-ins that are exchanged for the page's own colours
_THOUSANDTH = 10  # place of the rate 1 in 1,000 among the points of statement.trade_off: ten a decade, from 1 in 10,000
_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "privguard", "font.family": "sans-serif", "font.size": 11}


def epsilon_curve(points: Sequence[tuple[int, float]]) -> str:
    """ε against steps, as an ``<svg>`` element with a description for screen readers."""
    from matplotlib import rc_context

    steps, epsilons = zip((0, 0.0), *points, strict=True)
    with rc_context(_STYLE):
        figure, axes = _blank()
        axes.plot(steps, epsilons, color=_LINE, linewidth=2)
        axes.plot(steps[-1:], epsilons[-1:], "o", color=_LINE)
        axes.set(xlabel="steps", ylabel="ε spent", xlim=(0, max(1, steps[-1])), ylim=(0, epsilons[-1] * 1.08 or 1))
        return _svg(figure, "curve", f"ε grows from 0 to {upward(epsilons[-1])} over {steps[-1]:,} steps")


def trade_off(points: Sequence[tuple[float, float]]) -> str:
    """Highest true-positive rate against false-positive rate, both logarithmic, with the line of blind guessing."""
    from matplotlib import rc_context

    rates, highest = zip(*points, strict=True)
    with rc_context(_STYLE):
        figure, axes = _blank()
        axes.loglog(rates, rates, color=_SOFT, linewidth=1.5, linestyle="--")
        axes.loglog(rates, highest, color=_LINE, linewidth=2)
        axes.annotate(
            "any attack, at most",
            (rates[_THOUSANDTH + 2], highest[_THOUSANDTH + 2]),
            (-8, 6),
            textcoords="offset points",
            ha="right",
            color=_LINE,
        )
        below = rates[_THOUSANDTH + 4]
        axes.annotate("guessing", (below, below), (8, -8), textcoords="offset points", color=_SOFT)
        axes.set(xlabel="falsely accused", ylabel="members found", xlim=(rates[0], 1), ylim=(rates[0], 1))
        label = (
            f"No attack finds more than {percent(highest[_THOUSANDTH])} of the members while it falsely accuses "
            f"{percent(rates[_THOUSANDTH])} of the others"
        )
        return _svg(figure, "trade-off", label)


def _blank() -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.grid(visible=True, color=_INK, alpha=0.12)
    axes.tick_params(which="both", colors=_INK)
    for part in (axes.xaxis.label, axes.yaxis.label):
        part.set_color(_INK)
    for spine in axes.spines.values():
        spine.set_color(_INK)
    return figure, axes


def _svg(figure: "Figure", name: str, label: str) -> str:
    """The figure as an element of a page; ``name`` begins its ids, so that two figures on one page do not meet."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    text = io.StringIO()
    FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    body = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    body = re.sub(r'(\bid="|"#|url\(#)', rf"\g<1>{name}-", body)
    for stand_in, colour in ((_INK, "--ink"), (_LINE, "--accent"), (_SOFT, "--soft")):
        body = body.replace(stand_in, f"var({colour})")
    return body.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
