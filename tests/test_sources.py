# SPDX-License-Identifier: Apache-2.0
"""What every source file has: its licence, in the words that scanners read (SPDX 2.3, annex E)."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
LICENCE = "SPDX-License-Identifier: Apache-2.0"


def test_every_source_file_names_its_licence():
    parts = ("privguard", "tests", "benchmarks", "recipes")
    files = [path for part in parts for ending in ("py", "c") for path in (ROOT / part).rglob(f"*.{ending}")]
    lacking = [
        str(path.relative_to(ROOT)) for path in files if LICENCE not in path.read_text(encoding="utf-8").split("\n")[0]
    ]
    assert len(files) > 500
    assert not lacking, "\n".join(lacking)
