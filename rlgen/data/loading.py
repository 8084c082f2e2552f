"""From a name or a path to a data set."""

from __future__ import annotations

import difflib
from pathlib import Path

import numpy as np

from rlgen.data import cache, mp20, prototypes, readers
from rlgen.data.parsing import parse
from rlgen.data.records import DataReport, Dataset, Record
from rlgen.types import UserError

SOURCES = ("mp20", "prototypes")
#: Shares of val and test in a data set that comes without splits; the rest is train.
_HELD_OUT = 0.05


def load(
    name_or_path: str | Path, *, limit: int | None = None, path: str | Path | None = None, seed: int = 0
) -> Dataset:
    """Load "mp20", "prototypes", or the user's own file or folder.

    limit: at most so many rows, of each split where the source has its own. path: the folder of "mp20". seed: of the
    90/5/5 split of a source without splits, which depends on nothing but the seed and the number of crystals. A folder
    with {train, val, test}.csv[.gz] keeps its splits. UserError: unknown name, missing file or column, no usable row.
    """
    name = str(name_or_path)
    if limit is not None and limit < 1:
        raise UserError(f"limit is a number of rows, at least 1, not {limit}")
    if path is not None and name != "mp20":
        raise UserError(
            f"path= names the folder of mp20; for your own data give the path itself, not {name!r} and a path"
        )
    if name == "mp20":
        return _load_splits(name, mp20.find(path), limit)
    if name == "prototypes":
        return _load_prototypes(limit, seed)
    source = Path(name).expanduser()
    if not source.exists():
        raise UserError(_unknown(name))
    files = mp20.split_files(source) if source.is_dir() else None
    if files is not None:
        return _load_splits(source.name, files, limit)
    records, report = _load_path(source, limit)
    return Dataset(_stem(source), split(records, seed), report)


def split(records: list[Record], seed: int = 0) -> dict[str, list[Record]]:
    """Records in 90/5/5 train, val and test by a seeded shuffle; from three records on none is empty."""
    n = len(records)
    held = max(round(_HELD_OUT * n), 1) if n >= 3 else 0
    order = np.random.default_rng(seed).permutation(n)
    # Within a split the source's order is kept: shuffling for training is the trainer's business.
    parts = {"train": order[2 * held :], "val": order[:held], "test": order[held : 2 * held]}
    return {name: [records[i] for i in sorted(part)] for name, part in parts.items()}


def _load_splits(name: str, files: dict[str, Path], limit: int | None) -> Dataset:
    splits: dict[str, list[Record]] = {}
    report = DataReport()
    for part, file in files.items():
        splits[part], one = _load_path(file, limit)
        report.rows += one.rows
        report.usable += one.usable
        report.broken += one.broken
        report.sources += one.sources
    return Dataset(name, splits, report)


def _load_prototypes(limit: int | None, seed: int) -> Dataset:
    records, broken = cache.records_of(prototypes.build_table(limit=limit), "prototype")
    report = DataReport(len(records) + len(broken), len(records), broken, ["the AFLOW prototypes that pymatgen ships"])
    return Dataset("prototypes", split(records, seed), report)


def _load_path(path: Path, limit: int | None) -> tuple[list[Record], DataReport]:
    """The crystals of one file or folder, from the cache if its content was parsed before."""
    key = cache.key_of(readers.files_of(path), readers.kind_of(path))
    table = cache.table_for(key, lambda first: parse(readers.read(path, first)), limit)
    records, broken = cache.records_of(table, _stem(path))
    if path.is_file():
        # Equal content under another name has the same entry: the name is this file's, not the first one's.
        broken = [b._replace(file=path.name) for b in broken]
    report = DataReport(len(records) + len(broken), len(records), broken, [str(path)])
    if not records:
        raise UserError(f"no usable row in {path}: {report.rows} read. {report.reasons()}".rstrip(". "))
    return records, report


def _stem(path: Path) -> str:
    """The name of a file without its suffixes."""
    return path.resolve().name if path.is_dir() else Path(path.name.removesuffix(".gz")).stem


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name.lower().replace("-", "").replace("_", ""), SOURCES, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    known = f"Data sets: {', '.join(SOURCES)}; or a path: {readers.FORMATS}."
    return f"no data set and no file is called {name!r}.{hint} {known}"
