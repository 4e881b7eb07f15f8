"""Data files as Parquet: the columns of a JSONL line, messages as JSON text. Needs pyarrow, which nothing else does."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final

_BATCH: Final = 256  # prompts; a row group


class ParquetMissing(Exception):
    """The library that reads and writes Parquet is not there. The message says what to do."""


def write(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write JSON values as `Group.to_plain` gives them. Raises `ParquetMissing` before anything is written."""
    pa, pq = library()
    answer = pa.struct(
        [
            ("token_ids", pa.list_(pa.int32())),
            ("logprobs", pa.list_(pa.float32())),
            ("text", pa.string()),
            ("finish_reason", pa.string()),
            ("reward", pa.float64()),
            ("passed", pa.bool_()),
            ("win_or_tie", pa.float64()),
            ("cuts", pa.list_(pa.int32())),
        ]
    )
    schema = pa.schema(
        [
            ("format", pa.int32()),
            ("id", pa.string()),
            ("family", pa.string()),
            ("split", pa.string()),
            ("messages", pa.string()),
            ("constitution", pa.string()),
            ("prompt_ids", pa.list_(pa.int32())),
            ("answers", pa.list_(answer)),
        ]
    )
    plain = ({**row, "messages": json.dumps(row["messages"])} for row in rows)
    with pq.ParquetWriter(path, schema) as writer:
        while batch := list(islice(plain, _BATCH)):
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows as they were given to `write`. Raises `ParquetMissing`."""
    _, pq = library()
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_BATCH):
            for row in batch.to_pylist():
                yield {**row, "messages": json.loads(row["messages"])}


def library() -> tuple[Any, Any]:
    """Return pyarrow and its Parquet module. Raises `ParquetMissing`."""
    try:
        import pyarrow as pa  # noqa: PLC0415 -- large, and only for who asks for it
        import pyarrow.parquet as pq  # noqa: PLC0415 -- the same
    except ImportError as error:
        raise ParquetMissing(
            "Parquet needs pyarrow, which is not installed. `pip install pyarrow`, or write JSONL: --format jsonl."
        ) from error
    return pa, pq
