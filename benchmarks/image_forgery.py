# SPDX-License-Identifier: Apache-2.0
"""Forgers of the image mark, and what the log says of carried marks.

python -m benchmarks.image_forgery             every part, about ten minutes on one core
python -m benchmarks.image_forgery learn       one part; PARTS below names them all
python -m benchmarks.image_forgery --quick     small settings
"""

import argparse
import json
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from scipy import ndimage

from benchmarks.image_mark import ATTACKS, PROFILE, SECRET
from benchmarks.image_pictures import parts, pictures
from privguard.attest.journal import Journal
from privguard.attest.statement import SigningKey
from privguard.watermark.image.blocks import LEAST_CONTRAST, Grid, _weights, content, contrast
from privguard.watermark.image.detect import ImageDetector
from privguard.watermark.image.keys import BLOCK, TILE, pieces_of, walsh
from privguard.watermark.image.pixels import luma, mask, residual, spread_out
from privguard.watermark.image.registry import ImageLog, attribute, read_log
from privguard.watermark.image.write import ImageMark

RESULT = Path(__file__).parent / "results" / "image_forgery.json"


def _paste(field, rgb, decibels):
    y = luma(rgb)
    change = mask(y) * field / field.std()
    change *= 255 / 10 ** (decibels / 20) / np.sqrt((change * change).mean())
    return np.clip(np.rint(rgb + change[..., None]), 0, 255).astype(np.uint8)


def _square(rgb, size=320):
    rows = np.pad(rgb, [(0, max(0, size - n)) for n in rgb.shape[:2]] + [(0, 0)], mode="reflect")
    return np.ascontiguousarray(rows[:size, :size])


def forge(quick):
    """One marked picture's residual on 50 foreign pictures, the true sync tile given; at 42 and 36 dB."""
    detector, writer, tile = ImageDetector(PROFILE, SECRET), ImageMark(PROFILE, SECRET), PROFILE.keys(SECRET).sync
    source = writer.write(_square(pictures()["astronaut.png"]))  # of the first half
    stolen = residual(luma(source.pixels)) + 0.5 * np.tile(spread_out(tile, TILE), (3, 3))[:320, :320]
    targets = list(parts(5 if quick else 50, foreign=True))
    out = {}
    for decibels in (42, 36):
        found = detector.detect([_paste(stolen, rgb, decibels) for rgb in targets])
        out[str(decibels)] = {
            "accepted": int(found.accepted(log10_level=-6).sum()),
            "least_log10_p": float(found.log10_p.min()),
            "found": int((found.log10_p <= -6).sum()),
            "of": len(targets),
        }
    flat = [np.full((320, 320, 3), level, np.uint8) for level in (60, 128, 200)]
    out["flat, with the source's coarse content"] = _flat(detector, source, stolen, flat)
    print("forged from one picture:", out, flush=True)
    return out


def _flat(detector, source, stolen, flats):
    """The adaptive forger: a flat picture is first given the source's own shading at some strength."""
    y, rows = luma(source.pixels), {}
    shading = ndimage.gaussian_filter(y, 12) - y.mean()
    for strength in (0.05, 0.1, 0.15, 0.2):
        made = [np.clip(rgb + (strength * shading)[..., None], 0, 255).astype(np.uint8) for rgb in flats]
        found = detector.detect([_paste(stolen, rgb, 42) for rgb in made])
        rows[f"{strength * shading.std():.1f} grey levels"] = [round(float(p), 1) for p in found.log10_p]
    return rows


def learn(quick):
    """For each block of a foreign picture the mean residual of the marked blocks with the nearest content.

    The forger has the true sync tile, and knows which blocks carry evidence. The strongest one is also told which
    pictures share the most frequent sub-key: no forger learns more from 300 pictures of one sub-key among sixteen.
    """
    out, targets = {}, list(parts(5 if quick else 50, foreign=True))
    for kind, number in (("one identifier", 12345), ("an identifier each", None)):
        coarse, fields, subkeys = _library(parts(30 if quick else 300), number)
        used = contrast(coarse) >= LEAST_CONTRAST
        told = used & (subkeys == np.bincount(subkeys).argmax())
        for forger, kept, nearest in (
            ("all blocks", np.ones(len(used), bool), 37),
            ("blocks with evidence", used, 12),
            ("blocks with evidence, sub-key told", told, 4),
        ):
            forged = [_learnt(rgb, coarse[kept], fields[kept], nearest) for rgb in targets]
            found = ImageDetector(PROFILE, SECRET).detect(forged)
            row = out[f"{kind}, {forger}"] = {
                "accepted": int(found.accepted(log10_level=-6).sum()),
                "found": int((found.log10_p <= -6).sum()),
                "least_log10_p": float(found.log10_p.min()),
                "of": len(forged),
            }
            print(f"learnt, {kind}, {forger}:", row, flush=True)
    return out


def manifests(quick):
    """The learner who knows each picture's identifier, and turns every residual back before he averages.

    Why manifests hold a keyed value in the identifier's place.
    """
    out, targets = {}, list(parts(5 if quick else 50, foreign=True))
    coarse, fields, subkeys, identifiers = _library(parts(30 if quick else 300), None, with_identifiers=True)
    used = contrast(coarse) >= LEAST_CONTRAST
    told = used & (subkeys == np.bincount(subkeys).argmax())
    signs = _weights(fields).astype(np.float32)
    turned = np.stack([signs * _turns(identifiers, piece) for piece in range(PROFILE.pieces)])
    for forger, kept, nearest in (("", used, 12), (", sub-key told", told, 4)):
        forged = [_turned(rgb, coarse[kept], turned[:, kept], nearest) for rgb in targets]
        found = ImageDetector(PROFILE, SECRET).detect(forged)
        row = out[f"identifiers told{forger}"] = {
            "accepted": int(found.accepted(log10_level=-6).sum()),
            "found": int((found.log10_p <= -6).sum()),
            "least_log10_p": float(found.log10_p.min()),
            "of": len(forged),
        }
        print(f"learnt, identifiers told{forger}:", row, flush=True)
    return out


