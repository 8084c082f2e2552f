"""Relaxation: the queue, its limits, a fixed cell, symmetry, and agreement with ASE's own optimiser and filter."""

from __future__ import annotations

import moyopy
import numpy as np
import pytest
import torch
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE
from ase.stress import full_3x3_to_voigt_6_stress
from pymatgen.core import Lattice, Structure

from rlgen.energies import load_potential
from rlgen.energies.base import Cell
from rlgen.energies.relax import LEFT, MARGIN, RECENT, relax
from rlgen.energies.symmetry import symmetrised

ISOLATED = Structure(Lattice.cubic(20), ["Na"], [[0, 0, 0]])


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def potential():
    return load_potential("chgnet")


def noisy(structure: Structure, seed: int = 0, shake: float = 0.05, strain: float = 0.01) -> Structure:
    rng = np.random.default_rng(seed)
    lattice = structure.lattice.matrix @ (np.eye(3) + rng.normal(0, strain, (3, 3)))
    positions = structure.frac_coords @ lattice + rng.normal(0, shake, (len(structure), 3))
    return Structure(Lattice(lattice), structure.species, positions, coords_are_cartesian=True)


def space_group(structure: Structure, symprec: float) -> int:
    lattice, frac_coords = structure.lattice.matrix.tolist(), structure.frac_coords.tolist()
    cell = moyopy.Cell(lattice, frac_coords, list(structure.atomic_numbers))
    return moyopy.MoyoDataset(cell, symprec=symprec).number


@pytest.fixture
def small(crystals) -> list[Structure]:
    """Four crystals of 2 to 6 atoms that need some steps, and one that cannot be relaxed among them."""
    names = ("hcp", "wurtzite", "perovskite", "rutile")
    found = [noisy(crystals[name], seed, shake=0.1 if name == "hcp" else 0.05) for seed, name in enumerate(names)]
    return [*found[:2], ISOLATED, *found[2:]]


def test_new_crystals_enter_as_others_leave(potential, small, monkeypatch):
    evaluate, batches = potential.evaluate_cells, []

    def spy(cells, forces=True):
        batches.append([len(cell.numbers) for cell in cells])
        return evaluate(cells, forces)

    monkeypatch.setattr(potential, "evaluate_cells", spy)
    results = relax(small, potential, fmax=0.1, steps=60, atoms_in_flight=9)
    assert max(map(sum, batches)) <= 9 and batches[0] == [2, 4, 1]  # the next has 5 atoms
    assert any(5 in batch and len(batch) > 1 for batch in batches)
    assert sum(map(len, batches)) == sum(result.steps + 1 for result in results)  # no evaluation is wasted
    assert [result.converged for result in results] == [True, True, False, True, True]
    assert results[2].error.startswith("isolated")
    monkeypatch.undo()
    for result, other in zip(results, relax(small, potential, fmax=0.1, steps=60), strict=True):
        if result.error is None:
            assert result.energy == pytest.approx(other.energy, abs=5e-4)
            assert result.structure.composition == other.structure.composition


def test_a_crystal_larger_than_the_limit_is_alone(potential, small):
    results = relax(small[:2], potential, fmax=0.1, steps=2, atoms_in_flight=1)
    assert [result.steps for result in results] == [2, 2]


def test_no_steps_are_a_single_point(potential, small):
    for result, point in zip(relax(small, potential, steps=0), potential.evaluate(small), strict=True):
        assert (result.error is None) == (point.error is None) and result.steps == 0
        if result.error is None:
            assert result.energy == result.initial_energy == pytest.approx(point.energy, abs=1e-6)
            assert not result.timed_out and result.max_force >= np.linalg.norm(point.forces, axis=1).max() - 1e-3


def test_out_of_time_is_said(potential, small):
    result = relax(small[:1], potential, fmax=1e-5, steps=100, seconds=0.0)[0]
    assert result.timed_out and not result.converged and result.error is None and result.structure is not None
    assert result.steps < 100
    result = relax(small[:1], potential, fmax=1e-5, steps=1, seconds=600)[0]
    assert not result.timed_out and not result.converged and result.steps == 1


def test_the_hopeless_is_given_up(potential, small):
    far, near = relax(small[:2], potential, fmax=1e-5, steps=12, wanted=[-np.inf, 1e3])
    assert far.given_up and far.steps == RECENT and far.error is None and not far.timed_out and not far.converged
    assert not near.given_up and near.steps == 12
    whole = relax(small[:1], potential, fmax=1e-5, steps=RECENT)[0]
    assert far.energy == pytest.approx(whole.energy, abs=1e-5) and not whole.given_up
    # What the last steps won is held in favour of a crystal that is still falling.
    hope = MARGIN + LEFT * (whole.initial_energy - whole.energy)
    assert hope > MARGIN + 1e-3
    for short, lost in ((1e-3, True), (-1e-3, False)):
        target = whole.energy - hope - short
        assert relax(small[:1], potential, fmax=1e-5, steps=RECENT, wanted=[target])[0].given_up is lost


