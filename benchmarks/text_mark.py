# SPDX-License-Identifier: Apache-2.0
"""Speed of the text marks against transformers' own processors and detectors, on the same work, in one process.

Medians of process CPU time, one thread, alternating between the two sides of each ratio. Detection takes token ids in
memory; transformers' detector is timed on a few texts and scaled. Run: ``python -m benchmarks.text_mark``.

What did not help: whole-batch torch operations for the Gumbel choice on the CPU (2.5 times slower than one row after
the other in arrays that stay in the second-level cache); ``np.argpartition`` of whole rows for the top k (a threshold
from every sixteenth logit leaves little to sort); bisecting the saddle point to full precision (any point is exact).
Nor these: adding δ by ``np.add(..., where=green)`` or through a table of 256 entries instead of ``row += green * δ``
(ten and three times slower); making AES's input by XOR with a template (a copy and three columns are three times
faster); chunks of rows in the lattice tail; running products in place of its complex exponential, which lose digits on
long texts. ``np.sort`` leaves its vector registers above 256 values: de-duplication sorts short documents as rows.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    SynthIDTextWatermarkLogitsProcessor,
    WatermarkDetector,
    WatermarkingConfig,
    WatermarkLogitsProcessor,
)

from privguard.watermark.secret import Secret
from privguard.watermark.text.profile import Profile
from privguard.watermark.text.reading.detect import Detector
from privguard.watermark.text.reading.ngrams import Documents
from privguard.watermark.text.scheme import GreenList, Gumbel, Tournament
from privguard.watermark.text.writing.generate import MarkedGeneration, MarkProcessor

RESULT = Path(__file__).parent / "results" / "text_mark.json"
SECRET, BATCH = Secret(bytes(range(32))), 8
BARS = {"kgw": {50_257: 1.0, 128_256: 2.5}, "tournament": {50_257: 6.0, 128_256: 8.0}}


def profile_of(scheme, width: int, **changes) -> Profile:
    return Profile(scheme=scheme, key_id=SECRET.key_id, vocabulary="none", logits_width=width, **changes)


def alternate(*runs: Callable[[], object], rounds: int) -> list[float]:
    """Median CPU milliseconds of each, taken in turn."""
    for run in runs:
        run()
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for own, run in zip(times, runs, strict=True):
            start = time.process_time()
            run()
            own.append(1e3 * (time.process_time() - start))
    return [statistics.median(own) for own in times]


def steps(width: int) -> dict[str, float]:
    """One step at batch 8 over full logits: no top-k, no top-p, which would only help us."""
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.normal(0, 2, (BATCH, width)).astype(np.float32))
    ids = torch.from_numpy(rng.integers(0, width, (BATCH, 64)))

    def mark(scheme) -> Callable[[], object]:
        profile = profile_of(scheme, width)
        streams = [profile.stream(SECRET, subkey=j) for j in range(BATCH)]
        processor = MarkProcessor(profile, streams=streams, prompt=32)
        return lambda: processor(ids, scores)

    def unkeyed() -> torch.Tensor:
        chosen = (scores - torch.log(-torch.log(torch.rand(BATCH, width)))).argmax(-1)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen[:, None], 0.0)

    theirs = WatermarkLogitsProcessor(vocab_size=width, device="cpu")
    gumbel, plain = alternate(mark(Gumbel()), unkeyed, rounds=15)
    green, their_green = alternate(mark(GreenList()), lambda: theirs(ids, scores), rounds=11)
    (tournament,) = alternate(mark(Tournament()), rounds=11)
    keys = list(range(1, 31))
    synthid = SynthIDTextWatermarkLogitsProcessor(
        ngram_len=5,
        keys=keys,
        sampling_table_size=1 << 16,
        sampling_table_seed=0,
        context_history_size=1024,
        device=torch.device("cpu"),
    )
    (their_tournament,) = alternate(lambda: synthid(ids, scores), rounds=1)
    return {
        "vocabulary": width,
        "Gumbel step, ms": gumbel,
        "torch unkeyed Gumbel, ms": plain,
        "Gumbel ratio (bar 1.1)": gumbel / plain,
        "green list step, ms": green,
        "transformers KGW, ms": their_green,
        "green list bar, ms": BARS["kgw"][width],
        "tournament m=30 on top-1000, ms": tournament,
        "transformers SynthID m=30, ms": their_tournament,
        "tournament bar, ms": BARS["tournament"][width],
    }


def detection(width: int) -> dict[str, float]:
    """1,000 documents of 200 tokens: exact p, de-duplicated."""
    tokens = np.random.default_rng(1).integers(0, width, (1000, 200))
    row: dict[str, float] = {"vocabulary": width}
    for scheme in (Gumbel(), GreenList(), Tournament()):
        for subkeys in (1, 16):
            detector = Detector(profile_of(scheme, width, subkeys=subkeys), SECRET)
            (milliseconds,) = alternate(lambda d=detector: d.detect(Documents.of_batch(tokens)), rounds=7)
            row[f"{scheme.name}, {subkeys} sub-keys, CPU s (bar 0.05)"] = milliseconds / 1e3
    config = GPT2Config(vocab_size=width, bos_token_id=width - 1)
    theirs = WatermarkDetector(config, "cpu", WatermarkingConfig(), ignore_repeated_ngrams=True)
    few = torch.from_numpy(tokens[:2])
    start = time.process_time()
    theirs(few)
    row["transformers WatermarkDetector, CPU s (scaled from 2 texts)"] = (time.process_time() - start) * 500
    return row


def whole_generation() -> dict[str, float]:
    """generate() of a small GPT-2, 32 new tokens at batch 8, with and without the mark; transformers' top-k of 50."""
    generator = torch.Generator().manual_seed(0)
    config = GPT2Config(
        vocab_size=50_257, n_layer=4, n_embd=256, n_head=4, bos_token_id=0, eos_token_id=0, pad_token_id=0
    )
    model = GPT2LMHeadModel(config).eval()
    ids = torch.randint(1, 50_000, (BATCH, 16), generator=generator)
    marks = {s.name: MarkedGeneration(profile_of(s, 50_257), SECRET) for s in (Gumbel(), GreenList())}

    def run(mark=None, top_k=50) -> Callable[[], object]:
        options = {"do_sample": True, "top_k": top_k, "min_new_tokens": 32, "max_new_tokens": 32}
        return lambda: model.generate(ids, attention_mask=torch.ones_like(ids), custom_generate=mark, **options)

    plain, gumbel, green = alternate(run(), run(marks["gumbel"]), run(marks["green-list"]), rounds=5)
    full, full_gumbel = alternate(run(top_k=0), run(marks["gumbel"], top_k=0), rounds=3)
    return {
        "plain, top-k 50, ms": plain,
        "Gumbel ratio, top-k 50 (bar 1.05)": gumbel / plain,
        "green list ratio, top-k 50": green / plain,
        "plain, all tokens, ms": full,
        "Gumbel ratio, all tokens (bar 1.05)": full_gumbel / full,
    }


def main() -> None:
    torch.set_num_threads(1)
    out = {
        "steps": [steps(width) for width in (50_257, 128_256)],
        "detection": [detection(w) for w in (50_257, 128_256)],
    }
    out["generate"] = whole_generation()
    for rows in (*out["steps"], *out["detection"], out["generate"]):
        print("\n".join(f"| {name} | {value:.3f} |" for name, value in rows.items()), end="\n\n")
    RESULT.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
