# SPDX-License-Identifier: Apache-2.0
"""``privguard mark text``: read marks, our own and those of other tools, messages, users, and traces in a model."""

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privguard.cli._output import AsJson, emit, progress, stderr
from privguard.cli.mark._text_files import load_tokenizer, log10_of, read_rows, tokens_of
from privguard.cli.mark.text import Inputs, ProfilePath, SecretPath, TokenizerPath, TrustPath

if TYPE_CHECKING:
    from privguard.records import Verdict
    from privguard.watermark.text.profile import Profile
    from privguard.watermark.text.reading.ngrams import Documents

app = typer.Typer()

Level = Annotated[float, typer.Option("--level", help="Error probability, over all that is tested together.")]


class Foreign(StrEnum):
    """Marks of other tools that can be read."""

    VLLM_GUMBEL = "vllm-gumbel"
    VLLM_DUAL_KEY = "vllm-dual-key"
    VLLM_SYNTHID = "vllm-synthid"
    TRANSFORMERS_GREEN_LIST = "transformers-green-list"
    TRANSFORMERS_SYNTHID = "transformers-synthid"


@app.command()
def detect(
    inputs: Inputs,
    profile: Annotated[Path | None, typer.Option("--profile", help="The signed profile.", exists=True)] = None,
    secret: Annotated[Path | None, typer.Option("--secret", help="The owner's secret.", exists=True)] = None,
    trust: Annotated[
        Path | None, typer.Option("--trust", help="PEM key of who signed the profile.", exists=True)
    ] = None,
    tokenizer: TokenizerPath = None,
    level: Level = 1e-5,
    user: Annotated[str | None, typer.Option("--user", help="Read with this user's keys.")] = None,
    as_written: Annotated[bool, typer.Option("--as-written", help="Undo no quoting, wrapping or spaces.")] = False,
    report: Annotated[Path | None, typer.Option("--report", help="Folder for one HTML page per document.")] = None,
    scheme: Annotated[Foreign | None, typer.Option("--scheme", help="Read this mark of another tool instead.")] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="JSON with the other tool's key and numbers.", exists=True)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Detect the mark in each document; exit code 1 when it was found in none.

    A text is also read with quoting, wrapping, hard spaces and the like undone, which is paid for. A mark that is found
    is attributed to one sub-key, or to one for each stretch, unless many sub-keys agree beyond that, as in a forgery
    learnt from many texts; one honest text in twenty is not attributed by chance.
    """
    log10_level = log10_of(level)
    if scheme is not None:
        if config is None:
            raise ValueError("config=None: expected a JSON file with the key; pass --config with --scheme")
        verdicts = _foreign(scheme, inputs, json.loads(config.read_text(encoding="utf-8")), tokenizer)
        _emit_verdicts(verdicts, log10_level=log10_level, as_json=as_json)
        return
    if profile is None or secret is None or trust is None:
        raise ValueError(
            "profile, secret, trust: expected all three; pass --profile, --secret and --trust, or --scheme"
        )
    _own(
        inputs,
        _opened(profile, trust),
        secret,
        tokenizer=tokenizer,
        log10_level=log10_level,
        user=user,
        as_written=as_written,
        report=report,
        as_json=as_json,
    )


def _own(
    inputs: list[str],
    known: "Profile",
    secret: Path,
    *,
    tokenizer: Path | None,
    log10_level: float,
    user: str | None,
    as_written: bool,
    report: Path | None,
    as_json: bool,
) -> None:
    from privguard.watermark.secret import Secret
    from privguard.watermark.text.reading.detect import Detector
    from privguard.watermark.text.reading.ngrams import Documents
    from privguard.watermark.text.reading.variants import variants_of

    detector = Detector(known, Secret.read(secret), user=user)
    reader = _reader(known, tokenizer)
    lists: list[list[int]] = []
    names: list[list[str]] = []
    with progress() as bar:
        for row in bar.track(list(read_rows(inputs)), description="reading"):
            forms = {"as written": row}
            if "tokens" not in row and isinstance(row.get("text"), str) and not as_written:
                forms = {name: {"text": text} for name, text in variants_of(row["text"]).items()}
            lists += [tokens_of(form, reader, width=known.logits_width) for form in forms.values()]
            names.append(list(forms))
    found = detector.detect(Documents.of_lists(lists).below(known.logits_width))
    accepted, start, values, lines, hits, chosen = found.accepted(log10_level=log10_level), 0, [], [], [], []
    for number, forms in enumerate(names):
        best = start + int(found.log10_p[start : start + len(forms)].argmin())
        form, tests = forms[best - start], max(1, len(names)) * len(forms)
        verdict = found.verdict(best, tests=tests, details={"variant": form, "variants_tried": len(forms)})
        hit = verdict.log10_p_corrected <= log10_level
        owned = bool(accepted[best]) and hit
        values.append({**verdict.to_json(), "found": hit, "attributed": owned})
        note = _standing(found, best, hit=hit, owned=owned, log10_level=log10_level)
        note += f"  ({form}, one of {len(forms)} variants)" if hit and form != "as written" else ""
        lines.append(_line(verdict, number, hit=hit) + note)
        hits.append(hit)
        chosen.append(best)
        start += len(forms)
    if report is not None:
        tests = max(1, len(names)) * max((len(forms) for forms in names), default=1)
        write_reports(
            report, detector, [lists[i] for i in chosen], tokenizer=reader, log10_level=log10_level, tests=tests
        )
    emit(values, as_json=as_json, lines=lines)
    if not any(hits):
        raise typer.Exit(1)


@app.command()
def message(
    inputs: Inputs,
    profile: ProfilePath,
    secret: SecretPath,
    trust: TrustPath,
    tokenizer: TokenizerPath = None,
    level: Level = 1e-5,
    expect: Annotated[int | None, typer.Option("--expect", help="Test for this message, named beforehand.")] = None,
    user: Annotated[str | None, typer.Option("--user", help="Read with this user's keys.")] = None,
    as_json: AsJson = False,
) -> None:
    """Read the message of a payload profile in each document; exit code 1 when there is none."""
    from privguard.watermark.secret import Secret
    from privguard.watermark.text.reading import message as payload

    log10_level, known = log10_of(level), _opened(profile, trust)
    documents, own = _documents(inputs, known, tokenizer), Secret.read(secret)
    if expect is not None:
        verdicts = payload.expect(known, own, documents, message=expect, user=user)
        _emit_verdicts(verdicts, log10_level=log10_level, as_json=as_json)
        return
    messages = payload.read(known, own, documents, user=user)
    values: list[dict[str, Any]] = []
    lines: list[str] = []
    for number, read in enumerate(messages):
        corrected = _paid(read.verdict, len(messages))
        hit = corrected.log10_p_corrected <= log10_level
        sure = min(read.confidence)
        values.append({**read.to_json(), "found": hit, "log10_p_corrected": corrected.log10_p_corrected})
        told = f"  message {read.value}, least sure bit {sure:.4f}" if hit else ""
        lines.append(_line(corrected, number, hit=hit) + told)
    emit(values, as_json=as_json, lines=lines)
    if not any(value["found"] for value in values):
        raise typer.Exit(1)


@app.command()
def trace(
    inputs: Inputs,
    profile: ProfilePath,
    secret: SecretPath,
    trust: TrustPath,
    users: Annotated[Path, typer.Option("--users", help="One user's name a line.", exists=True)],
    tokenizer: TokenizerPath = None,
    level: Level = 1e-5,
    as_json: AsJson = False,
) -> None:
    """Find the user that each document was written for; exit code 1 when nobody is named."""
    from privguard.watermark.secret import Secret
    from privguard.watermark.text.reading.trace import trace as trace_users

    log10_level, known = log10_of(level), _opened(profile, trust)
    names = [line for line in users.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    documents = _documents(inputs, known, tokenizer)
    found = trace_users(known, Secret.read(secret), documents, users=[name.strip() for name in names])
    values: list[dict[str, Any]] = []
    lines: list[str] = []
    for number, one in enumerate(found):
        corrected = _paid(one.verdict, len(found))
        hit = corrected.log10_p_corrected <= log10_level
        values.append(
            {**corrected.to_json(), "user": one.user if hit else None, "runner_up_log10_p": one.runner_up_log10_p}
        )
        lines.append(_line(corrected, number, hit=hit) + (f"  {one.user}" if hit else ""))
    emit(values, as_json=as_json, lines=lines)
    if not any(value["user"] for value in values):
        raise typer.Exit(1)


@app.command()
def decoys(
    inputs: Inputs,
    profile: ProfilePath,
    secret: SecretPath,
    trust: TrustPath,
    tokenizer: TokenizerPath = None,
    number: Annotated[int, typer.Option("--decoys", help="Other keys to compare with.")] = 999,
    as_json: AsJson = False,
) -> None:
    """The rank of the true key among other keys on each document, as a p-value of at least 1/(decoys+1)."""
    from privguard.watermark.secret import Secret
    from privguard.watermark.text.reading.detect import decoy_ranks

    known = _opened(profile, trust)
    ranks = decoy_ranks(known, Secret.read(secret), _documents(inputs, known, tokenizer), decoys=number).tolist()
    emit(ranks, as_json=as_json, lines=[f"p = {rank:.4f} among {number} decoys  #{i}" for i, rank in enumerate(ranks)])


@app.command()
def radioactivity(
    inputs: Inputs,
    profile: ProfilePath,
    secret: SecretPath,
    trust: TrustPath,
    tokenizer: TokenizerPath = None,
    level: Level = 1e-5,
    as_json: AsJson = False,
) -> None:
    """Was a model that wrote these documents trained on text under this key? Exit code 1 when no trace was found."""
    from privguard.watermark.secret import Secret
    from privguard.watermark.text.reading.radioactivity import closed_access

    log10_level, known = log10_of(level), _opened(profile, trust)
    verdict = closed_access(known, Secret.read(secret), _documents(inputs, known, tokenizer))
    _emit_verdicts([verdict], log10_level=log10_level, as_json=as_json)


def _foreign(scheme: Foreign, inputs: list[str], numbers: Any, tokenizer: Path | None) -> "list[Verdict]":
    from transformers import SynthIDTextWatermarkingConfig, WatermarkingConfig

    from privguard.watermark.text.reading import interop
    from privguard.watermark.text.reading.ngrams import Documents

    if not isinstance(numbers, dict):
        raise ValueError("config: expected a JSON object with the other tool's key and numbers")  # noqa: TRY004 — a bad file
    reader = None if tokenizer is None else load_tokenizer(tokenizer)
    documents = Documents.of_lists([tokens_of(row, reader) for row in read_rows(inputs)])
    size = numbers.pop("vocabulary_size", None) if scheme is Foreign.TRANSFORMERS_GREEN_LIST else None
    try:
        if scheme is Foreign.VLLM_GUMBEL:
            return interop.read_vllm_gumbel(documents, **numbers)
        if scheme is Foreign.VLLM_DUAL_KEY:
            return interop.read_vllm_dual_key(documents, **numbers)
        if scheme is Foreign.VLLM_SYNTHID:
            return interop.read_vllm_synthid(documents, **numbers)
        if scheme is Foreign.TRANSFORMERS_SYNTHID:
            return interop.read_transformers_synthid(documents, config=SynthIDTextWatermarkingConfig(**numbers))
        if type(size) is not int:
            raise ValueError("vocabulary_size: expected the width of the model's logits; add it to the configuration")
        settings = WatermarkingConfig(**numbers)
        return interop.read_transformers_green_list(documents, config=settings, vocabulary_size=size)
    except TypeError:
        raise ValueError(f"config: expected the key and numbers of {scheme}; got {sorted(numbers)}") from None


def _emit_verdicts(verdicts: "Sequence[Verdict]", *, log10_level: float, as_json: bool) -> None:
    """Verdicts after paying for all of them; exit code 1 when none reaches the level."""
    paid = [_paid(verdict, len(verdicts)) for verdict in verdicts]
    hits = [verdict.log10_p_corrected <= log10_level for verdict in paid]
    values = [{**verdict.to_json(), "found": hit} for verdict, hit in zip(paid, hits, strict=True)]
    lines = [_line(verdict, i, hit=hit) for i, (verdict, hit) in enumerate(zip(paid, hits, strict=True))]
    emit(values, as_json=as_json, lines=lines)
    if not any(hits):
        raise typer.Exit(1)


def _paid(verdict: "Verdict", tests: int) -> "Verdict":
    from dataclasses import replace

    return replace(verdict, multiplicity=verdict.multiplicity * max(1, tests))


def _line(verdict: "Verdict", number: int, *, hit: bool) -> str:
    found = "found    " if hit else "not found"
    return f"{found}  log10 p = {verdict.log10_p_corrected:8.2f}  {verdict.trials:5d} n-grams  #{number}"


def _opened(profile: Path, trust: Path) -> "Profile":
    from privguard.attest.statement import Identity
    from privguard.watermark.text.profile import Profile

    return Profile.read(profile, by=Identity.read(trust))


def _reader(known: "Profile", tokenizer: Path | None) -> Any:
    reader = None if tokenizer is None else load_tokenizer(tokenizer)
    if reader is not None:
        known.require_tokenizer(reader)
    return reader


def _documents(inputs: list[str], known: "Profile", tokenizer: Path | None) -> "Documents":
    from privguard.watermark.text.reading.ngrams import Documents

    reader = _reader(known, tokenizer)
    lists = [tokens_of(row, reader, width=known.logits_width) for row in read_rows(inputs)]
    return Documents.of_lists(lists).below(known.logits_width)


def _standing(found: Any, document: int, *, hit: bool, owned: bool, log10_level: float) -> str:
    """Who wrote a text that was found, as far as that can be said."""
    stretches = found.stretches[document]
    if owned and len(stretches) > 1:
        return f"  {len(stretches)} stretches under {len({s.subkey for s in stretches})} sub-keys"
    if not hit or owned:
        return ""
    if bool(found.mixed(log10_level=log10_level)[document]):
        return "  not attributed: many sub-keys agree (many short pieces, or a forgery)"
    return "  not attributed: its pieces are too short"


def write_reports(
    folder: Path, detector: Any, documents: list[list[int]], *, tokenizer: Any, log10_level: float, tests: float = 1.0
) -> None:
    """One HTML page and one JSON file per document."""
    from privguard.watermark.text.reading.ngrams import Documents
    from privguard.watermark.text.reading.page import report, words_of_tokens

    folder.mkdir(parents=True, exist_ok=True)
    for number, ids in enumerate(documents):
        words = [f"{i} " for i in ids] if tokenizer is None else words_of_tokens(tokenizer, ids)
        made = report(
            detector,
            Documents.of_lists([ids]).below(detector.profile.logits_width),
            words=words,
            log10_level=log10_level,
            tests=tests,
        )
        (folder / f"document-{number}.html").write_text(made.to_html(), encoding="utf-8")
        (folder / f"document-{number}.json").write_text(json.dumps(made.to_json(), indent=2, ensure_ascii=False) + "\n")
    stderr().print(f"{len(documents)} reports in {folder}")
