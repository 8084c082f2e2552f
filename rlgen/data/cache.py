"""Parsed crystals on disk: Parquet of arrays under a key of content and version, written aside and renamed."""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rlgen.data.parsing import Row
from rlgen.data.records import BrokenRow, Record

if TYPE_CHECKING:
    import pyarrow as pa

#: Raise when the table below, or what the parsers make of a text, changes.
VERSION = "1"
#: Property columns are told from the fixed ones by this prefix.
_PROPERTY = "property:"


def cache_dir() -> Path:
    """The user's cache: `RLGEN_CACHE`, else `~/.cache/rlgen`. Made when something is written."""
    return Path(os.environ.get("RLGEN_CACHE") or Path.home() / ".cache" / "rlgen").expanduser()


def key_of(files: Iterable[Path], kind: str) -> str:
    """sha256 (hex) over this format's version, the kind of source, and the content of the files in order."""
    digest = hashlib.sha256(f"rlgen.data {VERSION} {kind}\n".encode())
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def table_for(key: str, make: Callable[[int | None], list[Row]], limit: int | None = None) -> pa.Table:
    """The cached table of a key, or what `make(limit)` gives, which is then cached. limit: the first rows only."""
    table = _read(key)
    if table is None and limit is not None:
        # A part has its own entry, so that a short test run does not have to parse 45,000 crystals.
        key = f"{key}-{limit}"
        table = _read(key)
    if table is None:
        table = to_table(make(limit))
        _write(key, table)
    return table if limit is None else table.slice(0, limit)


def to_table(rows: list[Row]) -> pa.Table:
    """Rows as an Arrow table: file, row, id, reason, lattice (9), numbers (N), frac_coords (3N), property columns."""
    import pyarrow as pa

    def text(values: Iterable[str]) -> pa.Array:
        return pa.array(list(values), pa.string())

    columns: dict[str, pa.Array] = {
        "file": text(r.file for r in rows),
        "row": pa.array([r.row for r in rows], pa.int64()),
        "id": text(r.id for r in rows),
        "reason": text(r.reason for r in rows),
        "lattice": _lists([r.lattice for r in rows], np.float64),
        "numbers": _lists([r.numbers for r in rows], np.uint8),
        "frac_coords": _lists([r.frac_coords for r in rows], np.float64),
    }
    for name in sorted({name for r in rows for name in r.properties}):
        columns[_PROPERTY + name] = pa.array([r.properties.get(name) for r in rows], pa.float64())
    return pa.table(columns)


def _lists(arrays: list[np.ndarray | None], dtype: type) -> pa.Array:
    import pyarrow as pa

    filled: list[np.ndarray] = [np.zeros(0, dtype) if a is None else np.asarray(a, dtype) for a in arrays]
    offsets = np.concatenate([[0], np.cumsum([len(a) for a in filled])]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate([np.zeros(0, dtype), *filled])))


def records_of(table: pa.Table, stem: str) -> tuple[list[Record], list[BrokenRow]]:
    """Records and broken rows of a table. Rows without an id of their own are called `stem-row`."""
    table = table.combine_chunks()
    files, numbers_of_rows, ids, reasons = (table[name].to_pylist() for name in ("file", "row", "id", "reason"))
    lattice, numbers, frac = (_split(table[name]) for name in ("lattice", "numbers", "frac_coords"))
    names = [name for name in table.column_names if name.startswith(_PROPERTY)]
    values = [(name.removeprefix(_PROPERTY), table[name].to_pylist()) for name in names]
    records: list[Record] = []
    broken: list[BrokenRow] = []
    for i, reason in enumerate(reasons):
        if reason:
            broken.append(BrokenRow(files[i], numbers_of_rows[i], reason))
            continue
        properties = {name: column[i] for name, column in values if column[i] is not None}
        identity = ids[i] or f"{stem}-{numbers_of_rows[i]}"
        cell, places = lattice[i].reshape(3, 3), frac[i].reshape(-1, 3)
        records.append(Record.from_arrays(identity, cell, numbers[i], places, properties))
    return records, broken


def _split(column: pa.ChunkedArray) -> list[np.ndarray]:
    """The lists of a column, each an array of its own that may be written to without touching its neighbours."""
    if column.num_chunks == 0:
        return []
    lists = column.chunk(0)
    offsets = lists.offsets.to_numpy()
    flat = lists.values.to_numpy().copy()
    return [flat[a:b] for a, b in pairwise(offsets)]


def _path(key: str) -> Path:
    return cache_dir() / "crystals" / f"{key}.parquet"


def _read(key: str) -> pa.Table | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(_path(key))
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowException) as error:
        warnings.warn(f"cache entry {_path(key)} cannot be read ({error}); it is made anew", stacklevel=2)
        return None


def _write(key: str, table: pa.Table) -> None:
    import pyarrow.parquet as pq

    try:
        write_aside(_path(key), lambda temporary: pq.write_table(table, temporary, compression="zstd"))
    except OSError as error:
        # A cache that cannot be written costs time on the next start and nothing else.
        warnings.warn(f"cannot write the cache {_path(key)}: {error}", stacklevel=2)


def write_aside(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: nobody ever sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
