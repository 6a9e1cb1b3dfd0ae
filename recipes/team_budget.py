# SPDX-License-Identifier: Apache-2.0
"""Three people train on one data set; the budget book composes their runs and stops the one that would go too far.

python recipes/team_budget.py --out runs/team
"""

import argparse
import hashlib
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import privguard as pg
from privguard.accounting.budget.book import Book
from privguard.accounting.budget.grants import DataSet
from privguard.accounting.calibrate import Budget
from privguard.attest.statement import SigningKey
from privguard.errors import BudgetExceededError


def open_book(out: Path, content: bytes) -> tuple[Book, str]:
    """A book in which a privacy officer has granted ε = 3 on the digits for all runs together."""
    officer = SigningKey.generate()
    officer.write(out / "officer.pem")  # stays with the officer
    book = Book.create(out / "book.db", officers=[officer.identity])
    sha256 = hashlib.sha256(content).hexdigest()
    book.add(DataSet(sha256=sha256, name="digits", source="scikit-learn"))
    book.grant(sha256, Budget(epsilon=3.0, delta=1e-4), by=officer, reason="recipe")
    return book, sha256


def train(folder: Path, plan: pg.Plan, data: TensorDataset, *, book: Book, data_set: str) -> None:
    """One private run, as in plain_loop.py, that the book has to hold before it starts."""
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    key, loader = pg.Key.generate_symmetric(), DataLoader(data, batch_size=256)
    private = pg.privatize(
        model,
        optimizer,
        loader,
        plan,
        run=folder,
        seal_to=[key],
        options=pg.RunOptions(book=book, data_set=data_set, quiet=True),
    )
    for images, labels in private.batches():
        private.backward(functional.cross_entropy(private.model(images), labels, reduction="none"))
        private.step()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, default=Path("runs/team"))
    options.add_argument("--tiny", action="store_true", help="two epochs a run, for a quick look")
    given = options.parse_args()
    torch.set_num_threads(1)  # so small a model gains nothing from more
    given.out.mkdir(parents=True)

    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.from_numpy(images / 8 - 1).float(), torch.from_numpy(labels))
    book, digits = open_book(given.out, images.tobytes() + labels.tobytes())
    epochs = 2 if given.tiny else 20
    plan = pg.Plan.for_budget(epsilon=1.8, delta=1e-4, examples=1797, batch_size=256, epochs=epochs, max_grad_norm=0.5)
    for person in ("anna", "ben", "chris"):
        try:
            train(given.out / person, plan, data, book=book, data_set=digits)
        except BudgetExceededError as refusal:  # before anything touched the data
            print(f"{person}: refused. {refusal}")
            continue
        print(f"{person}: done; all runs together have spent ε={book.standing(digits).epsilon:.3f} of 3")


if __name__ == "__main__":
    main()
