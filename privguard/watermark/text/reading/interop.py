# SPDX-License-Identifier: Apache-2.0
"""Reading the marks of other tools: vLLM's Gumbel and SynthID, transformers' green list and SynthID. Never written.

Their keys are small integers over functions that are mostly not cryptographic: whoever sees enough marked text can find
them. So each verdict says ``insecure-key``: it may speak for the owner of a system about its own text, and proves
nothing to anybody else. A scheme is counted by its true coins: each seed and token once, each place of a public table
once, nothing that is the same under every key; and no p-value lies below one over the number of keys there are.
"""

import hashlib
import hmac
import math
import struct
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privguard import _check
from privguard.errors import MarkError
from privguard.records import Verdict
from privguard.watermark.statistics.gamma_mixture import log10_two_gammas_tail
from privguard.watermark.statistics.null import BinomialCount, ExponentialSum, Null, WeightedBits
from privguard.watermark.statistics.shifted_table import counts_by_shift, log10_shifted_tail
from privguard.watermark.statistics.tails import Floats
from privguard.watermark.text.prf.philox import vllm_words
from privguard.watermark.text.reading.ngrams import Documents, Ngrams, slice_of, unique_ngrams
from privguard.watermark.text.scheme import Tournament

INSECURE = (
    "Insecure key: this scheme's key can be found from marked text or by search: anybody may have written this mark. "
    "The p-value holds for a key drawn uniformly by somebody who never saw the text."
)
_HMAC_DOMAIN = b"vllm-watermark-hmac-sha256-v1\0"
_PRFS = {"philox": 64, "hmac_sha256": 256}  # bits of the key


def read_vllm_gumbel(documents: Documents, *, key: int, context_width: int = 4, prf: str = "philox") -> list[Verdict]:
    """The native Gumbel mark of vLLM under ``philox4x32-10-v1`` (64-bit ``key``) or ``hmac-sha256-v1`` (256 bits).

    Scores are rounded down to k/2²⁴, where vLLM rounds up, so that the p-value is never too small.

    Args:
        documents: token ids of all documents.
        key: the other tool's key, a whole number.
        context_width: tokens before a token that choose its words.
        prf: the other tool's name of its function.

    Raises:
        ValueError: no such function, or the key is too large for it.
    """
    ngrams = unique_ngrams(documents, width=_check.count("context_width", context_width))
    scores = _exponential(_vllm_words(ngrams, key=key, prf=prf))
    return foreign_verdicts(f"vllm-gumbel-{prf}", ExponentialSum(), ngrams, scores, key_bits=_PRFS[prf])


def read_vllm_dual_key(
    documents: Documents, *, key: int, alpha: float = 0.2, context_width: int = 4, prf: str = "philox"
) -> list[Verdict]:
    """VLLM's dual-key Gumbel mark, for speculative decoding: each token scored under key A and, with α, under key B.

    ``alpha`` is the detection weight of key B (vLLM's detector takes 0.2). The tail of the weighted sum is exact, where
    vLLM matches moments.

    Args:
        documents: token ids of all documents.
        key: the other tool's key, a whole number.
        alpha: weight of key B, in [0, 1].
        context_width: tokens before a token that choose its words.
        prf: the other tool's name of its function.
    """
    _check.probability("alpha", alpha, zero=True, one=True)
    ngrams = unique_ngrams(documents, width=_check.count("context_width", context_width))
    _vllm_words(slice_of(ngrams, np.zeros(len(ngrams), np.bool_)), key=key, prf=prf)  # refuse the key, not its children
    parts = [
        _sums(ngrams, _exponential(_vllm_words(ngrams, key=_vllm_child(key, name), prf=prf)))
        for name in (b"key_a", b"key_b")
    ]
    sums = (1 - alpha) * parts[0] + alpha * parts[1]
    return [
        foreign_verdict(
            f"vllm-dual-key-gumbel-{prf}",
            log10_p=log10_two_gammas_tail(float(total), int(count), weight=alpha),
            score=float(total),
            trials=int(count),
            null=f"score ~ {1 - alpha:g}·Gamma(trials, 1) + {alpha:g}·Gamma(trials, 1), independent",
            key_bits=64,
        )
        for total, count in zip(sums, ngrams.count(), strict=True)
    ]


