# SPDX-License-Identifier: Apache-2.0
"""Keyed first noise: ten million draws, nonces under kills, the exact null, and a tiny flow model of the recipe.

python -m benchmarks.image_latents             every part, about ten minutes on one core
python -m benchmarks.image_latents draws       one part; PARTS below names them all
python -m benchmarks.image_latents --quick     small settings
"""

import argparse
import json
import math
import os
import signal
import sys
import tempfile
import time
import warnings
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from scipy.spatial.distance import cdist

from benchmarks.image_mark import LEVELS, PROFILE, SECRET
from privguard.attest.journal import Journal, read, verify
from privguard.attest.statement import SigningKey
from privguard.watermark.image.latent import KeyedLatents, NoiseEntry, latent_verdict, read_noise_log

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))
import mark_first_noise as recipe

RESULT = Path(__file__).parent / "results" / "image_latents.json"


def draws(quick):
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


@lru_cache(maxsize=1)
def _model(seconds):
    return recipe.trained(seconds)


def _noise(count, folder, signer):
    source = KeyedLatents(PROFILE, SECRET, Journal(Path(folder) / "log", by=signer))
    noise = np.stack([source.draw((1, recipe.SIDE, recipe.SIDE))[0] for _ in range(count)])
    return noise, read_noise_log(Path(folder) / "log", trusted=[signer.identity])


def _grey(x):
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()[:, 0]


def _recovered(model, grey):
    return recipe.inverted(model, torch.from_numpy(grey.astype(np.float32) / 127.5 - 1)[:, None]).numpy()


def flow(quick):
    """Marked pictures of the recipe's model, handled and inverted; and whether they are told from unmarked ones."""
    model, count = _model(15 if quick else 180), 16 if quick else 256
    with tempfile.TemporaryDirectory() as folder:
        noise, log = _noise(count, folder, SigningKey.generate())
    marked = _grey(recipe.generated(model, torch.from_numpy(noise)))
    generator = torch.Generator().manual_seed(5)
    plain = _grey(recipe.generated(model, torch.randn(noise.shape, generator=generator)))
    out = {"pictures": count, "energy_distance_p": _energy_p(marked, plain, 99 if quick else 999)}
    some = marked[: 16 if quick else 64]
    again = {f"regenerated from t = {t}": partial(_regenerated, model, t=t) for t in (0.1, 0.3, 0.5)}
    changes = {
        name: lambda grey, change=change: np.stack([change(a) for a in grey]) for name, change in recipe.CHANGES.items()
    }
    for name, change in {**changes, **again, "unmarked": None}.items():
        handled = plain[: len(some)] if change is None else change(some)
        recovered = _recovered(model, handled)
        p = [latent_verdict(PROFILE, SECRET, each, entries=log).log10_p for each in recovered]
        right = float(np.mean(np.sign(recovered) == np.sign(noise[: len(some)])))
        found = int((np.array(p) <= -6).sum())
        out[name] = {"median": float(np.median(p)), "worst": max(p), "found": found, "of": len(p), "signs_right": right}
        print(name, out[name], flush=True)
    print("energy distance p", out["energy_distance_p"], flush=True)
    return out


@torch.no_grad()
def _regenerated(model, grey, *, t):
    """What a remover does who has the very model: noise up to time t, and back."""
    x = torch.from_numpy(grey.astype(np.float32) / 127.5 - 1)[:, None]
    x = torch.lerp(x, torch.randn(x.shape, generator=torch.Generator().manual_seed(8)), t)
    steps = round(recipe.STEPS * t)
    for k in range(steps, 0, -1):
        x = x - model(x, torch.full((len(x),), t * k / steps)) * t / steps
    return _grey(x)


def _energy_p(one, other, permutations):
    """Permutation test of the energy distance between two sets of pictures (Székely and Rizzo 2004)."""
    both = np.concatenate([one, other]).reshape(len(one) + len(other), -1).astype(np.float64)
    distance, n = cdist(both, both), len(one)
    rng, labels = np.random.default_rng(0), np.repeat([1.0, -1.0], [n, len(other)])
    of = lambda signs: -float(signs @ distance @ signs)  # noqa: E731
    own = of(labels)
    return (1 + sum(of(rng.permutation(labels)) >= own for _ in range(permutations))) / (permutations + 1)


def null(quick):
    """The weighted test of noise recovered from eight unmarked pictures, under nonces that never made them."""
    model, keys = _model(15 if quick else 180), 500 if quick else 25_000
    generator = torch.Generator().manual_seed(6)
    plain = _grey(recipe.generated(model, torch.randn((8, 1, recipe.SIDE, recipe.SIDE), generator=generator)))
    rng, p = np.random.default_rng(1), []
    for recovered in _recovered(model, plain):
        for _ in range(keys):
            entry = NoiseEntry(
                sequence=1, time="", nonce=rng.bytes(12).hex(), profile=PROFILE.digest(), shape=recovered.shape
            )
            p.append(latent_verdict(PROFILE, SECRET, recovered, entries=[entry]).log10_p)
    counts = [int((np.array(p) <= math.log10(level)).sum()) for level in LEVELS]
    print(f"null: at most {LEVELS} in {counts} of {len(p)}", flush=True)
    return {"of": len(p), "levels": LEVELS, "counts": counts}


PARTS = {"draws": draws, "flow": flow, "null": null}


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
