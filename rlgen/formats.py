"""Crystals in the files that other tools read: CIF, extxyz, ASE's database, pymatgen's JSON, LeMat-GenBench's table.

Whatever a file cannot hold, as an undecodable sample, is left out of it; JSON and the table have an empty place there.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import pandas as pd
from pymatgen.core import Structure
from pymatgen.io.ase import AseAtomsAdaptor
from pymatgen.io.cif import CifWriter

from rlgen.types import CrystalError, UserError

if TYPE_CHECKING:
    from ase import Atoms

Crystal = Structure | CrystalError


class Format(NamedTuple):
    """name: of its file or folder; write: puts the crystals there."""

    name: str
    write: Callable[[Path, Sequence[Crystal]], None]


def to_cif(structure: Structure) -> str:
    """The structure as written, in P1, to 8 digits."""
    return str(CifWriter(structure, significant_figures=8))


def write_cifs(folder: Path, crystals: Sequence[Crystal]) -> None:
    """`000000.cif…`, named by sample."""
    folder.mkdir()
    for index, structure in _decoded(crystals):
        (folder / f"{index:06d}.cif").write_text(to_cif(structure), encoding="utf-8")


def write_frames(path: Path, crystals: Sequence[Crystal]) -> None:
    """One extxyz frame for each crystal, with the `index` of its sample and its `formula`."""
    from ase.io import write as write_atoms

    frames = []
    for index, structure in _decoded(crystals):
        atoms = _atoms(structure)
        atoms.info = {"index": index, "formula": structure.composition.reduced_formula}
        frames.append(atoms)
    if frames:
        write_atoms(path, frames, format="extxyz")
    else:
        path.touch()


def write_database(path: Path, crystals: Sequence[Crystal]) -> None:
    """ASE's SQLite database, each crystal with the key `sample`."""
    from ase.db import connect

    with connect(str(path), type="db", use_lock_file=False) as database:
        for index, structure in _decoded(crystals):
            database.write(_atoms(structure), sample=index)


def write_json(path: Path, crystals: Sequence[Crystal]) -> None:
    """A list of pymatgen's dictionaries, which `monty.serialization.loadfn` makes crystals of; null where there is
    none."""
    listed = [crystal.as_dict() if isinstance(crystal, Structure) else None for crystal in crystals]
    path.write_text(json.dumps(listed), encoding="utf-8")


def write_lemat(path: Path, crystals: Sequence[Crystal]) -> None:
    """The table that LeMat-GenBench's `scripts/run_benchmarks.py --csv` reads: a CIF in `cif_string`; where there is
    none an empty cell, which it leaves out of its count of samples."""
    cifs = [to_cif(crystal) if isinstance(crystal, Structure) else None for crystal in crystals]
    pd.DataFrame({"sample": range(len(cifs)), "cif_string": cifs}).to_csv(path, index=False)


#: docs/evaluation.md says what reads each.
FORMATS: dict[str, Format] = {
    "cif": Format("cif", write_cifs),
    "extxyz": Format("samples.extxyz", write_frames),
    "db": Format("samples.db", write_database),
    "json": Format("samples.json", write_json),
    "lemat": Format("lemat.csv", write_lemat),
}


def chosen(formats: str) -> list[Format]:
    """The formats of a list such as "cif,db". UserError: an unknown one."""
    names = [name.strip() for name in formats.split(",") if name.strip()]
    for name in names:
        if name not in FORMATS:
            raise UserError(f"formats={formats}: {name!r} is unknown; known: {', '.join(FORMATS)}")
    return [FORMATS[name] for name in dict.fromkeys(names)]


def frames(file: Path) -> Iterator[str | CrystalError]:
    """An extxyz file frame by frame, so that a broken one does not take the rest along."""
    lines = file.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()

    def begins(line: int) -> bool:
        """A number of atoms, and a comment that names a lattice."""
        return lines[line].strip().isdigit() and "lattice=" in lines[line + 1].lower()

    start = 0
    while start < len(lines):
        if lines[start].strip().isdigit():
            end = start + 2 + int(lines[start])
            yield "\n".join(lines[start:end]) + "\n"
        else:
            end = next((i for i in range(start + 1, len(lines) - 1) if begins(i)), len(lines))
            yield CrystalError("parse", f"line {start + 1} is not a number of atoms: {lines[start][:40]!r}")
        start = end


def structure_from_frame(chunk: str | CrystalError) -> Structure:
    """The crystal of a frame. CrystalError: it has no cell, or is the error itself."""
    from ase.io import read as read_atoms

    if isinstance(chunk, CrystalError):
        raise chunk
    return structure_from_atoms(cast("Atoms", read_atoms(io.StringIO(chunk), format="extxyz")))


def structure_from_atoms(atoms: Atoms) -> Structure:
    """ASE's atoms as a crystal. CrystalError: they have no cell."""
    if atoms.cell.rank < 3:
        raise CrystalError("geometry", "the frame has no three-dimensional cell")
    return AseAtomsAdaptor.get_structure(atoms)


def database(file: Path) -> list[Atoms]:
    """All rows of ASE's database. UserError: it is none."""
    import sqlite3

    from ase.db import connect

    try:
        return [row.toatoms() for row in connect(str(file), type="db", use_lock_file=False).select()]
    except (sqlite3.Error, KeyError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as a database of ASE: {error}") from error


def dictionaries(file: Path) -> list[dict | CrystalError]:
    """pymatgen's dictionaries in a JSON file, a list or one; an error where there is none. UserError: it is no JSON."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: cannot be read as JSON: {error}") from error
    listed = found if isinstance(found, list) else [found]
    return [one if isinstance(one, dict) else CrystalError("parse", "no crystal in this place") for one in listed]


def structure_from_dictionary(one: dict | CrystalError) -> Structure:
    """The crystal of pymatgen's dictionary, or the error raised."""
    if isinstance(one, CrystalError):
        raise one
    return Structure.from_dict(one)


def _decoded(crystals: Sequence[Crystal]) -> Iterator[tuple[int, Structure]]:
    return ((index, crystal) for index, crystal in enumerate(crystals) if isinstance(crystal, Structure))


def _atoms(structure: Structure) -> Atoms:
    bare = Structure(structure.lattice, structure.species, structure.frac_coords)
    return AseAtomsAdaptor.get_atoms(bare, msonable=False)
