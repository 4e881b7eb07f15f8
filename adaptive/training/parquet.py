"""Data files as Parquet: the columns of a JSONL line, messages as JSON text. Needs pyarrow, which nothing else does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Self

_BATCH: Final = 256  # prompts; a row group


class ParquetMissing(Exception):
    """The library that reads and writes Parquet is not there. The message says what to do."""


class Writer:
    """Writes JSON values as `Group.to_plain` gives them; a context manager. Raises `ParquetMissing` when made."""

    def __init__(self, path: Path) -> None:
        self._pa, pq = library()
        self._schema = _schema(self._pa)
        self._writer = pq.ParquetWriter(path, self._schema)
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._writer.close()

    def add(self, row: Mapping[str, Any]) -> None:
        """Write a row."""
        self._rows.append({**row, "messages": json.dumps(row["messages"])})
        if len(self._rows) == _BATCH:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(self._pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows.clear()


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows as they were given to `Writer`. Raises `ParquetMissing`."""
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
            "Parquet needs pyarrow, which is not installed. `pip install pyarrow` (the extra `parquet`), or write "
            "JSONL: --format jsonl."
        ) from error
    return pa, pq


def _schema(pa: Any) -> Any:
    answer = pa.struct(
        [
            ("token_ids", pa.list_(pa.int32())),
            ("logprobs", pa.list_(pa.float64())),
            ("text", pa.string()),
            ("finish_reason", pa.string()),
            ("reward", pa.float64()),
            ("passed", pa.bool_()),
            ("win_or_tie", pa.float64()),
            ("cuts", pa.list_(pa.int32())),
        ]
    )
    return pa.schema(
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
