# SPDX-License-Identifier: Apache-2.0
"""The image mark: false positives, survival, identifiers, forgeries, honest marks, time. Ten photographs from packages.

python -m benchmarks.image_mark            every part, about twenty minutes on one core
python -m benchmarks.image_mark null       one part; PARTS below names them all
python -m benchmarks.image_mark --quick    small settings

Photographs: scikit-learn's two and those inside scikit-image's wheel. Competitors' figures are in the page, not here.
"""

import argparse
import io
import json
import math
import os
import signal
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage, stats
from skimage.metrics import structural_similarity

from benchmarks.image_pictures import TEN, pictures
from privguard.attest.journal import Journal, read, verify
from privguard.attest.statement import SigningKey
from privguard.watermark.image.blocks import LEAST_CONTRAST, Evidence, Grid, content, contrast
from privguard.watermark.image.detect import ImageDetector
from privguard.watermark.image.keys import BLOCK, TILE
from privguard.watermark.image.latent import KeyedLatents
from privguard.watermark.image.pixels import luma, mask, residual, spread_out
from privguard.watermark.image.profile import ImageProfile
from privguard.watermark.image.registry import ImageLog, attribute, read_log
from privguard.watermark.image.sync import Search, place
from privguard.watermark.image.write import ImageMark
from privguard.watermark.secret import Secret
from privguard.watermark.statistics.null import SignedWeights

RESULT = Path(__file__).parent / "results" / "image_mark.json"
SECRET = Secret(bytes(range(32)))
PROFILE = ImageProfile.create(SECRET)
LEVELS = (1e-2, 1e-3, 1e-4, 1e-5)


def jpeg(rgb, quality):
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).convert("RGB"))


def webp(rgb, quality):
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "WEBP", quality=quality)
    return np.asarray(Image.open(file).convert("RGB"))


def resized(rgb, factor):
    size = (round(rgb.shape[1] * factor), round(rgb.shape[0] * factor))
    return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC))


def cropped(rgb, kept):
    side = math.sqrt(kept)
    height, width = int(rgb.shape[0] * side), int(rgb.shape[1] * side)
    top, left = int((rgb.shape[0] - height) * 0.37), int((rgb.shape[1] - width) * 0.61)
    return np.ascontiguousarray(rgb[top : top + height, left : left + width])


def noisy(rgb, deviation):
    return np.clip(rgb + np.random.default_rng(1).normal(0, deviation, rgb.shape), 0, 255).astype(np.uint8)


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


def _paste(field, rgb, decibels):
    y = luma(rgb)
    change = mask(y) * field / field.std()
    change *= 255 / 10 ** (decibels / 20) / np.sqrt((change * change).mean())
    return np.clip(np.rint(rgb + change[..., None]), 0, 255).astype(np.uint8)


def _square(rgb, size=320):
    rows = np.pad(rgb, [(0, max(0, size - n)) for n in rgb.shape[:2]] + [(0, 0)], mode="reflect")
    return np.ascontiguousarray(rows[:size, :size])


def _parts(count, *, foreign=False, size=320):
    """Random parts of half of the photographs, scaled and turned; ``foreign`` ones of the other half."""
    names = [name for name in pictures() if name != "motorcycle_right.png"]  # the scene of its left neighbour
    rng, photographs = np.random.default_rng(7), [pictures()[name] for name in names[int(foreign) :: 2]]
    for _ in range(count):
        rgb = photographs[rng.integers(len(photographs))]
        factor = max(rng.uniform(0.6, 1.3), (size + 1) / min(rgb.shape[:2]))
        rgb = resized(rgb, factor)
        top, left = (int(rng.integers(n - size + 1)) for n in rgb.shape[:2])
        part = np.rot90(rgb[top : top + size, left : left + size], rng.integers(4))
        yield np.ascontiguousarray(part[:, ::-1] if rng.random() < 0.5 else part)


def forge(quick):
    """One marked picture's residual on 50 foreign pictures, the true sync tile given; at 42 and 36 dB."""
    detector, writer, tile = ImageDetector(PROFILE, SECRET), ImageMark(PROFILE, SECRET), PROFILE.keys(SECRET).sync
    source = writer.write(_square(pictures()["astronaut.png"]))  # of the first half
    stolen = residual(luma(source.pixels)) + 0.5 * np.tile(spread_out(tile, TILE), (3, 3))[:320, :320]
    targets = list(_parts(5 if quick else 50, foreign=True))
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
    out, targets = {}, list(_parts(5 if quick else 50, foreign=True))
    for kind, number in (("one identifier", 12345), ("an identifier each", None)):
        coarse, fields, subkeys = _library(_parts(30 if quick else 300), number)
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


