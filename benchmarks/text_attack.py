# SPDX-License-Identifier: Apache-2.0
"""Attacks on the text marks: key recovery, and forging by list stealing.

Key recovery runs three attacks on a million marked n-grams: the Fourier correlation with the public g-table that finds
transformers' SynthID keys, token frequencies, and a search over small seeds. Each has a control that it has to find:
transformers' own processor, a green list that looks at one token of context, and a secret that is a small number.
Forging learns from a million marked tokens of a bigram language of 1.0 nats, in which likely contexts come back some
forty times. Run: ``python -m benchmarks.text_attack`` (``--tokens 1e5`` for a quick look, ``--section forging`` for one
part).
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from transformers import SynthIDTextWatermarkLogitsProcessor

from benchmarks.text_corpus import WIDTH, scale_for, step_logits
from benchmarks.text_writer import SECRET, choose, profile_of
from privguard.watermark.secret import Secret
from privguard.watermark.statistics import tails
from privguard.watermark.text.prf.streams import AesStream
from privguard.watermark.text.profile import Profile
from privguard.watermark.text.reading.detect import Detector
from privguard.watermark.text.reading.ngrams import Documents
from privguard.watermark.text.scheme import GreenList, Gumbel, Tournament
from privguard.watermark.text.spoof import Thief

RESULT = Path(__file__).parent / "results" / "text_attack.json"
TABLE = 1 << 16
SEEDS = 20_000


# ---------------------------------------------------------------------------------------------------------------- keys


def synthid(keys: list[int]) -> SynthIDTextWatermarkLogitsProcessor:
    return SynthIDTextWatermarkLogitsProcessor(
        ngram_len=5,
        keys=keys,
        sampling_table_size=TABLE,
        sampling_table_seed=0,
        context_history_size=1024,
        device=torch.device("cpu"),
    )


def synthid_ngrams(keys: list[int], count: int) -> np.ndarray:
    """(count, 5) n-grams marked by transformers' own processor."""
    processor, rng, out = synthid(keys), np.random.default_rng(1), []
    for _ in range(count // 128):
        contexts = torch.from_numpy(rng.integers(0, WIDTH, (128, 4)))
        logits = torch.from_numpy(step_logits(rng, 128, 1.0))
        every = torch.arange(WIDTH).expand(128, WIDTH)
        values = processor.sample_g_values(processor._compute_keys(contexts, every)[0])
        updated = processor.update_scores(logits, values)
        out.append(torch.cat([contexts, torch.multinomial(torch.softmax(updated, -1), 1)], 1))
    return torch.cat(out).numpy()


def our_ngrams(scheme, count: int, *, secret: Secret = SECRET, width: int = 4) -> np.ndarray:
    """(count, 5) marked n-grams; of a context narrower than four only the last ``width`` tokens choose."""
    profile, rng, out = profile_of(scheme, width=width), np.random.default_rng(2), []
    stream = profile.stream_of_any(secret, subkey=0)
    for _ in range(count // 1000):
        contexts = rng.integers(0, WIDTH, (1000, 4))
        tokens = choose(profile, [stream] * 1000, step_logits(rng, 1000, 1.0), contexts[:, -width:])
        out.append(np.concatenate([contexts, tokens[:, None]], 1))
    return np.concatenate(out)


def fourier_peaks(ngrams: np.ndarray, *, z: float = 5.5) -> np.ndarray:
    """Values k of the low 16 bits of a layer key at which the public table agrees too well with the n-grams.

    The table's index is (hash + k)·a + c mod 2¹⁶, so all keys are tried by one circular correlation.
    """
    processor = synthid([0])
    hashes = processor.accumulate_hash(torch.ones(1, len(ngrams), dtype=torch.long), torch.from_numpy(ngrams)[None])[
        0
    ].numpy()
    counts = np.bincount(hashes & (TABLE - 1), minlength=TABLE).astype(float)
    start = torch.arange(TABLE)[None, :, None]
    value = processor.sample_g_values(
        processor.accumulate_hash(start[..., 0], torch.zeros(1, TABLE, 1, dtype=torch.long))[..., None]
    )
    table = value.reshape(-1).numpy() * 2.0 - 1.0
    correlation = np.fft.ifft(np.conj(np.fft.fft(counts)) * np.fft.fft(table)).real
    return np.flatnonzero(correlation > z * np.sqrt((counts**2).sum()))


def frequencies(ngrams: np.ndarray) -> float:
    """log10 p that tokens, and pairs of last context token and token, are spread as evenly as without a fixed list."""
    found = []
    for codes, cells in ((ngrams[:, 4], WIDTH), (ngrams[:, 3] * WIDTH + ngrams[:, 4], WIDTH**2)):
        counts, expected = np.bincount(codes, minlength=cells), len(ngrams) / cells
        found.append(stats.chi2.logsf(((counts - expected) ** 2).sum() / expected, cells - 1) * np.log10(np.e))
    return round(float(tails.bonferroni(min(found), len(found))), 2)


def seed_search(ngrams: np.ndarray, scheme, *, seeds: int) -> int:
    """Secrets that are small whole numbers, tried on 300 n-grams: how many reach p ≤ 10⁻⁹."""
    hits = 0
    grams, profile = ngrams[:300], profile_of(scheme)
    lookup = scheme.lookup(grams[:, :4], grams[:, 4], block_bytes=AesStream.block_bytes)
    for seed in range(seeds):
        stream = profile.stream_of_any(Secret(seed.to_bytes(32, "little")), subkey=0)
        hits += bool(scheme.null.log10_tail(scheme.scores(lookup.read(stream)).sum(), len(grams)) < -9)
    return hits


def key_recovery(count: int) -> dict[str, object]:
    keys = [int(key) for key in np.random.default_rng(0).choice(1000, 30, replace=False)]
    control = set(fourier_peaks(synthid_ngrams(keys, 4096)).tolist())
    listed = our_ngrams(GreenList(), count, width=1)
    small = our_ngrams(Gumbel(), 1000, secret=Secret((SEEDS // 2).to_bytes(32, "little")))
    out: dict[str, object] = {
        "control: transformers SynthID, 4,096 n-grams": {"Fourier": f"{len(control & set(keys))} of {len(keys)} keys"},
        f"control: green list of one token of context, {len(listed):,} n-grams": {
            "frequencies, log10 p": frequencies(listed)
        },
        "control: a secret that is a small number": {
            f"seeds below {SEEDS:,}": seed_search(small, Gumbel(), seeds=SEEDS)
        },
    }
    for scheme in (Gumbel(), Tournament(), GreenList()):
        ngrams = our_ngrams(scheme, count)
        out[f"ours, {scheme.name}, {len(ngrams):,} n-grams"] = {
            "Fourier": len(fourier_peaks(ngrams)),
            "frequencies, log10 p": frequencies(ngrams),
            f"seeds below {SEEDS:,}": seed_search(ngrams, scheme, seeds=SEEDS),
        }
    return out


# ------------------------------------------------------------------------------------------------------------- forging


def language(rng: np.random.Generator) -> np.ndarray:
    """(WIDTH, WIDTH) logits of a bigram language of 1.0 nats."""
    return step_logits(rng, WIDTH, scale_for(1.0))


def corpus(logits: np.ndarray, profile: Profile | None, *, documents: int, tokens: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    out = rng.integers(0, WIDTH, (documents, 4 + tokens))
    if profile is not None:
        every = [profile.stream(SECRET, subkey=j) for j in range(profile.subkeys)]
        streams = [every[j] for j in rng.integers(0, profile.subkeys, documents)]
    for t in range(4, 4 + tokens):
        rows = logits[out[:, t - 1]]
        if profile is None:
            out[:, t] = (rows + rng.gumbel(size=rows.shape)).argmax(1)
        else:
            out[:, t] = choose(profile, streams, rows, out[:, t - profile.context_width : t])
    return out


def forging(tokens: int) -> list[dict[str, object]]:
    logits, rng, rows = language(np.random.default_rng(4)), np.random.default_rng(5), []
    documents = tokens // 200
    plain = list(corpus(logits, None, documents=documents, tokens=200, seed=6))
    for scheme, width, subkeys in (
        (Gumbel(), 4, 16),
        (Tournament(), 4, 16),
        (GreenList(), 1, 1),
        (Gumbel(), 4, 1),
        (GreenList(), 4, 16),
        (Tournament(), 4, 1),
    ):
        profile = profile_of(scheme, width=width, subkeys=subkeys)
        marked = corpus(logits, profile, documents=documents, tokens=200, seed=7)
        thief = Thief(width).learn(list(marked), plain)
        forged = [thief.forge(plain[int(rng.integers(documents))][:width], tokens=200, rng=rng) for _ in range(1000)]
        detector = Detector(profile, SECRET)
        found, honest = (
            detector.detect(Documents.of_lists(forged)),
            detector.detect(Documents.of_lists(list(marked[:1000]))),
        )
        rows.append(
            {
                "scheme": scheme.name,
                "width": width,
                "sub-keys": subkeys,
                "forgeries accepted": float(found.accepted(log10_level=-3.0).mean()),
                "forgeries with p ≤ 1e-3": float((found.log10_p <= -3).mean()),
                "honest texts with p ≤ 1e-3": float((honest.log10_p <= -3).mean()),
                "honest texts accepted": float(honest.accepted(log10_level=-3.0).mean()),
            }
        )
        print(rows[-1], flush=True)
        save("forging", rows, tokens)
    return rows


SECTIONS = {"forging": forging, "keys": key_recovery}


def save(section: str, rows: object, tokens: int) -> None:
    out = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    out[section] = {"rows": rows, "tokens": tokens, "cpu_s": round(time.process_time())}
    RESULT.write_text(json.dumps(out, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=float, default=1e6)
    parser.add_argument("--section", choices=[*SECTIONS, "all"], default="all")
    chosen = parser.parse_args()
    for name in SECTIONS if chosen.section == "all" else [chosen.section]:
        rows = SECTIONS[name](int(chosen.tokens))
        save(name, rows, int(chosen.tokens))
        print(name, rows, flush=True)


if __name__ == "__main__":
    main()
