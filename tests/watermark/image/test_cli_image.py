# SPDX-License-Identifier: Apache-2.0
"""``privguard mark image`` from end to end."""

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from privguard import cli
from privguard.attest.statement import SigningKey
from privguard.errors import ProfileMismatchError, TamperedError
from privguard.watermark.image.profile import ImageProfile
from privguard.watermark.secret import Secret


@dataclass
class Told:
    code: int
    stdout: str
    stderr: str


def privguard(*words):
    """The command as ``main`` runs it, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["privguard", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
    return Told(int(end.value.code or 0), out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def home(tmp_path_factory, photographs):
    """Two pictures, one too small, a secret, and what setup makes."""
    folder = tmp_path_factory.mktemp("image")
    Secret(bytes(range(32))).write(folder / "s")
    (folder / "in" / "deep").mkdir(parents=True)
    Image.fromarray(photographs["china"]).save(folder / "in" / "china.png")
    Image.fromarray(photographs["flower"]).save(folder / "in" / "deep" / "flower.jpg", quality=95)
    words = ["setup", "--profile", folder / "p.json", "--secret", folder / "s", "--sign-with", folder / "k"]
    assert privguard("mark", "image", *words).code == 0
    return folder


def keyed(home):
    return ["--profile", home / "p.json", "--secret", home / "s", "--trust", home / "p.pem"]


@pytest.fixture(scope="module")
def written(home):
    told = privguard("mark", "image", "write", home / "in", "-o", home / "out", *keyed(home), "--json")
    assert told.code == 0
    return json.loads(told.stdout)


def test_a_folder_is_marked_with_its_places_and_read_again(home, written):
    assert [row["target"] for row in written] == [str(home / "out/china.png"), str(home / "out/deep/flower.jpg")]
    told = privguard("mark", "image", "detect", home / "out", *keyed(home), "--json")
    rows = json.loads(told.stdout)
    assert told.code == 0
    assert [row["found"] for row in rows] == [True, True]
    assert [row["details"]["identifier"] for row in rows] == [row["identifier"] for row in written]
    assert all(row["multiplicity"] == 2 for row in rows)


def test_a_stopped_run_goes_on_and_replaces_nothing(home, written):
    before = (home / "out/china.png").read_bytes()
    (home / "out/deep/flower.jpg").unlink()
    told = privguard("mark", "image", "write", home / "in", "-o", home / "out", *keyed(home), "--json")
    rows = json.loads(told.stdout)
    assert rows[0]["there_already"] is True
    assert rows[1]["identifier"] == written[1]["identifier"]
    assert (home / "out/china.png").read_bytes() == before


def test_unmarked_pictures_are_not_found(home):
    told = privguard("mark", "image", "detect", home / "in", *keyed(home))
    assert told.code == 1
    assert told.stdout.count("not found") == 2


def test_one_that_cannot_be_marked_is_named_and_the_others_are_marked(home, tmp_path, photographs):
    Image.fromarray(np.zeros((100, 300, 3), np.uint8)).save(tmp_path / "a-small.png")
    Image.fromarray(photographs["china"]).save(tmp_path / "b.png")
    told = privguard("mark", "image", "write", tmp_path, "-o", tmp_path / "out", *keyed(home), "--identifier", "77")
    assert told.code == 1
    assert "refused" in told.stdout
    assert "at least 192 pixels" in told.stdout
    assert "identifier 77" in told.stdout
    named = privguard("mark", "image", "detect", tmp_path / "out/b.png", *keyed(home), "--identifier", "77", "--json")
    assert json.loads(named.stdout)[0]["details"]["tests_paid_for"] == 16


@pytest.mark.parametrize(
    "words",
    [
        ["detect", "nothing-here.png"],
        ["detect", "{home}/in", "--search", "everywhere"],
        ["detect", "{home}/in", "--level", "2"],
        ["detect", "{home}/p.json"],
        ["write", "{home}/in", "-o", "{home}/bad", "--identifier", "99999999"],
    ],
)
def test_bad_input_is_one_line_and_exit_2(home, words):
    told = privguard("mark", "image", *(word.format(home=home) for word in words), *keyed(home))
    assert told.code == 2
    assert "Traceback" not in told.stderr


def test_a_profile_of_another_kind_signer_or_version_is_refused(home, secret, tmp_path):
    other = SigningKey.generate()
    with pytest.raises(TamperedError):
        ImageProfile.read(home / "p.json", by=other.identity)
    value = ImageProfile.create(secret).to_json()
    assert ImageProfile.from_json(value) == ImageProfile.create(secret)
    for change in ({"version": "image-mark-v2"}, {"record": "Profile"}, {"more": 1}, {"identifier_bits": 25}):
        with pytest.raises(ProfileMismatchError):
            ImageProfile.from_json({**value, **change})


@pytest.mark.parametrize("change", [{"identifier_bits": 12}, {"subkeys": 0}, {"target_psnr": 60}, {"target_psnr": 20}])
def test_a_profile_out_of_bounds_is_refused(secret, change):
    with pytest.raises(ValueError, match=next(iter(change))):
        ImageProfile.create(secret, **change)
