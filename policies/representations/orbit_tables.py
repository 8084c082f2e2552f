"""The Wyckoff positions of all groups as arrays, row by row, for a grammar that looks them up for a whole batch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from policies.representations.wyckoff import GRID, Position, centring, orbit_keys, positions

MOST_POSITIONS = 27
#: Stands for room for any number of sites.
ANY = 255


@dataclass(frozen=True, eq=False)
class Tables:
    """Each group has a row for every position, in the order of `positions`, and a last one that stands for no more.

    base: (231,) first row of each group, of group 0 unused. count: (231,) positions. orbit: (R,) token's place in its
    block. dof: (R,). atoms: (R,) in the primitive cell. matrix, shift: (R, m, 3, 3), (R, m, 3) of the orbit's members,
    the representative first, zero-padded. members: (R,) in the conventional cell. points: (231,) lattice points per
    conventional cell. reach: (R, max_atoms + 1) bool: whether so many atoms can be made from this row on. least: (R,)
    the least number of atoms that can. roomy: as reach, by positions with two or three free parameters alone. own:
    (R,) atoms that a site with one or two free parameters has on each of its lines or planes. of_orbit: by group, orbit
    -> position.
    """

    base: np.ndarray
    count: np.ndarray
    orbit: np.ndarray
    dof: np.ndarray
    atoms: np.ndarray
    matrix: np.ndarray
    shift: np.ndarray
    members: np.ndarray
    points: np.ndarray
    reach: np.ndarray
    least: np.ndarray
    roomy: np.ndarray
    own: np.ndarray
    of_orbit: tuple[dict[int, int], ...]


@cache
def tables(max_atoms: int) -> Tables:
    """Built once (a second or two) for each largest number of atoms."""
    keys = orbit_keys()
    base, count, points = [0], [0], [1]
    rows: list[tuple[int, int, int, int]] = []  # orbit, dof, atoms, members
    matrices, shifts, reach, roomy, own = [], [], [], [], []
    of_orbit: list[dict[int, int]] = [{}]
    for group in range(1, 231):
        table, n = positions(group), centring(group)[0]
        base.append(len(rows))
        count.append(len(table))
        points.append(n)
        of_orbit.append({keys[group, p.letter]: i for i, p in enumerate(table)})
        for p in table:
            rows.append((keys[group, p.letter], p.dof, p.multiplicity // n, p.multiplicity))
            matrix = np.zeros((p.multiplicity, 3, 3), np.float32)
            matrix[:, :, : p.dof] = p.orbit_matrix
            matrices.append(matrix)
            shifts.append((p.orbit_shift / 24).astype(np.float32))
        rows.append((0, 0, max_atoms + 1, 0))
        matrices.append(np.zeros((0, 3, 3), np.float32))
        shifts.append(np.zeros((0, 3), np.float32))
        reach += _reach([(r[2], r[1]) for r in rows[base[-1] : -1]], max_atoms)
        roomy += _reach([(r[2] if r[1] > 1 else max_atoms + 1, r[1]) for r in rows[base[-1] : -1]], max_atoms)
        own += [*(_own(p) for p in table), 0]
    most = max(r[3] for r in rows)
    matrix, shift = np.zeros((len(rows), most, 3, 3), np.float32), np.zeros((len(rows), most, 3), np.float32)
    for i, (m, s) in enumerate(zip(matrices, shifts, strict=True)):
        matrix[i, : len(m)], shift[i, : len(s)] = m, s
    orbit, dof, atoms, members = (np.array(column) for column in zip(*rows, strict=True))
    reachable = np.array(reach)
    return Tables(base=np.array(base), count=np.array(count), orbit=orbit, dof=dof, atoms=atoms, matrix=matrix,
                  shift=shift, members=members, points=np.array(points), reach=reachable,
                  least=reachable[:, 1:].argmax(1) + 1, roomy=np.array(roomy), own=np.array(own),
                  of_orbit=tuple(of_orbit))


def _reach(found: list[tuple[int, int]], max_atoms: int) -> list[np.ndarray]:
    """`reach` of a group's rows, from the (atoms, dof) of its positions.

    A position without free parameters can be occupied once; one with them any number of times.
    """
    now = np.zeros(max_atoms + 1, bool)
    now[0] = True
    rows = [now]
    for atoms, dof in reversed(found):
        now = now.copy()
        if dof:
            for n in range(atoms, max_atoms + 1):
                now[n] |= now[n - atoms]
        else:
            now[atoms:] |= rows[-1][: max(0, max_atoms + 1 - atoms)]
        rows.append(now)
    return rows[::-1]


@cache
def lasting(max_atoms: int, group: int, start: int, left: int, room: tuple[int, ...]) -> tuple[bool, ...]:
    """By position whether `left` atoms can be made of positions from `start` on, a site on this one the first of them.

    room: how many sites each position has room for; a point may take that of one site from every line.
    """
    t = tables(max_atoms)
    base, count = int(t.base[group]), int(t.count[group])
    dof = t.dof[base : base + count].tolist()
    if start < count and dof[start] == 0 and any(d == 1 and some for d, some in zip(dof, room, strict=True)):
        less = tuple(max(0, some - 1) if d == 1 else some for d, some in zip(dof, room, strict=True))
        on_points = _lasting(max_atoms, group, start, left, less)
        return tuple(some if d == 0 else other for d, some, other in
                     zip(dof, on_points, _lasting(max_atoms, group, start, left, room), strict=True))
    return _lasting(max_atoms, group, start, left, room)


def _lasting(max_atoms: int, group: int, start: int, left: int, room: tuple[int, ...]) -> tuple[bool, ...]:
    t = tables(max_atoms)
    base, count = int(t.base[group]), int(t.count[group])
    found, reached = [False] * count, 1  # bit n of `reached`: n atoms can be made of the positions that follow
    for i in reversed(range(start, count)):
        m, before = int(t.atoms[base + i]), reached
        for k in range(1, min(room[i], left // m) + 1):
            found[i] |= bool(before << k * m >> left & 1)
            reached |= before << k * m
    return tuple(found)


def _own(position: Position) -> int:
    """How many members of a position with one or two free parameters are on the line or plane of the first."""
    if position.dof == 2:
        normal = np.cross(*np.moveaxis(position.orbit_matrix, 2, 0))  # (members, 3)
        normal //= np.gcd.reduce(normal, axis=1, keepdims=True)
        same = (normal == normal[0]).all(1) | (normal == -normal[0]).all(1)
        return int((same & ((position.orbit_shift - position.orbit_shift[0]) @ normal[0] % GRID == 0)).sum())
    if position.dof != 1:
        return 0
    line, apart = position.orbit_matrix[:, :, 0], position.orbit_shift - position.orbit_shift[0]
    along = (line == line[0]).all(1) | (line == -line[0]).all(1)
    steps = np.arange(2 * GRID)[:, None, None] / 2 * line[0]  # shifts along a line are whole numbers of 1/48 of it
    return int((along & ((apart - steps) % GRID == 0).all(2).any(0)).sum())
