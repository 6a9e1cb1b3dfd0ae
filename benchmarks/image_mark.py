# SPDX-License-Identifier: Apache-2.0
"""The image mark: false positives, survival, identifiers, honest marks, time. Ten photographs from packages.

python -m benchmarks.image_mark            every part, about twenty minutes on one core
python -m benchmarks.image_mark null       one part; PARTS below names them all
python -m benchmarks.image_mark --quick    small settings

Photographs: scikit-learn's two and those inside scikit-image's wheel. Competitors' figures are in the page, not here.
"""

import argparse
import io
import json
import math
import time
import warnings
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage, stats
from skimage.metrics import structural_similarity

from benchmarks.image_pictures import TEN, jpeg, noisy, parts, pictures, resized
from privguard.watermark.image.blocks import Evidence, Grid
from privguard.watermark.image.detect import ImageDetector
from privguard.watermark.image.keys import BLOCK
from privguard.watermark.image.pixels import luma
from privguard.watermark.image.profile import ImageProfile
from privguard.watermark.image.sync import Search, place
from privguard.watermark.image.write import ImageMark
from privguard.watermark.secret import Secret
from privguard.watermark.statistics.null import SignedWeights

RESULT = Path(__file__).parent / "results" / "image_mark.json"
SECRET = Secret(bytes(range(32)))
PROFILE = ImageProfile.create(SECRET)
LEVELS = (1e-2, 1e-3, 1e-4, 1e-5)


def webp(rgb, quality):
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "WEBP", quality=quality)
    return np.asarray(Image.open(file).convert("RGB"))


def cropped(rgb, kept):
    side = math.sqrt(kept)
    height, width = int(rgb.shape[0] * side), int(rgb.shape[1] * side)
    top, left = int((rgb.shape[0] - height) * 0.37), int((rgb.shape[1] - width) * 0.61)
    return np.ascontiguousarray(rgb[top : top + height, left : left + width])


def blurred(rgb, sigma):
    return ndimage.gaussian_filter(rgb, (sigma, sigma, 0))


ATTACKS = {
    "none": lambda a: a,
    "JPEG 90": lambda a: jpeg(a, 90),
    "JPEG 70": lambda a: jpeg(a, 70),
    "JPEG 50": lambda a: jpeg(a, 50),
    "JPEG 30": lambda a: jpeg(a, 30),
    "WebP 60": lambda a: webp(a, 60),
    "noise 10": lambda a: noisy(a, 10),
    "blur 1": lambda a: blurred(a, 1),
    "blur 2": lambda a: blurred(a, 2),
    "half and back": lambda a: np.asarray(Image.fromarray(resized(a, 0.5)).resize(a.shape[1::-1])),
    "half of the area": lambda a: cropped(a, 0.5),
    "quarter of the area": lambda a: cropped(a, 0.25),
    "half of the area, JPEG 70": lambda a: jpeg(cropped(a, 0.5), 70),
}
MOVED = {
    "screenshot (70 %, scaled to 83 %, JPEG 75)": (lambda a: jpeg(resized(cropped(a, 0.7), 0.83), 75), Search.SCALE),
    "half size": (lambda a: resized(a, 0.5), Search.SCALE),
    "140 %": (lambda a: resized(a, 1.4), Search.SCALE),
    "rotated by 5°": (
        lambda a: np.asarray(Image.fromarray(a).rotate(5, Image.Resampling.BICUBIC)),
        Search.SCALE_ANGLE,
    ),
}


