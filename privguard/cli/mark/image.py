# SPDX-License-Identifier: Apache-2.0
"""``privguard mark image``: set up a profile, write marks into pictures, detect them.

Inputs are picture files, folders with pictures, or quoted patterns such as ``"out/**/*.png"``.
"""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privguard.cli._output import AsJson, emit, progress
from privguard.cli._recording import recorded
from privguard.cli.mark._files import image_profile, image_secret, signing_key

if TYPE_CHECKING:
    from privguard.watermark.image.detect import ImageDetector
    from privguard.watermark.image.profile import ImageProfile
    from privguard.watermark.image.registry import ImageLog
    from privguard.watermark.image.sync import Search
    from privguard.watermark.image.write import ImageMark

app = typer.Typer(help="Marks in pictures: setup, write, detect, attribute, drill.", no_args_is_help=True)

ProfilePath = Annotated[Path, typer.Option("--profile", help="The signed profile.", exists=True)]
SecretPath = Annotated[Path, typer.Option("--secret", help="The owner's secret.", exists=True)]
TrustPath = Annotated[Path, typer.Option("--trust", help="PEM public key of who signed the profile.", exists=True)]
Inputs = Annotated[list[str], typer.Argument(help="Pictures, folders with pictures, or quoted patterns.")]
Level = Annotated[float, typer.Option("--level", help="Error probability, over all pictures together.")]


@app.command()
def setup(
    profile: Annotated[Path, typer.Option("--profile", help="Where the signed profile is written.")],
    secret: Annotated[Path, typer.Option("--secret", help="The secret: read if there, else made.")],
    sign_with: Annotated[Path, typer.Option("--sign-with", help="Signing key (PEM): read if there, else made.")],
    identifier_bits: Annotated[int, typer.Option("--identifier-bits", help="24, 36 or 48.")] = 24,
    subkeys: Annotated[int, typer.Option("--subkeys", help="Sub-keys that pictures are written under.")] = 16,
    psnr: Annotated[float, typer.Option("--psnr", help="Strength in decibels, 34 (strong) to 50 (faint).")] = 42.0,
    as_json: AsJson = False,
) -> None:
    """Make (or read) a secret and a signing key, and write the signed profile that writer and detector share."""
    from privguard.watermark.image.profile import ImageProfile
    from privguard.watermark.secret import Secret

    if not secret.exists():
        Secret.generate().write(secret)
    made = ImageProfile.create(Secret.read(secret), identifier_bits=identifier_bits, subkeys=subkeys, target_psnr=psnr)
    key = signing_key(sign_with)
    made.write(profile, by=key)
    public = profile.with_suffix(".pem")
    key.identity.write(public)
    emit(made, as_json=as_json, lines=[f"profile {profile}, signed by {key.identity}", f"trust   {public}"])


@app.command()
def write(
    inputs: Inputs,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the marked pictures.")],
    profile: ProfilePath,
    secret: SecretPath,
    trust: TrustPath,
    identifier: Annotated[
        int | None, typer.Option("--identifier", help="The number in all of them; else each gets one of its own.")
    ] = None,
    log: Annotated[
        Path | None, typer.Option("--log", help="Signed log to note each picture in; with --sign-with.")
    ] = None,
    sign_with: Annotated[Path | None, typer.Option("--sign-with", help="Signing key of the log (PEM).")] = None,
    as_json: AsJson = False,
) -> None:
    """Mark pictures into a folder; those that are there already are left alone, so a stopped run can go on.

    A picture that cannot carry a mark is named and left out, and the exit code is then 1.
    """
    from privguard.errors import MarkError
    from privguard.watermark.image.pictures import find_pictures, require_own_places
    from privguard.watermark.image.write import ImageMark

    known, owner = image_profile(profile, trust), image_secret(secret)
    job = _Writing(ImageMark(known, owner), out, identifier, _log(known, log, sign_with))
    pairs = find_pictures(inputs)
    require_own_places(pairs)
    rows: list[dict[str, Any]] = []
    with recorded(), progress() as bar:
        for path, place in bar.track(pairs, description="marking"):
            try:
                rows.append(job.write(path, place))
            except MarkError as error:
                rows.append({"picture": str(path), "refused": str(error)})
    emit(rows, as_json=as_json, lines=[_written_line(row) for row in rows])
    if any("refused" in row for row in rows):
        raise typer.Exit(1)


