# SPDX-License-Identifier: Apache-2.0
"""``privguard mark text``: set up a profile, write marked text, and drill it.

Input is JSON lines (one object with ``text``, ``tokens`` or, for writing, ``prompt`` per line), Parquet with such
columns, or plain text (one document per file); ``-`` is standard input. What reads marks is in
``privguard.cli.mark.read_text``.
"""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from privguard.cli._output import AsJson, emit, progress, require_place
from privguard.cli._recording import recorded
from privguard.cli.mark._text_files import load_tokenizer, log10_of, read_rows, tokens_of

app = typer.Typer(help="Marks in text: setup, write, detect, drill.", no_args_is_help=True)

ProfilePath = Annotated[Path, typer.Option("--profile", help="The signed profile.", exists=True)]
SecretPath = Annotated[Path, typer.Option("--secret", help="The owner's secret.", exists=True)]
TrustPath = Annotated[Path, typer.Option("--trust", help="PEM public key of who signed the profile.", exists=True)]
TokenizerPath = Annotated[Path | None, typer.Option("--tokenizer", help="Folder of the tokenizer; for text input.")]
Inputs = Annotated[list[str], typer.Argument(help="Files of text or JSON lines; - for standard input.")]


class SchemeName(StrEnum):
    """The schemes that a profile can name."""

    GUMBEL = "gumbel"
    GREEN_LIST = "green-list"
    TOURNAMENT = "tournament"
    PAYLOAD = "gumbel-payload"


