"""One description for every equivalent description of a crystal, and random equivalent ones to test it with."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import moyopy
import numpy as np
import spglib
from pymatgen.core import DummySpecies, Lattice, Structure

from policies.representations.quantiser import Q, lattice_parameters, quantise_lattice
from rlgen.types import CrystalError

SYMPREC = 0.01  # Å
#: What was rounded and is symmetrised anew may round otherwise, hardly ever twice: how often to try for a fixed point.
PASSES = 4
# It warns of every cell that is not primitive; we only ask for the primitive one.
logging.getLogger("moyo").setLevel(logging.ERROR)

_MAPS = np.array(list(itertools.product((-1, 0, 1), repeat=9))).reshape(-1, 3, 3)
#: Unimodular integer maps with entries -1..1 and determinant +1: proper, so that handedness is kept.
_PROPER = _MAPS[np.round(np.linalg.det(_MAPS)).astype(int) == 1]
#: The grid points around one of them among which the nearest is looked for, in cells that are not too skewed.
_AROUND = np.array(list(itertools.product((-1, 0, 1, 2), repeat=3)))


@dataclass(frozen=True)
class CanonicalCell:
    """parameters: (6,) Å and degrees; numbers: (N,) atomic numbers, descending; grid: (N, 3) coordinates in 1/Q."""

    parameters: np.ndarray
    numbers: np.ndarray
    grid: np.ndarray

    @property
    def written(self) -> tuple[int, ...]:
        """Everything in steps of the grid. Raises CrystalError("geometry") off the lattice's range."""
        return (*quantise_lattice(self.parameters).tolist(), *self.numbers.tolist(), *self.grid.ravel().tolist())


