# SPDX-License-Identifier: Apache-2.0
"""CSV and Parquet files → named arrays, as an ``.npz`` file holds them.

A column is an array (n,). Columns called ``records_<name>`` or ``inputs_<name>`` are put side by side, in the order of
the file, as ``records`` or ``inputs`` (n, columns) of float64: whole numbers in a table are no tokens.
"""

import csv
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privguard import _check

SIDE_BY_SIDE = ("records", "inputs")
TRUTH = {"true": True, "false": False}


def read_table(path: Path) -> dict[str, NDArray[Any]]:
    """The columns of a ``.csv`` file with a line of names, or of a ``.parquet`` file.

    Raises:
        ValueError: where the file is none, names are missing or given twice, a cell is empty, or columns that belong
            side by side are not numbers.
    """
    columns = _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path)
    arrays = {name: values for name, values in columns.items() if not _group(name)}
    for whole in SIDE_BY_SIDE:
        parts = {name: values for name, values in columns.items() if _group(name) == whole}
        for name, values in parts.items():
            _check.require(values.dtype.kind in "biuf", f"{path}: column", name, wanted="numbers")
        if parts:
            arrays[whole] = np.stack(list(parts.values()), 1).astype(np.float64)
    return arrays


def _group(name: str) -> str | None:
    return next((whole for whole in SIDE_BY_SIDE if name.startswith(f"{whole}_")), None)


def _csv(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: expected a CSV file in UTF-8, with a line of names; {error}") from error
    names = [name.strip() for name in rows[0]] if rows else []
    distinct = bool(names) and len(set(names)) == len(names) and all(names)
    _check.require(distinct, f"{path}: names", names, wanted="a first line of different names")
    for number, row in enumerate(rows[1:], 2):
        _check.require(len(row) == len(names), f"{path}: cells in row {number}", len(row), wanted=f"{len(names)}")
    return {name: _column(path, name, [row[at].strip() for row in rows[1:]]) for at, name in enumerate(names)}


def _column(path: Path, name: str, cells: list[str]) -> NDArray[Any]:
    """Truth values where all cells are, whole numbers, numbers, or text."""
    _check.require(bool(cells), f"{path}: rows", 0, wanted="at least one row below the names")
    if "" in cells:
        raise ValueError(f"{path}: column {name!r} is empty in row {cells.index('') + 2}: give every record a value")
    if all(cell.lower() in TRUTH for cell in cells):
        return np.array([TRUTH[cell.lower()] for cell in cells])
    for kind in (int, float):
        try:
            return np.array([kind(cell) for cell in cells], np.int64 if kind is int else np.float64)
        except (ValueError, OverflowError):
            continue
    return np.array(cells)


def _parquet(path: Path) -> dict[str, NDArray[Any]]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise ValueError(f"{path}: reading Parquet needs pyarrow; pip install 'privguard[data]'") from error
    with path.open("rb") as file:
        try:
            table = parquet.read_table(file)
        except pa.ArrowException as error:
            raise ValueError(f"{path}: expected a Parquet file; {error}") from error
    return {name: _plain(path, name, table.column(name)) for name in table.column_names}


def _plain(path: Path, name: str, column: Any) -> NDArray[Any]:
    _check.require(column.null_count == 0, f"{path}: empty cells of {name}", column.null_count, wanted="none")
    values = np.array(column.to_pylist())
    _check.require(
        values.ndim == 1 and values.dtype.kind in "biufU", f"{path}: column", name, wanted="numbers, truth or text"
    )
    return values
