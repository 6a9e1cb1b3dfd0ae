# SPDX-License-Identifier: Apache-2.0
"""privguard audit membership."""

import contextlib
import json
import os
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privguard.cli._output import AsJson, emit, progress
from privguard.cli.audit import _lines

if TYPE_CHECKING:
    from privguard.audit.membership.audit import Examples
    from privguard.audit.references.reference import References
    from privguard.audit.targets.http import Client

FILES = {".npz", ".csv", ".parquet"}
PICKLES = {".pkl", ".pickle", ".joblib", ".pt", ".pth", ".bin"}
SPLIT = "--members and --non-members"


def membership(
    target: Annotated[
        str,
        typer.Argument(
            help="module:name of a torch module, an estimator or a function; a folder of transformers or of an "
            "adapter, sealed too; an http address; or a file of scores."
        ),
    ],
    members: Annotated[
        Path | None, typer.Option(help=".npz, CSV or Parquet with inputs and labels that the model was trained on.")
    ] = None,
    non_members: Annotated[Path | None, typer.Option(help="The same, that it was not trained on.")] = None,
    outputs: Annotated[
        str, typer.Option(help="detect, logits, probabilities or labels: what the model gives for a record.")
    ] = "detect",
    architecture: Annotated[
        str | None, typer.Option(help="module:name of a function that makes an untrained model, for references.")
    ] = None,
    references: Annotated[int, typer.Option(help="Reference models to train; 0 runs the loss attack alone.")] = 0,
    epochs: Annotated[int, typer.Option(help="Of a reference model.")] = 20,
    batch_size: Annotated[int, typer.Option(help="Of a reference model.")] = 64,
    learning_rate: Annotated[float, typer.Option(help="Of a reference model.")] = 0.1,
    copies: Annotated[int, typer.Option(help="For labels: altered copies of each record that are asked for.")] = 1,
    noise: Annotated[float, typer.Option(help="For labels: what is added to a copy, in units of the inputs.")] = 0.0,
    rate: Annotated[float | None, typer.Option(help="Requests a second to an address, at most.")] = None,
    budget: Annotated[int | None, typer.Option(help="Requests to an address in this run, at most.")] = None,
    records: Annotated[int, typer.Option(help="Records in one request.")] = 32,
    token_env: Annotated[
        str | None, typer.Option(help="Name of the environment variable with the address's bearer token.")
    ] = None,
    base: Annotated[Path | None, typer.Option(help="Folder of an adapter's base model.")] = None,
    key: Annotated[Path | None, typer.Option(help="Key file of a sealed folder.")] = None,
    randomised: Annotated[
        bool, typer.Option("--randomised", help="Members and non-members were split at random.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for answers, references, audit.json and roc.svg; a second call goes on from it."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Attack whatever model you have: loss, LiRA and RMIA, or labels; the blind baseline, and who stands out most."""
    if Path(target).suffix.lower() in FILES:
        _lines.emit_scores(Path(target), as_json=as_json)
        return
    if members is None or non_members is None:
        raise typer.BadParameter(f"a model needs {SPLIT}; only a file of scores has both sides in it")
    from privguard.audit import loading
    from privguard.audit.membership import audit
    from privguard.audit.targets.endpoint import Outputs, read_as

    inside, outside = loading.examples(members), loading.examples(non_members)
    said = Outputs(_choice("--outputs", outputs, tuple(Outputs)))
    trained = None
    if references:
        schedule = _Schedule(references, epochs, batch_size, learning_rate)
        trained = _references(inside, outside, schedule, architecture=architecture, out=out)
    place = _Place(base, key, token_env, rate, budget, records, out)
    with _model(target, place, total=(len(inside) + len(outside)) * copies) as model:
        classes = loading.classes(inside, outside) if said is Outputs.LABELS else 0
        asked = read_as(model, said, classes=classes, copies=copies, noise=noise)
        assignment = audit.Assignment.CLAIMED if randomised else audit.Assignment.UNKNOWN
        attacked = audit.run(asked, inside, outside, references=trained, assignment=assignment)
    if out:
        _write(attacked, out)
    emit(attacked.record, as_json=as_json, lines=_lines.membership(attacked.record))


@dataclass(frozen=True)
class _Place:
    """Where a model is and how it may be asked."""

    base: Path | None
    key: Path | None
    token_env: str | None
    rate: float | None
    budget: int | None
    records: int
    out: Path | None


@dataclass(frozen=True)
class _Schedule:
    count: int
    epochs: int
    batch_size: int
    learning_rate: float


@contextlib.contextmanager
def _model(target: str, place: _Place, *, total: int) -> Generator[object]:
    """The model that a person named, for the length of the audit; questions to an address show a bar."""
    from privguard.audit import loading
    from privguard.audit.targets import pretrained
    from privguard.audit.targets.endpoint import Endpoint

    path = Path(target)
    if target.startswith(("http://", "https://")):
        with progress() as bar:
            task = bar.add_task("records asked for", total=total)
            yield Endpoint(_client(target, place), place.records, lambda done: bar.advance(task, done))
    elif path.suffix.lower() in PICKLES:
        raise ValueError(f"target={target!r}: such a file can run code when it is read; give module:name of a function")
    elif place.key is not None:
        yield _sealed(path, place.key)
    elif path.is_dir():
        yield pretrained.load(path, base=place.base)
    else:
        yield loading.model_named(target)


def _client(target: str, place: _Place) -> "Client":
    from privguard.audit.targets.http import Client, Pace

    token = None
    if place.token_env is not None:
        token = os.environ.get(place.token_env)
        if not token:
            raise typer.BadParameter(f"${place.token_env} is not set", param_hint="--token-env")
    kept = place.out / "answers.jsonl" if place.out else None
    return Client(target, pace=Pace(rate=place.rate, budget=place.budget), kept=kept, token=token)


def _sealed(path: Path, key: Path) -> object:
    from privguard.audit.targets.pretrained import CONFIG, Pretrained, class_of
    from privguard.checkpoint.keys.key import Key
    from privguard.checkpoint.opened import Sealed
    from privguard.integrations.sealed.pretrained import from_pretrained

    opened = Key.read(key)
    with Sealed(path, opened) as sealed:
        if CONFIG not in sealed.names():
            raise ValueError(f"{path}: expected a sealed folder of transformers, with {CONFIG} in it")
        config = json.loads(sealed.read(CONFIG))
    return Pretrained(from_pretrained(class_of(config), path, key=opened))


def _choice(option: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise typer.BadParameter(f"{value!r} is none of {', '.join(choices)}", param_hint=option)
    return value


def _write(attacked: Any, out: Path) -> None:
    from privguard.audit.membership.roc_plot import roc_svg

    out.mkdir(parents=True, exist_ok=True)
    curve = roc_svg(attacked.statistics, attacked.members, blind=attacked.blind)
    (out / "roc.svg").write_text(curve, encoding="utf-8")
    record = json.dumps(attacked.record.to_json(), indent=2, ensure_ascii=False)
    (out / "audit.json").write_text(record, encoding="utf-8")


def _references(
    members: "Examples", non_members: "Examples", wanted: _Schedule, *, architecture: str | None, out: Path | None
) -> "References":
    """Train reference models on both sides together, with a bar; with a folder, a second call goes on from there."""
    import torch

    from privguard.audit.loading import named
    from privguard.audit.references.reference import Place, Schedule, draw_inclusion, train_references

    if architecture is None:
        raise typer.BadParameter("references need --architecture, a function that makes an untrained model")
    inputs = torch.cat([members.inputs, non_members.inputs])
    labels = torch.cat([members.labels, non_members.labels])
    with progress() as bar:
        task = bar.add_task("reference models", total=wanted.count)
        place = Place(
            folder=out / "references" if out else None,
            on_progress=lambda done, _total, _left: bar.update(task, completed=done),
        )
        return train_references(
            named(architecture),
            inputs,
            labels,
            included=draw_inclusion(wanted.count, len(labels), seed=0),
            schedule=Schedule(epochs=wanted.epochs, batch_size=wanted.batch_size, learning_rate=wanted.learning_rate),
            place=place,
        )
