# SPDX-License-Identifier: Apache-2.0
"""``privguard mark public``: a detector for everybody over HTTP, its tokens, and its receipts."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privguard.cli._output import AsJson, emit, stderr
from privguard.cli.mark._files import image_secret
from privguard.cli.mark._text_files import load_tokenizer, log10_of

if TYPE_CHECKING:
    from privguard.attest.statement import Identity
    from privguard.integrations.public_detector.answers import PictureReader, TextReader

app = typer.Typer(help="A public detector: serve, token, revoke, receipt.", no_args_is_help=True)

TokensPath = Annotated[Path, typer.Option("--tokens", help="Database of tokens; made where there is none.")]


@app.command()
def serve(
    sign_with: Annotated[Path, typer.Option("--sign-with", help="The key that signed the profiles.", exists=True)],
    tokens: TokensPath,
    journal: Annotated[Path, typer.Option("--journal", help="Signed journal of the answers, without the content.")],
    image_profile: Annotated[
        Path | None, typer.Option("--image-profile", help="Signed profile of the image mark.", exists=True)
    ] = None,
    image_secret: Annotated[Path | None, typer.Option("--image-secret", help="Its secret.", exists=True)] = None,
    image_log: Annotated[
        Path | None, typer.Option("--image-log", help="Signed log of marked pictures.", exists=True)
    ] = None,
    log_trust: Annotated[
        list[Path] | None, typer.Option("--log-trust", help="PEM of a signer of that log; again for each.")
    ] = None,
    search: Annotated[str, typer.Option("--search", help="For pictures: grid, scale or scale+angle.")] = "grid",
    text_profile: Annotated[
        Path | None, typer.Option("--text-profile", help="Signed profile of the text mark.", exists=True)
    ] = None,
    text_secret: Annotated[Path | None, typer.Option("--text-secret", help="Its secret.", exists=True)] = None,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", help="Folder of the text profile's tokenizer.")
    ] = None,
    level: Annotated[float, typer.Option("--level", help="Error probability of one answer.")] = 1e-8,
    rate: Annotated[str, typer.Option("--rate", help="Answers for each client.")] = "20/minute;500/day",
    port: Annotated[int, typer.Option("--port", help="Port on 127.0.0.1; 0 for any that is free.")] = 8765,
    as_json: AsJson = False,
) -> None:
    """Answer on 127.0.0.1 whether pictures and texts are marked; a reverse proxy brings TLS and the world.

    Answers are marked, not marked, too short or too small, and each is signed, journalled and counted.
    """
    from privguard.attest.journal import Journal
    from privguard.attest.statement import SigningKey
    from privguard.integrations.public_detector import require_extra

    require_extra()
    from privguard.integrations.public_detector.app import Bounds, PublicDetector
    from privguard.integrations.public_detector.server import HOST
    from privguard.integrations.public_detector.server import serve as run
    from privguard.integrations.public_detector.tokens import Tokens

    key, log10_level = SigningKey.read(sign_with), log10_of(level)
    readers: dict[str, Any] = {}
    if pair := _both("image", image_profile, image_secret):
        readers["image"] = _pictures(*pair, key.identity, log10_level, search)
    if image_log is not None:
        readers["image"] = _with_log(readers.get("image"), image_log, log_trust or [])
    if pair := _both("text", text_profile, text_secret):
        readers["text"] = _texts(*pair, key.identity, log10_level, tokenizer)
    detector = PublicDetector(readers, key, Tokens(tokens), Journal(journal, by=key), Bounds(rate=rate))

    def ready(bound: int) -> None:
        address = f"http://{HOST}:{bound}/v1"
        stderr().print(f"Listening on {address}", markup=False)
        if as_json:
            emit({"address": address}, as_json=True)
            sys.stdout.flush()

    run(detector, port=port, ready=ready)


@app.command()
def token(
    tokens: TokensPath,
    client: Annotated[str, typer.Option("--client", help="Who it is for: the name in the journal.")],
    one_time: Annotated[bool, typer.Option("--one-time", help="Good for one answer.")] = False,
    count: Annotated[int, typer.Option("--count", help="How many.")] = 1,
    days: Annotated[int, typer.Option("--days", help="How long they hold.")] = 365,
    as_json: AsJson = False,
) -> None:
    """Make tokens; each is printed this once, and only its digest is kept."""
    from privguard import _check
    from privguard.integrations.public_detector.tokens import Tokens

    store = Tokens(tokens)
    made = [store.issue(client, one_time=one_time, days=days) for _ in range(_check.count("--count", count))]
    emit(made, as_json=as_json, lines=made)


@app.command()
def revoke(
    tokens: Annotated[Path, typer.Option("--tokens", help="Database of tokens.", exists=True)],
    client: Annotated[str, typer.Option("--client", help="Whose tokens end.")],
    as_json: AsJson = False,
) -> None:
    """End all tokens of a client, also for a detector that is running; exit code 1 when there were none."""
    from privguard.integrations.public_detector.tokens import Tokens

    ended = Tokens(tokens).revoke(client)
    emit({"client": client, "ended": ended}, as_json=as_json, lines=[f"ended {ended} of {client}"])
    if not ended:
        raise typer.Exit(1)


@app.command()
def receipt(
    file: Annotated[Path, typer.Argument(help="The receipt: the answer's JSON, or the envelope in it.", exists=True)],
    content: Annotated[Path, typer.Option("--content", help="The very file that was asked about.", exists=True)],
    trust: Annotated[Path, typer.Option("--trust", help="PEM of who signed the profile.", exists=True)],
    as_json: AsJson = False,
) -> None:
    """Check a receipt offline: its signer, the file it is about, what was said; exit code 3 when it does not hold."""
    from privguard.attest.statement import Envelope, Identity
    from privguard.cli.mark._files import json_object
    from privguard.integrations.public_detector.receipts import check

    value = json_object(file)
    told = check(Envelope.from_json(value.get("receipt", value)), content.read_bytes(), by=Identity.read(trust))
    emit(told, as_json=as_json, lines=[f"{told.answer}  {told.time}: {told.meaning}", *told.notes])


def _both(kind: str, profile: Path | None, secret: Path | None) -> tuple[Path, Path] | None:
    if (profile is None) is not (secret is None):
        raise ValueError(f"--{kind}-profile, --{kind}-secret: expected both or neither")
    return (profile, secret) if profile is not None and secret is not None else None


def _pictures(profile: Path, secret: Path, signer: "Identity", log10_level: float, search: str) -> "PictureReader":
    from privguard.integrations.public_detector.answers import PictureReader
    from privguard.watermark.image.detect import ImageDetector
    from privguard.watermark.image.profile import ImageProfile
    from privguard.watermark.image.sync import Search

    if search not in set(Search):
        raise ValueError(f"--search={search!r}: expected one of {', '.join(Search)}")
    known = ImageProfile.read(profile, by=signer)
    return PictureReader(ImageDetector(known, image_secret(secret)), log10_level, Search(search))


def _with_log(reader: "PictureReader | None", path: Path, trust: list[Path]) -> "PictureReader":
    from dataclasses import replace

    from privguard.attest.statement import Identity
    from privguard.watermark.image.registry import read_log

    if reader is None:
        raise ValueError("--image-log: expected --image-profile and --image-secret beside it")
    return replace(reader, log=tuple(read_log(path, trusted=[Identity.read(each) for each in trust])))


def _texts(profile: Path, secret: Path, signer: "Identity", log10_level: float, tokenizer: Path | None) -> "TextReader":
    from privguard.integrations.public_detector.answers import TextReader
    from privguard.watermark.secret import Secret
    from privguard.watermark.text.profile import Profile
    from privguard.watermark.text.reading.detect import Detector

    if tokenizer is None:
        raise ValueError("--tokenizer: expected the folder of the text profile's tokenizer")
    known, reader = Profile.read(profile, by=signer), load_tokenizer(tokenizer)
    known.require_tokenizer(reader)
    return TextReader(Detector(known, Secret.read(secret)), reader, log10_level)
