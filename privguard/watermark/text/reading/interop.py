"""Reading the marks of other tools: transformers' green list and SynthID, vLLM's Gumbel. Read only, never written.

Their keys are small integers over functions that are not cryptographic: whoever sees enough marked text can find them
(32 bits of seed, or one Fourier transform). So each verdict says ``insecure-key``: it may speak for the owner of
a system about its own text, and proves nothing to anybody else. De-duplication and exact tails are ours.
"""

from fractions import Fraction
from typing import Any

import numpy as np

from privguard import _check
from privguard.records import Verdict
from privguard.watermark.statistics.null import BinomialCount, ExponentialSum, Null, WeightedBits, verdict
from privguard.watermark.statistics.tails import Floats
from privguard.watermark.text.prf.philox import vllm_words
from privguard.watermark.text.reading.ngrams import Documents, Ngrams, unique_ngrams
from privguard.watermark.text.scheme import Tournament

INSECURE = (
    "Insecure key: this scheme's key can be found from marked text or by search: anybody may have written this mark. "
    "The p-value holds for a key drawn uniformly by somebody who never saw the text."
)


def read_vllm_gumbel(documents: Documents, *, key: int, context_width: int = 4) -> list[Verdict]:
    """The native Gumbel mark of vLLM under ``philox4x32-10-v1`` with its 64-bit ``key``.

    Scores are rounded down to k/2²⁴, where vLLM rounds up, so that the p-value is never too small.

    Raises:
        ValueError: the key is not in [0, 2⁶⁴).
    """
    _check.require(0 <= key < 1 << 64, "key", "…", wanted="0 to 2**64 − 1")
    ngrams = unique_ngrams(documents, width=_check.count("context_width", context_width))
    words = vllm_words(ngrams.contexts, ngrams.tokens, key=key)
    scores = -np.log1p(-(words >> np.uint32(8)).astype(np.float64) * 2.0**-24)
    return _verdicts("vllm-gumbel-philox4x32-10-v1", ExponentialSum(), ngrams, scores)


def read_transformers_green_list(documents: Documents, *, config: Any, vocabulary_size: int) -> list[Verdict]:
    """The mark of transformers' ``WatermarkingConfig`` (lefthash or selfhash), lists made on the CPU.

    One permutation of the vocabulary per distinct seed, as there; so the cost grows with the vocabulary. ``config`` is
    a ``WatermarkingConfig``.

    Raises:
        ValueError: selfhash with a context of less than two tokens.
    """
    import torch
    from transformers import WatermarkLogitsProcessor

    processor = WatermarkLogitsProcessor(vocab_size=vocabulary_size, device="cpu", **config.to_dict())
    lists: Any = processor._get_greenlist_ids  # noqa: SLF001 — the function its own detector calls
    own = config.seeding_scheme == "selfhash"
    width = config.context_width - 1 if own else 1  # lefthash reads one token, whatever its context width says
    _check.require(width >= 1, "context_width", config.context_width, wanted="2 or more with selfhash")
    ngrams = unique_ngrams(documents, width=width)
    seeds = np.concatenate([ngrams.contexts, ngrams.tokens[:, None]], 1) if own else ngrams.contexts
    green = np.empty(len(ngrams), np.float64)
    order = np.lexsort(seeds.T)
    before, listed = None, np.empty(0, np.int64)
    for i in order:
        if before is None or (seeds[i] != before).any():
            before = seeds[i]
            listed = lists(torch.from_numpy(before.copy())).numpy()
        green[i] = ngrams.tokens[i] in listed
    chance = Fraction(processor.greenlist_size, vocabulary_size)
    return _verdicts(f"transformers-green-list-{config.seeding_scheme}", BinomialCount(chance), ngrams, green)


def read_transformers_synthid(documents: Documents, *, config: Any) -> list[Verdict]:
    """The mark of transformers' ``SynthIDTextWatermarkingConfig``, by the weighted mean of its bits; no training.

    The null counts every layer's bit as fair and independent.
    """
    import torch
    from transformers import SynthIDTextWatermarkLogitsProcessor

    options = {key: value for key, value in config.to_dict().items() if key != "watermarking_config"}
    processor: Any = SynthIDTextWatermarkLogitsProcessor(**options, device=torch.device("cpu"))
    ngrams = unique_ngrams(documents, width=config.ngram_len - 1)
    weights = Tournament(depth=len(config.keys)).weights
    rows = torch.from_numpy(np.concatenate([ngrams.contexts, ngrams.tokens[:, None]], 1))[None]
    scores = np.zeros(0)
    if len(ngrams):
        bits = processor.sample_g_values(processor.compute_ngram_keys(rows))[0].numpy()
        scores = bits.astype(np.float64) @ np.asarray(weights, np.float64)
    return _verdicts("transformers-synthid", WeightedBits(weights), ngrams, scores)


def _verdicts(name: str, null: Null, ngrams: Ngrams, scores: Floats) -> list[Verdict]:
    sums = np.bincount(ngrams.document, weights=scores, minlength=ngrams.documents)
    return [
        verdict(null, scheme=f"insecure-key/{name}", score=float(total), trials=int(count), notes=(INSECURE,))
        for total, count in zip(sums, ngrams.count(), strict=True)
    ]
