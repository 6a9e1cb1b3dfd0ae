# SPDX-License-Identifier: Apache-2.0
"""privguard audit plan | steps | scores."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privguard import _check
from privguard.cli._output import AsJson, emit, stderr
from privguard.cli.audit._lines import emit_scores
from privguard.errors import AuditError
from privguard.records import Finding, Outcome, Unit

if TYPE_CHECKING:
    from privguard.audit.one_run.design import Design, OneRun

app = typer.Typer(help="Audits that try to refute a claim; none of them ever confirms one.", no_args_is_help=True)

Epsilon = Annotated[float, typer.Option("--epsilon", help="The claimed ε.")]
Into = Annotated[Path | None, typer.Option("--run", help="Run folder whose ε report should carry the finding.")]
Delta = Annotated[float, typer.Option("--delta", help="Its δ.")]


@app.command()
def plan(
    epsilon: Epsilon,
    delta: Delta,
    canaries: Annotated[int, typer.Option(help="Records that are in or out by a fair coin each.")] = 1_000,
    guesses_in: Annotated[int, typer.Option(help="Canaries with the largest scores, to be guessed in.")] = 100,
    guesses_out: Annotated[int, typer.Option(help="Canaries with the smallest, to be guessed out; 0 abstains.")] = 100,
    bound: Annotated[
        list[str] | None,
        typer.Option(help="steinke, gaussian-one-run, gaussian-threshold or gaussian-rank; several share the error."),
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="Of the score, for gaussian-threshold.")] = None,
    confidence: Annotated[float, typer.Option(help="Of all bounds together.")] = 0.95,
    unit: Annotated[Unit, typer.Option(help="What one canary is.")] = Unit.EXAMPLE,
    out: Annotated[Path | None, typer.Option(help="New folder for design.json and the secret coins.json.")] = None,
    as_json: AsJson = False,
) -> None:
    """Before training: what a design could show at most, what would refute the claim, and the coins.

    With --out the coins are flipped and committed to; publish the commitment before you train on the canaries that
    are in.
    """
    from privguard.audit.one_run.design import SPEAKS_OF, Bound, Design, ideal, least_canaries

    for name in bound or ():
        _check.require(name in set(Bound), "bound", name, wanted=", ".join(Bound))
    bounds = tuple(Bound(name) for name in bound or [Bound.STEINKE])
    design = Design(
        canaries=canaries,
        guesses_in=guesses_in,
        guesses_out=guesses_out,
        claimed=epsilon,
        delta=delta,
        confidence=confidence,
        bounds=bounds,
        threshold=threshold,
        unit=unit,
    )
    expected = ideal(design)
    table = [
        {
            "bound": which.value,
            "speaks_of": SPEAKS_OF[which],
            "cap": design.cap(which),
            "right_to_refute": design.needed(which),
            "least_canaries_of_a_perfect_attack": least_canaries(
                which, claimed=epsilon, delta=delta, confidence=design.share
            ),
            "expected_of_an_exact_run": expected[which.value],
        }
        for which in bounds
    ]
    commitment = _flip(design, out) if out else None
    record = {
        "design": design.to_json(),
        "digest": design.digest(),
        "guesses": design.guesses,
        "bounds": table,
        "commitment": commitment,
    }
    emit(record, as_json=as_json, lines=_plan_lines(design, table, commitment))


@app.command()
def steps(
    noise_multiplier: Annotated[float, typer.Option(help="Of the plan that is claimed.")],
    sample_rate: Annotated[float, typer.Option(help="Of the plan that is claimed.")],
    number: Annotated[int, typer.Option("--steps", help="Of the plan that is claimed.")],
    delta: Delta = 1e-5,
    canaries: Annotated[int, typer.Option(help="Coordinates that are watched.")] = 1_000,
    trials: Annotated[int, typer.Option(help="Private steps to take.")] = 200,
    into: Into = None,
    as_json: AsJson = False,
) -> None:
    """Audit privguard's own clip and noise on this machine: thousands of trials of the real step, in seconds."""
    from privguard.runs.audits.step import audit_step
    from privguard.training.plan import Plan

    claimed = Plan(
        sample_rate=sample_rate,
        noise_multiplier=noise_multiplier,
        max_grad_norm=1.0,
        steps=number,
        delta=delta,
        expected_batch_size=float(canaries),
    )
    finding, examination = audit_step(claimed, canaries=canaries, trials=trials)
    lines = [
        f"{finding.outcome.value}  {_finding_line(finding)}",
        *(
            f"{name:26s} p = {p:.3g}{'   FAILED' if name in examination.failed else ''}"
            for name, p in examination.p_values.items()
        ),
    ]
    _keep([finding], into)
    emit({"finding": finding.to_json(), "checks": examination.to_json()}, as_json=as_json, lines=lines)
    if finding.outcome is Outcome.REFUTED or examination.failed:
        raise typer.Exit(1)


