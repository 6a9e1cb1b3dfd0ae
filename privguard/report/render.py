"""Report → JSON, Markdown, and one self-contained page that needs no network."""

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from privguard.report import plot, statement
from privguard.report.assemble import Report


def to_json(report: Report) -> str:
    """The whole report as indented JSON."""
    return json.dumps(report.to_json(), indent=2, ensure_ascii=False, sort_keys=True) + "\n"


def to_markdown(report: Report) -> str:
    """The report as Markdown, for a model card or a pull request."""
    return _render("report.md.j2", report)


def to_html(report: Report) -> str:
    """The report as one page: style and plots inside, prints well, light and dark."""
    return _render("report.html.j2", report, curve=plot.epsilon_curve(report.curve) if report.curve else "")


def write(report: Report, folder: Path) -> list[Path]:
    """Write ``report.json``, ``report.md`` and ``report.html`` into ``folder`` and return their paths."""
    made = {"report.json": to_json(report), "report.md": to_markdown(report), "report.html": to_html(report)}
    for name, text in made.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in made]


def _render(name: str, report: Report, **extra: Any) -> str:
    pages = Environment(
        loader=PackageLoader("privguard.report"),
        autoescape=select_autoescape(["html.j2", "html"], default_for_string=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters |= {"upward": statement.upward, "percent": statement.percent, "sized": _sized}
    return pages.get_template(name).render(report=report, facts=facts(report), **extra)


def facts(report: Report) -> list[tuple[str, str]]:
    """The rows of the table that another accountant needs to price the run again, in the order of the flow."""
    manifest, plan, claim = report.manifest, report.manifest.plan, report.claim
    rows = [
        ("Unit of privacy", plan["unit"]),
        ("Neighbouring relation", plan["relation"]),
        ("Sampler", f"Poisson: every record enters every step independently with rate {plan['sample_rate']:.6g}"),
        ("Steps planned", f"{plan['steps']:,}"),
        (
            "Steps spent",
            f"{report.reserved:,} "
            + ("(all took effect)" if report.settled else "(reserved before a crash; some may not have taken effect)"),
        ),
        ("Noise multiplier σ", f"{plan['noise_multiplier']:.6g} (standard deviation over the clipping norm)"),
        ("Clipping norm C", f"{plan['max_grad_norm']:g} (L2, one bound for all parameters together)"),
        ("Clipping", manifest.clipping),
        ("Denominator", f"{plan['expected_batch_size']:g} (a constant of the plan, never the realised batch size)"),
        ("Number of records", _examples(manifest.data)),
        ("Noise source", manifest.noise),
        ("Precision", manifest.precision),
    ]
    if claim is not None:
        rows += [
            ("Accountant", f"{claim.accountant}, privacy-loss distribution, interval {claim.interval:g}"),
            (
                "ε when one record is replaced",
                statement.upward(claim.replace_one) if claim.replace_one is not None else "not computed",
            ),
            (
                "ε by Rényi accounting (cross-check)",
                statement.upward(claim.cross_check) if claim.cross_check is not None else "not computed",
            ),
        ]
    rows += [
        ("Ledger", f"{report.ledger_lines} lines, head {report.ledger_head}"),
        ("Data commitment", manifest.data.get("commitment") or "none was made"),
        ("Model", ", ".join(f"{key} {value}" for key, value in manifest.model.items())),
        ("Checkpoints sealed to", ", ".join(manifest.recipients)),
        ("Software", ", ".join(f"{name} {version}" for name, version in manifest.software.items())),
    ]
    return rows


def _examples(data: dict[str, Any]) -> str:
    return "not public" if data.get("examples") is None else f"{data['examples']:,}, treated as public"


def _sized(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"  # noqa: PLR2004 — decimal units
