"""Sanity of a potential without known energies: do its energies mean anything, are its forces their derivatives?"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import chain

import numpy as np
from pymatgen.core import Structure

from rlgen.energies import PointResult, Potential
from rlgen.energies.base import Cell, PotentialError
from rlgen.energies.elements import VOLUMES, candidates
from rlgen.energies.known import FORMULAS, cell

log = logging.getLogger(__name__)

#: Copies, rotations and repetitions of a crystal may differ by this much (eV/atom): rounding, not physics.
SAME_ENERGY = 1e-3
#: Finite differences may miss a force (eV/Å) and a stress (eV/Å³) by this much, and by `SHARE` of the largest.
SAME_FORCE, SAME_STRESS, SHARE = 0.02, 0.002, 0.02
#: Displacement (Å) and strain of the finite differences.
STEP, STRAIN = 0.01, 0.005
#: How the error begins of a potential that gives energies only.
NO_DERIVATIVES = "calculator: it has no forces or no stress"


def check(potential: Potential) -> float:
    """The energy (eV/atom) of the crystal that it is checked on; PotentialError where it cannot be physical."""
    crystal, energy = _first_evaluated(potential)
    start = Cell.of(crystal)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    double = Cell(
        np.tile(start.numbers, 2),
        np.vstack([start.positions, start.positions + start.lattice[0]]),
        start.lattice * [[2], [1], [1]],
    )
    # The same crystal comes last: right after itself, a calculator would give what it remembers.
    same = {
        "as a 2x1x1 supercell": double,
        "rotated": Cell(start.numbers, start.positions @ turn, start.lattice @ turn),
        "evaluated again": start,
    }
    points = potential.evaluate_cells(list(same.values()), forces=False)
    for how, point in reversed(list(zip(same, points, strict=True))):
        if not abs(point.energy - energy) < SAME_ENERGY:  # NaN is refused too
            raise PotentialError(
                f"energy={potential.name}: {crystal.formula} has {energy:.4f} eV/atom, and {point.energy:.4f} {how}"
                f"{f' ({point.error})' if point.error else ''}: such energies cannot be compared"
            )
    point = potential.evaluate_cells([start], forces=True)[0]
    derivatives = "forces and stress are its derivatives"
    if point.error is None:
        _check_derivatives(potential, start, point)
    elif point.error.startswith(NO_DERIVATIVES):
        derivatives = "it has no forces or no stress, so that it cannot relax"
    else:
        raise PotentialError(f"energy={potential.name}: no forces of {crystal.formula}: {point.error}")
    log.warning(
        "energy=%s: no reference energies are known for it. On %s its energy is finite, repeatable, and the same when "
        "rotated and repeated; %s. Whether it is right is not checked.",
        potential.name,
        crystal.formula,
        derivatives,
    )
    return energy


def _first_evaluated(potential: Potential) -> tuple[Structure, float]:
    """The first crystal, shaken out of its symmetry, that the calculator evaluates, and its energy (eV/atom)."""
    first_error = ""
    for crystal in _candidates(potential.elements):
        point = potential.evaluate([crystal], forces=False)[0]
        if point.error is None:
            return crystal, point.energy
        first_error = first_error or f"{crystal.formula}: {point.error}"
    raise PotentialError(f"energy={potential.name} evaluates no crystal of any element; {first_error}")


def _candidates(elements: frozenset[str]) -> Iterator[Structure]:
    compounds = (cell(formula).get_primitive_structure() for formula in FORMULAS)
    # The first of an element's structures is fcc, at its tabulated volume; two atoms, so that forces are not all zero.
    metals = (next(candidates(symbol))[1][VOLUMES.index(1.0)] * (2, 1, 1) for symbol in sorted(elements))
    for crystal in chain(compounds, metals):
        if {element.symbol for element in crystal.composition} <= elements:
            crystal.perturb(0.05, seed=0)
            yield crystal


def _check_derivatives(potential: Potential, start: Cell, point: PointResult) -> None:
    """Central differences along each axis for one atom and for the cell's strain."""
    n, moves, strains = len(start.numbers), [], []
    for sign in (1, -1):
        for axis in range(3):
            positions = start.positions.copy()
            positions[0, axis] += sign * STEP
            moves.append(Cell(start.numbers, positions, start.lattice))
            deform = np.eye(3)
            deform[axis, axis] += sign * STRAIN
            strains.append(Cell(start.numbers, start.positions @ deform, start.lattice @ deform))
    energies = n * np.array([p.energy for p in potential.evaluate_cells([*moves, *strains], forces=False)])
    up_move, down_move, up_strain, down_strain = energies.reshape(4, 3)
    assert point.forces is not None and point.stress is not None
    by_move, by_strain = (up_move - down_move) / (2 * STEP), (up_strain - down_strain) / (2 * STRAIN) / start.volume
    for what, unit, given, numeric, tolerance in (
        ("force", "eV/Å", point.forces[0], -by_move, SAME_FORCE),
        ("stress", "eV/Å³", np.diag(point.stress), by_strain, SAME_STRESS),
    ):
        if not np.abs(given - numeric).max() < tolerance + SHARE * np.abs(numeric).max():
            raise PotentialError(
                f"energy={potential.name}: its {what} is {np.round(given, 4).tolist()}, but by the energy's "
                f"differences {np.round(numeric, 4).tolist()} {unit}; is it in other units (1 eV/Å³ is 160.22 GPa)?"
            )
