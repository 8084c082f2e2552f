"""Reference energies for `rlgen.hull`, from a data set: `python -m rlgen.build_hull energy=m3gnet data=mp20`.

Keys: energy (auto | m3gnet | chgnet), data (a name or path as in `rlgen.data`), splits (train,val), out (a Parquet file
or folder; default: this package's assets). Every crystal is evaluated as it is in the data, without relaxing; elements
that the potential knows and the data lack are made (`rlgen.energies.elements`). Energies are kept in pieces in the
user's cache: run it again after an interruption and it goes on where it was.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pymatgen.core import Composition
from rich.progress import track

from rlgen.data import Record, cache_dir, load
from rlgen.energies import load_potential
from rlgen.energies.base import GraphPotential
from rlgen.energies.elements import make
from rlgen.types import UserError

#: Crystals between two savings of the energies.
PIECE = 512
DEFAULTS = {"energy": "auto", "data": "mp20", "splits": "train,val", "out": ""}
_SCHEMA = pa.schema([("id", pa.string()), ("formula", pa.string()), ("energy", pa.float64()), ("error", pa.string())])


def point_energies(records: Sequence[Record], potential: GraphPotential, folder: Path) -> list[tuple[str, float, str]]:
    """(reduced formula, energy in eV/atom, "") of each record, or (formula, NaN, reason); `folder` remembers them."""
    done = _remembered(folder)
    todo = [record for record in records if record.id not in done]
    # Crystals of like size make even batches.
    todo.sort(key=lambda record: len(record.numbers))
    pieces = [todo[i : i + PIECE] for i in range(0, len(todo), PIECE)]
    for piece in track(pieces, description=f"{potential.scale}: {len(todo):,} crystals", disable=not pieces):
        structures = [record.structure for record in piece]
        points = potential.evaluate(structures, forces=False)
        formulas = [structure.composition.reduced_formula for structure in structures]
        rows = {
            record.id: (formula, point.energy, point.error or "")
            for record, formula, point in zip(piece, formulas, points, strict=True)
        }
        _remember(folder, rows)
        done.update(rows)
    return [done[record.id] for record in records]


def _remembered(folder: Path) -> dict[str, tuple[str, float, str]]:
    tables = [pq.read_table(path, schema=_SCHEMA) for path in sorted(folder.glob("*.parquet"))]
    return {row["id"]: (row["formula"], row["energy"], row["error"]) for table in tables for row in table.to_pylist()}


def _remember(folder: Path, rows: Mapping[str, tuple[str, float, str]]) -> None:
    """Writes one more piece, aside first: an interruption leaves whole files only."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = [list(rows), *(list(column) for column in zip(*rows.values(), strict=True))]
    path = folder / f"{len(list(folder.glob('*.parquet'))):05d}.parquet"
    aside = path.with_suffix(".part")
    pq.write_table(pa.table(columns, schema=_SCHEMA), aside)
    aside.rename(path)


def lowest(rows: Sequence[tuple[str, float, str]]) -> dict[str, float]:
    """The lowest energy (eV/atom) of each formula among the rows that have one."""
    energies: dict[str, float] = {}
    for formula, energy, error in rows:
        if not error and np.isfinite(energy):
            energies[formula] = min(energy, energies.get(formula, np.inf))
    return energies


def made_elements(energies: Mapping[str, float], potential: GraphPotential) -> Iterator[tuple[str, float, str]]:
    """(reduced formula, energy, "made:<structure>") for each element without a crystal of its own."""
    present = {next(iter(c)).symbol for c in map(Composition, energies) if len(c) == 1}
    for symbol in track(sorted(potential.elements - present), description="missing elements"):
        crystal = make(symbol, potential)
        if crystal is None:
            print(f"{symbol}: no structure relaxed; compounds with it will have no hull")
        else:
            yield Composition(symbol).reduced_formula, crystal.energy, f"made:{crystal.kind}"


def write(
    path: Path, energies: Mapping[str, float], sources: Mapping[str, str], provenance: Mapping[str, object]
) -> None:
    """One row a formula: reduced_formula, energy_per_atom (float32 eV/atom), source."""
    formulas = sorted(energies)
    table = pa.table(
        {
            "reduced_formula": pa.array(formulas, pa.string()),
            "energy_per_atom": pa.array([energies[f] for f in formulas], pa.float32()),
            "source": pa.array([sources[f] for f in formulas]).dictionary_encode(),
        }
    ).replace_schema_metadata({"rlgen": json.dumps(provenance)})
    pq.write_table(table, path, compression="zstd", compression_level=19, use_dictionary=["source"])


def build(energy: str, data: str, splits: Sequence[str], out: str) -> Path:
    """Evaluates, adds missing elements, writes; returns the file written."""
    potential = load_potential(energy)
    assert isinstance(potential, GraphPotential)
    # Bulk caesium is atoms without neighbours to a potential of 5 Å: as a reference that is right (see `base.py`).
    potential.allow_isolated = True
    dataset = load(data)
    unknown = set(splits) - set(dataset.splits)
    if unknown:
        raise UserError(f"splits={','.join(splits)}: {dataset.name} has {', '.join(dataset.splits)}")
    records = [record for split in splits for record in dataset.splits[split]]
    rows = point_energies(records, potential, cache_dir() / "hull" / potential.scale / Path(data).stem)
    energies = lowest(rows)
    sources = dict.fromkeys(energies, dataset.name)
    made = list(made_elements(energies, potential))
    for formula, value, source in made:
        energies[formula], sources[formula] = value, source
    failed = sum(bool(error) for _, _, error in rows)
    provenance = {
        "scale": potential.scale,
        "data": dataset.name,
        "splits": list(splits),
        "crystals": len(rows),
        "failed": failed,
        "formulas": len(energies),
        "made": {formula: source for formula, _, source in made},
        "geometry": "as in the data; made crystals relaxed",
        "versions": {name: version(name) for name in ("matgl", "chgnet", "torch", "pymatgen")},
    }
    path = Path(out) if out else Path(__file__).parent / "assets"
    path = path if path.suffix == ".parquet" else path / f"hull_{potential.scale}.parquet"
    write(path, energies, sources, provenance)
    print(f"{path}: {len(energies):,} formulas of {len(rows):,} crystals ({failed} failed), {len(made)} elements made")
    return path


def main(arguments: Sequence[str]) -> None:
    given = dict(DEFAULTS)
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key not in DEFAULTS or not equals:
            raise UserError(f"{argument}: keys are {', '.join(f'{k}=' for k in DEFAULTS)}")
        given[key] = value
    build(given["energy"], given["data"], [s for s in given["splits"].split(",") if s], given["out"])


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
