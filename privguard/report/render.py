# SPDX-License-Identifier: Apache-2.0
"""Report → JSON, Markdown, and one self-contained page that needs no network."""

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from privguard.report import facts, guarantee, plot
from privguard.report.record import Report
from privguard.runs.folder import REPORT_JSON, REPORT_MARKDOWN, REPORT_PAGE


def to_json(report: Report) -> str:
    """The whole report as indented JSON, in the form of the schema that ``privguard report schema`` prints.

    Args:
        report: the report.
    """
    return json.dumps(report.to_json(), indent=2, ensure_ascii=False, sort_keys=True) + "\n"


def to_markdown(report: Report, *, signer: str | None = None) -> str:
    """The report as Markdown, for a pull request or a repository; ``signer`` is the id of the key that signs it.

    Args:
        report: the report.
        signer: key id of who signs; None for nobody.
    """
    return page("report.md.j2", report=report, signed=guarantee.signed(signer), **facts.sentences(report))


def to_html(report: Report, *, signer: str | None = None) -> str:
    """The report as one page: style and plots inside, prints well, light and dark; it runs and fetches nothing.

    ``signer`` is the id of the key that signs it, which the page then names.

    Args:
        report: the report.
        signer: key id of who signs; None for nobody.
    """
    return page(
        "report.html.j2",
        report=report,
        signed=guarantee.signed(signer),
        curve=plot.epsilon_curve(report.curve) if report.curve else "",
        trade_off=plot.trade_off(report.trade_off) if report.trade_off else "",
        **facts.sentences(report),
    )


def write(report: Report, folder: Path, *, signer: str | None = None) -> list[Path]:
    """Write ``report.json``, ``report.md`` and ``report.html`` into ``folder`` and return their paths.

    The pages say that nobody has signed them, or who is about to: ``privguard.report.signed.sign.sign`` writes them
    anew.

    Args:
        report: the report.
        folder: where it is written.
        signer: key id of who signs; None for nobody.
    """
    made = {
        REPORT_JSON: to_json(report),
        REPORT_MARKDOWN: to_markdown(report, signer=signer),
        REPORT_PAGE: to_html(report, signer=signer),
    }
    for name, text in made.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in made]


def page(name: str, **values: Any) -> str:
    """A template of this package with its values; what goes into HTML is escaped.

    Args:
        name: the template's name.
        **values: what the template shows.
    """
    pages = Environment(
        loader=PackageLoader("privguard.report"),
        autoescape=select_autoescape(["html.j2"], default_for_string=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    pages.filters |= {
        "upward": guarantee.upward,
        "down": guarantee.downward,
        "sized": _sized,
        "cell": _cell,
        "thousands": "{:,}".format,
    }
    return pages.get_template(name).render(facts=facts, **values)


def _sized(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"  # noqa: PLR2004 — decimal units


def _cell(text: object) -> str:
    """Text from outside as one cell of a Markdown table: no column, line or tag of its own."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")
