# SPDX-License-Identifier: Apache-2.0
"""Data sets sealed at rest are read as they were, in pieces, and a flipped bit is found where it is read."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from privguard.checkpoint import seal
from privguard.errors import SealError, TamperedError
from privguard.integrations.sealed import data as sealed_data


@pytest.fixture
def table():
    return pa.table({"x": np.arange(20_000), "text": [f"canary {i}" for i in range(20_000)]})


def test_a_numpy_archive_is_read_array_by_array(tmp_path, key):
    np.savez(tmp_path / "d.npz", x=np.arange(90_000).reshape(300, 300), y=np.ones(5, np.int8))
    seal(tmp_path / "d.npz", tmp_path / "d.sealed", to=key)
    with sealed_data.numpy_archive(tmp_path / "d.sealed", key=key) as arrays:
        assert np.array_equal(arrays["x"], np.arange(90_000).reshape(300, 300))
        assert arrays["y"].dtype == np.int8


def test_an_archive_of_objects_is_refused(tmp_path, key):
    np.savez(tmp_path / "d.npz", x=np.array([{}], dtype=object))
    seal(tmp_path / "d.npz", tmp_path / "d.sealed", to=key)
    with (
        pytest.raises(ValueError, match="allow_pickle"),
        sealed_data.numpy_archive(tmp_path / "d.sealed", key=key) as arrays,
    ):
        arrays["x"]


def test_parquet_is_read_by_row_group_and_column(tmp_path, key, table):
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=5_000)
    seal(tmp_path / "t.parquet", tmp_path / "t.sealed", to=key)
    assert b"canary" not in (tmp_path / "t.sealed").read_bytes()
    with sealed_data.parquet(tmp_path / "t.sealed", key=key) as rows:
        assert rows.num_row_groups == 4
        assert rows.read_row_group(2, columns=["x"])["x"].to_pylist() == list(range(10_000, 15_000))
        assert sum(batch.num_rows for batch in rows.iter_batches(512)) == 20_000


@pytest.mark.parametrize("make", [pa.ipc.new_file, pa.ipc.new_stream])
def test_arrow_is_read_in_both_of_its_formats(tmp_path, key, table, make):
    with pa.OSFile(str(tmp_path / "t.arrow"), "wb") as sink, make(sink, table.schema) as writer:
        writer.write_table(table)
    seal(tmp_path / "t.arrow", tmp_path / "t.sealed", to=key)
    with sealed_data.arrow(tmp_path / "t.sealed", key=key) as reader:
        assert reader.read_all().equals(table)


def test_a_member_of_a_folder_is_named_and_a_flip_is_found_where_it_is_read(tmp_path, key):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.bin").write_bytes(b"a" * 100_000)
    (tmp_path / "data" / "b.bin").write_bytes(b"b" * 1_000_000)
    seal(tmp_path / "data", tmp_path / "sealed", to=key)
    with (
        pytest.raises(SealError, match=r"expected one of a\.bin, b\.bin"),
        sealed_data.sealed_file(tmp_path / "sealed", key=key),
    ):
        pass
    part = next(path for path in (tmp_path / "sealed").iterdir() if path.name.endswith(".1"))
    content = bytearray(part.read_bytes())
    content[900_000] ^= 1
    part.write_bytes(content)
    with sealed_data.sealed_file(tmp_path / "sealed", key=key, member="b.bin") as file:
        assert file.read(10_000) == b"b" * 10_000
        file.seek(-5, 2)
        assert file.read() == b"bbbbb"
        file.seek(890_000)
        with pytest.raises(TamperedError):
            file.read(20_000)


@pytest.mark.parametrize("reader", ["parquet", "arrow"])
def test_without_pyarrow_the_message_says_what_to_install(reader, tmp_path, key, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with (
        pytest.raises(ModuleNotFoundError, match=r"pip install 'privguard\[data\]'"),
        getattr(sealed_data, reader)(tmp_path / "absent", key=key),
    ):
        pass
