"""The canonical symmetrised form of a crystal: its standard cell as occupied Wyckoff positions on the grid.

Of all descriptions that the proper part of the Euclidean normaliser makes of one standard cell (other origins, other
axes of the same metric), the one is taken whose list of (Wyckoff position, Z, free parameters) is the smallest. In
polar groups the origin along the polar axes is put on an atom of the rarest element.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from typing import Any

import moyopy
import numpy as np
from pymatgen.core import DummySpecies, Lattice, Structure

from policies.representations.quantiser import Q, quantise_coordinates
from policies.representations.wyckoff import Position, operations, positions
from rlgen.counters import count
from rlgen.types import CrystalError

#: Å, tried in turn. What is found at a looser or tighter one than the first is written in the group found there.
SYMPRECS = (0.01, 0.1, 0.001)
#: Fraction of a cell within which a symmetrised atom is on a Wyckoff position.
_ON = 1e-4
_SETTING = moyopy.Setting.standard()
logging.getLogger("moyo").setLevel(logging.ERROR)  # it warns of every cell that is not primitive


@dataclass(frozen=True)
class Site:
    """An occupied Wyckoff position. index: its place in `positions(group)`; grid: (dof,) free parameters in 1/Q."""

    index: int
    z: int
    grid: tuple[int, ...]


@dataclass(frozen=True)
class Symmetrised:
    """group: its number. parameters: (6,) of the conventional cell, Å and degrees. sites: in canonical order."""

    group: int
    parameters: np.ndarray
    sites: tuple[Site, ...]


def symmetrise(structure: Structure) -> Symmetrised:
    """The canonical symmetrised form. Raises CrystalError for what has none."""
    if not structure.is_ordered:
        raise CrystalError("chemistry", "partly occupied sites cannot be written")
    if not len(structure) or any(isinstance(site.specie, DummySpecies) for site in structure):
        raise CrystalError("chemistry", "there is no atom, or one that is no element")
    numbers = [site.specie.Z for site in structure]
    cell = moyopy.Cell(structure.lattice.matrix.tolist(), structure.frac_coords.tolist(), numbers)
    failure = ""
    for symprec in SYMPRECS:
        try:
            found = _canonical(moyopy.MoyoDataset(cell, symprec=symprec, setting=_SETTING))
            if symprec != SYMPRECS[0]:
                count(f"symprec/{symprec}")
            return found
        except CrystalError as error:
            failure = error.message
        except BaseException as error:
            # moyopy raises ValueError, and pyo3's PanicException, a BaseException, on degenerate cells.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            failure = str(error)
    raise CrystalError("symmetry", f"no symmetry found at any of {SYMPRECS} Å: {failure}")


def _canonical(data: Any) -> Symmetrised:
    basis, numbers = np.array(data.std_cell.basis), np.array(data.std_cell.numbers)
    frac = np.array(data.std_cell.positions)
    orbits = _orbits(data.number, frac, numbers)
    found = data.normalizer_wyckoff_positions(preserve_chirality=True)
    order = {p.letter: i for i, p in enumerate(positions(data.number))}
    # Which description is the smallest is settled by the letters alone for most.
    cosets = []
    for transform, letters in found.coset_representatives:
        indices = [order[letters[o[0]].letter] for o in orbits]
        cosets.append((sorted(zip(indices, [int(numbers[o[0]]) for o in orbits], strict=True)), transform, indices))
    smallest = min(key for key, _, _ in cosets)
    stabiliser = _modulo_group(data.number, _frozen(found.stabilizer))
    best: tuple[Any, ...] | None = None
    for key, transform, indices in cosets:
        if key != smallest:
            continue
        for linear, shift in stabiliser:
            # x -> P x + p, first by the stabiliser's element, then by the coset's.
            matrix = np.array(transform.linear) @ linear
            x = (frac @ linear.T + shift) @ np.array(transform.linear).T + np.array(transform.origin_shift)
            for pinned in _pinned(data.number, x, numbers):
                sites = _sites(data.number, pinned, numbers, orbits, indices)
                if best is None or sites < best[0]:
                    best = (sites, matrix)
    assert best is not None
    parameters = np.array(Lattice(np.linalg.inv(best[1]).T @ basis).parameters)
    return Symmetrised(data.number, parameters, tuple(Site(*site) for site in best[0]))


def _orbits(group: int, frac: np.ndarray, numbers: np.ndarray) -> list[np.ndarray]:
    """The atoms (indices) of each crystallographic orbit of a symmetrised conventional cell."""
    rotations, shifts = operations(group)
    left, found = np.ones(len(frac), bool), []
    while left.any():
        i = int(left.argmax())
        images = rotations @ frac[i] + shifts / 24
        d = images[:, None] - frac[None]
        same = (np.abs(d - np.round(d)).max(-1) < 1e-3).any(0) & (numbers == numbers[i])
        if not same[i]:
            raise CrystalError("symmetry", "the symmetrised cell is not symmetric")
        found.append(np.flatnonzero(same & left))
        left &= ~same
    return found


def _frozen(transforms: list[Any]) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    """Hashable (linear, origin shift in 1/24) of transformations."""
    return tuple((tuple(np.array(t.linear).ravel().tolist()),
                  tuple((np.round(np.array(t.origin_shift) * 24).astype(int) % 24).tolist())) for t in transforms)


@cache
def _modulo_group(group: int, transforms: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
                  ) -> list[tuple[np.ndarray, np.ndarray]]:
    """One transformation (3, 3), (3,) of each set that differs by operations of the group only."""
    rotations, shifts = operations(group)
    seen: set[tuple[bytes, bytes]] = set()
    kept = []
    for linear, shift in transforms:
        p, w = np.array(linear).reshape(3, 3), np.array(shift)
        # It after any operation of the group: linear part P R, shift w + P t.
        keys = {((p @ r).tobytes(), ((w + p @ t) % 24).tobytes()) for r, t in zip(rotations, shifts, strict=True)}
        if not keys & seen:
            kept.append((p, w / 24))
            seen |= keys
    return kept


@cache
def polar_axes(group: int) -> tuple[int, ...]:
    """The axes of the conventional cell along which the origin is free."""
    rotations, _ = operations(group)
    return tuple(i for i in range(3) if (rotations[:, :, i] == np.eye(3, dtype=int)[i]).all())
     


def _pinned(group: int, frac: np.ndarray, numbers: np.ndarray) -> list[np.ndarray]:
    """The positions with the origin of the polar axes, if any, on each atom of the rarest element in turn."""
    axes = list(polar_axes(group))
    if not axes:
        return [frac]
    elements, counts = np.unique(numbers, return_counts=True)
    rarest = elements[np.lexsort((elements, counts))[0]]
    seen, found = set(), []
    for i in np.flatnonzero(numbers == rarest):
        shift = np.zeros(3)
        shift[axes] = frac[i, axes]
        key = tuple(quantise_coordinates(shift % 1.0).tolist())
        if key not in seen:
            seen.add(key)
            found.append(frac - shift)
    return found


def _sites(group: int, frac: np.ndarray, numbers: np.ndarray, orbits: list[np.ndarray], indices: list[int]
           ) -> list[tuple[int, int, tuple[int, ...]]]:
    """(position, Z, grid) of each orbit, sorted; an orbit's parameters are the smallest of all its atoms'."""
    table = positions(group)
    found = []
    for orbit, index in zip(orbits, indices, strict=True):
        grid = _parameters(table[index], frac[orbit])
        if grid is None:
            raise CrystalError("symmetry", f"an atom is not on position {table[index].letter} of group {group}")
        found.append((index, int(numbers[orbit[0]]), grid))
    return sorted(found)


def _parameters(position: Position, x: np.ndarray) -> tuple[int, ...] | None:
    """The smallest free parameters, in 1/Q, of those atoms (N, 3) that are on the representative; None if none is."""
    d = x - position.shift / 24
    u = d[:, position.free] * position.matrix[position.free, np.arange(position.dof)]
    off = d - u @ position.matrix.T
    on = np.abs(off - np.round(off)).max(1) < _ON
    if not on.any():
        return None
    return min(map(tuple, quantise_coordinates(u[on] % 1.0).tolist()))


def grid_positions(position: Position, grid: tuple[int, ...] | np.ndarray) -> np.ndarray:
    """(m, 3) positions of an orbit in the conventional cell, whole numbers of 1/Q."""
    return (position.orbit_matrix @ np.asarray(grid, dtype=np.int64) + position.orbit_shift * (Q // 24)) % Q
