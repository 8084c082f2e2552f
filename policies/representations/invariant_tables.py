"""Which grid points have which multiplicity, as tables for a grammar that chooses x, then y, then z.

The points of a Wyckoff position are those of its members: points, lines, planes or all of space, repeated by the
lattice. A member is kept as shift + basis @ t with whole numbers t, a lower triangular basis that the cell's own
periods are part of, and everything in 1/Q: x settles t0, then y settles t1, then z settles t2. A point has the
multiplicity of a member that it lies on unless that member contains another one, of a smaller multiplicity, that it
lies on, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from policies.representations.orbit_tables import tables
from policies.representations.quantiser import Q
from policies.representations.wyckoff import operations, positions

#: Special values of x, where one plane or line meets another, are multiples of 1/144.
SPECIAL = Q // 144


@dataclass(frozen=True, eq=False)
class Members:
    """All N members. Positions are known by their row R in `orbit_tables.tables`.

    first, number: (R,) the members of a position. shift: (N, 3). basis: (N, 3, 3), its diagonal Q where nothing is
    free. line, line_shift: (N, 3) the first free direction, and from where, as the position's own parameter runs along
    it where there is but one; line is 0 for points. dof: (N,). inside_first, inside_number: (N,) and inside: (P,) the
    members of smaller multiplicity that lie in each. bad_x: (N, Q / SPECIAL) bool, at which x no point of it has its
    multiplicity. rotations: (231, 192, 3, 3), shifts: (231, 192, 3) of each group's operations, turns: the identity
    less the rotations. n_operations: (231,).
    """

    first: np.ndarray
    number: np.ndarray
    shift: np.ndarray
    basis: np.ndarray
    line: np.ndarray
    line_shift: np.ndarray
    dof: np.ndarray
    inside_first: np.ndarray
    inside_number: np.ndarray
    inside: np.ndarray
    bad_x: np.ndarray
    rotations: np.ndarray
    shifts: np.ndarray
    turns: np.ndarray
    n_operations: np.ndarray


@cache
def members(max_atoms: int) -> Members:
    """Built once (some seconds) in a process."""
    t = tables(max_atoms)
    row, matrix, line_shift, shift, basis = _distinct(t.base.tolist())
    number = np.bincount(row, minlength=len(t.atoms))
    dof = t.dof[row]
    line = np.where(dof[:, None] == 1, matrix[:, :, 0], basis[:, :, 0] * (basis[:, :1, 0] < Q))
    line[dof == 0] = 0
    line_shift = np.where(dof[:, None] == 1, line_shift, shift)
    pairs = [_inside(np.flatnonzero((row >= a) & (row < b)), t.members[row], shift, basis)
             for a, b in zip(t.base[1:].tolist(), [*t.base[2:].tolist(), len(t.atoms)], strict=True)]
    outer, inner = (np.concatenate(column) for column in zip(*pairs, strict=True))
    inside_number = np.bincount(outer, minlength=len(row))
    arrays = (np.cumsum(number) - number, number, shift, basis, line, line_shift, dof,
              np.cumsum(inside_number) - inside_number, inside_number, inner, _bad_x(outer, inner, shift, basis))
    return Members(*arrays, *_operations())


def settle(shift: np.ndarray, basis: np.ndarray, grid: np.ndarray, k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Members (N) given the first k (N,) coordinates of points (N, 3): the places (N, 3), of which the first k are the
    points' and the others end with what is free set to 0, and (N,) whether the k coordinates are on the member."""
    at, on = shift.copy(), np.ones(len(shift), bool)
    for i in range(3):
        d, step = (grid[:, i] - at[:, i]) * (k > i), basis[:, i, i]
        on &= d % step == 0
        at += (d // step)[:, None] * basis[:, :, i]
    return at, on


def _distinct(base: list[int]) -> tuple[np.ndarray, ...]:
    """Row of the tables (N,), orbit matrix (N, 3, 3) and shift (N, 3), reduced shift and basis of each member."""
    rows, matrices, shifts = [], [], []
    for group in range(1, 231):
        for i, p in enumerate(positions(group)):
            rows.append(np.full(p.multiplicity, base[group] + i))
            matrix = np.zeros((p.multiplicity, 3, 3), dtype=np.int64)
            matrix[:, :, : p.dof] = p.orbit_matrix
            matrices.append(matrix)
            shifts.append(p.orbit_shift * (Q // 24))
    row, matrix, shift = (np.concatenate(x) for x in (rows, matrices, shifts))
    linear, which = np.unique(matrix.reshape(-1, 9), axis=0, return_inverse=True)
    basis = np.array([_triangular(m.reshape(3, 3)) for m in linear])[which.ravel()]
    reduced = shift.copy()
    for i in range(3):
        reduced -= (reduced[:, i] // basis[:, i, i])[:, None] * basis[:, :, i]
    key = np.concatenate([row[:, None], basis.reshape(-1, 9), reduced], 1)
    first = np.sort(np.unique(key, axis=0, return_index=True)[1])
    return row[first], matrix[first], shift[first], reduced[first], basis[first]


def _triangular(matrix: np.ndarray) -> np.ndarray:
    """(3, 3) lower triangular basis of what the columns and the periods Q generate; off the diagonal, as small as can
    be, so that it tells the directions of lines."""
    columns = [np.array(c) for c in [*matrix.T.tolist(), *(np.eye(3, dtype=np.int64) * Q).tolist()]]
    basis = []
    for i in range(3):
        while sum(bool(c[i]) for c in columns) > 1:
            smallest = min((c for c in columns if c[i]), key=lambda c: abs(c[i]))
            columns = [c if c is smallest else c - c[i] // smallest[i] * smallest for c in columns]
        pivot = next(c for c in columns if c[i])
        columns = [c for c in columns if c is not pivot]
        basis.append(pivot * np.sign(pivot[i]))
    for j, i in ((0, 1), (0, 2), (1, 2)):
        basis[j] = basis[j] - (2 * basis[j][i] + basis[i][i] - 1) // (2 * basis[i][i]) * basis[i]
    return np.stack(basis, 1)


def _inside(group: np.ndarray, multiplicity: np.ndarray, shift: np.ndarray, basis: np.ndarray
            ) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (outer, inner) of the members of one group of which the outer contains the inner and has more images."""
    outer, inner = (multiplicity[group][:, None] > multiplicity[group]).nonzero()
    outer, inner = group[outer], group[inner]
    within = np.ones(len(outer), bool)
    for vector in (shift[inner] - shift[outer], *(basis[inner, :, j] for j in range(3))):
        left = vector.copy()
        for i in range(3):
            steps, rest = np.divmod(left[:, i], basis[outer, i, i])
            within &= rest == 0
            left -= steps[:, None] * basis[outer, :, i]
    return outer[within], inner[within]


def _bad_x(outer: np.ndarray, inner: np.ndarray, shift: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """`Members.bad_x`: what a member has at some x is lost if an inner one has all of it, for all y.

    Where 2x is what is free, there are two y for an x, and both may be lost to different inner members.
    """
    free = np.diagonal(basis, axis1=1, axis2=2)
    whole = (free[inner, 0] == Q) & (free[outer, 0] < Q) & (free[inner, 2] == free[outer, 2])
    halves = free[outer, 1] == Q // 2
    whole &= (free[inner, 1] == free[outer, 1]) | halves
    o, i, halves = outer[whole], inner[whole], halves[whole]
    lost = np.zeros((len(shift), Q // SPECIAL, 2), bool)
    x = shift[i, 0] // SPECIAL
    second = shift[i, 1] >= Q // 2
    lost[o[~halves], x[~halves]] = True
    lost[o[halves], x[halves], second[halves].astype(int)] = True
    both = halves & (free[i, 1] < Q)
    lost[o[both], x[both]] = True
    return lost[..., 0] & lost[..., 1]


def _operations() -> tuple[np.ndarray, ...]:
    rotations, shifts = np.zeros((231, 192, 3, 3), int), np.zeros((231, 192, 3), int)
    number = np.zeros(231, int)
    for group in range(1, 231):
        r, s = operations(group)
        number[group] = len(r)
        rotations[group, : len(r)], shifts[group, : len(r)] = r, s * (Q // 24)
    return rotations, shifts, np.eye(3, dtype=int) - rotations, number
