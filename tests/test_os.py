# SPDX-License-Identifier: Apache-2.0
"""Each capability of the operating system taken away: what is only speed is done without, what a promise rests on is
kept by a fallback or refused by name."""

import ctypes
import errno
import multiprocessing
import os
import stat
import subprocess
import sys
from pathlib import Path

import dp_accounting as dp
import pytest
import torch

from privguard import _os
from privguard.accounting.ledger import Ledger
from privguard.attest.journal import Journal, verify
from privguard.attest.statement import SigningKey
from privguard.checkpoint import Key, Snapshot, load, open_into, open_sealed, rewrap, save, seal
from privguard.errors import ResumeError

SPEED = {
    "sched_getaffinity": (os, "sched_getaffinity"),
    "posix_fadvise": (os, "posix_fadvise"),
    "preadv": (os, "preadv"),
    "MADV_HUGEPAGE": ("mmap", "MADV_HUGEPAGE"),
    "register_at_fork": (os, "register_at_fork"),
}


def everything(folder: Path) -> None:
    """One round of each thing that touches the disk, checked."""
    folder.mkdir()
    key, source = Key.generate_symmetric(), folder / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "a").write_bytes(os.urandom(70_000))
    weights = {"w": torch.arange(2_000_000, dtype=torch.float32)}
    save(Snapshot(weights=weights, run="r", step=1), folder / "x", to=key)
    assert torch.equal(load(folder / "x", key).weights["w"], weights["w"])
    assert torch.equal(open_sealed(folder / "x", key)["w"], weights["w"])
    seal(source, folder / "s", to=key)
    new = Key.generate_symmetric()
    for path in ("x", "s"):
        rewrap(folder / path, key, add=new)
    open_into(folder / "s", folder / "clear", key=new)
    assert (folder / "clear/sub/a").read_bytes() == (source / "sub" / "a").read_bytes()
    with Ledger.create(folder / "ledger", {"run": "r"}) as ledger:
        assert ledger.reserve(dp.GaussianDpEvent(1.0), 2) == range(2)
    signer = SigningKey.generate()
    Journal(folder / "journal", by=signer).record("open", "x")
    assert verify(folder / "journal", trusted=[signer.identity]).entries == 1


def test_all_of_it_works_with_every_capability(tmp_path):
    everything(tmp_path / "work")


@pytest.mark.parametrize("name", SPEED)
def test_what_is_only_speed_is_done_without(tmp_path, monkeypatch, name):
    module, attribute = SPEED[name]
    monkeypatch.delattr(f"mmap.{attribute}" if module == "mmap" else f"os.{attribute}")
    everything(tmp_path / "work")


def test_a_system_without_positioned_reads_and_writes_seeks(tmp_path, monkeypatch):
    for name in ("preadv", "pread", "pwrite"):
        monkeypatch.delattr(f"os.{name}")
    everything(tmp_path / "work")


def test_a_system_without_directory_descriptors_uses_paths(tmp_path, monkeypatch):
    monkeypatch.setattr(_os, "_DIRECTORY", 0)
    everything(tmp_path / "work")


