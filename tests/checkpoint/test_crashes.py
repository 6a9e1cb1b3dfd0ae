# SPDX-License-Identifier: Apache-2.0
"""Kills, full disks and power cuts: afterwards the old checkpoint opens or the new one does, and never neither."""

import contextlib
import multiprocessing
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from privguard.checkpoint import Key, Sealed, Snapshot, load, open_sealed, rewrap, save, seal
from privguard.checkpoint.archive import HEAD, Audience, Contents
from privguard.checkpoint.content.payload import Bytes
from privguard.checkpoint.sealed_folder import write_folder
from privguard.errors import TamperedError
from tests.checkpoint.saver import save_for_ever


def content(path: Path, key: Key) -> int:
    """The step that the file or folder holds, after a check that all of it belongs to that step."""
    if path.is_dir():
        with Sealed(path, key) as sealed:
            step = int(sealed.read("step"))
            values = torch.frombuffer(sealed.read("w"), dtype=torch.float32)
    else:
        snapshot = load(path, key)
        step, values = snapshot.step, snapshot.weights["w"]
    assert torch.equal(values, torch.full_like(values, float(step)))
    return step


def killed(folder: Path, kind: str, kills: int) -> None:
    """Kill a process that saves over and over at random moments, and look at what is there each time."""
    key, target, draws = Key.generate_symmetric(), folder / "target", random.Random(7)
    key.write(folder / "key")
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.checkpoint.saver"])
    for _ in range(kills):
        ours, theirs = processes.Pipe(duplex=False)
        child = processes.Process(target=save_for_ever, args=(str(folder / "key"), str(target), kind, theirs))
        child.start()
        theirs.close()
        told = [ours.recv()]  # a first save of this process has to be there to be saved over
        time.sleep(draws.uniform(0.0, 0.03))
        child.kill()
        child.join()
        with contextlib.suppress(EOFError):
            while True:
                told.append(ours.recv())
        ours.close()
        child.close()
        assert told[-1] <= content(target, key) <= told[-1] + 1
    assert len([path for path in folder.iterdir() if path.name not in ("key", "target")]) <= 1
    if kind == "file":
        save(Snapshot(weights={"w": torch.zeros(1)}, run="r", step=0), target, to=key)
    else:
        assert sum(path.stat().st_size for path in target.rglob("*") if path.is_file()) < 3 * 1_700_000  # two copies
        write_folder(target, Contents(members={"w": Bytes(b"w")}), Audience.of(key))
        assert len(list(target.iterdir())) == 5  # member, index, ledger, manifest, head
    assert {path.name for path in folder.iterdir()} == {"key", "target"}


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_kill_in_the_middle_of_saving_leaves_a_whole_checkpoint(tmp_path, kind):
    killed(tmp_path, kind, kills=3)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_two_hundred_kills(tmp_path, kind):
    killed(tmp_path, kind, kills=200)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB; needs the right to mount."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True, check=False
    ).returncode:
        pytest.skip("mounting is not allowed here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("kind", ["file", "folder", "seal"])
def test_a_full_disk_leaves_the_older_checkpoint_and_nothing_else(small_disk, tmp_path, key, kind):
    small, large = ({"w": torch.full((count,), 1.0)} for count in (1_000, 1_000_000))
    target = small_disk / "target"
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "a").write_bytes(os.urandom(4_000_000))
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "a").write_bytes(b"old")
    if kind == "folder":
        seal(tmp_path / "small", target, to=key)
        fill = lambda: seal(tmp_path / "large", target, to=key)
    elif kind == "seal":
        seal(tmp_path / "small" / "a", target, to=key)
        fill = lambda: seal(tmp_path / "large" / "a", target, to=key)
    else:
        save(Snapshot(weights=small, run="r", step=1), target, to=key)
        fill = lambda: save(Snapshot(weights=large, run="r", step=2), target, to=key)
    before = sorted(path.name for path in small_disk.rglob("*"))
    with pytest.raises(OSError, match="No space left"):
        fill()
    assert sorted(path.name for path in small_disk.rglob("*")) == before
    assert open_sealed(target, key).names()


# Power cuts: a save is traced, and the disk is built anew from every prefix of what was traced, with all that was not
# synced by then dropped, or cut, or kept. A rename that no sync of the folder followed may be there or not.

CALL = re.compile(r"^\d+\s+(\w+)\((.*)\)\s+= (-?\d+)")


