"""Attacks on the text marks: key recovery, forging by list stealing, telling marked draws from others.

Key recovery runs three attacks on a million marked n-grams: the Fourier correlation with the public g-table that
finds transformers' SynthID keys, token frequencies, and a search over small seeds; transformers' own
processor is the control. Forging learns from a million marked tokens of a bigram language (1.0 nats) in which contexts come
back some forty times. Distribution: randomised probability integral transforms of a million draws (KS) and a fixed
distribution (χ²). Run: ``python -m benchmarks.text_attack`` (``--tokens 1e5`` for a
quick look, ``--section forging`` for one part).
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
from privguard.watermark.secret import Secret
from privguard.watermark.text import device
from privguard.watermark.text.detect import Detector
from privguard.watermark.text.ngrams import Documents
from privguard.watermark.text.profile import Profile
from privguard.watermark.text.scheme import GreenList, Gumbel, Tournament
from privguard.watermark.text.spoof import Thief

RESULT = Path(__file__).parent / "results" / "text_attack.json"
SECRET = Secret(bytes(range(32)))
TABLE = 1 << 16


def profile_of(scheme, *, width: int = 4, subkeys: int = 1) -> Profile:
    return Profile(
        scheme=scheme,
        key_id=SECRET.key_id,
        vocabulary="synthetic",
        logits_width=WIDTH,
        context_width=width,
        subkeys=subkeys,
    )


def choose(profile: Profile, streams, logits: np.ndarray, contexts: np.ndarray) -> np.ndarray:
    scores = torch.from_numpy(logits)
    if isinstance(profile.scheme, GreenList):
        raised = device.raise_green(scores, contexts, streams, scheme=profile.scheme)
        return torch.multinomial(torch.softmax(raised, -1), 1)[:, 0].numpy()
    return device.choose(scores, contexts, streams, profile=profile, repeated=np.zeros(len(logits), np.bool_)).numpy()


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


def our_ngrams(scheme, count: int) -> np.ndarray:
    profile, rng, out = profile_of(scheme), np.random.default_rng(2), []
    stream = profile.stream(SECRET, subkey=0)
    for _ in range(count // 1000):
        contexts = rng.integers(0, WIDTH, (1000, 4))
        tokens = choose(profile, [stream] * 1000, step_logits(rng, 1000, 1.0), contexts)
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


def frequency_peaks(ngrams: np.ndarray, *, z: float = 5.5) -> int:
    """Tokens, and pairs of last context token and token, that are too frequent for a mark without a fixed list."""
    found = 0
    for codes, cells in ((ngrams[:, 4], WIDTH), (ngrams[:, 3] * WIDTH + ngrams[:, 4], WIDTH**2)):
        counts = np.bincount(codes, minlength=cells)
        found += int((stats.poisson.sf(counts - 1, len(ngrams) / cells) < stats.norm.sf(z) / cells).sum())
    return found


def seed_search(ngrams: np.ndarray, scheme, *, seeds: int) -> int:
    """Secrets that are small whole numbers, tried on 300 n-grams: how many reach p ≤ 10⁻⁹."""
    hits = 0
    grams = ngrams[:300]
    for seed in range(seeds):
        guess = Secret(seed.to_bytes(32, "little"))
        profile = Profile(scheme=scheme, key_id=guess.key_id, vocabulary="synthetic", logits_width=WIDTH, subkeys=1)
        stream = profile.stream_of_any(guess, subkey=0)
        score = scheme.scores(scheme.lookup(grams[:, :4], grams[:, 4], block_bytes=16).read(stream)).sum()
        hits += bool(scheme.null.log10_tail(score, len(grams)) < -9)
    return hits


def key_recovery(count: int) -> dict[str, object]:
    keys = [
        654,
        400,
        836,
        123,
        340,
        443,
        597,
        160,
        57,
        29,
        590,
        639,
        13,
        715,
        468,
        990,
        966,
        226,
        324,
        585,
        118,
        504,
        421,
        521,
        129,
        669,
        732,
        225,
        90,
        960,
    ]
    control = set(fourier_peaks(synthid_ngrams(keys, 4096)).tolist())
    out: dict[str, object] = {
        "transformers SynthID, 4,096 n-grams": {"Fourier": f"{len(control & set(keys))} of {len(keys)} keys"}
    }
    for scheme in (Gumbel(), Tournament(), GreenList()):
        ngrams = our_ngrams(scheme, count)
        out[f"ours, {scheme.name}, {len(ngrams):,} n-grams"] = {
            "Fourier": len(fourier_peaks(ngrams)),
            "frequencies": frequency_peaks(ngrams),
            "seeds below 20,000": seed_search(ngrams, scheme, seeds=20_000),
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


# -------------------------------------------------------------------------------------------------------- distribution


def distribution(draws: int) -> dict[str, dict[str, float]]:
    """A hundred keys, fresh contexts: p-values of KS on randomised integral transforms and of χ² on a fixed law."""
    out: dict[str, dict[str, float]] = {}
    fixed = np.log(1.0 / np.arange(1, 41) / (1.0 / np.arange(1, 41)).sum()).astype(np.float32)
    fixed = np.concatenate([fixed, np.full(WIDTH - 40, -np.inf, np.float32)])
    for scheme in (Gumbel(), Tournament()):
        rng, uniform, counts = np.random.default_rng(14), [], np.zeros(WIDTH)
        profile = profile_of(scheme)
        for batch in range(draws // 1000):
            secret = Secret((batch % 100 + 1).to_bytes(32, "big"))
            streams = [profile.stream_of_any(secret, subkey=0)] * 1000
            logits = step_logits(rng, 1000, 1.0)
            tokens = choose(profile, streams, logits, rng.integers(0, 1 << 23, (1000, 4)))
            p = np.exp(logits - logits.max(1, keepdims=True), dtype=np.float64)
            p /= p.sum(1, keepdims=True)
            below = np.cumsum(p, 1)[np.arange(1000), tokens]
            uniform.append(below - rng.random(1000) * p[np.arange(1000), tokens])
            again = choose(profile, streams, np.tile(fixed, (1000, 1)), rng.integers(0, 1 << 23, (1000, 4)))
            counts += np.bincount(again, minlength=WIDTH)
        expected = np.exp(fixed[:40], dtype=np.float64)
        out[scheme.name] = {
            "draws": draws,
            "KS p": float(stats.kstest(np.concatenate(uniform), "uniform").pvalue),
            "χ² p": float(stats.chisquare(counts[:40], expected / expected.sum() * counts.sum()).pvalue),
        }
        print(scheme.name, out[scheme.name], flush=True)
        save("distribution", out, draws)
    return out


SECTIONS = {"forging": forging, "distribution": distribution, "keys": key_recovery}


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
