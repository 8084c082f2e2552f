"""The 1731 Wyckoff positions of the 230 space groups, as integer arrays.

Setting: the standard one of the International Tables (unique axis b, cell choice 1; hexagonal axes; origin choice 2).
Coordinates are fractional ones of the conventional cell; every shift is an integer number of 1/24. wyckoff.json holds
each position's letter, multiplicity, representative and site symmetry (see build_wyckoff.py); the rest is derived from
it and the operations when first asked for.
"""

from __future__ import annotations

import itertools
import json
import re
import string
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

TABLE = Path(__file__).with_name("wyckoff.json")
LETTERS = string.ascii_lowercase + "A"
N_GROUPS = 230
N_POSITIONS = 1731
#: Shifts are in units of 1/GRID.
GRID = 24

#: prim_frac = conv_frac @ M, by the fractional coordinates (1/GRID) of the lattice points besides the origin.
_TO_PRIMITIVE: dict[frozenset[tuple[int, ...]], list[list[int]]] = {
    frozenset(): [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    frozenset({(0, 12, 12)}): [[1, 0, 0], [0, 1, 1], [0, -1, 1]],
    frozenset({(12, 12, 0)}): [[1, -1, 0], [1, 1, 0], [0, 0, 1]],
    frozenset({(12, 12, 12)}): [[0, 1, 1], [1, 0, 1], [1, 1, 0]],
    frozenset({(0, 12, 12), (12, 0, 12), (12, 12, 0)}): [[-1, 1, 1], [1, -1, 1], [1, 1, -1]],
    frozenset({(16, 8, 8), (8, 16, 16)}): [[1, -1, 0], [0, 1, -1], [1, 1, 1]],
}
_TERM = re.compile(r"([+-]?)(\d*)(?:/(\d+))?([xyz]?)")


@dataclass(frozen=True, eq=False)
class Position:
    """One Wyckoff position; u is the (dof,) vector of its free parameters, x a point of the conventional cell.

    The representative is x = matrix @ u + shift / 24, and the orbit x_i = orbit_matrix[i] @ u + orbit_shift[i] / 24, of
    which the first is the representative.
    """

    group: int
    letter: str
    multiplicity: int  # in the conventional cell
    dof: int  # 0 to 3
    matrix: np.ndarray  # (3, dof) integers
    shift: np.ndarray  # (3,) integers in 1/24, 0..23
    #: (dof,) the component that is ± the parameter and a constant, -1 where there is none.
    free: np.ndarray
    orbit_matrix: np.ndarray  # (multiplicity, 3, dof) integers
    orbit_shift: np.ndarray  # (multiplicity, 3) integers in 1/24, 0..23
    site_symmetry: str


@cache
def operations(group: int) -> tuple[np.ndarray, np.ndarray]:
    """The operations of the conventional cell, those of the centring included; the identity is the first.

    Returns rotations (n, 3, 3) and translations (n, 3) in 1/24 (0..23): x -> rotation @ x + translation / 24. Raises
    ValueError for a group that is not 1..230.
    """
    import moyopy  # the table alone must be quick to import

    _check(group)
    found = moyopy.operations_from_number(group, setting=moyopy.Setting.standard())
    rotations = np.array(found.rotations, dtype=np.int64)
    scaled = np.array(found.translations) * GRID
    translations = np.rint(scaled).astype(np.int64)
    if np.abs(scaled - translations).max() > 1e-6:
        raise ValueError(f"space group {group}: a translation is no multiple of 1/{GRID}")
    return _frozen(rotations), _frozen(translations % GRID)


@cache
def centring(group: int) -> tuple[int, np.ndarray]:
    """Lattice points per conventional cell, and the (3, 3) integer matrix M with prim_frac = conv_frac @ M.

    With N = inv(M): primitive lattice rows = N @ conventional lattice rows, and conv_frac = prim_frac @ N. det M is
    positive (handedness is kept) and equals the number of lattice points. Primitive rows, in conventional ones:
    A (1,0,0) (0,1/2,-1/2) (0,1/2,1/2); C (1/2,1/2,0) (-1/2,1/2,0) (0,0,1); I (-1/2,1/2,1/2) and cyclic; F (0,1/2,1/2)
    and cyclic; R (obverse) (2/3,1/3,1/3) (-1/3,1/3,1/3) (-1/3,-2/3,1/3).
    """
    rotations, translations = operations(group)
    points = translations[(rotations == np.eye(3, dtype=np.int64)).all(axis=(1, 2))]
    key = frozenset(tuple(point) for point in points.tolist() if any(point))
    return len(points), _frozen(np.array(_TO_PRIMITIVE[key], dtype=np.int64))


@cache
def positions(group: int) -> tuple[Position, ...]:
    """The group's positions: those without free parameters first, then the others, each in letter order (a..z, A).

    Raises ValueError for a group that is not 1..230.
    """
    _check(group)
    found = [_position(group, *row) for row in _table()[str(group)]]
    return tuple(sorted(found, key=lambda position: position.dof > 0))


@cache
def orbit_keys() -> dict[tuple[int, str], int]:
    """{(group, letter): id} such that equal ids mean the same orbit, as a set of affine expressions modulo 1.

    Expressions that differ only by the choice of parameters count as the same, so positions of one id give the same
    points, but not always from the same u. Ids are numbered by first appearance, in the order of groups and letters.
    """
    ids: dict[bytes, int] = {}
    keys: dict[tuple[int, str], int] = {}
    for group in range(1, N_GROUPS + 1):
        for position in sorted(positions(group), key=lambda p: LETTERS.index(p.letter)):
            keys[group, position.letter] = ids.setdefault(_canonical(position), len(ids))
    return keys


def parse(coordinates: str) -> tuple[np.ndarray, np.ndarray]:
    """ "x,2x+1/4,z" -> (3, dof) integer matrix and (3,) shift in 1/24 (0..23).

    The columns are those of x, y and z that occur. Raises ValueError for what cannot be read or is off the grid.
    """
    matrix, shift = np.zeros((3, 3), dtype=np.int64), np.zeros(3, dtype=np.int64)
    components = coordinates.replace(" ", "").split(",")
    if len(components) != 3:
        raise ValueError(f"three components expected: {coordinates!r}")
    for i, component in enumerate(components):
        terms = [match for match in _TERM.finditer(component) if match.group()]
        if not component or "".join(match.group() for match in terms) != component:
            raise ValueError(f"cannot read {coordinates!r}")
        for sign, numerator, denominator, variable in (match.groups() for match in terms):
            value, rest = divmod(int(numerator or 1) * (1 if variable else GRID), int(denominator or 1))
            if rest or not (numerator or variable):
                raise ValueError(f"cannot read {component!r} of {coordinates!r}")
            value = -value if sign == "-" else value
            if variable:
                matrix[i, "xyz".index(variable)] += value
            else:
                shift[i] += value
    return matrix[:, matrix.any(axis=0)], shift % GRID


@cache
def _table() -> dict[str, list[tuple[str, int, str, str]]]:
    return json.loads(TABLE.read_text(encoding="utf-8"))


def _check(group: int) -> None:
    if not 1 <= group <= N_GROUPS:
        raise ValueError(f"no space group {group}")


def _frozen(array: np.ndarray) -> np.ndarray:
    """The array, made read-only: it is shared by every caller."""
    array.setflags(write=False)
    return array


def _position(group: int, letter: str, multiplicity: int, coordinates: str, site_symmetry: str) -> Position:
    matrix, shift = parse(coordinates)
    orbit_matrix, orbit_shift = _orbit(group, matrix, shift)
    if len(orbit_shift) != multiplicity:
        raise ValueError(f"{group}{letter}: {len(orbit_shift)} points in the orbit, not {multiplicity}")
    return Position(
        group=group,
        letter=letter,
        multiplicity=multiplicity,
        dof=matrix.shape[1],
        matrix=_frozen(matrix),
        shift=_frozen(shift),
        free=_frozen(_free(matrix)),
        orbit_matrix=_frozen(orbit_matrix),
        orbit_shift=_frozen(orbit_shift),
        site_symmetry=site_symmetry,
    )


def _orbit(group: int, matrix: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct images of an affine expression, in the order of the operations."""
    rotations, translations = operations(group)
    matrices, shifts = rotations @ matrix, (rotations @ shift + translations) % GRID
    rows = np.concatenate([matrices.reshape(len(rotations), -1), shifts], axis=1)
    first = np.sort(np.unique(rows, axis=0, return_index=True)[1])
    return matrices[first], shifts[first]


def _free(matrix: np.ndarray) -> np.ndarray:
    """(dof,) for each parameter the first component that depends on it alone, with coefficient ±1; -1 if none does."""
    alone = (np.abs(matrix) == 1) & (np.count_nonzero(matrix, axis=1) == 1)[:, None]
    return np.where(alone.any(axis=0), alone.argmax(axis=0), -1)


def _canonical(position: Position) -> bytes:
    """Equal for two positions if, and only if, their orbits are the same set up to the choice of parameters.

    Each expression in turn can serve as the base: its parameters are chosen such that some of its components are the
    parameters themselves. That leaves no freedom, so the smallest outcome over the bases depends on the set alone.
    """
    bases = [_base(*pair) for pair in zip(position.orbit_matrix, position.orbit_shift, strict=True)]
    smallest = min(own for own, _, _ in bases)
    # Only bases that themselves read the same compete: a choice that does not depend on the parameters either.
    return min(_written(position, A, c) for own, A, c in bases if own == smallest)


def _base(matrix: np.ndarray, shift: np.ndarray) -> tuple[bytes, np.ndarray, np.ndarray]:
    """(written form, A, c): u = A @ v + c / 24 turns the first components that allow it into the parameters v."""
    dof = matrix.shape[1]
    for chosen in itertools.combinations(range(3), dof):
        part = matrix[list(chosen)]
        if abs(round(float(np.linalg.det(part)))) == 1:
            A = np.rint(np.linalg.inv(part)).astype(np.int64)
            c = -A @ shift[list(chosen)]
            row = np.concatenate([(matrix @ A).ravel(), (matrix @ c + shift) % GRID])
            return row.astype(np.int8).tobytes(), A, c
    raise ValueError(f"no components of {matrix.tolist()} can serve as parameters")


def _written(position: Position, A: np.ndarray, c: np.ndarray) -> bytes:
    """The orbit with u = A @ v + c / 24 put in, as sorted rows, led by the number of parameters."""
    matrices = (position.orbit_matrix @ A).reshape(position.multiplicity, -1)
    shifts = (position.orbit_matrix @ c + position.orbit_shift) % GRID
    rows = np.concatenate([matrices, shifts], axis=1).astype(np.int8)
    return bytes([position.dof]) + b"".join(sorted(row.tobytes() for row in rows))