REFUSALS = {
    "fsync of a directory": ("fsync", errno.EINVAL, lambda descriptor: stat.S_ISDIR(os.fstat(descriptor).st_mode)),
    "advice": ("posix_fadvise", errno.EOPNOTSUPP, lambda *_: True),
    "link": ("link", errno.EPERM, lambda *_: True),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_file_system_that_refuses_what_need_not_be_is_served(tmp_path, monkeypatch, name):
    call, code, applies = REFUSALS[name]
    real = getattr(os, call)

    def refuse(*arguments, **named):
        if applies(*arguments):
            raise OSError(code, os.strerror(code))
        return real(*arguments, **named)

    monkeypatch.setattr(os, call, refuse)
    everything(tmp_path / "work")


def test_a_directory_that_fails_to_sync_is_an_error(tmp_path, monkeypatch):
    def fail(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        _os.sync_directory(tmp_path)


def no_locks(*_, **__):
    raise OSError(errno.ENOSYS, "Function not implemented")


def test_without_locks_single_files_go_on_and_what_needs_one_writer_is_refused_by_name(tmp_path, monkeypatch):
    key = Key.generate_symmetric()
    ledger = Ledger.create(tmp_path / "old", {"run": "r"})
    ledger.close()
    monkeypatch.setattr(_os.fcntl, "flock", no_locks)
    save(Snapshot(weights={"w": torch.ones(3)}, run="r", step=1), tmp_path / "x", to=key)
    assert load(tmp_path / "x", key).step == 1
    for start in (lambda: Ledger.create(tmp_path / "new", {"run": "r"}), lambda: Ledger.open(tmp_path / "old")):
        with pytest.raises(ResumeError, match="no working lock"):
            start()
    assert not (tmp_path / "new").exists()
    with pytest.raises(_os.LocksUnsupportedError):
        Journal(tmp_path / "journal", by=SigningKey.generate()).record("open", "x")


@pytest.mark.parametrize("absent", ["fcntl", "sched_getaffinity"])
def test_everything_imports_where_a_module_of_unix_is_absent(absent):
    take_away = "sys.modules['fcntl'] = None" if absent == "fcntl" else "del os.sched_getaffinity"
    code = f"import os, sys; {take_away}\nimport privguard as pg, privguard.cli; pg.privatize; pg.Key"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_full_sync_of_macos_is_used_and_its_refusal_is_answered_by_fsync(tmp_path, monkeypatch):
    calls, (descriptor) = [], os.open(tmp_path / "x", os.O_RDWR | os.O_CREAT)
    monkeypatch.setattr(_os.fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(_os.fcntl, "fcntl", lambda _, what: calls.append(what))
    monkeypatch.setattr(os, "fsync", lambda _: calls.append("fsync"))
    _os.sync(descriptor)
    assert calls == [51]

    def refuse(*_):
        raise OSError(errno.ENOTSUP, "not here")

    monkeypatch.setattr(_os.fcntl, "fcntl", refuse)
    _os.sync(descriptor)
    assert calls == [51, "fsync"]
    os.close(descriptor)


def test_a_short_write_goes_on_where_it_stopped(tmp_path, monkeypatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda d, data, at: real(d, bytes(data)[:7], at))
    descriptor = os.open(tmp_path / "x", os.O_RDWR | os.O_CREAT)
    content = os.urandom(100)
    _os.write_all_at(descriptor, content, 3)
    assert (tmp_path / "x").read_bytes() == bytes(3) + content
    monkeypatch.setattr(os, "pread", lambda d, count, at, real=os.pread: real(d, min(count, 5), at))
    assert _os.read_all_at(descriptor, 200, 3) == content
    os.close(descriptor)


def test_a_name_that_is_taken_is_never_given_again(tmp_path, monkeypatch):
    (tmp_path / "new").write_bytes(b"new")
    (tmp_path / "taken").write_bytes(b"old")
    (tmp_path / "dangling").symlink_to(tmp_path / "elsewhere")
    for refuse_links in (False, True):
        if refuse_links:
            monkeypatch.setattr(os, "link", no_locks)
        for name in ("taken", "dangling"):
            with pytest.raises(FileExistsError):
                _os.publish("new", name, directory=tmp_path, dir_fd=None)
    assert (tmp_path / "taken").read_bytes() == b"old"
    assert not (tmp_path / "elsewhere").exists()
    _os.publish("new", "name", directory=tmp_path, dir_fd=_os.open_directory(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "name", "taken"]


def test_a_pipe_is_not_waited_on(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="regular file"):
        _os.open_regular(tmp_path / "pipe")


def hold(path: str, ready, release) -> None:
    with _os.locked_path(Path(path)) as descriptor:
        ready.set()
        release.wait(30)
        Path(path + ".new").replace(path)  # what a saver does while others wait
        assert descriptor


def test_who_waited_on_a_file_that_was_replaced_gets_the_new_one(tmp_path):
    (tmp_path / "x").write_bytes(b"old")
    (tmp_path / "x.new").write_bytes(b"new")
    processes = multiprocessing.get_context("spawn")
    ready, release = processes.Event(), processes.Event()
    other = processes.Process(target=hold, args=(str(tmp_path / "x"), ready, release))
    other.start()
    assert ready.wait(60)
    with pytest.raises(BlockingIOError), _os.locked_path(tmp_path / "x", wait=False):
        pass
    release.set()
    with _os.locked_path(tmp_path / "x") as descriptor:
        assert os.pread(descriptor, 3, 0) == b"new"
    other.join()


def test_memory_comes_zeroed_and_writable():
    memory = _os.anonymous_memory(5 << 20)
    assert len(memory) == 5 << 20
    assert not memory[123]
    memory[123] = 1
    assert ctypes.sizeof(ctypes.c_char * len(memory)) == len(memory)
