# SPDX-License-Identifier: Apache-2.0
"""The whole story in one file: commit, mark, release, theft, challenge, evidence, and a stranger who checks it.

python recipes/prove_theft.py --out theft          (half a minute)
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from privguard.attest.statement import Envelope
from privguard.watermark.claims import evidence, offline
from privguard.watermark.claims.evidence import Report
from privguard.watermark.model import theft, triggers, weights
from privguard.watermark.model.bundle import Bundle
from privguard.watermark.model.classifier import Public, Suspect
from privguard.watermark.model.embed import Lesson


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


def show(what: str, report: Report) -> Report:
    print(f"{what}: {report.outcome.value.upper()}, {report.reason}")
    return report


def main(out: Path, *, tiny: bool) -> dict[str, Report]:
    out.mkdir(parents=True, exist_ok=True)
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    x, y = torch.from_numpy((images[order] / 16).astype(np.float32)), torch.from_numpy(labels[order])
    own, other, natural = (x[:700], y[:700]), (x[700:1400], y[700:1400]), x[1400:1500].numpy()
    generator, epochs = torch.Generator().manual_seed(0), 5 if tiny else 40

    # The owner trains, commits, waits for the pulse, marks, and only then releases.
    model = network()
    owner = theft.Means(inputs=own[0], labels=own[1], generator=generator)
    owner.train(model, owner.supervised, epochs=epochs, rate=1e-3)
    unmarked = theft.tensors(model)
    matrices = {name: value.shape for name, value in unmarked.items() if value.ndim > 1}
    marks = (triggers.plan(triggers.Domain(shape=(64,)), classes=10, leaves=128), weights.plan(matrices, leaves=32))
    table = offline.Table.commit("digits", unmarked, marks=marks)  # fresh keys, and a notary of its own
    bundle = Bundle(standing=table.standing, tree=table.tree, unmarked=unmarked)
    public = Public(inputs=own[0], labels=own[1], generator=generator)
    released = bundle.embed(model, public=public, lesson=Lesson(steps=20 if tiny else 300))

    # A thief prunes, retrains and reorders it. Somebody else trains an honest model on the same data.
    steal = theft.then(theft.prune(0.5, epochs=epochs), theft.reorder, theft.quantise(8))
    stolen = steal(released, theft.Means(inputs=other[0], labels=other[1], generator=generator))
    honest, means = network(), theft.Means(inputs=other[0], labels=other[1], generator=generator)
    means.train(honest, means.supervised, epochs=epochs, rate=1e-3)

    # A neutral verifier asks both and signs what it saw; a stranger checks the file, offline and without secrets.
    sizes, reports = {"triggers": 50, "weights": 16}, dict[str, Report]()
    for name, suspect in {"stolen": stolen, "honest": honest}.items():
        tensors = theft.tensors(suspect)
        file, _ = table.challenge(
            name, Suspect(suspect), tensors=tensors, unmarked=unmarked, sizes=sizes, natural=natural
        )
        file.write(out / f"{name}.evidence.json")
        digest = offline.tensors_digest(name, tensors)
        found = evidence.verify(Envelope.read(out / f"{name}.evidence.json"), trust=table.trust, suspect=digest)
        reports[name] = show(f"{name} model", found)

    # What would not work: the same file against the honest model, and a file with one changed answer.
    file = Envelope.read(out / "stolen.evidence.json")
    innocent = offline.tensors_digest("honest", theft.tensors(honest))
    replayed = evidence.verify(file, trust=table.trust, suspect=innocent)
    forged = replace(file, payload=file.payload.replace(b'"answer":1', b'"answer":2', 1))
    reports["replayed"] = show("evidence shown against another model", replayed)
    reports["edited"] = show("evidence with an edited answer", evidence.verify(forged, trust=table.trust))
    print("\n".join(reports["stolen"].basis))
    return reports


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("theft"))
    parser.add_argument("--tiny", action="store_true", help="a few seconds, a weaker mark")
    arguments = parser.parse_args()
    main(arguments.out, tiny=arguments.tiny)
