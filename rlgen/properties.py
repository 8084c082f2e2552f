"""The properties that a crystal may be asked for by name: what each is, its unit, and its value for a crystal.

What follows from the structure is measured here. The others are columns of the data, published or as
`python -m rlgen.annotate` computes them, and in a reward the value of a predictor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import moyopy
from pymatgen.core import Composition, Structure

from rlgen.conditions import CRYSTAL_SYSTEMS, crystal_system
from rlgen.reference import safe_symprec
from rlgen.types import CrystalError, UserError

LABEL_SYMPREC = 0.1  # Å: the tolerance at which a crystal's space group is told to the policy, asked of it and measured


@dataclass(frozen=True)
class Property:
    """unit: "" for a plain number. kind: a number has distances, of categories one is met or not.

    measure: its value for a structure, NaN where it has none; None: it does not follow from the structure alone.
    tolerance, width: in its unit; a number this close is as asked, and from there on a match halves with each width.
    """

    unit: str
    kind: Literal["number", "category"]
    meaning: str
    measure: Callable[[Structure], float] | None = None
    tolerance: float = 0.0
    width: float = 0.0


def symmetry(structure: Structure) -> tuple[int, int]:
    """Space group's international number at `LABEL_SYMPREC`, and the number of atoms in the primitive cell.

    Raises CrystalError("symmetry") where none is found.
    """
    lattice, numbers = structure.lattice.matrix, [int(z) for z in structure.atomic_numbers]
    symprec = safe_symprec(lattice, LABEL_SYMPREC)
    cell = moyopy.Cell(lattice.tolist(), structure.frac_coords.tolist(), numbers)
    try:
        found = moyopy.MoyoDataset(cell, symprec=symprec)
    except BaseException as error:
        # moyopy raises ValueError, and pyo3's PanicException, a BaseException, on degenerate cells.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise CrystalError("symmetry", f"no space group at {symprec} Å: {error}") from error
    return found.number, len(found.prim_std_cell.numbers)


def hhi(composition: Composition) -> tuple[float, float]:
    """Herfindahl-Hirschman indices of production and of reserves, 0 to 10,000; NaN where an element has none.

    How few countries an element comes from, and how few have it in the ground: the sum of their squared shares in per
    cent. A compound's is the mean of its elements' by mass (Gaultois et al., Chem. Mater. 25, 2911 (2013)); pymatgen
    carries the elements' values, of 77 elements.
    """
    from pymatgen.analysis.hhi import HHIModel

    production, reserve = HHIModel().get_hhi(composition)
    return (math.nan, math.nan) if production is None else (float(production), float(reserve))


def _of_symmetry(value: Callable[[int, int], int]) -> Callable[[Structure], float]:
    """What follows from space group and primitive atoms; NaN where there is no symmetry to be found."""

    def measure(structure: Structure) -> float:
        try:
            return value(*symmetry(structure))
        except CrystalError:
            return math.nan

    return measure


PROPERTIES: dict[str, Property] = {
    "density": Property("g/cm³", "number", "mass by volume", lambda s: float(s.density), 0.2, 2.0),
    "volume_per_atom": Property("Å³", "number", "of the cell", lambda s: s.volume / len(s), 0.5, 5.0),
    "n_atoms": Property("", "number", "atoms in the primitive cell", _of_symmetry(lambda group, n: n), 0.0, 2.0),
    "n_elements": Property("", "number", "different elements", lambda s: len(s.composition), 0.0, 1.0),
    "space_group": Property("", "category", "international number, 1 to 230", _of_symmetry(lambda group, n: group)),
    "crystal_system": Property("", "category", f"one of {', '.join(CRYSTAL_SYSTEMS)}, measured as its place among them",
                               _of_symmetry(lambda group, n: crystal_system(group))),
    "hhi_production": Property("", "number", "Herfindahl-Hirschman index, production", lambda s: hhi(s.composition)[0],
                               100.0, 1000.0),
    "hhi_reserve": Property("", "number", "Herfindahl-Hirschman index, reserves", lambda s: hhi(s.composition)[1],
                            100.0, 1000.0),
    "e_above_hull": Property("eV/atom", "number", "energy above the convex hull of known crystals", None, 0.02, 0.1),
    "stability": Property("eV/atom", "category", "high or low, measured as e_above_hull: high below a threshold"),
    "band_gap": Property("eV", "number", "by PBE, as the Materials Project has it", None, 0.2, 1.0),
    "magnetic_density": Property("µB/Å³", "number", "magnetisation by volume", None, 0.005, 0.05),
}


def known(name: str) -> Property:
    """The property of that name. UserError, with the known ones, where there is none."""
    if name not in PROPERTIES:
        raise UserError(f"unknown property {name!r}; known are {', '.join(PROPERTIES)}")
    return PROPERTIES[name]


def measure(name: str, structure: Structure) -> float:
    """A property that follows from the structure, in its unit, NaN where this crystal has none.

    UserError: an unknown name, or one that does not follow from the structure.
    """
    value = known(name).measure
    if value is None:
        measured = ", ".join(name for name, known in PROPERTIES.items() if known.measure)
        raise UserError(f"{name} does not follow from the structure alone: give it as a column of the data, or let "
                        f"python -m rlgen.annotate compute it; what does follow: {measured}")
    return float(value(structure))
