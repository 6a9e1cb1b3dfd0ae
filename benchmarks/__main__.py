"""Run every benchmark in turn, each in a process of its own: ``python -m benchmarks``; see benchmarks/results/."""

import pkgutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PARTS = {"__main__", "models", "text_corpus", "text_writer", "model_mark_language"}  # not benchmarks themselves


def main() -> int:
    names = [module.name for module in pkgutil.iter_modules([str(HERE)]) if module.name not in PARTS]
    failed = []
    for name in names:
        print(f"== benchmarks.{name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], cwd=HERE.parent, check=False).returncode:
            failed.append(name)
    print("all done" if not failed else f"failed: {', '.join(failed)}")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