@app.command()
def scores(
    file: Annotated[
        Path,
        typer.Argument(help=".npz, CSV or Parquet with scores and members, or with the scores of a design's canaries."),
    ],
    design: Annotated[Path | None, typer.Option(help="design.json of privguard audit plan.")] = None,
    coins: Annotated[Path | None, typer.Option(help="Its coins.json.")] = None,
    commitment: Annotated[str | None, typer.Option(help="What was published before training.")] = None,
    control: Annotated[
        Path | None,
        typer.Option(help=".npz with the canaries' scores of a twin without noise, trained on the same coins."),
    ] = None,
    into: Into = None,
    as_json: AsJson = False,
) -> None:
    """Audit a model that was trained and attacked elsewhere, from its scores alone."""
    if design is None:
        emit_scores(file, as_json=as_json)
        return
    if coins is None or commitment is None:
        raise typer.BadParameter("a design needs --coins and the --commitment that was made before training")
    verdict = _judged(file, control, design=design, coins=coins, commitment=commitment)
    _keep(verdict.findings, into)
    emit(verdict, as_json=as_json, lines=_verdict_lines(verdict))
    if verdict.outcome is Outcome.REFUTED:
        raise typer.Exit(1)


def _keep(findings: Sequence[Finding], run: Path | None) -> None:
    """Leave findings where ``privguard report`` finds them; one above its claim then heads the report.

    Raises:
        AuditError: where the canaries were not what one neighbour of the run's claim is.
    """
    if run is None:
        return
    from privguard.runs.folder import MANIFEST, keep

    try:
        claimed = json.loads((run / MANIFEST).read_text(encoding="utf-8"))["plan"]["unit"]
        for unit in {finding.settings.get("unit", claimed) for finding in findings} - {claimed}:
            raise AuditError(
                f"unit={unit!r}: the run's claim speaks of one {claimed}; use canaries that are whole {claimed}s"
            )
        for finding in findings:
            keep([finding], run, name=f"audit-{finding.method}")
    except FileNotFoundError as error:
        raise typer.BadParameter(f"{run} is no run folder: it has no {MANIFEST}", param_hint="--run") from error


def _flip(design: "Design", out: Path) -> str:
    try:
        out.mkdir(parents=True)
    except FileExistsError:
        raise FileExistsError(
            f"{out}: is there already; name a new folder, because a second flip of the coins could be a choice"
        ) from None
    coins = design.flip()
    (out / "design.json").write_text(json.dumps(design.to_json(), indent=2), encoding="utf-8")
    coins.write(out / "coins.json")
    (out / "commitment.txt").write_text(coins.commitment + "\n", encoding="utf-8")
    return coins.commitment


def _judged(file: Path, control: Path | None, *, design: Path, coins: Path, commitment: str) -> "OneRun":
    from privguard.audit.loading import read_design
    from privguard.audit.membership.scores import array, read_scores
    from privguard.audit.one_run.canary import Coins
    from privguard.audit.one_run.design import Observed, judge

    flipped = Coins.read(coins, commitment=commitment)
    seen = Observed(array(read_scores(file), "scores", path=file), flipped)
    twin = Observed(array(read_scores(control), "scores", path=control), flipped) if control else None
    return judge(read_design(design), seen, control=twin)


def _plan_lines(design: "Design", table: list[dict[str, Any]], commitment: str | None) -> list[str]:
    lines = [
        f"claim ε = {design.claimed:g} at δ = {design.delta:g}; {design.canaries} canaries, each in by a fair coin",
        f"{design.guesses} guesses, fixed now: {design.guesses_in} in, {design.guesses_out} out",
    ]
    for row in table:
        needed, least = row["right_to_refute"], row["least_canaries_of_a_perfect_attack"]
        never = "cannot refute this claim: the verdict can only be uninformative"
        lines += [
            f"{row['bound']}: at most ε = {row['cap']:.2f}",
            f"  {never if needed is None else f'{needed} {_right_of(design, row)} refute the claim'}",
            f"  a run that spends the claim exactly shows about ε = {row['expected_of_an_exact_run']:.2f}",
            f"  a perfect attack on all canaries needs {least or 'more than 100,000'} of them",
            f"  speaks of {row['speaks_of']}",
        ]
    if commitment:
        stderr().print("train on the canaries whose coin in coins.json is 1; keep that file secret until the audit")
        lines.append(f"commitment {commitment}")
    return lines


def _right_of(design: "Design", row: dict[str, Any]) -> str:
    pairs = (design.canaries // 2) * (design.canaries - design.canaries // 2)
    return f"of {pairs} pairs of in and out ranked right" if row["bound"] == "gaussian-rank" else "right"


def _verdict_lines(verdict: "OneRun") -> list[str]:
    control = "no positive control" if verdict.control is None else f"positive control {verdict.control.value}"
    return [f"{verdict.outcome.value}  ({control})", *map(_finding_line, verdict.findings), *verdict.notes]


def _finding_line(finding: Finding) -> str:
    claimed = "" if finding.claimed is None else f", claimed {finding.claimed:.3f}"
    bound = (
        f"{finding.method}: ε ≥ {finding.epsilon_low:.3f} at {finding.confidence:.1%}{claimed}, cap {finding.cap:.4g}"
    )
    return "; ".join([bound, *finding.notes])
