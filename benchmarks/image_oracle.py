# SPDX-License-Identifier: Apache-2.0
"""What the coarse answers of a public detector are worth to whoever may ask many of them.

python -m benchmarks.image_oracle            both attacks, about ten minutes on one core
python -m benchmarks.image_oracle --quick    small settings

Remove: for each way of removal its strength is halved between "marked" and "not marked"; what counts is the quality
that the remover keeps, with answers and without (where the mark must be gone from all pictures, so the strength that
removes the last is taken). Forge: from an unmarked picture, and from a mixture of a marked and an unmarked one that is
just called marked, random steps are kept while the answer stays *marked* and the picture comes nearer to the target.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from scipy import ndimage

from benchmarks.image_mark import PROFILE, SECRET
from benchmarks.image_pictures import jpeg, noisy, parts
from privguard.integrations.public_detector.answers import Answer, PictureReader
from privguard.watermark.image.detect import ImageDetector
from privguard.watermark.image.pictures import Picture
from privguard.watermark.image.write import ImageMark, psnr

RESULT = Path(__file__).parent / "results" / "image_oracle.json"
READER = PictureReader(ImageDetector(PROFILE, SECRET), -8.0)
REMOVALS = {  # strength 0 to 1
    "blur": lambda rgb, s: ndimage.gaussian_filter(rgb, (4 * s, 4 * s, 0)),
    "noise": lambda rgb, s: noisy(rgb, 60 * s),
    "JPEG": lambda rgb, s: jpeg(rgb, round(95 - 93 * s)),
}


def marked(rgb):
    return READER.answer(Picture(rgb).encoded(rgb, ".png")) is Answer.MARKED


def remove(quick):
    """Quality in decibels at which each way removes the mark, by halving with eight answers a picture."""
    rows = {}
    own = [ImageMark(PROFILE, SECRET).write(rgb).pixels for rgb in parts(3 if quick else 20)]
    own = [rgb for rgb in own if marked(rgb)]
    for name, change in REMOVALS.items():
        strengths = []
        for rgb in own:
            low, high = 0.0, 1.0
            for _ in range(8):
                middle = (low + high) / 2
                low, high = (middle, high) if marked(change(rgb, middle)) else (low, middle)
            strengths.append(high)
        told = [psnr(rgb, change(rgb, s)) for rgb, s in zip(own, strengths, strict=True)]
        blind = [psnr(rgb, change(rgb, max(strengths))) for rgb in own]
        rows[name] = {"median_db_with_answers": float(np.median(told)), "median_db_without": float(np.median(blind))}
        print(name, rows[name], flush=True)
    return {"pictures": len(own), "answers_each": 8 * len(REMOVALS), **rows}


def forge(quick):
    """Random steps of an unmarked picture, and of a mixture that is just marked, with some hundred answers each."""
    rng, answers = np.random.default_rng(0), 60 if quick else 500
    own = [ImageMark(PROFILE, SECRET).write(rgb).pixels for rgb in parts(2 if quick else 5)]
    foreign = list(parts(len(own), foreign=True))
    from_nothing = 0
    for rgb in foreign:
        for _ in range(answers // 2):
            step = rng.normal(0, 4, (*rgb.shape[:2], 1))
            from_nothing += marked(np.clip(rgb + step, 0, 255).astype(np.uint8))
    mixtures, walked = [], []
    for source, target in zip(own, foreign, strict=True):
        low, high = 0.0, 1.0  # share of the target
        for _ in range(8):
            middle = (low + high) / 2
            mixed = np.rint(source * (1 - middle) + target * middle).astype(np.uint8)
            low, high = (middle, high) if marked(mixed) else (low, middle)
        state = source * (1 - low) + target * low
        mixtures.append(psnr(target, state))
        for _ in range(answers):
            step = rng.normal(0, 1, (*target.shape[:2], 1)) * 2
            trial = state + 0.02 * (target - state) + step
            if marked(np.clip(np.rint(trial), 0, 255).astype(np.uint8)):
                state = np.clip(trial, 0, 255)
        walked.append(psnr(target, state))
    out = {
        "pictures": len(own),
        "answers_each": answers,
        "marked_from_nothing": int(from_nothing),
        "median_db_to_target_of_mixture": float(np.median(mixtures)),
        "median_db_to_target_after_walk": float(np.median(walked)),
    }
    print("forge", out, flush=True)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    result = {"remove": remove(arguments.quick), "forge": forge(arguments.quick)}
    if not arguments.quick:
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
