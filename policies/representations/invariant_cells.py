"""The atoms of unfinished crystals, and what room Wyckoff positions have among them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from policies.representations.distances import (
    MIN_DISTANCE,
    SMALL_AREA,
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
from policies.representations.orbit_tables import ANY, MOST_POSITIONS, tables


class Cells:
    """The cells of B unfinished sequences and the atoms in them. Positions are known by their row in the tables.

    metric: (B, 3, 3) Å² of the conventional cells. atoms: (B, N, 3) fractional, radii: (B, N) Å. radius: (B,) Å, of the
    element that is being written.
    """

    def __init__(self, max_atoms: int, b: int, device: torch.device):
        self.t = tables(max_atoms).to(device)
        index = torch.arange(MOST_POSITIONS, device=device)
        self._at = (self.t.base[:, None] + index).clamp(max=len(self.t.dof) - 1)  # (231, 27)
        self._dof = torch.where(index < self.t.count[:, None], self.t.dof[self._at], -1)
        self.metric = torch.eye(3, device=device).repeat(b, 1, 1)
        self.atoms = torch.zeros(b, 64, 3, device=device)
        self.filled = torch.zeros(b, dtype=torch.long, device=device)
        #: Places of atoms to come follow those that are filled.
        self.reserved = torch.zeros(b, dtype=torch.long, device=device)
        self.radius_of = radii(device)
        self.radii = torch.zeros(b, 64, device=device)
        self.radius = torch.zeros(b, device=device)

    def keep(self, rows: int) -> None:
        for name in ("metric", "atoms", "filled", "reserved", "radii", "radius"):
            setattr(self, name, getattr(self, name)[:rows])

    def take_element(self, rows: torch.Tensor, z: torch.Tensor) -> None:
        self.radius[rows] = self.radius_of[z]

    def positions(self, group: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(R, 27) positions of groups (R,), and their free parameters; -1 where there is no such position."""
        return self._at[group], self._dof[group]

    def points(self, rows: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
        """(R, 27) which positions without freedom have their atoms apart from all others."""
        at, dof = self.positions(group)
        found = dof == 0
        i, j = found.nonzero(as_tuple=True)
        if len(i):
            start, _, real = self._differences(rows[i], at[i, j], self.filled[rows[i]])
            found[i, j] = ~(too_close(self.metric[rows[i]], start) & real).any(1)
        return found

    def points_that_fit(self, rows: torch.Tensor, group: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """(R, 27) those of the wanted positions without freedom that have their atoms at distances that fit the
        elements."""
        at, dof = self.positions(group)
        found = wanted & (dof == 0)
        i, j = found.nonzero(as_tuple=True)
        if len(i):
            rows, taken = rows[i], self.filled[rows[i]]
            start, _, real = self._differences(rows, at[i, j], taken)
            limit = self.limits(rows, taken, start.shape[1])
            found[i, j] = ~((nearest(self.metric[rows], start) < limit) & real).any(1)
        return found

    def room(self, rows: torch.Tensor, group: torch.Tensor, points: torch.Tensor, lines: bool) -> torch.Tensor:
        """(R, 27) for how many sites positions are certain to have room, `ANY` where two or three parameters are free.

        points: those that are free. Without `lines`, those are taken to have no room.
        """
        at, dof = self.positions(group)
        found = torch.where(dof > 1, ANY, points.long())
        i, j = ((dof == 1) & lines).nonzero(as_tuple=True)
        if len(i):
            site = at[i, j]
            taken = self.filled[rows[i]] + self.reserved[rows[i]]
            free = free_on_line(self.metric[rows[i]], *self._differences(rows[i], site, taken)).sum(1)
            found[i, j] = sites_on_line(free, self.t.matrix[site, 0, :, 0], self.metric[rows[i]], self.t.own[site])
        i, j = (dof == 2).nonzero(as_tuple=True)
        if len(i):
            size = area(self.t.matrix[at[i, j], 0, :, :2], self.metric[rows[i]])
            i, j, size = (x[size < SMALL_AREA] for x in (i, j, size))
        if len(i):
            found[i, j] = sites_on_plane(self.plane_free(rows[i], at[i, j]), size, self.t.own[at[i, j]])
        return found

    def line_free(self, rows: torch.Tensor, site: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(R, Q) with which values of their parameter the atoms of positions are apart, and with which their distances
        fit the elements."""
        taken = self.filled[rows] + self.reserved[rows]
        start, along, real = (torch.cat([x, x]) for x in self._differences(rows, site, taken))
        fit = self.limits(rows, taken, start.shape[1])
        limit = torch.cat([torch.full_like(fit, MIN_DISTANCE), fit])
        free = free_on_line(self.metric[rows].repeat(2, 1, 1), start, along, real, limit=limit)
        return free[: len(rows)], free[len(rows) :]

    def plane_free(self, rows: torch.Tensor, site: torch.Tensor) -> torch.Tensor:
        """(R,) the share of planes with which their atoms are apart from all others."""
        share, taken = torch.zeros(len(rows), device=rows.device), self.filled[rows] + self.reserved[rows]
        for attempt in range(1, TRIES + 1):
            u = tries(attempt, rows.device)[1]
            share += free_on_line(self.metric[rows], *self._differences(rows, site, taken, u)).float().mean(1) / TRIES
        return share

    def limits(self, rows: torch.Tensor, taken: torch.Tensor, count: int) -> torch.Tensor:
        """(R, count) Å that fit the element that is being written: to the first `taken` (R,) places in `atoms`, then to
        itself."""
        radius, filled = self.radius[rows, None], int(taken.max())
        return pair_limits(torch.cat([self.radii[rows, :filled], radius.expand(-1, count - filled)], 1), radius)

    def reserve(self, rows: torch.Tensor, group: torch.Tensor, needed: torch.Tensor) -> None:
        """Note the places of points, positions (R, 27) without freedom, that must be occupied sooner or later."""
        r, position = needed.nonzero(as_tuple=True)
        site = self.t.base[group[r]] + position
        which, j = ranges(torch.zeros_like(site), self.t.members[site])
        total = torch.zeros_like(rows).index_add_(0, r, self.t.members[site])
        order = torch.arange(len(which), device=rows.device) - (total.cumsum(0) - total)[r[which]]
        at = rows[r[which]]
        # Of what element is not known: nothing but the least distance is certain.
        unknown = torch.full_like(self.radius[at], -torch.inf)
        self.put(at, self.filled[at] + order, self.t.shift[site[which], j], unknown)
        self.reserved[rows] = total

    def put(self, rows: torch.Tensor, place: torch.Tensor, points: torch.Tensor, radius: torch.Tensor) -> None:
        """Write points (N, 3) to `atoms`, which grows as needed."""
        if len(place) and (room := int(place.max()) + 1) > self.atoms.shape[1]:
            more = self.atoms.new_zeros(len(self.atoms), room, 3)
            self.atoms, self.radii = torch.cat([self.atoms, more], 1), torch.cat([self.radii, more[..., 0]], 1)
        self.atoms[rows, place], self.radii[rows, place] = points, radius

    def _differences(self, rows: torch.Tensor, site: torch.Tensor, taken: torch.Tensor, second: torch.Tensor | float = 0
                     ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Start, direction (R, M, 3) and whether it is real (R, M) of the first atom's differences to the first `taken`
        (R,) places in `atoms`, and to all others of its position. second: its second parameter."""
        count, filled = int(self.t.members[site].max()), int(taken.max())
        line = self.t.matrix[site, :count, :, 0]
        shift = self.t.shift[site, :count] + self.t.matrix[site, :count, :, 1] * second
        start = torch.cat([shift[:, :1] - self.atoms[rows, :filled], shift[:, :1] - shift[:, 1:]], 1)
        direction = torch.cat([line[:, :1].expand(-1, filled, -1), line[:, :1] - line[:, 1:]], 1)
        real = torch.cat([torch.arange(filled, device=rows.device) < taken[:, None],
                          torch.arange(1, count, device=rows.device) < self.t.members[site, None]], 1)
        return start, direction, real


def ranges(first: torch.Tensor, number: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(i, first[i] + j) for all i and j < number[i]."""
    i = torch.arange(len(first), device=first.device).repeat_interleave(number)
    j = torch.arange(len(i), device=first.device) - (number.cumsum(0) - number)[i]
    return i, first[i] + j


def bools(indices: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    """(R, 27) bool from lists of positions (indices)."""
    found = torch.zeros(len(indices), MOST_POSITIONS, dtype=torch.bool)
    r = [i for i, some in enumerate(indices) for _ in some]
    found[r, [j for some in indices for j in some]] = True
    return found.to(device)
