# SPDX-License-Identifier: Apache-2.0
"""Small digits models and everything around them, trained once for all tests of the marks."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from privguard.watermark.claims.leaf import Leaf
from privguard.watermark.model import theft


def network(seed):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    with torch.no_grad():
        for item in model.parameters():
            spread = item[0].numel() ** -0.5 if item.dim() > 1 else 0.0
            item.copy_(spread * (2 * torch.rand(item.shape, generator=generator) - 1))
    return model


class Digits:
    """Owner's, thief's and test images, and models trained on them."""

    def __init__(self):
        x, y = load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(x))
        x, y = torch.from_numpy((x[order] / 16).astype(np.float32)), torch.from_numpy(y[order])
        self.own, self.thief, self.test = (x[:700], y[:700]), (x[700:1400], y[700:1400]), (x[1400:], y[1400:])
        self.model = self.trained(self.own, 0)
        self.innocent = self.trained(self.thief, 1)

    @staticmethod
    def network(seed=5):
        return network(seed)

    def means(self, data, seed=0):
        return theft.Means(inputs=data[0], labels=data[1], generator=torch.Generator().manual_seed(seed))

    def trained(self, data, seed, epochs=25):
        model, means = network(seed), self.means(data, seed)
        means.train(model, means.supervised, epochs=epochs, rate=2e-3)
        return model

    def accuracy(self, model):
        return theft.accuracy(model, *self.test)


@pytest.fixture(scope="session")
def digits():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Digits()
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def leaves_of():
    """Makes leaves of a mark: ``leaves_of("weights", 16, seed=1)``."""

    def make(mark, count, seed=0):
        rng = np.random.default_rng(seed)
        return [Leaf(mark=mark, index=index, seed=rng.bytes(32)) for index in range(count)]

    return make


@pytest.fixture
def leaves(leaves_of):
    return leaves_of
