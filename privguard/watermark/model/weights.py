# SPDX-License-Identifier: Apache-2.0
"""The weight mark: keyed ±1 carriers added to the weights after training, read as a correlation.

Every leaf owns one contiguous block of every marked tensor, so leaves can be opened one by one. The reading looks at
what the suspect added to the committed *unmarked* copy, clipped so that pruned weights cannot drown the rest. It is a
fixed function g of suspect and unmarked copy, both of which were there before the pulse, and z = ⟨signs, g⟩/‖g‖ has
P(Z ≥ z) ≤ exp(−z²/2) for any g (Hoeffding 1963): a proven bound, no reference models. Recipients' carriers span all
weights, one leaf for each recipient. Tensors are read one at a time, in blocks.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from privguard import _check
from privguard._random import Stream
from privguard.records import Verdict
from privguard.watermark.claims.commitment import MarkPlan
from privguard.watermark.claims.leaf import Leaf
from privguard.watermark.model.lay import chains, transformers
from privguard.watermark.model.lay import order as ordering
from privguard.watermark.model.lay.structure import Structure
from privguard.watermark.statistics import null

Array: TypeAlias = NDArray[np.float32]
Tensors: TypeAlias = Mapping[str, Array]
_CLIP = 3.0  # in units of the residual's typical size: what a pruned or reset weight may count at most
_MOST = 1e6  # what a tensor may weigh against others: one that hardly changed would else have all the weight
_SLACK = 1.0001
_SAMPLE = 1 << 16  # elements from which a tensor's typical residual is taken
_BLOCK = 1 << 20


@final
@dataclass(frozen=True, kw_only=True)
class Reading:
    """Correlations by leaf: ⟨signs, g⟩ and ‖g‖² over that leaf's block. What a verifier signs and others add up.

    ``unmarked`` is the SHA-256 of the copy that was compared with, ``aligned`` says how the suspect was brought into
    its frame.
    """

    indices: tuple[int, ...]
    dots: tuple[float, ...]
    squares: tuple[float, ...]
    unmarked: str = ""
    aligned: str = "not at all"

    @property
    def z(self) -> float:
        """The combined correlation; 0 where the residual is nothing at all."""
        total = math.fsum(self.squares)
        return math.fsum(self.dots) / math.sqrt(total) if total > 0 else 0.0


def plan(
    shapes: Mapping[str, Sequence[int]],
    *,
    leaves: int = 32,
    strength: float = 0.1,
    order: Sequence[str] | None = None,
    structure: Structure | None = None,
) -> MarkPlan:
    """A weight mark over these tensors; ``strength`` is the carrier's size in units of each tensor's RMS.

    How suspects are laid beside them is fixed here (``.lay.beside``): as the transformer that ``structure``
    describes, else as a chain of which ``order`` names the tensors front to back; by default in the order that
    ``.lay.order.order`` finds, and by name and shape where it finds none.

    Args:
        shapes: tensor shapes by name.
        leaves: how many leaves share the tensors.
        strength: size of the carrier, in units of each tensor's RMS.
        order: names of a chain's tensors, front to back; None to find it.
        structure: the transformer that the tensors make; None where they make none.
    """
    return _plan("weights", shapes, leaves, strength, reading=_reading(shapes, order, structure))


def recipients_plan(
    shapes: Mapping[str, Sequence[int]],
    *,
    recipients: int,
    strength: float = 0.1,
    order: Sequence[str] | None = None,
    structure: Structure | None = None,
) -> MarkPlan:
    """One full-length carrier for each recipient of a copy, to trace which copy leaked; as ``plan`` otherwise.

    Args:
        shapes: tensor shapes by name.
        recipients: how many recipients get a copy.
        strength: size of the carrier, in units of each tensor's RMS.
        order: names of a chain's tensors, front to back; None to find it.
        structure: the transformer that the tensors make; None where they make none.
    """
    return _plan("recipients", shapes, recipients, strength, reading=_reading(shapes, order, structure))


def embed(unmarked: Tensors, leaves: Sequence[Leaf], *, pulse: bytes, settings: Mapping[str, Any]) -> dict[str, Array]:
    """A copy of the tensors with the carriers of all leaves added; other tensors are left as they are.

    Args:
        unmarked: the committed model's tensors.
        leaves: the leaves, n of them.
        pulse: the beacon's 64 random bytes.
        settings: the mark's committed settings.
    """
    marked = {name: np.array(tensor, np.float32) for name, tensor in unmarked.items()}
    count = len(leaves)
    for name in _names(settings, unmarked):
        flat = marked[name].reshape(-1)
        size = np.float32(float(settings["strength"]) * _rms(flat))
        for leaf in leaves:
            start, stop = _block(flat.size, leaf.index, count)
            for piece, signs in _signs(leaf, pulse, name, start, stop):
                flat[piece] += size * signs
    return marked


def embed_recipient(
    marked: Tensors, leaf: Leaf, *, unmarked: Tensors, pulse: bytes, settings: Mapping[str, Any]
) -> dict[str, Array]:
    """A copy for one recipient: that leaf's carrier added over the whole of every tensor.

    Args:
        marked: the marked model's tensors.
        leaf: the recipient's leaf.
        unmarked: the committed model's tensors.
        pulse: the beacon's 64 random bytes.
        settings: the mark's committed settings.
    """
    copy = {name: np.array(tensor, np.float32) for name, tensor in marked.items()}
    for name in _names(settings, marked):
        flat = copy[name].reshape(-1)
        size = np.float32(float(settings["strength"]) * _rms(unmarked[name].reshape(-1)))
        for piece, signs in _signs(leaf, pulse, name, 0, flat.size):
            flat[piece] += size * signs
    return copy


def read(suspect: Tensors, leaves: Sequence[Leaf], *, unmarked: Tensors, pulse: bytes, plan: MarkPlan) -> Reading:
    """Correlate the opened leaves with the residual of ``suspect``, which must lie in the unmarked copy's frame.

    What is missing there, a tensor or an element that is no finite number, is left out of scale, dot and norm alike.

    The result does not name the unmarked copy yet: ``dataclasses.replace`` its ``unmarked`` with the digest.

    One pass over the tensors; beyond one tensor of each copy, memory is a few blocks of 2²⁰ elements.

    Args:
        suspect: tensors by name, in the unmarked copy's frame.
        leaves: the leaves, n of them.
        unmarked: the committed model's tensors.
        pulse: the beacon's 64 random bytes.
        plan: the committed plan of the mark.
    """
    whole = plan.kind == "recipients"
    dots, squares = [0.0] * len(leaves), [0.0] * len(leaves)
    for name in _names(plan.settings, unmarked):
        if name not in suspect:
            continue
        residual = _Residual(suspect[name], unmarked[name])
        for place, leaf in enumerate(leaves):
            start, stop = (0, residual.size) if whole else _block(residual.size, leaf.index, plan.leaves)
            for piece, signs in _signs(leaf, pulse, name, start, stop):
                values = residual(piece)
                dots[place] += float(np.dot(signs, values))
                squares[place] += float(np.dot(values, values))
    indices = tuple(leaf.index for leaf in leaves)
    return Reading(indices=indices, dots=tuple(dots), squares=tuple(squares))


def verdict(reading: Reading, *, scheme: str = "weights", multiplicity: float = 1.0) -> Verdict:
    """The verdict on all leaves of a reading together; ``log10_p`` is a proven upper bound.

    Args:
        reading: what correlating gave.
        scheme: how the verdict calls the mark.
        multiplicity: tests that the p-value pays for, at least 1.
    """
    return null.verdict(
        null.SpreadSigns(),
        scheme=scheme,
        score=reading.z,
        trials=len(reading.indices),
        multiplicity=multiplicity,
        details={"z": reading.z, "aligned": reading.aligned},
        notes=("null model: suspect and unmarked copy were fixed independently of the secret",),
    )


def elements(plan: MarkPlan, index: int) -> int:
    """How many weights a leaf of this plan signs: its block of every tensor.

    Args:
        plan: the committed plan of the mark.
        index: the leaf's number.
    """
    sizes = [math.prod(int(size) for size in shape) for shape in plan.settings["tensors"].values()]
    blocks = [_block(size, index, plan.leaves) for size in sizes]
    return sum(stop - start for start, stop in blocks)


def possible(dot: float, square: float, *, elements: int) -> bool:
    """Whether any suspect can have this ⟨signs, g⟩ and ‖g‖² over so many weights.

    By Cauchy and Schwarz |⟨signs, g⟩| ≤ √elements·‖g‖, and no |g| is above the clip times the largest weight; 1e-4 is
    for float32 sums.

    Args:
        dot: ⟨signs, g⟩.
        square: ‖g‖².
        elements: how many weights the leaf signs.
    """
    if not (math.isfinite(dot) and 0 <= square <= elements * (_CLIP * _MOST) ** 2 * _SLACK):
        return False
    return abs(dot) <= math.sqrt(elements) * math.sqrt(square) * _SLACK


def trace(
    suspect: Tensors,
    leaves: Sequence[Leaf],
    *,
    unmarked: Tensors,
    pulse: bytes,
    plan: MarkPlan,
    family_level: float = 1e-3,
) -> tuple[tuple[int, ...], tuple[Verdict, ...]]:
    """The accused recipients' indices, and every recipient's verdict.

    Guarantee: the chance that anybody at all is accused wrongly is at most ``family_level``, by Bonferroni over all
    recipients.

    Args:
        suspect: tensors by name, in the unmarked copy's frame.
        leaves: the leaves, n of them.
        unmarked: the committed model's tensors.
        pulse: the beacon's 64 random bytes.
        plan: the committed plan of the mark.
        family_level: chance that anybody is accused wrongly, in (0, 1).
    """
    _check.probability("family_level", family_level)
    everything = read(suspect, leaves, unmarked=unmarked, pulse=pulse, plan=plan)
    verdicts = tuple(
        verdict(Reading(indices=(index,), dots=(dot,), squares=(square,)), scheme="recipient", multiplicity=len(leaves))
        for index, dot, square in zip(everything.indices, everything.dots, everything.squares, strict=True)
    )
    accused = tuple(
        index
        for index, found in zip(everything.indices, verdicts, strict=True)
        if found.log10_p_corrected <= math.log10(family_level)
    )
    return accused, verdicts


class _Residual:
    """What the suspect added to one unmarked tensor, in units of its typical size, clipped, and weighted.

    The weight is the unmarked tensor's RMS over the residual's size: in a tensor that hardly changed, a carrier stands
    out more. What is no finite number is missing: it counts neither as changed nor as unchanged.
    """

    def __init__(self, suspect: Array, unmarked: Array) -> None:
        _check.require(suspect.shape == unmarked.shape, "suspect.shape", suspect.shape, wanted=f"{unmarked.shape}")
        self._suspect, self._unmarked = suspect.reshape(-1), unmarked.reshape(-1)
        self.size = self._unmarked.size
        step = max(1, self.size // _SAMPLE)
        sample = self._difference(slice(0, self.size, step))
        sample = sample[np.isfinite(sample)] if np.isfinite(sample).any() else np.zeros(1, np.float32)
        typical = float(np.median(np.abs(sample))) or float(np.sqrt(np.mean(sample**2))) or 1.0
        self._scale = np.float32(1.0 / typical)
        self._weight = np.float32(min(_rms(self._unmarked) / typical, _MOST))

    def __call__(self, piece: slice) -> Array:
        scaled = self._difference(piece)
        scaled *= self._scale
        np.clip(scaled, -_CLIP, _CLIP, out=scaled)
        scaled *= self._weight
        return np.nan_to_num(scaled, copy=False, nan=0.0)  # g is 0 where there is nothing to read

    def _difference(self, piece: slice) -> Array:
        difference = np.subtract(self._suspect[piece], self._unmarked[piece], dtype=np.float32)
        difference[~np.isfinite(difference)] = np.nan
        return difference


def _plan(
    kind: str, shapes: Mapping[str, Sequence[int]], leaves: int, strength: float, *, reading: Mapping[str, Any]
) -> MarkPlan:
    least = 16 if kind == "weights" else 1
    _check.count("leaves", leaves, least=least, remedy="leaves are what can be opened one at a time")
    _check.positive("strength", strength)
    _check.require(bool(shapes), "shapes", shapes, wanted="at least one tensor")
    tensors = {name: [int(size) for size in shape] for name, shape in shapes.items()}
    settings = {"tensors": tensors, "strength": strength, **reading}
    return MarkPlan(name=kind, kind=kind, leaves=leaves, settings=settings)


def _reading(
    shapes: Mapping[str, Sequence[int]], order: Sequence[str] | None, structure: Structure | None
) -> dict[str, Any]:
    """The settings that name the laying program, and what it has to know of the unmarked model."""
    if structure is not None:
        strangers = sorted(set(shapes) - set(structure.tensors))
        _check.require(not strangers, "shapes", strangers[:3], wanted="tensors of the structure; others cannot be laid")
        return {"reading": transformers.PROGRAM, "structure": structure.to_json()}
    if order is None:
        try:
            order = ordering.order(shapes)
        except ValueError:
            order = ()
    _check.require(set(order) <= set(shapes), "order", list(order), wanted="names of the tensors")
    return {"reading": chains.PROGRAM, "order": list(order)}


def _names(settings: Mapping[str, Any], tensors: Tensors) -> Iterator[str]:
    for name, shape in settings["tensors"].items():
        _check.require(name in tensors, "tensors", name, wanted="present in the model")
        _check.require(list(tensors[name].shape) == list(shape), name, tensors[name].shape, wanted=f"shape {shape}")
        yield name


def _block(size: int, index: int, count: int) -> tuple[int, int]:
    return size * index // count, size * (index + 1) // count


def _signs(leaf: Leaf, pulse: bytes, name: str, start: int, stop: int) -> Iterator[tuple[slice, Array]]:
    """±1 for each element in [start, stop), 2²⁰ at a time: bits of AES-256-CTR keyed by leaf, pulse and tensor."""
    source = Stream(leaf.expand(pulse, "carrier", 32), "carrier").child(name)
    for number, first in enumerate(range(start, stop, _BLOCK)):
        last = min(first + _BLOCK, stop)
        packed = np.empty((last - first + 7) // 8, np.uint8)
        source.child(number).fill(packed)
        signs = np.unpackbits(packed, bitorder="little")[: last - first].astype(np.float32)
        signs *= 2
        signs -= 1
        yield slice(first, last), signs


def _rms(flat: Array) -> float:
    total = sum(float(np.dot(piece, piece)) for piece in _pieces(flat))
    return math.sqrt(total / flat.size)


def _pieces(flat: Array) -> Iterator[Array]:
    for start in range(0, flat.size, _BLOCK):
        yield np.asarray(flat[start : start + _BLOCK], np.float32)
