"""Which occupations of Wyckoff positions really have the space group that they are written in.

Atoms on the positions of a group can have more symmetry than the group: one atom at the origin of P2 makes a crystal of
P2/m. Whether they have is a matter of which positions are occupied and which of them share an element; free parameters
and the cell, taken at random, do not matter.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from functools import cache

import numpy as np
from pymatgen.core import Lattice

from policies.representations.lattice import SYSTEMS, system_of
from policies.representations.orbit_tables import ANY, MOST_POSITIONS, tables
from policies.representations.wyckoff import GRID, centring, operations, positions

#: (position, label) of every site in the order of writing; labels tell elements apart, and count from 0 as they come.
Pattern = tuple[tuple[int, int], ...]
#: The positions of each element's sites, sorted, and sorted by element: whatever the elements are.
Elements = tuple[tuple[int, ...], ...]
#: Coordinates are whole numbers of 1/_FINE: symmetry is exact, and parameters are equal only where they must be.
_FINE = 24 * 10007
#: A place in a cell is one number, x + y _WIDE + z _WIDE²: two may be added, and are the same if `_PERIODS` apart.
_WIDE = 2 * _FINE
_UNITS = np.array([1, _WIDE, _WIDE**2])
_PERIODS = (np.array(list(itertools.product((0, _FINE), repeat=3))) @ _UNITS).tolist()
_MAPS = np.array(list(itertools.product((-1, 0, 1), repeat=9))).reshape(-1, 3, 3)
#: Å and degrees, with nothing in common.
_EDGES, _ANGLES = np.array([9.13, 10.37, 11.71]), np.array([97.3, 103.1, 94.7])


def has_group(group: int, sites: Sequence[tuple[int, int]]) -> bool:
    """Whether sites (position, element) of a group, at generic parameters, have that group and no more symmetry."""
    pattern = _pattern(sites)
    return _pinned(group, pattern) or _has_group(group, pattern)


def can_have_group(group: int, sites: Sequence[tuple[int, int]], left: int, start: int, max_atoms: int) -> bool:
    """Whether `left` more atoms (primitive cell) of new elements, on positions from `start` on, make `has_group`."""
    return _completable(group, _pattern(sites), left, start, max_atoms)


def _pattern(sites: Sequence[tuple[int, int]]) -> Pattern:
    labels: dict[int, int] = {}
    return tuple((index, labels.setdefault(element, len(labels))) for index, element in sites)


@cache
def _completable(group: int, pattern: Pattern, left: int, start: int, max_atoms: int) -> bool:
    t = tables(max_atoms)
    base = int(t.base[group])
    if not t.reach[base + start, left]:
        return False
    if _pinned(group, pattern):
        return True
    if left == 0:
        return _has_group(group, pattern)
    fresh = max((label for _, label in pattern), default=-1) + 1
    for index in reversed(range(start, int(t.count[group]))):  # the least symmetric first
        if (rest := left - int(t.atoms[base + index])) >= 0:
            after = index if t.dof[base + index] else index + 1
            if _completable(group, (*pattern, (index, fresh)), rest, after, max_atoms):
                return True
    return False


@cache
def pins() -> tuple[tuple[bool, ...], ...]:
    """By group (of 0 nothing) and position whether one site on it, alone, has the group and no more symmetry. Built
    once (a third of a second)."""
    return ((), *(tuple(kept(group, ((i,),)) == 1 for i in range(len(positions(group)))) for group in range(1, 231)))


@cache
def always_kept(group: int) -> tuple[int, ...]:
    """By position the isometries that keep every site on it, whatever its parameters are, as bits."""
    return tuple(kept(group, ((i,),)) & (kept(group, ((i,), (i,))) if p.dof else -1)
                 for i, p in enumerate(positions(group)))


@cache
def _pinned(group: int, pattern: Pattern) -> bool:
    return pinned(group, _elements(pattern))


def pinned(group: int, elements: Elements) -> bool:
    """Whether one element's only site has the group by itself: the whole then has it too, whatever the others are."""
    alone = pins()[group]
    return any(len(sites) == 1 and alone[sites[0]] for sites in elements)


@cache
def _has_group(group: int, pattern: Pattern) -> bool:
    """Whether all that keeps the sites of every element are the operations of the group."""
    return kept(group, _elements(pattern)) == 1


def _elements(pattern: Pattern) -> Elements:
    elements: dict[int, list[int]] = {}
    for index, label in pattern:
        elements.setdefault(label, []).append(index)
    return tuple(sorted(tuple(sorted(sites)) for sites in elements.values()))


