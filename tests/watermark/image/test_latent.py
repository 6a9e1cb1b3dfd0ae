# SPDX-License-Identifier: Apache-2.0
"""Keyed first noise: exactly normal, one journalled nonce per draw, and an exact test of what was recovered."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kstest

from privguard.attest import journal
from privguard.attest.journal import Journal
from privguard.attest.statement import SigningKey
from privguard.errors import MarkError, ProfileMismatchError, TamperedError
from privguard.watermark.image.latent import KeyedLatents, NoiseEntry, latent_verdict, read_noise_log
from privguard.watermark.image.profile import ImageProfile
from privguard.watermark.secret import Secret

SHAPE = (4, 32, 32)


SIGNER = SigningKey.generate()


@pytest.fixture
def source(profile, secret, tmp_path):
    return KeyedLatents(profile, secret, Journal(tmp_path / "log", by=SIGNER))


def entry(profile, nonce, shape, sequence=1):
    return NoiseEntry(sequence=sequence, time="", nonce=nonce, profile=profile.digest(), shape=shape)


def nonces(path):
    return [json.loads(line.role)["nonce"] for line in journal.read(path)]


@pytest.mark.stat
def test_the_noise_is_standard_normal_and_draws_are_unlike(source):
    """A million values; false alarm 1e-6 each, and a deviation of 1.03 is seen."""
    noise = np.stack([source.draw((100_000,))[0] for _ in range(10)]).astype(np.float64)
    assert kstest(noise.ravel(), "norm").pvalue > 1e-6
    assert kstest(1.03 * noise.ravel(), "norm").pvalue < 1e-6
    correlations = noise @ noise.T / np.sqrt(noise.shape[1])
    assert np.abs(correlations[np.triu_indices(10, 1)]).max() < 6
    assert abs((noise[:, 1:] * noise[:, :-1]).sum() / np.sqrt(noise.size)) < 5


def test_the_nonce_is_on_disk_before_the_noise_is_returned(source, tmp_path):
    given = [source.draw(SHAPE)[1] for _ in range(5)]
    assert nonces(tmp_path / "log") == given
    assert len(set(given)) == 5
    (tmp_path / "log").unlink()
    (tmp_path / "log").mkdir()
    with pytest.raises(OSError, match="log"):
        source.draw(SHAPE)


def test_processes_never_share_a_nonce(source, tmp_path):
    children = []
    for _ in range(4):
        if (child := os.fork()) == 0:
            for _ in range(15):
                source.draw((8,))
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert len(set(nonces(tmp_path / "log"))) == len(nonces(tmp_path / "log")) == 60


def recovered(noise, agreement, seed=0):
    chance = np.random.default_rng(seed).standard_normal(noise.shape)
    return agreement * noise + np.sqrt(1 - agreement**2) * chance


def test_recovered_noise_is_found_among_the_entries_and_they_are_paid_for(profile, secret, source, tmp_path):
    draws = [source.draw(SHAPE) for _ in range(20)]
    log = read_noise_log(tmp_path / "log", trusted=[SIGNER.identity])
    assert [each.nonce for each in log] == [nonce for _, nonce in draws]
    noise = recovered(draws[7][0], 0.4)
    one, all_ = (latent_verdict(profile, secret, noise, entries=some) for some in ([log[7]], log))
    assert one.log10_p < -80
    assert all_.details["log_entry"] == log[7].to_json()
    assert all_.log10_p == pytest.approx(one.log10_p + np.log10(20))
    assert latent_verdict(profile, secret, noise, entries=log[:7]).log10_p > -6


def test_a_nonce_counts_only_out_of_a_log_that_holds(profile, secret, source, tmp_path):
    noise, _ = source.draw(SHAPE)
    source.draw((3, 3))
    log = tmp_path / "log"
    with pytest.raises(TamperedError):
        read_noise_log(log, trusted=[SigningKey.generate().identity])
    drawn, other = read_noise_log(log, trusted=[SIGNER.identity])
    with pytest.raises(ValueError, match="as drawn"):
        latent_verdict(profile, secret, noise, entries=[drawn, other])
    foreign = entry(ImageProfile.create(secret, subkeys=4), drawn.nonce, SHAPE)
    with pytest.raises(ProfileMismatchError, match="entry 1"):
        latent_verdict(profile, secret, noise, entries=[foreign])
    Journal(log, by=SIGNER).record("mark", "x", role=json.dumps({"version": "image-latent-v1", "nonce": "00"}))
    with pytest.raises(TamperedError, match="line 3 is no draw"):
        read_noise_log(log, trusted=[SIGNER.identity])


@pytest.mark.stat
def test_wrong_nonces_give_uniform_p_values_whatever_was_recovered(profile, secret):
    """300 nonces on skewed, partly empty noise; KS at 1e-6."""
    noise = np.maximum(np.random.default_rng(3).standard_normal(2000), 0) * 3
    given = [entry(profile, number.to_bytes(12, "big").hex(), (2000,)) for number in range(300)]
    p = [latent_verdict(profile, secret, noise, entries=[each]).p_value for each in given]
    assert kstest(p, "uniform").pvalue > 1e-6
    assert kstest(np.sqrt(p), "uniform").pvalue < 1e-6


def test_what_cannot_be_kept_is_refused(profile, secret, tmp_path):
    lax = Journal(tmp_path / "log", by=SigningKey.generate(), strict=False)
    with pytest.raises(MarkError, match="strict"):
        KeyedLatents(profile, secret, lax)
    one, fine = np.ones(9), entry(profile, "00" * 12, (9,))
    with pytest.raises(ProfileMismatchError):
        latent_verdict(profile, Secret(bytes(32)), one, entries=[fine])
    short = entry(profile, "zz", (9,))
    for noise, given in ((one, []), (one, [short]), (one * np.nan, [fine])):
        with pytest.raises(ValueError, match="expected"):
            latent_verdict(profile, secret, noise, entries=given)


def test_the_recipe_finds_the_noise_of_a_flow_model_that_it_trains(tmp_path):
    """Five seconds of training: a poor generator, whose pictures are inverted all the same."""
    root = Path(__file__).parents[3]
    command = [sys.executable, str(root / "recipes" / "mark_first_noise.py"), "--tiny", "--pictures", "8"]
    environment = {"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    told = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, timeout=300).stdout
    rows = dict(re.findall(r"^(.+?) +median .+ right entry (\d+) of 8$", told, re.MULTILINE))
    assert rows == {"8 bits": "8", "JPEG 90": "8", "JPEG 70": "8", "shifted by one pixel": "0", "unmarked": "0"}