@app.command()
def detect(
    inputs: Inputs,
    profile: ProfilePath,
    secret: SecretPath,
    trust: TrustPath,
    search: Annotated[
        str, typer.Option("--search", help="grid (shift, flip, quarter turn), scale, or scale+angle; each is free.")
    ] = "grid",
    identifier: Annotated[
        int | None, typer.Option("--identifier", help="Ask for this identifier, named before looking.")
    ] = None,
    level: Level = 1e-6,
    report: Annotated[Path | None, typer.Option("--report", help="Folder for one HTML page per picture.")] = None,
    as_json: AsJson = False,
) -> None:
    """Detect the mark in each picture; exit code 1 when it was found in none.

    A mark that was found is also attributed, unless it lies in a part of the picture only or many sub-keys agree, as in
    a collage or a forgery learnt from many pictures; one honest picture in twenty is not attributed by chance.
    """
    from privguard.watermark.image.detect import ImageDetector
    from privguard.watermark.image.pictures import find_pictures, require_own_places
    from privguard.watermark.image.sync import Search

    if search not in set(Search):
        raise ValueError(f"--search={search!r}: expected one of {', '.join(Search)}")
    detector = ImageDetector(image_profile(profile, trust), image_secret(secret))
    if report is not None and identifier is not None:
        raise ValueError("--report, --identifier: expected one of them; a page shows what any identifier gives")
    pairs = find_pictures(inputs)
    if report is not None:
        require_own_places(pairs)
    asked = _Asked(Search(search), math.log10(_level(level)), identifier, len(pairs), report)
    with progress() as bar:
        rows = [_look(detector, path, place, asked) for path, place in bar.track(pairs, description="reading")]
    emit(rows, as_json=as_json, lines=[_found_line(row) for row in rows])
    if not any(row["found"] for row in rows):
        raise typer.Exit(1)


