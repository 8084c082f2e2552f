"""Crystals of the elements, made: common structures at several volumes, relaxed, the lowest energy kept.

A hull needs every element's own crystal; a dataset with small cells only, or split into parts, lacks some.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from pymatgen.core import Element, Lattice, Structure

from rlgen.energies import Potential
from rlgen.energies.relax import relax
from rlgen.spacegroup import from_spacegroup

#: First volumes, as multiples of what the element's molar volume says; each structure starts from the best of them.
VOLUMES = (0.7, 0.8, 0.9, 1.0, 1.1, 1.25)
#: Bond lengths (Å) of diatomic molecules.
BONDS = {"H": 0.74, "N": 1.10, "O": 1.21, "F": 1.42, "Cl": 1.99, "Br": 2.28, "I": 2.67}
#: Fallback for elements without a tabulated molar volume (Å³ per atom).
TYPICAL_VOLUME = 25.0
#: The plain metals' structures, and those akin to them, which cannot lie far below them (eV/atom): M3GNet has A15 Nb
#: 2.6 eV/atom below bcc, a hole in the network.
PLAIN, AKIN, HOLE = ("fcc", "bcc", "hcp"), ("dhcp", "sc", "A15", "omega", "alpha-Mn", "beta-Mn"), 0.5
_CUBIC_CM_PER_MOL = 1.66054  # in Å³ per atom


@dataclass(frozen=True, slots=True)
class MadeCrystal:
    """The lowest structure found for an element: energy in eV/atom, kind e.g. "fcc"."""

    element: str
    kind: str
    energy: float
    structure: Structure


def _cubic(symmetry: str, sites: list[list[float]]) -> Callable[[str], Structure]:
    def build(symbol: str) -> Structure:
        return from_spacegroup(symmetry, Lattice.cubic(10.0), [symbol] * len(sites), sites)

    return build


def _hexagonal(ratio: float, sites: list[list[float]], symmetry: str = "P6_3/mmc") -> Callable[[str], Structure]:
    def build(symbol: str) -> Structure:
        lattice = Lattice.hexagonal(10.0, 10.0 * ratio)
        return from_spacegroup(symmetry, lattice, [symbol] * len(sites), sites)

    return build


def _alpha_boron(symbol: str) -> Structure:
    """Rhombohedral packing of icosahedra (Decker and Kasper, Acta Cryst. 12, 503 (1959)), in hexagonal axes."""
    sites = [[0.1177, -0.1177, -0.1073], [0.1961, -0.1961, 0.0244]]
    return from_spacegroup("R-3m", Lattice.hexagonal(4.908, 12.567), [symbol] * 2, sites)


#: kind -> builder of a structure at any volume. Internal coordinates relax too.
STRUCTURES: dict[str, Callable[[str], Structure]] = {
    "fcc": _cubic("Fm-3m", [[0, 0, 0]]),
    "bcc": _cubic("Im-3m", [[0, 0, 0]]),
    "hcp": _hexagonal(1.62, [[1 / 3, 2 / 3, 0.25]]),
    "dhcp": _hexagonal(3.23, [[0, 0, 0], [1 / 3, 2 / 3, 0.25]]),
    "sc": _cubic("Pm-3m", [[0, 0, 0]]),
    "diamond": _cubic("Fd-3m", [[0, 0, 0]]),
    "A15": _cubic("Pm-3n", [[0, 0, 0], [0.25, 0, 0.5]]),
    "omega": _hexagonal(0.62, [[0, 0, 0], [1 / 3, 2 / 3, 0.5]], "P6/mmm"),
    "alpha-Mn": _cubic("I-43m", [[0, 0, 0], [0.317, 0.317, 0.317], [0.357, 0.357, 0.034], [0.089, 0.089, 0.282]]),
    "beta-Mn": _cubic("P4_132", [[0.0636, 0.0636, 0.0636], [0.125, 0.2022, 0.4522]]),
    "alpha-B": _alpha_boron,
    "graphite": _hexagonal(2.72, [[0, 0, 0.25], [1 / 3, 2 / 3, 0.25]]),
}


def _molecular(symbol: str, volume: float) -> Structure:
    """Molecules along the diagonals of a cube (α-N2's structure, P a -3) with the gas phase's bond length."""
    edge = (8 * volume) ** (1 / 3)
    x = BONDS[symbol] / (2 * np.sqrt(3) * edge)
    return from_spacegroup("Pa-3", Lattice.cubic(edge), [symbol], [[x, x, x]])


def candidates(symbol: str) -> Iterator[tuple[str, list[Structure]]]:
    """(kind, the structure at each first volume), primitive cells."""
    try:
        volume = float(Element(symbol).molar_volume) * _CUBIC_CM_PER_MOL
    except (TypeError, ValueError):
        volume = TYPICAL_VOLUME
    if not np.isfinite(volume):
        volume = TYPICAL_VOLUME
    for kind, build in STRUCTURES.items():
        primitive = build(symbol).get_primitive_structure()
        yield kind, [primitive.copy().scale_lattice(factor * volume * len(primitive)) for factor in VOLUMES]
    if symbol in BONDS:
        yield "molecules", [_molecular(symbol, factor * volume) for factor in VOLUMES]


def make(symbol: str, potential: Potential, *, fmax: float = 0.05, steps: int = 200) -> MadeCrystal | None:
    """The lowest of the common structures of one element; None if the potential can evaluate none of them.

    The volume is scanned first, so that the relaxation starts within the right basin.
    """
    starts: list[tuple[str, Structure]] = []
    for kind, structures in candidates(symbol):
        energies = [point.energy for point in potential.evaluate(structures, forces=False)]
        if not np.all(np.isnan(energies)):
            starts.append((kind, structures[int(np.nanargmin(energies))]))
    relaxed = relax([structure for _, structure in starts], potential, fmax=fmax, steps=steps)
    found = [
        MadeCrystal(symbol, kind, result.energy, result.structure)
        for (kind, _), result in zip(starts, relaxed, strict=True)
        if result.error is None and result.converged and result.structure is not None
    ]
    plain = min((crystal.energy for crystal in found if crystal.kind in PLAIN), default=-np.inf)
    sound = [crystal for crystal in found if crystal.kind not in AKIN or crystal.energy > plain - HOLE]
    return min(sound, key=lambda crystal: crystal.energy, default=None)
