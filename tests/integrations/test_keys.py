# SPDX-License-Identifier: Apache-2.0
"""Whatever becomes of a run folder, no noise is drawn twice; and only a head kept outside lets a run go on exactly."""

import random
import shutil

import pytest
import torch
from small import SmallRun, small_data, small_model, small_plan
from torch.nn import functional

from privguard.accounting.budget.book import Book
from privguard.accounting.budget.grants import DataSet
from privguard.accounting.calibrate import Budget
from privguard.accounting.ledger import Ledger
from privguard.attest.statement import SigningKey
from privguard.checkpoint import Trust
from privguard.checkpoint.keys.key import Key
from privguard.errors import LedgerError, ResumeError
from privguard.runs import start
from privguard.runs.options import RunOptions, RunSetup
from privguard.training.attach import attach

DATA = "ab" * 32
KEY = Key.generate_symmetric()
PLAN = small_plan(steps=10_000)


def resumed(folder):
    """A run without the probe of the wrappers, which says nothing here and takes most of the time."""
    model = small_model()
    setup = RunSetup(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.5),
        clipper=attach(model, max_grad_norm=PLAN.max_grad_norm),
        folder=folder,
        seal_to=[KEY],
        dataset=small_data(),
        options=RunOptions(quiet=True),
        every=1,
    )
    return (start.resume if (folder / "run.json").exists() else start.start)(PLAN, setup)


def drawn(run, steps):
    """The bytes of sample and noise of the next steps, as PrivateStep asks for them, after each was taken."""
    found = []
    for _ in range(steps):
        position = run.reserve()
        found.append(run._step._noise.child(position).words(2).tobytes())
        found.append(run.sampler_source.child(position).words(2).tobytes())
        run._setup.clipper.begin(torch.zeros(1, dtype=torch.bool))
        run._setup.clipper.backward(
            functional.cross_entropy(run._setup.model(torch.zeros(1, 6)), torch.tensor([0]), reduction="none")
        )
        run.finish_step()
    return found


def put_back(backup, folder):
    """What ``rsync --inplace --delete`` or a rolled-back volume does: the same inodes with the old bytes."""
    for path in folder.rglob("*.sealed"):
        if not (backup / path.relative_to(folder)).exists():
            path.unlink()
    for path in backup.rglob("*"):
        if path.is_file():
            with (folder / path.relative_to(backup)).open(
                "r+b" if (folder / path.relative_to(backup)).exists() else "wb"
            ) as file:
                file.truncate()
                file.write(path.read_bytes())


def tries(folder, count, seed):
    """Every draw of so many resumes, each after something happened to the folder."""
    chance, draws = random.Random(seed), []
    here, backup = folder / "run", folder / "backup"
    for number in range(count):
        run = resumed(here)
        draws += drawn(run, chance.randint(1, 2))
        if chance.random() < 0.7:
            run.close()
        else:
            run._ledger.close()  # as a process that was killed leaves it
        happens = chance.choice(["nothing", "copy", "put back", "moved", "backup"])
        if happens == "backup" or not backup.exists():
            shutil.rmtree(backup, ignore_errors=True)
            shutil.copytree(here, backup)
        elif happens == "put back":
            put_back(backup, here)
        elif happens == "copy":
            here = folder / f"copy-{number}"
            shutil.copytree(backup, here)
        elif happens == "moved":
            here = here.rename(folder / f"moved-{number}")
    return draws


def test_nothing_is_drawn_twice_whatever_becomes_of_the_folder(tmp_path):
    draws = tries(tmp_path, 25, seed=0)
    assert len(set(draws)) == len(draws) >= 50


@pytest.mark.slow
def test_nothing_is_drawn_twice_in_a_thousand_tries(tmp_path):
    draws = tries(tmp_path, 1_000, seed=1)
    assert len(set(draws)) == len(draws) >= 2_000


def test_a_folder_put_back_in_place_adds_other_noise(small):
    """Before, the difference of the two releases had a sixteenth of the noise: it showed the record that differs."""
    plan = small_plan(steps=40, noise_multiplier=1.0)

    def more(steps, **options):
        small.renew()
        SmallRun.go(small.start(plan, resume=True, **options), steps=steps)
        return torch.cat([parameter.detach().flatten() for parameter in small.model.parameters()])

    SmallRun.go(small.start(plan), steps=3)
    shutil.copytree(small.folder, backup := small.folder.with_name("backup"))
    inode = (small.folder / "ledger.jsonl").stat().st_ino
    first = more(3)
    put_back(backup, small.folder)
    assert (small.folder / "ledger.jsonl").stat().st_ino == inode  # what told copies apart before
    second = more(3)
    noise = 0.5 * plan.noise_multiplier * plan.max_grad_norm / plan.expected_batch_size  # of a step, per coordinate
    assert (first - second).std() > noise  # √(2 · 3) times that, or more, for 83 coordinates: fails by chance < 1e-9
    nonces = [{key.nonce for key in Ledger.read(place / "ledger.jsonl").streams} for place in (small.folder, backup)]
    assert nonces[1] < nonces[0]


