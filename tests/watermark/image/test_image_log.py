# SPDX-License-Identifier: Apache-2.0
"""The log says of each picture what it got and what it looked like; attribution keeps the facts apart."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from privguard.attest.journal import Journal
from privguard.attest.statement import SigningKey
from privguard.errors import TamperedError
from privguard.watermark.image.blocks import Grid
from privguard.watermark.image.pixels import luma
from privguard.watermark.image.registry import Attributed, ImageLog, Looks, attribute, read_log
from tests.watermark.image.test_cli_image import privguard
from tests.watermark.image.test_image_mark import jpeg, quarter

SIGNER = SigningKey.generate()
SHA = "ab" * 32


@pytest.fixture(scope="module")
def log(profile, marked, tmp_path_factory):
    path = tmp_path_factory.mktemp("log") / "images.log"
    keeper = ImageLog(profile, Journal(path, by=SIGNER))
    for name, written in marked.items():
        sha256 = SHA if name == "china" else "00" * 32
        keeper.record(written.pixels, identifier=written.identifier, sha256=sha256, subject=name)
    return path


@pytest.fixture(scope="module")
def entries(log):
    return read_log(log, trusted=[SIGNER.identity])


@pytest.mark.parametrize(
    "edit",
    [lambda a: a, lambda a: jpeg(a, 50), quarter, lambda a: a[:, ::-1]],
    ids=["none", "JPEG 50", "quarter", "flip"],
)
def test_a_logged_picture_and_its_edits_are_found(detector, marked, entries, edit):
    rgb = np.ascontiguousarray(edit(marked["china"].pixels))
    answer = attribute(rgb, detector.detect([rgb]), entries)
    assert answer.answer is Attributed.FOUND
    assert answer.entries == answer.alike == (1,)
    assert answer.same_file == ()


def test_a_mark_on_a_picture_that_is_not_its_entry_is_reported_as_copied(detector, mark, marked, photographs, entries):
    """The strongest forger there is: one with the key."""
    forged = mark.write(photographs["flower"], identifier=marked["china"].identifier).pixels
    answer = attribute(forged, detector.detect([forged]), entries)
    assert answer.answer is Attributed.COPIED
    assert answer.mark_found
    assert (answer.entries, answer.alike) == ((1,), ())


def test_no_mark_or_no_entry_is_not_found(detector, mark, photographs, entries):
    plain = photographs["china"]
    assert attribute(plain, detector.detect([plain]), entries).answer is Attributed.NOT_FOUND
    other = mark.write(plain, identifier=5).pixels
    answer = attribute(other, detector.detect([other]), entries)
    assert answer.answer is Attributed.NOT_FOUND
    assert answer.mark_found


def test_the_very_file_is_found_whatever_it_carries(detector, photographs, entries):
    answer = attribute(photographs["flower"], detector.detect([photographs["flower"]]), entries, sha256=SHA)
    assert answer.answer is Attributed.FOUND
    assert (answer.same_file, answer.mark_found) == ((1,), False)


def test_a_faint_copy_of_the_shading_does_not_look_like_the_picture(photographs):
    y = luma(photographs["china"])
    grid = Grid.of(y.shape)
    looks, everywhere = Looks.from_text(Looks.of(y, grid).to_text()), np.ones((grid.rows, grid.columns), bool)
    assert looks.likeness(y, grid, everywhere) > 0.99
    assert looks.likeness(0.5 * y + 60, grid, everywhere) > 0.95
    assert looks.likeness(255 - y, grid, everywhere) < 0.5
    assert looks.likeness(luma(photographs["flower"]), grid, everywhere) < 0.5
    for nothing in (0.2 * y + 100, np.full_like(y, 9)):
        assert looks.likeness(nothing.astype(np.float32), grid, everywhere) is None
    few = np.zeros_like(everywhere)
    few[2, :3] = True
    assert looks.likeness(y, grid, few) is None


def captioned(rgb):
    out = rgb.copy()
    out[:80] = 20
    out[30:50, 20:200] = 250
    return out


def vignette(rgb):
    rows, columns = np.indices(rgb.shape[:2])
    far = np.hypot(rows / rgb.shape[0] - 0.5, columns / rgb.shape[1] - 0.5)
    return (rgb * (1 - 0.7 * far)[..., None]).astype(np.uint8)


STRONG = {
    "half of the contrast": lambda a: np.clip(a * 0.5 + 60, 0, 255).astype(np.uint8),
    "gamma": lambda a: (255 * (a / 255.0) ** 0.6).astype(np.uint8),
    "a caption": captioned,
    "a vignette": vignette,
}


@pytest.mark.parametrize("name", ["china", "flower"])
@pytest.mark.parametrize("edit", STRONG.values(), ids=STRONG.keys())
def test_strong_honest_edits_are_found_and_never_called_copied(detector, marked, entries, edit, name):
    """Whole-picture likeness called nearly all captions and half of the vignettes copied, which accuses somebody."""
    rgb = edit(marked[name].pixels)
    assert attribute(rgb, detector.detect([rgb]), entries).answer is Attributed.FOUND


def test_a_picture_on_a_larger_page_is_found(detector, marked, entries):
    """As in a screenshot of a page: the picture is smaller than what it lies on."""
    page = np.full((900, 1200, 3), 250, np.uint8)
    page[200 : 200 + 427, 300 : 300 + 640] = marked["china"].pixels
    answer = attribute(page, detector.detect([page]), entries)
    assert (answer.answer, answer.alike) == (Attributed.FOUND, (1,))


def test_a_part_too_small_to_compare_is_undecided(detector, marked, entries):
    rgb = np.ascontiguousarray(marked["flower"].pixels[128:256, 256:320])
    answer = attribute(rgb, detector.detect([rgb]), entries)
    assert answer.mark_found
    assert (answer.answer, answer.likeness) == (Attributed.UNDECIDED, (None,))


def test_a_log_that_was_changed_or_signed_by_another_is_refused(log, tmp_path):
    with pytest.raises(TamperedError):
        read_log(log, trusted=[SigningKey.generate().identity])
    (tmp_path / "log").write_bytes(log.read_bytes().replace(b"china", b"chino"))
    with pytest.raises(TamperedError):
        read_log(tmp_path / "log", trusted=[SIGNER.identity])
    with pytest.raises(TamperedError):
        Looks.from_text("2x2/1:zz")


def test_the_commands_log_and_attribute(tmp_path, photographs):
    Image.fromarray(photographs["china"]).save(tmp_path / "a.png")
    key, log = tmp_path / "k", tmp_path / "images.log"
    keyed = ["--profile", tmp_path / "p.json", "--secret", tmp_path / "s"]
    privguard("mark", "image", "setup", *keyed, "--sign-with", key)
    keyed += ["--trust", tmp_path / "p.pem"]
    told = privguard(
        "mark", "image", "write", tmp_path / "a.png", "-o", tmp_path / "out", *keyed, "--log", log, "--sign-with", key
    )
    assert told.code == 0
    asked = [*keyed, "--log", log, "--log-trust", tmp_path / "p.pem", "--json"]
    rows = json.loads(privguard("mark", "image", "attribute", tmp_path / "out", tmp_path / "a.png", *asked).stdout)
    assert [row["answer"] for row in rows] == ["found", "not found"]
    assert (rows[0]["same_file"], rows[0]["alike"]) == ([1], [1])
    entry = read_log(log, trusted=[SigningKey.read(key).identity])[0]
    assert entry.sha256 == hashlib.sha256((tmp_path / "out" / "a.png").read_bytes()).hexdigest()
    told = privguard("mark", "image", "write", tmp_path / "a.png", "-o", tmp_path / "out2", *keyed, "--log", log)
    assert told.code == 2


def test_what_is_seen_is_what_is_read_and_logged(photographs, tmp_path):
    """A cut-out is found again on white; a marked picture below clear pixels is not."""
    china = photographs["china"]
    layers = np.dstack([china, np.full(china.shape[:2], 255, np.uint8)])
    layers[:, :200, 3] = 0
    Image.fromarray(layers).save(tmp_path / "cut.png")
    keyed = ["--profile", tmp_path / "p.json", "--secret", tmp_path / "s"]
    privguard("mark", "image", "setup", *keyed, "--sign-with", tmp_path / "k")
    keyed += ["--trust", tmp_path / "p.pem"]
    log = ["--log", tmp_path / "log"]
    privguard("mark", "image", "write", tmp_path / "cut.png", "-o", tmp_path / "out", *keyed, *log, "--sign-with",
              tmp_path / "k")  # fmt: skip
    marked = np.asarray(Image.open(tmp_path / "out" / "cut.png"))
    shown = np.where(marked[..., 3:] == 255, marked[..., :3], 255).astype(np.uint8)
    Image.fromarray(shown).save(tmp_path / "out" / "on-white.png")
    hidden = marked.copy()
    hidden[..., 3] = 0
    Image.fromarray(hidden).save(tmp_path / "out" / "hidden.png")
    told = privguard("mark", "image", "attribute", tmp_path / "out", *keyed, *log, "--log-trust", tmp_path / "k.pub",
                     "--json")  # fmt: skip
    answers = {row["picture"].split("/")[-1]: row["answer"] for row in json.loads(told.stdout)}
    assert answers == {"cut.png": "found", "on-white.png": "found", "hidden.png": "not found"}
    assert privguard("mark", "image", "detect", tmp_path / "out" / "hidden.png", *keyed).code == 1
