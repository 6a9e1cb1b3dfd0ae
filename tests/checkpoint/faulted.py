# SPDX-License-Identifier: Apache-2.0
"""Runs every command on sealed files with every system call failing once: ``LD_PRELOAD=faults.so python -m …``.

Prints a JSON list of what went wrong, and how many cells were run. After a fault a command has done its work, or raised
one error of the tree or of the operating system; its target holds the old content or the new one, whole; nothing in
clear stands under a final name unless all of it does.
"""

import ctypes
import errno
import json
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

from privguard.attest import journal
from privguard.attest.journal import Journal
from privguard.attest.statement import SigningKey
from privguard.checkpoint import Key, open_into, open_sealed, rewrap, seal
from privguard.checkpoint.sealed_folder import remove
from privguard.errors import PlainCheckpointError, PrivguardError, SealError

KEY, NEW, SIGNER = Key.generate_symmetric(), Key.generate_symmetric(), SigningKey.generate()
SHIM = ctypes.CDLL(None)
ONCE = {
    "write": (errno.ENOSPC, errno.EIO, -1),
    "read": (errno.EIO, -1),
    "fsync": (errno.EIO,),
    "fsync directory": (errno.EIO, errno.EINVAL),
    "rename": (errno.EIO, errno.ENOSPC),
    "link": (errno.EIO, errno.EPERM),
    "mkdir": (errno.ENOSPC,),
    "unlink": (errno.EIO,),
    "create": (errno.ENOSPC, errno.EMFILE),
    "open": (errno.EIO, errno.EMFILE),
    "flock": (errno.ENOLCK,),
    "fchmod": (errno.EPERM,),
    "ftruncate": (errno.EIO,),
}
ALWAYS = {  # a file system or a kernel without this: the command has to go on, but for those in LOCKED
    "flock": errno.ENOSYS,
    "fsync directory": errno.EINVAL,
    "madvise": errno.EINVAL,
    "fadvise": errno.EOPNOTSUPP,
    "link": errno.EPERM,
    "write": -1,
    "read": -1,
}
LOCKED = {"save folder", "rewrap file", "rewrap folder", "remove", "journal"}  # refused by name without a lock


class Place:
    """The same small world before each cell."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp())
        for name in ("old", "new"):
            (self.root / name).mkdir()
            (self.root / name / "a").write_text(name)
            (self.root / name / "b").write_text(name)
        seal(self.root / "old" / "a", self.root / "file.template", to=KEY)
        seal(self.root / "old", self.root / "folder.template", to=KEY)
        Journal(self.root / "journal.template", by=SIGNER).record("seal", "first")
        self.disk = self.root / "disk"

    def make(self) -> None:
        shutil.rmtree(self.disk, ignore_errors=True)
        self.disk.mkdir()
        shutil.copy(self.root / "file.template", self.disk / "file")
        shutil.copytree(self.root / "folder.template", self.disk / "folder")
        shutil.copy(self.root / "journal.template", self.disk / "journal")

    def commands(self) -> dict[str, Callable[[], object]]:
        disk, new = self.disk, self.root / "new"
        return {
            "save file": lambda: seal(new / "a", disk / "file", to=KEY),
            "save folder": lambda: seal(new, disk / "folder", to=KEY),
            "first folder": lambda: seal(new, disk / "fresh", to=KEY),
            "rewrap file": lambda: rewrap(disk / "file", KEY, add=NEW),
            "rewrap folder": lambda: rewrap(disk / "folder", KEY, add=NEW),
            "open file": lambda: open_into(disk / "file", disk / "clear", key=KEY),
            "open folder": lambda: open_into(disk / "folder", disk / "clear", key=KEY),
            "read": lambda: [text(disk / name) for name in ("file", "folder")],
            "remove": lambda: remove(disk / "folder"),
            "key": lambda: Key.generate_symmetric().write(disk / "key"),
            "journal": lambda: Journal(disk / "journal", by=SIGNER).record("open", "x"),
        }

    def fault(self, command: str, error: BaseException | None) -> str:
        """What is wrong with the disk after a command, empty where nothing is."""
        done, disk = error is None, self.disk
        for name in ("file", "folder"):
            allowed = {"old", "new"} if command == f"save {name}" else {"old"}
            if command == "remove" and name == "folder" and not (disk / name).exists():
                continue
            try:
                found = text(disk / name)
            except Exception as failure:
                return f"{name} does not open: {failure!r}"
            if found not in allowed or (done and command == f"save {name}" and found != "new"):
                return f"{name} holds {found}"
        clear = disk / "clear"
        if clear.exists() or (done and command.startswith("open")):
            members = [clear] if command == "open file" else [clear / "a", clear / "b"]
            if [path.read_text() for path in members] != ["old"] * len(members):
                return "half in clear under its name"
        if (disk / "key").exists():
            Key.read(disk / "key")
        if (disk / "fresh").exists() and text(disk / "fresh") != "new":
            return "half a folder under its name"
        entries = journal.verify(disk / "journal", trusted=[SIGNER.identity]).entries
        return "" if entries == 1 + (done and command == "journal") else "the journal lost or kept a line"


def text(path: Path) -> str:
    with open_sealed(path, KEY) as opened:
        found = {bytes(opened.read(name)).decode() for name in opened.names()}
    (one,) = found
    return one


def cell(place: Place, command: str, call: str, nth: int, code: int) -> tuple[bool, str]:
    """Whether the call was reached, and what was wrong."""
    place.make()
    action = place.commands()[command]
    error: BaseException | None = None
    SHIM.faults_arm(call.encode(), nth, code)
    try:
        action()
    except BaseException as raised:
        error = raised
    reached = SHIM.faults_seen() >= max(nth, 1)
    SHIM.faults_arm(b"", 0, 0)
    if error is not None and not isinstance(error, OSError | PrivguardError):
        return reached, f"raised {error!r}"
    if nth == 0 and error is not None and not (call == "flock" and command in LOCKED):
        return reached, f"need not stop: {error!r}"
    if nth == 0 and error is None and call == "flock" and command in LOCKED:
        return reached, "went on without a lock"
    try:
        wrong = place.fault(command, error)
    except (OSError, PrivguardError, PlainCheckpointError, SealError) as failure:
        wrong = f"left {failure!r}"
    return reached, wrong


def main() -> None:
    warnings.simplefilter("ignore")
    place, cells, wrong = Place(), 0, list[str]()
    for command in place.commands():
        for call, code in ALWAYS.items():
            _, fault = cell(place, command, call, 0, code)
            cells += 1
            if fault:
                wrong.append(f"{command}, {call} always {errno.errorcode.get(code, 'short')}: {fault}")
        for call, codes in ONCE.items():
            for code in codes:
                nth, reached = 1, True
                while reached and nth < 400:
                    reached, fault = cell(place, command, call, nth, code)
                    cells += reached
                    if fault:
                        wrong.append(f"{command}, {call} {nth} {errno.errorcode.get(code, 'short')}: {fault}")
                    nth += 1
    json.dump({"cells": cells, "wrong": wrong}, sys.stdout)
    shutil.rmtree(place.root)


if __name__ == "__main__":
    main()
