# SPDX-License-Identifier: Apache-2.0
"""Lines that have to be type errors: if one stops being an error, its ignore comment becomes one (pyright, strict)."""

from torch import nn

from privguard._random import Stream
from privguard.checkpoint.keys.key import Key
from privguard.training.clip import ClippedSum
from privguard.training.noise.exact import NoisySum, add_noise
from privguard.training.plan import Performance, Plan
from privguard.training.step import hand_over


def noise_cannot_be_left_out(parameters: dict[str, nn.Parameter], clipped: ClippedSum) -> None:
    """Only a noisy sum reaches the optimizer."""
    hand_over(parameters, clipped, denominator=1.0)  # pyright: ignore[reportArgumentType]


def noise_is_added_once(noisy: NoisySum, source: Stream) -> None:
    """A noisy sum has no sensitivity, so nothing could say how much noise to add to it."""
    add_noise(noisy, multiplier=1.0, source=source)  # pyright: ignore[reportArgumentType]


def a_seed_is_not_a_source_of_chance(clipped: ClippedSum) -> None:
    """Randomness comes from a stream, never from a number."""
    add_noise(clipped, multiplier=1.0, source=0)  # pyright: ignore[reportArgumentType]


def speed_is_not_privacy(plan: Plan) -> None:
    """What touches privacy is not a setting for speed."""
    Performance(noise_multiplier=plan.noise_multiplier)  # pyright: ignore[reportCallIssue]


def plans_do_not_change(plan: Plan) -> None:
    """A plan is frozen."""
    plan.noise_multiplier = 0.0  # pyright: ignore[reportAttributeAccessIssue]


def keys_are_not_bytes() -> None:
    """Raw key bytes have their own door."""
    Key.read(b"0" * 32).write(0)  # pyright: ignore[reportArgumentType]
