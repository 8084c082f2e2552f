"""Crystals whose energies are known for each potential: what a freshly loaded potential is checked against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pymatgen.core import Lattice, Structure

from rlgen.spacegroup import from_spacegroup

if TYPE_CHECKING:
    from rlgen.energies import Potential

#: A right potential misses by far less than this (eV/atom), one that was trained again, or wrongly evaluated, by more.
TOLERANCE = 0.002


@dataclass(frozen=True, slots=True)
class KnownCrystal:
    """A formula that `cell` can build, and its energy (eV/atom)."""

    formula: str
    energy: float


def _rocksalt(a: float, cation: str, anion: str) -> Structure:
    return from_spacegroup("Fm-3m", Lattice.cubic(a), [cation, anion], [[0, 0, 0], [0.5, 0.5, 0.5]])


#: What `cell` can build.
FORMULAS = ("NaCl", "MgO", "TiO2")


def cell(formula: str) -> Structure:
    """The conventional cell of NaCl, MgO or rutile TiO2, at experimental lattice constants (Å)."""
    if formula == "NaCl":
        return _rocksalt(5.64, "Na", "Cl")
    if formula == "MgO":
        return _rocksalt(4.212, "Mg", "O")
    if formula == "TiO2":
        return from_spacegroup(
            "P4_2/mnm", Lattice.tetragonal(4.594, 2.959), ["Ti", "O"], [[0, 0, 0], [0.3053, 0.3053, 0]]
        )
    raise KeyError(formula)


def largest_miss(potential: Potential, known: tuple[KnownCrystal, ...]) -> float:
    """Largest |energy − known energy| (eV/atom) over the known crystals; inf where one cannot be evaluated."""
    results = potential.evaluate([cell(k.formula) for k in known], forces=False)
    return max(float("inf") if r.error else abs(r.energy - k.energy) for r, k in zip(results, known, strict=True))
