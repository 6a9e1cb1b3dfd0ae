# SPDX-License-Identifier: Apache-2.0
"""A second reader of image-mark-v1, written from docs/spec/image-mark-v1.md alone; it shares no code with privguard.

It knows shifts only, reads with double precision, and takes tails from Lugannani and Rice's saddle-point formula.
"""

import hashlib
import hmac
import json
import math

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes


class Owner:
    def __init__(self, secret: bytes, pieces: int):
        self.secret, self.pieces = secret, pieces
        self.aes = {name: self._cipher(name) for name in ("sync", "hash")}
        self.aes["evidence"] = self._cipher("evidence", pieces)
        self.aes["binding"] = self._cipher("binding")

    def _cipher(self, *labels):
        info = b"privguard mark v1\0" + json.dumps(["prf", "image-mark-v1", *labels]).encode()
        key = hmac.new(self.secret, info + b"\x01", hashlib.sha256).digest()  # the one block of HKDF-Expand
        return Cipher(algorithms.AES(key), modes.ECB())

    def bits(self, name, rows):
        plain = b"".join(int(word).to_bytes(4, "little") for row in rows for word in row)
        encryptor = self.aes[name].encryptor()
        out = np.frombuffer(encryptor.update(plain) + encryptor.finalize(), np.uint8)
        return ((out[:, None] >> np.arange(8)) & 1).ravel().astype(int)

    def binding(self, identifier):
        words = (identifier % 2**32, identifier // 2**32, self.pieces, 0)
        bits = self.bits("binding", [words])
        return bytes(int("".join(map(str, bits[8 * i : 8 * i + 8][::-1])), 2) for i in range(16)).hex()

    def tile(self):
        return (2 * self.bits("sync", [(n, 0, 0, 0) for n in range(128)]) - 1).reshape(128, 128)

    def directions(self):
        ones = self.bits("hash", [(n, 0, 0, 0) for n in range(180)]).reshape(12, 15, 128).sum(2)
        out = []
        for row in ones - 64.0:
            for other in out:
                row = row - (row @ other) * other
            out.append(row / math.sqrt(row @ row))
        return np.array(out)

    def field(self, subkey, piece, value):
        return 2 * self.bits("evidence", [(n, value, piece, subkey) for n in range(32)]) - 1


def blur(y, sigma):
    radius = int(4 * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    for axis in (0, 1):
        padded = np.pad(y, [(radius, radius) if a == axis else (0, 0) for a in (0, 1)], mode="symmetric")
        y = np.apply_along_axis(np.convolve, axis, padded, kernel, mode="valid")
    return y


def residual(y):
    h = y - blur(y, 4)
    return np.clip(h / (np.sqrt(blur(h * h, 4)) + 1.5), -2.5, 2.5)


def band(f):
    with np.errstate(divide="ignore"):
        return np.exp(-0.5 * (np.log(f / 0.11) / 0.45) ** 2)


def whitened(spectrum, n):
    f = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n)[None, :])
    ring = np.minimum(np.floor(f * n).astype(int), n // 2)
    power = (np.abs(spectrum) ** 2).reshape(-1, *ring.shape).mean(0)
    mean = np.array([power[ring == k].mean() for k in range(n // 2 + 1)])
    return spectrum * band(f) / (mean[ring] + 1e-9)


def origin(r, owner):
    padded = np.zeros([-(-n // 128) * 128 for n in r.shape])
    padded[: r.shape[0], : r.shape[1]] = r
    fold = sum(
        padded[i : i + 128, j : j + 128] for i in range(0, len(padded), 128) for j in range(0, padded.shape[1], 128)
    )
    spectrum = whitened(np.fft.rfft2(fold), 128)
    scores = np.fft.irfft2(spectrum * np.conj(np.fft.rfft2(owner.tile())), s=(128, 128))
    return divmod(int(scores.argmax()), 128)


def evidence(y, at, owner):
    r = residual(y)
    top, left = at[0] % 64, at[1] % 64
    wave = [[math.cos((i + 0.5) * math.pi * a / 8) for i in range(8)] for a in range(4)]
    shapes = [np.outer(wave[a], wave[b]) for a in range(4) for b in range(4) if (a, b) != (0, 0)]
    shapes = [s / math.sqrt((s * s).sum()) for s in shapes]
    parts, values = [], []
    for i in range(top, y.shape[0] - 63, 64):
        for j in range(left, y.shape[1] - 63, 64):
            cells = y[i : i + 64, j : j + 64].reshape(8, 8, 8, 8).mean((1, 3))
            coarse = np.array([(cells * s).sum() for s in shapes])
            if math.sqrt(coarse @ coarse) < 24:
                continue
            parts.append(r[i : i + 64, j : j + 64])
            values.append(sum(1 << b for b, d in enumerate(owner.directions()) if d @ coarse > 0))
    w = np.fft.irfft2(whitened(np.fft.rfft2(np.array(parts)), 64), s=(64, 64)).reshape(len(parts), 4096)
    w = np.clip(np.rint(w * 8 / np.abs(w).mean()), -64, 64)
    out = {}
    for value, row in zip(values, w, strict=True):
        out[value] = out.get(value, 0) + row
    return out


def log10_tail(score, weights):
    """P(Σ ±w ≥ score) for w on a lattice of step 2, by Lugannani and Rice with the lattice correction."""
    w = np.abs(weights[weights != 0]).astype(float)
    low, high = 0.0, 5.0
    for _ in range(200):
        theta = (low + high) / 2
        low, high = (theta, high) if (w * np.tanh(theta * w)).sum() < score else (low, theta)
    k = (np.logaddexp(theta * w, -theta * w) - math.log(2)).sum()
    variance = (w * w / np.cosh(theta * w) ** 2).sum()
    r = math.sqrt(2 * (theta * score - k))
    u = math.sinh(theta) * math.sqrt(variance)  # (1 − e^{−2θ})/2 · e^θ: the lattice's step is 2, continuity half of it
    log_density = -r * r / 2 - 0.5 * math.log(2 * math.pi)
    upper = math.log(math.erfc(r / math.sqrt(2)) / 2) if r < 35 else log_density - math.log(r) + math.log1p(-1 / r**2)
    return (upper + math.log(max(1e-300, 1 + math.exp(log_density - upper) * (1 / u - 1 / r)))) / math.log(10)


def read(rgb, secret: bytes, *, bits: int = 24, subkeys: int = 16):
    """log10 p after everything is paid for, identifier, sub-key."""
    owner = Owner(secret, bits // 12)
    y = rgb.astype(float) @ [0.299, 0.587, 0.114]
    found = evidence(y, origin(residual(y), owner), owner)
    parity = np.array([[(i & j).bit_count() & 1 for j in range(64)] for i in range(64)])
    hadamard = 1 - 2 * parity
    best = (-math.inf, 0, 0)
    for subkey in range(subkeys):
        score, identifier = 0.0, 0
        for piece in range(owner.pieces):
            summed = sum(w * owner.field(subkey, piece, value) for value, w in found.items())
            sums = (hadamard @ summed.reshape(64, 64) @ hadamard).ravel()
            score += sums.max()
            identifier |= int(sums.argmax()) << (12 * piece)
        best = max(best, (score, identifier, subkey))
    weights = np.concatenate([row for row in found.values() for _ in range(owner.pieces)])
    p = log10_tail(best[0], weights) + math.log10(subkeys) + bits * math.log10(2)
    return min(0.0, p), best[1], best[2]
