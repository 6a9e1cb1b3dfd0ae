# SPDX-License-Identifier: Apache-2.0
"""``privguard mark``: marks in models, in text and in pictures."""

import typer

from privguard.cli.mark import image, image_credentials, image_drill, model, public, read_text, text

app = typer.Typer(
    help="""Write, read and test marks in models, in text and in pictures.

    A model, in this order: commit, embed, release it; for a suspect: challenge, trust, verify.

    Text: text setup, text write, text detect; text message, text trace.

    Pictures: image setup, image write, image detect, image attribute, image drill.

    A detector for everybody: public token, public serve, public receipt.""",
    no_args_is_help=True,
)
app.add_typer(model.app)
text.app.add_typer(read_text.app)
app.add_typer(text.app, name="text")
image.app.add_typer(image_drill.app)
image.app.add_typer(image_credentials.app, name="credentials")
app.add_typer(image.app, name="image")
app.add_typer(public.app, name="public")
