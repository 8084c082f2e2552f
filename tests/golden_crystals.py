"""50 samples such as a generator may write: sound, repeated, colliding, charged, broken; with made-up energies.

Built from textbook prototypes, and six crystals of the Materials Project (CC BY 4.0) that rlgen ships anyway.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from pymatgen.core import Lattice, Structure

from rlgen import data
from rlgen.likelihood import SHIPPED
from rlgen.spacegroup import from_spacegroup
from rlgen.types import CrystalError

NAN = math.nan


class Sample(NamedTuple):
    """e_above_hull in eV/atom, NaN where no crystal is to be judged; known: whether the reference has it."""

    name: str
    crystal: Structure | CrystalError
    e_above_hull: float
    known: bool


def rocksalt(a: float, *elements: str) -> Structure:
    return from_spacegroup("Fm-3m", Lattice.cubic(a), elements, [[0, 0, 0], [0.5, 0.5, 0.5]])


def fluorite(a: float, *elements: str) -> Structure:
    return from_spacegroup("Fm-3m", Lattice.cubic(a), elements, [[0, 0, 0], [0.25, 0.25, 0.25]])


def zincblende(a: float, *elements: str) -> Structure:
    return from_spacegroup("F-43m", Lattice.cubic(a), elements, [[0, 0, 0], [0.25, 0.25, 0.25]])


def caesium_chloride(a: float, *elements: str) -> Structure:
    return from_spacegroup("Pm-3m", Lattice.cubic(a), elements, [[0, 0, 0], [0.5, 0.5, 0.5]])


def perovskite(a: float, *elements: str) -> Structure:
    places = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0]]
    return from_spacegroup("Pm-3m", Lattice.cubic(a), elements, places)


def rutile(a: float, c: float, x: float, *elements: str) -> Structure:
    return from_spacegroup("P4_2/mnm", Lattice.tetragonal(a, c), elements, [[0, 0, 0], [x, x, 0]])


def wurtzite(a: float, c: float, *elements: str) -> Structure:
    places = [[1 / 3, 2 / 3, 0], [1 / 3, 2 / 3, 0.38]]
    return from_spacegroup("P6_3mc", Lattice.hexagonal(a, c), elements, places)


def element(group: str, a: float, symbol: str) -> Structure:
    return from_spacegroup(group, Lattice.cubic(a), [symbol], [[0, 0, 0]])


def _samples() -> list[Sample]:
    salt = rocksalt(5.64, "Na", "Cl")
    gallium = zincblende(5.65, "Ga", "As")
    long = salt.make_supercell([1, 1, 2], in_place=False)
    strained = long.copy()
    strained.apply_strain([0.02, 0, -0.01])
    mp = [record.structure for record in data.load(SHIPPED, limit=6)]
    return [
        Sample("rock salt", salt, 0.0, True),
        Sample("its primitive cell", salt.get_primitive_structure(), 0.0, True),
        Sample("its supercell, strained", strained, 0.004, True),
        Sample("LiF", rocksalt(4.03, "Li", "F"), -0.02, False),
        Sample("MgO", rocksalt(4.21, "Mg", "O"), 0.0, True),
        Sample("KBr", rocksalt(6.6, "K", "Br"), 0.05, False),
        Sample("FeO", rocksalt(4.3, "Fe", "O"), 0.1, False),
        Sample("TiC", rocksalt(4.33, "Ti", "C"), 0.1001, False),
        Sample("charged rock salt", rocksalt(5.6, "Na", "Si"), 0.61, False),
        Sample("noble rock salt", rocksalt(6.4, "K", "Xe"), 1.4, False),
        Sample("CaF2", fluorite(5.46, "Ca", "F"), -0.001, True),
        Sample("CeO2", fluorite(5.41, "Ce", "O"), 0.02, False),
        Sample("Li2O", fluorite(4.62, "O", "Li"), 0.09, False),
        Sample("charged fluorite", fluorite(5.9, "Na", "Cl"), 0.45, False),
        Sample("GaAs", gallium, 0.0, True),
        Sample("GaAs, shaken", gallium.copy().perturb(0.03, seed=1), 0.015, True),
        Sample("ZnS", zincblende(5.41, "Zn", "S"), 0.0, False),
        Sample("BN", zincblende(3.62, "B", "N"), 0.07, False),
        Sample("SiC", zincblende(4.36, "Si", "C"), 0.001, False),
        Sample("SiC again", zincblende(4.40, "C", "Si"), 0.03, False),
        Sample("CsCl", caesium_chloride(4.12, "Cs", "Cl"), 0.03, False),
        Sample("NiAl, an alloy", caesium_chloride(2.89, "Ni", "Al"), -0.01, False),
        Sample("AuCu, an alloy", caesium_chloride(3.2, "Au", "Cu"), 0.04, True),
        Sample("rock salt's other form", caesium_chloride(3.4, "Na", "Cl"), 0.08, False),
        Sample("SrTiO3", perovskite(3.905, "Sr", "Ti", "O"), 0.0, True),
        Sample("BaTiO3", perovskite(4.01, "Ba", "Ti", "O"), 0.02, False),
        Sample("LaAlO3", perovskite(3.79, "La", "Al", "O"), 0.06, False),
        Sample("charged perovskite", perovskite(3.9, "Na", "Al", "O"), 0.33, False),
        Sample("TiO2", rutile(4.594, 2.959, 0.305, "Ti", "O"), 0.01, True),
        Sample("SnO2", rutile(4.74, 3.19, 0.307, "Sn", "O"), 0.0, False),
        Sample("ZnO", wurtzite(3.25, 5.21, "Zn", "O"), 0.0, False),
        Sample("GaN", wurtzite(3.19, 5.19, "Ga", "N"), 0.12, False),
        Sample("silicon", element("Fd-3m", 5.43, "Si"), 0.0, True),
        Sample("carbon", element("Fd-3m", 3.57, "C"), 0.13, False),
        Sample("copper", element("Fm-3m", 3.61, "Cu"), 0.0, False),
        Sample("iron", element("Im-3m", 2.87, "Fe"), 0.0, False),
        *(Sample(f"MP {i}", crystal, 0.02 * i, i % 2 == 0) for i, crystal in enumerate(mp)),
        Sample("atoms 0.3 Å apart", Structure(Lattice.cubic(3.0), ["Na", "Cl"], [[0, 0, 0], [0, 0, 0.1]]), NAN, False),
        Sample("atoms in one place", Structure(Lattice.cubic(4.0), ["Ti", "O"], np.zeros((2, 3))), NAN, False),
        Sample("atoms 1.2 Å apart", Structure(Lattice.cubic(4.0), ["Na", "Cl"], [[0, 0, 0], [0, 0, 0.3]]), 2.7, False),
        Sample("atoms apart only across the cell", Structure(Lattice.cubic(4.0), ["Mg", "O", "O"],
               [[0, 0, 0], [0.5, 0.5, 0.02], [0.5, 0.5, 0.93]]), NAN, False),
        Sample("a cell without room", Structure(Lattice.cubic(0.4), ["H"], [[0, 0, 0]]), NAN, False),
        Sample("a cell of air", Structure(Lattice.cubic(30.0), ["Li", "F"], [[0, 0, 0], [0.5, 0.5, 0.5]]), NAN, False),
        Sample("cut off", CrystalError("parse", "the sequence ends early"), NAN, False),
        Sample("no such symmetry", CrystalError("symmetry", "position d is not of this group"), NAN, False),
    ]  # fmt: skip


SAMPLES = _samples()
