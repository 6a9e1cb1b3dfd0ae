# SPDX-License-Identifier: Apache-2.0
"""Mark a digits classifier, let thieves work on it, and see what is left of the mark.

python recipes/mark_a_model.py            (about a minute)
"""

import argparse

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from privguard.attest.notary import LocalNotary
from privguard.attest.statement import SigningKey
from privguard.watermark.claims import commitment, offline
from privguard.watermark.claims.leaf import Tree
from privguard.watermark.model import survival, theft, triggers, weights
from privguard.watermark.model.bundle import Bundle
from privguard.watermark.model.classifier import Public
from privguard.watermark.model.embed import Lesson
from privguard.watermark.secret import Secret

CHEAP = ("none", "fine-tune 5e-3", "prune 80 % + fine-tune", "int3", "permute + rescale + fine-tune", "merge 50/50")


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


def main(*, tiny: bool) -> tuple[survival.Row, ...]:
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    x, y = torch.from_numpy((images[order] / 16).astype(np.float32)), torch.from_numpy(labels[order])
    own, thief, test = (x[:700], y[:700]), (x[700:1400], y[700:1400]), (x[1400:], y[1400:])
    epochs = 4 if tiny else 40

    model, generator = network(), torch.Generator().manual_seed(0)
    owner = theft.Means(inputs=own[0], labels=own[1], generator=generator)  # the owner trains as anybody would
    owner.train(model, owner.supervised, epochs=epochs, rate=1e-3)

    # 1. Commit, before anybody can know what the marks will be. The local notary stands for outside authorities.
    unmarked = theft.tensors(model)
    matrices = {name: value.shape for name, value in unmarked.items() if value.ndim > 1}
    marks = (triggers.plan(triggers.Domain(shape=(64,)), classes=10, leaves=100), weights.plan(matrices))
    secret, notary = Secret.generate(), LocalNotary.generate()
    made = commitment.commit(
        secret, model=offline.tensors_digest("digits", unmarked), marks=marks, by=SigningKey.generate()
    )
    standing = commitment.check(offline.notarise(made, notary), trust=offline.trust(notary))

    # 2. Embed what the pulse has made of the leaves.
    bundle = Bundle(standing=standing, tree=Tree.derive(secret, standing.manifest.sizes), unmarked=unmarked)
    public = Public(inputs=own[0], labels=own[1], generator=generator)
    marked = bundle.embed(model, public=public, lesson=Lesson(steps=20 if tiny else 300))

    # 3. Drill at home: no leaf is opened, so none is burned.
    drill = survival.Drill(
        bundle=bundle, marked=marked, inputs=test[0], labels=test[1], owner_examples=owner.examples_trained
    )
    suite = survival.attacks(network, network, epochs=epochs)
    means = theft.Means(inputs=thief[0], labels=thief[1], generator=torch.Generator().manual_seed(1))
    rows = drill.run({name: suite[name] for name in CHEAP} if tiny else suite, means=means)
    print(f"accuracy {theft.accuracy(model, *test):.3f}, marked {theft.accuracy(marked, *test):.3f}")
    print(survival.markdown(rows))
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a few seconds, a weaker mark")
    main(tiny=parser.parse_args().tiny)
