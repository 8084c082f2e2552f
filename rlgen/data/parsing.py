"""From the text of one crystal to arrays, in several processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from rlgen.data.progress import bar

if TYPE_CHECKING:
    from pymatgen.core import Structure

#: Below this many rows the start of other processes (each imports pymatgen) costs more than it saves.
_SERIAL = 2000
_CHUNK = 250

Kind = Literal["cif", "poscar", "json", "xyz", "broken"]


@dataclass(frozen=True, slots=True)
class RawRow:
    """One crystal as text. kind: how the text is written; "broken": the text is the reason why there is none."""

    file: str
    row: int
    id: str
    kind: Kind
    text: str
    properties: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Row:
    """One parsed crystal: lattice (9,) Å, numbers (N,), frac_coords (3N,); or, with a reason, none."""

    file: str
    row: int
    id: str
    reason: str = ""
    lattice: np.ndarray | None = None
    numbers: np.ndarray | None = None
    frac_coords: np.ndarray | None = None
    properties: dict[str, float] = field(default_factory=dict)


def parse(rows: list[RawRow]) -> list[Row]:
    """Parse rows, in order, with a progress bar. A row that gives no crystal comes back with its reason."""
    with bar("Parsing crystals", len(rows)) as progress:
        workers = min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        if len(rows) >= _SERIAL and workers > 1 and not multiprocessing.current_process().daemon:
            try:
                return _parse_parallel(rows, workers, progress.advance)
            except BrokenProcessPool:
                # Spawned processes import the caller's script again; one without a __main__ guard ends them.
                warnings.warn(
                    "parsing in other processes failed (no __main__ guard?); parsing in this one", stacklevel=2
                )
        parsed = []
        for row in rows:
            parsed.append(_parse_row(row))
            progress.advance(1)
        return parsed


def _parse_parallel(rows: list[RawRow], workers: int, advance: Callable[[float], None]) -> list[Row]:
    chunks = [rows[i : i + _CHUNK] for i in range(0, len(rows), _CHUNK)]
    parsed: list[Row] = []
    # Spawned, not forked: the caller may hold threads (torch, Ray) that a fork would leave locked.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for chunk in pool.map(_parse_chunk, chunks):
            parsed.extend(chunk)
            advance(len(chunk))
    return parsed


def _parse_chunk(rows: list[RawRow]) -> list[Row]:
    return [_parse_row(row) for row in rows]


def _parse_row(raw: RawRow) -> Row:
    broken = partial(Row, raw.file, raw.row, raw.id)
    if raw.kind == "broken":
        return broken(reason=raw.text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            structure, properties = _READERS[raw.kind](raw.text)
    # Parsers of other people's files raise anything; whatever it is, it is this row's reason and nobody else's.
    except Exception as error:
        return broken(reason=_first_line(error))
    return row_of(structure, file=raw.file, row=raw.row, id=raw.id, properties={**properties, **raw.properties})


def row_of(structure: Structure, *, file: str, row: int, id: str, properties: dict[str, float]) -> Row:
    """A row of arrays from a Structure, or one with the reason why the structure is none of ours."""
    reason = _unusable(structure)
    if reason:
        return Row(file, row, id, reason)
    return Row(
        file,
        row,
        id,
        "",
        np.ascontiguousarray(structure.lattice.matrix, dtype=np.float64).reshape(9),
        np.array([site.specie.Z for site in structure], dtype=np.uint8),
        np.ascontiguousarray(structure.frac_coords, dtype=np.float64).reshape(-1),
        {name: float(value) for name, value in properties.items() if np.isfinite(value)},
    )


def _unusable(structure: Structure) -> str:
    from pymatgen.core import DummySpecies

    if len(structure) == 0:
        return "no atoms"
    if any(structure.site_properties.get("implicit_hydrogens", ())):
        return "hydrogen atoms without positions"
    if not structure.is_ordered:
        return "disordered: a site is partly occupied or shared by elements"
    dummies = {str(s.specie) for s in structure if isinstance(s.specie, DummySpecies)}
    if dummies:
        return f"not an element: {', '.join(sorted(dummies))}"
    if not (np.isfinite(structure.lattice.matrix).all() and np.isfinite(structure.frac_coords).all()):
        return "a coordinate or lattice parameter is not a finite number"
    if structure.volume < 1e-3:
        return "the cell has no volume"
    return ""


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    # pymatgen's first line only says which section failed; the cause is the second.
    text = lines[1] if len(lines) > 1 and lines[0].startswith("No structure parsed") else (lines or [""])[0]
    return f"{type(error).__name__}: {text}"[:300]


Parsed = tuple["Structure", dict[str, float]]


def _read_cif(text: str) -> Parsed:
    from pymatgen.io.cif import CifParser

    parser = CifParser.from_str(text, check_cif=False)
    structures = parser.parse_structures(primitive=False, on_error="raise")
    return structures[0], {}


def _read_poscar(text: str) -> Parsed:
    from pymatgen.io.vasp import Poscar
    from pymatgen.io.vasp.inputs import BadPoscarWarning

    with warnings.catch_warnings():
        # Without element names pymatgen invents some, with a warning only.
        warnings.simplefilter("error", BadPoscarWarning)
        return Poscar.from_str(text, read_velocities=False).structure, {}


def _read_json(text: str) -> Parsed:
    from pymatgen.core import Structure

    structure = Structure.from_dict(json.loads(text))
    return structure, numeric(structure.properties or {})


def _read_xyz(text: str) -> Parsed:
    import io

    from ase import Atoms
    from ase.io import read
    from pymatgen.io.ase import AseAtomsAdaptor

    atoms = read(io.StringIO(text), format="extxyz")
    assert isinstance(atoms, Atoms), "one frame was asked for"
    if not atoms.pbc.all() or atoms.cell.rank < 3:
        raise ValueError("no cell that is periodic in three directions")
    properties = numeric(atoms.info)
    if atoms.calc is not None:
        properties.update(numeric(atoms.calc.results))
    atoms.calc = None
    return AseAtomsAdaptor.get_structure(atoms), properties


_READERS: dict[str, Callable[[str], Parsed]] = {
    "cif": _read_cif,
    "poscar": _read_poscar,
    "json": _read_json,
    "xyz": _read_xyz,
}


def numeric(values: dict) -> dict[str, float]:
    """The finite numbers among the values (no booleans)."""
    return {
        str(name): float(value)
        for name, value in values.items()
        if isinstance(value, (int, float, np.integer, np.floating))
        and not isinstance(value, bool)
        and np.isfinite(value)
    }