def null(quick):
    """Random evidence keys on five fixed pictures, one sub-key, an identifier named before looking."""
    keys_count, photographs = (20_000 if quick else 1_000_000), pictures()
    other = Secret(bytes(32))
    flat = np.full((128, 128, 3), 240, np.uint8)
    flat[30:90, 20:100] = (30, 60, 200)
    stripes = np.repeat((np.indices((128, 128)).sum(0) // 9 % 2 * 200)[..., None], 3, 2).astype(np.uint8)
    fixed = {
        "photograph": photographs["china.jpg"][200:328, 200:328],
        "texture": photographs["brick.png"][:128, :128],
        "drawing": flat,
        "stripes": stripes + photographs["astronaut.png"][:128, :128] // 8,
        "marked by another owner": ImageMark(ImageProfile.create(other), other)
        .write(np.ascontiguousarray(photographs["astronaut.png"][:256, :256]))
        .pixels[:128, :128],
    }
    keys, out = PROFILE.keys(SECRET), {}
    for name, rgb in fixed.items():
        picture = np.ascontiguousarray(rgb)
        found = place(picture, keys)
        y = luma(found.applied(picture))
        weights = Evidence.of(y, Grid.of(y.shape, top=found.top, left=found.left), keys).weights.ravel()
        law = SignedWeights.of(weights, repeats=2)
        critical = [_critical(law, level) for level in LEVELS]
        exact = [10 ** float(law.log10_tail(value, 1)) for value in critical]
        counts, scores = _count(np.tile(weights, 2), critical, keys_count, name)
        inside = [
            bool(stats.binom.ppf(0.005, keys_count, p) <= c <= stats.binom.ppf(0.995, keys_count, p))
            for c, p in zip(counts, exact, strict=True)
        ]
        p = 10 ** law.log10_tail(scores, 1)
        ks = float(stats.kstest(p, "uniform").pvalue)
        out[name] = {"levels": LEVELS, "exact": exact, "counts": counts, "inside_99": inside, "ks_of_500": ks}
        print(f"{name:26s} counts {counts} of {keys_count}, inside {inside}, KS {ks:.3f}", flush=True)
    return out


def null_again(quick):
    """Four million keys that no other run saw, on the one picture of which a count of ``null`` lay outside."""
    keys_count, keys = (20_000 if quick else 4_000_000), PROFILE.keys(SECRET)
    picture = np.ascontiguousarray(pictures()["china.jpg"][200:328, 200:328])
    laid = place(picture, keys)
    y = luma(laid.applied(picture))
    weights = Evidence.of(y, Grid.of(y.shape, top=laid.top, left=laid.left), keys).weights.ravel()
    law = SignedWeights.of(weights, repeats=2)
    critical = [_critical(law, level) for level in LEVELS]
    exact = [10 ** float(law.log10_tail(value, 1)) for value in critical]
    counts, _ = _count(np.tile(weights, 2), critical, keys_count, "photograph, again")
    z = [(c - keys_count * p) / math.sqrt(keys_count * p * (1 - p)) for c, p in zip(counts, exact, strict=True)]
    print(f"again: counts {counts} of {keys_count}, deviations {np.round(z, 2).tolist()}", flush=True)
    return {"keys": keys_count, "exact": exact, "counts": counts, "deviations": z}


def _critical(law, level):
    low, high = 0, int(8 * law.deviation)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if float(law.log10_tail(middle, 1)) <= math.log10(level) else (middle, high)
    return high


def _count(weights, critical, keys_count, name):
    """Scores of many keys: for each byte of signs a table of its 256 signed sums, so a key costs a lookup per byte."""
    patterns = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little") * 2.0 - 1
    tables = (weights.reshape(-1, 8).astype(np.float32) @ patterns.T.astype(np.float32)).astype(np.int16)
    counts, kept, step = np.zeros(len(critical), int), [], 20_000
    prf = SECRET.prf("benchmark", "null", name)
    for start in range(0, keys_count, step):
        scores = np.zeros(step, np.int32)
        for row in range(0, len(tables), 16):
            inputs = np.zeros((step, 4), "<u4")
            inputs[:, 0], inputs[:, 1] = np.arange(start, start + step), row
            octets = np.ascontiguousarray(prf.blocks(inputs).view(np.uint8).reshape(step, 16).T)
            for table, column in zip(tables[row : row + 16], octets, strict=True):
                scores += table[column]
        counts += [(scores >= value).sum() for value in critical]
        if len(kept) < 1:
            kept.append(scores[:500])
    return counts.tolist(), kept[0]


def owners(quick):
    """The whole procedure for 2,000 owners: one test each is uniform, and the paid p-value is never too small."""
    count = 100 if quick else 2000
    rgb = np.ascontiguousarray(pictures()["coffee.png"][100:292, 100:292])
    single, paid = [], []
    for number in range(count):
        secret = SECRET.child("owner", number)
        detections = ImageDetector(ImageProfile.create(secret, subkeys=1), secret).detect([rgb])
        reading = detections.readings[0]
        single.append(10 ** float(reading.null.log10_tail(reading.scores_of(12345)[0], 1)))
        paid.append(float(detections.log10_p[0]))
    ks = float(stats.kstest(single, "uniform").pvalue)
    low = {f"1e{k}": int((np.array(paid) <= k).sum()) for k in (-1, -2, -3)}
    print(f"owners {count}: KS {ks:.3f}, paid p at most 0.1, 0.01, 0.001 in {list(low.values())}", flush=True)
    return {"owners": count, "ks": ks, "paid_low": low}


def survival(quick):
    """Log10 p after each attack, everything paid for."""
    photographs, writer, detector = pictures(), ImageMark(PROFILE, SECRET), ImageDetector(PROFILE, SECRET)
    rows, quality = {}, []
    for name in TEN[: 2 if quick else 10]:
        rgb = photographs[name]
        marked = writer.write(rgb)
        quality.append(float(structural_similarity(rgb, marked.pixels, channel_axis=2)))
        for attack, change in ATTACKS.items():
            rows.setdefault(attack, []).append(float(detector.detect([change(marked.pixels)]).log10_p[0]))
        rows.setdefault("unmarked", []).append(float(detector.detect([rgb]).log10_p[0]))
    for name in ("astronaut.png", "china.jpg"):
        marked = writer.write(photographs[name])
        for attack, (change, search) in MOVED.items():
            found = detector.detect([change(marked.pixels)], search=search)
            rows.setdefault(attack, []).append(float(found.log10_p[0]))
    out = {k: {"median": float(np.median(v)), "worst": max(v), "all": v} for k, v in rows.items()}
    for attack, row in out.items():
        print(f"{attack:45s} median {row['median']:8.1f} worst {row['worst']:8.1f} of {len(row['all'])}", flush=True)
    print(f"SSIM mean {np.mean(quality):.4f} least {min(quality):.4f}")
    return {"attacks": out, "ssim_mean": float(np.mean(quality)), "ssim_least": min(quality)}


def identifier(quick):
    """24 bits under twelve attacks on twenty pictures: read means found at 1e-6 with the right bits."""
    writer, detector = ImageMark(PROFILE, SECRET), ImageDetector(PROFILE, SECRET)
    wrong = read = total = 0
    for rgb in list(pictures().values())[: 3 if quick else 20]:
        marked = writer.write(rgb)
        for change in list(ATTACKS.values())[:12]:
            found = detector.detect([change(marked.pixels)])
            total += 1
            if found.log10_p[0] <= -6:
                right = found.identifier[0] == marked.identifier
                read, wrong = read + right, wrong + (not right)
    print(f"identifier: read {read} of {total}, wrong {wrong}", flush=True)
    return {"total": total, "read": read, "wrong": wrong}


def honest(quick):
    """Honest marks of 320 pixels, each under its own secret: detected at 1e-6, and accepted."""
    found_count = accepted = 0
    marked = list(parts(30 if quick else 1000))
    for number, rgb in enumerate(marked):
        secret = SECRET.child("honest", number)
        profile = ImageProfile.create(secret)
        found = ImageDetector(profile, secret).detect([ImageMark(profile, secret).write(rgb).pixels])
        found_count += int(found.log10_p[0] <= -6)
        accepted += int(found.accepted(log10_level=-6)[0])
    print(f"honest: found {found_count}, accepted {accepted} of {len(marked)}", flush=True)
    return {"of": len(marked), "found": found_count, "accepted": accepted}


def timing(quick):
    """Processor seconds on one core for 512 × 512 pixels, the least of several rounds."""
    rgb, rounds = pictures()["astronaut.png"], 2 if quick else 7
    writer, detector = ImageMark(PROFILE, SECRET), ImageDetector(PROFILE, SECRET)
    marked = writer.write(rgb).pixels
    jobs = {
        "write": lambda: writer.write(rgb),
        "read": lambda: detector.detect([marked]).log10_p,
        "blind search for the scale": lambda: detector.detect([marked], search=Search.SCALE).log10_p,
        "blind search for scale and angle": lambda: detector.detect([marked], search=Search.SCALE_ANGLE).log10_p,
    }
    out = {name: min(_seconds(job) for _ in range(rounds)) for name, job in jobs.items()}
    print({name: round(seconds, 3) for name, seconds in out.items()}, flush=True)
    return out


def _seconds(job):
    start = time.process_time()
    job()
    return time.process_time() - start


PARTS = {
    "null": null, "null_again": null_again, "owners": owners, "survival": survival, "identifier": identifier,
    "honest": honest, "time": timing,
}  # fmt: skip


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


assert BLOCK == 64

if __name__ == "__main__":
    main()
