"""Relaxation of many crystals at once: FIRE over atoms and cell, one batched evaluation per step.

FIRE: Bitzek et al., PRL 97, 170201 (2006). Each crystal keeps its own velocity, time step and counters; those that are
done, or broken, leave the batch. Cell and atoms move together: with forces f_i and the virial W = −V σ, a step moves
atom i by dt v_i and strains the cell by ε = dt v_cell / N, where f_cell = W / N. The scale N makes a strain cost about
as much as the displacement that it causes (as in ASE's UnitCellFilter); unlike there, ε is taken from the present cell
and not from the first, so that large changes of shape stay well conditioned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pymatgen.core import Element, Lattice, Structure

from rlgen.energies import PointResult, Potential
from rlgen.energies.base import Cell

#: A relaxed volume outside these multiples of the first is an explosion or a collapse of the potential, not a crystal.
SHRINK, SWELL = 0.4, 2.5
#: FIRE's constants, as in the paper, with the time steps usual for Å and eV at unit mass.
FIRST_DT, LARGEST_DT, GROW, HALVE, ALPHA, ALPHA_DECAY, PATIENCE = 0.1, 1.0, 1.1, 0.5, 0.1, 0.99, 5
#: No atom moves, and no cell strains, by more than this in a step (Å).
LONGEST_STEP = 0.1


@dataclass(frozen=True, slots=True)
class Relaxation:
    """How one crystal relaxed: energies in eV/atom, max_force in eV/Å (over atoms and cell), on the scale `scale`.

    structure is None, and the energies NaN, where `error` says why the crystal could not be relaxed.
    """

    energy: float
    initial_energy: float
    structure: Structure | None
    steps: int
    converged: bool
    max_force: float
    scale: str
    error: str | None = None


class _Walker:
    """One crystal on its way down: generalised coordinates are its N atoms and, as three more rows, its cell."""

    def __init__(self, cell: Cell):
        self.numbers, self.positions, self.lattice = cell.numbers, cell.positions, cell.lattice
        self.first_volume = cell.volume
        self.velocity = np.zeros((len(self.numbers) + 3, 3))
        self.dt, self.alpha, self.downhill = FIRST_DT, ALPHA, 0
        self.initial_energy = self.energy = self.max_force = float("nan")
        self.steps = 0
        self.converged = False
        self.error: str | None = None

    def cell(self) -> Cell:
        return Cell(self.numbers, self.positions, self.lattice)

    def look(self, result: PointResult, fmax: float) -> np.ndarray | None:
        """Takes in an evaluation. -> generalised forces (N + 3, 3), or None when this crystal is done."""
        if result.error is not None or result.forces is None or result.stress is None:
            self.error = result.error or "numeric: no forces"
            return None
        volume = self.cell().volume
        if not SHRINK < volume / self.first_volume < SWELL:
            self.error = f"volume: changed to {volume / self.first_volume:.2f} of the first"
            return None
        self.energy = result.energy
        if self.steps == 0:
            self.initial_energy = result.energy
        virial = -volume * (result.stress + result.stress.T) / 2  # symmetric: the cell shall not rotate
        forces = np.vstack([result.forces, virial / len(self.numbers)])
        self.max_force = float(np.linalg.norm(forces, axis=1).max())
        self.converged = self.max_force < fmax
        return None if self.converged else forces

    def step(self, forces: np.ndarray) -> None:
        """One step of FIRE, semi-implicit Euler at unit mass."""
        power = float(np.vdot(forces, self.velocity))
        if power > 0:
            mixed = np.linalg.norm(self.velocity) / np.linalg.norm(forces)
            self.velocity = (1 - self.alpha) * self.velocity + self.alpha * mixed * forces
            self.downhill += 1
            if self.downhill > PATIENCE:
                self.dt = min(self.dt * GROW, LARGEST_DT)
                self.alpha *= ALPHA_DECAY
        elif self.steps > 0:
            self.velocity = np.zeros_like(forces)
            self.dt, self.alpha, self.downhill = self.dt * HALVE, ALPHA, 0
        self.velocity = self.velocity + self.dt * forces
        move = self.dt * self.velocity
        longest = np.linalg.norm(move, axis=1).max()
        if longest > LONGEST_STEP:
            move *= LONGEST_STEP / longest
        n = len(self.numbers)
        deform = np.eye(3) + move[n:] / n
        self.positions = (self.positions + move[:n]) @ deform
        self.lattice = self.lattice @ deform
        self.steps += 1

    def result(self, scale: str) -> Relaxation:
        if self.error is not None:
            nan = float("nan")
            return Relaxation(nan, self.initial_energy, None, self.steps, False, nan, scale, self.error)
        symbols = [Element.from_Z(int(z)).symbol for z in self.numbers]
        structure = Structure(Lattice(self.lattice), symbols, self.positions, coords_are_cartesian=True)
        return Relaxation(
            self.energy, self.initial_energy, structure, self.steps, self.converged, self.max_force, scale
        )


def relax(
    structures: Sequence[Structure], potential: Potential, *, fmax: float = 0.1, steps: int = 100
) -> list[Relaxation]:
    """Relaxes each crystal until its largest force is below `fmax` eV/Å, or `steps` steps are taken.

    The result of a crystal that did not get there is its last geometry, with `converged` False.
    """
    results: list[Relaxation | None] = [None] * len(structures)
    walkers: dict[int, _Walker] = {}
    for i, structure in enumerate(structures):
        if structure.is_ordered:
            walkers[i] = _Walker(Cell.of(structure))
        else:
            nan, error = float("nan"), "disorder: a site is shared or partly empty"
            results[i] = Relaxation(nan, nan, None, 0, False, nan, potential.scale, error)
    active = list(walkers)
    for step in range(steps + 1):
        points = potential.evaluate_cells([walkers[i].cell() for i in active], forces=True)
        moving = []
        for i, point in zip(active, points, strict=True):
            forces = walkers[i].look(point, fmax)
            if forces is not None and step < steps:
                walkers[i].step(forces)
                moving.append(i)
        active = moving
        if not active:
            break
    for i, walker in walkers.items():
        results[i] = walker.result(potential.scale)
    return [result for result in results if result is not None]
