# SPDX-License-Identifier: Apache-2.0
"""Stopping and going on: cleanly, killed, interrupted, out of disk, and with the wrong files."""

import os
import random
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from processes import WAIT, spawn, until
from small import SmallRun, small_plan
from torch.nn import functional

from benchmarks.book import forked
from privguard.accounting.ledger import Ledger
from privguard.checkpoint.keys.key import Key
from privguard.errors import LedgerError, ResumeError, TamperedError

HERE = Path(__file__).parent


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("stop", [1, 7, 8, 13, 19])
def test_a_clean_stop_and_resume_is_the_uninterrupted_run(small, stop):
    """Same ledger, same samples, same noise: with a seed, the same weights to the last bit."""
    SmallRun.go(small.start(run=small.folder / "whole", insecure_seed=3))
    whole = weights(small.model)
    small.renew()
    assert SmallRun.go(small.start(run=small.folder / "parts", insecure_seed=3), steps=stop) == stop
    small.renew()
    assert SmallRun.go(small.start(run=small.folder / "parts", insecure_seed=3, resume=True)) == 20 - stop
    assert torch.equal(weights(small.model), whole)
    histories = [Ledger.read(small.folder / name / "ledger.jsonl").spent() for name in ("whole", "parts")]
    assert sum(times for _, times in histories[0]) == sum(times for _, times in histories[1]) == 20


def test_a_schedule_comes_back(small):
    def scheduled():
        scheduler = torch.optim.lr_scheduler.StepLR(small.optimizer, step_size=3, gamma=0.5)
        return scheduler, {"also": {"schedule": scheduler}}

    scheduler, more = scheduled()
    done = 0
    for inputs, targets in (private := small.start(**more)).batches():
        private.backward(functional.cross_entropy(private.model(inputs), targets, reduction="none"))
        if private.step():
            scheduler.step()
            done += 1
        if done == 5:
            break
    small.renew()
    scheduler, more = scheduled()
    small.start(resume=True, **more)
    assert scheduler.last_epoch == 5
    assert small.optimizer.param_groups[0]["lr"] == 0.25


class Child:
    """``crashing_run.py`` in a folder of its own."""

    def __init__(self, folder):
        self.run = folder / "run"
        self.key = folder / "key"
        Key.generate_symmetric().write(self.key)

    def spawn(self, *flags):
        return spawn(HERE / "crashing_run.py", self.run, self.key, *flags)

    def history(self):
        return Ledger.read(self.run / "ledger.jsonl")


@pytest.fixture
def child(tmp_path):
    return Child(tmp_path)


def test_kill_and_resume_keeps_what_was_reserved_spent_and_ends_within_the_budget(child):
    killed = child.spawn("hold", "25")
    until(killed, "step 25")
    killed.kill()
    killed.communicate()
    reserved = child.history().position
    assert 25 <= reserved <= 25 + 1
    again = child.spawn("resume")
    out, err = again.communicate(timeout=WAIT)
    assert again.returncode == 0, err
    assert out.count("step ") == 200 - reserved  # the lost steps are not trained again: their budget is gone
    assert child.history().position == 200
    assert child.history().settled


def test_a_killed_run_never_draws_the_same_sample_or_noise_again(small, caplog):
    """A crash leaves the ledger ahead of the snapshot; what follows is keyed afresh."""
    private = small.start(checkpoint_every=100)
    private.save()
    before = private._run._streams.current.secret()
    SmallRun.go(private, steps=3)
    for newer in (small.folder / "checkpoints").glob("step-0000000[1-9]*"):
        newer.unlink()  # as if the process had died before it could seal these
    small.renew()
    resumed = small.start(resume=True)
    assert (
        "3 steps that it took or reserved after the checkpoint of step 0 stay spent, 15.0 % of the plan, so 17 of the"
        in caplog.text
    )
    assert resumed._run._streams.current.secret() != before
    assert resumed._run.taken == 3
    assert SmallRun.go(resumed) == 17


def test_ctrl_c_leaves_a_run_that_goes_on_where_it_was(child):
    interrupted = child.spawn("slow", "15")
    until(interrupted, "step 15")
    interrupted.send_signal(signal.SIGINT)
    _, err = interrupted.communicate(timeout=WAIT)
    assert interrupted.returncode != 0
    assert "KeyboardInterrupt" in err
    history = child.history()
    assert history.settled
    assert (child.run / "checkpoints" / f"step-{history.position:08d}.sealed").exists()
    again = child.spawn("resume")
    out, err = again.communicate(timeout=WAIT)
    assert out.count("step ") == 200 - history.position, err


