# SPDX-License-Identifier: Apache-2.0
"""Files in and out: what is not the mark stays as it was, and what cannot be kept is refused by name."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from privguard.errors import MarkError
from privguard.watermark.image import pictures


@pytest.fixture
def rgb(photographs):
    return np.ascontiguousarray(photographs["china"][:200, :220])


def test_transparency_profile_exif_and_text_are_kept(tmp_path, rgb):
    alpha = np.arange(200 * 220, dtype=np.uint32).reshape(200, 220).astype(np.uint8)
    image, text, exif = Image.fromarray(np.dstack([rgb, alpha])), PngInfo(), Image.Exif()
    text.add_text("parameters", "steps: 20")
    exif[0x010E] = "a description"
    image.save(tmp_path / "a.png", pnginfo=text, exif=exif, dpi=(300, 300), icc_profile=b"a profile")
    picture = pictures.read_picture(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(picture.encoded(255 - picture.rgb, ".png"))
    back = Image.open(tmp_path / "b.png")
    assert np.array_equal(np.asarray(back)[..., 3], alpha)
    assert np.array_equal(np.asarray(back)[..., :3], 255 - rgb)
    assert back.text["parameters"] == "steps: 20"
    assert back.getexif()[0x010E] == "a description"
    assert back.info["icc_profile"] == b"a profile"
    assert round(back.info["dpi"][0]) == 300


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGB", "RGBA"])
def test_every_kind_of_eight_bits_can_be_read_and_written(tmp_path, rgb, mode):
    Image.fromarray(rgb).convert(mode).save(tmp_path / "a.png")
    picture = pictures.read_picture(tmp_path / "a.png")
    assert picture.rgb.shape == (200, 220, 3)
    (tmp_path / "b.png").write_bytes(picture.encoded(picture.rgb, ".png"))
    again = pictures.read_picture(tmp_path / "b.png")
    assert np.array_equal(again.rgb, picture.rgb)
    assert (again.alpha is None) == (picture.alpha is None)
    with Image.open(tmp_path / "b.png") as image:
        assert image.mode == {"P": "RGB", "1": "L"}.get(mode, mode)


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".tif", ".png"])
def test_the_mark_survives_being_saved(mark, detector, photographs, tmp_path, suffix):
    written = mark.write(photographs["china"])
    path = tmp_path / f"a{suffix}"
    path.write_bytes(pictures.Picture(photographs["china"]).encoded(written.pixels, suffix))
    detections = detector.detect([pictures.read_picture(path).rgb])
    assert detections.log10_p[0] < -100
    assert detections.identifier == [written.identifier]


def test_what_cannot_be_kept_as_it_was_is_refused(tmp_path, rgb):
    Image.fromarray(rgb).convert("CMYK").save(tmp_path / "cmyk.tif")
    Image.fromarray(np.zeros((200, 200), np.uint16)).save(tmp_path / "deep.png")
    frames = [Image.fromarray(rgb), Image.fromarray(255 - rgb)]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:])
    for name, words in (("cmyk.tif", "CMYK"), ("deep.png", "8 bits"), ("moving.webp", "moving picture")):
        with pytest.raises(MarkError, match=words):
            pictures.read_picture(tmp_path / name)
    with pytest.raises(MarkError, match="JPEG has no transparency"):
        pictures.Picture(rgb, alpha=np.zeros((200, 220), np.uint8)).encoded(rgb, ".jpg")
    with pytest.raises(MarkError, match="suffix"):
        pictures.Picture(rgb).encoded(rgb, ".gif")


def test_what_is_no_whole_picture_is_refused(tmp_path, rgb):
    (tmp_path / "text.png").write_text("no picture")
    Image.fromarray(rgb).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:5000])
    for name in ("text.png", "cut.png"):
        with pytest.raises(ValueError, match=name):
            pictures.read_picture(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        pictures.read_picture(tmp_path / "none.png")


def test_a_file_is_never_replaced_and_nothing_is_left_behind(tmp_path):
    pictures.write_new(tmp_path / "new" / "a.png", b"one")
    with pytest.raises(FileExistsError):
        pictures.write_new(tmp_path / "new" / "a.png", b"two")
    assert (tmp_path / "new" / "a.png").read_bytes() == b"one"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]


def test_files_folders_and_patterns_are_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("in/a.png", "in/deep/b.JPG", "in/.hidden.png", "in/notes.txt", "c.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    places = [str(place) for _, place in pictures.find_pictures(["in", "c.webp"])]
    assert places == ["a.png", str(Path("deep/b.JPG")), "c.webp"]
    assert [str(path) for path, _ in pictures.find_pictures(["in/**/*.JPG"])] == [str(Path("in/deep/b.JPG"))]
    with pytest.raises(ValueError, match="expected a picture"):
        pictures.find_pictures(["in/*.gif"])
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match="same name"):
        pictures.require_own_places(pictures.find_pictures(["in/a.png", "a.png"]))
