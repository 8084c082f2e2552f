"""What a data set is made of: records, their splits, and the report of what could not be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from pymatgen.core import Structure


class Record:
    """One crystal: arrays, from which `structure` is built when asked for.

    lattice: (3, 3) Å, rows are the vectors. numbers: (N,) atomic numbers. frac_coords: (N, 3). properties: by column
    name; what was missing in the source is absent here, never 0 or NaN. Only elements are kept of a site: oxidation
    states, isotopes and site properties are not part of a record.
    """

    __slots__ = ("frac_coords", "id", "lattice", "numbers", "properties")

    def __init__(self, id: str, structure: Structure, properties: dict[str, float] | None = None):
        self.id = id
        self.lattice = np.array(structure.lattice.matrix, dtype=np.float64)
        self.numbers = np.array([site.specie.Z for site in structure], dtype=np.uint8)
        self.frac_coords = np.array(structure.frac_coords, dtype=np.float64)
        self.properties = dict(properties or {})

    @classmethod
    def from_arrays(
        cls, id: str, lattice: np.ndarray, numbers: np.ndarray, frac_coords: np.ndarray, properties: dict[str, float]
    ) -> Record:
        """A record that takes the arrays as they are: lattice (3, 3), numbers (N,), frac_coords (N, 3)."""
        record = cls.__new__(cls)
        record.id, record.properties = id, properties
        record.lattice, record.numbers, record.frac_coords = lattice, numbers, frac_coords
        return record

    @property
    def structure(self) -> Structure:
        """The crystal, built anew at each access: keeping 45,000 of them would cost a gigabyte, one costs 0.1 ms."""
        from pymatgen.core import Lattice, Structure

        species = [_element(int(z)) for z in self.numbers]
        return Structure(Lattice(self.lattice), species, self.frac_coords)

    def __repr__(self) -> str:
        return f"Record(id={self.id!r}, atoms={len(self.numbers)}, properties={self.properties})"


_ELEMENTS: dict[int, object] = {}


def _element(z: int):
    if z not in _ELEMENTS:
        from pymatgen.core import Element

        _ELEMENTS[z] = Element.from_Z(z)
    return _ELEMENTS[z]


class BrokenRow(NamedTuple):
    """A row that gave no crystal. row: counted from 1, without a header line."""

    file: str
    row: int
    reason: str


@dataclass
class DataReport:
    """What reading gave: rows read, rows that became crystals, every other row with its reason, and the sources."""

    rows: int = 0
    usable: int = 0
    broken: list[BrokenRow] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)

    def reasons(self, count: int = 3) -> str:
        """The first broken rows, for a message."""
        shown = "; ".join(f"{b.file} row {b.row}: {b.reason}" for b in self.broken[:count])
        return shown + ("; …" if len(self.broken) > count else "")


@dataclass
class Dataset:
    """Crystals by split ("train", "val", "test"), and the report of how they were read."""

    name: str
    splits: dict[str, list[Record]]
    report: DataReport

    def __len__(self) -> int:
        return sum(map(len, self.splits.values()))

    def __iter__(self) -> Iterator[Record]:
        for records in self.splits.values():
            yield from records

    def summary(self) -> str:
        """One paragraph for people: sizes, chemistry, properties, and what was left out."""
        atoms = np.array([len(r.numbers) for r in self]) if len(self) else np.zeros(1, int)
        elements: set[int] = set()
        known: Counter[str] = Counter()
        for record in self:
            elements.update(record.numbers.tolist())
            known.update(record.properties.keys())
        splits = ", ".join(f"{name} {len(records):,}" for name, records in self.splits.items())
        text = (
            f"{self.name}: {len(self):,} crystals ({splits}) of {len(elements)} elements, "
            f"{atoms.min()} to {atoms.max()} atoms (mean {atoms.mean():.1f})."
        )
        if known:
            text += " Properties: " + ", ".join(f"{name} ({count:,})" for name, count in sorted(known.items())) + "."
        if self.report.broken:
            text += (
                f" {len(self.report.broken):,} of {self.report.rows:,} rows could not be used "
                f"({self.report.reasons()})."
            )
        if self.report.sources:
            text += " Read from " + ", ".join(self.report.sources) + "."
        return text
