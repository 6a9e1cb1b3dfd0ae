# SPDX-License-Identifier: Apache-2.0
"""Tensors and trees come back bit for bit, and the layout is safetensors' own."""

import json
import math
import random
from collections import Counter, OrderedDict, deque

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from privguard import _canon
from privguard.checkpoint.content import tensors, tree
from privguard.checkpoint.content.tensors import DTYPES, Layout, TensorFile
from privguard.errors import TamperedError


def written(layout: Layout, cut: int = 1 << 30) -> bytes:
    starts = range(0, layout.size, cut)
    return b"".join(bytes(v) for s in starts for v in layout.views(s, min(s + cut, layout.size)))


class InMemory:
    def __init__(self, content: bytes) -> None:
        self.size, self._content = len(content), content

    def read(self, start, stop):
        return bytearray(self._content[start:stop])

    def read_into(self, into, start):
        into[:] = self._content[start : start + len(into)]


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensors._bytes_of(tensor))


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and bits(left) == bits(right)


def examples() -> dict[str, torch.Tensor]:
    every = {
        name: torch.arange(24).reshape(2, 3, 4).to(dtype)
        for name, dtype in DTYPES.items()
        if not name.startswith(("F8", "F4"))
    }
    every |= {name: torch.randn(7, 5).to(dtype) for name, dtype in DTYPES.items() if name.startswith("F8")}
    base = torch.randn(8, 6)
    return every | {
        "nothing": torch.empty(0),
        "no rows": torch.empty(3, 0, 5, dtype=torch.bfloat16),
        "scalar": torch.tensor(math.pi),
        "transposed": base.t(),
        "strided": base[::2, 1::3],
        "expanded": torch.ones(3, 1).expand(3, 4),
        "name/with.ünïcode \n": base,
        "nan": torch.tensor([float("nan"), -0.0, float("inf")]),
        "conjugate": torch.view_as_complex(torch.randn(3, 2)).conj(),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "needs grad": (torch.randn(3, requires_grad=True) * 2),
    }


def test_every_kind_of_tensor_comes_back_bit_for_bit():
    before = examples()
    after = tensors.from_buffer(memoryview(bytearray(written(Layout(before)))))
    assert set(after) == set(before)
    for name in before:
        assert same(before[name], after[name]), name
        assert after[name].is_contiguous()
        assert not after[name].requires_grad


