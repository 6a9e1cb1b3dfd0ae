# SPDX-License-Identifier: Apache-2.0
"""A reader written from the specification alone agrees with privguard, and both with the stored vectors."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from privguard.watermark.image.detect import ImageDetector
from privguard.watermark.image.keys import ImageKeys
from privguard.watermark.image.profile import ImageProfile
from privguard.watermark.image.write import ImageMark
from privguard.watermark.secret import Secret
from tests.watermark.image import second_reader

FOLDER = Path(__file__).parents[2] / "vectors" / "image-mark-v1"
VECTORS = json.loads((FOLDER / "vectors.json").read_text())
RAW = bytes.fromhex(VECTORS["secret"])
MARKED = [case for case in VECTORS["pictures"] if case["file"].startswith("marked")]


def sha256_int8(array) -> str:
    return hashlib.sha256(np.ascontiguousarray(array, np.int8).tobytes()).hexdigest()


def test_keyed_arrays_are_those_of_the_vectors():
    keys = ImageKeys(Secret(RAW), pieces=2)
    assert Secret(RAW).key_id == VECTORS["key_id"]
    assert sha256_int8(keys.sync) == VECTORS["sync_tile_sha256_int8"]
    for row in (0, 11):
        assert keys.directions[row] == pytest.approx(VECTORS[f"directions_row_{row}"], abs=1e-11)
    for case in VECTORS["evidence"]:
        fields = ImageKeys(Secret(RAW), pieces=case["pieces"]).evidence(np.array([case["hash"]]), subkey=case["subkey"])
        assert sha256_int8(fields[case["piece"], 0]) == case["sha256_int8"]


@pytest.mark.parametrize(("pieces", "identifier"), [(2, 0), (2, 0xABCDEF), (4, 2**48 - 3), (4, 0xABCDEF)])
def test_what_stands_for_an_identifier_in_credentials(pieces, identifier):
    told = ImageKeys(Secret(RAW), pieces=pieces).binding(identifier)
    assert told == second_reader.Owner(RAW, pieces).binding(identifier)
    assert len(told) == 32


@pytest.mark.parametrize("case", MARKED, ids=lambda case: case["file"])
def test_both_readers_agree_on_a_marked_picture(case):
    rgb = np.asarray(Image.open(FOLDER / case["file"]))
    profile = ImageProfile.create(Secret(RAW), identifier_bits=case["identifier_bits"], subkeys=case["subkeys"])
    ours = ImageDetector(profile, Secret(RAW)).detect([rgb])
    theirs = second_reader.read(rgb, RAW, bits=case["identifier_bits"], subkeys=case["subkeys"])
    assert theirs == (pytest.approx(case["log10_p"], abs=0.02), case["identifier"], case["subkey"])
    assert ours.log10_p[0] == pytest.approx(theirs[0], abs=0.1)
    assert ours.readings[0].best == (case["subkey"], case["identifier"])


def test_neither_reader_finds_a_mark_where_none_is():
    rgb = np.asarray(Image.open(FOLDER / "unmarked.png"))
    assert second_reader.read(rgb, RAW)[0] > -3
    assert ImageDetector(ImageProfile.create(Secret(RAW)), Secret(RAW)).detect([rgb]).log10_p[0] > -3


def test_the_second_reader_reads_what_the_writer_writes_after_a_crop(photographs):
    written = ImageMark(ImageProfile.create(Secret(RAW)), Secret(RAW)).write(photographs["china"])
    part = np.ascontiguousarray(written.pixels[83:339, 41:297])
    log10_p, identifier, subkey = second_reader.read(part, RAW)
    assert log10_p < -15
    assert (identifier, subkey) == (written.identifier, written.subkey)