def traced(tmp_path: Path, statement: str) -> list[tuple]:
    """What a statement did to files: create, write, truncate, sync, rename, unlink; in order."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not here")
    log = tmp_path / "trace"
    calls = "openat,write,pwrite64,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,ftruncate,close"
    command = [
        "strace",
        "-f",
        "-y",  # descriptors with their paths: names are given relative to open directories
        "-xx",
        "-s",
        "4000000",
        "-e",
        f"trace={calls}",
        "-o",
        str(log),
        sys.executable,
        "-c",
        statement,
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(Path.cwd())}, check=False
    )
    if "ptrace" in done.stderr.lower():
        pytest.skip("tracing is not allowed here")
    assert done.returncode == 0, done.stderr
    return list(parsed(log.read_text(), str(tmp_path)))


STRING = r'"((?:\\x[0-9a-f]{2})*)"'
NAME = re.compile(r"(?:(?:AT_FDCWD|\d+)<([^>]*)>, )?" + STRING)


def parsed(log: str, root: str):
    text = lambda quoted: bytes.fromhex(quoted.replace("\\x", "")).decode("utf-8", "surrogateescape")
    plain = lambda path: text(path) if path.startswith("\\x") else path
    for line in log.splitlines():
        found = CALL.match(line)
        if found is None or int(found[3]) < 0:
            continue
        name, arguments = found[1], found[2]
        if name in ("pwrite64", "fsync", "fdatasync"):
            path = plain(arguments[arguments.index("<") + 1 : arguments.index(">")])
            if not path.startswith(root):
                continue
            if name == "pwrite64":
                content = re.search(STRING, arguments)[1]
                yield "write", path, int(arguments.rsplit(",", 1)[1]), bytes.fromhex(content.replace("\\x", ""))
            else:
                yield "sync", path
            continue
        paths = [str(Path(plain(folder), text(quoted))) for folder, quoted in NAME.findall(arguments)]
        if not paths or not paths[0].startswith(root):
            continue
        if name == "openat" and "O_CREAT" in arguments:
            yield "create", paths[0]
        elif name.startswith("rename"):
            yield "rename", *paths
        elif name.startswith("unlink"):
            yield "unlink", paths[0]


def rebuilt(before: dict[str, bytes], events: list[tuple], draws: random.Random, *, keep: float) -> dict[str, bytes]:
    """The disk after a power cut: what was synced is there, of the rest each event survives with probability ``keep``.

    Names and contents are kept apart, as in a file system: a name that survives may lead to content that did not.
    """
    files = {index: bytearray(data) for index, data in enumerate(before.values())}
    names = {name: index for index, name in enumerate(before)}
    paths = dict(names)
    pending_data: dict[int, list[tuple[int, bytes]]] = {}
    pending_names: list[tuple] = []
    apply = lambda index, offset, data: (
        files[index].__setitem__(slice(offset, offset + len(data)), data)
        if len(files[index]) >= offset
        else files[index].extend(bytes(offset - len(files[index])) + data)
    )
    for kind, path, *rest in events:
        if kind == "create" and path not in paths:
            paths[path] = len(files)
            files[paths[path]] = bytearray()
            pending_names.append(("link", path, paths[path]))
        elif kind == "write":
            pending_data.setdefault(paths[path], []).append((rest[0], rest[1]))
        elif kind == "sync" and path in paths:
            for offset, data in pending_data.pop(paths[path], []):
                apply(paths[path], offset, data)
        elif kind == "sync":
            for change in pending_names:
                change_names(names, change)
            pending_names = []
        elif kind == "rename":
            paths[rest[0]] = paths.pop(path)
            pending_names.append(("rename", path, rest[0], paths[rest[0]]))
        elif kind == "unlink" and path in paths:
            pending_names.append(("unlink", path))
            del paths[path]
    for index, writes in pending_data.items():
        for offset, data in writes:
            if draws.random() < keep:
                apply(index, offset, data[: draws.randint(0, len(data))] if draws.random() < 0.5 else data)
    for change in pending_names:  # a journal keeps names in order: a prefix of the changes survives
        if draws.random() >= keep:
            break
        change_names(names, change)
    return {name: bytes(files[index]) for name, index in names.items()}


def change_names(names: dict[str, int], change: tuple) -> None:
    if change[0] == "link":
        names[change[1]] = change[2]
    elif change[0] == "rename":
        names.pop(change[1], None)
        names[change[2]] = change[3]
    else:
        names.pop(change[1], None)


def on_disk(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def cut_at_every_prefix(before: dict[str, bytes], events: list[tuple], target: Path, look) -> set:
    """Rebuild the disk for each prefix and each fate of what was not synced; ``look`` says what opens."""
    seen, draws = set(), random.Random(3)
    for end in range(len(events) + 1):
        for keep in (0.0, 0.5, 0.5, 1.0):
            state = rebuilt(before, events[:end], draws, keep=keep)
            if target.is_dir():
                shutil.rmtree(target)
            for path in target.parent.glob(".*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            for name, data in state.items():
                Path(name).parent.mkdir(parents=True, exist_ok=True)
                Path(name).write_bytes(data)
            seen.add(look())
    return seen


SAVE = """
import torch
from privguard.checkpoint import Key, Snapshot, save
save(Snapshot(weights={{"w": torch.full((60_000,), 2.0)}}, run="r", step=2), {path!r}, to=Key.read({key!r}))
"""
SEAL = """
from privguard.checkpoint import Key, seal
seal({source!r}, {path!r}, to=Key.read({key!r}))
"""
REWRAP = """
from privguard.checkpoint import Key, rewrap
rewrap({path!r}, Key.read({key!r}), add={new!r}, remove={key!r})
"""


@pytest.fixture
def place(tmp_path):
    (tmp_path / "disk").mkdir()
    Key.generate_symmetric().write(tmp_path / "key")
    Key.generate_symmetric().write(tmp_path / "new")
    return tmp_path


def test_a_power_cut_in_a_save_leaves_the_old_file_or_the_new_one(place):
    key, target = Key.read(place / "key"), place / "disk" / "target"
    save(Snapshot(weights={"w": torch.full((60_000,), 1.0)}, run="r", step=1), target, to=key)
    before = on_disk(place / "disk")
    events = [
        event for event in traced(place, SAVE.format(path=str(target), key=str(place / "key"))) if "/disk" in event[1]
    ]
    assert {event[0] for event in events} == {"create", "write", "sync", "rename"}
    assert cut_at_every_prefix(before, events, target, lambda: content(target, key)) == {1, 2}
    unsynced = [event for event in events if event[0] != "sync"]
    with pytest.raises((TamperedError, AssertionError)):  # the drill finds a save that syncs nothing
        cut_at_every_prefix(before, unsynced, target, lambda: content(target, key))


def test_a_power_cut_in_sealing_a_folder_leaves_the_old_one_or_the_new_one(place):
    key, target = Key.read(place / "key"), place / "disk" / "target"
    for name, text in (("old", b"old" * 9000), ("new-content", b"new" * 9000)):
        (place / name).mkdir()
        (place / name / "a").write_bytes(text)
        (place / name / "b").write_bytes(text)
    seal(place / "old", target, to=key)
    before = on_disk(place / "disk")
    statement = SEAL.format(source=str(place / "new-content"), path=str(target), key=str(place / "key"))
    events = [event for event in traced(place, statement) if "/disk" in event[1]]

    def look() -> str:
        with Sealed(target, key) as sealed:
            first, second = bytes(sealed.read("a")), bytes(sealed.read("b"))
        assert first == second
        return first[:3].decode()

    assert cut_at_every_prefix(before, events, target, look) == {"old", "new"}


@pytest.mark.filterwarnings("ignore::privguard.checkpoint.opened.LeftoverWarning")
def test_a_power_cut_in_a_rewrap_leaves_one_of_the_two_heads(place):
    key, new, target = Key.read(place / "key"), Key.read(place / "new"), place / "disk" / "target"
    save(Snapshot(weights={"w": torch.full((60_000,), 1.0)}, run="r", step=1), target, to=key)
    before = on_disk(place / "disk")
    statement = REWRAP.format(path=str(target), key=str(place / "key"), new=str(place / "new"))
    events = [event for event in traced(place, statement) if "/disk" in event[1]]

    def look() -> str:
        for name, one in (("old", key), ("new", new)):
            try:
                return f"{name} {content(target, one)}"
            except TamperedError:
                continue
        raise AssertionError("nobody can open it")

    assert cut_at_every_prefix(before, events, target, look) == {"old 1", "new 1"}


def test_the_head_is_the_only_file_of_a_folder_that_is_ever_replaced(place, key):
    (place / "source").mkdir()
    (place / "source" / "a").write_bytes(b"x")
    seal(place / "source", place / "sealed", to=key)
    parts = {path: path.stat().st_ino for path in (place / "sealed").iterdir()}
    rewrap(place / "sealed", key, add=Key.generate())
    after = {path: path.stat().st_ino for path in (place / "sealed").iterdir()}
    assert {path.name for path in parts if parts[path] != after[path]} == {HEAD}
