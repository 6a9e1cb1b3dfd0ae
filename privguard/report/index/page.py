# SPDX-License-Identifier: Apache-2.0
"""The index as one page that works offline, and as CSV; its one script is named by digest in the page's own policy."""

import csv
import io
import os
from base64 import b64encode
from dataclasses import fields
from datetime import UTC, datetime
from hashlib import sha256
from importlib.resources import files
from pathlib import Path

from privguard.report.guarantee import upward
from privguard.report.index.entry import Entry
from privguard.report.index.overview import Balance, Overview
from privguard.report.render import page
from privguard.runs.folder import REPORT_PAGE

COLUMNS = (
    "Run",
    "Started",
    "Data set",
    "Team",
    "ε",
    "δ",
    "Neighbours, unit",
    "ε from",
    "Steps",
    "Audits",
    "Signature",
    "Checkpoints",
)
_NUMBERS = ("ε", "δ", "Steps")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def to_html(overview: Overview, *, beside: Path | None = None) -> str:
    """The index as a page; runs link to their reports where these lie under the folder that the page is written to.

    Args:
        overview: what was read.
        beside: the folder of the page; without it nothing is linked.
    """
    script = files("privguard.report").joinpath("templates/index.js").read_text("utf-8")
    digest = b64encode(sha256(script.encode()).digest()).decode("ascii")
    return page(
        "index.html.j2",
        overview=overview,
        alarms=[entry for entry in overview.entries if entry.alarm],
        courses=[_course(balance) for balance in overview.balances],
        data_sets=sorted({entry.data_set for entry in overview.entries} - {""}),
        teams=sorted({entry.team for entry in overview.entries} - {""}),
        columns=COLUMNS,
        numbers=_NUMBERS,
        links={} if beside is None else _links(overview, beside),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        script=script,
        script_hash=f"sha256-{digest}",
    )


def to_csv(overview: Overview) -> str:
    """Every run as a line, with the names of ``Entry``'s fields on top; nothing in it runs as a formula.

    Args:
        overview: all runs.
    """
    text = io.StringIO()
    lines = csv.writer(text)
    names = [each.name for each in fields(Entry)]
    lines.writerow(names)
    for entry in overview.entries:
        lines.writerow([_cell(getattr(entry, name)) for name in names])
    return text.getvalue()


def _cell(value: object) -> object:
    text = "; ".join(value) if isinstance(value, tuple) else value
    return f"'{text}" if isinstance(text, str) and text.startswith(_FORMULA) else text


def _links(overview: Overview, beside: Path) -> dict[str, str]:
    """Place → the report's page, from the index; none outside of its folder, where a link breaks when that is moved."""
    links: dict[str, str] = {}
    for entry in overview.entries:
        report = Path(entry.place, REPORT_PAGE)
        path = os.path.relpath(report, beside)
        if entry.place and report.is_file() and not path.startswith(".."):
            links[entry.place] = Path(path).as_posix()
    return links


def _course(balance: Balance) -> str:
    """ε over time as steps in a small SVG, with the limit as a dashed line."""
    if len(balance.course) < 2:  # noqa: PLR2004 — a line needs two
        return "–"
    seconds = [datetime.fromisoformat(time).timestamp() for time, _ in balance.course]
    span = (seconds[-1] - seconds[0]) or 1.0
    top = 1.08 * max(balance.limit or 0.0, *(epsilon for _, epsilon in balance.course))
    xs = [100 * (second - seconds[0]) / span for second in seconds]
    ys = [40 * (1 - epsilon / top) for _, epsilon in balance.course]
    steps = f"M{xs[0]:.1f} {ys[0]:.1f}" + "".join(f"H{x:.1f}V{y:.1f}" for x, y in zip(xs[1:], ys[1:], strict=True))
    limit = 40 * (1 - (balance.limit or 0.0) / top)
    first, last = balance.course[0], balance.course[-1]
    label = f"ε grew from {upward(first[1])} on {first[0][:10]} to {upward(last[1])} on {last[0][:10]}"
    return (
        f'<svg class="course" role="img" aria-label="{label}" viewBox="-1 -1 102 43" preserveAspectRatio="none">'
        f'<line x1="0" x2="100" y1="{limit:.1f}" y2="{limit:.1f}"/><path d="{steps}"/></svg>'
    )
