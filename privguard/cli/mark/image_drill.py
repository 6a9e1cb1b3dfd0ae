# SPDX-License-Identifier: Apache-2.0
"""``privguard mark image drill``: what marking costs and what handling leaves of it, on the owner's own pictures."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from privguard.cli._output import AsJson, emit, progress, stderr
from privguard.cli.mark._files import image_profile, image_secret
from privguard.cli.mark.image import Inputs, Level, ProfilePath, SecretPath, TrustPath

if TYPE_CHECKING:
    from privguard.watermark.image.drill import Drilled, Survival
    from privguard.watermark.image.write import ImageMark

app = typer.Typer()


@app.command()
def drill(
    inputs: Inputs,
    profile: ProfilePath,
    secret: SecretPath,
    trust: TrustPath,
    level: Level = 1e-6,
    as_json: AsJson = False,
) -> None:
    """Mark your own pictures in memory, handle them, detect again: quality, survival, smallest size that holds.

    Nothing is written. A picture takes some seconds. One that cannot carry a mark is named; the exit code is then 1.
    """
    from privguard import _check
    from privguard.watermark.image import drill as drills
    from privguard.watermark.image.detect import ImageDetector
    from privguard.watermark.image.pictures import find_pictures
    from privguard.watermark.image.write import ImageMark

    known, owner = image_profile(profile, trust), image_secret(secret)
    mark, detector = ImageMark(known, owner), ImageDetector(known, owner)
    log10_level = math.log10(_check.probability("--level", level))
    drilled: list[Drilled] = []
    refused: list[dict[str, str]] = []
    with progress() as bar:
        for path, _ in bar.track(find_pictures(inputs), description="drilling"):
            row = _drilled(mark, detector, path, log10_level)
            if isinstance(row, str):
                refused.append({"picture": str(path), "refused": row})
            else:
                drilled.append(row)
    table = drills.survival(drilled, log10_level=log10_level)
    smallest = drills.smallest_size(drilled, log10_level=log10_level)
    record: dict[str, Any] = {
        "profile": known.digest(),
        "pictures": [each.to_json() for each in drilled],
        "survival": [row.to_json() for row in table],
        "smallest_size": smallest,
        "refused": refused,
    }
    emit(record, as_json=as_json, lines=_lines(drilled, table, smallest))
    for row in refused:
        stderr().print(f"refused  {row['picture']}: {row['refused']}", markup=False)
    if refused:
        raise typer.Exit(1)


def _drilled(mark: "ImageMark", detector: Any, path: Path, log10_level: float) -> "Drilled | str":
    from privguard.errors import MarkError
    from privguard.watermark.image.drill import drill as drill_one
    from privguard.watermark.image.pictures import read_picture

    try:
        return drill_one(mark, detector, read_picture(path).rgb, name=str(path), log10_level=log10_level)
    except MarkError as error:
        return str(error)


def _lines(drilled: "list[Drilled]", table: "list[Survival]", smallest: int | None) -> list[str]:
    if not drilled:
        return ["no picture could be drilled"]
    psnr, ssim = [each.psnr for each in drilled], [each.ssim for each in drilled]
    quality = f"SSIM {sum(ssim) / len(ssim):.3f} on average, {min(ssim):.3f} at least"
    lines = [
        f"pictures  {len(drilled)}; least PSNR {min(psnr):.1f} dB; {quality}",
        f"{'handling':20s} {'found':>6s} {'attributed':>10s} {'identifier':>10s} {'median':>8s} {'worst':>8s}",
    ]
    for row in table:
        shares = f"{row.found:6.0%} {row.attributed:10.0%} {row.identifier_right:10.0%}"
        lines.append(f"{row.handling:20s} {shares} {row.median_log10_p:8.1f} {row.worst_log10_p:8.1f}")
    size = "none that was tried" if smallest is None else f"{smallest} pixels"
    return [*lines, f"smallest  short side from which on every picture was found after JPEG 75: {size}"]