@app.command()
def attribute(
    inputs: Inputs,
    profile: ProfilePath,
    secret: SecretPath,
    trust: TrustPath,
    log: Annotated[Path, typer.Option("--log", help="The signed log.", exists=True)],
    log_trust: Annotated[list[Path], typer.Option("--log-trust", help="PEM of a signer of the log; again for each.")],
    search: Annotated[str, typer.Option("--search", help="grid, scale or scale+angle, as for detect.")] = "grid",
    level: Level = 1e-6,
    evidence: Annotated[
        Path | None, typer.Option("--evidence", help="A run's evidence folder: what is found enters its report.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say of each picture whether the log has it: found, copied, undecided or not found; exit code 1 if none was found.

    Copied means that the mark is there on a picture that looks like none of the entries with its identifier; undecided,
    that too little of it carries the mark, or it is too changed, to say.
    """
    from privguard.attest.statement import Identity
    from privguard.watermark.image import evidence as evidences
    from privguard.watermark.image import registry as logs
    from privguard.watermark.image.detect import ImageDetector
    from privguard.watermark.image.pictures import find_pictures, read_picture
    from privguard.watermark.image.sync import Search

    if search not in set(Search):
        raise ValueError(f"--search={search!r}: expected one of {', '.join(Search)}")
    detector = ImageDetector(image_profile(profile, trust), image_secret(secret))
    entries = logs.read_log(log, trusted=[Identity.read(path) for path in log_trust])
    paths = [path for path, _ in find_pictures(inputs)]
    log10_level, tests = math.log10(_level(level)), max(1, len(paths))
    rows: list[dict[str, Any]] = []
    with progress() as bar:
        for path in bar.track(paths, description="asking"):
            rgb = read_picture(path).seen()
            content = path.read_bytes()
            detections, digest = detector.detect([rgb], search=Search(search)), hashlib.sha256(content).hexdigest()
            answer = logs.attribute(rgb, detections, entries, sha256=digest, log10_level=log10_level, tests=tests)
            if evidence is not None and (answer.mark_found or answer.same_file):
                evidences.write(evidences.of_mark(answer, name=path.name, content=content), evidence)
            rows.append({"picture": str(path), **answer.to_json()})
    lines = [f"{row['answer']:10s} log10 p = {row['verdict']['log10_p']:8.2f}  {row['picture']}" for row in rows]
    emit(rows, as_json=as_json, lines=lines)
    if not any(row["answer"] == "found" for row in rows):
        raise typer.Exit(1)


@dataclass(frozen=True)
class _Writing:
    """Marks one picture after the other into a folder."""

    mark: "ImageMark"
    out: Path
    identifier: int | None
    log: "ImageLog | None"

    def write(self, path: Path, place: Path) -> dict[str, Any]:
        """Mark one picture, unless it is there already."""
        from privguard.attest.journal import acting
        from privguard.watermark.image.pictures import read_picture, write_new

        target = self.out / place
        if target.exists():
            return {"picture": str(path), "target": str(target), "there_already": True}
        picture = read_picture(path)
        written = self.mark.write(picture.rgb, identifier=self.identifier)
        content = picture.encoded(written.pixels, target.suffix)
        with acting("mark", target):
            if self.log is not None:  # first: a picture in the world without its line could not be attributed
                digest = hashlib.sha256(content).hexdigest()
                self.log.record(
                    picture.seen(written.pixels), identifier=written.identifier, sha256=digest, subject=str(place)
                )
            write_new(target, content)
        return {
            "picture": str(path),
            "target": str(target),
            "identifier": written.identifier,
            "psnr": round(written.psnr, 2),
        }


@dataclass(frozen=True)
class _Asked:
    """What is asked of every picture."""

    search: "Search"
    log10_level: float
    identifier: int | None
    tests: int
    report: Path | None


def _look(detector: "ImageDetector", path: Path, place: Path, asked: _Asked) -> dict[str, Any]:
    from privguard.watermark.image.pictures import read_picture

    rgb = read_picture(path).seen()
    detections = detector.detect([rgb], search=asked.search)
    verdict = detections.verdict(0, tests=max(1, asked.tests), identifier=asked.identifier)
    hit = verdict.log10_p_corrected <= asked.log10_level
    alone = bool(detections.accepted(log10_level=0.0)[0])
    row = {**verdict.to_json(), "picture": str(path), "found": hit, "attributed": hit and alone}
    if asked.report is not None:
        from privguard.watermark.image.page import ImageReport

        page = asked.report / f"{place}.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        made = ImageReport.of(detector, detections, rgb, log10_level=asked.log10_level, tests=max(1, asked.tests))
        page.write_text(made.to_html(), encoding="utf-8")
        row["page"] = str(page)
    return row


def _written_line(row: dict[str, Any]) -> str:
    if "refused" in row:
        return f"refused  {row['picture']}: {row['refused']}"
    if "there_already" in row:
        return f"there    {row['target']}"
    return f"marked   {row['target']}  identifier {row['identifier']}  {row['psnr']:.1f} dB"


def _found_line(row: dict[str, Any]) -> str:
    p = min(0.0, row["log10_p"] + math.log10(row["multiplicity"]))
    if not row["found"]:
        return f"not found  log10 p = {p:8.2f}  {row['picture']}"
    doubt = "" if row["attributed"] else "  not attributed: it lies in a part only, or many sub-keys agree"
    return f"found      log10 p = {p:8.2f}  {row['picture']}  identifier {row['details']['identifier']}{doubt}"


def _log(profile: "ImageProfile", path: Path | None, sign_with: Path | None) -> "ImageLog | None":
    from privguard.attest.journal import Journal
    from privguard.watermark.image.registry import ImageLog

    if (path is None) is not (sign_with is None):
        raise ValueError("--log, --sign-with: expected both or neither; the log's lines are signed")
    if path is None or sign_with is None:
        return None
    return ImageLog(profile, Journal(path, by=signing_key(sign_with)))


def _level(level: float) -> float:
    from privguard import _check

    return _check.probability("--level", level)
