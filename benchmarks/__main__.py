"""Run every benchmark in turn, each in a process of its own: ``python -m benchmarks``; see benchmarks/results/."""

import pkgutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PARTS = {"__main__", "models"}  # not benchmarks themselves
SHARED = ("text_corpus", "text_writer", "model_mark_")  # parts of others


def main() -> int:
    names = [m.name for m in pkgutil.iter_modules([str(HERE)]) if m.name not in PARTS and not m.name.startswith(SHARED)]
    failed = []
    for name in names:
        print(f"== benchmarks.{name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], cwd=HERE.parent, check=False).returncode:
            failed.append(name)
    print("all done" if not failed else f"failed: {', '.join(failed)}")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
