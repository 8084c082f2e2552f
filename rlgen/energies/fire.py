"""One crystal on its way down: FIRE over its atoms and its cell.

FIRE: Bitzek et al., PRL 97, 170201 (2006). Cell and atoms move together: with forces f_i and the virial W = −V σ, a
step moves atom i by dt v_i and strains the cell by ε = dt v_cell / N, where f_cell = W / N. The scale N makes a strain
cost about as much as the displacement that it causes (as in ASE's cell filters); unlike there, ε is taken from the
present cell and not from the first, so that large changes of shape stay well conditioned.
"""

from __future__ import annotations

import numpy as np

from rlgen.energies import PointResult
from rlgen.energies.base import Cell
from rlgen.energies.symmetry import Symmetry

#: A relaxed volume outside these multiples of the first is an explosion or a collapse of the potential, not a crystal.
SHRINK, SWELL = 0.4, 2.5
#: FIRE's constants, for Å and eV at unit mass. A first step three times as long as usual, no waiting before steps grow,
#: and a faster decay of α take fewer evaluations on generated crystals than the paper's.
FIRST_DT, LARGEST_DT, GROW, HALVE, ALPHA, ALPHA_DECAY = 0.3, 1.0, 1.1, 0.5, 0.1, 0.97
#: No atom moves, and no cell strains, by more than this in a step (Å).
LONGEST_STEP = 0.2


class Walker:
    """Generalised coordinates are the N atoms and, as three more rows, the cell; those stay 0 where it is fixed."""

    def __init__(self, cell: Cell, *, fixed_cell: bool = False, symmetry: Symmetry | None = None):
        self.numbers, self.positions, self.lattice = cell.numbers, cell.positions, cell.lattice
        self.fixed_cell, self.symmetry = fixed_cell, symmetry
        self.first_volume = cell.volume
        self.velocity = np.zeros((len(self.numbers) + 3, 3))
        self.dt, self.alpha = FIRST_DT, ALPHA
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
        forces = self._generalised(result.forces, -volume * result.stress)
        self.max_force = float(np.linalg.norm(forces, axis=1).max())
        self.converged = self.max_force < fmax
        return None if self.converged else forces

    def _generalised(self, forces: np.ndarray, virial: np.ndarray) -> np.ndarray:
        if self.fixed_cell:
            virial = np.zeros((3, 3))
        if self.symmetry is not None:
            forces, virial = self.symmetry.project(self.lattice, forces, virial)
        virial = (virial + virial.T) / 2  # symmetric: the cell shall not rotate
        return np.vstack([forces, virial / len(self.numbers)])

    def step(self, forces: np.ndarray) -> None:
        """One step of FIRE, semi-implicit Euler at unit mass."""
        power = float(np.vdot(forces, self.velocity))
        if power > 0:
            mixed = np.linalg.norm(self.velocity) / np.linalg.norm(forces)
            self.velocity = (1 - self.alpha) * self.velocity + self.alpha * mixed * forces
            self.dt, self.alpha = min(self.dt * GROW, LARGEST_DT), self.alpha * ALPHA_DECAY
        elif self.steps > 0:
            self.velocity = np.zeros_like(forces)
            self.dt, self.alpha = self.dt * HALVE, ALPHA
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
