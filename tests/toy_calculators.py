"""Calculators for the tests of `energy=module:attribute`: one of ASE's, and the ways in which one can be wrong."""

from __future__ import annotations

import numpy as np
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.calculators.morse import MorsePotential

instance = EMT()
number = 3
strength = 0.3  # eV


class Named(EMT):
    """Says what it is called, and which elements it knows."""

    scale = "emt-of-mine"
    elements = ("Al", "Cu")


def make() -> MorsePotential:
    return MorsePotential(epsilon=strength, r0=2.8, rho0=4.0, rcut1=1.3, rcut2=1.8)  # the cutoffs are multiples of r0


def make_path() -> MorsePotential:
    calculator = make()
    calculator.scale = "../../up"
    return calculator


def breaks() -> None:
    raise OSError("no licence")


class Spoilt(Calculator):
    """`make()` with its results spoilt by `spoil`."""

    implemented_properties = ("energy", "forces", "stress")

    def __init__(self):
        super().__init__()
        self.inner = make()
        self.calls = 0

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.calls += 1
        self.inner.calculate(atoms, ["energy", "forces", "stress"], all_changes)
        self.results = dict(self.inner.results)
        self.spoil(atoms)

    def spoil(self, atoms):
        pass


class Noisy(Spoilt):
    def spoil(self, atoms):
        self.results["energy"] += 0.1 * self.calls


class SeesAxes(Spoilt):
    def spoil(self, atoms):
        self.results["energy"] += 0.1 * float(np.abs(atoms.cell.array[0, 0]))


class PerCell(Spoilt):
    def spoil(self, atoms):
        self.results["energy"] /= len(atoms)


class NotFinite(Spoilt):
    elements = ("Na", "Cl")

    def spoil(self, atoms):
        self.results["energy"] = np.nan


class WrongForces(Spoilt):
    def spoil(self, atoms):
        self.results["forces"] *= -1


class StressInGPa(Spoilt):
    def spoil(self, atoms):
        self.results["stress"] = self.results["stress"] * 160.21766208


class BrokenForces(Spoilt):
    def spoil(self, atoms):
        self.results["forces"] = np.full((len(atoms), 3), np.inf)


class EnergyOnly(Spoilt):
    implemented_properties = ("energy",)

    def spoil(self, atoms):
        self.results = {"energy": self.results["energy"]}
