# SPDX-License-Identifier: Apache-2.0
"""The drill says what handling leaves; the page shows where the evidence lies, and loads nothing."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import structural_similarity

from privguard.watermark.image.drill import Drilled, Handling, Trial, drill, handlings, smallest_size, ssim, survival
from privguard.watermark.image.page import NOT_PROVEN, ImageReport
from privguard.watermark.image.pixels import luma
from tests.watermark.image.test_cli_image import privguard


@pytest.fixture(scope="module")
def part(photographs):
    return np.ascontiguousarray(photographs["china"][171:427, 200:520])


@pytest.fixture(scope="module")
def drilled(mark, detector, part):
    ways = {name: handlings()[name] for name in ("none", "JPEG 50", "mirrored", "half size")}
    ways["gone"] = Handling(lambda image: Image.new("RGB", image.size))
    return drill(mark, detector, part, name="china", ways=ways)


def test_a_drill_says_what_is_left_after_each_handling(drilled):
    by_name = {trial.handling: trial for trial in drilled.trials}
    for name, most in {"none": -30, "JPEG 50": -10, "mirrored": -30, "half size": -6}.items():
        assert by_name[name].log10_p < most
        assert by_name[name].identifier_right
    assert by_name["gone"].log10_p == 0.0
    assert not by_name["gone"].attributed
    assert drilled.psnr == pytest.approx(42.0, abs=0.2)
    assert [side for side, _ in drilled.by_size] == [192, 256]


def test_every_handling_changes_the_picture_and_keeps_it_a_picture(part):
    image = Image.fromarray(part)
    for name, way in handlings().items():
        changed = way.change(image)
        assert changed.mode == "RGB"
        same = changed.size == image.size and np.array_equal(np.asarray(changed), part)
        assert same is (name == "none")


def test_ssim_is_that_of_scikit_image(photographs, marked):
    before, after = photographs["china"], marked["china"].pixels
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    theirs = structural_similarity(luma(before).astype(float), luma(after).astype(float), **options)
    assert ssim(before, after) == pytest.approx(theirs, abs=1e-3)
    assert ssim(before, before) == pytest.approx(1.0)


def row(name, p, sizes):
    trial = Trial(handling="none", log10_p=p, attributed=p < -8, identifier_right=p < -4)
    return Drilled(picture=name, psnr=42.0, ssim=0.99, trials=(trial,), by_size=sizes)


def test_the_table_counts_pictures():
    rows = [row("a", -20.0, ((192, -9.0), (256, -9.0))), row("b", -7.0, ((192, -3.0), (256, -8.0))), row("c", -5.0, ())]
    (line,) = survival(rows, log10_level=-6)
    assert (line.found, line.attributed, line.identifier_right) == (2 / 3, 1 / 3, 2 / 3)
    assert (line.median_log10_p, line.worst_log10_p, line.pictures) == (-7.0, -5.0, 3)
    assert smallest_size(rows, log10_level=-6) == 256
    assert smallest_size(rows, log10_level=-2) == 192
    assert smallest_size(rows, log10_level=-8.5) is None
    assert survival([], log10_level=-6) == []


class Seen(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.loads, self.green = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for key, value in attrs if key in ("href", "src") and not value.startswith("data:")]
        if tag == "rect" and dict(attrs)["class"] == "b":
            self.green.append(float(dict(attrs)["fill-opacity"]))


def test_the_page_shows_where_the_evidence_lies(detector, marked, photographs):
    mixed = marked["china"].pixels.copy()
    mixed[:, 320:] = photographs["flower"][:, 320:]
    report = ImageReport.of(detector, detector.detect([mixed]), mixed)
    page, seen = report.to_html(), Seen()
    seen.feed(page)
    assert "mark was found" in report.answer
    assert "script" not in seen.tags
    assert seen.loads == []
    assert all(text in page for text in NOT_PROVEN)
    assert report.used.sum() == len(seen.green)
    z = report.block_z
    assert z[:, :5][report.used[:, :5]].mean() > 4
    assert abs(z[:, 5:][report.used[:, 5:]].mean()) < 1
    plain = ImageReport.of(detector, detector.detect([photographs["china"]]), photographs["china"])
    assert "No mark was found" in plain.answer
    assert "no mark found" in plain.to_html()


def test_the_commands_drill_and_report(tmp_path, part, monkeypatch):
    ways = {name: handlings()[name] for name in ("none", "JPEG 70")}
    monkeypatch.setattr("privguard.watermark.image.drill.handlings", lambda: ways)  # sixteen take a while
    Image.fromarray(part).save(tmp_path / "a.png")
    Image.fromarray(part[:100, :100]).save(tmp_path / "small.png")
    keyed = ["--profile", tmp_path / "p.json", "--secret", tmp_path / "s"]
    privguard("mark", "image", "setup", *keyed, "--sign-with", tmp_path / "k")
    keyed += ["--trust", tmp_path / "p.pem"]
    told = privguard("mark", "image", "drill", tmp_path / "a.png", tmp_path / "small.png", *keyed, "--json")
    record = json.loads(told.stdout)
    assert told.code == 1
    assert "small.png" in told.stderr.replace("\n", "")  # a long path is broken into lines
    assert {row["handling"] for row in record["survival"]} == set(ways)
    assert record["survival"][0]["found"] == 1.0
    pages = ["--report", tmp_path / "pages"]
    assert privguard("mark", "image", "detect", tmp_path / "a.png", *keyed, *pages).code == 1
    assert "No mark was found" in (tmp_path / "pages" / "a.png.html").read_text()
    assert privguard("mark", "image", "detect", tmp_path / "a.png", *keyed, *pages, "--identifier", "5").code == 2
