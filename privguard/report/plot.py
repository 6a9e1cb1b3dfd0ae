"""Plots as SVG that takes its colours from the page around it, so that light and dark both read well."""

import io
import re
from collections.abc import Sequence

_INK, _LINE = "#010203", "#040506"  # stand-ins that are exchanged for the page's own colours


def epsilon_curve(points: Sequence[tuple[int, float]]) -> str:
    """ε against steps, as an ``<svg>`` element with a description for screen readers."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    steps, epsilons = zip((0, 0.0), *points, strict=True)
    axes.plot(steps, epsilons, color=_LINE, linewidth=2)
    axes.plot(steps[-1:], epsilons[-1:], "o", color=_LINE)
    axes.set(xlabel="steps", ylabel="ε spent", xlim=(0, steps[-1]), ylim=(0, epsilons[-1] * 1.08))
    axes.grid(visible=True, color=_INK, alpha=0.12)
    axes.tick_params(colors=_INK)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    for spine in axes.spines.values():
        spine.set_color(_INK)
    text = io.StringIO()
    FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None, "Creator": None})
    return _embed(text.getvalue(), f"ε grows from 0 to {epsilons[-1]:.3f} over {steps[-1]:,} steps")


def _embed(svg: str, label: str) -> str:
    body = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    body = body.replace(_INK, "var(--ink)").replace(_LINE, "var(--accent)")
    return body.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