@cache
def kept(group: int, elements: Elements) -> int:
    """The isometries that keep the atoms of every element, as bits: 1 if there are none but the group's."""
    if not elements:
        return -1
    *before, own = elements
    copies = Counter(index for sites in before for index in sites)
    sites = []
    for index in own:
        sites.append((index, copies[index]))
        copies[index] += 1
    others = kept(group, tuple(before))
    return others if others == 1 else others & _symmetries(group, tuple(sites))


@cache
def _symmetries(group: int, sites: tuple[tuple[int, int], ...]) -> int:
    """The isometries that keep the atoms of one element on (position, copy), as bits.

    Each is one of `_rotations` and a shift, and stands for itself after any operation of the group.
    """
    turned = [[place for orbit in some for place in orbit] for some in zip(*(_turned(group, *site) for site in sites),
                                                                           strict=True)]
    near = {place + period for place in turned[0] for period in _PERIODS}
    targets, bits, found = [_split(place) for place in turned[0]], _bits(group), 0
    for k, places in enumerate(turned):
        a, b, c = _split(places[0])
        for x, y, z in targets:  # what the first atom may be moved to
            shift = (x - a) % _FINE + (y - b) % _FINE * _WIDE + (z - c) % _FINE * _WIDE**2
            if all(place + shift in near for place in places):
                found |= 1 << bits.setdefault((k, shift), len(bits))
    return found


@cache
def _bits(group: int) -> dict[tuple[int, int], int]:
    """The bit that stands for each isometry of a group met so far; the identity's is the first."""
    return {(0, 0): 0}


@cache
def _turned(group: int, index: int, copy: int) -> list[list[int]]:
    """The atoms of a position in the primitive cell, at parameters that are others for each copy of it, after each of
    `_rotations`, each as one number."""
    position = positions(group)[index]
    points = position.orbit_matrix @ _generic()[index, copy, : position.dof] + position.orbit_shift * (_FINE // GRID)
    places = np.unique(points @ centring(group)[1] % _FINE @ _UNITS)
    atoms = np.stack([places // unit % _WIDE for unit in _UNITS], 1)
    return (atoms @ _rotations(group) % _FINE @ _UNITS).tolist()


def _split(place: int) -> tuple[int, int, int]:
    return place % _WIDE, place // _WIDE % _WIDE, place // _WIDE**2


@cache
def _generic() -> np.ndarray:
    """Parameters of each copy of each position, with nothing in common."""
    return np.random.default_rng(0).integers(_FINE, size=(MOST_POSITIONS, ANY, 3))


@cache
def _rotations(group: int) -> np.ndarray:
    """(K, 3, 3) what isometries of the lattice do to primitive coordinates in rows, one of all that differ by rotations
    of the group; the identity is the first."""
    to_primitive = centring(group)[1]
    own = np.unique(operations(group)[0], axis=0).transpose(0, 2, 1)
    chosen: list[np.ndarray] = []
    seen: set[bytes] = set()
    for rotation in [np.eye(3, dtype=np.int64), *_holohedry(system_of(group))]:
        whole = np.rint(primitive := np.linalg.inv(to_primitive) @ rotation @ to_primitive).astype(np.int64)
        if rotation.tobytes() not in seen and np.abs(primitive - whole).max() < 1e-6:
            chosen.append(whole)
            seen |= {(g @ rotation).tobytes() for g in own}
    return np.stack(chosen)


@cache
def _holohedry(system: int) -> np.ndarray:
    """(K, 3, 3) the maps with entries -1..1 that keep the metric of a generic cell."""
    cell = _generic_cell(system).matrix
    metric = cell @ cell.T
    return _MAPS[np.abs(_MAPS @ metric @ _MAPS.transpose(0, 2, 1) - metric).max((1, 2)) < 1e-6]


@cache
def _generic_cell(system: int) -> Lattice:
    a, b, c = _EDGES
    match SYSTEMS[system]:
        case "triclinic":
            return Lattice.from_parameters(a, b, c, *_ANGLES)
        case "monoclinic":
            return Lattice.from_parameters(a, b, c, 90, _ANGLES[1], 90)
        case "orthorhombic":
            return Lattice.orthorhombic(a, b, c)
        case "tetragonal":
            return Lattice.tetragonal(a, c)
        case "hexagonal":
            return Lattice.hexagonal(a, c)
    return Lattice.cubic(a)