def test_a_full_disk_is_an_error_that_leaves_ledger_and_folder_readable(child):
    full = child.spawn("disk", "6000")
    out, err = full.communicate(timeout=WAIT)
    assert full.returncode != 0
    assert "OSError" in err
    assert "File too large" in err
    history = child.history()
    steps = out.count("step ")
    assert history.position >= steps
    assert not list((child.run / "checkpoints").glob("*.tmp"))


def test_resume_without_a_ledger_is_refused(small):
    SmallRun.go(small.start(), steps=2)
    (small.folder / "ledger.jsonl").unlink()
    small.renew()
    with pytest.raises(LedgerError, match="missing"):
        small.start(resume=True)


def test_resume_with_a_ledger_behind_the_checkpoint_is_refused(small):
    private = small.start(checkpoint_every=1)
    SmallRun.go(private, steps=2)
    shutil.copy(small.folder / "ledger.jsonl", small.folder / "old")
    small.renew()
    SmallRun.go(small.start(resume=True, checkpoint_every=1), steps=9)
    shutil.move(small.folder / "old", small.folder / "ledger.jsonl")
    small.renew()
    with pytest.raises(ResumeError, match="does not extend"):
        small.start(resume=True)


def test_resume_of_another_plan_is_refused_by_name(small):
    SmallRun.go(small.start(), steps=2)
    small.renew()
    with pytest.raises(ResumeError, match="noise_multiplier differ"):
        small.start(small_plan(noise_multiplier=0.1), resume=True)


def test_a_seed_never_enters_a_run_that_has_a_claim(small):
    """After a crash the streams are keyed afresh; a seed would then make the noise of a claimed run predictable."""
    SmallRun.go(small.start(checkpoint_every=1), steps=2)
    small.renew()
    with pytest.raises(ResumeError, match="insecure_seed=7"):
        small.start(resume=True, insecure_seed=7)
    small.renew()
    assert SmallRun.go(small.start(resume=True)) == 18


def test_resume_of_nothing_is_refused(small):
    with pytest.raises(ResumeError, match="no run to go on with"):
        small.start(resume=True)


def test_resume_with_a_key_that_does_not_open_is_refused(small):
    SmallRun.go(small.start(), steps=2)
    small.renew()
    with pytest.raises(TamperedError):
        small.start(resume=True, key=Key.generate_symmetric())


def test_a_second_writer_on_the_same_run_is_refused(small):
    SmallRun.go(small.start(), steps=2)
    small.renew()
    with Ledger.open(small.folder / "ledger.jsonl"), pytest.raises(ResumeError, match="another process is writing"):
        small.start(resume=True)


def test_an_abandoned_run_settles_its_ledger(small):
    private = small.start()
    iterator = private.batches()
    next(iterator)
    del iterator, private
    time.sleep(0)
    history = Ledger.read(small.folder / "ledger.jsonl")
    assert history.settled
    assert history.position == 0


@pytest.mark.parametrize("how", [shutil.copytree, shutil.move])
def test_a_run_that_was_copied_or_moved_draws_afresh(small, how):
    """Two runs that go on from one state with the same samples and noise would show their difference without noise."""
    private = small.start()
    before = private._run._streams.current.secret()
    SmallRun.go(private, steps=3)
    how(small.folder, elsewhere := small.folder.with_name("elsewhere"))
    small.renew()
    there = small.start(run=elsewhere, resume=True)
    assert there._run.taken == 3
    assert there._run._streams.current.secret() != before
    assert SmallRun.go(there) == 17


@pytest.mark.slow
def test_two_hundred_kills_lose_at_most_one_position_each_and_leave_every_run_usable(tmp_path):
    """Killed at a random moment, before, in or between steps: each process tells of each step that took effect."""
    chance, lost = random.Random(0), []
    run = SmallRun(tmp_path / "run")
    plan = small_plan(steps=100_000)
    told = tmp_path / "told"

    def train(resume):
        file = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        private = run.start(plan, resume=resume, checkpoint_every=50)
        os.write(file, b"0")
        for inputs, targets in private.batches():
            private.backward(functional.cross_entropy(private.model(inputs), targets, reduction="none"))
            if private.step():
                os.pwrite(file, b"%d" % private._run.taken, 0)

    for number in range(200):
        before = Ledger.read(run.folder / "ledger.jsonl").position if number else 0
        told.unlink(missing_ok=True)
        run.renew()
        child = forked(partial(train, number > 0))
        while not (told.exists() and told.read_bytes()):
            assert os.waitpid(child, os.WNOHANG) == (0, 0), f"the run was not usable after {number} kills"
            time.sleep(0.01)
        time.sleep(chance.random() * 0.3)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        executed = max(before, int(told.read_bytes()))
        lost.append(Ledger.read(run.folder / "ledger.jsonl").position - executed)
    assert set(lost) <= {0, 1}
