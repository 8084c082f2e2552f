"""Where on a line of grid points an atom may lie without coming too close to others, periodic images included."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
from ase.data import covalent_radii

from policies.representations.base import MAX_Z
from policies.representations.quantiser import Q

#: Å: no two atoms are written closer (the validity limit of Xie et al., arXiv 2110.06197).
MIN_DISTANCE = 0.5
#: Where that leaves a choice, two atoms are not written closer than this part of the sum of their covalent radii.
TOUCHING = 0.6
#: Å: the least distance between the lattice planes of a primitive cell (MP-20's least is 1.95). From twice the limit
#: on, of two atoms only the pair of images that is nearest in every fractional coordinate can be too close.
MIN_HEIGHT = 1.9
#: Å³ per atom: the least a cell offers (MP-20's densest has 5.77).
MIN_VOLUME = 3.0


#: Choices of later coordinates that are looked at before a value is ruled out, and their steps: spread evenly.
TRIES, _STEPS = 16, (0.8192, 0.6711, 0.5498)
#: Å²: on planes of a larger area any number of sites has room.
SMALL_AREA = 16.0
#: The part of a share found by so many tries that is certain to be there.
_SURE = 0.8
#: Lattice vectors with entries of -1 to 1, one of each pair of opposite ones.
_IMAGES = np.array([v for v in product((-1.0, 0.0, 1.0), repeat=3) if v > (0, 0, 0)], np.float32)
#: What `free_on_line` leaves free at just the limit is not too close because of another order of adding up.
_ROUNDING = 1 - 5e-5


@cache
def tries(attempt: int) -> np.ndarray:
    """(3,) fractions of a cell, on the grid: the choice of later coordinates that an attempt (from 1) looks at."""
    return np.array([int(attempt * step % 1 * Q) / Q for step in _STEPS], np.float32)


def heights(metric: np.ndarray) -> np.ndarray:
    """(B, 3) Å between the lattice planes of cells with metric tensors (B, 3, 3)."""
    a, h, g, _, b, f, _, _, c = metric.reshape(-1, 9).astype(float).T
    area = np.stack([b * c - f * f, a * c - g * g, a * b - h * h], 1)  # squared, of the faces
    volume = a * area[:, 0] + h * (f * g - c * h) + g * (f * h - b * g)
    return np.sqrt(volume[:, None] / area).astype(np.float32)


def too_close(metric: np.ndarray, difference: np.ndarray) -> np.ndarray:
    """(B, ...) bool: fractional differences (B, ..., 3) under the limit in cells with metric tensors (B, 3, 3)."""
    d = difference - difference.round()
    g = metric.reshape(len(metric), *[1] * (d.ndim - 2), 3, 3)
    return _product(d, g, d) < MIN_DISTANCE**2 * _ROUNDING


def _product(x: np.ndarray, metric: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x G y (...) of vectors (..., 3) and metric tensors (..., 3, 3).

    Term by term: a matrix product may round differently in a batch of another shape, and what was legal while sampling
    must be legal when log-probabilities are computed again.
    """
    terms = x[..., :, None] * metric * y[..., None, :]
    found = terms[..., 0, 0] + terms[..., 2, 2]
    for i, j in ((0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1)):
        found += terms[..., i, j]
    return found


@cache
def radii() -> np.ndarray:
    """(MAX_Z + 1,) Å: covalent radii (Cordero et al., Dalton Trans. 2832 (2008)); 0 for no element."""
    return np.array([0.0, *covalent_radii[1 : MAX_Z + 1]], np.float32)


