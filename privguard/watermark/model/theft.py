# SPDX-License-Identifier: Apache-2.0
"""What a thief does to a stolen classifier, and to the marks in it.

An attack takes the stolen model and the thief's means (own data, own chance) and returns a model that the thief can
use; attacks compose with ``then``. Attacks at query time change the answers instead (``Masked``). The cost of
an attack is what it trains on, as a share of the owner's training. The list follows the Watermark-Robustness-Toolbox's
kinds of attack (Lukas et al. 2022), re-implemented.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from privguard import _check
from privguard.watermark.model import align, embed
from privguard.watermark.model.classifier import Suspect


@final
@dataclass(kw_only=True)
class Means:
    """What the thief has: own examples (N, *shape) with labels (N,), a source of chance, and a count of work done."""

    inputs: Tensor
    labels: Tensor
    generator: torch.Generator
    batch_size: int = 64
    examples_trained: int = field(default=0)

    def train(self, model: nn.Module, loss: Callable[[nn.Module, Tensor], Tensor], *, epochs: int, rate: float) -> None:
        """Adam over the thief's examples, ``loss(model, indices)`` per batch, in place.

        Args:
            model: the stolen model.
            loss: from a model and positions of examples (b,) to a scalar.
            epochs: passes over the thief's examples.
            rate: learning rate of Adam.
        """
        self.train_on(model, loss, len(self.inputs), epochs=epochs, rate=rate)

    def train_on(
        self,
        model: nn.Module,
        loss: Callable[[nn.Module, Tensor], Tensor],
        examples: int,
        *,
        epochs: int,
        rate: float,
        kept: Sequence[tuple[Tensor, Tensor]] = (),
    ) -> None:
        """As ``train`` over any number of examples; pruned weights stay zero.

        Args:
            model: the stolen model.
            loss: from a model and positions of examples (b,) to a scalar.
            examples: how many examples the loss knows.
            epochs: passes over the thief's examples.
            rate: learning rate of Adam.
            kept: pairs of a weight and its mask, of one shape; masked weights stay zero.
        """
        chosen = [item for item in model.parameters() if item.requires_grad]
        optimizer = torch.optim.Adam(chosen, lr=rate)
        for _ in range(epochs):
            for batch in torch.randperm(examples, generator=self.generator).split(self.batch_size):
                optimizer.zero_grad()
                loss(model, batch).backward()
                optimizer.step()
                embed.apply_masks(list(kept))
        self.examples_trained += epochs * examples

    def supervised(self, model: nn.Module, batch: Tensor) -> Tensor:
        """Cross-entropy on the thief's labels.

        Args:
            model: the stolen model.
            batch: positions of the thief's examples, (b,).
        """
        return nn.functional.cross_entropy(model(self.inputs[batch]), self.labels[batch])


_BACKGROUND = 0.4  # natural digits are darker than this on average, patterns of two levels are not

Attack: TypeAlias = Callable[[nn.Module, Means], nn.Module]


def then(*attacks: Attack) -> Attack:
    """An attack that makes several others in this order, each on the model that the one before it returned."""

    def combined(model: nn.Module, means: Means) -> nn.Module:
        for attack in attacks:
            model = attack(model, means)
        return model

    return combined


def nothing(model: nn.Module, means: Means) -> nn.Module:  # noqa: ARG001 — an attack's signature
    """Use the stolen model as it is.

    Args:
        model: the stolen model.
        means: what the thief has: data, labels and time.
    """
    return copy.deepcopy(model)


def fine_tune(*, rate: float, epochs: int = 40) -> Attack:
    """Train all layers on the thief's data.

    Args:
        rate: learning rate of Adam.
        epochs: passes over the thief's examples.
    """

    def attack(model: nn.Module, means: Means) -> nn.Module:
        stolen = copy.deepcopy(model)
        means.train(stolen, means.supervised, epochs=epochs, rate=rate)
        return stolen

    return attack


def low_rank(*, rank: int = 4, rate: float = 5e-3, epochs: int = 40) -> Attack:
    """LoRA (Hu et al. 2021) on every linear layer, merged into the weights afterwards.

    Args:
        rank: rank of the added matrices.
        rate: learning rate of Adam.
        epochs: passes over the thief's examples.
    """

    def attack(model: nn.Module, means: Means) -> nn.Module:
        stolen = copy.deepcopy(model)
        linear = [layer for layer in stolen.modules() if isinstance(layer, nn.Linear)]
        for layer in linear:
            nn.utils.parametrize.register_parametrization(layer, "weight", _LowRank(layer.weight, rank, means))
        for name, item in stolen.named_parameters():
            item.requires_grad_(name.endswith((".down", ".up")))
        means.train(stolen, means.supervised, epochs=epochs, rate=rate)
        for layer in linear:
            nn.utils.parametrize.remove_parametrizations(layer, "weight")
        for item in stolen.parameters():
            item.requires_grad_(True)  # noqa: FBT003 — torch's own signature
        return stolen

    return attack


class _LowRank(nn.Module):
    def __init__(self, weight: Tensor, rank: int, means: Means) -> None:
        super().__init__()
        down = torch.randn(rank, weight.shape[1], generator=means.generator) / math.sqrt(weight.shape[1])
        self.down, self.up = nn.Parameter(down), nn.Parameter(torch.zeros(weight.shape[0], rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def new_head(*, rate: float = 1e-3, epochs: int = 40) -> Attack:
    """Draw the last matrix anew and train everything (RTAL).

    Args:
        rate: learning rate of Adam.
        epochs: passes over the thief's examples.
    """

    def attack(model: nn.Module, means: Means) -> nn.Module:
        stolen = copy.deepcopy(model)
        head = [item for item in stolen.parameters() if item.dim() > 1][-1]
        with torch.no_grad():
            head.copy_(torch.randn(head.shape, generator=means.generator) / math.sqrt(head[0].numel()))
        means.train(stolen, means.supervised, epochs=epochs, rate=rate)
        return stolen

    return attack


def prune(share: float, *, rate: float = 1e-3, epochs: int = 40) -> Attack:
    """Remove the smallest weights of every matrix, then train what is left; 0 epochs only remove.

    Args:
        share: a share, in [0, 1].
        rate: learning rate of Adam.
        epochs: passes over the thief's examples.
    """

    def attack(model: nn.Module, means: Means) -> nn.Module:
        stolen = copy.deepcopy(model)
        kept = embed.prune(stolen, share)
        means.train_on(stolen, means.supervised, len(means.inputs), epochs=epochs, rate=rate, kept=kept)
        return stolen

    return attack


def quantise(bits: int) -> Attack:
    """Round every matrix to 2ᵇⁱᵗˢ−1 equally spaced values, symmetric, one scale per row.

    Args:
        bits: bits of each weight.
    """
    _check.count("bits", bits, least=2)

    def attack(model: nn.Module, means: Means) -> nn.Module:  # noqa: ARG001 — an attack's signature
        stolen, top = copy.deepcopy(model), 2 ** (bits - 1) - 1
        with torch.no_grad():
            for item in stolen.parameters():
                if item.dim() > 1:
                    rows = item.reshape(len(item), -1)
                    step = rows.abs().amax(1, keepdim=True).clamp_min(1e-12) / top
                    item.copy_(((rows / step).round() * step).reshape(item.shape))
        return stolen

    return attack


def reorder(model: nn.Module, means: Means) -> nn.Module:
    """Permute all hidden units and rescale them by factors from e⁻¹ to e; not one answer changes.

    Args:
        model: the stolen model.
        means: what the thief has: data, labels and time.
    """
    stolen = copy.deepcopy(model)
    state = {name: tensor.detach() for name, tensor in stolen.state_dict().items()}
    for layer in align.chain({name: tuple(tensor.shape) for name, tensor in state.items()}):
        order = torch.randperm(layer.units, generator=means.generator)
        scale = (
            torch.exp(2 * torch.rand(layer.units, generator=means.generator) - 1)
            if layer.scaled
            else torch.ones(layer.units)
        )
        for name in layer.incoming:
            rows = state[name].reshape(layer.units, -1)
            state[name] = (scale[:, None] * rows[order]).reshape(state[name].shape)
        for name in layer.outgoing:
            columns = state[name].reshape(len(state[name]), layer.units, -1)
            state[name] = (columns[:, order] / scale[None, :, None]).reshape(state[name].shape)
    stolen.load_state_dict(state)
    return stolen


def distil(
    fresh: Callable[[], nn.Module], *, queries: Callable[[Means], Tensor], hard: bool = False, epochs: int = 40
) -> Attack:
    """Train a fresh model on the stolen one's answers: probabilities, or only labels where ``hard``.

    Args:
        fresh: makes an untrained network of one's own.
        queries: from the thief's means to the inputs that are asked, (n, ...).
        hard: whether only labels are seen.
        epochs: passes over the thief's examples.
    """

    def attack(model: nn.Module, means: Means) -> nn.Module:
        asked, student = queries(means), fresh()
        with torch.no_grad():
            said = model(asked).softmax(1)
        target = said.argmax(1) if hard else said

        def loss(current: nn.Module, batch: Tensor) -> Tensor:
            return nn.functional.cross_entropy(current(asked[batch]), target[batch])

        means.train_on(student, loss, len(asked), epochs=epochs, rate=1e-3)
        return student

    return attack


def in_domain(means: Means) -> Tensor:
    """The thief's own inputs as queries.

    Args:
        means: what the thief has: data, labels and time.
    """
    return means.inputs


def with_noise(means: Means) -> Tensor:
    """The thief's inputs and as many random patterns of zeros and ones: a thief who guesses what triggers look like.

    Args:
        means: what the thief has: data, labels and time.
    """
    noise = torch.randint(0, 2, means.inputs.shape, generator=means.generator).to(means.inputs.dtype)
    return torch.cat([means.inputs, noise])


def merge(fresh: Callable[[], nn.Module], *, share: float = 0.5, epochs: int = 40) -> Attack:
    """Average with a model of the thief's own, its units first matched to the stolen one's (Ainsworth et al. 2023).

    Args:
        fresh: makes an untrained network of one's own.
        share: a share, in [0, 1].
        epochs: passes over the thief's examples.
    """

    def attack(model: nn.Module, means: Means) -> nn.Module:
        own = fresh()
        means.train(own, means.supervised, epochs=epochs, rate=1e-3)
        stolen = tensors(model)
        layers = align.chain({name: value.shape for name, value in stolen.items()})
        matched = align.align(tensors(own), unmarked=stolen, layers=layers)
        mixed = {name: (1 - share) * value + share * matched[name] for name, value in stolen.items()}
        merged = load(model, mixed)
        means.train(merged, means.supervised, epochs=5, rate=1e-3)  # merged networks are repaired before use
        return merged

    return attack


def task_vector(*, factor: float = 1.5, rate: float = 1e-3, epochs: int = 40) -> Attack:
    """Move ``factor`` times as far as fine-tuning would (Ilharco et al. 2023).

    Args:
        factor: how far, where 1 is fine-tuning itself.
        rate: learning rate of Adam.
        epochs: passes over the thief's examples.
    """

    def attack(model: nn.Module, means: Means) -> nn.Module:
        before, after = tensors(model), tensors(fine_tune(rate=rate, epochs=epochs)(model, means))
        return load(model, {name: value + factor * (after[name] - value) for name, value in before.items()})

    return attack


@final
class Masked:
    """A suspect whose operator changes queries or answers: input noise, temperature, a filter for triggers.

    ``noise`` is the deviation added to each query; answers are drawn from softmax(logits / ``temperature``), the
    likeliest where it is 0; a query whose elements lie nearer to 0 and 1 than ``filter_below`` on average is taken for
    a trigger and answered at random.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        noise: float = 0.0,
        temperature: float = 0.0,
        filter_below: float = 0.0,
    ) -> None:
        self._suspect, self._noise, self._temperature, self._filter = Suspect(model), noise, temperature, filter_below
        self._random = np.random.default_rng(0)

    def __call__(self, queries: NDArray[Any]) -> Sequence[int]:
        """One answer for each query."""
        asked = np.asarray(queries, np.float32)
        noise = self._random.normal(0, self._noise, asked.shape) if self._noise else 0.0
        logits = self._suspect.logits(np.asarray(asked + noise, np.float32))
        said = (logits + self._temperature * self._random.gumbel(size=logits.shape)).argmax(1)
        grey = np.minimum(np.abs(asked), np.abs(1 - asked)).reshape(len(asked), -1).mean(1)
        dark = asked.reshape(len(asked), -1).mean(1)
        taken = (grey < self._filter) & (dark > _BACKGROUND)
        said[taken] = self._random.integers(0, logits.shape[1], int(taken.sum()))
        return said.tolist()