def test_a_fixed_cell_stays(potential, small):
    for structure, result in zip(small, relax(small, potential, fmax=0.1, steps=60, fixed_cell=True), strict=True):
        if result.error is None:
            np.testing.assert_array_equal(result.structure.lattice.matrix, structure.lattice.matrix)
            assert result.converged and result.energy < result.initial_energy
            forces = potential.evaluate([result.structure])[0].forces  # the stress that is left does not count
            assert np.linalg.norm(forces, axis=1).max() == pytest.approx(result.max_force, abs=1e-3)


@pytest.mark.parametrize("name", ["perovskite", "quartz", "baddeleyite", "hcp", "triclinic"])
def test_the_space_group_is_kept(potential, crystals, name):
    start = crystals[name]
    group = space_group(start, 0.01)
    dented = noisy(start, 1, shake=1e-3, strain=0)
    result = relax([dented], potential, fmax=1e-3, steps=6, symmetry=True)[0]
    assert result.error is None and result.steps == 6
    assert space_group(result.structure, 1e-5) == group
    free = relax([dented], potential, fmax=1e-3, steps=6)[0]
    assert name in ("hcp", "triclinic") or space_group(free.structure, 1e-5) != group


def test_symmetrised_crystals_and_projections(crystals, crystal):
    cell, symmetry = symmetrised(Cell.of(noisy(crystal, 2, shake=1e-3, strain=0)))
    assert np.abs(cell.positions - crystal.cart_coords).max() < 0.02
    rng = np.random.default_rng(0)
    forces, virial = symmetry.project(cell.lattice, rng.normal(size=cell.positions.shape), rng.normal(size=(3, 3)))
    again = symmetry.project(cell.lattice, forces, virial)
    np.testing.assert_allclose(again[0], forces, atol=1e-10)
    np.testing.assert_allclose(again[1], virial, atol=1e-10)
    # A step along them leaves every operation an operation.
    moved = cell.positions + 0.1 * forces
    deform = np.eye(3) + 0.01 * (virial + virial.T)
    lattice, fractional = cell.lattice @ deform, moved @ np.linalg.inv(cell.lattice)
    for turn, shift, images in zip(symmetry.rotations, symmetry.translations, symmetry.images, strict=True):
        apart = fractional @ turn.T + shift - fractional[images]
        np.testing.assert_allclose(apart, np.round(apart), atol=1e-8)
        np.testing.assert_allclose(turn.T @ lattice @ lattice.T @ turn, lattice @ lattice.T, atol=1e-8)


def test_symmetry_that_cannot_be_found_is_an_error_of_that_crystal(potential, small):
    flat = Structure(Lattice([[3, 0, 0], [0, 3, 0], [0, 0, 1e-7]]), ["Na", "Na"], [[0, 0, 0], [0, 0, 0]])
    results = relax([flat, small[0]], potential, fmax=0.1, steps=1, symmetry=True)
    assert results[0].error.startswith("symmetry") and np.isnan(results[0].energy)
    assert results[1].error is None


class _AsAse(Calculator):
    """One of our potentials behind ASE's interface."""

    implemented_properties = ("energy", "forces", "stress")

    def __init__(self, potential):
        super().__init__()
        self.potential = potential

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        point = self.potential.evaluate_cells([Cell(atoms.numbers, atoms.positions.copy(), atoms.cell.array)])[0]
        stress = full_3x3_to_voigt_6_stress(point.stress)
        self.results = {"energy": point.energy * len(atoms), "forces": point.forces, "stress": stress}


@pytest.mark.parametrize("fixed_cell", [False, True])
def test_every_step_is_that_of_ase(fixed_cell):
    """From a steep start, with steps that are cut and such that go uphill; EMT computes in double precision."""
    sites = [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    start = noisy(Structure(Lattice.cubic(3.75), ["Cu", "Au", "Au", "Au"], sites), 3, shake=0.4, strain=0.1)
    potential = load_potential("ase.calculators.emt:EMT")
    atoms = start.to_ase_atoms()
    atoms.calc = EMT()
    run = FIRE(atoms if fixed_cell else FrechetCellFilter(atoms), logfile=None)
    for steps in (1, 2, 5, 10, 25, 50):
        run.run(fmax=0.01, steps=steps - run.nsteps)
        result = relax([start], potential, fmax=0.01, steps=steps, fixed_cell=fixed_cell)[0]
        assert result.steps == run.nsteps
        assert result.energy * len(atoms) == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
        np.testing.assert_allclose(result.structure.cart_coords, atoms.positions, atol=1e-6)
        np.testing.assert_allclose(result.structure.lattice.matrix, atoms.cell.array, atol=1e-6)


def test_energies_agree_with_ase(potential, small):
    for structure in (s for s in small if s is not ISOLATED):
        result = relax([structure], potential, fmax=0.05, steps=200)[0]
        atoms = structure.to_ase_atoms()
        atoms.calc = _AsAse(potential)
        FIRE(FrechetCellFilter(atoms), logfile=None).run(fmax=0.05, steps=200)
        assert result.converged
        assert result.energy == pytest.approx(atoms.get_potential_energy() / len(atoms), abs=2e-4)