def read_vllm_synthid(
    documents: Documents, *, key: int, depth: int = 32, context_width: int = 4, weighted: bool = True
) -> list[Verdict]:
    """VLLM's SynthID: layer i reads bit i of the token's Philox word. ``weighted`` counts early layers for more.

    Args:
        documents: token ids of all documents.
        key: the other tool's key, a whole number.
        depth: layers of the tournament.
        context_width: tokens before a token that choose its words.
        weighted: whether early layers count for more.
    """
    weights = Tournament(depth=depth).weights if weighted else (1,) * depth
    ngrams = unique_ngrams(documents, width=_check.count("context_width", context_width))
    words = _vllm_words(ngrams, key=key, prf="philox")
    bits = (words[:, None] >> np.arange(depth, dtype=np.uint32)) & np.uint32(1)
    scores = bits.astype(np.float64) @ np.asarray(weights, np.float64)
    return foreign_verdicts("vllm-synthid-philox", WeightedBits(weights), ngrams, scores, key_bits=64)


def read_transformers_green_list(documents: Documents, *, config: Any, vocabulary_size: int) -> list[Verdict]:
    """The mark of transformers' ``WatermarkingConfig`` (lefthash or selfhash), lists made on the CPU.

    One coin for each distinct seed and token of a document: under selfhash many n-grams share one, and torch's CPU
    generator reads 32 bits of a seed. A context of id 0 under lefthash has the same list under every key and is no
    evidence. Tokens under one seed are drawn without replacement, so the binomial tail is an upper bound from one match
    above the mean on (Hoeffding 1956), and below that the p-value is 1. One permutation of the vocabulary is made per
    distinct seed; so the cost grows with the vocabulary. ``config`` is a ``WatermarkingConfig``.

    Args:
        documents: token ids of all documents.
        config: the other tool's configuration.
        vocabulary_size: size of the vocabulary that lists were made of.

    Raises:
        ValueError: selfhash with a context of less than two tokens.
    """
    from transformers import WatermarkLogitsProcessor

    processor = WatermarkLogitsProcessor(vocab_size=vocabulary_size, device="cpu", **config.to_dict())
    own = config.seeding_scheme == "selfhash"
    width = config.context_width - 1 if own else 1  # lefthash reads one token, whatever its context width says
    _check.require(width >= 1, "context_width", config.context_width, wanted="2 or more with selfhash")
    ngrams = unique_ngrams(documents.below(vocabulary_size), width=width)
    seeds = _selfhash_seeds(processor, ngrams) if own else _lefthash_seeds(processor, ngrams)
    ngrams, seeds = distinct_coins(
        ngrams, seeds, keep=np.ones(len(ngrams), np.bool_) if own else ngrams.contexts[:, -1] != 0
    )
    green = in_permuted_lists(seeds, ngrams.tokens, vocabulary=vocabulary_size, listed=processor.greenlist_size)
    chance = Fraction(processor.greenlist_size, vocabulary_size)
    name = f"transformers-green-list-{config.seeding_scheme}"
    return without_replacement_verdicts(name, ngrams, green, chance=chance, key_bits=64 if own else 32)


def read_transformers_synthid(documents: Documents, *, config: Any) -> list[Verdict]:
    """The mark of transformers' ``SynthIDTextWatermarkingConfig``, by the weighted sum of its bits; no training.

    Every layer reads one public table, moved by its key. The null is exact: each distinct key a uniform shift of the
    table as it is, each place of it that n-grams meet counted once, layers with equal keys merged into one.

    Args:
        documents: token ids of all documents.
        config: the other tool's configuration.

    Raises:
        MarkError: the size of the table is no power of two, for which keys are no shifts.
    """
    import torch
    from transformers import SynthIDTextWatermarkLogitsProcessor

    options = {key: value for key, value in config.to_dict().items() if key != "watermarking_config"}
    processor: Any = SynthIDTextWatermarkLogitsProcessor(**options, device=torch.device("cpu"))
    table = processor.sampling_table.numpy().astype(np.bool_)
    size = len(table)
    if size & (size - 1):
        raise MarkError(
            f"sampling_table_size={size}: expected a power of two, as the default 65536; others are not read"
        )
    ngrams = unique_ngrams(documents, width=config.ngram_len - 1)
    places = _synthid_places(processor, ngrams) % size
    ngrams, places = distinct_coins(ngrams, places, keep=np.ones(len(ngrams), np.bool_), by_token=False)
    # One more step of the generator takes place + key to the index: a bijection, undone once for the whole table.
    at = np.arange(size, dtype=np.uint64) * np.uint64(6364136223846793005) + np.uint64(1)
    unrolled = table[(at % np.uint64(size)).astype(np.int64)]
    layers = Tournament(depth=len(config.keys)).weights
    merged: dict[int, int] = {}
    for key, weight in zip(config.keys, layers, strict=True):
        merged[int(key) % size] = merged.get(int(key) % size, 0) + weight
    out: list[Verdict] = []
    for document in range(ngrams.documents):
        counts = counts_by_shift(unrolled, places[ngrams.document == document])
        score = sum(weight * int(counts[key]) for key, weight in merged.items())
        out.append(
            foreign_verdict(
                "transformers-synthid",
                log10_p=log10_shifted_tail(score, counts, weights=list(merged.values())),
                score=float(score),
                trials=int((ngrams.document == document).sum()),
                null=f"{len(merged)} distinct keys, each a uniform shift of the public table of {size} bits",
                key_bits=len(merged) * (size.bit_length() - 1),
            )
        )
    return out


