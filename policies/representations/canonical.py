"""One description for every equivalent description of a crystal, and random equivalent ones to test it with."""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass

import moyopy
import numpy as np
import spglib
from pymatgen.core import DummySpecies, Lattice, Structure

from policies.representations.quantiser import Q, quantise_coordinates
from rlgen.types import CrystalError

SYMPREC = 0.01  # Å
# It warns of every cell that is not primitive; we only ask for the primitive one.
logging.getLogger("moyo").setLevel(logging.ERROR)

_MAPS = np.array(list(itertools.product((-1, 0, 1), repeat=9))).reshape(-1, 3, 3)
#: Unimodular integer maps with entries -1..1 and determinant +1: proper, so that handedness is kept.
_PROPER = _MAPS[np.round(np.linalg.det(_MAPS)).astype(int) == 1]


@dataclass(frozen=True)
class CanonicalCell:
    """parameters: (6,) Å and degrees; numbers: (N,) atomic numbers, descending; grid: (N, 3) coordinates in 1/Q."""

    parameters: np.ndarray
    numbers: np.ndarray
    grid: np.ndarray


def canonical_cell(structure: Structure, symprec: float = SYMPREC) -> CanonicalCell:
    """The canonical primitive Niggli cell of a crystal, written on the grid.

    Primitive cell -> Niggli reduction -> every proper map that keeps the metric (relative tolerance 1e-3) x every atom
    of the rarest element as the origin -> the lexicographically smallest list of (-Z, x, y, z).
    """
    if not structure.is_ordered:
        raise CrystalError("chemistry", "partly occupied sites cannot be written")
    if not len(structure) or any(isinstance(site.specie, DummySpecies) for site in structure):
        raise CrystalError("chemistry", "there is no atom, or one that is no element")
    lattice, frac, numbers = _primitive(structure, symprec)
    niggli = spglib.niggli_reduce(lattice, eps=1e-5)
    if niggli is None:
        raise CrystalError("geometry", "the cell has no Niggli reduction")
    if np.linalg.det(niggli) < 0:
        niggli = -niggli
    frac = frac @ lattice @ np.linalg.inv(niggli)

    metric = niggli @ niggli.T
    scale = 1e-3 * np.sqrt(np.outer(np.diag(metric), np.diag(metric)))
    mapped = np.einsum("kij,jl,kml->kim", _PROPER, metric, _PROPER)
    maps = _PROPER[(np.abs(mapped - metric) <= scale).all(axis=(1, 2))]

    elements, counts = np.unique(numbers, return_counts=True)
    rarest = elements[np.lexsort((elements, counts))[0]]
    origins = np.flatnonzero(numbers == rarest)

    moved = np.einsum("ni,kij->knj", frac, np.linalg.inv(maps))  # (K, N, 3)
    grid = quantise_coordinates((moved[:, None] - moved[:, origins][:, :, None]) % 1.0)  # (K, O, N, 3)
    grid = grid.reshape(-1, len(numbers), 3)
    keys = ((((118 - numbers) * Q + grid[..., 0]) * Q) + grid[..., 1]) * Q + grid[..., 2]
    keys.sort(axis=1)
    best = keys[np.lexsort(keys.T[::-1])[0]]
    atoms = np.stack([118 - best // Q**3, best // Q**2 % Q, best // Q % Q, best % Q], axis=1)
    return CanonicalCell(np.array(Lattice(niggli).parameters), atoms[:, 0], atoms[:, 1:])


def _primitive(structure: Structure, symprec: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lattice (3, 3), fractional coordinates (N, 3) and atomic numbers (N,) of the symmetrised primitive cell."""
    numbers = [site.specie.Z for site in structure]
    cell = moyopy.Cell(structure.lattice.matrix.tolist(), structure.frac_coords.tolist(), numbers)
    try:
        cell = moyopy.MoyoDataset(cell, symprec=symprec).prim_std_cell
    except BaseException as error:
        # moyopy raises ValueError, and pyo3's PanicException, a BaseException, on degenerate cells.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise CrystalError("symmetry", f"no symmetry found at {symprec} Å: {error}") from error
    return np.array(cell.basis), np.array(cell.positions), np.array(cell.numbers)


def random_equivalent(structure: Structure, rng: np.random.Generator) -> Structure:
    """The same crystal in a random unimodular cell, rotation, translation and order of atoms."""
    matrix = np.eye(3, dtype=int)
    for _ in range(3):
        i, j = rng.choice(3, 2, replace=False)
        matrix[i] += rng.choice([-1, 1]) * matrix[j]
    rotation, r = np.linalg.qr(rng.normal(size=(3, 3)))
    rotation *= np.sign(np.diag(r))
    rotation *= np.linalg.det(rotation)  # proper
    order = rng.permutation(len(structure))
    frac = (structure.frac_coords @ np.linalg.inv(matrix) + rng.random(3)) % 1.0
    lattice = Lattice(matrix @ structure.lattice.matrix @ rotation.T)
    return Structure(lattice, [structure[int(i)].specie for i in order], frac[order])
