# SPDX-License-Identifier: Apache-2.0
"""Mutation testing: every module that a promise rests on, against its own test file alone.

``make mutants`` runs mutmut over all of them, ``python tests/mutants.py noise bound`` over those whose paths hold one
of the words. It prints changes of the source that no test of the mirrored file noticed: each is a promise that no test
holds. ``equivalent_mutants.toml`` lists the changes that provably change nothing, with the proof.

mutmut forks each change from a process that has run the tests once, so a test file has to clear what its module
remembers (``functools.lru_cache``) before each test; else figures of the unchanged source are looked at.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Source file → the one test file that has to notice every change to it.
MIRRORS = {
    "privguard/training/noise/exact.py": "tests/training/test_noise.py",
    "privguard/training/noise/gaussian.py": "tests/training/test_gaussian.py",
    "privguard/training/noise/grid.py": "tests/training/test_grid.py",
    "privguard/training/sampling/sample.py": "tests/training/test_sample.py",
    "privguard/accounting/accountant.py": "tests/accounting/test_accountant.py",
    "privguard/accounting/claim.py": "tests/accounting/test_claim.py",
    "privguard/accounting/ledger.py": "tests/accounting/test_ledger.py",
    "privguard/checkpoint/envelope.py": "tests/checkpoint/test_envelope.py",
    "privguard/audit/one_run/bound.py": "tests/audit/test_bound.py",
}
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.toml")
SETTINGS = """
[tool.mutmut]
source_paths = ["privguard"]
only_mutate = ["{source}"]
pytest_add_cli_args_test_selection = ["{test}"]
pytest_add_cli_args = ["-p", "no:randomly", "-p", "no:cacheprovider", "-m", "not slow and not gpu"]
also_copy = ["docs", "README.md"]
timeout_multiplier = 3.0
use_setproctitle = false
use_git_change_detection = false
"""
SURVIVOR = re.compile(r"^\s+(\S+): (?:survived|no tests|suspicious)$", re.MULTILINE)


def equivalents(source: str) -> set[str]:
    """Changes of a source file that provably change nothing, as ``change_of`` writes them.

    Args:
        source: path of the module, from the project's root.
    """
    entries = tomllib.loads(EQUIVALENT.read_text())["equivalent"]
    return {entry["change"] for entry in entries if entry["source"] == source}


def change_of(difference: str) -> str:
    """The changed lines of a unified difference, with their signs and without their indentation.

    Args:
        difference: what ``mutmut show`` prints.
    """
    lines = re.findall(r"^([-+])(?![-+]{2} ) *(.*)$", difference, re.MULTILINE)
    return "\n".join(f"{sign} {text}" for sign, text in lines)


def survivors(source: str, test: str) -> list[str]:
    """The changes of a source file that its test file lets pass.

    Args:
        source: path of the module, from the project's root.
        test: path of its test file.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("privguard", "tests", "docs"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "README.md", copy)
        settings = (ROOT / "pyproject.toml").read_text() + SETTINGS.format(source=source, test=test)
        (copy / "pyproject.toml").write_text(settings)

        def mutmut(*arguments: str) -> str:
            command = [sys.executable, "-m", "mutmut", *arguments]
            done = subprocess.run(command, cwd=copy, check=False, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"mutmut {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout[-2000:]}")
            return done.stdout

        mutmut("run", "--max-children", "2")
        return [change_of(mutmut("show", name)) for name in SURVIVOR.findall(mutmut("results"))]


def main(words: list[str]) -> int:
    """Print the survivors of all modules, or of those whose path holds one of the words; 1 if there are any.

    Args:
        words: parts of paths; none for all modules.
    """
    total = 0
    for source, test in MIRRORS.items():
        if not words or any(word in source for word in words):
            changes = [change for change in survivors(source, test) if change not in equivalents(source)]
            print(f"{source}: {len(changes)} changes pass {test}", *changes, sep="\n", flush=True)
            total += len(changes)
    return int(total > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