def foreign_verdicts(name: str, null: Null, ngrams: Ngrams, scores: Floats, *, key_bits: int) -> list[Verdict]:
    """One verdict per document on the sum of its scores.

    Args:
        name: the mark's name, for the verdict.
        null: the law without a mark.
        ngrams: the unique n-grams, N of them.
        scores: score of each n-gram, (N,).
        key_bits: bits of the key; no p-value is below 2^−bits.
    """
    return [
        foreign_verdict(
            name,
            log10_p=float(null.log10_tail(total, count)),
            score=float(total),
            trials=int(count),
            null=null.sentence,
            key_bits=key_bits,
        )
        for total, count in zip(_sums(ngrams, scores), ngrams.count(), strict=True)
    ]


def without_replacement_verdicts(
    name: str, ngrams: Ngrams, green: Floats, *, chance: Fraction, key_bits: int
) -> list[Verdict]:
    """One verdict per document on its green tokens, where tokens of one seed share a list of fixed size.

    Args:
        name: the mark's name, for the verdict.
        ngrams: the unique n-grams, N of them.
        green: 1 where an n-gram is green, else 0, (N,).
        chance: share of the vocabulary that is green.
        key_bits: bits of the key; no p-value is below 2^−bits.
    """
    null, counts = BinomialCount(chance), ngrams.count()
    out: list[Verdict] = []
    for total, count in zip(_sums(ngrams, green), counts, strict=True):
        above = total >= count * chance + 1
        out.append(
            foreign_verdict(
                name,
                log10_p=float(null.log10_tail(total, count)) if above else 0.0,
                score=float(total),
                trials=int(count),
                null=f"{null.sentence} at most, from one match above the mean on",
                key_bits=key_bits,
            )
        )
    return out


def foreign_verdict(name: str, *, log10_p: float, score: float, trials: int, null: str, key_bits: int) -> Verdict:
    """A verdict under an insecure key, whose p-value is at least 2^−bits: one key among so many can have no less.

    Args:
        name: the mark's name, for the verdict.
        log10_p: log10 of the p-value.
        score: the sum of the scores.
        trials: how many n-grams were scored.
        null: the law without a mark, in words.
        key_bits: bits of the key; no p-value is below 2^−bits.
    """
    floor = -key_bits * math.log10(2)
    sought = min(0.0, log10_p - floor)
    return Verdict(
        scheme=f"insecure-key/{name}",
        null_model=null,
        log10_p=max(log10_p, floor),
        trials=trials,
        matches=score,
        details={"key_space_bits": key_bits, "log10_p_if_the_key_was_sought": sought},
        notes=(INSECURE,),
    )


