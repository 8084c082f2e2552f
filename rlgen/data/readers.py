"""From files to the text of single crystals: CSV, Parquet, JSON lines, extended XYZ, and folders of CIF and POSCAR."""

from __future__ import annotations

import csv
import gzip
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from rlgen.data.parsing import RawRow, numeric
from rlgen.types import UserError

FORMATS = "CSV or JSON lines (both also .gz), Parquet, extended XYZ, CIF, POSCAR, or a folder of CIF and POSCAR files"
_IDS = ("material_id", "id", "mp_id", "name")
_MISSING = {"", "na", "n/a", "nan", "none", "null"}
#: A column is numeric if at least this share of its filled fields are numbers; a row with another field is broken.
_NUMERIC_SHARE = 0.9


def files_of(path: Path) -> list[Path]:
    """The files that hold the crystals of a path: itself, or the CIF and POSCAR files below a folder, sorted."""
    if not path.exists():
        raise UserError(f"no such file or folder: {path}")
    if path.is_file():
        if _reader_of(path) is None:
            raise UserError(f"cannot tell the format of {path} from its name; known: {FORMATS}")
        return [path]
    found = sorted(file for file in path.rglob("*") if _reader_of(file) in (_cif, _poscar) and file.is_file())
    if not found:
        raise UserError(f"no CIF or POSCAR file (*.cif, *.vasp, POSCAR*, CONTCAR*) in the folder {path}")
    return found


def kind_of(path: Path) -> str:
    """What besides content decides how a path is read: its format; for a folder the names of its files."""
    if path.is_dir():
        return "folder:" + "|".join(str(file.relative_to(path)) for file in files_of(path))
    reader = _reader_of(path)
    return (reader.__name__ if reader else "") + (":gz" if path.suffix == ".gz" else "")


def read(path: Path, limit: int | None = None) -> list[RawRow]:
    """The raw rows of a file or folder, at most the first `limit`. UserError: not a table that can be read at all."""
    rows = _folder(path) if path.is_dir() else _file(path, limit)
    return list(islice(rows, limit))


