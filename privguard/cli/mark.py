"""``privguard mark``: marks in models and in text."""

import typer

from privguard.cli import mark_model, mark_text

app = typer.Typer(help="Write, read and test marks in models and in text.", no_args_is_help=True)
app.add_typer(mark_model.app)
app.add_typer(mark_text.app, name="text")
