# SPDX-License-Identifier: Apache-2.0
"""Findings in pictures enter a report with what the log says, and not without."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from privguard.attest.journal import Journal
from privguard.attest.statement import SigningKey
from privguard.errors import MarkError, TamperedError
from privguard.report import render
from privguard.report.assemble import assemble
from privguard.watermark.image import evidence
from privguard.watermark.image.detect import ImageDetector
from privguard.watermark.image.latent import KeyedLatents, latent_verdict, read_noise_log
from privguard.watermark.image.profile import ImageProfile
from privguard.watermark.image.write import ImageMark
from privguard.watermark.secret import Secret
from tests.watermark.image.test_cli_image import privguard

SECRET, SIGNER = Secret(bytes(range(32))), SigningKey.generate()
PROFILE = ImageProfile.create(SECRET)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A marked picture with its log, and its mark carried to another picture by somebody with the key."""
    folder = tmp_path_factory.mktemp("pictures")
    SECRET.write(folder / "s")
    SIGNER.write(folder / "k")
    SIGNER.identity.write(folder / "k.pem")
    PROFILE.write(folder / "p.json", by=SIGNER)
    china, flower = (np.ascontiguousarray(each[:400, :400]) for each in load_sample_images().images)
    Image.fromarray(china).save(folder / "own.png")
    written = privguard("mark", "image", "write", folder / "own.png", "-o", folder / "out", *keyed(folder), "--log",
                        folder / "log", "--sign-with", folder / "k", "--json")  # fmt: skip
    identifier = json.loads(written.stdout)[0]["identifier"]
    carried = ImageMark(PROFILE, SECRET).write(flower, identifier=identifier).pixels
    Image.fromarray(carried).save(folder / "out" / "carried.png")
    Image.fromarray(flower).save(folder / "out" / "plain.png")
    return folder


def keyed(folder):
    return ["--profile", folder / "p.json", "--secret", folder / "s", "--trust", folder / "k.pem"]


def attributed(home, folder):
    return privguard("mark", "image", "attribute", home / "out", *keyed(home), "--log", home / "log", "--log-trust",
                     home / "k.pem", "--evidence", folder / "evidence", "--json")  # fmt: skip


def test_the_officers_report_says_what_the_log_says(home, folder):
    rows = {row["picture"].split("/")[-1]: row for row in json.loads(attributed(home, folder).stdout)}
    assert {name: row["answer"] for name, row in rows.items()} == {
        "own.png": "found", "carried.png": "copied", "plain.png": "not found",
    }  # fmt: skip
    report = assemble(folder)
    assert len(report.verdicts) == 2  # what was not found is no finding
    assert {each.multiplicity for each in report.verdicts} == {3}
    for text in (render.to_markdown(report), render.to_html(report)):
        assert "own.png (" in text
        assert re.search(
            r"found, and what carries the mark looks like its log entry; the mark is in (9\d|100)% of", text
        )
        assert "COPIED: the mark lies on other content than its log entry" in text
        assert "of whole weights under" in text


def test_a_bare_verdict_on_a_picture_is_no_evidence(folder):
    rgb = np.ascontiguousarray(load_sample_images().images[0][:300, :300])
    found = ImageDetector(PROFILE, SECRET).detect([ImageMark(PROFILE, SECRET).write(rgb).pixels])
    (folder / "evidence" / "bare.json").write_text(json.dumps(found.verdict(0).to_json()))
    with pytest.raises(TamperedError, match=r"bare\.json.*without what the log says"):
        assemble(folder)


def test_recovered_noise_enters_with_its_log_entry_only(folder, tmp_path):
    source = KeyedLatents(PROFILE, SECRET, Journal(tmp_path / "noise.log", by=SIGNER))
    noise, nonce = source.draw((4, 16, 16))
    log = read_noise_log(tmp_path / "noise.log", trusted=[SIGNER.identity])
    verdict = latent_verdict(PROFILE, SECRET, noise, entries=log)
    for alike, word in ((True, "found, and what carries"), (False, "COPIED")):
        told = evidence.of_noise(verdict, name="a.png", content=b"file", looks_like_entry=alike)
        assert told.details["log_entry"]["nonce"] == nonce
        path = evidence.write(told, folder / "evidence")
        assert word in render.to_markdown(assemble(folder))
    value = json.loads(path.read_text())
    del value["details"]["log_entry"]
    path.write_text(json.dumps(value))
    with pytest.raises(TamperedError, match="without its log entry"):
        assemble(folder)
    with pytest.raises(MarkError, match="recovered noise"):
        evidence.of_noise(ImageDetector(PROFILE, SECRET).detect([np.zeros((9, 9, 3), np.uint8)]).verdict(0),
                          name="a.png", content=b"", looks_like_entry=True)  # fmt: skip
