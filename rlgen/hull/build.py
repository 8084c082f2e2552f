"""Builds a hull from a data set: the energy of every crystal, computed by reward workers, and missing elements."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pymatgen.core import Composition, Element, Structure
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rlgen.data import Record, cache_dir, load
from rlgen.data.cache import write_aside
from rlgen.energies import has_forces, load_potential
from rlgen.energies.elements import make
from rlgen.hull import built, file_name
from rlgen.reward_pool import RewardPool
from rlgen.settings import RayConfig
from rlgen.types import Condition, UserError

_PIECE = pa.schema([("key", pa.string()), ("formula", pa.string()), ("energy", pa.float64()), ("source", pa.string())])


class Reference(NamedTuple):
    """A reference crystal: reduced formula, energy in eV/atom, and where it comes from ("made:fcc", or a data set)."""

    formula: str
    energy: float
    source: str


@dataclass(frozen=True)
class PointEnergy:
    """Energies (eV/atom) of crystals as they are, measured by the pool as if they were a reward."""

    energy: str

    name: ClassVar[str] = "energy"
    unit: ClassVar[str] = "eV/atom"
    per_sample: ClassVar[bool] = True

    def warm_up(self) -> None:
        load_potential(self.energy)

    def measure(self, structures: Sequence[Structure], conditions: Sequence[Condition]) -> np.ndarray:
        return self.measure_with_reasons(structures, conditions)[0]

    def measure_with_reasons(
        self, structures: Sequence[Structure], conditions: Sequence[Condition]
    ) -> tuple[np.ndarray, list[str]]:
        potential = load_potential(self.energy)
        # Bulk caesium is atoms without neighbours to a potential of 5 Å: as a reference that is right.
        potential.allow_isolated = True
        try:
            points = potential.evaluate(structures, forces=False)
        finally:
            potential.allow_isolated = False
        return np.array([point.energy for point in points]), [point.error or "" for point in points]

    def transform(self, raw: np.ndarray) -> np.ndarray:
        return np.where(np.isnan(raw), np.nan, 1.0)


class Pieces:
    """Energies that were computed, on disk: a build that is killed goes on from the last piece. folder: of a scale."""

    def __init__(self, folder: Path):
        self.folder = folder
        tables = [pq.read_table(path, schema=_PIECE) for path in sorted(folder.glob("*.parquet"))]
        rows = [row for table in tables for row in table.to_pylist()]
        self.found = {row["key"]: Reference(row["formula"], row["energy"], row["source"]) for row in rows}

    def save(self, rows: Mapping[str, Reference]) -> None:
        """One more file, whole or not at all."""
        self.found |= rows
        if rows:
            columns = [list(rows), *(list(column) for column in zip(*rows.values(), strict=True))]
            table = pa.table(columns, schema=_PIECE)
            write_aside(self.folder / f"{next(iter(rows))}.parquet", lambda path: pq.write_table(table, path))


def key_of(record: Record) -> str:
    """A name for a crystal by its content, whatever data set it is in."""
    digest = hashlib.sha256(record.numbers.tobytes())
    digest.update(record.lattice.tobytes() + record.frac_coords.tobytes())
    return digest.hexdigest()[:32]


def evaluated(
    records: Sequence[Record], source: str, energy: str, pieces: Pieces, workers: int, ray: RayConfig, every: int
) -> tuple[list[Reference], list[str]]:
    """The references of a data set's crystals, and why others have none; saves after `every` crystals."""
    wanted = {key_of(record): record for record in records}
    todo = [(key, record) for key, record in wanted.items() if key not in pieces.found]
    # Crystals of like size make even batches.
    todo.sort(key=lambda item: len(item[1].numbers))
    print(f"{len(records):,} crystals, {len(wanted) - len(todo):,} energies are there already")
    failures: list[str] = []
    if todo:
        with RewardPool([PointEnergy(energy)], "energy", workers=workers, ray=ray) as pool, _bar() as bar:
            task = bar.add_task("energies", total=len(todo))
            for start in range(0, len(todo), every):
                piece = todo[start : start + every]
                structures = [record.structure for _, record in piece]
                scored = pool.score(structures)
                rows = {}
                for (key, record), structure, value, why in zip(
                    piece, structures, scored.raw[:, 0].tolist(), scored.reason, strict=True
                ):
                    if np.isfinite(value):
                        rows[key] = Reference(structure.composition.reduced_formula, value, source)
                    else:
                        failures.append(f"{record.id}: {why}")
                pieces.save(rows)
                bar.advance(task, len(piece))
    # A crystal that another data set has too was perhaps named after that one.
    return [pieces.found[key]._replace(source=source) for key in wanted if key in pieces.found], failures


