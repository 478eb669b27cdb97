"""Reading one local file as a data set: Parquet, CSV, TSV, JSON lines, JSON.

Arrow reads the files directly: `datasets.load_dataset` takes 0.1 s a file for its cache, and a run over a hundred
languages has hundreds of files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from hf_xlt.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

SUFFIXES = (".parquet", ".jsonl", ".json", ".csv", ".tsv")


def read_file(path: Path) -> Dataset:
    """Read a file.

    Args:
        path: an existing file with one of `SUFFIXES`.

    Raises:
        ConfigError: it cannot be read as what its suffix says.
    """
    from datasets import Dataset

    return Dataset(_read_table(path))


def inspect_file(path: Path) -> tuple[tuple[str, ...], int]:
    """Return columns and number of rows; of Parquet only the footer is read.

    Raises:
        ConfigError: as `read_file`.
    """
    if path.suffix.lower() != ".parquet":
        table = _read_table(path)
        return tuple(table.column_names), table.num_rows
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        footer = pq.read_metadata(path)
        return tuple(footer.schema.to_arrow_schema().names), footer.num_rows
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error


def _read_table(path: Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet as pq

    suffix = path.suffix.lower()
    try:
        if path.stat().st_size == 0:
            raise ValueError("the file is empty")
        if suffix == ".parquet":
            # A plain file: pyarrow would take `lang=xx` in a folder's name for another column.
            return pq.ParquetFile(path).read()
        if suffix in (".csv", ".tsv"):
            return pyarrow.csv.read_csv(
                path,
                parse_options=pyarrow.csv.ParseOptions(
                    delimiter="\t" if suffix == ".tsv" else ",", newlines_in_values=True
                ),
            )
        if suffix == ".json" and path.read_text(encoding="utf-8").lstrip().startswith("["):
            return pa.Table.from_pylist(json.loads(path.read_text(encoding="utf-8")))
        return pyarrow.json.read_json(path)
    except (pa.ArrowException, OSError, ValueError, AttributeError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: BaseException) -> ConfigError:
    kind = path.suffix.lower().lstrip(".")
    return ConfigError(f"`{path}` cannot be read as {kind}: {error}. It may be cut off, or of another format.")
