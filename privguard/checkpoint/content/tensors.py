# SPDX-License-Identifier: Apache-2.0
"""Tensors inside the seal, in the safetensors layout: eight bytes of length, a JSON header, the bytes of every tensor.

The layout is written and read here, because it has to flow straight between tensors and cipher: nothing is gathered in
a second buffer. What is inside a member named ``*.safetensors`` is a complete safetensors file. Two names for one and
the same tensor are stored once, listed in the header's metadata, and come back as one tensor.

Format: https://github.com/huggingface/safetensors#format.
"""

import bisect
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast, final

import torch
from torch import Tensor

from privguard import _os
from privguard.errors import TamperedError

_ALIASES = "privguard.same-tensor"
_ALIGNMENT = 64  # the data begins on a cache line, so that every tensor can be used where it was decrypted
_HUGE = 4 << 20  # from here on, memory comes in pages of 2 MiB: a load is otherwise half page faults
_LONGEST_HEADER = 100_000_000  # bytes, as in safetensors itself

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F4": torch.float4_e2m1fn_x2,
}  # fmt: skip — the table of the format
_PAIRS = torch.float4_e2m1fn_x2  # two numbers in a byte: the format counts numbers, torch bytes
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Readable(Protocol):
    """Random access to plaintext: ``privguard.checkpoint.content.payload.Reader``."""

    size: int

    def read(self, start: int, stop: int) -> bytearray:
        """The bytes from ``start`` up to ``stop``.

        Args:
            start: the first byte.
            stop: the byte after the last.
        """
        ...

    def read_into(self, into: memoryview, start: int) -> None:
        """Fill ``into`` with the bytes from ``start`` on.

        Args:
            into: memory to be filled.
            start: the first byte.
        """
        ...


@final
@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: data type, shape, and first and last byte counted from the end of the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


@final
class Layout:
    """Tensors as the content of a member: a safetensors file that is made while it is read.

    Tensors that are not contiguous or not on the processor are copied one at a time when their turn comes. Do not
    change a tensor while it is being sealed.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        kept, aliases = _one_name_each(tensors)
        self._order = sorted(
            kept, key=lambda name: -kept[name].element_size()
        )  # stable: wide types first, so all align
        self._tensors = kept
        ends = list(itertools.accumulate(_nbytes(kept[name]) for name in self._order))
        entries = dict(zip(self._order, zip([0, *ends], ends, strict=False), strict=True))
        self._header = _header(kept, entries, aliases)
        self._starts = [0, *(len(self._header) + start for start, _ in entries.values())]
        self.size = len(self._header) + (ends[-1] if ends else 0)

    def views(self, start: int, stop: int) -> Iterator[memoryview]:
        """The file's bytes from ``start`` up to ``stop``, tensor by tensor.

        Args:
            start: the first byte.
            stop: the byte after the last.
        """
        at = bisect.bisect_right(self._starts, start) - 1
        while start < stop:
            begin = self._starts[at]
            end = self._starts[at + 1] if at + 1 < len(self._starts) else self.size
            piece = memoryview(self._header) if at == 0 else _bytes_of(self._tensors[self._order[at - 1]])
            yield piece[start - begin : min(stop, end) - begin]
            start, at = max(start, min(stop, end)), at + 1


@final
class TensorFile(Mapping[str, Tensor]):
    """Tensors by name over one or more members, each read when it is asked for.

    ``file["layer.weight"]`` is the whole tensor, ``file.rows("layer.weight", 0, 8)`` a stretch of it; both read their
    own bytes and nothing else.
    """

    def __init__(self, *contents: Readable) -> None:
        self._homes: dict[str, tuple[Readable, int, Entry]] = {}
        for content in contents:
            base = 8 + _header_length(content.read(0, min(8, content.size)), content.size)
            entries, aliases = parse_header(content.read(8, base), content.size - base)
            for name, entry in (entries | {alias: entries[kept] for alias, kept in aliases.items()}).items():
                self._homes[name] = (content, base, entry)

    def __getitem__(self, name: str) -> Tensor:
        entry = self.entry(name)
        return self._read(name, entry.shape, entry.start, entry.stop)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """The stretch ``start:stop`` of the first dimension; it costs no more than its own bytes.

        Args:
            name: the tensor's name.
            start: the first row.
            stop: the row after the last.
        """
        entry = self.entry(name)
        if not entry.shape or not 0 <= start <= stop <= entry.shape[0]:
            raise ValueError(f"rows={start}:{stop}: expected a stretch of the first of {entry.shape}")
        width = (entry.stop - entry.start) // entry.shape[0] if entry.shape[0] else 0
        shape = (stop - start, *entry.shape[1:])
        return self._read(name, shape, entry.start + start * width, entry.start + stop * width)

    def entry(self, name: str) -> Entry:
        """Data type and shape of a tensor, without reading it.

        Args:
            name: the tensor's name.
        """
        return self._homes[name][2]

    def __iter__(self) -> Iterator[str]:
        return iter(self._homes)

    def __len__(self) -> int:
        return len(self._homes)

    def _read(self, name: str, shape: Sequence[int], start: int, stop: int) -> Tensor:
        content, base, entry = self._homes[name]
        memory = allocate(stop - start)
        content.read_into(memory, base + start)
        return _tensor(memory, Entry(entry.dtype, tuple(shape), 0, stop - start), 0)


def from_buffer(memory: memoryview) -> dict[str, Tensor]:
    """The tensors of a safetensors file in memory, each a view of its own bytes there; nothing is copied.

    Args:
        memory: a whole safetensors file.
    """
    length = _header_length(memory[:8], len(memory))
    entries, aliases = parse_header(memory[8 : 8 + length], len(memory) - 8 - length)
    tensors = {name: _tensor(memory, entry, 8 + length) for name, entry in entries.items()}
    return tensors | {alias: tensors[name] for alias, name in aliases.items()}


def parse_header(header: bytes | bytearray | memoryview, data_bytes: int) -> tuple[dict[str, Entry], dict[str, str]]:
    """Entries and aliases of a safetensors header over ``data_bytes`` of data.

    Args:
        header: the JSON header of a safetensors file.
        data_bytes: bytes that follow the header.

    Raises:
        TamperedError: it is not JSON of the format, or its tensors overlap, leave bytes over or point outside the data,
            all of which safetensors refuses as well.
    """
    try:
        listed: dict[str, Any] = json.loads(bytes(header))
        aliases = _aliases(listed.pop("__metadata__", {}))
        entries = {name: _entry(value) for name, value in listed.items()}
        _require_gapless(entries.values(), data_bytes)
        names = set(entries)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise TamperedError("the header of a tensor file is not what privguard or safetensors write") from None
    if not set(aliases.values()) <= names or names & set(aliases):
        raise TamperedError("the header of a tensor file has second names for tensors that it does not have")
    return entries, aliases


def allocate(size: int) -> memoryview:
    """Fresh memory of ``size`` bytes, in large pages where that pays.

    Args:
        size: bytes.
    """
    if size < _HUGE:
        return memoryview(bytearray(size))
    return _os.anonymous_memory(size)


def _header_length(start: bytes | bytearray | memoryview, size: int) -> int:
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(size - 8, _LONGEST_HEADER):  # noqa: PLR2004 — the format's first field
        raise TamperedError("the header of a tensor file has an impossible length")
    return length


def _one_name_each(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors without second names, and the second names."""
    kept, aliases, seen = dict[str, Tensor](), dict[str, str](), dict[Any, str]()
    for name, value in tensors.items():
        tensor = _plain(name, value)
        # A lazy conjugate or negative shares memory with its original, and is another tensor.
        view = (tensor.is_conj(), tensor.is_neg())
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), view)
        if tensor.numel() and place in seen:
            aliases[name] = seen[place]
        else:
            seen[place] = name
            kept[name] = tensor
    return kept, aliases