def made_elements(references: Sequence[Reference], energy: str, pieces: Pieces) -> Iterator[Reference]:
    """A crystal for each element that occurs in the references without one of its own, made and relaxed."""
    systems = [Composition(formula).elements for formula in {reference.formula for reference in references}]
    occur = {element.symbol for system in systems for element in system}
    missing = sorted(occur - {system[0].symbol for system in systems if len(system) == 1})
    with _bar() as bar:
        for symbol in bar.track(missing, description="missing elements"):
            key = f"made-{symbol}"
            if key not in pieces.found:
                formula = Composition({Element(symbol): 1}).reduced_formula
                if has_forces(energy):
                    crystal = make(symbol, load_potential(energy))
                    if crystal is None:
                        print(f"{symbol}: no structure relaxed; crystals with it will have no hull")
                        continue
                    pieces.save({key: Reference(formula, crystal.energy, f"made:{crystal.kind}")})
                else:  # energies of formation: an element's is zero by definition
                    pieces.save({key: Reference(formula, 0.0, "made:by definition")})
            yield pieces.found[key]


def write(path: Path, scale: str, references: Sequence[Reference], provenance: Mapping[str, object]) -> int:
    """The lowest energy of each formula, one row each; returns how many formulas there are.

    Columns: reduced_formula, energy_per_atom (float32 eV/atom), source; the scale and the provenance as metadata.
    """
    lowest: dict[str, Reference] = {}
    for reference in references:
        if reference.formula not in lowest or reference.energy < lowest[reference.formula].energy:
            lowest[reference.formula] = reference
    rows = [lowest[formula] for formula in sorted(lowest)]
    metadata = {"scale": scale, "formulas": len(rows), **provenance}
    table = pa.table(
        {
            "reduced_formula": pa.array([row.formula for row in rows], pa.string()),
            "energy_per_atom": pa.array([row.energy for row in rows], pa.float32()),
            "source": pa.array([row.source for row in rows]).dictionary_encode(),
        }
    ).replace_schema_metadata({"rlgen": json.dumps(metadata)})
    write_aside(path, lambda aside: pq.write_table(
        table, aside, compression="zstd", compression_level=19, use_dictionary=["source"]
    ))  # fmt: skip
    return len(rows)


def build(energy: str, data: str, splits: str, output: str | None, workers: int, ray: RayConfig, every: int) -> Path:
    """Evaluates, adds missing elements, writes; returns the file written."""
    scale = load_potential(energy).scale
    dataset = load(data)
    names = [name for name in splits.split(",") if name]
    if not names or set(names) - set(dataset.splits):
        raise UserError(f"splits={splits}: {dataset.name} has {', '.join(dataset.splits)}")
    records = [record for name in names for record in dataset.splits[name]]
    pieces = Pieces(cache_dir() / "hull" / Path(file_name(scale)).stem)
    references, failures = evaluated(records, dataset.name, energy, pieces, workers, ray, every)
    if not references:
        raise UserError(f"data={data}: no crystal has an energy of {scale}; the first: {failures[0]}")
    made = list(made_elements(references, energy, pieces))
    path = Path(output).expanduser() if output else built(scale)
    provenance = {
        "data": dataset.name,
        "splits": names,
        "crystals": len(records),
        "failed": len(failures),
        "made": {reference.formula: reference.source for reference in made},
        "geometry": "as in the data; made crystals relaxed",
        "versions": {name: version(name) for name in ("matgl", "chgnet", "torch", "pymatgen")},
    }
    count = write(path, scale, [*references, *made], provenance)
    print(f"{path}: {count:,} formulas of {len(records):,} crystals, {len(made)} elements made")
    for failure in failures[:3]:
        print(f"failed: {failure}")
    if len(failures) > 3:
        print(f"failed: {len(failures):,} crystals in all")
    return path


def _bar() -> Progress:
    return Progress(BarColumn(20), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn(),
                    TextColumn("ETA"), TimeRemainingColumn())
