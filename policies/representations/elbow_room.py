"""Whether a cell of some thickness certainly has room, on points, lines and planes, for the atoms that it must hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from math import pi

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
    t = tables(max_atoms)
    found = []
    for p, own in zip(positions(group), t.own[int(t.base[group]) :].tolist(), strict=False):
        if p.dof in (0, 3):
            found.append(ANY if p.dof else 1)
            continue
        spanned = p.matrix * np.array(sides)[:, None]
        if p.dof == 1:
            room = (np.linalg.norm(spanned) - MIN_DISTANCE * (own > 1)) / (_ON_LINE * own) - spare
        else:
            room = _free_area(spanned, own) / (_ON_PLANE * own)
        found.append(min(max(int(room), 0), max_atoms))
    return tuple(found)


@cache
def holds(max_atoms: int, group: int, n: int, sides: tuple[float, ...]) -> bool:
    """Whether a cell that holds a box with these sides (Å) certainly has room for n atoms in the primitive cell."""
    return any(lasting(max_atoms, group, 0, n, rooms(max_atoms, group, sides, 0)))


def _free_area(spanned: np.ndarray, own: int) -> float:
    """Å² of a plane that lie apart from the mirrors and axes by which its atoms, `own` a site, are repeated in it."""
    area = float(np.linalg.norm(np.cross(spanned[:, 0], spanned[:, 1])))
    first, second = np.linalg.norm(spanned, axis=0)
    if own < 4:
        return area - (own > 1) * _ON_LINE * max(first, second)
    return area * max(0.0, 1 - _ON_LINE / first) * max(0.0, 1 - _ON_LINE / second)