@app.command()
def setup(
    profile: Annotated[Path, typer.Option("--profile", help="Where the signed profile is written.")],
    secret: Annotated[Path, typer.Option("--secret", help="The secret: read if there, else made.")],
    sign_with: Annotated[Path, typer.Option("--sign-with", help="Signing key (PEM): read if there, else made.")],
    tokenizer: Annotated[Path, typer.Option("--tokenizer", help="Folder of the tokenizer.")],
    logits_width: Annotated[int, typer.Option("--logits-width", help="Width of the model's logits.")],
    scheme: Annotated[SchemeName, typer.Option("--scheme", help="How the mark is written.")] = SchemeName.GUMBEL,
    context_width: Annotated[int, typer.Option("--context", help="Tokens of context: 4 resists stealing.")] = 4,
    subkeys: Annotated[int, typer.Option("--subkeys", help="Sub-keys that sequences are written under.")] = 16,
    model: Annotated[str | None, typer.Option("--model-name", help="Sets models of one tokenizer apart.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make (or read) a secret and a signing key, and write the signed profile that writer and detector share.

    A profile that is there is never replaced: texts may be marked under it.
    """
    import dataclasses

    from privguard.attest.statement import SigningKey
    from privguard.watermark.secret import Secret
    from privguard.watermark.text.profile import Profile
    from privguard.watermark.text.scheme import SCHEMES

    public = profile.with_suffix(".pem")
    for place in (profile, public):
        if place.exists():
            raise ValueError(f"{place}: exists, and texts may be marked under it; name another place for a new profile")
        require_place(place)
    reader, own = load_tokenizer(tokenizer), Secret.read(secret) if secret.exists() else Secret.generate()
    made = Profile.for_tokenizer(
        reader, own, logits_width=logits_width, scheme=SCHEMES[scheme.value](), model=model or ""
    )
    made = dataclasses.replace(made, context_width=context_width, subkeys=subkeys)
    if not secret.exists():
        own.write(secret)
    if not sign_with.exists():
        SigningKey.generate().write(sign_with)
    key = SigningKey.read(sign_with)
    made.write(profile, by=key)
    key.identity.write(public)
    emit(made, as_json=as_json, lines=[f"profile {profile}, signed by {key.identity}", f"trust   {public}"])


@app.command()
def write(
    prompts: Inputs,
    model: Annotated[Path, typer.Option("--model", help="Folder of a causal transformers model and its tokenizer.")],
    profile: ProfilePath,
    secret: SecretPath,
    trust: TrustPath,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="JSON lines; standard output by default.")] = None,
    user: Annotated[str | None, typer.Option("--user", help="Write under this user's own keys.")] = None,
    message: Annotated[int | None, typer.Option("--message", help="The number to hide, for a payload profile.")] = None,
    tokens: Annotated[int, typer.Option("--tokens", help="New tokens per prompt, at most.")] = 200,
    batch: Annotated[int, typer.Option("--batch", help="Prompts at once.")] = 8,
    temperature: Annotated[float, typer.Option("--temperature", help="Of the sampling, above 0.")] = 1.0,
    as_json: AsJson = False,
) -> None:
    """Generate marked text for each prompt."""
    from transformers import AutoModelForCausalLM

    from privguard.attest.journal import acting
    from privguard.attest.statement import Identity
    from privguard.watermark.secret import Secret
    from privguard.watermark.text.profile import Profile
    from privguard.watermark.text.writing.generate import MarkedGeneration

    known = Profile.read(profile, by=Identity.read(trust))
    tokenizer = load_tokenizer(model)
    known.require_tokenizer(tokenizer)
    mark = MarkedGeneration(known, Secret.read(secret), user=user, message=message)
    network: Any = AutoModelForCausalLM.from_pretrained(model).eval()
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    texts = [str(row.get("prompt", row.get("text", ""))) for row in read_rows(prompts)]
    rows: list[dict[str, Any]] = []
    with recorded(), acting("mark", f"text, {out or 'standard output'}"), progress() as bar:
        task = bar.add_task("writing", total=len(texts))
        for start in range(0, len(texts), batch):
            some = tokenizer(texts[start : start + batch], return_tensors="pt", padding=True)
            options = {"do_sample": True, "temperature": temperature, "top_k": 0, "max_new_tokens": tokens}
            written = network.generate(**some, custom_generate=mark, **options)[:, some["input_ids"].shape[1] :]
            for prompt, ids in zip(texts[start : start + batch], written.tolist(), strict=True):
                text = tokenizer.decode(ids, skip_special_tokens=True)
                kept = [i for i in ids if i not in known.special_ids]
                rows.append({"prompt": prompt, "text": text, "tokens": kept})
            bar.advance(task, len(some["input_ids"]))
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    if out is not None:
        out.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    emit(rows, as_json=as_json, lines=[] if out is not None else lines)


@app.command()
def drill(
    marked: Annotated[str, typer.Argument(help="JSON lines of marked texts; - for standard input.")],
    profile: ProfilePath,
    secret: SecretPath,
    trust: TrustPath,
    plain: Annotated[Path, typer.Option("--plain", help="A text without a mark, to dilute with.", exists=True)],
    tokenizer: TokenizerPath = None,
    level: Annotated[float, typer.Option("--level", help="Error probability per document.")] = 1e-5,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Where the survival picture (SVG) is written.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Edit and dilute marked texts in every standard way and show what survives."""
    import numpy as np

    from privguard.attest.statement import Identity
    from privguard.watermark.secret import Secret
    from privguard.watermark.text import drill as drills
    from privguard.watermark.text.profile import Profile
    from privguard.watermark.text.reading.detect import Detector

    log10_level = log10_of(level)
    known = Profile.read(profile, by=Identity.read(trust))
    reader = None if tokenizer is None else load_tokenizer(tokenizer)
    texts = [np.array(tokens_of(row, reader, width=known.logits_width), np.int64) for row in read_rows([marked])]
    clean = np.array(tokens_of({"text": plain.read_text(encoding="utf-8")}, reader), np.int64)
    usable = np.setdiff1d(np.arange(known.logits_width), known.special_ids)
    attacks = drills.standard_attacks(usable, clean, tokenizer=reader)
    detector = Detector(known, Secret.read(secret))
    with progress() as bar:
        table = []
        for name, attack in bar.track(attacks.items(), description="attacking"):
            table += drills.run_drill(detector, texts, {name: attack}, log10_level=log10_level)
    if picture is not None:
        picture.write_text(drills.survival_picture(table), encoding="utf-8")
    lines = [
        f"{row.attack:20s} {row.accepted:6.1%} survive   median log10 p = {row.median_log10_p:8.2f}" for row in table
    ]
    emit(table, as_json=as_json, lines=lines)