def test_safetensors_reads_what_is_written_and_the_other_way_round(tmp_path):
    plain = {
        name: tensor for name, tensor in examples().items() if name in safetensors.torch._TYPES or name == "nothing"
    }
    (tmp_path / "ours.safetensors").write_bytes(written(Layout(plain)))
    theirs = safetensors.torch.load_file(tmp_path / "ours.safetensors")
    assert set(theirs) == set(plain)
    assert all(same(plain[name], theirs[name]) for name in plain)
    safetensors.torch.save_file(plain, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    ours = tensors.from_buffer(memoryview(bytearray((tmp_path / "theirs.safetensors").read_bytes())))
    assert all(same(plain[name], ours[name]) for name in plain)


@pytest.mark.parametrize("cut", [1, 7, 64, 1000])
def test_any_stretch_of_the_layout_can_be_asked_for(cut):
    layout = Layout(examples())
    assert written(layout, cut) == written(layout)
    assert len(written(layout)) == layout.size


def test_tied_tensors_are_stored_once_and_come_back_tied():
    weight = torch.randn(50, 50)
    layout = Layout({"embedding": weight, "head": weight, "transposed": weight.t(), "row": weight[0]})
    assert layout.size < 3 * weight.nbytes
    after = tensors.from_buffer(memoryview(bytearray(written(layout))))
    assert after["head"] is after["embedding"]
    assert same(after["transposed"], weight.t())
    lazy = TensorFile(InMemory(written(layout)))
    assert same(lazy["head"], weight)
    assert set(lazy) == {"embedding", "head", "transposed", "row"}
    assert len(lazy) == 4


def test_rows_are_read_by_themselves():
    weight = torch.randn(10, 3, 2).to(torch.bfloat16)
    file = TensorFile(InMemory(written(Layout({"w": weight, "s": torch.tensor(1)}))))
    assert same(file.rows("w", 2, 5), weight[2:5])
    assert file.rows("w", 4, 4).shape == (0, 3, 2)
    assert file.entry("w").shape == (10, 3, 2)
    for name, start, stop in (("w", 3, 11), ("w", -1, 3), ("w", 3, 2), ("s", 0, 1)):
        with pytest.raises(ValueError, match="stretch"):
            file.rows(name, start, stop)


@pytest.mark.parametrize(
    "bad",
    [
        torch.sparse_coo_tensor(torch.tensor([[0]]), torch.ones(1), (3,), check_invariants=True),
        torch.ones(2, dtype=torch.complex128),
        torch.empty(3, device="meta"),
        [1.0],
    ],
    ids=["sparse", "complex128", "meta", "list"],
)
def test_what_the_format_cannot_hold_is_refused_by_name(bad):
    with pytest.raises(TypeError, match="culprit"):
        Layout({"fine": torch.ones(1), "culprit": bad})


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{",
        b'{"w": 3}',
        b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}',
        b'{"w":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}}',
        b'{"w":{"dtype":"F32","shape":[-1,-1],"data_offsets":[0,4]}}',
        b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}',
        b'{"w":{"dtype":"U8","shape":[true],"data_offsets":[0,1]}}',
        b'{"__metadata__":{"privguard.same-tensor":"{\\"a\\":\\"b\\"}"}}',
        b"[" * 100_000,
    ],
)
def test_hostile_headers_are_refused(header):
    with pytest.raises(TamperedError):
        tensors.parse_header(header, 8)
    with pytest.raises(TamperedError):
        tensors.from_buffer(memoryview(bytearray(len(header).to_bytes(8, "little") + header + bytes(8))))


def test_impossible_header_lengths_are_refused():
    for content in (b"", b"1234", (1 << 60).to_bytes(8, "little"), (9).to_bytes(8, "little") + bytes(8)):
        with pytest.raises(TamperedError):
            TensorFile(InMemory(content))
        with pytest.raises(TamperedError):
            tensors.from_buffer(memoryview(bytearray(content)))


def through(value):
    packed, found = tree.pack(value, prefix="state")
    stored = tensors.from_buffer(memoryview(bytearray(written(Layout(found)))))
    return tree.unpack(json.loads(_canon.canonical(packed)), stored)


leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8"))
    | st.binary()
    | st.complex_numbers(allow_nan=False)
)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.integers() | st.text(st.characters(codec="utf-8")), inner)
    ),
    max_leaves=20,
)


def exactly(left, right) -> bool:
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return (
            list(left) == list(right)
            and all(exactly(left[k], right[k]) for k in left)
            and all(map(exactly, left, right))
        )
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(exactly, left, right))
    return left == right and repr(left) == repr(right)  # repr tells -0.0 from 0.0


@given(trees)
def test_a_tree_comes_back_with_its_types_order_and_keys(value):
    assert exactly(value, through(value))


def test_states_of_generators_and_odd_containers_come_back():
    rng = random.Random(3)
    value = {
        "python": rng.getstate(),
        "numpy": np.random.RandomState(3).get_state(),
        "pcg": np.random.default_rng(3).bit_generator.state,
        "torch": torch.Generator().manual_seed(3).get_state(),
        "ordered": OrderedDict(b=1, a=2),
        "milestones": Counter({30: 1, 80: 2}),
        "window": deque([1.5, 2.5], maxlen=7),
        "size": torch.Size([2, 3]),
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "set": {3, 1},
        "number": np.float32(0.1),
        "wide": 2**200,
        "array": np.arange(6, dtype=np.uint32).reshape(2, 3),
    }
    after = through(value)
    rng.setstate(after["python"])
    assert rng.random() == random.Random(3).random()
    assert after["python"] == value["python"]
    assert after["numpy"][0] == value["numpy"][0]
    assert np.array_equal(after["numpy"][1], value["numpy"][1])
    assert after["numpy"][1].dtype == np.uint32
    assert after["numpy"][2:] == value["numpy"][2:]
    assert after["pcg"] == value["pcg"]
    assert torch.equal(after["torch"], value["torch"])
    for name in ("ordered", "milestones", "window", "size", "dtype", "device", "set", "number", "wide"):
        assert after[name] == value[name], name
        assert type(after[name]) is type(value[name]), name
    assert after["window"].maxlen == 7
    assert np.array_equal(after["array"], value["array"])
    assert after["array"].flags.writeable


