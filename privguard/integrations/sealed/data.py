# SPDX-License-Identifier: Apache-2.0
"""Data sets that are sealed at rest, read for training without a copy in clear: NumPy archives, Parquet, Arrow.

    with numpy_archive("digits.npz.sealed", key=key) as arrays:
        x, y = arrays["x"], arrays["y"]
    with parquet("rows.parquet.sealed", key=key) as rows:
        for batch in rows.iter_batches(512): ...

Each reads what is asked for and no more: a column, a row group, an array. In a sealed folder, ``member`` names the
file.
"""

import contextlib
import importlib.util
import io
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from privguard.checkpoint.content import stream
from privguard.checkpoint.keys.key import Key
from privguard.checkpoint.opened import Sealed
from privguard.errors import SealError


@contextlib.contextmanager
def sealed_file(path: str | Path, *, key: Key, member: str | None = None) -> Generator[io.BufferedReader]:
    """A sealed file, or one file of a sealed folder, as a file object to read and seek in; for any other library.

    Args:
        path: the sealed file or folder.
        key: what opens it.
        member: which file of a sealed folder; None where there is one.

    Raises:
        TamperedError: the key does not open it, or it is not what was written; also later, at the read that finds out.
        SealError: ``member`` is not in it, or has to be named because there are several.
    """
    with Sealed(path, key) as sealed:
        names = sealed.names()
        name = names[0] if member is None and len(names) == 1 else member
        if name not in names:
            raise SealError(f"member={member!r}: expected one of {', '.join(names[:8])}")
        with stream.opening(sealed, name) as file:
            yield file


@contextlib.contextmanager
def numpy_archive(path: str | Path, *, key: Key, member: str | None = None) -> Generator[Mapping[str, Any]]:
    """The arrays of a sealed ``.npz``, each read when it is asked for; object arrays are pickles, and refused.

    Args:
        path: the sealed file or folder.
        key: what opens it.
        member: which file of a sealed folder; None where there is one.
    """
    with sealed_file(path, key=key, member=member) as file, np.load(file, allow_pickle=False) as arrays:
        yield arrays


@contextlib.contextmanager
def parquet(path: str | Path, *, key: Key, member: str | None = None) -> Generator[Any]:
    """A sealed Parquet file as ``pyarrow.parquet.ParquetFile``: row groups and columns are read one by one.

    Args:
        path: the sealed file or folder.
        key: what opens it.
        member: which file of a sealed folder; None where there is one.

    Raises:
        ModuleNotFoundError: pyarrow is not installed (``pip install 'privguard[data]'``).
    """
    _require_pyarrow("parquet")
    from pyarrow.parquet import ParquetFile

    with sealed_file(path, key=key, member=member) as file:
        yield ParquetFile(file)


@contextlib.contextmanager
def arrow(path: str | Path, *, key: Key, member: str | None = None) -> Generator[Any]:
    """A sealed Arrow file as a reader of record batches: the file format, or the stream that ``datasets`` writes.

    Args:
        path: the sealed file or folder.
        key: what opens it.
        member: which file of a sealed folder; None where there is one.

    Raises:
        ModuleNotFoundError: pyarrow is not installed (``pip install 'privguard[data]'``).
    """
    _require_pyarrow("arrow")
    import pyarrow as pa

    with sealed_file(path, key=key, member=member) as file:
        magic = file.peek(6)[:6]
        open_reader = pa.ipc.open_file if magic == b"ARROW1" else pa.ipc.open_stream
        with open_reader(file) as reader:
            yield reader


def _require_pyarrow(reader: str) -> None:
    if importlib.util.find_spec("pyarrow") is None:
        raise ModuleNotFoundError(
            f"sealed_data.{reader}: needs pyarrow, which is not installed; pip install 'privguard[data]'",
            name="pyarrow",
        )
