# SPDX-License-Identifier: Apache-2.0
"""Keyed first noise: exactly normal, one journalled nonce per draw, and an exact test of what was recovered."""

import json
import os

import numpy as np
import pytest
from scipy.stats import kstest

from privguard.attest import journal
from privguard.attest.journal import Journal
from privguard.attest.statement import SigningKey
from privguard.errors import MarkError, ProfileMismatchError
from privguard.watermark.image.latent import KeyedLatents, latent_verdict
from privguard.watermark.secret import Secret

SHAPE = (4, 32, 32)


@pytest.fixture
def source(profile, secret, tmp_path):
    return KeyedLatents(profile, secret, Journal(tmp_path / "log", by=SigningKey.generate()))


def nonces(path):
    return [json.loads(entry.role)["nonce"] for entry in journal.read(path)]


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


def test_recovered_noise_is_found_among_the_nonces_and_they_are_paid_for(profile, secret, source):
    draws = [source.draw(SHAPE) for _ in range(20)]
    every = [nonce for _, nonce in draws]
    noise = recovered(draws[7][0], 0.4)
    one = latent_verdict(profile, secret, noise, nonces=[every[7]])
    all_ = latent_verdict(profile, secret, noise, nonces=every)
    assert one.log10_p < -80
    assert all_.details["nonce"] == every[7]
    assert all_.log10_p == pytest.approx(one.log10_p + np.log10(20))
    assert all_.details["needs_log_entry"] is True
    assert latent_verdict(profile, secret, noise, nonces=every[:7]).log10_p > -6


@pytest.mark.stat
def test_wrong_nonces_give_uniform_p_values_whatever_was_recovered(profile, secret):
    """300 nonces on skewed, partly empty noise; KS at 1e-6."""
    noise = np.maximum(np.random.default_rng(3).standard_normal(2000), 0) * 3
    p = [
        latent_verdict(profile, secret, noise, nonces=[number.to_bytes(12, "big").hex()]).p_value
        for number in range(300)
    ]
    assert kstest(p, "uniform").pvalue > 1e-6
    assert kstest(np.sqrt(p), "uniform").pvalue < 1e-6


def test_what_cannot_be_kept_is_refused(profile, secret, tmp_path):
    lax = Journal(tmp_path / "log", by=SigningKey.generate(), strict=False)
    with pytest.raises(MarkError, match="strict"):
        KeyedLatents(profile, secret, lax)
    with pytest.raises(ProfileMismatchError):
        latent_verdict(profile, Secret(bytes(32)), np.ones(9), nonces=["00" * 12])
    one = np.ones(9)
    for noise, given in ((one, []), (one, ["zz"]), (one, ["00"]), (one * np.nan, ["00" * 12])):
        with pytest.raises(ValueError, match="expected"):
            latent_verdict(profile, secret, noise, nonces=given)
