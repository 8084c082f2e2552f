"""The samples table: every crystal drawn, the undecodable ones too, as Parquet, and beside it files for other tools.

Whatever cannot be read back stays in the table as a `CrystalError`, because every metric is over all samples drawn.
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import pandas as pd
from pymatgen.core import DummySpecies, Structure

from rlgen import formats as files
from rlgen.formats import FORMATS, Crystal, to_cif
from rlgen.types import CrystalError, FailureKind, UserError

TABLE = "samples.parquet"
FOLDER = FORMATS["cif"].name
#: Where a run keeps the samples of each step until they are merged.
PARTS = "samples"
#: A folder of this name says that a write was cut off.
_UNFINISHED = ".unfinished-"
TABLES: dict[str, Callable[..., pd.DataFrame]] = {
    ".parquet": pd.read_parquet,
    ".csv": pd.read_csv,
    ".jsonl": lambda path: pd.read_json(path, lines=True, dtype=False, convert_dates=False),
}
_FRAMES = (".extxyz", ".xyz")
_FILES = (".cif", ".poscar", ".vasp", ".contcar")
_DATABASE, _JSON = ".db", ".json"
_KNOWN = [*TABLES, *_FRAMES, *_FILES, _DATABASE, _JSON]
#: Columns that may hold a CIF: ours, and LeMat-GenBench's.
_CIFS = ("cif", "cif_string")


@dataclass
class SampleTable:
    """B samples as read: the crystals, a name for each, and the table's other columns if it was a table."""

    crystals: list[Crystal]
    names: list[str]
    columns: pd.DataFrame | None = None


def frame(crystals: Sequence[Crystal], columns: Mapping[str, Sequence[Any] | np.ndarray] | None = None) -> pd.DataFrame:
    """The table (B rows): `index`, `cif` (null if undecodable), `formula`, `error` ("kind: message"), `columns`."""
    table: dict[str, Any] = {
        "index": np.arange(len(crystals)),
        "cif": [to_cif(c) if isinstance(c, Structure) else None for c in crystals],
        "formula": [c.composition.reduced_formula if isinstance(c, Structure) else None for c in crystals],
        "error": [str(c) if isinstance(c, CrystalError) else None for c in crystals],
    }
    # Typed, or a column without any value would have another type than the same column of the next step.
    table |= {name: pd.array(table[name], dtype="string") for name in ("cif", "formula", "error")}
    for name, values in (columns or {}).items():
        if name in table:
            raise ValueError(f"the column {name!r} is the samples table's own")
        if len(values) != len(crystals):
            raise ValueError(f"the column {name!r} has {len(values)} rows, the samples are {len(crystals)}")
        # Conditions differ in their keys from row to row: as JSON they stay one plain column.
        table[name] = [json.dumps(v, sort_keys=True) if isinstance(v, Mapping) else v for v in values]
    return pd.DataFrame(table)


def write(
    directory: Path | str,
    crystals: Sequence[Crystal],
    columns: Mapping[str, Sequence[Any] | np.ndarray] | None = None,
    formats: str = "cif,extxyz",
) -> Path:
    """Write `samples.parquet`, and beside it the `rlgen.formats.FORMATS` asked for; replaces earlier samples.

    columns: further columns (B,) of the Parquet table. Everything is written aside and renamed; a reader refuses a
    folder in which that was cut off.
    """
    wanted = files.chosen(formats)
    table = frame(crystals, columns)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    aside = directory / f"{_UNFINISHED}{uuid.uuid4().hex[:8]}"
    aside.mkdir()
    try:
        for one in wanted:
            one.write(aside / one.name, crystals)
        table.to_parquet(aside / TABLE, index=False)
    except BaseException:
        shutil.rmtree(aside)  # nothing was replaced yet
        raise
    for stale in [path for path in directory.glob(f"{_UNFINISHED}*") if path != aside]:
        shutil.rmtree(stale)
    for name in (*(one.name for one in FORMATS.values()), TABLE):
        if (directory / name).exists():
            (directory / name).rename(aside / f"old-{name}")
        if (aside / name).exists():
            (aside / name).rename(directory / name)
    shutil.rmtree(aside)
    return directory


