"""Whether a cell of some thickness certainly has room, on points, lines and planes, for the atoms that it must hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from math import pi, sqrt

import numpy as np

from policies.representations.distances import MIN_DISTANCE
from policies.representations.orbit_tables import ANY, lasting, tables
from policies.representations.wyckoff import positions

#: Å: cells are told apart by their sides in these steps, up to the last: no thicker one lacks room.
_STEP, _LONGEST = 0.25, 24.0
#: What an atom takes at most from those that follow, on a line (Å) and on a plane (Å²).
_ON_LINE, _ON_PLANE = 2 * MIN_DISTANCE, pi * MIN_DISTANCE**2


def rounded(sides: Sequence[float]) -> tuple[float, ...]:
    """(3,) Å of a cell that is no larger."""
    return tuple(min(side // _STEP * _STEP, _LONGEST) for side in sides)


#: Whether there is room in a cell with sides (3,) Å, as `rounded`.
Fits = Callable[[tuple[float, ...]], bool]


def least_side(fits: Fits, sides: Sequence[float], mine: Sequence[bool]) -> float:
    """Å: the least length of those of three sides that are `mine`, at least what they are, with which there is room;
    as they are if no length is enough."""
    low = next(side for side, here in zip(sides, mine, strict=True) if here)
    if fits(rounded(sides)):
        return low
    steps = np.arange(low // _STEP + 1, _LONGEST / _STEP + 1) * _STEP
    return next((float(s) for s in steps if fits(rounded([s if here else side for side, here in
                                                         zip(sides, mine, strict=True)]))), low)


@cache
def rooms(max_atoms: int, group: int, sides: tuple[float, ...], spare: int) -> tuple[int, ...]:
    """For how many sites each position of a group is certain to have room in an empty cell that holds a box with these
    sides (Å); `ANY` for general positions, which the least volume is for. One site less than there is room for, on
    lines and planes, and `spare` more on lines: other positions may cross them."""
    found = []
    for own, directions in _shapes(max_atoms, group):
        if len(directions) in (0, 3):
            found.append(ANY if directions else 1)
            continue
        first, *others = ([x * side for x, side in zip(d, sides, strict=True)] for d in directions)
        if others:
            room = _free_area(first, others[0], own) / (_ON_PLANE * own)
        else:
            room = (_length(first) - MIN_DISTANCE * (own > 1)) / (_ON_LINE * own) - spare
        found.append(min(max(int(room), 0), max_atoms))
    return tuple(found)


@cache
def _shapes(max_atoms: int, group: int) -> list[tuple[int, list[list[int]]]]:
    """Of each position of a group `Tables.own` and the directions of its free parameters."""
    t = tables(max_atoms)
    return [(own, p.matrix.T.tolist()) for p, own in
            zip(positions(group), t.own[t.base[group] :].tolist(), strict=False)]


@cache
def holds(max_atoms: int, group: int, n: int, sides: tuple[float, ...]) -> bool:
    """Whether a cell that holds a box with these sides (Å) certainly has room for n atoms in the primitive cell."""
    return any(lasting(max_atoms, group, 0, n, rooms(max_atoms, group, sides, 0)))


def _free_area(a: Sequence[float], b: Sequence[float], own: int) -> float:
    """Å² of a plane, spanned by a and b (3,) Å, that lie apart from the mirrors and axes by which its atoms, `own` a
    site, are repeated in it."""
    area = _length([a[i - 2] * b[i - 1] - a[i - 1] * b[i - 2] for i in range(3)])
    if own < 4:
        return area - (own > 1) * _ON_LINE * max(_length(a), _length(b))
    return area * max(0.0, 1 - _ON_LINE / _length(a)) * max(0.0, 1 - _ON_LINE / _length(b))


def _length(vector: Sequence[float]) -> float:
    return sqrt(sum(x * x for x in vector))
