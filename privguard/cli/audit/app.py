"""privguard audit plan | run | steps | scores."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privguard import _check
from privguard.cli._output import AsJson, emit, progress, stderr
from privguard.errors import AuditError
from privguard.records import Finding, Outcome, Unit

if TYPE_CHECKING:
    from privguard.audit.membership.audit import Examples, Membership
    from privguard.audit.membership.roc import Rate
    from privguard.audit.membership.verdict import AttackResult, Exposed
    from privguard.audit.one_run.design import Design, OneRun
    from privguard.audit.references.reference import References

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
def run(
    target: Annotated[
        str,
        typer.Argument(help="module:name of a torch module, of a function that makes one, or of a scoring function."),
    ],
    members: Annotated[
        Path, typer.Option(help=".npz, CSV or Parquet with inputs and labels that the model was trained on.")
    ],
    non_members: Annotated[Path, typer.Option(help=".npz with inputs and labels that it was not.")],
    architecture: Annotated[
        str | None, typer.Option(help="module:name of a function that makes an untrained model, for references.")
    ] = None,
    references: Annotated[int, typer.Option(help="Reference models to train; 0 runs the loss attack alone.")] = 0,
    epochs: Annotated[int, typer.Option(help="Of a reference model.")] = 20,
    batch_size: Annotated[int, typer.Option(help="Of a reference model.")] = 64,
    learning_rate: Annotated[float, typer.Option(help="Of a reference model.")] = 0.1,
    randomised: Annotated[
        bool, typer.Option("--randomised", help="Members and non-members were split at random.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for references, audit.json and roc.svg; a second call goes on from it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Attack a model: loss, LiRA and RMIA, the blind baseline, and the records that stand out most."""
    from privguard.audit import loading
    from privguard.audit.membership import audit
    from privguard.audit.membership.roc_plot import roc_svg

    inside, outside = loading.examples(members), loading.examples(non_members)
    trained = None
    if references:
        trained = _references(
            inside,
            outside,
            count=references,
            architecture=architecture,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            out=out,
        )
    assignment = audit.Assignment.CLAIMED if randomised else audit.Assignment.UNKNOWN
    attacked = audit.run(loading.model_named(target), inside, outside, references=trained, assignment=assignment)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / "roc.svg").write_text(
            roc_svg(attacked.statistics, attacked.members, blind=attacked.blind), encoding="utf-8"
        )
        (out / "audit.json").write_text(
            json.dumps(attacked.record.to_json(), indent=2, ensure_ascii=False), encoding="utf-8"
        )
    emit(attacked.record, as_json=as_json, lines=_membership_lines(attacked.record))


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
    from privguard.audit.membership.scores import audit_scores, read_scores

    if design is None:
        found = audit_scores(read_scores(file))
        head = found.leak.value if found.leak else "no verdict on a leak: no records were given for the blind baseline"
        emit(
            found,
            as_json=as_json,
            lines=[
                head,
                *([found.limit] if found.limit else []),
                *_attack_lines(found.attacks),
                _exposed_line(found.exposed),
                *found.notes,
                *_not_claimed(found.not_claimed),
            ],
        )
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


def _references(
    members: "Examples",
    non_members: "Examples",
    *,
    count: int,
    architecture: str | None,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    out: Path | None,
) -> "References":
    """Train reference models on both sides together, with a bar; with a folder, a second call goes on from there."""
    import torch

    from privguard.audit.loading import named
    from privguard.audit.references.reference import Place, Schedule, draw_inclusion, train_references

    if architecture is None:
        raise typer.BadParameter("references need --architecture, a function that makes an untrained model")
    inputs = torch.cat([members.inputs, non_members.inputs])
    labels = torch.cat([members.labels, non_members.labels])
    with progress() as bar:
        task = bar.add_task("reference models", total=count)
        place = Place(
            folder=out / "references" if out else None,
            on_progress=lambda done, _total, _left: bar.update(task, completed=done),
        )
        return train_references(
            named(architecture),
            inputs,
            labels,
            included=draw_inclusion(count, len(labels), seed=0),
            schedule=Schedule(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate),
            place=place,
        )


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


def _membership_lines(found: "Membership") -> list[str]:
    flag = "  FLAGGED: the split shows without the model" if found.blind.flagged else ""
    return [
        found.leak.value,
        *([found.limit] if found.limit else []),
        f"{found.members} members, {found.non_members} non-members, {found.references} references",
        *_attack_lines(found.attacks),
        f"blind baseline  AUC {found.blind.auc.value:.3f}{flag}; it flags 4 of 5 splits of {found.blind.detects:.3f}",
        _exposed_line(found.exposed),
        *found.notes,
        *_not_claimed(found.not_claimed),
    ]


def _attack_lines(results: "tuple[AttackResult, ...]") -> list[str]:
    lines: list[str] = []
    for result in results:
        area = f"AUC {result.auc.value:.3f} [{result.auc.low:.3f}, {result.auc.high:.3f}]"
        beyond = "" if result.p_beyond is None else f"; beyond the records p = {result.p_beyond:.2g}"
        lines.append(f"{result.attack:14s}  {area}  p = {result.p_adjusted:.2g} ({result.statistic}){beyond}")
        lines += [f"    TPR at {rate.asked:.2%} FPR: {_rate(rate)}" for rate in result.rates]
    return lines


def _exposed_line(found: "Exposed") -> str:
    if not found.low:
        return "exposed        no member stands out so far above all others that a number can be given"
    return (
        f"exposed        at least {found.low} members stand above all others (95 %), by {found.attack}: "
        f"{found.false_alarms} false among the first {found.depth}"
    )


def _rate(rate: "Rate") -> str:
    shown = "not measurable" if rate.rate is None else f"{rate.rate:.1%} [{rate.low:.1%}, {rate.high:.1%}]"
    return f"{shown}  ({rate.true_positives} of {rate.members}, {rate.false_positives} false of {rate.non_members})"


def _verdict_lines(verdict: "OneRun") -> list[str]:
    control = "no positive control" if verdict.control is None else f"positive control {verdict.control.value}"
    return [f"{verdict.outcome.value}  ({control})", *map(_finding_line, verdict.findings), *verdict.notes]


def _finding_line(finding: Finding) -> str:
    claimed = "" if finding.claimed is None else f", claimed {finding.claimed:.3f}"
    bound = (
        f"{finding.method}: ε ≥ {finding.epsilon_low:.3f} at {finding.confidence:.1%}{claimed}, cap {finding.cap:.4g}"
    )
    return "; ".join([bound, *finding.notes])


def _not_claimed(sentences: tuple[str, ...]) -> list[str]:
    return ["not claimed:", *(f"  {sentence}" for sentence in sentences)]