def _turns(identifiers, piece):
    values = [pieces_of(int(each), pieces=PROFILE.pieces)[piece] for each in identifiers]
    table = {value: walsh(value).astype(np.float32) for value in set(values)}
    return np.stack([table[value] for value in values])


def _turned(rgb, coarse, turned, nearest, identifier=12345):
    known = coarse / (np.linalg.norm(coarse, axis=1, keepdims=True) + 1e-9)
    y = luma(rgb)
    grid = Grid.of(y.shape)
    near = np.argsort(-(content(grid.cut(y)) @ known.T), axis=1)[:, :nearest]
    own = [walsh(m).astype(np.float32) for m in pieces_of(identifier, pieces=PROFILE.pieces)]
    summed = sum(turned[piece][near].mean(1) * own[piece] for piece in range(PROFILE.pieces))
    field = grid.join(spread_out(summed.reshape(-1, BLOCK, BLOCK), BLOCK), y.shape)
    tile = np.tile(spread_out(PROFILE.keys(SECRET).sync, TILE), (3, 3))[:320, :320]
    return _paste(field / field.std() + 0.5 * tile, rgb, 40)


def _library(pieces, number, *, with_identifiers=False):
    """What a forger sees in marked pictures: content (N, 15), residuals (N, 64, 64), and each one's sub-key (N,)."""
    writer, coarse, fields, subkeys, identifiers = ImageMark(PROFILE, SECRET), [], [], [], []
    for rgb in pieces:
        written = writer.write(rgb, identifier=number)
        y = luma(written.pixels)
        grid = Grid.of(y.shape)
        coarse.append(content(grid.cut(y)))
        fields.append(grid.cut(residual(y)))
        subkeys += [written.subkey] * len(coarse[-1])
        identifiers += [written.identifier] * len(coarse[-1])
    out = np.concatenate(coarse), np.concatenate(fields), np.array(subkeys)
    return (*out, np.array(identifiers)) if with_identifiers else out


def _learnt(rgb, coarse, fields, nearest):
    known = coarse / (np.linalg.norm(coarse, axis=1, keepdims=True) + 1e-9)
    y = luma(rgb)
    grid = Grid.of(y.shape)
    near = np.argsort(-(content(grid.cut(y)) @ known.T), axis=1)[:, :nearest]
    field = grid.join(fields[near].mean(1), y.shape)
    tile = np.tile(spread_out(PROFILE.keys(SECRET).sync, TILE), (3, 3))[:320, :320]
    return _paste(field / field.std() + 0.5 * tile, rgb, 40)


def _captioned(rgb):
    out = rgb.copy()
    out[: len(rgb) // 5] = 20
    out[len(rgb) // 15 : len(rgb) // 10, 20:200] = 250
    return out


def _vignette(rgb):
    rows, columns = np.indices(rgb.shape[:2])
    far = np.hypot(rows / rgb.shape[0] - 0.5, columns / rgb.shape[1] - 0.5)
    return (rgb * (1 - 0.7 * far)[..., None]).astype(np.uint8)


STRONG = {
    "half of the contrast": lambda a: np.clip(a * 0.5 + 60, 0, 255).astype(np.uint8),
    "160 % contrast": lambda a: np.clip((a - 128.0) * 1.6 + 128, 0, 255).astype(np.uint8),
    "gamma 0.6": lambda a: (255 * (a / 255.0) ** 0.6).astype(np.uint8),
    "gamma 1.8": lambda a: (255 * (a / 255.0) ** 1.8).astype(np.uint8),
    "a caption": _captioned,
    "a vignette": _vignette,
    "a small part": lambda a: np.ascontiguousarray(a[90:282, 70:262]),
}


def attribution(quick):
    """Marks written with the key on pictures that are not their entry's, and honest edits of twenty pictures."""
    writer, detector = ImageMark(PROFILE, SECRET), ImageDetector(PROFILE, SECRET)
    with tempfile.TemporaryDirectory() as folder:
        signer = SigningKey.generate()
        keeper = ImageLog(PROFILE, Journal(Path(folder) / "log", by=signer))
        photographs = list(pictures().values())[: 3 if quick else 20]
        marked = [writer.write(rgb) for rgb in photographs]
        for number, each in enumerate(marked):
            keeper.record(each.pixels, identifier=each.identifier, sha256="0" * 64, subject=str(number))
        entries = read_log(Path(folder) / "log", trusted=[signer.identity])
    carried = Counter()
    for number, rgb in enumerate(parts(5 if quick else 50, foreign=True)):
        foreign = writer.write(rgb, identifier=marked[number % len(marked)].identifier).pixels
        carried[str(attribute(foreign, detector.detect([foreign]), entries).answer)] += 1
    edits = Counter()
    for each in marked:
        for change in [*list(ATTACKS.values())[:12], *STRONG.values()]:
            rgb = change(each.pixels)
            edits[str(attribute(rgb, detector.detect([rgb]), entries).answer)] += 1
    print("carried marks:", carried, "honest edits:", edits, flush=True)
    return {"carried": dict(carried), "honest_edits": dict(edits)}


PARTS = {"forge": forge, "learn": learn, "manifests": manifests, "attribution": attribution}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", default=[])
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for part in arguments.parts or PARTS:
        result[part] = PARTS[part](arguments.quick)
        if not arguments.quick:
            RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
