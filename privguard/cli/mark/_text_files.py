# SPDX-License-Identifier: Apache-2.0
"""What the commands on text read: documents as text, JSON lines or Parquet, a tokenizer, and a level."""

import json
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from privguard import _check


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a local folder.

    Raises:
        ValueError: there is none.
    """
    from transformers import AutoTokenizer

    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a local folder with a tokenizer, as save_pretrained writes it")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: expected a folder with a tokenizer; {str(error).splitlines()[0]}") from None


def log10_of(level: float) -> float:
    """log10 of an error probability.

    Raises:
        ValueError: not above 0 and below 1.
    """
    return math.log10(_check.probability("level", level))


def read_rows(inputs: Iterable[str]) -> Iterator[dict[str, Any]]:
    """One object per JSON line or Parquet row, or one per plain-text file; ``-`` is standard input.

    Text is taken as it stands in the file, with its own line ends; only a byte-order mark is dropped.
    """
    for name in inputs:
        if name.endswith(".parquet"):
            yield from _parquet_rows(name)
            continue
        try:
            content = (sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError(f"{name}: expected text in UTF-8, or JSON lines") from None
        if name.endswith(".jsonl") or (name == "-" and content.lstrip().startswith("{")):
            lines = enumerate(
                content.split("\n"), 1
            )  # JSON ends a line here alone; U+0085 or U+2028 may stand in a text
            yield from (_row(line, f"{name}, line {number}") for number, line in lines if line.strip())
        else:
            yield {"text": content, "prompt": content}


def _parquet_rows(name: str) -> Iterator[dict[str, Any]]:
    from pyarrow import ArrowInvalid, parquet

    try:
        file = parquet.ParquetFile(name)
    except ArrowInvalid as error:
        raise ValueError(f"{name}: expected a Parquet file; {str(error).splitlines()[0]}") from None
    columns = [column for column in ("text", "tokens", "prompt") if column in file.schema_arrow.names]
    _check.require(bool(columns), f"{name}: columns", file.schema_arrow.names, wanted="'text', 'tokens' or 'prompt'")
    for batch in file.iter_batches(columns=columns):
        for row in batch.to_pylist():
            yield {key: value for key, value in row.items() if value is not None}


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: expected one JSON object; {error}") from None
    if not isinstance(row, dict) or not {"text", "tokens", "prompt"} & set(row):
        raise ValueError(f"{where}: expected a JSON object with 'text', 'tokens' or 'prompt'")
    return row


def text_of(row: dict[str, Any]) -> str:
    """The text of a row.

    Raises:
        ValueError: none, or one that no file in UTF-8 can hold.
    """
    if "text" not in row:
        raise ValueError(f"row={sorted(row)}: expected 'text' or 'tokens'; a prompt alone has nothing to read")
    text = row["text"]
    _check.require(isinstance(text, str), "text", text, wanted="a string")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"text={text[:20]!r}…: expected no lone surrogates, which are no characters")
    return text


def tokens_of(row: dict[str, Any], tokenizer: Any, *, width: int | None = None) -> list[int]:
    """The ids of one row: as given, or by the tokenizer; ``width`` is that of the profile's logits.

    Raises:
        ValueError: ids that are no whole numbers from 0 up to the width, or text without a tokenizer.
    """
    if "tokens" in row:
        tokens = row["tokens"]
        _check.require(isinstance(tokens, list), "tokens", tokens, wanted="a list of token ids")
        top = 1 << 24 if width is None else width
        for token in tokens:
            if type(token) is not int or not 0 <= token < top:
                raise ValueError(f"token={token!r}: expected a whole number from 0 to {top - 1}, an id of the model's")
        return tokens
    text = text_of(row)
    if tokenizer is None:
        raise ValueError("tokenizer=None: expected the folder of the tokenizer for text input; pass --tokenizer")
    return list(tokenizer.encode(text, add_special_tokens=False))
