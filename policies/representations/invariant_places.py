"""Where atoms of a multiplicity may lie: choosing x, then y, then z on the grid, apart from what is already there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from policies.representations.distances import (
    SMALL_AREA,
    TRIES,
    area,
    free_on_line,
    heights,
    sites_on_line,
    sites_on_plane,
    too_close,
    tries,
)
from policies.representations.invariant_tables import SPECIAL, members, settle
from policies.representations.orbit_tables import ANY, MOST_POSITIONS, tables
from policies.representations.quantiser import Q

#: Å: in cells with planes further apart some choice of later coordinates always keeps atoms apart.
_THICK = 4.0


class Places:
    """The cells of B unfinished sequences, the atoms in them, and the positions that the next site may be on.

    metric: (B, 3, 3) Å² of the conventional cells. open: (B, 27) bool, by index in `wyckoff.positions`.
    """

    def __init__(self, max_atoms: int, b: int, device: torch.device):
        self.t, self.members = tables(max_atoms).to(device), members(max_atoms, device)
        self.metric = torch.eye(3, device=device).repeat(b, 1, 1)
        self.atoms = torch.zeros(b, 64, 3, device=device)  # of the conventional cell, fractional
        self.filled = torch.zeros(b, dtype=torch.long, device=device)
        self.open = torch.zeros(b, MOST_POSITIONS, dtype=torch.bool, device=device)
        #: Places of atoms to come follow those that are filled.
        self.reserved = torch.zeros(b, dtype=torch.long, device=device)
        #: Which values of its parameter keep a position with but one apart from the atoms there are.
        self.lines = torch.zeros(b, MOST_POSITIONS, Q, dtype=torch.bool, device=device)

    def keep(self, rows: int) -> None:
        for name in ("metric", "atoms", "filled", "reserved", "open", "lines"):
            setattr(self, name, getattr(self, name)[:rows])

    def open_for(self, rows: torch.Tensor, group: torch.Tensor, possible: Sequence[Sequence[int]],
                 symmetric: Sequence[Sequence[int]], lasting: Sequence[Sequence[int]]) -> None:
        """Begin a site on one of some positions (indices): those with room for the atoms, with room for all that are
        still to come, and with which the group can stay as it is; without the last, the last two, or all of that if
        there are no such."""
        wanted, proper, last = (_bools(some, rows.device) for some in (possible, symmetric, lasting))
        apart = self._roomy(rows, group, wanted)
        choice = wanted
        for better in (apart, last & apart, proper & last & apart):
            choice = torch.where(better.any(1, keepdim=True), better, choice)
        self.open[rows] = choice

    def room(self, rows: torch.Tensor, group: torch.Tensor, lines: bool) -> torch.Tensor:
        """(R, 27) for how many sites positions are certain to have room, `ANY` where two or three parameters are free.

        Without `lines`, those are taken to have none. On a line, each atom takes at most twice the limit away from
        those that follow.
        """
        at = (self.t.base[group, None] + torch.arange(MOST_POSITIONS, device=rows.device)).clamp(
            max=len(self.t.dof) - 1)
        dof, inside = self.t.dof[at], torch.arange(MOST_POSITIONS, device=rows.device) < self.t.count[group, None]
        found = torch.where(inside & (dof > 1), ANY, 0)
        i, j = (inside & (dof == 0)).nonzero(as_tuple=True)
        if len(i):
            found[i, j] = self._point_free(rows[i], at[i, j]).long()
        i, j = (inside & (dof == 1) & lines).nonzero(as_tuple=True)
        if len(i):
            site = at[i, j]
            free = self._line_free(rows[i], site).sum(1)
            found[i, j] = sites_on_line(free, self.t.matrix[site, 0, :, 0], self.metric[rows[i]], self.t.own[site])
        i, j = (inside & (dof == 2)).nonzero(as_tuple=True)
        size = area(self.t.matrix[at[i, j], 0, :, :2], self.metric[rows[i]])
        i, j, size = (x[size < SMALL_AREA] for x in (i, j, size))
        if len(i):
            found[i, j] = sites_on_plane(self._plane_free(rows[i], at[i, j]), size, self.t.own[at[i, j]])
        return found

    def multiplicities(self, rows: torch.Tensor, group: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(R, 27) which positions are open, and their multiplicities in the conventional cell."""
        at = self.t.base[group, None] + torch.arange(MOST_POSITIONS, device=rows.device)
        return self.open[rows], self.t.members[at.clamp(max=len(self.t.members) - 1)]

    def narrow(self, rows: torch.Tensor, group: torch.Tensor, multiplicity: torch.Tensor,
               needed: Callable[[int, int], tuple[Sequence[int], Sequence[int]]]) -> None:
        """Leave open only positions of a multiplicity (R,). needed: for a row and a position the points (indices) that
        must then be occupied later, and all of which some may have to be; if possible these are kept free, else the
        first.
        """
        open_, found = self.multiplicities(rows, group)
        open_ &= found == multiplicity[:, None]
        self.open[rows] = open_
        points = [[set.intersection(*(set(some) for some in every)) if all(every) else set()
                   for every in zip(*(needed(i, j) for j, here in enumerate(some) if here), strict=True)]
                  for i, some in zip(rows.tolist(), open_.tolist(), strict=True)]
        left = torch.tensor([bool(all_) for _, all_ in points], device=rows.device).nonzero()[:, 0]
        for which in (1, 0):
            if not len(left):
                break
            common = [sorted(points[r][which]) for r in left.tolist()]
            self._reserve(rows[left], group[left], _bools(common, rows.device))
            apart = self._roomy(rows[left], group[left], open_[left])
            some_apart = apart.any(1)
            self.open[rows[left[some_apart]]] = apart[some_apart]
            left = left[~some_apart]

    def values(self, rows: torch.Tensor, group: torch.Tensor, grid: torch.Tensor, k: int) -> torch.Tensor:
        """(R, Q) bool: coordinate k of the atom that is written, after the first k ones of grid (R, 3)."""
        r, member, position = self._members(rows, group)
        at, on = settle(self.members.shift[member], self.members.basis[member], grid[r], k)
        r, member, position, at = r[on], member[on], position[on], at[on]
        step = self.members.basis[member, k, k]
        exact = _coset(torch.arange(len(r), device=rows.device), at[:, k], step, len(r))
        exact &= ~self._more_special(member, grid[r], k)
        good = exact & self._apart(rows[r], group[r], member, position, grid[r], at, k)
        if k < 2:
            ahead = good & self._apart_ahead(rows[r], group[r], member, grid[r], at, k, good)
            good = torch.where(_any_by(r, ahead.any(1)[:, None], len(rows))[r], ahead, good)
        # Rows where nothing keeps atoms apart let that go.
        good |= exact & ~_any_by(r, good.any(1)[:, None], len(rows))[r]
        return _any_by(r, good, len(rows))

    def add(self, rows: torch.Tensor, group: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        """Put atoms on the orbits of points (R, 3); (R,) the positions (indices) that they are on."""
        r, member, position = self._members(rows, group)
        _, on = settle(self.members.shift[member], self.members.basis[member], grid[r], 3)
        index = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
        index[r[on]] = position[on]
        most = int(self.members.n_operations[group].max())
        orbit = (self.members.rotations[group, :most] @ grid[:, None, :, None])[..., 0]
        orbit = (orbit + self.members.shifts[group, :most]) % Q
        key = (orbit[..., 0] * Q + orbit[..., 1]) * Q + orbit[..., 2]
        real = torch.arange(most, device=rows.device) < self.members.n_operations[group, None]
        key, _ = torch.where(real, key, Q**3).sort(1)
        new = (key < Q**3) & (key != torch.cat([torch.full_like(key[:, :1], -1), key[:, :-1]], 1))
        i, j = new.nonzero(as_tuple=True)
        place = self.filled[rows[i]] + new.cumsum(1)[i, j] - 1
        found = key[i, j]
        self._put(rows[i], place, torch.stack([found // Q**2, found // Q % Q, found % Q], 1).float() / Q)
        self.filled[rows] += new.sum(1)
        self.reserved[rows] = 0
        return index

    def _reserve(self, rows: torch.Tensor, group: torch.Tensor, needed: torch.Tensor) -> None:
        """Note the places of points, positions (R, 27) without freedom, that must be occupied sooner or later."""
        r, position = needed.nonzero(as_tuple=True)
        site = self.t.base[group[r]] + position
        which, j = _ranges(torch.zeros_like(site), self.t.members[site])
        total = torch.zeros_like(rows).index_add_(0, r, self.t.members[site])
        order = torch.arange(len(which), device=rows.device) - (total.cumsum(0) - total)[r[which]]
        self._put(rows[r[which]], self.filled[rows[r[which]]] + order, self.t.shift[site[which], j])
        self.reserved[rows] = total

    def _put(self, rows: torch.Tensor, place: torch.Tensor, points: torch.Tensor) -> None:
        """Write points (N, 3) to `atoms`, which grows as needed."""
        if len(place) and (room := int(place.max()) + 1) > self.atoms.shape[1]:
            self.atoms = torch.cat([self.atoms, self.atoms.new_zeros(len(self.atoms), room, 3)], 1)
        self.atoms[rows, place] = points

    def _members(self, rows: torch.Tensor, group: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of the open positions: the place in `rows`, the member, and the position's index, each (N,)."""
        r, position = self.open[rows].nonzero(as_tuple=True)
        row = self.t.base[group[r]] + position
        which, member = _ranges(self.members.first[row], self.members.number[row])
        return r[which], member, position[which]

    def _more_special(self, member: torch.Tensor, grid: torch.Tensor, k: int) -> torch.Tensor:
        """(N, Q): values of coordinate k with which no point of a member has its multiplicity."""
        if k == 0:
            found = torch.zeros(len(member), Q, dtype=torch.bool, device=member.device)
            found[:, ::SPECIAL] = self.members.bad_x[member]
            return found
        m = self.members
        which, j = _ranges(m.inside_first[member], m.inside_number[member])
        inner = m.inside[j]
        if k == 1:  # those that leave a way around them by z do not count
            same = m.basis[inner, 2, 2] == m.basis[member[which], 2, 2]
            which, inner = which[same], inner[same]
        at, on = settle(m.shift[inner], m.basis[inner], grid[which], k)
        return _coset(which[on], at[on, k], m.basis[inner[on], k, k], len(member))

    def _apart(self, rows: torch.Tensor, group: torch.Tensor, member: torch.Tensor, position: torch.Tensor,
               grid: torch.Tensor, at: torch.Tensor, k: int) -> torch.Tensor:
        """(N, Q): values of coordinate k with which atoms on a member may still be apart from each other and others."""
        m = self.members
        found = torch.ones(len(member), Q, dtype=torch.bool, device=member.device)
        step, halves = m.basis[member, k, k], m.basis[member, 1, 1] == Q // 2
        # The last coordinate tells apart members for whose sakes x and y were allowed.
        moves = (m.dof[member] > 1) & ((step < Q, (step == 1) | (step == Q) | halves, step > 0)[k])
        start, along = self._direction(member, at, k)
        i = moves.nonzero()[:, 0]
        if len(i):
            free = self._free(rows[i], group[i], start[i], along[i], m.basis[member[i]], k)
            found[i] = _along(free, start[i], along[i], grid[i], k)
        i = (m.dof[member] == 1).nonzero()[:, 0]
        if len(i):
            found[i] = _along(self.lines[rows[i], position[i]], m.line_shift[member[i]], m.line[member[i]], grid[i], k)
        return found

    def _direction(self, member: torch.Tensor, at: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """From where and along what (N, 3) coordinate k moves on members whose first k coordinates are settled."""
        m = self.members
        # What x has settled, too, it may have settled for another member's sake.
        along = torch.where((m.basis[member, k, k] < Q)[:, None], m.basis[member, :, k], 0)
        # x may have left two values of the first parameter, which y tells apart.
        again = ((m.dof[member] > 1) & (m.basis[member, 1, 1] == Q // 2) & (k == 1))[:, None]
        return torch.where(again, m.line_shift[member], at), torch.where(again, m.line[member], along)

    def _apart_ahead(self, rows: torch.Tensor, group: torch.Tensor, member: torch.Tensor, grid: torch.Tensor,
                     at: torch.Tensor, k: int, wanted: torch.Tensor) -> torch.Tensor:
        """(N, Q): of the wanted values of coordinate k those with which some choice, of `TRIES`, of the later ones
        keeps all atoms apart; all of them on lines, and in cells so thick that there always is such a choice."""
        m = self.members
        found = torch.ones_like(wanted)
        tight = (m.dof[member] > 1) & (heights(self.metric[rows]).amin(1) < _THICK)
        left = tight.nonzero()[:, 0]
        found[left] = False
        for attempt in range(1, TRIES + 1):
            if not len(left):
                break
            chosen, tried = member[left], tries(attempt, rows.device)
            start, along = self._direction(chosen, at[left], k)
            basis = m.basis[chosen]
            for j in range(k + 1, 3):
                start = start + basis[:, :, j] * (tried[j] * (Q // basis[:, j, j])).long()[:, None]
            free = self._free(rows[left], group[left], start, along, basis, k, True)
            found[left] |= _along(free, start, along, grid[left], k)
            left = left[(wanted[left] & ~found[left]).any(1)]
        return found

    def _free(self, rows: torch.Tensor, group: torch.Tensor, start: torch.Tensor, along: torch.Tensor,
              basis: torch.Tensor, k: int, whole: bool = False) -> torch.Tensor:
        """(N, Q): t at which images of start + along * t (1/Q) are apart, as far as what comes after cannot change it.

        Other atoms count once nothing more is free; all does if start is `whole`.
        """
        m, taken = self.members, self.filled[rows] + self.reserved[rows]
        filled = int(taken.max())
        most = int(m.n_operations[group].max())
        own = torch.eye(3, dtype=torch.long, device=rows.device) - m.rotations[group, 1:most]  # (N, G, 3, 3)
        offset = (own @ start[:, None, :, None])[..., 0] - m.shifts[group, 1:most]
        turn = (own @ along[:, None, :, None])[..., 0]
        later = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        real = (torch.arange(1, most, device=rows.device) < m.n_operations[group, None])
        real &= (turn != 0).any(-1) | (offset % Q != 0).any(-1)  # the same atom, on a mirror for instance
        for j in range(3 if whole else k + 1, 3):
            free = basis[:, j, j] == 1
            later |= free
            real &= ~(free[:, None] & (own @ basis[:, None, :, j, None]).flatten(2).any(2))
        other = start[:, None].float() / Q - self.atoms[rows, :filled]
        present = (torch.arange(filled, device=rows.device) < taken[:, None]) & ~later[:, None]
        return free_on_line(self.metric[rows], torch.cat([other, offset.float() / Q], 1),
                            torch.cat([along[:, None].expand(-1, filled, -1), turn], 1).float(),
                            torch.cat([present, real], 1))

    def _roomy(self, rows: torch.Tensor, group: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Narrow positions (R, 27) to those with a place for their atoms; all but points and lines are taken to."""
        wanted = wanted.clone()
        dof = self.t.dof[(self.t.base[group, None] + torch.arange(MOST_POSITIONS, device=rows.device)).clamp(
            max=len(self.t.dof) - 1)]
        r, j = (wanted & (dof == 0)).nonzero(as_tuple=True)
        if len(r):
            wanted[r, j] = self._point_free(rows[r], self.t.base[group[r]] + j)
        r, j = (wanted & (dof == 1)).nonzero(as_tuple=True)
        if len(r):
            free = self._line_free(rows[r], self.t.base[group[r]] + j)
            self.lines[rows[r], j] = free
            wanted[r, j] = free.any(1)
        return wanted

    def _point_free(self, rows: torch.Tensor, site: torch.Tensor) -> torch.Tensor:
        """(R,) whether the atoms of positions (rows of the tables) without freedom are apart from all others."""
        start, _, real = self._differences(rows, site, self.filled[rows])
        return ~(too_close(self.metric[rows], start) & real).any(1)

    def _line_free(self, rows: torch.Tensor, site: torch.Tensor) -> torch.Tensor:
        """(R, Q) with which values of their parameter the atoms of positions (rows of the tables) are apart."""
        return free_on_line(self.metric[rows], *self._differences(rows, site, self.filled[rows] + self.reserved[rows]))

    def _plane_free(self, rows: torch.Tensor, site: torch.Tensor) -> torch.Tensor:
        """(R,) the share of planes (rows of the tables) with which their atoms are apart from all others."""
        share, taken = torch.zeros(len(rows), device=rows.device), self.filled[rows] + self.reserved[rows]
        for attempt in range(1, TRIES + 1):
            u = tries(attempt, rows.device)[1]
            share += free_on_line(self.metric[rows], *self._differences(rows, site, taken, u)).float().mean(1) / TRIES
        return share

    def _differences(self, rows: torch.Tensor, site: torch.Tensor, taken: torch.Tensor, second: torch.Tensor | float = 0
                     ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Start, direction (R, M, 3) and whether it is real (R, M) of the first atom's differences to all others of its
        position, and to the first `taken` (R,) places in `atoms`. second: its second parameter."""
        count, filled = int(self.t.members[site].max()), int(taken.max())
        line = self.t.matrix[site, :count, :, 0]
        shift = self.t.shift[site, :count] + self.t.matrix[site, :count, :, 1] * second
        start = torch.cat([shift[:, :1] - self.atoms[rows, :filled], shift[:, :1] - shift[:, 1:]], 1)
        direction = torch.cat([line[:, :1].expand(-1, filled, -1), line[:, :1] - line[:, 1:]], 1)
        real = torch.cat([torch.arange(filled, device=rows.device) < taken[:, None],
                          torch.arange(1, count, device=rows.device) < self.t.members[site, None]], 1)
        return start, direction, real


def _along(free: torch.Tensor, start: torch.Tensor, along: torch.Tensor, grid: torch.Tensor, k: int) -> torch.Tensor:
    """(N, Q): coordinate k of points start + along * t for those t (N, Q) that are free and meet the first k of grid.

    In steps of 1/Q all of them; where coordinate k runs along t from what is already settled, the rest is met as well.
    """
    t = torch.arange(Q, device=free.device)
    for i in range(k):
        free = free & ((start[:, i, None] + along[:, i, None] * t - grid[:, i, None]) % Q == 0)
    found = torch.zeros_like(free)
    n, j = free.nonzero(as_tuple=True)
    found[n, (start[n, k] + along[n, k] * j) % Q] = True
    return found


def _any_by(which: torch.Tensor, found: torch.Tensor, n: int) -> torch.Tensor:
    """(n, K) bool: whether any of the rows i of found (N, K) with which[i] = row has it."""
    count = torch.zeros(n, found.shape[1], dtype=torch.int16, device=found.device)
    return count.index_add_(0, which, found.short()) > 0


def _coset(which: torch.Tensor, first: torch.Tensor, step: torch.Tensor, n: int) -> torch.Tensor:
    """(n, Q) bool: in row which[i] the values first[i] + any whole number of step[i]."""
    found = torch.zeros(n, Q, dtype=torch.bool, device=which.device)
    found[which[step == 1]] = True
    i, j = _ranges(torch.zeros_like(step), torch.where(step == 1, 0, Q // step))
    found[which[i], (first[i] + j * step[i]) % Q] = True
    return found


def _ranges(first: torch.Tensor, number: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(i, first[i] + j) for all i and j < number[i]."""
    i = torch.arange(len(first), device=first.device).repeat_interleave(number)
    j = torch.arange(len(i), device=first.device) - (number.cumsum(0) - number)[i]
    return i, first[i] + j


def _bools(indices: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    """(R, 27) bool from lists of positions."""
    found = torch.zeros(len(indices), MOST_POSITIONS, dtype=torch.bool)
    r = [i for i, some in enumerate(indices) for _ in some]
    found[r, [j for some in indices for j in some]] = True
    return found.to(device)
