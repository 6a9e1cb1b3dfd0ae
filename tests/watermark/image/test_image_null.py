# SPDX-License-Identifier: Apache-2.0
"""Pictures made without the secret: p-values are what they say, whatever the picture, whatever was searched."""

import numpy as np
import pytest
from scipy.stats import kstest

from privguard.watermark.image.blocks import Grid, content
from privguard.watermark.image.detect import ImageDetector
from privguard.watermark.image.pixels import luma
from privguard.watermark.image.profile import ImageProfile
from privguard.watermark.image.sync import Search
from privguard.watermark.image.write import ImageMark
from privguard.watermark.secret import Secret

OWNERS = 150


def small_pictures(photographs):
    rng = np.random.default_rng(5)
    drawing = np.full((160, 160, 3), 255, np.uint8)
    drawing[30:90, 40:130] = (200, 30, 30)
    return {
        "photograph": np.ascontiguousarray(photographs["china"][100:260, 200:360]),
        "noise": rng.integers(0, 256, (80, 80, 3)).astype(np.uint8).repeat(2, 0).repeat(2, 1),
        "drawing": drawing,
        "stripes": np.repeat((np.indices((160, 160)).sum(0) // 9 % 2 * 255)[..., None], 3, 2).astype(np.uint8),
    }


@pytest.mark.stat
@pytest.mark.parametrize("kind", ["photograph", "noise", "drawing", "stripes"])
def test_one_test_is_uniform_over_owners(photographs, kind):
    """The whole procedure with new keys of all kinds, one sub-key, an identifier named before looking. Seeds are fixed;
    KS at 1e-6, and the same statistic shifted by one deviation fails."""
    rgb, z = small_pictures(photographs)[kind], []
    for owner in range(OWNERS):
        secret = Secret(bytes([owner % 256, owner // 256]) + bytes(30))
        reading = ImageDetector(ImageProfile.create(secret, subkeys=1), secret).read(rgb)
        z.append(float(reading.scores_of(owner * 7919 % (1 << 24))[0]) / max(reading.null.deviation, 1))
    assert kstest(z, "norm").pvalue > 1e-6
    assert kstest(np.array(z) + 1.0, "norm").pvalue < 1e-6


@pytest.mark.stat
def test_the_paid_p_value_is_never_too_small(photographs, mark):
    """100 owners, everything searched: more than 9 of 100 at 1 % has probability 8e-8 (binomial)."""
    rgb = mark.write(np.ascontiguousarray(photographs["flower"][:256, :256])).pixels  # another owner's mark is in it
    low = 0
    for owner in range(1, 101):
        secret = Secret(bytes([owner]) * 32)
        low += int(ImageDetector(ImageProfile.create(secret, subkeys=2), secret).detect([rgb]).log10_p[0] <= -2)
    assert low <= 9


def test_a_search_with_the_sync_key_does_not_make_evidence(detector, photographs):
    rgb = np.ascontiguousarray(photographs["flower"][:256, :256])
    for search in Search:
        assert detector.detect([rgb], search=search).log10_p[0] > -4


@pytest.mark.stat
def test_honest_marks_are_accepted(photographs):
    """40 pictures, of which the rule loses 5 %: fewer than 28 accepted has probability 2e-7 (binomial)."""
    accepted = 0
    for owner in range(40):
        secret = Secret(bytes([owner, 1]) * 16)
        profile = ImageProfile.create(secret)
        rgb = np.ascontiguousarray(photographs["china"][107:, owner * 8 : owner * 8 + 320])
        detections = ImageDetector(profile, secret).detect([ImageMark(profile, secret).write(rgb).pixels])
        accepted += int(detections.accepted(log10_level=-6)[0])
    assert 28 <= accepted <= 40


def test_a_collage_of_two_sub_keys_is_found_but_not_accepted(mark, detector, photographs):
    parts = [np.ascontiguousarray(photographs["china"][i:, j : j + 512]) for i, j in ((0, 0), (1, 0), (0, 1), (1, 1))]
    written = [mark.write(part) for part in parts]
    one, other = next((a, b) for a in written for b in written if a.subkey != b.subkey)
    mixed = one.pixels[:426].copy()
    mixed[:, 256:] = other.pixels[:426, 256:]
    detections = detector.detect([mixed])
    assert detections.log10_p[0] < -20
    assert not detections.accepted(log10_level=-6)[0]


def test_evidence_in_a_few_places_is_found_but_not_accepted(mark, detector, marked, photographs):
    """What a forger has who learnt from pictures with an identifier each: one picture's signs, in few hashes."""
    pixels, written = photographs["flower"].copy(), mark.write(photographs["flower"])
    pixels[128:256, 128:320] = written.pixels[128:256, 128:320]
    few, whole = detector.detect([pixels]), detector.detect([marked["flower"].pixels])
    assert few.log10_p[0] < -6
    assert few.log10_p_others[0] > np.log10(0.04)
    assert few.log10_p_runner_up[0] > -2
    assert few.log10_p_elsewhere[0] > -1
    assert not few.accepted(log10_level=-6)[0]
    assert whole.log10_p_elsewhere[0] < -50


def test_nothing_is_written_where_no_reader_looks(mark, detector, photographs):
    """A forger would else learn clean signs from flat blocks."""
    rgb = photographs["china"][:256, :320].copy()
    rgb[:128, :128] = 128 + np.arange(128, dtype=np.uint8)[:, None, None] // 32  # less than 3 grey levels of contrast
    written = mark.write(rgb)
    assert (detector.read(written.pixels).evidence.block_hash.reshape(4, 5)[:2, :2] == -1).all()
    y = luma(rgb)
    grid = Grid.of(y.shape)
    coarse = content(grid.cut(y))
    blocks = mark._evidence(coarse, np.ones(len(coarse), bool), written.identifier, written.subkey)
    evidence, change = grid.join(blocks, y.shape), luma(written.pixels) - y
    flat, busy = (slice(0, 128), slice(0, 128)), (slice(0, 128), slice(128, 320))
    assert abs(np.corrcoef(change[flat].ravel(), evidence[flat].ravel())[0, 1]) < 0.1
    assert np.corrcoef(change[busy].ravel(), evidence[busy].ravel())[0, 1] > 0.5