def test_exact_continuation_needs_the_newest_head_from_outside(small):
    SmallRun.go(small.start(insecure_seed=None), steps=3)

    def again(**options):
        small.renew()
        return small.start(resume=True, **options)

    with pytest.raises(ResumeError, match="needs a head that was kept outside"):
        again(continue_exactly=True)
    private = again()
    SmallRun.go(private, steps=2)
    older = Ledger.read(small.folder / "ledger.jsonl").heads[-3]
    with pytest.raises(ResumeError, match="needs a head that was kept outside"):
        again(continue_exactly=True, trust=Trust(expect_head=older))


def test_with_the_newest_head_the_same_key_goes_on(small):
    private = small.start()
    SmallRun.go(private, steps=3)
    newest = Ledger.read(small.folder / "ledger.jsonl").head
    shutil.copytree(small.folder, copy := small.folder.with_name("copy"))
    small.renew()
    with pytest.raises(ResumeError, match="is a copy"):
        small.start(run=copy, resume=True, continue_exactly=True, trust=Trust(expect_head=newest))
    small.renew()
    again = small.start(resume=True, continue_exactly=True, trust=Trust(expect_head=newest))
    assert again._run._streams.current.secret() == private._run._streams.current.secret()
    assert SmallRun.go(again) == 17
    assert len(Ledger.read(small.folder / "ledger.jsonl").streams) == 1


@pytest.fixture
def book(tmp_path):
    officer = SigningKey.generate()
    book = Book.create(tmp_path / "team.db", officers=[officer.identity])
    book.add(DataSet(sha256=DATA, name="small"))
    book.grant(DATA, Budget(epsilon=1e4, delta=1e-3), by=officer, reason="a test")
    return book


@pytest.mark.parametrize("exact", [False, True])
def test_a_book_refuses_the_older_of_two_copies(small, book, exact):
    charged = {"book": book, "data_set": DATA, "continue_exactly": exact}
    SmallRun.go(small.start(book=book, data_set=DATA), steps=3)
    shutil.copytree(small.folder, copy := small.folder.with_name("copy"))
    if exact:  # a copy has another inode, so let the original be the one that comes second
        shutil.rmtree(small.folder)
        shutil.copytree(copy, small.folder)
        charged["continue_exactly"] = False
    small.renew()
    SmallRun.go(small.start(resume=True, **charged), steps=2)
    small.renew()
    with pytest.raises(LedgerError, match="knows a later ledger of this run"):
        small.start(run=copy, resume=True, book=book, data_set=DATA)


def test_a_book_lets_the_newest_state_go_on_exactly_and_once(small, book):
    private = small.start(book=book, data_set=DATA)
    SmallRun.go(private, steps=3)
    small.renew()
    again = small.start(resume=True, book=book, data_set=DATA, continue_exactly=True)
    assert again._run._streams.current.secret() == private._run._streams.current.secret()
    assert SmallRun.go(again) == 17


def test_a_claim_says_what_no_head_outside_the_folder_watches(small, book, tmp_path):
    alone, watched = small.start(), SmallRun(tmp_path / "watched").start(book=book, data_set=DATA)
    assert any("copies of this run folder" in line for line in alone.claim().unchecked)
    assert not any("copies of this run folder" in line for line in watched.claim().unchecked)


def test_another_data_set_is_refused_or_named_in_the_claim(small):
    SmallRun.go(small.start(), steps=3)
    small.renew()
    small.data = small_data(99)
    with pytest.raises(ResumeError, match="data: not the records that this run has read"):
        small.start(resume=True)
    small.renew()
    private = small.start(resume=True, other_data="one person withdrew")
    SmallRun.go(private, steps=2)
    assert any("From step 3 on" in line and "one person withdrew" in line for line in private.claim().unchecked)
    small.renew()
    SmallRun.go(small.start(resume=True), steps=1)  # the new data set is the run's own from then on


def test_a_run_with_nothing_left_is_resumed_for_its_state(small):
    assert SmallRun.go(small.start()) == 20
    weights = [parameter.clone() for parameter in small.model.parameters()]
    small.renew()
    private = small.start(resume=True)
    assert SmallRun.go(private) == 0
    assert all(torch.equal(*pair) for pair in zip(weights, small.model.parameters(), strict=True))