def _plain(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor) or type(value).__name__ == "DTensor":
        raise TypeError(f"{name}={type(value).__name__}: expected a whole torch.Tensor; gather sharded values first")
    if value.dtype not in _NAMES or value.layout is not torch.strided or value.is_meta or name == "__metadata__":
        raise TypeError(
            f"{name}: expected a dense tensor with data, of a type that safetensors has; found {value.dtype}, "
            f"{value.layout} on {value.device}; convert it, or rename it if its name is __metadata__"
        )
    return value.detach()


def _header(tensors: Mapping[str, Tensor], entries: Mapping[str, tuple[int, int]], aliases: Mapping[str, str]) -> bytes:
    listed: dict[str, Any] = {"__metadata__": {_ALIASES: json.dumps(aliases)}} if aliases else {}
    for name, tensor in tensors.items():
        shape = list(_shape_in_file(tensor))
        listed[name] = {"dtype": _NAMES[tensor.dtype], "shape": shape, "data_offsets": list(entries[name])}
    text = json.dumps(listed, separators=(",", ":")).encode()
    text = text.ljust(-(-(8 + len(text)) // _ALIGNMENT) * _ALIGNMENT - 8)
    if len(text) > _LONGEST_HEADER:
        raise ValueError(f"names of {len(tensors)} tensors take {len(text)} bytes: expected at most {_LONGEST_HEADER}")
    return len(text).to_bytes(8, "little") + text


def _aliases(metadata: Any) -> dict[str, str]:
    """Second names of tensors, from metadata that has to be texts by name."""
    aliases = json.loads(metadata.get(_ALIASES, "{}"))
    if not all(type(text) is str for table in (metadata, aliases) for pair in table.items() for text in pair):
        raise ValueError("metadata")
    return aliases


def _entry(value: Mapping[str, Any]) -> Entry:
    dtype, shape, (start, stop) = DTYPES[value["dtype"]], tuple(value["shape"]), value["data_offsets"]
    whole = all(type(number) is int and number >= 0 for number in (*shape, start, stop))
    if whole and dtype is _PAIRS and shape:
        if shape[-1] % 2:
            raise ValueError("half a byte")
        shape = (*shape[:-1], shape[-1] // 2)
    if not whole or start > stop or math.prod(shape) * dtype.itemsize != stop - start:
        raise ValueError("entry")
    return Entry(dtype, shape, start, stop)


def _require_gapless(entries: Iterable[Entry], data_bytes: int) -> None:
    """Every byte of the data belongs to one tensor."""
    end = 0
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.stop)):
        if entry.start != end:
            raise ValueError("overlap or hole")
        end = entry.stop
    if end != data_bytes:
        raise ValueError("bytes over")


def _shape_in_file(tensor: Tensor) -> tuple[int, ...]:
    shape = tuple(tensor.shape)
    return (*shape[:-1], shape[-1] * 2) if tensor.dtype is _PAIRS and shape else shape


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _bytes_of(tensor: Tensor) -> memoryview:
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    flat = tensor.resolve_neg().cpu().contiguous().reshape(-1)
    return memoryview(cast("Any", flat.view(torch.uint8).numpy()))  # numpy arrays are buffers; the stubs do not say so


def _tensor(memory: memoryview, entry: Entry, base: int) -> Tensor:
    if entry.start == entry.stop:
        return torch.empty(entry.shape, dtype=entry.dtype)
    count = (entry.stop - entry.start) // entry.dtype.itemsize
    return torch.frombuffer(memory, dtype=entry.dtype, count=count, offset=base + entry.start).reshape(entry.shape)
