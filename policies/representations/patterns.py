"""Which occupations of Wyckoff positions really have the space group that they are written in.

Atoms on the positions of a group can have more symmetry than the group: one atom at the origin of P2 makes a crystal of
P2/m. Whether they have is a matter of which positions are occupied and which of them share an element; free parameters
and the cell, taken at random, do not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import moyopy
import numpy as np
from pymatgen.core import Lattice

from policies.representations.lattice import SYSTEMS, system_of
from policies.representations.orbit_tables import tables
from policies.representations.wyckoff import centring, positions

#: (position, label) of every site in the order of writing; labels tell elements apart, and count from 0 as they come.
Pattern = tuple[tuple[int, int], ...]
#: Å. The cells below are of some ten ångströms and their parameters far from anything special.
_SYMPREC = 1e-3
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
def _pinned(group: int, pattern: Pattern) -> bool:
    """Whether one element's only site has the group by itself: the whole then has it too, whatever the others are."""
    labels = [label for _, label in pattern]
    return any(labels.count(label) == 1 and _has_group(group, ((index, 0),)) for index, label in pattern)


@cache
def _has_group(group: int, pattern: Pattern) -> bool:
    table, points = positions(group), centring(group)[0]
    rng = np.random.default_rng(20)
    frac, numbers = [], []
    for index, label in pattern:
        orbit = table[index].orbit_matrix @ rng.random(table[index].dof) + table[index].orbit_shift / 24
        frac.append(orbit % 1.0)
        numbers += [label + 1] * len(orbit)
    cell = moyopy.Cell(_generic_cell(system_of(group)).matrix.tolist(), np.concatenate(frac).tolist(), numbers)
    found = moyopy.MoyoDataset(cell, symprec=_SYMPREC)
    return found.number == group and len(found.prim_std_cell.numbers) * points == len(numbers)


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
