"""Keeps a crystal's space group while it relaxes: its operations are found once, forces and virial projected on them.

With lattice rows L and fractional rows x, an operation (W, w) takes x to x Wᵀ + w, hence a Cartesian row vector v to
v Q with Q = L⁻¹ Wᵀ L; as long as the lattice has the symmetry, Q is a rotation.
"""

from __future__ import annotations

from dataclasses import dataclass

import moyopy
import numpy as np

from rlgen.energies.base import Cell, CellError

#: Atoms this far (Å) from where an operation takes others count as equal; `symmetrised` moves them there exactly.
TOLERANCE = 0.01


@dataclass(frozen=True, slots=True)
class Symmetry:
    """M operations: whole rotations (M, 3, 3), translations (M, 3), images (M, N): m takes atom i to images[m, i]."""

    rotations: np.ndarray
    translations: np.ndarray
    images: np.ndarray

    def project(self, lattice: np.ndarray, forces: np.ndarray, virial: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The parts of forces (N, 3) and virial (3, 3) that all operations leave as they are."""
        turns = np.linalg.inv(lattice) @ self.rotations.transpose(0, 2, 1) @ lattice
        turned = np.einsum("ni,mij->mnj", forces, turns)
        kept = np.zeros_like(forces)
        np.add.at(kept, self.images.ravel(), turned.reshape(-1, 3))
        virials = turns.transpose(0, 2, 1) @ virial @ turns
        return kept / len(turns), virials.mean(0)


def symmetrised(cell: Cell) -> tuple[Cell, Symmetry]:
    """The operations of a crystal's space group, and the crystal moved (by up to `TOLERANCE`) to obey them exactly."""
    fractional = cell.positions @ np.linalg.inv(cell.lattice)
    try:
        found = moyopy.MoyoDataset(
            moyopy.Cell(cell.lattice.tolist(), fractional.tolist(), cell.numbers.tolist()), symprec=TOLERANCE
        ).operations
        rotations, translations = np.array(found.rotations), np.array(found.translations)
    except BaseException as error:
        # moyopy raises ValueError, and pyo3's PanicException, a BaseException, on degenerate cells.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise CellError(f"symmetry: cannot be determined ({error})") from error
    moved = np.einsum("ni,mji->mnj", fractional, rotations) + translations[:, None]  # (M, N, 3)
    offsets = moved[:, :, None] - fractional  # (M, N, N, 3)
    offsets -= np.round(offsets)
    apart = np.linalg.norm(offsets @ cell.lattice, axis=-1)
    apart[:, cell.numbers[:, None] != cell.numbers] = np.inf
    images = apart.argmin(-1)
    symmetry = Symmetry(rotations, translations, images)
    # The mean of where the operations take the atoms, and of the metrics that they give the lattice.
    nearest = np.take_along_axis(offsets, images[:, :, None, None], 2)[:, :, 0]
    shift = np.zeros_like(fractional)
    np.add.at(shift, images.ravel(), nearest.reshape(-1, 3))
    fractional = fractional + shift / len(rotations)
    metric = cell.lattice @ cell.lattice.T
    lattice = _with_metric(cell.lattice, (rotations.transpose(0, 2, 1) @ metric @ rotations).mean(0))
    return Cell(cell.numbers, fractional @ lattice, lattice), symmetry


def _with_metric(lattice: np.ndarray, metric: np.ndarray) -> np.ndarray:
    """The lattice of that metric tensor that lies closest to the given one."""
    factor = np.linalg.cholesky(metric)
    left, _, right = np.linalg.svd(factor.T @ lattice)
    return factor @ left @ right
