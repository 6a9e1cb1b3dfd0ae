# SPDX-License-Identifier: Apache-2.0
"""``privguard demo``: the whole story on real data, in less than a minute."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from privguard.cli._output import INTERRUPTED, REFUSED, AsJson, emit, progress, stderr

if TYPE_CHECKING:
    from privguard.demo import Demonstration, Outline, Theft


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demonstration makes.")] = Path("demo-run"),
    config: Annotated[Path | None, typer.Option(help="TOML file with settings, such as epsilon = 8.0.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show plan and settings; train and write nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train under ε, seal, mark, steal, challenge, audit and report, on real data. Needs no network.

    Ctrl-C leaves a run that `privguard report` prices. Exit code 1 when an audit refutes the claim.
    """
    import torch

    from privguard.audit.one_run.design import Outcome
    from privguard.demo import Settings
    from privguard.demo import demo as tell

    torch.set_num_threads(1)  # so small a model gains nothing from more
    settings = Settings() if config is None else Settings.read(config)
    if dry_run:
        outline = settings.outline()
        emit(outline, as_json=as_json, lines=_planned(outline))
        return
    try:
        with progress() as bar:
            task = bar.add_task("getting ready", total=1.0)
            done = tell(out, settings, watch=lambda what, share: bar.update(task, description=what, completed=share))
    except KeyboardInterrupt:
        stderr().print(_stopped(out))
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        emit(done, as_json=True)
    else:
        Console(highlight=False).print(_table(done))
        emit(done, as_json=False, lines=_where(done))
    if Outcome.REFUTED in (done.run.outcome, done.step.outcome) or done.failed:
        raise typer.Exit(REFUSED)


def _stopped(out: Path) -> str:
    from privguard.runs.folder import LEDGER

    if (out / LEDGER).exists():
        return (
            f"Stopped. {out} holds a run: privguard report {out} prices what it spent. Begin anew with privguard demo."
        )
    return "Stopped before anything was trained. Begin anew with privguard demo."


def _planned(outline: "Outline") -> list[str]:
    plan = outline.plan
    return [
        (
            f"would train {plan.steps} steps with noise multiplier {plan.noise_multiplier:.3f} at clipping norm "
            f"{plan.max_grad_norm:g}: ε ≤ {outline.settings.epsilon:g} at δ = {plan.delta:g}"
        ),
        (
            f"would audit with {outline.settings.canaries} canaries: at most ε = {outline.audit_cap:.2f} can show, "
            f"{outline.right_calls_to_refute} right calls would refute the claim"
        ),
        *(f"{name} = {value}" for name, value in outline.settings.to_json().items() if name != "record"),
    ]


def _table(done: "Demonstration") -> Table:
    from privguard.demo.digits import OTHERS, PRIVATE

    table = Table(title="What happened", title_justify="left", show_lines=False)
    table.add_column("chapter", style="bold")
    table.add_column("what was done")
    table.add_column("what came of it")
    members = done.run.findings[0].counts["members"]
    table.add_row("train", f"{PRIVATE:,} private digits, {members} canaries", f"[bold]{done.claim}[/]")
    table.add_row(
        "",
        f"{OTHERS} other digits read rightly",
        f"{done.private_accuracy:.1%} private · {done.ordinary_accuracy:.1%} without privacy",
    )
    table.add_row("seal", "every checkpoint, AES-256-GCM", "opened again with demo.key; never in clear on disk")
    table.add_row("commit", "the mark, before anybody can know it", "timestamped, then a public pulse (local notary)")
    table.add_row("mark", "triggers and weights, then released", f"{done.released_accuracy:.1%} read rightly")
    for one in done.thefts:
        table.add_row("honest" if one.suspect == "honest" else "steal", _what(one), _verdict(one))
    finding = done.run.findings[0]
    table.add_row(
        "audit",
        f"{finding.counts['canaries']} canaries in the run itself",
        f"[bold]{done.run.outcome.value}[/]: an attacker shows ε ≥ {finding.epsilon_low:.2f} of {finding.claimed:g}",
    )
    table.add_row(
        "", "the same without noise, as a control", "none" if done.run.control is None else done.run.control.value
    )
    checks = "all checks hold" if not done.failed else f"FAILED: {', '.join(done.failed)}"
    table.add_row(
        "",
        "clip and noise of this machine",
        f"[bold]{done.step.outcome.value}[/]: ε ≥ {done.step.epsilon_low:.2f}; {checks}",
    )
    strongest = max(done.membership.attacks, key=lambda each: each.auc.value)
    table.add_row(
        "",
        f"LiRA, RMIA and loss, {done.membership.references} reference models",
        f"best AUC {strongest.auc.value:.3f} ({strongest.attack}; 0.5 is chance), p = {strongest.p_adjusted:.2g}",
    )
    return table


def _what(one: "Theft") -> str:
    what = "an honest model, not stolen" if one.suspect == "honest" else f"the released model, {one.suspect}"
    return f"{what} ({one.accuracy:.1%})"


def _verdict(one: "Theft") -> str:
    p = "1" if one.log10_p == 0 else f"10^{one.log10_p:.1f}"
    return f"[bold]{one.outcome.value}[/]: p ≤ {p} had it been made independently"


def _where(done: "Demonstration") -> list[str]:
    return [
        f"report    {done.page}",
        f"evidence  {done.folder}/evidence (privguard mark verify FILE --trust {done.folder}/claim/trust.json)",
    ]
