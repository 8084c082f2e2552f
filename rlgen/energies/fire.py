"""One crystal on its way down: FIRE over its atoms and its cell, step by step as ASE's over its FrechetCellFilter.

FIRE: Bitzek et al., PRL 97, 170201 (2006), with ASE's constants: where a crystal starts steeply, the first steps decide
on the minimum that it falls into, so that only the same steps lead to the same energies. The cell is the first one,
deformed by F = exp(S / N), and the atoms r = X Fᵀ; the coordinates are X (N, 3) and S (3, 3). With forces f and the
virial W = −V σ their forces are f F and L(Sᵀ / N, W F⁻ᵀ) / N, where L is the exponential's Fréchet derivative. The N
makes a strain cost about as much as the displacement that it causes.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import expm, expm_frechet

from rlgen.energies import PointResult
from rlgen.energies.base import Cell
from rlgen.energies.symmetry import Symmetry

#: A relaxed volume outside these multiples of the first is an explosion or a collapse of the potential, not a crystal.
SHRINK, SWELL = 0.4, 2.5
#: FIRE's constants, for Å and eV at unit mass: a step's time grows once so many steps on end went downhill.
FIRST_DT, LARGEST_DT, GROW, HALVE, ALPHA, ALPHA_DECAY, DOWNHILL = 0.1, 1.0, 1.1, 0.5, 0.1, 0.99, 6
#: The longest step, as the norm over all coordinates (Å).
LONGEST_STEP = 0.2


class Walker:
    """Generalised coordinates are the rows of X and of S; those of S stay 0 where the cell is fixed.

    energies: in eV/atom, of every step so far.
    """

    def __init__(self, cell: Cell, *, fixed_cell: bool = False, symmetry: Symmetry | None = None):
        self.numbers, self.first = cell.numbers, cell
        self.fixed_cell, self.symmetry = fixed_cell, symmetry
        self.place = np.vstack([cell.positions, np.zeros((3, 3))])
        self.velocity = np.zeros_like(self.place)
        self.dt, self.alpha, self.downhill = FIRST_DT, ALPHA, 0
        self.energies: list[float] = []
        self.max_force = float("nan")
        self.steps = 0
        self.converged = False
        self.error: str | None = None
        self._deform()

    def _deform(self) -> None:
        n = len(self.numbers)
        self.log = self.place[n:] / n
        self.deformation = expm(self.log)
        self.positions, self.lattice = self.place[:n] @ self.deformation.T, self.first.lattice @ self.deformation.T

    def cell(self) -> Cell:
        return Cell(self.numbers, self.positions, self.lattice)

    def look(self, result: PointResult, fmax: float) -> np.ndarray | None:
        """Takes in an evaluation. -> generalised forces (N + 3, 3), or None when this crystal is done."""
        if result.error is not None or result.forces is None or result.stress is None:
            self.error = result.error or "numeric: no forces"
            return None
        volume = self.cell().volume
        if not SHRINK < volume / self.first.volume < SWELL:
            self.error = f"volume: changed to {volume / self.first.volume:.2f} of the first"
            return None
        self.energies.append(result.energy)
        forces = self._generalised(result.forces, -volume * result.stress)
        self.max_force = float(np.linalg.norm(forces, axis=1).max())
        self.converged = self.max_force < fmax
        return None if self.converged else forces

    def _generalised(self, forces: np.ndarray, virial: np.ndarray) -> np.ndarray:
        if self.fixed_cell:
            virial = np.zeros((3, 3))
        if self.symmetry is not None:
            forces, virial = self.symmetry.project(self.lattice, forces, virial)
        on_cell = (virial + virial.T) / 2 @ np.linalg.inv(self.deformation.T)
        on_log = expm_frechet(self.log.T, on_cell, compute_expm=False)
        return np.vstack([forces @ self.deformation, on_log / len(self.numbers)])

    def step(self, forces: np.ndarray) -> None:
        """One step of FIRE, semi-implicit Euler at unit mass."""
        if np.vdot(forces, self.velocity) > 0:
            mixed = np.linalg.norm(self.velocity) / np.linalg.norm(forces)
            self.velocity = (1 - self.alpha) * self.velocity + self.alpha * mixed * forces
            if self.downhill >= DOWNHILL:
                self.dt, self.alpha = min(self.dt * GROW, LARGEST_DT), self.alpha * ALPHA_DECAY
            self.downhill += 1
        elif self.steps > 0:
            self.velocity = np.zeros_like(forces)
            self.dt, self.alpha, self.downhill = self.dt * HALVE, ALPHA, 0
        self.velocity = self.velocity + self.dt * forces
        move = self.dt * self.velocity
        length = np.linalg.norm(move)
        self.place = self.place + (move if length <= LONGEST_STEP else move * (LONGEST_STEP / length))
        self._deform()
        self.steps += 1