def _library(parts, number):
    """What a forger sees in marked pictures: content (N, 15), residuals (N, 64, 64), and each one's sub-key (N,)."""
    writer, coarse, fields, subkeys = ImageMark(PROFILE, SECRET), [], [], []
    for rgb in parts:
        written = writer.write(rgb, identifier=number)
        y = luma(written.pixels)
        grid = Grid.of(y.shape)
        coarse.append(content(grid.cut(y)))
        fields.append(grid.cut(residual(y)))
        subkeys += [written.subkey] * len(coarse[-1])
    return np.concatenate(coarse), np.concatenate(fields), np.array(subkeys)


def _learnt(rgb, coarse, fields, nearest):
    known = coarse / (np.linalg.norm(coarse, axis=1, keepdims=True) + 1e-9)
    y = luma(rgb)
    grid = Grid.of(y.shape)
    near = np.argsort(-(content(grid.cut(y)) @ known.T), axis=1)[:, :nearest]
    field = grid.join(fields[near].mean(1), y.shape)
    tile = np.tile(spread_out(PROFILE.keys(SECRET).sync, TILE), (3, 3))[:320, :320]
    return _paste(field / field.std() + 0.5 * tile, rgb, 40)


def honest(quick):
    """Honest marks of 320 pixels, each under its own secret: detected at 1e-6, and accepted."""
    found_count = accepted = 0
    parts = list(_parts(30 if quick else 1000))
    for number, rgb in enumerate(parts):
        secret = SECRET.child("honest", number)
        profile = ImageProfile.create(secret)
        found = ImageDetector(profile, secret).detect([ImageMark(profile, secret).write(rgb).pixels])
        found_count += int(found.log10_p[0] <= -6)
        accepted += int(found.accepted(log10_level=-6)[0])
    print(f"honest: found {found_count}, accepted {accepted} of {len(parts)}", flush=True)
    return {"of": len(parts), "found": found_count, "accepted": accepted}


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
    carried = {"found": 0, "copied": 0, "not found": 0}
    for number, rgb in enumerate(_parts(5 if quick else 50, foreign=True)):
        foreign = writer.write(rgb, identifier=marked[number % len(marked)].identifier).pixels
        carried[attribute(foreign, detector.detect([foreign]), entries).answer] += 1
    edits = {"found": 0, "copied": 0, "not found": 0}
    for each in marked:
        for change in list(ATTACKS.values())[:12]:
            rgb = change(each.pixels)
            edits[attribute(rgb, detector.detect([rgb]), entries).answer] += 1
    print("carried marks:", carried, "honest edits:", edits, flush=True)
    return {"carried": carried, "honest_edits": edits}


def latents(quick):
    """Ten million draws: normal, uncorrelated; no nonce twice under eight processes and a thousand kills."""
    with tempfile.TemporaryDirectory() as folder:
        source = KeyedLatents(PROFILE, SECRET, Journal(Path(folder) / "log", by=SigningKey.generate()))
        noise = np.stack([source.draw((100_000,))[0] for _ in range(10 if quick else 100)]).astype(np.float64)
        flat = noise.ravel()
        ks = float(stats.kstest(flat, "norm").pvalue)
        lags = {lag: float(np.dot(flat[lag:], flat[:-lag]) / math.sqrt(len(flat))) for lag in (1, 2, 127, 128, 100_000)}
        signs = np.sign(noise[:, :20_000])
        between = (signs @ signs.T / math.sqrt(signs.shape[1]))[np.triu_indices(len(signs), 1)]
        nonces = _killed(Path(folder), 16 if quick else 1000)
    out = {
        "draws": len(flat),
        "ks": ks,
        "lags_z": lags,
        "largest_z_between_draws": float(np.abs(between).max()),
        **nonces,
    }
    print(out, flush=True)
    return out


def _killed(folder, kills):
    """Processes, eight at a time, draw until they are killed; what they were given is noted and compared."""
    signer, path, given = SigningKey.generate(), folder / "killed", folder / "given"
    source = KeyedLatents(PROFILE, SECRET, Journal(path, by=signer))
    rng = np.random.default_rng(0)
    for _ in range(kills // 8):
        children = []
        for _ in range(8):
            child = os.fork()
            if child == 0:
                while True:
                    nonce = source.draw((16,))[1]
                    with given.open("a") as file:
                        file.write(nonce + "\n")
            children.append(child)
        for child in children:
            time.sleep(float(rng.uniform(0.002, 0.02)))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    verify(path, trusted=[signer.identity])
    noted = [json.loads(entry.role)["nonce"] for entry in read(path)]
    handed = [line for line in given.read_text().split() if len(line) == 24]
    return {
        "kills": kills,
        "nonces": len(noted),
        "twice": len(noted) - len(set(noted)),
        "given_but_not_noted": len(set(handed) - set(noted)),
    }


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
    "forge": forge, "learn": learn, "attribution": attribution, "latents": latents, "honest": honest, "time": timing,
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