def test_floats_that_json_cannot_hold_come_back():
    after = through([float("nan"), float("inf"), float("-inf"), -0.0, 5e-324])
    assert math.isnan(after[0])
    assert [repr(each) for each in after[1:]] == ["inf", "-inf", "-0.0", "5e-324"]


OPTIMIZERS = [
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    lambda p: torch.optim.AdamW(p, amsgrad=True),
    torch.optim.Adagrad,
    lambda p: torch.optim.RMSprop(p, centered=True),
    torch.optim.LBFGS,
    torch.optim.Adafactor,
    lambda p: torch.optim.AdamW([{"params": p[:1], "lr": 0.5}, {"params": p[1:]}], lr=torch.tensor(0.1)),
]


@pytest.mark.parametrize("make", OPTIMIZERS, ids=range(len(OPTIMIZERS)))
def test_an_optimizer_goes_on_exactly_as_if_nothing_had_happened(make):
    def trained(optimizer, model, steps):
        def closure():
            optimizer.zero_grad()
            loss = model(torch.arange(8.0).reshape(2, 4)).square().sum()
            loss.backward()
            return loss

        for _ in range(steps):
            optimizer.step(closure)

    model = torch.nn.Linear(4, 3)
    optimizer = make(list(model.parameters()))
    trained(optimizer, model, 3)
    weights, state = through(dict(model.state_dict())), through(optimizer.state_dict())
    twin = torch.nn.Linear(4, 3)
    twin.load_state_dict(weights)
    second = make(list(twin.parameters()))
    second.load_state_dict(state)
    trained(optimizer, model, 3)
    trained(second, twin, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))


def test_schedulers_come_back():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    for scheduler in (
        torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 5]),
        torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=9),
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
        torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer),
    ):
        state = scheduler.state_dict()
        after = through(state)
        assert after == state
        scheduler.load_state_dict(after)


def test_one_tensor_in_two_places_comes_back_as_one():
    tensor = torch.ones(3)
    after = through({"a": {"b": tensor}, "a.b": tensor, "other": [torch.zeros(3)]})
    assert after["a"]["b"] is after["a.b"]
    distinct = through({"a": {"b": torch.ones(2)}, "a.b": torch.zeros(2)})
    assert torch.equal(distinct["a"]["b"], torch.ones(2))
    assert torch.equal(distinct["a.b"], torch.zeros(2))


class Own:
    pass


class Whole(int):
    pass


@pytest.mark.parametrize(
    "value",
    [Own(), lambda: 0, Whole(3), np.array([Own()]), np.datetime64("2026-01-01"), {"x": [Own()]}, "\ud800"],
    ids=range(7),
)
def test_what_would_need_code_to_come_back_is_refused(value):
    with pytest.raises((TypeError, ValueError)):
        through(value)


@pytest.mark.parametrize(
    "packed",
    [
        [1],
        {"tensor": "absent"},
        {"unknown": 1},
        {},
        {"a": 1, "b": 2},
        {"float": "x"},
        {"dict": 3},
        {"numpy": ["O", "00"]},
        {"array": ["<f4", [2], "AAAA"]},
        {"dtype": "Tensor"},
        {"dict": [[{"list": []}, 1]]},
        {"numpy": [1]},
        {"float": "0x1p99999"},
        {"device": "nowhere"},
        {"deque": [-1, []]},
        {"size": ["x"]},
    ],
)
def test_a_tree_that_was_not_packed_is_refused(packed):
    with pytest.raises(TamperedError):
        tree.unpack(packed, {})
