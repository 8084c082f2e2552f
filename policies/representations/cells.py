"""The atoms of unfinished crystals, and what room Wyckoff positions have among them."""

from __future__ import annotations

import numpy as np

from policies.representations.distances import (
    MIN_DISTANCE,
    SMALL_AREA,
    TOUCHING,
    TRIES,
    area,
    free_on_line,
    nearest,
    pair_limits,
    radii,
    sites_on_line,
    sites_on_plane,
    too_close,
    tries,
)
from policies.representations.orbit_tables import ANY, tables


class Cells:
    """The cells of B unfinished sequences and the atoms in them. Positions are known by their row in the tables.

    metric: (B, 3, 3) Å² of the conventional cells. atoms: (B, N, 3) fractional, radii: (B, N) Å. radius: (B,) Å, of the
    element that is being written.
    """

    def __init__(self, max_atoms: int, b: int):
        self.t = tables(max_atoms)
        self.metric = np.tile(np.eye(3, dtype=np.float32), (b, 1, 1))
        self.atoms, self.radii = np.zeros((b, 64, 3), np.float32), np.zeros((b, 64), np.float32)
        self.filled = np.zeros(b, int)
        #: Places of atoms to come follow those that are filled.
        self.reserved = np.zeros(b, int)
        self.radius = np.zeros(b, np.float32)

    def keep(self, rows: int) -> None:
        for name in ("metric", "atoms", "filled", "reserved", "radii", "radius"):
            setattr(self, name, getattr(self, name)[:rows])

    def take_element(self, rows: np.ndarray, z: np.ndarray) -> None:
        self.radius[rows] = radii()[z]

    def put(self, rows: np.ndarray, place: np.ndarray, points: np.ndarray, radius: np.ndarray | float) -> None:
        """Write points (N, 3) to `atoms`, which grows as needed."""
        more = int(place.max(initial=-1)) + 1 - self.atoms.shape[1]
        if more > 0:
            self.atoms = np.pad(self.atoms, ((0, 0), (0, more), (0, 0)))
            self.radii = np.pad(self.radii, ((0, 0), (0, more)))
        self.atoms[rows, place], self.radii[rows, place] = points, radius

    # Positions (N,) of rows (N,)

    def apart(self, rows: np.ndarray, site: np.ndarray) -> np.ndarray:
        """(N,) which points, positions without free parameters, have their atoms apart from all others."""
        start, real = self._differences(rows, site)
        return ~(too_close(self.metric[rows], start) & real).any(1)

    def fit(self, rows: np.ndarray, site: np.ndarray) -> np.ndarray:
        """(N,) which points have their atoms at distances that fit the elements."""
        start, real = self._differences(rows, site)
        return ~((nearest(self.metric[rows], start) < self.limits(rows, start.shape[1])) & real).any(1)

    def largest(self, rows: np.ndarray, site: np.ndarray) -> np.ndarray:
        """(N,) Å: the largest radius of an element that fits on points."""
        start, real = self._differences(rows, site)
        distance, filled = nearest(self.metric[rows], start), self._most(rows)
        distance[:, :filled] = distance[:, :filled] / TOUCHING - self.radii[rows, :filled]
        distance[:, filled:] /= 2 * TOUCHING
        return np.where(real, distance, np.inf).min(1, initial=np.inf)

    def free(self, rows: np.ndarray, site: np.ndarray, k: np.ndarray | int = 0, u: np.ndarray | None = None, *,
             whole: bool = True) -> np.ndarray:
        """(N, Q): values of parameter k, after those of u (N, 3), that keep a position's atoms from each other and
        others.

        The later parameters are those of u, too, if it is `whole`. Else a difference counts as soon as no later
        parameter can change it: those to other atoms with the last one.
        """
        return free_on_line(self.metric[rows], *self._lines(rows, site, k, u, whole))

    def free_and_fit(self, rows: np.ndarray, site: np.ndarray, k: np.ndarray | int = 0, u: np.ndarray | None = None, *,
                     whole: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """(N, Q) `free`, and those of them at distances that fit the elements."""
        start, along, real = (np.concatenate([x, x]) for x in self._lines(rows, site, k, u, whole))
        fit = self.limits(rows, start.shape[1])
        free = free_on_line(self.metric[[*rows, *rows]], start, along, real,
                            limit=np.concatenate([np.full_like(fit, MIN_DISTANCE), fit]))
        return free[: len(rows)], free[: len(rows)] & free[len(rows) :]

    def room(self, rows: np.ndarray, site: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """(R, P): for how many sites positions (R, P) are certain to have room apart from others and each other, `ANY`
        where two or three parameters are free; 0 where not wanted."""
        found, dof = np.where(wanted, ANY, 0), self.t.dof[site]
        i, j = (wanted & (dof == 0)).nonzero()
        if len(i):
            found[i, j] = self.apart(rows[i], site[i, j])
        i, j = (wanted & (dof == 1)).nonzero()
        if len(i):
            row, line = rows[i], site[i, j]
            found[i, j] = sites_on_line(self.free(row, line).sum(1), self.t.matrix[line, 0, :, 0], self.metric[row],
                                        self.t.own[line])
        i, j = (wanted & (dof == 2)).nonzero()
        if len(i):
            size = area(self.t.matrix[site[i, j], 0, :, :2], self.metric[rows[i]])
            i, j, size = (x[size < SMALL_AREA] for x in (i, j, size))
        if len(i):
            plane = site[i, j]
            found[i, j] = sites_on_plane(self._share(rows[i], plane), size, self.t.own[plane])
        return found

    def _share(self, rows: np.ndarray, site: np.ndarray) -> np.ndarray:
        """(N,) the share of planes with which their atoms are apart from all others."""
        u = np.zeros((TRIES, len(rows), 3), np.float32)
        u[..., 1] = [[tries(attempt)[1]] for attempt in range(1, TRIES + 1)]
        free = self.free(np.tile(rows, TRIES), np.tile(site, TRIES), 0, u.reshape(-1, 3))
        return free.reshape(TRIES, len(rows), -1).mean((0, 2), dtype=np.float32)

    def limits(self, rows: np.ndarray, count: int) -> np.ndarray:
        """(N, count) Å that fit the element that is being written: to the places in `atoms`, then to itself."""
        radius, filled = self.radius[rows, None], self._most(rows)
        others = np.concatenate([self.radii[rows, :filled], radius.repeat(count - filled, 1)], 1)
        return pair_limits(others, radius)

    def _most(self, rows: np.ndarray) -> int:
        """Places in `atoms` that some of these rows have taken."""
        return int((self.filled + self.reserved)[rows].max())

    def _lines(self, rows: np.ndarray, site: np.ndarray, k: np.ndarray | int, u: np.ndarray | None, whole: bool
               ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Start, direction (N, M, 3) along parameter k, and whether it is real (N, M), of `_differences`."""
        start, real = self._differences(rows, site, u)
        filled = self._most(rows)
        count = start.shape[1] - filled + 1
        line = self.t.matrix[site, :count, :, k]
        direction = np.concatenate([line[:, :1].repeat(filled, 1), line[:, :1] - line[:, 1:]], 1)
        if not whole:
            matrix, later = self.t.matrix[site, :count], np.arange(3) > np.reshape(k, (-1, 1))
            real[:, :filled] &= (k == self.t.dof[site] - 1)[:, None]
            real[:, filled:] &= ~((matrix[:, :1] != matrix[:, 1:]) & later[:, None, None]).any((2, 3))
        return start, direction, real

    def _differences(self, rows: np.ndarray, site: np.ndarray, u: np.ndarray | None = None
                     ) -> tuple[np.ndarray, np.ndarray]:
        """The first atom's differences (N, M, 3) to the places in `atoms`, and to all others of its position, and
        whether they are real (N, M). u: (N, 3) free parameters."""
        taken = (self.filled + self.reserved)[rows]
        count, filled = int(self.t.members[site].max()), int(taken.max())
        point = self.t.shift[site, :count]
        if u is not None:
            point = point + apply(self.t.matrix[site, :count], u[:, None])
        start = np.concatenate([point[:, :1] - self.atoms[rows, :filled], point[:, :1] - point[:, 1:]], 1)
        real = np.concatenate([np.arange(filled) < taken[:, None],
                               np.arange(1, count) < self.t.members[site, None]], 1)
        return start, real


def apply(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """(..., 3) of matrices (..., 3, 3) and vectors (..., 3), term by term: they are small."""
    x, y, z = (vector[..., None, i] for i in range(3))
    return matrix[..., 0] * x + matrix[..., 1] * y + matrix[..., 2] * z