@dataclass(frozen=True)
class _Standard:
    """The symmetrised primitive cell at the standard origin.

    lattice: (3, 3) Å, rows. frac: (N, 3). numbers: (N,). rotations: (G, 3, 3) and shifts: (G, 3) in 1/Q, the
    operations of the space group without its lattice translations. images: (G, N), the atom that each one maps to.
    """

    lattice: np.ndarray
    frac: np.ndarray
    numbers: np.ndarray
    rotations: np.ndarray
    shifts: np.ndarray
    images: np.ndarray

    @classmethod
    def of(cls, structure: Structure, symprec: float) -> _Standard:
        numbers = [site.specie.Z for site in structure]
        cell = moyopy.Cell(structure.lattice.matrix.tolist(), structure.frac_coords.tolist(), numbers)
        try:
            found = moyopy.MoyoDataset(cell, symprec=symprec)
        except BaseException as error:
            # moyopy raises ValueError, and pyo3's PanicException, a BaseException, on degenerate cells.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise CrystalError("symmetry", f"no symmetry found at {symprec} Å: {error}") from error
        rotations, shifts = _operations(found.number, found.hall_number)
        primitive = found.prim_std_cell
        lattice, frac = np.array(primitive.basis), np.array(primitive.positions)
        images = np.stack([_images(frac, np.array(primitive.numbers), frac @ w.T + s / Q, lattice)
                           for w, s in zip(rotations, shifts, strict=True)])
        return cls(lattice, frac, np.array(primitive.numbers), rotations, shifts, images)

    def on_grid(self, frac: np.ndarray) -> np.ndarray:
        """(N, 3) grid indices next to coordinates (N, 3), in which the space group is exactly kept.

        One atom of each orbit goes to the nearest point that its own site symmetry leaves where it is; the
        operations, which map grid points to grid points, take it to the others.
        """
        atoms = np.arange(len(frac))
        first = np.flatnonzero(self.images.min(0) == atoms)  # of each orbit
        near = np.floor(frac[first, None] * Q).astype(np.int64) + _AROUND  # (O, 64, 3)
        moved = np.einsum("gij,okj->ogki", self.rotations, near) + self.shifts[:, None]  # (O, G, 64, 3)
        stays = (self.images[:, first] == first).T  # (O, G): the site symmetry
        fixed = (((moved - near[:, None]) % Q == 0).all(-1) | ~stays[..., None]).all(1)  # (O, 64)
        distance = np.linalg.norm((near / Q - frac[first, None]) @ self.lattice, axis=-1)
        chosen = np.where(fixed, distance, distance + 1e3).argmin(1)
        by = (self.images[:, first][:, :, None] == atoms).argmax(0)  # (O, N): an operation that leads there
        orbit = (self.images[:, first][:, :, None] == atoms).any(0).argmax(0)  # (N,)
        return moved[orbit, by[orbit, atoms], chosen[orbit]] % Q

    def roundings(self, maps: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Grids (N, 3), each with the atoms that may be its origin: those of the rarest element.

        Along the polar directions of the group, where no origin is better than another, that of one such atom is.
        maps: (K, 3, 3), see `_pins`.
        """
        elements, counts = np.unique(self.numbers, return_counts=True)
        origins = np.flatnonzero(self.numbers == elements[np.lexsort((elements, counts))[0]])
        polar = self.rotations.mean(0)  # the projection on the directions that every operation keeps
        if not polar.any():
            yield self.on_grid(self.frac), origins
            return
        orbits = self.images.min(0)
        for orbit in np.unique(orbits[origins]):
            for pin in _pins(polar.T, maps):
                yield self.on_grid(self.frac - self.frac[orbit] @ pin), origins[orbits[origins] == orbit]


@cache
def _operations(number: int, hall_number: int) -> tuple[np.ndarray, np.ndarray]:
    """Rotations (G, 3, 3) and shifts (G, 3) in 1/Q of a space group in the basis of its primitive cell."""
    setting = moyopy.Setting.hall_number(hall_number)
    found = moyopy.operations_from_number(number, setting=setting, primitive=True)
    return np.array(found.rotations), np.rint(np.array(found.translations) * Q).astype(np.int64)


def _pins(polar: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """(P, 3, 3) projections of coordinates, in rows, on the polar directions: shifts that set some coordinates to 0.

    polar: (3, 3), any projection on them. maps: (K, 3, 3), to the cells whose coordinates are tried. Only
    projections of whole numbers are taken: grid points stay grid points, so what was rounded before stays as it is.
    """
    rank = int(np.rint(np.trace(polar)))
    basis = np.linalg.svd(polar)[2][:rank]
    chosen = [list(c) for c in itertools.combinations(range(3), rank)]
    coordinates = np.concatenate([maps[:, :, c] for c in chosen])  # (P, 3, rank)
    along = basis @ coordinates
    good = np.abs(np.linalg.det(along)) > 1e-6
    pins = coordinates[good] @ np.linalg.inv(along[good]) @ basis
    pins = np.unique(np.rint(pins[(np.abs(pins - np.rint(pins)) < 1e-6).all((1, 2))]), axis=0)
    return pins if len(pins) else polar[None]


def _images(frac: np.ndarray, numbers: np.ndarray, moved: np.ndarray, lattice: np.ndarray) -> np.ndarray:
    """(N,) the atom at each of the places (N, 3) where an operation moves the atoms."""
    difference = moved[:, None] - frac
    distance = np.linalg.norm((difference - np.round(difference)) @ lattice, axis=-1)
    distance[numbers[:, None] != numbers] = np.inf
    return distance.argmin(1)


def canonical_cell(structure: Structure, symprec: float = SYMPREC) -> CanonicalCell:
    """The canonical primitive Niggli cell of a crystal, written on the grid.

    What is found for the cell as it was rounded is looked for until it stays the same, so that what is read is
    written as it was. Raises CrystalError for what has no such cell.
    """
    if not structure.is_ordered:
        raise CrystalError("chemistry", "partly occupied sites cannot be written")
    if not len(structure) or any(isinstance(site.specie, DummySpecies) for site in structure):
        raise CrystalError("chemistry", "there is no atom, or one that is no element")
    found = [_one_pass(structure, symprec)]
    while len(found) < PASSES:
        last = found[-1]
        rounded = Lattice.from_parameters(*lattice_parameters(quantise_lattice(last.parameters)))
        try:
            found.append(_one_pass(Structure(rounded, last.numbers.tolist(), last.grid / Q), symprec))
        except CrystalError:
            return last
        written = [cell.written for cell in found]
        if written[-1] in written[:-1]:
            return min(found[written.index(written[-1]) :], key=lambda cell: cell.written)
    return found[-1]


def _one_pass(structure: Structure, symprec: float) -> CanonicalCell:
    """Primitive cell -> grid -> Niggli reduction -> every proper map that keeps the metric (relative tolerance 1e-3)
    x every atom of the rarest element as the origin -> the lexicographically smallest list of (-Z, x, y, z).
    """
    standard = _Standard.of(structure, symprec)
    niggli = spglib.niggli_reduce(standard.lattice, eps=1e-5)
    if niggli is None:
        raise CrystalError("geometry", "the cell has no Niggli reduction")
    if np.linalg.det(niggli) < 0:
        niggli = -niggli
    to_niggli = np.rint(standard.lattice @ np.linalg.inv(niggli)).astype(np.int64)
    maps = to_niggli @ _metric_maps(niggli @ niggli.T)  # (K, 3, 3), for coordinates in rows
    best = min((_smallest(grid @ maps, origins, standard.numbers) for grid, origins in standard.roundings(maps)),
               key=lambda keys: keys.tolist())
    atoms = np.stack([118 - best // Q**3, best // Q**2 % Q, best // Q % Q, best % Q], axis=1)
    return CanonicalCell(np.array(Lattice(niggli).parameters), atoms[:, 0], atoms[:, 1:])


def _metric_maps(metric: np.ndarray) -> np.ndarray:
    """(K, 3, 3) whole numbers that take coordinates, in rows, to the cells with the same metric tensor."""
    scale = 1e-3 * np.sqrt(np.outer(np.diag(metric), np.diag(metric)))
    mapped = _PROPER @ metric @ _PROPER.transpose(0, 2, 1)
    maps = _PROPER[(np.abs(mapped - metric) <= scale).all(axis=(1, 2))]
    return np.rint(np.linalg.inv(maps)).astype(np.int64)


def _smallest(grids: np.ndarray, origins: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """(N,) the smallest sorted list of atoms, each as one number, over grids (K, N, 3) x origins."""
    grid = (grids[:, None] - grids[:, origins][:, :, None]) % Q  # (K, O, N, 3)
    grid = grid.reshape(-1, len(numbers), 3)
    keys = ((((118 - numbers) * Q + grid[..., 0]) * Q) + grid[..., 1]) * Q + grid[..., 2]
    keys.sort(axis=1)
    return keys[np.lexsort(keys.T[::-1])[0]]


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