def tensors(model: nn.Module) -> dict[str, NDArray[np.float32]]:
    """A model's state as float32 arrays, copied; what is tied stands there once, under its first name.

    Args:
        model: the stolen model.
    """
    state, aliases = model.state_dict(), _aliases(model)
    plain = {name: value.detach().float().cpu().numpy() for name, value in state.items() if name not in aliases}
    return {name: np.array(value, np.float32) for name, value in plain.items()}


def load(model: nn.Module, state: Mapping[str, NDArray[Any]]) -> nn.Module:
    """A copy of ``model`` with this state, in the model's own dtypes; a tied tensor needs to be there once.

    Args:
        model: the stolen model.
        state: arrays by name.

    Raises:
        ValueError: the state gives two values to one tied tensor, of which the model could hold only the last.
    """
    changed = copy.deepcopy(model)
    values = {name: torch.from_numpy(np.array(value, np.float32)) for name, value in state.items()}
    for alias, name in _aliases(model).items():
        first = values.setdefault(name, values[alias]) if alias in values else values[name]
        if not torch.equal(values.setdefault(alias, first), first):
            raise ValueError(f"{alias}: expected the values of {name}, to which it is tied; untie the model first")
    changed.load_state_dict(values)
    return changed


def _aliases(model: nn.Module) -> dict[str, str]:
    """Names of a state that stand for a tensor which another name before them stands for as well."""
    first, aliases = dict[tuple[Any, ...], str](), dict[str, str]()
    for name, value in model.state_dict().items():
        place = (value.data_ptr(), tuple(value.shape), value.stride(), value.dtype)
        if value.numel() and first.setdefault(place, name) != name:
            aliases[name] = first[place]
    return aliases


def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Share of right answers.

    Args:
        model: the stolen model.
        inputs: (n, ...).
        labels: (n,).
    """
    return float(np.mean(np.array(Suspect(model)(inputs.numpy())) == labels.numpy()))
