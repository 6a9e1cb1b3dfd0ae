# SPDX-License-Identifier: Apache-2.0
"""What sealed storage costs where the content is small: ``python -m benchmarks.seal_small``.

Three figures of CPU time over all threads, the best or the median of several rounds: opening a sealed folder of 4,000
files into clear ones, re-wrapping a head with a local key (syncs included), and one warm tensor of 4 MiB read by its
name, as a ratio to safetensors' ``safe_open``, both with the file open and in memory.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from privguard.checkpoint import Key, open_into, open_sealed, rewrap, seal
from privguard.checkpoint.archive import Audience, Contents
from privguard.checkpoint.content.payload import Bytes
from privguard.checkpoint.sealed_folder import write_folder

FILES, ROUNDS = 4_000, 50


def cpu(action: Callable[[], object]) -> float:
    """Seconds of CPU that one call takes."""
    start = time.process_time()
    action()
    return time.process_time() - start


def opening(folder: Path, key: Key) -> float:
    """Seconds to open a folder of many files, the best of three."""
    members = {f"{number:04}": Bytes(b"x" * 100) for number in range(FILES)}
    write_folder(folder / "many", Contents(members=members, manifest={"content": "folder"}), Audience.of(key))
    return min(cpu(lambda at=at: open_into(folder / "many", folder / f"clear-{at}", key=key)) for at in range(3))


def rewrapping(folder: Path, key: Key) -> dict[str, float]:
    """Median milliseconds to write the head anew, of a file and of a folder."""
    (folder / "a").write_bytes(b"x")
    seal(folder / "a", folder / "file", to=key)
    write_folder(folder / "folder", Contents(members={"a": Bytes(b"x")}), Audience.of(key))
    times = {
        name: [cpu(lambda at=folder / name: rewrap(at, key)) for _ in range(ROUNDS)] for name in ("file", "folder")
    }
    return {name: 1e3 * statistics.median(each) for name, each in times.items()}


def one_tensor(folder: Path, key: Key) -> tuple[float, float]:
    """Median ratios of CPU time to read one tensor of 4 MiB, to safetensors' own memory and to a copy of it."""
    save_file({"w": torch.randn(1 << 20)}, folder / "plain.safetensors")
    seal(folder / "plain.safetensors", folder / "sealed", to=key)
    rounds = list[tuple[float, float, float]]()
    with open_sealed(folder / "sealed", key) as ours, safe_open(folder / "plain.safetensors", "pt") as theirs:
        for _ in range(ROUNDS):
            rounds.append(
                (
                    cpu(lambda: ours["w"]),
                    cpu(lambda: theirs.get_tensor("w")),
                    cpu(lambda: theirs.get_tensor("w").clone()),
                )
            )
    return (
        statistics.median(mine / plain for mine, plain, _ in rounds),
        statistics.median(mine / copy for mine, _, copy in rounds),
    )


def main() -> None:
    """Print the three figures."""
    key = Key.generate_symmetric()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        print(f"opening {FILES:,} files: {opening(folder, key):.2f} s of CPU")
        for name, milliseconds in rewrapping(folder, key).items():
            print(f"re-wrapping a {name}'s head: {milliseconds:.2f} ms of CPU")
        plain, copy = one_tensor(folder, key)
        print(f"one warm tensor of 4 MiB: {plain:.1f} times safetensors, {copy:.1f} times a copy of what it gives")


if __name__ == "__main__":
    main()
