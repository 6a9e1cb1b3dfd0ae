"""The command line: arguments → one library call → a record on stdout, talk and progress on stderr.

Exit codes: 0 done · 1 refused, not proven or refuted · 2 usage · 3 tampered or protocol invalid. Each module beside
this one holds one group of commands; libraries that are slow to import are imported inside the commands, so that
``--help`` is immediate.
"""

import sys

import typer

from privguard.cli import audit, demo, journal, key, ledger, mark, plan, report, seal
from privguard.cli._output import complain
from privguard.errors import PrivguardError, ProtocolInvalidError, TamperedError

app = typer.Typer(
    name="privguard",
    help="Private training, sealed checkpoints, watermarks and audits.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("plan")(plan.plan)
app.add_typer(key.app, name="key")
seal.register(app)
app.add_typer(mark.app, name="mark")
app.add_typer(audit.app, name="audit")
app.add_typer(ledger.app, name="ledger")
app.add_typer(journal.app, name="journal")
app.add_typer(report.app, name="report")


def main() -> None:
    """Run the command line and turn every refusal into one line on stderr and an exit code."""
    try:
        app()
    except (TamperedError, ProtocolInvalidError) as error:
        complain(error)
        sys.exit(3)
    except PrivguardError as error:
        complain(error)
        sys.exit(1)
    except (ValueError, OSError) as error:
        complain(error)
        sys.exit(2)
