"""An ASE calculator as a potential: the same interface and guards, and refused where its energies mean nothing."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import toy_calculators
from ase.calculators.emt import EMT
from ase.filters import UnitCellFilter
from ase.optimize import FIRE
from pymatgen.core import Lattice, Structure

from rlgen.energies import known, load_potential
from rlgen.energies.ase_calculator import AsePotential
from rlgen.energies.base import Cell, PotentialError
from rlgen.energies.cache import relaxations
from rlgen.energies.relax import relax
from rlgen.types import UserError

EMT_NAME = "ase.calculators.emt:EMT"


def alloy(seed: int = 0) -> Structure:
    """Cu3Au, strained and shaken."""
    sites = [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    crystal = Structure(Lattice.from_parameters(3.8, 3.9, 3.85, 91, 89, 92), ["Au", "Cu", "Cu", "Cu"], sites)
    return crystal.perturb(0.08, seed=seed)


@pytest.fixture(scope="module")
def emt():
    return load_potential(EMT_NAME)


def test_equals_the_calculator_itself(emt):
    crystals = [alloy(seed) for seed in range(3)]
    cells = emt.evaluate_cells([Cell.of(crystal) for crystal in crystals])
    for crystal, point, cell_point in zip(crystals, emt.evaluate(crystals), cells, strict=True):
        atoms = crystal.to_ase_atoms(calculator=EMT())
        assert point.energy == pytest.approx(atoms.get_potential_energy() / len(atoms), abs=1e-12)
        np.testing.assert_allclose(point.forces, atoms.get_forces(), atol=1e-12)
        np.testing.assert_allclose(point.stress, atoms.get_stress(voigt=False), atol=1e-12)
        assert cell_point.energy == pytest.approx(point.energy, abs=1e-12)
    assert emt.evaluate(crystals[:1], forces=False)[0].forces is None


def test_guards_and_failures_are_those_of_all_potentials(emt):
    isolated = Structure(Lattice.cubic(20), ["Cu"], [[0, 0, 0]])
    close = Structure(Lattice.cubic(5), ["Cu", "Cu"], [[0, 0, 0], [0, 0, 0.03]])
    disordered = Structure(Lattice.cubic(3.7), [{"Cu": 0.5, "Au": 0.5}], [[0, 0, 0]])
    points = emt.evaluate([alloy(), isolated, close, disordered, known.cell("NaCl"), alloy()])
    kinds = [(point.error or "").partition(":")[0] for point in points]
    assert kinds == ["", "isolated", "overlap", "disorder", "calculator", ""]
    assert "No EMT-potential for Na" in points[4].error and np.isnan(points[4].energy)
    assert points[0].energy == points[5].energy


def test_relaxes_as_ase_does(emt):
    results = relax([alloy(), known.cell("NaCl")], emt, fmax=0.02, steps=200)
    assert results[0].converged and results[0].scale == EMT_NAME
    assert results[1].error.startswith("calculator")
    atoms = alloy().to_ase_atoms(calculator=EMT())
    FIRE(UnitCellFilter(atoms), logfile=None).run(fmax=0.02, steps=300)
    assert results[0].energy == pytest.approx(atoms.get_potential_energy() / len(atoms), abs=1e-3)


def test_the_scale_is_the_dotted_name_or_what_the_calculator_says(caplog):
    with caplog.at_level(logging.WARNING):
        assert load_potential("toy_calculators:make").scale == "toy_calculators:make"
    assert "no reference energies" in caplog.text and "Na1 Cl1" in caplog.text
    assert load_potential("toy_calculators:instance").scale == "toy_calculators:instance"
    named = load_potential("toy_calculators:Named")
    assert named.scale == "emt-of-mine" and named.elements == {"Al", "Cu"}
    assert named.evaluate([alloy()])[0].error == "element: Au unknown to emt-of-mine"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:make", "cannot be imported: ModuleNotFoundError"),
        ("toy_calculators:nothing", "cannot be imported: AttributeError"),
        (":make", "cannot be imported"),
        ("toy_calculators:number", "is int, not an ASE calculator"),
        ("os:getcwd", "gives str, not an ASE calculator"),
        ("toy_calculators:breaks", r"raised OSError: no licence"),
        ("toy_calculators:make_path", "may have letters"),
    ],
)
def test_what_is_no_calculator_is_refused(name, message):
    with pytest.raises(UserError, match=message):
        load_potential(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Noisy", "evaluated again"),
        ("SeesAxes", "rotated"),
        ("PerCell", "supercell"),
        ("NotFinite", "no crystal of any element; Na1 Cl1: numeric"),
        ("WrongForces", "force is .* but by the energy's differences"),
        ("StressInGPa", "stress is .* 160.22 GPa"),
        ("BrokenForces", "no forces of Na1 Cl1: numeric"),
    ],
)
def test_energies_that_mean_nothing_are_refused(name, message):
    with pytest.raises(PotentialError, match=message):
        load_potential(f"toy_calculators:{name}")


def test_energies_alone_are_enough_for_single_points(caplog):
    with caplog.at_level(logging.WARNING):
        potential = load_potential("toy_calculators:EnergyOnly")
    assert "cannot relax" in caplog.text
    assert potential.evaluate([known.cell("NaCl")], forces=False)[0].error is None
    assert relax([known.cell("NaCl")], potential)[0].error.startswith("calculator: it has no forces")


def test_a_changed_calculator_does_not_get_the_cached_energies_of_the_old(monkeypatch):
    monkeypatch.setattr(toy_calculators, "strength", 0.3)
    before = AsePotential.load("toy_calculators:make")
    monkeypatch.setattr(toy_calculators, "strength", 0.4)
    after = AsePotential.load("toy_calculators:make")
    assert before.scale == after.scale
    salt = known.cell("NaCl").get_primitive_structure()
    first, second = (relaxations([salt], potential, fmax=0.1, steps=0)[0].energy for potential in (before, after))
    assert second == pytest.approx(first * 4 / 3)