def read(path: Path | str) -> SampleTable:
    """Samples from a folder that `write` or a run filled, a folder of CIF/POSCAR files, a table with a `cif` column
    (Parquet, CSV, JSONL), an extxyz file, ASE's database or pymatgen's JSON. UserError if there is nothing usable."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen warns about every rounded coordinate
        samples = _read_folder(path) if path.is_dir() else _read_file(path)
    if not samples.crystals:
        raise UserError(f"{path}: holds no samples (looked for {', '.join(_KNOWN)})")
    if not any(isinstance(crystal, Structure) for crystal in samples.crystals):
        first = samples.crystals[0]
        raise UserError(f"{path}: none of {len(samples.crystals)} samples is a crystal; the first: {first}")
    return samples


def from_cif(text: str) -> Crystal:
    """One crystal from a CIF, or why there is none."""
    return _parse(lambda cif: Structure.from_str(cif, fmt="cif"), text)


def _read_folder(folder: Path) -> SampleTable:
    if any(folder.glob(f"{_UNFINISHED}*")):
        raise UserError(f"{folder}: writing the samples was cut off here; write them again")
    parts = sorted((folder / PARTS).glob("step_*.parquet"))
    if parts:  # a run that was killed, or still goes on: its last steps lie beside the table
        tables = [pd.read_parquet(part) for part in [folder / TABLE, *parts] if part.exists()]
        return _from_table(pd.concat(tables).drop_duplicates(["step", "index"], keep="last", ignore_index=True), folder)
    if (folder / TABLE).exists():
        return _read_table(folder / TABLE)
    files = sorted((file for file in folder.iterdir() if _is_crystal_file(file)), key=_natural)
    if files:
        return SampleTable([_parse(_structure_from, file) for file in files], [f.stem for f in files])
    if (folder / FOLDER).is_dir():
        return _read_folder(folder / FOLDER)
    single = [file for file in folder.iterdir() if file.suffix.lower() in (*_FRAMES, *TABLES)]
    if len(single) > 1:
        raise UserError(f"{folder}: holds {', '.join(sorted(file.name for file in single))}: name the one to read")
    return _read_file(single[0]) if single else SampleTable([], [])


def _read_file(file: Path) -> SampleTable:
    suffix = file.suffix.lower()
    if suffix in TABLES:
        return _read_table(file)
    if suffix in _FRAMES:
        return _numbered(file, files.structure_from_frame, files.frames(file))
    if suffix == _DATABASE:
        return _numbered(file, files.structure_from_atoms, files.database(file))
    if suffix == _JSON:
        return _numbered(file, files.structure_from_dictionary, files.dictionaries(file))
    if _is_crystal_file(file):
        return SampleTable([_parse(_structure_from, file)], [file.stem])
    raise UserError(f"{file}: unknown kind of file (known: {', '.join(_KNOWN)})")


def _numbered(file: Path, parse: Callable[[Any], Structure], sources: Iterable[Any]) -> SampleTable:
    crystals = [_parse(parse, source) for source in sources]
    return SampleTable(crystals, [f"{file.stem}-{i}" for i in range(len(crystals))])


def table_of(file: Path) -> pd.DataFrame:
    """A Parquet, CSV or JSONL file as it is. UserError: it is broken."""
    try:
        return TABLES[file.suffix.lower()](file)
    except (ValueError, OSError) as error:  # pandas' and pyarrow's parse errors are ValueErrors
        raise UserError(f"{file}: cannot be read as a table: {error}") from error


def _read_table(file: Path) -> SampleTable:
    return _from_table(table_of(file), file)


def _from_table(table: pd.DataFrame, source: Path) -> SampleTable:
    column = next((name for name in _CIFS if name in table), None)
    if column is None:
        raise UserError(f"{source}: has no column 'cif' (it has: {', '.join(map(str, table.columns))})")
    errors = table["error"] if "error" in table else [None] * len(table)
    crystals = [
        from_cif(cif) if isinstance(cif, str) and cif.strip() else _stored_error(error)
        for cif, error in zip(table[column], errors, strict=True)
    ]
    label = next((name for name in ("name", "id", "material_id", "index", "sample") if name in table), None)
    names = [str(name) for name in (table[label] if label else range(len(table)))]
    return SampleTable(crystals, names, table.drop(columns=[column]))


def _stored_error(error: Any) -> CrystalError:
    """The error that `frame` wrote as "kind: message"."""
    if not isinstance(error, str) or not error:
        return CrystalError("parse", "no CIF in this row")
    kind, separator, message = error.partition(": ")
    if separator and kind in get_args(FailureKind):
        return CrystalError(cast(FailureKind, kind), message)
    return CrystalError("parse", error)


def _structure_from(file: Path) -> Structure:
    text = file.read_text(encoding="utf-8")
    return Structure.from_str(text, fmt="cif" if file.suffix.lower() == ".cif" else "poscar")


def _parse(parse: Callable[[Any], Structure], source: Any) -> Crystal:
    try:
        return _checked(parse(source))
    except CrystalError as error:
        return error
    except Exception as error:  # a parser may raise anything on a broken file, and the sample must stay in the table
        return CrystalError("parse", f"{type(error).__name__}: {error}"[:200])


def _checked(structure: Structure) -> Structure:
    """A plain crystal: elements only, every site full, finite numbers."""
    if not structure.is_ordered:
        raise CrystalError("chemistry", "has partially occupied sites")
    if any(isinstance(specie, DummySpecies) for specie in structure.species):
        raise CrystalError("chemistry", "has sites that are not an element")
    finite = np.isfinite(structure.frac_coords).all() and np.isfinite(structure.lattice.matrix).all()
    if len(structure) == 0 or not finite or structure.volume < 1e-6:
        raise CrystalError("geometry", "has no atoms, no volume or coordinates that are no numbers")
    return structure.remove_oxidation_states()


def _is_crystal_file(file: Path) -> bool:
    return file.is_file() and (file.suffix.lower() in _FILES or file.name.upper().startswith(("POSCAR", "CONTCAR")))


def _natural(file: Path) -> list[tuple[int, str]]:
    """Sorts `10.cif` after `9.cif`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", file.name)]
