# SPDX-License-Identifier: Apache-2.0
"""Sealed checkpoints against plain ones and against other encrypting writers: ``python -m benchmarks.seal``.

Every writer writes a temporary file, syncs it where the table says so, and renames it over the file of the round
before. All of them run interleaved in one process; the figure is the median of ``--rounds`` ratios to safetensors in
the same round. Before each load the allocator gives its memory back (``malloc_trim``): a process that loads a file
starts without it, and a clone into memory that an earlier round left warm is three times faster than any program's
first load.

A virtual machine's memory costs its first user a fault in the host for every page, and what sits long enough in the
free list costs it again. Small pages come back warm from the writer before; large ones come from deep in that list, and
a load with them took 0.6 s instead of 0.08 for 256 MiB. So before each measurement of any writer, free memory of twice
the size is written to once and given back.

``wall`` needs an idle machine; ``cpu`` is the process's own time over all its threads, and repeats under load. With two
threads the wall time is what a user waits; the CPU time shows what that costs.

Peers are measured at the smallest size, where they can be imported: tensorizer (XSalsa20-Poly1305), cryptotensors
(AES-256-GCM), pyrage (age, ChaCha20-Poly1305) and tink (AES-256-GCM-HKDF, 1 MB). pyrage and tink encrypt a flat buffer
that was made beforehand, and give one back, so what they are charged is less than the whole job.

Tried, and not better: calls of 16 KiB to 256 KiB and of 4 MiB instead of 1 MiB (1 MiB stays in the second-level cache);
``posix_fallocate`` before writing (no gain on tmpfs); encrypting into a mapping of the file (1.8 times the time: a page
fault for every 4 KiB). Not taken: reading through a mapping, which saves a copy once its pages are there (11 ms instead
of 19 for 64 MiB), because a file that shrinks under it is a bus error. Worth it: large pages under the tensors (26 ms
instead of 112 to touch 256 MiB for the first time); telling the disk to begin every 16 MiB instead of at the sync (256
MiB with fsync: 0.75 instead of 1.10 with two threads, 0.92 instead of 1.26 with one).

What is left on one thread is the cipher and the copy into the file: ``least possible`` is their sum. Nothing else is
copied: the tensors' own memory is read once, 1 MiB of ciphertext stays in the cache and is written from there.
"""

import argparse
import contextlib
import ctypes
import gc
import hashlib
import json
import mmap
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cryptography.cobblestone import Cobblestone256Encryptor
from safetensors.torch import load_file, save_file

from benchmarks import seal_peers
from privguard.checkpoint import Key, open_sealed, rewrap
from privguard.checkpoint.archive import Audience, Contents, write_file
from privguard.checkpoint.content import tensors
from privguard.checkpoint.envelope import PREAMBLE_BYTES, Preamble
from privguard.checkpoint.opened import Sealed

MIB = 1 << 20
KEY = Key.generate_symmetric()
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
_trim = ctypes.CDLL(None).malloc_trim


class Writer:
    """One way to put tensors on disk and to get them back."""

    def __init__(
        self, name: str, save: Callable[[Any, Path], object], load: Callable[[Path], object], threads: int = 1
    ) -> None:
        self.name, self.save, self.load, self.threads = name, save, load, threads


def privguard_save(weights: dict[str, torch.Tensor], path: Path) -> None:
    write_file(path, Contents(members={"w.safetensors": tensors.Layout(weights)}), Audience.of(KEY))


def privguard_load(path: Path) -> object:
    with Sealed(path, KEY) as sealed:
        memory = tensors.allocate(sealed.size("w.safetensors"))
        sealed.read_into("w.safetensors", memory)
        return tensors.from_buffer(memory)


def plain_load(path: Path) -> object:
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def writers(weights: dict[str, torch.Tensor], *, sync: bool, peers: bool) -> list[Writer]:
    def durably(write: Callable[[Path], object]) -> Callable[[Any, Path], None]:
        def save(_: object, path: Path) -> None:
            temporary = path.with_suffix(".tmp")
            write(temporary)
            if sync:
                descriptor = os.open(temporary, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)
            temporary.rename(path)

        return save

    found = [
        Writer("safetensors", durably(lambda path: save_file(weights, path)), plain_load),
        Writer(
            "torch.save",
            durably(lambda path: torch.save(weights, path)),
            lambda path: torch.load(path, weights_only=True),
        ),
        Writer("privguard, 1 thread", privguard_save, privguard_load),
        Writer(f"privguard, {len(CORES)} threads", privguard_save, privguard_load, threads=len(CORES)),
    ]
    if not peers:
        return found
    layout = tensors.Layout(weights)
    flat = b"".join(bytes(view) for view in layout.views(0, layout.size))
    for peer in seal_peers.ALL:
        with contextlib.suppress(ImportError):
            name, save, load = peer(weights, flat)
            found.append(Writer(name, durably(save), load))
    return found


