# SPDX-License-Identifier: Apache-2.0
"""Data and network of the demonstration: scikit-learn's digits, cut in four, and canaries that ride along."""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from privguard.audit.membership.audit import Examples
from privguard.audit.one_run.canary import Coins

PRIVATE, OTHERS = 1_197, 200  # images to train on under ε, and of each of the three other parts
_LOUD = 100.0  # a canary's raw gradient: above any clipping norm in use, so that it is clipped to it


@final
@dataclass(frozen=True, kw_only=True)
class Digits:
    """1,797 images of 8 × 8 pixels in [0, 1], cut at random: private, the owner's public ones, a thief's, tests."""

    private: Examples
    public: Examples
    thief: Examples
    test: Examples

    @classmethod
    def load(cls) -> "Digits":
        """The digits that scikit-learn brings along; needs no network."""
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(images))
        x, y = torch.from_numpy((images[order] / 16).astype(np.float32)), torch.from_numpy(labels[order])
        cuts = [PRIVATE, OTHERS, OTHERS, OTHERS]
        private, public, thief, test = (Examples(*part) for part in zip(x.split(cuts), y.split(cuts), strict=True))
        return cls(private=private, public=public, thief=thief, test=test)


def network(hidden: int) -> nn.Sequential:
    """Pixels → hidden units → ten logits."""
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


@final
class WithCanaries(nn.Module):
    """A classifier, and beside it one weight per canary that no image and no other canary moves."""

    def __init__(self, hidden: int, canaries: int) -> None:
        super().__init__()
        self.network = network(hidden)
        self.canary = nn.Linear(canaries, 1, bias=False)
        nn.init.zeros_(self.canary.weight)

    def forward(self, images: Tensor, canaries: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, 10) and each row's canary score (B,)."""
        return self.network(images), self.canary(canaries)[:, 0]


def with_canaries(images: Examples, coins: Coins) -> TensorDataset:
    """The images, then the canaries whose coin says in: (image, label, canary row, 1 for an image and 0 for a canary).

    An image's canary row is zero, and a canary's image is zero and its loss is its own weight times ``_LOUD``.
    """
    size, chosen = len(images), np.flatnonzero(coins.included)
    rows = torch.zeros(size + len(chosen), len(coins))
    rows[torch.arange(size, len(rows)), torch.from_numpy(chosen)] = _LOUD
    pictures = torch.cat([images.inputs, torch.zeros(len(chosen), images.inputs.shape[1])])
    labels = torch.cat([images.labels, torch.zeros(len(chosen), dtype=images.labels.dtype)])
    return TensorDataset(pictures, labels, rows, (torch.arange(len(rows)) < size).float())