def distinct_coins(
    ngrams: Ngrams, seeds: NDArray[np.int64], *, keep: NDArray[np.bool_], by_token: bool = True
) -> tuple[Ngrams, NDArray[np.int64]]:
    """The first n-gram of each document with each seed and token (or each seed alone), of those to ``keep``.

    Args:
        ngrams: the unique n-grams, N of them.
        seeds: the generator's seed for each n-gram, (N,).
        keep: which n-grams count, (N,).
        by_token: whether a seed counts once for each token.
    """
    columns = [ngrams.document, seeds, ngrams.tokens] if by_token else [ngrams.document, seeds]
    rows = np.stack(columns, 1)[keep]
    first = np.unique(rows, axis=0, return_index=True)[1] if len(rows) else np.empty(0, np.int64)
    chosen = np.zeros(len(ngrams), np.bool_)
    chosen[np.flatnonzero(keep)[first]] = True
    return slice_of(ngrams, chosen), seeds[chosen]


def in_permuted_lists(seeds: NDArray[np.int64], tokens: NDArray[np.int64], *, vocabulary: int, listed: int) -> Floats:
    """1 where a token is among the first ``listed`` of torch's permutation of the vocabulary under its seed, else 0.

    Args:
        seeds: the generator's seed for each n-gram, (N,).
        tokens: token ids, (N,).
        vocabulary: size of the vocabulary.
        listed: how many of the permutation are in the list.
    """
    import torch

    generator, out = torch.Generator(), np.zeros(len(seeds))
    order = np.argsort(seeds, kind="stable")
    starts = np.flatnonzero(np.diff(seeds[order], prepend=-1))
    for rows in np.split(order, starts[1:]) if len(order) else []:
        generator.manual_seed(int(seeds[rows[0]]))
        chosen = torch.randperm(vocabulary, generator=generator)[:listed].numpy()
        out[rows] = np.isin(tokens[rows], chosen)
    return out


def _sums(ngrams: Ngrams, scores: Floats) -> Floats:
    return np.bincount(ngrams.document, weights=scores, minlength=ngrams.documents).astype(np.float64)


def _exponential(words: NDArray[np.uint32]) -> Floats:
    return -np.log1p(-(words >> np.uint32(8)).astype(np.float64) * 2.0**-24)


def _vllm_words(ngrams: Ngrams, *, key: int, prf: str) -> NDArray[np.uint32]:
    _check.require(prf in _PRFS, "prf", prf, wanted=" or ".join(_PRFS))
    _check.require(0 <= key < 1 << _PRFS[prf], "key", "…", wanted=f"0 to 2**{_PRFS[prf]} − 1")
    if prf == "philox":
        return vllm_words(ngrams.contexts, ngrams.tokens, key=key)
    secret, out = key.to_bytes(32, "little"), np.empty(len(ngrams), np.uint32)
    for i, (context, token) in enumerate(zip(ngrams.contexts.tolist(), ngrams.tokens.tolist(), strict=True)):
        message = _HMAC_DOMAIN + struct.pack(f"<I{len(context) + 1}q", len(context), *context, token)
        out[i] = int.from_bytes(hmac.digest(secret, message, hashlib.sha256)[:4], "little")
    return out


def _vllm_child(key: int, name: bytes) -> int:
    """The 64-bit key of one half of a dual-key mark, as vLLM derives it."""
    return int.from_bytes(hashlib.sha256(name + key.to_bytes(8, "big")).digest()[:8], "big")


def _lefthash_seeds(processor: Any, ngrams: Ngrams) -> NDArray[np.int64]:
    seeds = [processor.hash_key * int(token) % (2**64 - 1) & 0xFFFFFFFF for token in ngrams.contexts[:, -1]]
    return np.array(seeds, np.int64)


def _selfhash_seeds(processor: Any, ngrams: Ngrams) -> NDArray[np.int64]:
    """The least of key·a·b over an n-gram's tokens, in int64 that overflows as there."""
    import torch

    rows = torch.from_numpy(np.concatenate([ngrams.contexts, ngrams.tokens[:, None]], 1))
    hashed = processor.fixed_table[rows % processor.table_size] + 1
    least = (processor.hash_key * hashed * hashed[:, -1:]).min(1).values if len(rows) else hashed[:, 0]
    return np.array([seed % (2**64 - 1) & 0xFFFFFFFF for seed in least.tolist()], np.int64)


def _synthid_places(processor: Any, ngrams: Ngrams) -> NDArray[np.int64]:
    """The state of the generator after an n-gram and before a key, (N,)."""
    import torch

    rows = torch.from_numpy(np.concatenate([ngrams.contexts, ngrams.tokens[:, None]], 1))
    return processor.accumulate_hash(torch.ones(len(rows), dtype=torch.long), rows).numpy()
