# SPDX-License-Identifier: Apache-2.0
"""``privguard mark image credentials``: C2PA manifests for marked pictures, signed and verified offline."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privguard.cli._output import TAMPERED, AsJson, emit, progress
from privguard.cli.mark._files import image_profile, image_secret
from privguard.cli.mark.image import Inputs, ProfilePath, SecretPath, TrustPath

if TYPE_CHECKING:
    from privguard.integrations.c2pa import CredentialSigner
    from privguard.watermark.image.detect import ImageDetector

app = typer.Typer(help="Content credentials (C2PA): test-chain, sign, verify.", no_args_is_help=True)

_LOG10_LEVEL = -6.0  # a manifest says "watermarked" only of a picture in which the mark is found


@app.command("test-chain")
def make_test_chain(
    folder: Annotated[Path, typer.Argument(help="Folder for root.pem, chain.pem and leaf.key.")],
    organisation: Annotated[str, typer.Option("--organisation", help="Name in the certificates.")],
    as_json: AsJson = False,
) -> None:
    """Make a certificate chain that C2PA accepts, for trials: nobody but you trusts its root."""
    from privguard.integrations.c2pa_chain import TestChain

    TestChain.generate(organisation).write(folder)
    names = {name: str(folder / name) for name in ("root.pem", "chain.pem", "leaf.key")}
    emit(names, as_json=as_json, lines=[f"made  {path}" for path in names.values()])


@app.command()
def sign(
    inputs: Inputs,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the signed files.")],
    profile: ProfilePath,
    secret: SecretPath,
    trust: TrustPath,
    chain: Annotated[Path, typer.Option("--chain", help="Certificates (PEM), the signer's first.", exists=True)],
    key: Annotated[Path, typer.Option("--key", help="The signer's private key (PEM).", exists=True)],
    composite: Annotated[
        bool, typer.Option("--composite", help="Say that only parts of the pictures were generated.")
    ] = False,
    timestamp: Annotated[
        str | None, typer.Option("--timestamp", help="Address of an RFC 3161 authority; the one use of a network.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Give marked pictures signed credentials with the identifier that is read from them; the last step before release.

    A picture without the mark is named and left out, and the exit code is then 1. Files that are there are left alone.
    """
    from privguard.errors import MarkError
    from privguard.integrations.c2pa import CredentialSigner
    from privguard.watermark.image.detect import ImageDetector
    from privguard.watermark.image.pictures import find_pictures, require_own_places

    signer = CredentialSigner.from_pem(key.read_bytes(), chain.read_text(encoding="utf-8"))
    detector = ImageDetector(image_profile(profile, trust), image_secret(secret))
    pairs = find_pictures(inputs)
    require_own_places(pairs)
    rows: list[dict[str, Any]] = []
    with progress() as bar:
        for path, place in bar.track(pairs, description="signing"):
            try:
                rows.append(_signed(detector, signer, path, out / place, composite=composite, timestamp=timestamp))
            except MarkError as error:
                rows.append({"picture": str(path), "refused": str(error)})
    emit(rows, as_json=as_json, lines=[_line(row) for row in rows])
    if any("refused" in row for row in rows):
        raise typer.Exit(1)


@app.command()
def verify(
    inputs: Inputs,
    root: Annotated[
        list[Path],
        typer.Option(
            "--root", help="PEM of a root that you trust to vouch for signers and timestamps; again for each."
        ),
    ],
    profile: Annotated[Path | None, typer.Option("--profile", help="With the next two: is the mark theirs?")] = None,
    secret: Annotated[Path | None, typer.Option("--secret", help="The owner's secret.", exists=True)] = None,
    trust: Annotated[
        Path | None, typer.Option("--trust", help="PEM public key of who signed the profile.", exists=True)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say whether files carry credentials that a root of yours vouches for; exit code 1 unless all do, 3 when changed.

    Only "trusted" counts. "valid" is not enough: anybody can make a certificate that is valid. With the owner's secret
    the mark in the picture is read too; one that is not the mark which the credentials name counts like no trust.
    """
    from privguard.integrations.c2pa import State, read
    from privguard.watermark.image.pictures import find_pictures

    roots = [path.read_text(encoding="utf-8") for path in root]
    detector = _detector(profile, secret, trust)
    rows: list[dict[str, Any]] = []
    for path, _ in find_pictures(inputs):
        told = read(path.read_bytes(), suffix=path.suffix, roots=roots)
        mark = {} if detector is None else {"mark": _mark(detector, path, told.binding)}
        rows.append({"picture": str(path), **told.to_json(), **mark})
    lines = [f"{row['state']:8s} {row['picture']}: {row['meaning']}{_said(row)}" for row in rows]
    emit(rows, as_json=as_json, lines=lines)
    if any(row["state"] == State.INVALID for row in rows):
        raise typer.Exit(TAMPERED)
    if any(row["state"] != State.TRUSTED or row.get("mark", "named") != "named" for row in rows):
        raise typer.Exit(1)


def _detector(profile: Path | None, secret: Path | None, trust: Path | None) -> "ImageDetector | None":
    from privguard.watermark.image.detect import ImageDetector

    if profile is None and secret is None and trust is None:
        return None
    if profile is None or secret is None or trust is None:
        raise ValueError("--profile, --secret, --trust: expected all three or none")
    return ImageDetector(image_profile(profile, trust), image_secret(secret))


def _mark(detector: "ImageDetector", path: Path, binding: str | None) -> str:
    """Whether the mark in a picture is the one that its credentials name."""
    from privguard.watermark.image.pictures import read_picture

    found = detector.detect([read_picture(path).seen()])
    if found.log10_p[0] > _LOG10_LEVEL:
        return "not found"
    return "named" if detector.binding(found.identifier[0]) == binding else "another"


def _said(row: dict[str, Any]) -> str:
    return f"; mark {row['mark']}" if "mark" in row else ""


def _signed(
    detector: "ImageDetector",
    signer: "CredentialSigner",
    path: Path,
    target: Path,
    *,
    composite: bool,
    timestamp: str | None,
) -> dict[str, Any]:
    from privguard.errors import MarkError
    from privguard.integrations.c2pa import Made
    from privguard.integrations.c2pa import sign as sign_file
    from privguard.watermark.image.pictures import read_picture, write_new

    if target.exists():
        return {"picture": str(path), "target": str(target), "there_already": True}
    found = detector.detect([read_picture(path).seen()])
    if found.log10_p[0] > _LOG10_LEVEL:
        raise MarkError("no mark of this profile was found in it, so its credentials cannot say that it is marked")
    content = sign_file(
        path.read_bytes(),
        suffix=path.suffix,
        profile=detector.profile,
        binding=detector.binding(found.identifier[0]),
        signer=signer,
        made=Made.COMPOSITE if composite else Made.GENERATED,
        timestamp=timestamp,
    )
    write_new(target, content)
    return {"picture": str(path), "target": str(target), "identifier": found.identifier[0]}


def _line(row: dict[str, Any]) -> str:
    if "refused" in row:
        return f"refused  {row['picture']}: {row['refused']}"
    return f"{'there   ' if 'there_already' in row else 'signed  '} {row['target']}"
