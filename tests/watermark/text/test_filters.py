# SPDX-License-Identifier: Apache-2.0
"""Temperature, min-p, top-k and top-p: each keeps what its definition says, row by row."""

import math

import numpy as np
import pytest
import torch

from privguard.watermark.text.writing.filters import Filters, final_logits


def kept(row, filters):
    """The definition, token by token."""
    heated = [x / filters.temperature for x in row]
    alive = set(range(len(row)))
    top = max(heated)
    if filters.min_p > 0:
        alive = {t for t in alive if math.exp(heated[t] - top) >= filters.min_p}
    if 0 < filters.top_k < len(row):
        last = sorted((heated[t] if t in alive else -math.inf for t in range(len(row))), reverse=True)[
            filters.top_k - 1
        ]
        alive = {t for t in alive if heated[t] >= last}
    if filters.top_p < 1:
        total, mass, order = sum(math.exp(heated[t]) for t in alive), 0.0, sorted(alive, key=lambda t: -heated[t])
        alive = set()
        for token in order:
            if mass / total >= filters.top_p:
                break
            alive.add(token)
            mass += math.exp(heated[token])
    return alive


FILTERS = [
    Filters(),
    Filters(temperature=0.5),
    Filters(top_k=7),
    Filters(top_k=-1, top_p=0.8),
    Filters(min_p=0.05),
    Filters(temperature=1.7, min_p=0.01, top_k=30, top_p=0.9),
    Filters(top_k=1),
    Filters(top_p=1e-6),
    Filters(top_k=500),
]


def test_what_is_kept_is_what_the_definition_keeps_in_any_company():
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(0, 3, (len(FILTERS), 200)).astype(np.float32))
    before = logits.clone()
    together = final_logits(logits, FILTERS)
    assert (logits == before).all()
    for row, out, filters in zip(logits, together, FILTERS, strict=True):
        alone = final_logits(row[None], [filters])[0]
        for result in (out, alone):
            left = np.flatnonzero(result.numpy() > -np.inf)
            assert set(left.tolist()) == kept(row.tolist(), filters)
            assert result[left].numpy() == pytest.approx(row[left].numpy() / filters.temperature, rel=1e-6)


def test_equals_of_the_last_of_the_top_k_stay():
    logits = torch.tensor([[3.0, 1.0, 1.0, 0.0, 1.0]])
    assert (final_logits(logits, [Filters(top_k=2)]) > -torch.inf).tolist() == [[True, True, True, False, True]]


def test_what_was_removed_before_stays_removed():
    logits = torch.tensor([[-torch.inf, 2.0, -torch.inf, 1.0]])
    assert (final_logits(logits, [Filters(top_k=3, top_p=0.999)])[0] > -torch.inf).tolist() == [
        False,
        True,
        False,
        True,
    ]