def _file(path: Path, limit: int | None) -> Iterator[RawRow]:
    reader = _reader_of(path)
    assert reader is not None, "files_of refuses unknown formats"
    try:
        yield from reader(path, limit)
    except (EOFError, gzip.BadGzipFile, OSError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _folder(path: Path) -> Iterator[RawRow]:
    for file in files_of(path):
        inside = file.relative_to(path)
        for raw in _file(file, None):
            suffix = "" if raw.row == 1 else f"-{raw.row}"
            # A folder of calculations holds many files called POSCAR: the id needs the folder's name too.
            yield RawRow(str(inside), raw.row, _bare(str(inside)) + suffix, raw.kind, raw.text)


def _bare(name: str) -> str:
    """A name without a suffix of ours: POSCAR.1 and POSCAR.2 stay two."""
    name = name.removesuffix(".gz")
    return name.removesuffix(Path(name).suffix) if Path(name).suffix.lower() in _READERS else name


def _open(path: Path) -> TextIO:
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig", errors="replace", newline="")


def _csv(path: Path, limit: int | None) -> Iterator[RawRow]:
    csv.field_size_limit(2**31 - 1)  # a CIF of a large cell is longer than csv's default of 128 KiB
    with _open(path) as stream:
        reader = csv.reader(stream)
        header = next(reader, None)
        if header is None:
            raise UserError(f"{path} is empty")
        _require(path, header)
        table = list(islice(reader, limit))
    rows = [dict(zip(header, fields, strict=False)) if len(fields) == len(header) else len(fields) for fields in table]
    columns = _numeric_columns([row for row in rows if isinstance(row, dict)])
    for number, row in enumerate(rows, 1):
        if isinstance(row, int):
            yield RawRow(path.name, number, "", "broken", f"{row} fields, the header has {len(header)}")
        else:
            yield _table_row(path.name, number, row, columns)


def _parquet(path: Path, limit: int | None) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except pa.ArrowException as error:
        raise UserError(f"cannot read {path}: {error}") from error
    _require(path, table.column_names)
    numbers = (pa.types.is_integer, pa.types.is_floating)
    columns = {field.name for field in table.schema if any(holds(field.type) for holds in numbers)}
    for number, row in enumerate(table.slice(0, limit).to_pylist(), 1):
        yield _table_row(path.name, number, row, columns)


def _require(path: Path, columns: Iterable[str]) -> None:
    if not {"cif", "structure"} & set(columns):
        shown = ", ".join(sorted(c for c in columns if c)) or "none"
        raise UserError(f"{path} has no column `cif` (or `structure`, a pymatgen dict); its columns: {shown}")


def _numeric_columns(rows: list[dict[str, str]]) -> set[str]:
    """The columns whose filled fields are numbers, but for the odd one. A column without a name is an index."""
    found = set()
    for name in rows[0] if rows else ():
        if not name or name in _IDS or name in ("cif", "structure"):
            continue
        filled = [row[name] for row in rows if row[name].strip().lower() not in _MISSING]
        if filled and sum(_number(value) is not None for value in filled) >= _NUMERIC_SHARE * len(filled):
            found.add(name)
    return found


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _table_row(file: str, number: int, row: dict[str, Any], numeric_columns: set[str]) -> RawRow:
    """A row of a CSV or Parquet table. Missing, empty and not finite values are absent properties."""
    identity = _identity(row)
    properties: dict[str, float] = {}
    for name in numeric_columns - set(_IDS):
        value = row[name]
        if value is None or str(value).strip().lower() in _MISSING:
            continue
        parsed = _number(value)
        if parsed is None:
            return RawRow(file, number, identity, "broken", f"{name} is not a number: {value!r}")
        if math.isfinite(parsed):
            properties[name] = parsed
    return _crystal(file, number, identity, row, properties)


def _identity(row: dict[str, Any]) -> str:
    for name in _IDS:
        value = row.get(name)
        if value is not None and str(value).strip():
            return str(value)
    return ""


def _crystal(file: str, number: int, identity: str, row: dict[str, Any], properties: dict[str, float]) -> RawRow:
    """A row from its `cif` (text) or `structure` (pymatgen dict, or one as JSON text)."""
    cif, structure = row.get("cif"), row.get("structure")
    if isinstance(cif, str) and cif.strip():
        return RawRow(file, number, identity, "cif", cif, properties)
    if structure:
        text = structure if isinstance(structure, str) else json.dumps(structure, default=str)
        return RawRow(file, number, identity, "json", text, properties)
    column = "cif" if "cif" in row or "structure" not in row else "structure"
    return RawRow(file, number, identity, "broken", f"the column `{column}` is empty")


def _jsonl(path: Path, limit: int | None) -> Iterator[RawRow]:
    with _open(path) as stream:
        lines = list(islice((line for line in stream if line.strip()), limit))
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            yield RawRow(path.name, number, "", "broken", f"not JSON: {error}")
            continue
        if not isinstance(row, dict):
            yield RawRow(path.name, number, "", "broken", "not a JSON object")
        elif "lattice" in row and "sites" in row:
            yield RawRow(path.name, number, _identity(row), "json", line)
        elif "cif" in row or "structure" in row:
            nested = row.get("properties")
            values = {**(nested if isinstance(nested, dict) else {}), **row}
            properties = {name: value for name, value in numeric(values).items() if name not in _IDS}
            yield _crystal(path.name, number, _identity(row), row, properties)
        else:
            yield RawRow(path.name, number, "", "broken", "neither `cif` nor `structure`, and no pymatgen dict")


def _extxyz(path: Path, limit: int | None) -> Iterator[RawRow]:
    """Frames are cut here by their counts, so that one broken frame does not take the rest of the file with it."""
    with _open(path) as stream:
        number = 0
        while line := stream.readline():
            if not line.strip():
                continue
            number += 1
            try:
                count = int(line)
            except ValueError:
                yield RawRow(path.name, number, "", "broken", f"not a count of atoms: {line.strip()[:40]!r}; stopped")
                return
            body = list(islice(stream, count + 1))
            identity = re.search(r"\b(?:material_id|id|mp_id|name)=(\"[^\"]*\"|\S+)", body[0]) if body else None
            name = identity.group(1).strip('"') if identity else ""
            if len(body) < count + 1:
                yield RawRow(path.name, number, name, "broken", f"the file ends within a frame of {count} atoms")
            else:
                yield RawRow(path.name, number, name, "xyz", line + "".join(body))


def _cif(path: Path, limit: int | None) -> Iterator[RawRow]:
    with _open(path) as stream:
        text = stream.read()
    # A CIF may hold several crystals, each in its data block, and blocks that hold none.
    blocks = [block for block in re.split(r"(?mi)^(?=data_)", text) if "_atom_site_" in block.lower()]
    for number, block in enumerate(blocks or [text], 1):
        suffix = "" if number == 1 else f"-{number}"
        yield RawRow(path.name, number, _bare(path.name) + suffix, "cif", block)


def _poscar(path: Path, limit: int | None) -> Iterator[RawRow]:
    with _open(path) as stream:
        yield RawRow(path.name, 1, _bare(path.name), "poscar", stream.read())


Reader = Callable[[Path, int | None], Iterator[RawRow]]


def _reader_of(path: Path) -> Reader | None:
    """By suffix; POSCAR and CONTCAR files often have none."""
    name = path.name.lower().removesuffix(".gz")
    if name.startswith(("poscar", "contcar")):
        return _poscar
    return _READERS.get(Path(name).suffix)


_READERS: dict[str, Reader] = {
    ".csv": _csv,
    ".parquet": _parquet,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".extxyz": _extxyz,
    ".xyz": _extxyz,
    ".cif": _cif,
    ".vasp": _poscar,
    ".poscar": _poscar,
}