def timed(work: Callable[[], object], threads: int) -> tuple[float, float]:
    os.sched_setaffinity(0, CORES[:threads])
    gc.collect()
    _trim(0)
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    spent = time.perf_counter() - wall, time.process_time() - cpu
    del result
    os.sched_setaffinity(0, CORES)
    return spent


def touch(size: int) -> None:
    """Write to every page of fresh memory of this many bytes, in large pages, and give it back."""
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        for start in range(0, size, mmap.PAGESIZE):
            memory[start] = 1


def compare(mib: int, folder: Path, *, rounds: int, sync: bool, peers: bool) -> list[dict[str, Any]]:
    """Ratios to safetensors, median over the rounds."""
    weights = {f"layer.{i}.weight": torch.randn(1024, 1024) for i in range(mib // 4)}
    everybody = writers(weights, sync=sync, peers=peers)
    seen: dict[tuple[str, str], list[tuple[float, float]]] = {}
    broken: set[str] = set()
    for turn in range(rounds + 1):
        for writer in everybody:
            path = folder / f"{writer.name.replace(' ', '').replace(',', '')}"
            for kind, work in (
                ("save", lambda w=writer, p=path: w.save(weights, p)),
                ("load", lambda w=writer, p=path: w.load(p)),
            ):
                if writer.name in broken or (kind == "load" and sync):
                    continue
                try:
                    touch(mib << 21)
                    spent = timed(work, writer.threads)
                except Exception as error:  # a peer that does not run here is left out of the table
                    print(f"{writer.name}: {type(error).__name__}: {str(error)[:100]}")
                    broken.add(writer.name)
                    continue
                if turn:  # the first round warms up
                    seen.setdefault((writer.name, kind), []).append(spent)
    for path in folder.iterdir():
        path.unlink()
    return [
        row(mib, folder, writer.name, kind, seen, sync=sync)
        for writer in everybody
        for kind in ("save", "load")
        if (writer.name, kind) in seen
    ]


def row(
    mib: int, folder: Path, name: str, kind: str, seen: dict[tuple[str, str], list[tuple[float, float]]], *, sync: bool
) -> dict[str, Any]:
    mine, plain = seen[name, kind], seen["safetensors", kind]

    def ratio(at: int) -> float:
        return statistics.median(a[at] / b[at] for a, b in zip(mine, plain, strict=True))

    best = min(a[0] for a in mine) / min(b[0] for b in plain)
    return {
        "MiB": mib,
        "where": place(folder) + (" + fsync" if sync else ""),
        "writer": name,
        "what": kind,
        "wall": round(ratio(0), 2),
        "wall_best": round(best, 2),
        "cpu": round(ratio(1), 2),
        "seconds": round(statistics.median(a[0] for a in mine), 3),
    }


def place(folder: Path) -> str:
    return "tmpfs" if str(folder).startswith("/dev/shm") else "disk"


def status(field: str) -> int:
    """A figure of /proc/self/status, in bytes."""
    return next(
        int(line.split()[1]) << 10
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(field)
    )


def memory(mib: int, folder: Path) -> dict[str, Any]:
    """Anonymous memory at its peak, beyond the tensors, while saving and while loading."""
    weights = {f"layer.{i}.weight": torch.randn(1024, 1024) for i in range(mib // 4)}
    path, figures = folder / "memory", {}
    for name, work, tensors_of in (
        ("save", lambda: privguard_save(weights, path), 0),
        ("load", lambda: privguard_load(path), mib * MIB),
    ):
        gc.collect()
        _trim(0)
        before, peak, done = status("RssAnon"), [0], threading.Event()

        def watch(peak: list[int] = peak, done: threading.Event = done) -> None:
            while not done.wait(0.001):
                peak[0] = max(peak[0], status("RssAnon"))

        watcher = threading.Thread(target=watch)
        watcher.start()
        result = work()
        done.set()
        watcher.join()
        figures[name] = round((max(peak[0], status("RssAnon")) - before - tensors_of) / MIB, 1)
        del result
    path.unlink()
    return {"MiB": mib, "extra RssAnon, MiB": figures}


def floor(mib: int, folder: Path, rounds: int) -> dict[str, Any]:
    """The least that one thread can do: its CPU time over ``save_file``'s, for cipher and write alone.

    That is Cobblestone over the same bytes with nothing written, and one warm MiB written as often as it takes.
    """
    weights = {f"layer.{i}.weight": torch.randn(1024, 1024) for i in range(mib // 4)}
    views = [memoryview(tensor.numpy()).cast("B") for tensor in weights.values()]
    warm = memoryview(bytearray(MIB + (64 << 10)))

    def cipher() -> None:
        for first in range(0, len(views), 16):
            encryptor = Cobblestone256Encryptor(bytes(32), b"")
            for view in views[first : first + 16]:
                for start in range(0, len(view), MIB):
                    encryptor.update_into(view[start : start + MIB], warm)
            encryptor.finalize()

    def write() -> None:
        with (folder / "floor.tmp").open("wb", buffering=0) as file:
            for _ in range(mib):
                file.write(warm[:MIB])
        (folder / "floor.tmp").rename(folder / "floor")

    def plain() -> None:
        save_file(weights, folder / "plain.tmp")
        (folder / "plain.tmp").rename(folder / "plain")

    ours = ("save", lambda: privguard_save(weights, folder / "ours"))
    works = (("cipher", cipher), ("write", write), ("plain", plain), ours)
    turns = [{name: timed(work, 1)[1] for name, work in works} for _ in range(rounds + 1)][1:]
    for name in ("floor", "plain", "ours"):
        (folder / name).unlink()
    least = statistics.median((turn["cipher"] + turn["write"]) / turn["plain"] for turn in turns)
    reached = statistics.median(turn["save"] / turn["plain"] for turn in turns)
    return {"MiB": mib, "where": place(folder), "one thread, CPU": round(reached, 2), "least possible": round(least, 2)}


def bytes_read() -> int:
    return next(
        int(line.split()[1]) for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("rchar")
    )


def one_tensor_and_rewrap(mib: int, folder: Path, rounds: int) -> dict[str, Any]:
    """Opening a file and reading one tensor of 1 MiB out of it; and a re-wrap of the file."""
    weights = {f"layer.{i}.weight": torch.randn(512, 512) for i in range(mib)}
    path = folder / "one"
    privguard_save(weights, path)
    reads, sizes, wraps = [], [], []
    keys = [Key.generate_x25519() for _ in range(rounds)]
    payload = payload_digest(path)
    for turn in range(rounds):
        before, start = bytes_read(), time.perf_counter()
        with open_sealed(path, KEY) as sealed:
            tensor = sealed[f"layer.{turn * 37 % mib}.weight"]
        reads.append(time.perf_counter() - start)
        sizes.append(bytes_read() - before)
        assert torch.equal(tensor, weights[f"layer.{turn * 37 % mib}.weight"])
        start = time.perf_counter()
        rewrap(path, KEY, add=keys[turn], remove=keys[turn - 1] if turn else ())
        wraps.append(time.perf_counter() - start)
    unchanged = payload_digest(path) == payload
    path.unlink()
    return {
        "MiB": mib,
        "where": place(folder),
        "one tensor of 1 MiB, ms": round(statistics.median(reads) * 1e3, 2),
        "read, MiB": round(statistics.median(sizes) / MIB, 2),
        "re-wrap, ms": round(statistics.median(wraps) * 1e3, 2),
        "payload unchanged": unchanged,
    }


def payload_digest(path: Path) -> str:
    """SHA-256 of all that comes after the slots."""
    with path.open("rb") as file:
        file.seek(Preamble.unpack(file.read(PREAMBLE_BYTES)).head_bytes)
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--mib", type=int, nargs="*", default=[256, 1024])
    parser.add_argument("--disk", type=Path, default=Path())
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    facts: list[dict[str, Any]] = []
    for mib in arguments.mib:
        with (
            tempfile.TemporaryDirectory(dir="/dev/shm") as fast,
            tempfile.TemporaryDirectory(dir=arguments.disk) as slow,
        ):
            rows += compare(mib, Path(fast), rounds=arguments.rounds, sync=False, peers=mib == min(arguments.mib))
            rows += compare(mib, Path(slow), rounds=arguments.rounds, sync=True, peers=False)
            facts.append(floor(mib, Path(fast), arguments.rounds))
            facts.append(memory(mib, Path(fast)))
            facts.append(one_tensor_and_rewrap(mib, Path(fast), arguments.rounds))
            facts.append(one_tensor_and_rewrap(mib, Path(slow), arguments.rounds))
    report(rows, facts)


def report(rows: list[dict[str, Any]], facts: list[dict[str, Any]]) -> None:
    lines = ["| MiB | where | writer | what | wall | best wall | CPU | seconds |", "|---|---|---|---|---|---|---|---|"]
    lines += ["| " + " | ".join(str(value) for value in each.values()) + " |" for each in rows]
    lines += ["", *(json.dumps(fact) for fact in facts)]
    load = os.getloadavg()[0]
    lines += ["", f"{platform.machine()}, {len(CORES)} cores, load average {load:.1f} at the end"]
    print("\n".join(lines))
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / "seal.md").write_text("# Sealing, as ratios to safetensors\n\n" + "\n".join(lines) + "\n")
    (results / "seal.json").write_text(json.dumps({"rows": rows, "facts": facts, "load": load}, indent=1) + "\n")


if __name__ == "__main__":
    main()
