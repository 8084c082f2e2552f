"""Crystals built from a space group, against pymatgen's own."""

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from rlgen.spacegroup import from_spacegroup

#: Of every crystal system; groups with two origins, two axes and three cells among them.
GROUPS = {
    1: "P1", 2: "P-1", 5: "C2", 9: "Cc", 14: "P2_1/c", 15: "C2/c", 48: "Pnnn", 61: "Pbca", 68: "Ccce", 70: "Fddd",
    88: "I4_1/a", 122: "I-42d", 141: "I4_1/amd", 146: "R3", 152: "P3_121", 166: "R-3m", 167: "R-3c", 186: "P6_3mc",
    194: "P6_3/mmc", 198: "P2_13", 205: "Pa-3", 216: "F-43m", 227: "Fd-3m",
}  # fmt: skip


def lattice(group: int) -> Lattice:
    for last, parameters in ((2, (5, 6, 7, 80, 95, 103)), (15, (5, 6, 7, 90, 99, 90)), (74, (5, 6, 7, 90, 90, 90)),
                             (142, (5, 5, 7, 90, 90, 90)), (194, (5, 5, 7, 90, 90, 120))):  # fmt: skip
        if group <= last:
            return Lattice.from_parameters(*parameters)
    return Lattice.cubic(7)


def nearest(atoms: np.ndarray, others: np.ndarray) -> float:
    """The largest distance of an atom to the nearest of the others, in fractions of the cell."""
    apart = atoms[:, None] - others
    return float(np.abs(apart - np.rint(apart)).max(-1).min(1).max())


@pytest.mark.parametrize("group", GROUPS)
def test_it_is_what_pymatgen_builds(group):
    species = ["Na", "Cl", "O"]
    sites = [[0, 0, 0], [0.5, 0.5, 0.5], [0.071, 0.213, 0.344]]  # special ones and a general one
    theirs = Structure.from_spacegroup(group, lattice(group), species, sites)
    for given in (group, GROUPS[group]):
        mine = from_spacegroup(given, lattice(group), species, sites)
        assert mine.composition == theirs.composition
        for element in species:
            a, b = (c.frac_coords[[s.specie.symbol == element for s in c]] for c in (mine, theirs))
            assert nearest(a, b) < 1e-8


def test_what_cannot_be_built():
    with pytest.raises(KeyError, match="Fm3m"):
        from_spacegroup("Fm3m", Lattice.cubic(5), ["Na"], [[0, 0, 0]])
    with pytest.raises(ValueError, match="argument"):
        from_spacegroup("Fm-3m", Lattice.cubic(5), ["Na", "Cl"], [[0, 0, 0]])
