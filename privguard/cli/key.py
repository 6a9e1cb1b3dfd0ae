# SPDX-License-Identifier: Apache-2.0
"""``privguard key``: make keys, show who they are. Secrets go into files of mode 0600 and nowhere else."""

from pathlib import Path
from typing import Annotated

import typer

from privguard.cli._output import AsJson, emit, stderr
from privguard.errors import SealError

app = typer.Typer(no_args_is_help=True, help="Make keys and recipients, and see whose a key is.")


@app.command()
def new(
    path: Annotated[Path, typer.Argument(help="The key file to write; it must not exist.")],
    symmetric: Annotated[bool, typer.Option("--symmetric", help="One 256-bit key that both seals and opens.")] = False,
    classic: Annotated[
        bool, typer.Option("--x25519", help="X25519 alone: short, but not against quantum computers.")
    ] = False,
    signing: Annotated[bool, typer.Option("--signing", help="Not to seal with: Ed25519, to sign.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a key: a pair of X25519 and ML-KEM-768 unless told otherwise."""
    from privguard.checkpoint.keys.key import Key

    if symmetric + classic + signing > 1:
        raise ValueError("--symmetric --x25519 --signing: expected one kind of key; leave out the others")
    if signing:
        _new_signing_key(path, as_json=as_json)
        return
    key = Key.generate_symmetric() if symmetric else Key.generate_x25519() if classic else Key.generate()
    key.write(path)
    stderr().print(f"Wrote {path}. Keep a copy in a safe place: without it, what is sealed to it is lost.")
    emit(
        {"path": str(path), "kind": key.kind.label, "id": key.id}, as_json=as_json, lines=[f"{key.kind.label} {key.id}"]
    )


def _new_signing_key(path: Path, *, as_json: bool) -> None:
    from privguard.attest.statement import SigningKey

    key = SigningKey.generate()
    key.write(path)
    public = path.with_name(path.name + ".pub")
    key.identity.write(public)
    facts = {"path": str(path), "public": str(public), "kind": key.identity.algorithm, "id": key.identity.key_id}
    emit(facts, as_json=as_json, lines=[f"{key.identity} ({public} is for who verifies)"])


@app.command()
def recipient(
    path: Annotated[Path, typer.Argument(help="A key file.")],
    output: Annotated[Path | None, typer.Option("-o", "--out", help="Write the recipient here.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the public half of a key, or write it to a file: give that to whoever seals."""
    from privguard.checkpoint.keys.key import Key

    found = Key.read(path).recipient()
    text = found.text()
    if output is not None:
        found.write(output)
    facts = {
        "kind": found.kind.label,
        "id": found.id,
        "recipient": text,
        "path": None if output is None else str(output),
    }
    emit(facts, as_json=as_json, lines=[text] if output is None else [])


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="A key, recipient or signing key file.")], as_json: AsJson = False
) -> None:
    """Show kind and identity of a key, recipient or signing key file, and nothing secret."""
    from privguard.checkpoint.keys.key import Key, Recipient

    with path.open("rb") as file:
        if file.read(5) == b"-----":
            _show_signer(path, as_json=as_json)
            return
    signer = None
    try:
        key = Key.read(path)
        opens, found, signer = True, key.recipient(), key.signer()
    except SealError:
        opens, found = False, Recipient.read(path)
    facts: dict[str, object] = {"path": str(path), "kind": found.kind.label, "id": found.id, "opens": opens}
    what = "key, opens what is sealed to it" if opens else "recipient, can be sealed to"
    lines = [f"{found.kind.label} {found.id} ({what})"]
    if signer is not None:
        facts["signer"] = signer.identity.key_id
        lines.append(f"signs as {signer.identity.key_id}")
    emit(facts, as_json=as_json, lines=lines)


def _show_signer(path: Path, *, as_json: bool) -> None:
    from privguard.attest.statement import Identity, SigningKey

    signs = "PRIVATE" in path.read_text(encoding="ascii", errors="replace").split("\n", 1)[0]
    identity = SigningKey.read(path).identity if signs else Identity.read(path)
    facts = {"path": str(path), "kind": identity.algorithm, "id": identity.key_id, "signs": signs}
    what = "signing key" if signs else "public, to verify with"
    emit(facts, as_json=as_json, lines=[f"{identity.algorithm} {identity.key_id} ({what})"])
