# SPDX-License-Identifier: Apache-2.0
"""What a release holds: every file of the package and no other, equal bytes each time, one version everywhere."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import privguard

ROOT = Path(__file__).parents[1]


def built(folder):
    environment = os.environ | {"SOURCE_DATE_EPOCH": "1700000000"}
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    (wheel,), (archive,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, archive


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return built(tmp_path_factory.mktemp("dist"))


def sources(*folders):
    """What git does not ignore: `make release` refuses a tree where that is more than the commit."""
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return {name for name in tracked.stdout.splitlines() if (ROOT / name).is_file()}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="only a clone knows which files are ignored")
def test_wheel_and_archive_hold_every_file_of_the_tree_and_no_other(release):
    wheel, archive = release
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
    assert names == sources("privguard")
    assert "privguard/py.typed" in names
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert names == sources() | {"PKG-INFO"}


def test_building_again_gives_the_same_bytes(release, tmp_path):
    assert [path.read_bytes() for path in built(tmp_path)] == [path.read_bytes() for path in release]


def test_the_version_is_the_same_wherever_it_stands(release):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert version == privguard.__version__
    assert re.search(rf"^version: {re.escape(version)}$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == version
    assert all(path.name.startswith(f"privguard-{version}") for path in release)
