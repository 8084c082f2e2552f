"""Where atoms of a multiplicity may lie: choosing x, then y, then z on the grid, apart from what is already there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch

from policies.representations.distances import TRIES, free_on_line, heights, tries
from policies.representations.invariant_cells import Cells, bools, ranges
from policies.representations.invariant_tables import SPECIAL, members, settle
from policies.representations.orbit_tables import MOST_POSITIONS
from policies.representations.quantiser import Q

#: Å: in cells with planes further apart some choice of later coordinates always keeps atoms apart.
_THICK = 4.0


class Places(Cells):
    """The positions that the next site of each sequence may be on.

    open: (B, 27) bool, by index in `wyckoff.positions`. lines: (B, 27, Q) bool, with which values of its parameter a
    position with but one keeps apart from the atoms there are, where possible at distances that fit the elements.
    """

    def __init__(self, max_atoms: int, b: int, device: torch.device):
        super().__init__(max_atoms, b, device)
        self.members = members(max_atoms, device)
        self.open = torch.zeros(b, MOST_POSITIONS, dtype=torch.bool, device=device)
        self.lines = torch.zeros(b, MOST_POSITIONS, Q, dtype=torch.bool, device=device)

    def keep(self, rows: int) -> None:
        super().keep(rows)
        self.open, self.lines = self.open[:rows], self.lines[:rows]

    def fit_lines(self, rows: torch.Tensor, group: torch.Tensor, wanted: torch.Tensor
                  ) -> tuple[torch.Tensor, torch.Tensor]:
        """Narrow wanted positions (R, 27) to those with a place for their atoms, and to those with one that fits the
        elements; all but lines are taken to."""
        at, dof = self.positions(group)
        apart, fitting = wanted.clone(), wanted.clone()
        r, j = (wanted & (dof == 1)).nonzero(as_tuple=True)
        if len(r):
            free, fit = self.line_free(rows[r], at[r, j])
            apart[r, j], fitting[r, j] = free.any(1), fit.any(1)
            self.lines[rows[r], j] = torch.where(fit.any(1, keepdim=True), fit, free)
        return apart, fitting

    def open_for(self, rows: torch.Tensor, wanted: torch.Tensor, *better: torch.Tensor) -> None:
        """Begin a site on one of some positions (R, 27), if possible one of those that are `better` in all ways; the
        last of these are let go first."""
        for narrower in better:
            some = wanted & narrower
            wanted = torch.where(some.any(1, keepdim=True), some, wanted)
        self.open[rows] = wanted

    def multiplicities(self, rows: torch.Tensor, group: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(R, 27) which positions are open, and their multiplicities in the conventional cell."""
        return self.open[rows], self.t.members[self.positions(group)[0]]

    def narrow(self, rows: torch.Tensor, group: torch.Tensor, multiplicity: torch.Tensor,
               needed: Callable[[int, int], tuple[Sequence[int], Sequence[int]]]) -> None:
        """Leave open only positions of a multiplicity (R,). needed: for a row and a position the points (indices) that
        must then be occupied later, and all of which some may have to be; if possible these are kept free, else the
        first.
        """
        open_, found = self.multiplicities(rows, group)
        open_ &= found == multiplicity[:, None]
        self.open[rows] = open_
        points = [[set.intersection(*map(set, some)) for some in
                   zip(*(needed(i, j) for j, here in enumerate(row) if here), strict=True)]
                  for i, row in zip(rows.tolist(), open_.tolist(), strict=True)]
        left = torch.tensor([bool(some) for _, some in points], device=rows.device).nonzero()[:, 0]
        for which in (1, 0):
            if not len(left):
                break
            self.reserve(rows[left], group[left], bools([sorted(points[r][which]) for r in left.tolist()], rows.device))
            apart, _ = self.fit_lines(rows[left], group[left], open_[left])
            some_apart = apart.any(1)
            self.open[rows[left[some_apart]]] = apart[some_apart]
            left = left[~some_apart]

    def values(self, rows: torch.Tensor, group: torch.Tensor, grid: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """(R, Q) bool: coordinate k (R,) of the atoms that are written, after the first k ones of grid (R, 3)."""
        r, member, position = self._members(rows, group)
        at, on = settle(self.members.shift[member], self.members.basis[member], grid[r], k[r])
        r, member, position, at = r[on], member[on], position[on], at[on]
        row, g, written, k = rows[r], group[r], grid[r], k[r]
        each = torch.arange(len(r), device=rows.device)
        exact = _coset(each, at[each, k], self.members.basis[member, k, k], len(r))
        exact &= ~self._more_special(member, written, k)

        def some(found: torch.Tensor) -> torch.Tensor:  # (N,) whether its row has any
            return _any_by(r, found.any(1)[:, None], len(rows))[r, 0]

        def apart(i: torch.Tensor, fit: bool) -> tuple[torch.Tensor, torch.Tensor]:  # as far as settled, and for good
            found = exact[i] & self._apart(row[i], g[i], member[i], position[i], written[i], at[i], k[i], fit)
            return found, found & self._apart_ahead(row[i], g[i], member[i], written[i], at[i], k[i], found)

        good = apart(each, True)[1]
        tight = (~some(good)).nonzero()[:, 0]
        if len(tight):
            free, good[tight] = apart(tight, False)
            # Rows where nothing keeps atoms apart let that go.
            for more in (free, exact[tight]):
                good[tight] |= more & ~some(good)[tight, None]
        return _any_by(r, good, len(rows))

    def add(self, rows: torch.Tensor, group: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        """Put atoms on the orbits of points (R, 3); (R,) the positions (indices) that they are on."""
        r, member, position = self._members(rows, group)
        _, on = settle(self.members.shift[member], self.members.basis[member], grid[r], torch.full_like(r, 3))
        index = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
        index[r[on]] = position[on]
        most = int(self.members.n_operations[group].max())
        orbit = (self.members.rotations[group, :most] @ grid[:, None, :, None].float())[..., 0].long()
        orbit = (orbit + self.members.shifts[group, :most]) % Q
        key = (orbit[..., 0] * Q + orbit[..., 1]) * Q + orbit[..., 2]
        real = torch.arange(most, device=rows.device) < self.members.n_operations[group, None]
        key, _ = torch.where(real, key, Q**3).sort(1)
        new = (key < Q**3) & (key != torch.cat([torch.full_like(key[:, :1], -1), key[:, :-1]], 1))
        i, j = new.nonzero(as_tuple=True)
        place = self.filled[rows[i]] + new.cumsum(1)[i, j] - 1
        found = key[i, j]
        self.put(rows[i], place, torch.stack([found // Q**2, found // Q % Q, found % Q], 1).float() / Q,
                 self.radius[rows[i]])
        self.filled[rows] += new.sum(1)
        self.reserved[rows] = 0
        return index

    def _members(self, rows: torch.Tensor, group: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of the open positions: the place in `rows`, the member, and the position's index, each (N,)."""
        r, position = self.open[rows].nonzero(as_tuple=True)
        row = self.t.base[group[r]] + position
        which, member = ranges(self.members.first[row], self.members.number[row])
        return r[which], member, position[which]

    def _more_special(self, member: torch.Tensor, grid: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """(N, Q): values of coordinate k (N,) with which no point of a member has its multiplicity."""
        m, first = self.members, k == 0
        which, j = ranges(m.inside_first[member], torch.where(first, 0, m.inside_number[member]))
        inner = m.inside[j]
        # By y, those that leave a way around them by z do not count.
        counts = (k[which] == 2) | (m.basis[inner, 2, 2] == m.basis[member[which], 2, 2])
        which, inner = which[counts], inner[counts]
        at, on = settle(m.shift[inner], m.basis[inner], grid[which], k[which])
        which, inner, at = which[on], inner[on], at[on]
        found = _coset(which, at.gather(1, k[which, None])[:, 0], m.basis[inner, k[which], k[which]], len(member))
        found[:, ::SPECIAL] |= m.bad_x[member] & first[:, None]
        return found

    def _apart(self, rows: torch.Tensor, group: torch.Tensor, member: torch.Tensor, position: torch.Tensor,
               grid: torch.Tensor, at: torch.Tensor, k: torch.Tensor, fit: bool) -> torch.Tensor:
        """(N, Q): values of coordinate k (N,) with which atoms on a member may still be apart from each other and
        others, if `fit` at distances that fit the elements."""
        m = self.members
        found = torch.ones(len(member), Q, dtype=torch.bool, device=member.device)
        step, halves = m.basis[member, k, k], m.basis[member, 1, 1] == Q // 2
        # The last coordinate tells apart members for whose sakes x and y were allowed.
        moves = torch.where(k == 0, step < Q, (k == 2) | (step == 1) | (step == Q) | halves)
        start, along = self._direction(member, at, k)
        i = (moves & (m.dof[member] > 1)).nonzero()[:, 0]
        if len(i):
            free = self._free(rows[i], group[i], start[i], along[i], m.basis[member[i]], k[i], fit=fit)
            found[i] = _along(free, start[i], along[i], grid[i], k[i])
        i = (m.dof[member] == 1).nonzero()[:, 0]
        if len(i):
            found[i] = _along(self.lines[rows[i], position[i]], m.line_shift[member[i]], m.line[member[i]], grid[i],
                              k[i])
        return found

    def _direction(self, member: torch.Tensor, at: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """From where and along what (N, 3) coordinate k moves on members whose first k coordinates are settled."""
        m = self.members
        # What x has settled, too, it may have settled for another member's sake.
        along = torch.where((m.basis[member, k, k] < Q)[:, None], m.basis[member, :, k], 0)
        # x may have left two values of the first parameter, which y tells apart.
        again = ((m.dof[member] > 1) & (m.basis[member, 1, 1] == Q // 2) & (k == 1))[:, None]
        return torch.where(again, m.line_shift[member], at), torch.where(again, m.line[member], along)

    def _apart_ahead(self, rows: torch.Tensor, group: torch.Tensor, member: torch.Tensor, grid: torch.Tensor,
                     at: torch.Tensor, k: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """(N, Q): of the wanted values of coordinate k those with which some choice, of `TRIES`, of the later ones
        keeps all atoms apart; all of them on lines, and in cells so thick that there always is such a choice."""
        m = self.members
        found = torch.ones_like(wanted)
        left = ((m.dof[member] > 1) & (k < 2) & (heights(self.metric[rows]).amin(1) < _THICK)).nonzero()[:, 0]
        found[left] = False
        for attempt in range(1, TRIES + 1):
            if not len(left):
                break
            chosen, tried, next_ = member[left], tries(attempt, rows.device), k[left]
            start, along = self._direction(chosen, at[left], next_)
            basis = m.basis[chosen]
            for j in (1, 2):
                later = (tried[j] * (Q // basis[:, j, j])).long() * (j > next_)
                start = start + basis[:, :, j] * later[:, None]
            free = self._free(rows[left], group[left], start, along, basis, next_, whole=True)
            found[left] |= _along(free, start, along, grid[left], next_)
            left = left[(wanted[left] & ~found[left]).any(1)]
        return found

    def _free(self, rows: torch.Tensor, group: torch.Tensor, start: torch.Tensor, along: torch.Tensor,
              basis: torch.Tensor, k: torch.Tensor, whole: bool = False, fit: bool = False) -> torch.Tensor:
        """(N, Q): t at which images of start + along * t (1/Q) are apart, as far as what comes after cannot change it.

        Other atoms count once nothing more is free; all does if start is `whole`.
        """
        m, taken = self.members, self.filled[rows] + self.reserved[rows]
        filled = int(taken.max())
        most = int(m.n_operations[group].max())
        own = torch.eye(3, device=rows.device) - m.rotations[group, 1:most]  # (N, G, 3, 3)
        offset = (own @ start[:, None, :, None].float())[..., 0] - m.shifts[group, 1:most]
        turn = (own @ along[:, None, :, None].float())[..., 0]
        later = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        real = (torch.arange(1, most, device=rows.device) < m.n_operations[group, None])
        real &= (turn != 0).any(-1) | (offset % Q != 0).any(-1)  # the same atom, on a mirror for instance
        for j in () if whole else (1, 2):
            free = (basis[:, j, j] == 1) & (j > k)
            later |= free
            real &= ~(free[:, None] & (own @ basis[:, None, :, j, None].float()).flatten(2).any(2))
        other = start[:, None].float() / Q - self.atoms[rows, :filled]
        present = (torch.arange(filled, device=rows.device) < taken[:, None]) & ~later[:, None]
        limit = self.limits(rows, taken, filled + most - 1) if fit else None
        return free_on_line(self.metric[rows], torch.cat([other, offset / Q], 1),
                            torch.cat([along[:, None].float().expand(-1, filled, -1), turn], 1),
                            torch.cat([present, real], 1), limit=limit)


def _along(free: torch.Tensor, start: torch.Tensor, along: torch.Tensor, grid: torch.Tensor, k: torch.Tensor
           ) -> torch.Tensor:
    """(N, Q): coordinate k (N,) of points start + along * t for those t (N, Q) that are free and meet the first k of
    grid.

    In steps of 1/Q all of them; where coordinate k runs along t from what is already settled, the rest is met as well.
    """
    t, each = torch.arange(Q, device=free.device), torch.arange(len(free), device=free.device)
    start = start % Q
    for i in range(2):
        at = (k > i).nonzero()[:, 0]
        if len(at):
            apart = (grid[at, i] - start[at, i]) % Q
            free = free.index_put((at,), free[at] & (_steps(free.device)[along[at, i]] == apart[:, None]))
    first, step = start[each, k, None], along[each, k, None]
    back = t - first
    back = torch.where(step < 0, -back, back)
    found = free.gather(1, torch.where(back < 0, back + Q, back))  # where a step of t is one of the coordinate
    n = (step.abs() != 1).nonzero()[:, 0]
    if len(n):
        found[n] = False
        row, j = free[n].nonzero(as_tuple=True)
        found[n[row], (first[n[row], 0] + step[n[row], 0] * j) % Q] = True
    return found


@cache
def _steps(device: torch.device) -> torch.Tensor:
    """(2 Q, Q): in row n, n t in 1/Q of a period; negative n count from the end."""
    n = torch.cat([torch.arange(Q), torch.arange(-Q, 0)])
    return (n[:, None] * torch.arange(Q) % Q).short().to(device)


def _any_by(which: torch.Tensor, found: torch.Tensor, n: int) -> torch.Tensor:
    """(n, K) bool: whether any of the rows i of found (N, K) with which[i] = row has it."""
    count = torch.zeros(n, found.shape[1], dtype=torch.int16, device=found.device)
    return count.index_add_(0, which, found.short()) > 0


def _coset(which: torch.Tensor, first: torch.Tensor, step: torch.Tensor, n: int) -> torch.Tensor:
    """(n, Q) bool: in row which[i] the values first[i] + any whole number of step[i]."""
    found = torch.zeros(n, Q, dtype=torch.bool, device=which.device)
    found[which[step == 1]] = True
    i, j = ranges(torch.zeros_like(step), torch.where(step == 1, 0, Q // step))
    found[which[i], (first[i] + j * step[i]) % Q] = True
    return found
