# SPDX-License-Identifier: Apache-2.0
"""The command line: arguments → one library call → a record on stdout, talk and progress on stderr.

Exit codes, the same for every command: 0 done · 1 refused, not proven, not found or refuted · 2 cannot be done as
asked: a wrong argument, a missing file, a full disk · 3 tampered or protocol invalid · 70 an error of privguard itself
· 130 ended by Ctrl-C. Each module beside this one holds one group of commands; libraries that are slow to import are
imported inside the commands, so that ``--help`` is immediate.
"""

import os
import sys
from typing import Annotated

import typer

import privguard
from privguard.cli import demo, doctor, init, journal, key, plan, plans, report, seal
from privguard.cli._output import DEBUG, complain, exit_code
from privguard.cli.audit import app as audit
from privguard.cli.audit import membership as audit_membership
from privguard.cli.audit import model as audit_model
from privguard.cli.audit import text as audit_text
from privguard.cli.examples import teach
from privguard.cli.ledger import app as ledger
from privguard.cli.mark import app as mark

app = typer.Typer(
    name="privguard",
    help="Private training, sealed checkpoints, watermarks and audits.",
    epilog=(
        "Exit codes: 0 done · 1 refused, not proven, not found or refuted · 2 cannot be done as asked · "
        "3 tampered or protocol invalid · 70 an error of privguard itself · 130 Ctrl-C"
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("plan")(plan.plan)
app.command("init")(init.init)
app.command("doctor")(doctor.doctor)
app.add_typer(plans.app, name="plans")
app.add_typer(key.app, name="key")
seal.register(app)
app.add_typer(mark.app, name="mark")
audit.app.command("membership")(audit_membership.membership)
audit.app.command("text")(audit_text.text)
audit.app.command("model")(audit_model.model)
app.add_typer(audit.app, name="audit")
app.add_typer(ledger.app, name="ledger")
app.add_typer(journal.app, name="journal")
app.add_typer(report.app, name="report")
teach(app)


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"privguard {privguard.__version__}\n")
        raise typer.Exit


@app.callback()
def _before(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help=f"Show the traceback of an error, as {DEBUG}=1 does.")
    ] = False,
    version: Annotated[  # noqa: ARG001 — its callback answers before anything else
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    if verbose:
        os.environ[DEBUG] = "1"


def main() -> None:
    """Run the command line and turn every error into one line on stderr and an exit code."""
    try:
        app()
    except Exception as error:
        complain(error)
        sys.exit(exit_code(error))
