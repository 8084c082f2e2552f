"""Validity: could this be a crystal at all? Bounds on cell, volume and density, and no two atoms in one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pymatgen.core import Structure
from pymatgen.optimization.neighbors import find_points_in_spheres

from rlgen.types import Condition

_PERIODIC = np.ones(3, dtype=np.int64)
_AMU_PER_A3 = 1.66053907  # g/cm³


@dataclass(frozen=True)
class Validity:
    """1 for a valid crystal, 0 for any other; `check` says why.

    min_distance: Å, between any two atoms, an atom's own images included (0.5: Xie et al., arXiv 2110.06197).
    volume_per_atom: Å³, lowest and highest; MP-20 has 5.77 to 202. density: g/cm³; MP-20 has 0.12 to 22.
    max_length: Å, of a cell vector. max_atoms: in the cell.
    """

    min_distance: float = 0.5
    volume_per_atom: tuple[float, float] = (3.0, 400.0)
    density: tuple[float, float] = (0.01, 40.0)
    max_length: float = 200.0
    max_atoms: int = 1000

    name: ClassVar[str] = "validity"
    unit: ClassVar[str] = ""
    per_sample: ClassVar[bool] = True

    def measure(self, structures: Sequence[Structure], conditions: Sequence[Condition]) -> np.ndarray:
        return np.array([float(not self.check(s)) for s in structures])

    def transform(self, raw: np.ndarray) -> np.ndarray:
        return np.asarray(raw, dtype=float)

    def check(self, structure: Structure) -> str:
        """Why the crystal is not valid; "" if it is."""
        n = len(structure)
        if n == 0:
            return "no atoms"
        if n > self.max_atoms:
            return f"{n} atoms in the cell, over {self.max_atoms}"
        if not structure.is_ordered:
            return "disordered sites"
        lattice = np.array(structure.lattice.matrix, dtype=float, order="C")
        frac = np.asarray(structure.frac_coords, dtype=float)
        if not (np.isfinite(lattice).all() and np.isfinite(frac).all()):
            return "lattice or coordinates are not finite"
        if (longest := np.sqrt((lattice**2).sum(1)).max()) > self.max_length:
            return f"a cell vector of {longest:.0f} Å, over {self.max_length:g} Å"
        volume = abs(np.linalg.det(lattice))
        low, high = self.volume_per_atom
        if not low <= volume / n <= high:
            return f"volume per atom {volume / n:.3g} Å³, not within {low:g} to {high:g}"
        density = sum(float(site.specie.atomic_mass) for site in structure) / volume * _AMU_PER_A3
        low, high = self.density
        if not low <= density <= high:
            return f"density {density:.3g} g/cm³, not within {low:g} to {high:g}"
        distance = distance_below(structure, self.min_distance)
        return f"atoms {distance:.2f} Å apart, under {self.min_distance:g} Å" if distance is not None else ""


def distance_below(structure: Structure, limit: float) -> float | None:
    """A distance (Å) under the limit (Å), or None: the shortest, or that of an atom to its own image."""
    lattice = np.array(structure.lattice.matrix, dtype=float, order="C")
    frac = np.asarray(structure.frac_coords, dtype=float)
    volume = abs(np.linalg.det(lattice))
    # Cells that are thin along a vector make the neighbour search look at very many images. A reduced cell is only
    # thin where two images of one atom really are close.
    areas = np.linalg.norm(np.cross(lattice[[1, 2, 0]], lattice[[2, 0, 1]]), axis=1)
    if volume / areas.max() < 1.0:
        reduced = structure.lattice.get_lll_reduced_lattice()
        frac = reduced.get_fractional_coords(frac @ lattice)
        lattice = np.array(reduced.matrix, order="C")
        if (own := np.linalg.norm(lattice, axis=1).min()) < limit:
            return float(own)
    points = np.ascontiguousarray((frac % 1.0) @ lattice)
    # The search divides the cell into cubes of its reach: millions of them in a large cell, were it not larger there.
    reach = max(limit, np.cbrt(volume) / 20)
    i, j, image, distance = find_points_in_spheres(points, points, r=reach, pbc=_PERIODIC, lattice=lattice, tol=1e-8)
    real = ((i != j) | (image != 0).any(axis=1)) & (distance <= limit + 1e-8)
    return float(distance[real].min()) if real.any() else None