def pair_limits(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Å: how far apart atoms with covalent radii `one` and `two` (Å) are written where that leaves a choice."""
    return np.maximum(TOUCHING * (one + two), MIN_DISTANCE)


def nearest(metric: np.ndarray, difference: np.ndarray) -> np.ndarray:
    """(B, M) Å: from fractional differences (B, M, 3) to the nearest lattice vector, cells as `free_on_line`'s."""
    d = difference - difference.round()
    along = (d[:, :, None] * metric[:, None]).sum(-1)  # (B, M, 3)
    # Of an image and its opposite the one on the side of d is nearer.
    x, y, z = (along[..., i, None] * _IMAGES[:, i] for i in range(3))
    nearer = _product(_IMAGES, metric[:, None], _IMAGES)[:, None] - 2 * abs(x + y + z)
    return np.sqrt(np.maximum((along * d).sum(-1) + np.minimum(nearer.min(2), 0), 0))


def shortest(metric: np.ndarray) -> np.ndarray:
    """(B,) Å: the shortest lattice vector of cells with metric tensors (B, 3, 3), of those with entries of -1 to 1."""
    return np.sqrt(np.maximum(_product(_IMAGES, metric[:, None], _IMAGES).min(1), 0))


def free_on_line(metric: np.ndarray, start: np.ndarray, direction: np.ndarray, real: np.ndarray, steps: int = Q,
                 limit: np.ndarray | None = None) -> np.ndarray:
    """Grid values u = k/steps at which none of M differences start + direction * u is too close to a lattice vector.

    metric: (B, 3, 3) Å². start: (B, M, 3). direction: (B, M, 3) whole numbers. real: (B, M) bool, the differences
    that count. limit: (B, M) Å, instead of `MIN_DISTANCE`. Returns (B, steps) bool. |start + direction u - n|² is a
    parabola in u for every lattice vector n, so what is forbidden is an interval of u; intervals are added up by
    their ends.
    """
    b, m, _ = start.shape
    allowed = np.ones((b, steps), bool)
    if not m or not b:
        return allowed
    row, pair = real.nonzero()
    d, r = start[row, pair], direction[row, pair]  # (L, 3)
    d = d - d.round()
    least = np.full(len(d), MIN_DISTANCE, np.float32) if limit is None else limit[row, pair]
    # The planes of lattice points that the line comes nearer to than the limit, axis by axis, and where they meet.
    margin = least[:, None] / heights(metric)[row]
    first = np.floor(np.minimum(d, d + r) - margin) + 1
    number = np.maximum(np.ceil(np.maximum(d, d + r) + margin) - first, 0).astype(int)
    many = number.prod(1)
    line, place = ranges(np.zeros_like(many), many)
    if not len(line):
        return allowed
    x, y, _ = number[line].T
    row, r = row[line], r[line]
    d = d[line] - first[line] - np.stack([place % x, place // x % y, place // (x * y)], 1).astype(np.float32)
    g = metric[row]
    turned = (r[:, :, None] * g).sum(-2)
    a, half_b, c = (turned * r).sum(-1), (turned * d).sum(-1), _product(d, g, d) - least[line] ** 2
    root = half_b**2 - a * c
    hit = (root > 0) & (a > 0)
    fixed = (a == 0) & (c < 0)  # a difference that does not depend on u
    allowed[row[fixed]] = False
    row, a, half_b, root = row[hit], a[hit], half_b[hit], np.sqrt(root[hit])
    first = np.floor((-half_b - root) / a * steps).astype(int) + 1
    last = np.ceil((-half_b + root) / a * steps).astype(int) - 1
    inside = (last >= first) & (last >= 0) & (first < steps)
    row, first, last = row[inside], first[inside].clip(min=0), last[inside].clip(max=steps - 1)
    ends = np.zeros(b * (steps + 1), np.int32)
    np.add.at(ends, row * (steps + 1) + first, 1)
    np.subtract.at(ends, row * (steps + 1) + last + 1, 1)
    return allowed & (ends.reshape(b, -1).cumsum(1, dtype=np.int32)[:, :steps] == 0)


def ranges(first: np.ndarray, number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(i, first[i] + j) for all i and j < number[i]."""
    i = np.arange(len(first)).repeat(number)
    return i, np.arange(len(i)) - (number.cumsum() - number - first)[i]


def sites_on_plane(share: np.ndarray, area: np.ndarray, atoms: np.ndarray) -> np.ndarray:
    """(N,) how many sites, of so many atoms (N,) each, find room on planes of which a share (N,) is free, wherever each
    is put: an atom takes at most a disc of the limit's radius from those that follow. area: (N,) Å²."""
    taken = (np.pi * MIN_DISTANCE**2 * atoms).astype(np.float32)
    return np.where(share > 0, 1 + (_SURE * share * area / taken).astype(int), 0)


def area(plane: np.ndarray, metric: np.ndarray) -> np.ndarray:
    """(N,) Å² of what two parameters from 0 to 1 span: planes (N, 3, 2) in cells with metric tensors (N, 3, 3)."""
    a, b = plane[..., 0], plane[..., 1]
    return np.sqrt(np.maximum(_product(a, metric, a) * _product(b, metric, b) - _product(a, metric, b) ** 2, 0))


def sites_on_line(free: np.ndarray, line: np.ndarray, metric: np.ndarray, atoms: np.ndarray) -> np.ndarray:
    """(N,) how many sites, of so many atoms (N,) each, are certain to find room on lines of which `free` (N,) of Q grid
    values are free, wherever each is put: an atom takes at most twice the limit away from those that follow.

    line: (N, 3) what a parameter from 0 to 1 runs through. metric: (N, 3, 3).
    """
    length = np.sqrt(_product(line, metric, line))
    taken = ((2 * MIN_DISTANCE * Q / length).astype(int) + 1) * atoms
    return np.where(free > 0, 1 + np.maximum(free - 1, 0) // taken, 0)
