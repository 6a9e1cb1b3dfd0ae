# SPDX-License-Identifier: Apache-2.0
"""How long the index of a thousand runs takes: signed runs, so that no ledger is priced again, and a budget book.

    python -m benchmarks.report_index                  # 1,000 runs of 4 plans on 10 data sets of 5 teams
    python -m benchmarks.report_index --runs 100

One small run is trained; the others are its manifest under another name, a ledger of another length and noise, and a
report signed for it, without its pages, which the index does not read. The runs are read with their signer named, then
all over again with a stranger's key, so that each ledger is priced: equal histories once.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import torch
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import privguard as pg
from privguard.accounting.budget.book import Book
from privguard.accounting.budget.grants import DataSet
from privguard.accounting.budget.tally import Writer
from privguard.accounting.calibrate import dp_sgd
from privguard.accounting.ledger import Ledger
from privguard.attest.statement import Identity, SigningKey, Statement
from privguard.attest.statement import sign as statement_sign
from privguard.records import Digest, Manifest
from privguard.report.assemble import assemble
from privguard.report.index import page
from privguard.report.index.entry import folders
from privguard.report.index.overview import overview
from privguard.report.signed import sign
from privguard.runs.folder import LEDGER, MANIFEST

RESULTS = Path(__file__).parent / "results"
PLANS, DATA_SETS, TEAMS = 4, 10, 5


def trained(folder: Path) -> Manifest:
    """The manifest of one small private run."""
    model = torch.nn.Linear(4, 2)
    loader = DataLoader(TensorDataset(torch.randn(200, 4), torch.randint(0, 2, (200,))), batch_size=20)
    plan = pg.Plan.for_budget(epsilon=2.0, delta=1e-5, examples=200, batch_size=20, epochs=1, max_grad_norm=1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    private = pg.privatize(model, optimizer, loader, plan, run=folder, seal_to=[pg.Key.generate()])
    for inputs, targets in private.batches():
        private.backward(functional.cross_entropy(private.model(inputs), targets, reduction="none"))
        private.step()
    return Manifest.from_json(json.loads((folder / MANIFEST).read_text()))


def make(home: Path, manifest: Manifest, count: int, officer: SigningKey) -> Book:
    """So many signed run folders, each in the book."""
    book = Book.create(home / "team.db", officers=[officer.identity])
    for i in range(DATA_SETS):
        book.add(DataSet(sha256=f"{i:064x}", name=f"data set {i}"))
        book.grant(f"{i:064x}", pg.Budget(epsilon=1e3, delta=1e-5), by=officer, reason="benchmark")
    for i in range(count):
        event, steps = dp_sgd(sample_rate=0.01, noise_multiplier=4.0 + i % PLANS), 50
        mine, folder = replace(manifest, run=f"run-{i:04d}"), home / "runs" / f"run-{i:04d}"
        folder.mkdir(parents=True)
        (folder / MANIFEST).write_text(json.dumps(mine.to_json()))
        with Ledger.create(folder / LEDGER, {"run": mine.run, "manifest": mine.digest()}) as ledger:
            ledger.reserve(event, steps)
            ledger.settle(steps)
        report = assemble(folder)
        subject = Digest(name=LEDGER, sha256=sha256((folder / LEDGER).read_bytes()).hexdigest())
        predicate = {"report": report.to_json(), "signer": officer.identity.to_json()}
        said = Statement(subjects=(subject,), predicate_type=sign.PREDICATE_TYPE, predicate=predicate)
        statement_sign(said, by=officer).write(folder / sign.SIGNED)  # without pages, whose plots take seconds each
        book.spend(mine.run, f"{i % DATA_SETS:064x}", [(event, steps)], by=Writer(team=f"team {i % TEAMS}"))
    return book


def timed(home: Path, signer: Identity) -> dict[str, float | int]:
    """Seconds of the whole index, as the command makes it, and its size."""
    wall, cpu = time.perf_counter(), time.process_time()
    made = overview(folders([home / "runs"]), book=Book.open(home / "team.db"), signers=[signer])
    text = page.to_html(made, beside=home)
    return {
        "runs": len(made.entries),
        "signed": sum(entry.basis == "signed report" for entry in made.entries),
        "seconds": round(time.perf_counter() - wall, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "page_kib": len(text.encode()) // 1024,
    }


def main() -> None:
    """Make the runs, index them, and keep the times."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=1000)
    count = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        home, officer = Path(folder), SigningKey.generate()
        make(home, trained(home / "first"), count, officer)
        rows = [{"reports": "signed", **timed(home, officer.identity)}]
        rows.append({"reports": "priced again", **timed(home, SigningKey.generate().identity)})
    for row in rows:
        print(row)
    if count >= 1000:
        (RESULTS / "report_index.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
