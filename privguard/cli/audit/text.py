# SPDX-License-Identifier: Apache-2.0
"""privguard audit text."""

import contextlib
import json
import os
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privguard import _check
from privguard.cli._output import AsJson, emit, progress
from privguard.cli.audit import _lines

if TYPE_CHECKING:
    from privguard.audit.text.audit import Extracted, TextAudit
    from privguard.audit.text.sources import Source

TABLES = {".csv", ".parquet"}


def text(
    target: Annotated[
        str,
        typer.Argument(
            help="Folder of a causal language model or of an adapter, or an address that speaks completions."
        ),
    ],
    members: Annotated[
        Path, typer.Option(help="Texts it was trained on: .txt with one a line, .jsonl, CSV or Parquet with text.")
    ],
    non_members: Annotated[Path, typer.Option(help="Texts like them that it was not trained on.")],
    base: Annotated[
        Path | None, typer.Option(help="Folder of the model before fine-tuning; an adapter names its own.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Key file of a sealed folder.")] = None,
    longest: Annotated[int, typer.Option(help="Tokens of a text that count.")] = 512,
    batch: Annotated[int, typer.Option(help="Texts in one forward pass.")] = 16,
    model_name: Annotated[str, typer.Option("--model", help="What an address calls the model.")] = "",
    rate: Annotated[float | None, typer.Option(help="Requests a second to an address, at most.")] = None,
    budget: Annotated[int | None, typer.Option(help="Requests to an address in this run, at most.")] = None,
    token_env: Annotated[
        str | None, typer.Option(help="Name of the environment variable with the address's bearer token.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for answers and audit.json; a second call goes on from it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Attack a language model: loss, zlib, Min-K%, Min-K%++, base ratio and windows, and what it says verbatim."""
    from privguard.audit.targets import pretrained
    from privguard.audit.text.audit import audit_texts

    inside, outside = read_texts(members), read_texts(non_members)
    place = _Place(key, longest, batch, model_name, rate, budget, token_env, out)
    if base is None and not _is_address(target):
        base = pretrained.base_of(Path(target))
    with _heard(f"texts, {target}", len(inside) + len(outside)) as on_text:
        asked = _source(target, place, on_text, base=base)
        before = None if base is None else _folder(base, place, on_text, key=None)
        found = audit_texts(asked, inside, outside, base=before)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        record = json.dumps(found.to_json(), indent=2, ensure_ascii=False)
        (out / "audit.json").write_text(record, encoding="utf-8")
    emit(found, as_json=as_json, lines=_text_lines(found))


def read_texts(path: Path) -> list[str]:
    """Texts of a ``.txt`` file, one a line, of ``.jsonl`` with ``text``, or of a table's column ``text``.

    Raises:
        ValueError: the file has no texts.
    """
    from privguard.audit.membership.scores import array, read_scores

    if path.suffix.lower() in TABLES:
        texts = [str(each) for each in array(read_scores(path), "text", path=path)]
    else:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        texts = [_text_of(path, line) for line in lines] if path.suffix.lower() == ".jsonl" else lines
    _check.require(bool(texts), f"{path}: texts", 0, wanted="at least one")
    return texts


@dataclass(frozen=True)
class _Place:
    """Where a model is and how it may be asked."""

    key: Path | None
    longest: int
    batch: int
    model_name: str
    rate: float | None
    budget: int | None
    token_env: str | None
    out: Path | None


def _is_address(target: str) -> bool:
    return target.startswith(("http://", "https://"))


@contextlib.contextmanager
def _heard(what: str, total: int) -> Generator[Callable[[int], None]]:
    """A bar with the time left over all texts, once for the target and once more where a base goes on with it."""
    with progress() as bar:
        task = bar.add_task(what, total=total)

        def on_text(count: int) -> None:
            bar.advance(task, count)
            if (done := bar.tasks[task].completed) > (bar.tasks[task].total or 0):
                bar.update(task, total=2 * total, completed=done)

        yield on_text


def _source(target: str, place: _Place, on_text: Callable[[int], None], *, base: Path | None) -> "Source":
    if not _is_address(target):
        return _folder(Path(target), place, on_text, key=place.key, base=base)
    from privguard.audit.targets.http import Client, Pace
    from privguard.audit.text.sources import Completions

    token = os.environ.get(place.token_env) if place.token_env else None
    if place.token_env and not token:
        raise typer.BadParameter(f"${place.token_env} is not set", param_hint="--token-env")
    if not place.model_name:
        raise typer.BadParameter("an address needs --model, what it calls the model")
    kept = place.out / "answers.jsonl" if place.out else None
    client = Client(target, pace=Pace(rate=place.rate, budget=place.budget), kept=kept, token=token)
    return Completions(client=client, model=place.model_name, on_text=on_text)


def _folder(
    folder: Path, place: _Place, on_text: Callable[[int], None], *, key: Path | None, base: Path | None = None
) -> "Source":
    from privguard.audit.membership.audit import target_digest
    from privguard.audit.targets import pretrained
    from privguard.audit.targets.kept import Kept
    from privguard.audit.text.sources import Local

    if key is None:
        model, tokenizer = pretrained.load_language(folder, base=base), pretrained.load_tokenizer(folder, base)
    else:
        model, tokenizer = _sealed(folder, key)
    digest = target_digest(model)
    kept = place.out / f"answers-{digest[:16]}.jsonl" if place.out else None
    _check.count("longest", place.longest, least=2)
    return Local(
        name=digest,
        model=model,
        ids=lambda line: tokenizer(line)["input_ids"],
        longest=min(place.longest, getattr(model.config, "max_position_embeddings", None) or place.longest),
        batch=_check.count("batch", place.batch),
        kept=Kept(kept),
        on_text=on_text,
    )


def _sealed(folder: Path, key: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM

    from privguard.checkpoint.keys.key import Key
    from privguard.integrations.sealed.pretrained import from_pretrained, load_tokenizer

    opened = Key.read(key)
    return from_pretrained(AutoModelForCausalLM, folder, key=opened), load_tokenizer(folder, key=opened)


def _text_of(path: Path, line: str) -> str:
    try:
        value = json.loads(line)["text"]
    except (ValueError, TypeError, KeyError):
        value = None
    _check.require(isinstance(value, str), f"{path}: a line", type(value).__name__, wanted='{"text": "…"}')
    return str(value)


def _text_lines(found: "TextAudit") -> list[str]:
    flag = "  FLAGGED: the split shows without the model" if found.blind.flagged else ""
    return [
        found.leak.value if found.leak else "",
        *([found.limit] if found.limit else []),
        f"{found.members} members, {found.non_members} non-members" + ("" if found.base else ", no base model"),
        *_lines.attack_lines(found.attacks),
        f"blind baseline  AUC {found.blind.auc.value:.3f}{flag}",
        _lines.exposed_line(found.exposed),
        f"extracted       of members {_extracted(found.extracted)}",
        f"                of others  {_extracted(found.extracted_of_others)}",
        *found.notes,
        *_lines.not_claimed(found.not_claimed),
    ]


def _extracted(found: "Extracted") -> str:
    within = ", ".join(
        f"{count} within {samples:,}" for samples, count in zip(found.samples, found.within, strict=True)
    )
    return f"{found.verbatim} of {found.texts} verbatim by greedy decoding; by samples with chance one half: {within}"
