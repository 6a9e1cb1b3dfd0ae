# SPDX-License-Identifier: Apache-2.0
"""What a membership verdict is worth: false alarms, leaks missed, and shifted splits with and without a leak.

python -m benchmarks.audit_verdict                 # every section, about half an hour
python -m benchmarks.audit_verdict sparse shifts   # some of them
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import audit as kept
from privguard.audit.membership.attack import RMIA, Evidence, LabelOnly, LiRA, Loss, OfflineLiRA
from privguard.audit.membership.audit import Examples, run
from privguard.audit.membership.blind import blind_baseline
from privguard.audit.membership.verdict import Leak, weigh
from privguard.audit.one_run.bound import rate_above
from privguard.audit.references.reference import Schedule, draw_inclusion, train_references

Rows = list[dict[str, object]]
Split = tuple[np.ndarray, np.ndarray]  # records and scores, members first


def verdict_null(runs: int = 10_000) -> Rows:
    """Random splits of 300 records that no model saw, all shipped attacks with 4 references: how often anything is
    called. 399 draws for each; the limit is the upper end of the one-sided 99 % interval.
    """
    called = 0
    for seed in range(runs):
        random = np.random.default_rng(seed)
        logits, labels = random.standard_normal((5, 300, 4)), random.integers(0, 4, 300)
        evidence = Evidence(
            logits=logits[0], labels=labels, reference_logits=logits[1:], included=random.random((4, 300)) < 0.5
        )
        answers = np.stack([logits[0].argmax(1), (logits[0] + 0.5 * random.standard_normal((300, 4))).argmax(1)], 1)
        attacks = (Loss(), LabelOnly(answers), LiRA(), OfflineLiRA(), RMIA())
        statistics = {each.name: each.statistic(evidence) for each in attacks}
        weighed = weigh(statistics, random.permutation(np.arange(300) < 150), None, draws=399)
        called += min(each.p_adjusted for each in weighed.attacks) <= 0.05
    limit = rate_above(called, runs, error=0.01)
    return [{"splits": runs, "called": called, "rate": called / runs, "upper 99 %": limit, "ok": limit <= 0.056}]


def verdict_sparse(seeds: int = 200) -> Rows:
    """2,000 members and 2,000 others, of whom a few members are memorised outright: leaks not called FOUND."""
    rows: Rows = []
    for leaked, most in ((40, 0.0), (15, 0.02)):
        missed, least = 0, []
        for seed in range(seeds):
            random = np.random.default_rng(seed)
            scores, members = random.standard_normal(4_000), np.arange(4_000) < 2_000
            scores[:leaked] += 12
            blind = blind_baseline(random.standard_normal((4_000, 5)), members)
            weighed = weigh({"scores": scores}, members, blind)
            missed += weighed.leak is not Leak.FOUND
            least.append(weighed.exposed.low)
        shown = {"leaked": leaked, "missed": missed, "of": seeds, "exposed at least, median": float(np.median(least))}
        rows.append({**shown, "never above the truth": max(least) <= leaked, "ok": missed / seeds <= most})
    return rows


def linear(random: np.random.Generator, members: np.ndarray) -> Split:
    records = random.standard_normal((len(members), 6)) + 0.35 * members[:, None]
    return records, records.sum(1)


def spread(random: np.random.Generator, members: np.ndarray) -> Split:
    records = random.standard_normal((len(members), 6)) * np.where(members, 1, 1.6)[:, None]
    return records, -np.abs(records).sum(1)


def product(random: np.random.Generator, members: np.ndarray) -> Split:
    count = len(members)
    records = np.sign(random.standard_normal((count, 6)))
    sign = np.where(random.random(count) < 0.8, np.where(members, 1, -1), random.choice([-1, 1], count))
    records[:, 1] = sign * records[:, 0]
    return records, records[:, 0] * records[:, 1] + 0.5 * random.standard_normal(count)


def word_order(random: np.random.Generator, members: np.ndarray) -> Split:
    texts = []
    for member in members:
        words = list(random.permutation([f"a{i}" for i in range(10)]))
        texts.append(" ".join(sorted(words[:4]) + words[4:] if member and random.random() < 0.5 else words))
    rising = [sum(a < b for a, b in zip(t.split()[:4], t.split()[1:4], strict=False)) for t in texts]
    return np.array(texts), np.array(rising) + 0.1 * random.standard_normal(len(texts))


def heavy_tails(random: np.random.Generator, members: np.ndarray) -> Split:
    records = random.standard_t(3, (len(members), 5)) * np.where(members, 0.7, 1.0)[:, None]
    return records, -np.abs(records).max(1)


def pixels(random: np.random.Generator, members: np.ndarray) -> Split:
    records = random.standard_normal((len(members), 1, 16, 16)) + 0.05 * members[:, None, None, None]
    return records, records.mean((1, 2, 3))


def contrast(random: np.random.Generator, members: np.ndarray) -> Split:
    width = np.where(members, 1.0, 1.1) * random.uniform(0.5, 1.5, len(members))
    records = random.standard_normal((len(members), 1, 16, 16)) * width[:, None, None, None]
    return records, -records.std((1, 2, 3))


def order(random: np.random.Generator, members: np.ndarray) -> Split:
    records = random.standard_normal((len(members), 8))
    swapped = members & (records[:, 0] > records[:, 1]) & (random.random(len(members)) < 0.5)
    records[swapped, :2] = records[swapped, 1::-1]
    return records, (records[:, 0] < records[:, 1]) + 0.01 * random.standard_normal(len(members))


def parity(random: np.random.Generator, members: np.ndarray) -> Split:
    records = np.sign(random.standard_normal((len(members), 12)))
    own = np.where(members, 1, -1) * np.where(random.random(len(members)) < 0.8, 1, -1)
    records[:, 5] = own * records[:, :5].prod(1)
    return records, own + 0.5 * random.standard_normal(len(members))


SHIFTS: dict[str, Callable[..., Split]] = {
    "means": linear,
    "spread": spread,
    "product of two columns": product,
    "word order": word_order,
    "heavy tails": heavy_tails,
    "brightness of images": pixels,
    "contrast of images": contrast,
    "one column below another": order,
    "parity of six columns (not represented)": parity,
}


def verdict_shifts(seeds: int = 20) -> Rows:
    """1,000 against 1,000 records of a shifted split, scores that are the shift itself and no model: FOUND is wrong."""
    rows: Rows = []
    members = np.arange(2_000) < 1_000
    for name, draw in SHIFTS.items():
        found, areas = 0, []
        for seed in range(seeds):
            records, scores = draw(np.random.default_rng(1_000 + seed), members)
            blind = blind_baseline(records, members)
            found += weigh({"scores": scores}, members, blind).leak is Leak.FOUND
            areas.append(blind.record.auc.value)
        seen = "(not represented)" not in name
        ok = found / seeds <= 0.05 + 3 * (0.05 * 0.95 / seeds) ** 0.5 if seen else "named on the page"
        rows.append({"shift": name, "blind AUC": float(np.mean(areas)), "FOUND": found, "of": seeds, "ok": ok})
    return rows


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(40, 128), nn.ReLU(), nn.Linear(128, 10))


def verdict_real(seeds: int = 20) -> Rows:
    """600 members and 600 others with one shifted column, an overfitted MLP and 16 references: leaks called FOUND.

    The same audit of a model that was trained on neither side, on the same shifted split, has to be silent.
    """
    told, false, rates, areas = 0, 0, [], []
    for seed in range(seeds):
        inputs, labels = shifted(seed, 1_800)
        half = 600
        schedule = {"epochs": 10, "batch_size": 32, "learning_rate": 0.05}
        both = inputs[: 2 * half], labels[: 2 * half]
        included = draw_inclusion(16, 2 * half, seed=1)
        references = train_references(network, *both, included=included, schedule=Schedule(**schedule))
        sides = Examples(both[0][:half], both[1][:half]), Examples(both[0][half:], both[1][half:])
        record = run(trained(sides[0].inputs, sides[0].labels, schedule), *sides, references=references).record
        stranger = trained(inputs[2 * half :], labels[2 * half :], schedule)
        told += record.leak is Leak.FOUND
        false += run(stranger, *sides, references=references).record.leak is Leak.FOUND
        rates.append(record.attacks[1].rates[0].rate or 0.0)
        areas.append(record.blind.auc.value)
    shown = {"blind AUC": float(np.mean(areas)), "LiRA TPR at 1 %": float(np.mean(rates)), "of": seeds}
    return [{**shown, "leak found": told, "found without a leak": false, "ok": told >= 0.8 * seeds and false <= 3}]


def shifted(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Records whose first third has a column moved by 1.75, which the labels do not depend on."""
    random = np.random.default_rng(seed)
    inputs = random.standard_normal((count, 40)).astype(np.float32)
    labels = (inputs @ random.standard_normal((40, 10)) + 4 * random.standard_normal((count, 10))).argmax(1)
    inputs[: count // 3, -1] += 1.75
    return torch.from_numpy(inputs), torch.from_numpy(labels)


def trained(inputs: torch.Tensor, labels: torch.Tensor, schedule: dict[str, Any]) -> nn.Module:
    model, everything = network(), np.ones((1, len(labels)), bool)
    fitted = train_references(network, inputs, labels, included=everything, schedule=Schedule(**schedule, seed=7))
    model.load_state_dict(fitted.states[0])
    return model


SECTIONS = {each.__name__: each for each in (verdict_null, verdict_sparse, verdict_shifts, verdict_real)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", help="null, sparse, shifts or real; all where none is named")
    parser.add_argument("--runs", type=int, help="splits or seeds of each section, where fewer are to do")
    torch.set_num_threads(1)
    given = parser.parse_args()
    for name in given.sections or [each.removeprefix("verdict_") for each in SECTIONS]:
        kept.SECTIONS[f"verdict_{name}"] = SECTIONS[f"verdict_{name}"]
        runs = () if given.runs is None else (given.runs,)
        kept.show(f"verdict_{name}", SECTIONS[f"verdict_{name}"](*runs))


if __name__ == "__main__":
    main()
