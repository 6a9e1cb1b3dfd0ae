# SPDX-License-Identifier: Apache-2.0
"""Keyed first noise for an image generator: train a tiny flow model, generate, handle the pictures, and read them back.

The model is a rectified flow on patches of two photographs, 32 × 32 in grey, so that everything runs in minutes on one
core; with a pipeline of diffusers the noise goes in as ``latents=``, and ``inverted`` is your own inversion. ``--tiny``
trains for seconds.
"""

import argparse
import io
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import nn

from privguard.attest.journal import Journal
from privguard.attest.statement import SigningKey
from privguard.watermark.image.latent import KeyedLatents, latent_verdict, read_noise_log
from privguard.watermark.image.profile import ImageProfile
from privguard.watermark.secret import Secret

SIDE, STEPS = 32, 20


class Flow(nn.Module):
    """Velocity of a picture (B, 1, 32, 32) at time t (B,): two scales, and the time added to every channel."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(16, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width))
        self.enter = nn.Conv2d(1, width, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.middle = nn.Sequential(nn.SiLU(), nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.SiLU())
        self.again = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.up = nn.Conv2d(2 * width, width, 3, padding=1)
        self.leave = nn.Sequential(nn.SiLU(), nn.Conv2d(2 * width, width, 3, padding=1), nn.SiLU(),
                                   nn.Conv2d(width, 1, 3, padding=1))  # fmt: skip

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Noise minus picture, as far as the model knows."""
        waves = t[:, None] * torch.exp(torch.linspace(0, 5, 8))
        shift = self.time(torch.cat([waves.sin(), waves.cos()], 1))[:, :, None, None]
        width = self.enter.out_channels
        high = self.enter(x) + shift[:, :width]
        low = self.down(torch.nn.functional.silu(high)) + shift[:, width : 3 * width]
        low = self.again(self.middle(low)) + low
        risen = torch.nn.functional.interpolate(self.up(low), scale_factor=2.0) + shift[:, 3 * width :]
        return self.leave(torch.cat([risen, high], 1))


def patches(count: int, rng: np.random.Generator) -> torch.Tensor:
    """Random patches of the two photographs in grey, from −1 to 1."""
    small = [Image.fromarray(rgb).convert("L").reduce(3) for rgb in load_sample_images().images]
    grey = [np.asarray(image, np.float32) / 127.5 - 1 for image in small]
    out = np.empty((count, 1, SIDE, SIDE), np.float32)
    for row in out:
        whole = grey[rng.integers(2)]
        top, left = (int(rng.integers(n - SIDE + 1)) for n in whole.shape)
        row[0] = whole[top : top + SIDE, left : left + SIDE]
    return torch.from_numpy(out)


def trained(seconds: float) -> Flow:
    """A flow model after so many seconds of training."""
    torch.set_num_threads(1)
    model, x = Flow(), patches(8000, np.random.default_rng(0))
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    start = time.monotonic()
    while (spent := (time.monotonic() - start) / seconds) < 1:
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - spent)
        batch = x[torch.randint(len(x), (32,), generator=generator)]
        noise = torch.randn(batch.shape, generator=generator)
        t = torch.sigmoid(torch.randn(len(batch), generator=generator))
        mixed = torch.lerp(batch, noise, t[:, None, None, None])
        loss = (model(mixed, t) - (noise - batch)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"trained for {seconds:.0f} s, loss {loss.item():.3f}")
    return model.eval()


@torch.no_grad()
def generated(model: Flow, noise: torch.Tensor) -> torch.Tensor:
    """Pictures from noise: Euler steps from time 1 to 0."""
    x = noise
    for k in range(STEPS, 0, -1):
        x = x - model(x, torch.full((len(x),), k / STEPS)) / STEPS
    return x


@torch.no_grad()
def inverted(model: Flow, pictures: torch.Tensor) -> torch.Tensor:
    """Noise from pictures: each Euler step undone by three rounds of its own fixed point."""
    x = pictures
    for k in range(1, STEPS + 1):
        t, guess = torch.full((len(x),), k / STEPS), x
        for _ in range(3):
            guess = x + model(guess, t) / STEPS
        x = guess
    return x


def jpeg(grey: np.ndarray, quality: int) -> np.ndarray:
    """A grey picture after JPEG."""
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


CHANGES = {
    "8 bits": lambda a: a,
    "JPEG 90": lambda a: jpeg(a, 90),
    "JPEG 70": lambda a: jpeg(a, 70),
    "shifted by one pixel": lambda a: np.roll(a, 1, 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="train for five seconds")
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--pictures", type=int, default=32)
    chosen = parser.parse_args()
    model = trained(5 if chosen.tiny else 60 * chosen.minutes)
    secret, signer = Secret.generate(), SigningKey.generate()
    profile = ImageProfile.create(secret)
    with tempfile.TemporaryDirectory() as folder:
        source = KeyedLatents(profile, secret, Journal(Path(folder) / "noise.log", by=signer))
        noise = np.stack([source.draw((1, SIDE, SIDE))[0] for _ in range(chosen.pictures)])
        log = read_noise_log(Path(folder) / "noise.log", trusted=[signer.identity])
    x = generated(model, torch.from_numpy(noise))
    grey = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()[:, 0]
    plain = generated(model, torch.randn(x.shape))
    print("log10 p of recovered noise, all entries of the log paid for:")
    rows = {name: np.stack([change(a) for a in grey]) for name, change in CHANGES.items()}
    rows["unmarked"] = ((plain.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()[:, 0]
    for name, handled in rows.items():
        recovered = inverted(model, torch.from_numpy(handled.astype(np.float32) / 127.5 - 1)[:, None]).numpy()
        verdicts = [latent_verdict(profile, secret, each, entries=log) for each in recovered]
        p = np.array([verdict.log10_p for verdict in verdicts])
        right = sum(v.details["log_entry"]["sequence"] == i + 1 and v.log10_p <= -6 for i, v in enumerate(verdicts))
        print(f"{name:22s} median {np.median(p):7.1f}  found {int((p <= -6).sum())}, right entry {right} of {len(p)}")


if __name__ == "__main__":
    main()
