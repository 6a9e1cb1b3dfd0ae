# SPDX-License-Identifier: Apache-2.0
"""What an attacker learns from a classifier, with and without differential privacy.

    python recipes/audit_a_classifier.py --out runs/classifier

A small network is trained on half of scikit-learn's digits, once plainly and once under ε = 8. Reference models show
what each would say had it not seen a record; LiRA and RMIA rank members, a blind classifier checks the split, and model
inversion draws what the models remember of a class. Writes roc-*.svg, inversion-*.svg and audit-*.json.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import privguard as pg
from privguard.audit import Assignment, Examples, Membership, Place, Schedule, draw_inclusion, run, train_references
from privguard.audit.inversion import nearest_members, nearness, picture, reconstruct
from privguard.audit.membership.roc_plot import roc_svg


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))


def split(records: int) -> tuple[Examples, Examples]:
    """A random half that the models are trained on, and the other half; a tenth of the labels is wrong in both."""
    random = np.random.default_rng(0)
    images, labels = load_digits(return_X_y=True)
    chosen = random.permutation(len(images))[:records]
    labels = np.where(random.random(records) < 0.1, random.integers(0, 10, records), labels[chosen])
    inputs, targets = torch.from_numpy(images[chosen] / 16).float(), torch.from_numpy(labels)
    half = records // 2
    return Examples(inputs[:half], targets[:half]), Examples(inputs[half:], targets[half:])


def plainly(members: Examples, schedule: Schedule) -> nn.Module:
    """The target is trained as its references are, on all members."""
    included = np.ones((1, len(members)), bool)
    model = network()
    trained = train_references(network, members.inputs, members.labels, included=included, schedule=schedule)
    model.load_state_dict(trained.states[0])
    return model


def privately(members: Examples, folder: Path, epochs: int) -> nn.Module:
    """The same network under ε = 8 at δ = 1e-4."""
    folder.mkdir(parents=True)
    pg.Key.generate().write(folder / "team.key")
    plan = pg.Plan.for_budget(
        epsilon=8.0, delta=1e-4, examples=len(members), batch_size=len(members) // 4, epochs=epochs, max_grad_norm=1.0
    )
    model = network()
    loader = DataLoader(TensorDataset(members.inputs, members.labels), batch_size=256, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    private = pg.privatize(
        model, optimizer, loader, plan, run=folder, seal_to=[folder / "team.key"], options=pg.RunOptions(quiet=True)
    )
    for inputs, labels in private.batches():
        private.backward(functional.cross_entropy(private.model(inputs), labels, reduction="none"))
        private.step()
    print(private.claim())
    return model


def audited(out: Path, *, records: int, references: int, epochs: int) -> dict[str, Membership]:
    """Train, attack and draw; the record of each model's audit."""
    members, others = split(records)
    schedule = Schedule(epochs=epochs, batch_size=32, learning_rate=0.1)
    inputs, labels = torch.cat([members.inputs, others.inputs]), torch.cat([members.labels, others.labels])
    trained = train_references(
        network,
        inputs,
        labels,
        included=draw_inclusion(references, records, seed=1),
        schedule=schedule,
        place=Place(folder=out / "references"),
    )
    models = {"plain": plainly(members, schedule), "private": privately(members, out / "private", epochs)}
    found: dict[str, Membership] = {}
    for name, model in models.items():
        attacked = run(model, members, others, references=trained, assignment=Assignment.RANDOMISED)
        svg = roc_svg(attacked.statistics, attacked.members, blind=attacked.blind)
        (out / f"roc-{name}.svg").write_text(svg, encoding="utf-8")
        (out / f"audit-{name}.json").write_text(json.dumps(attacked.record.to_json(), indent=2), encoding="utf-8")
        draw(out / f"inversion-{name}.svg", model, members, others)
        found[name] = attacked.record
    return found


def draw(path: Path, model: nn.Module, members: Examples, others: Examples, label: int = 3) -> None:
    """What the model remembers of a class, above the nearest member."""
    inside, outside = (side.inputs[side.labels == label].numpy() for side in (members, others))
    seen = reconstruct(model, label, shape=(64,))
    nearest = inside[nearest_members(seen, inside)]
    path.write_text(picture(seen.reshape(-1, 8, 8), nearest=nearest.reshape(-1, 8, 8)), encoding="utf-8")
    compared = nearness(seen, members=inside, non_members=outside)
    print(f"{path.stem}: nearest member {compared.to_member:.2f}, nearest non-member {compared.to_non_member:.2f}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, default=Path("runs/classifier"))
    options.add_argument("--tiny", action="store_true", help="400 records, 4 references, for a quick look")
    given = options.parse_args()
    torch.set_num_threads(1)
    sizes = (
        {"records": 400, "references": 4, "epochs": 20}
        if given.tiny
        else {"records": 1_600, "references": 16, "epochs": 60}
    )
    for name, record in audited(given.out, **sizes).items():
        print(f"{name}: {record.leak.value}")
        for attack in record.attacks:
            rate = attack.rates[0]
            area = f"AUC {attack.auc.value:.3f} [{attack.auc.low:.3f}, {attack.auc.high:.3f}]"
            counted = (
                f"{rate.true_positives} of {rate.members} members at {rate.false_positives} of {rate.non_members} false"
            )
            print(f"  {attack.attack:6s} {area}, {counted}")


if __name__ == "__main__":
    main()
