"""Where atoms of a multiplicity may lie: choosing x, then y, then z on the grid, apart from what is already there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from policies.representations.cells import Cells, apply
from policies.representations.distances import TRIES, free_on_line, heights, ranges, tries
from policies.representations.invariant_tables import SPECIAL, members, settle
from policies.representations.orbit_tables import MOST_POSITIONS
from policies.representations.quantiser import Q

#: Å: in cells with planes further apart some choice of later coordinates always keeps atoms apart.
_THICK = 4.0
#: (2 Q, Q): in row n, n t in 1/Q of a period; negative n count from the end.
_STEPS = (np.r_[0:Q, -Q:0][:, None] * np.arange(Q) % Q).astype(np.int16)


class Places(Cells):
    """The positions, by index in `wyckoff.positions`, that the next site of each sequence may be on.

    open: (B, 27) bool. lines: (B, 27, Q) bool, with which values of its parameter a position with but one keeps apart
    from the atoms there are, where possible at distances that fit the elements.
    """

    def __init__(self, max_atoms: int, b: int):
        super().__init__(max_atoms, b)
        self.members = members(max_atoms)
        index = np.arange(MOST_POSITIONS)
        self._at = (self.t.base[:, None] + index).clip(max=len(self.t.dof) - 1)  # (231, 27)
        self._dof = np.where(index < self.t.count[:, None], self.t.dof[self._at], -1)
        self.open = np.zeros((b, MOST_POSITIONS), bool)
        self.lines = np.zeros((b, MOST_POSITIONS, Q), bool)

    def keep(self, rows: int) -> None:
        super().keep(rows)
        self.open, self.lines = self.open[:rows], self.lines[:rows]

    def positions(self, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(R, 27) rows in the tables of groups (R,), and their free parameters; -1 where there is no such position."""
        return self._at[group], self._dof[group]

    def fit_lines(self, rows: np.ndarray, group: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Narrow wanted positions (R, 27) to those with a place for their atoms, and to those with one that fits the
        elements; all but lines are taken to."""
        at, dof = self.positions(group)
        apart, fitting = wanted.copy(), wanted.copy()
        r, j = (wanted & (dof == 1)).nonzero()
        if len(r):
            free, fit = self.free_and_fit(rows[r], at[r, j])
            apart[r, j], fitting[r, j] = free.any(1), fit.any(1)
            self.lines[rows[r], j] = np.where(fit.any(1, keepdims=True), fit, free)
        return apart, fitting

    def fit_points(self, rows: np.ndarray, group: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Narrow wanted positions (R, 27) to those of which points have their atoms at distances that fit the
        elements."""
        at, dof = self.positions(group)
        found = wanted.copy()
        r, j = (wanted & (dof == 0)).nonzero()
        if len(r):
            found[r, j] = self.fit(rows[r], at[r, j])
        return found

    def open_for(self, rows: np.ndarray, wanted: np.ndarray, *better: np.ndarray) -> None:
        """Begin a site on one of some positions (R, 27), if possible one of those that are `better` in all ways; the
        last of these are let go first."""
        for narrower in better:
            some = wanted & narrower
            wanted = np.where(some.any(1, keepdims=True), some, wanted)
        self.open[rows] = wanted

    def multiplicities(self, rows: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(R, 27) which positions are open, and their multiplicities in the conventional cell."""
        return self.open[rows], self.t.members[self._at[group]]

    def narrow(self, rows: np.ndarray, group: np.ndarray, multiplicity: np.ndarray,
               needed: Callable[[int, int], tuple[Sequence[int], Sequence[int]]]) -> None:
        """Leave open only positions of a multiplicity (R,). needed: for a row and a position the points (indices) that
        must then be occupied later, and all of which some may have to be; if possible these are kept free, else the
        first.
        """
        open_, found = self.multiplicities(rows, group)
        open_ &= found == multiplicity[:, None]
        self.open[rows] = open_
        points: list[list[set[int]]] = [[] for _ in rows]
        for r, j in zip(*(x.tolist() for x in open_.nonzero()), strict=True):
            some = [set(x) for x in needed(int(rows[r]), j)]
            points[r] = [a & b for a, b in zip(points[r], some, strict=True)] if points[r] else some
        left = np.array([r for r, some in enumerate(points) if some and some[1]], int)
        for which in (1, 0):
            if not len(left):
                break
            self.reserve(rows[left], group[left], bools([points[r][which] for r in left.tolist()]))
            apart, _ = self.fit_lines(rows[left], group[left], open_[left])
            some_apart = apart.any(1)
            self.open[rows[left[some_apart]]] = apart[some_apart]
            left = left[~some_apart]

    def reserve(self, rows: np.ndarray, group: np.ndarray, needed: np.ndarray) -> None:
        """Note the places of points, positions (R, 27) without freedom, that must be occupied sooner or later."""
        r, position = needed.nonzero()
        site = self._at[group[r], position]
        which, j = ranges(np.zeros_like(site), self.t.members[site])
        total = np.bincount(r, self.t.members[site], len(rows)).astype(int)
        order = np.arange(len(which)) - (total.cumsum() - total)[r[which]]
        at = rows[r[which]]
        # Of what element is not known: nothing but the least distance is certain.
        self.put(at, self.filled[at] + order, self.t.shift[site[which], j], -np.inf)
        self.reserved[rows] = total

    def values(self, rows: np.ndarray, group: np.ndarray, grid: np.ndarray, k: np.ndarray) -> np.ndarray:
        """(R, Q) bool: coordinate k (R,) of the atoms that are written, after the first k ones of grid (R, 3)."""
        r, member, position = self._members(rows, group)
        at, on = settle(self.members.shift[member], self.members.basis[member], grid[r], k[r])
        r, member, position, at = r[on], member[on], position[on], at[on]
        row, g, written, k = rows[r], group[r], grid[r], k[r]
        each = np.arange(len(r))
        exact = _coset(each, at[each, k], self.members.basis[member, k, k], len(r))
        exact &= ~self._more_special(member, written, k)

        def some(found: np.ndarray) -> np.ndarray:  # (N,) whether its row has any
            hit = np.zeros(len(rows), bool)
            hit[r[found.any(1)]] = True
            return hit[r]

        def apart(i: np.ndarray, fit: bool) -> tuple[np.ndarray, np.ndarray]:  # as far as settled, and for good
            found = exact[i] & self._apart(row[i], g[i], member[i], position[i], written[i], at[i], k[i], fit)
            return found, found & self._apart_ahead(row[i], g[i], member[i], written[i], at[i], k[i], found)

        good = apart(each, True)[1]
        tight = np.flatnonzero(~some(good))
        if len(tight):
            free, good[tight] = apart(tight, False)
            # Rows where nothing keeps atoms apart let that go.
            for more in (free, exact[tight]):
                good[tight] |= more & ~some(good)[tight, None]
        return _any_by(r, good, len(rows))

    def add(self, rows: np.ndarray, group: np.ndarray, grid: np.ndarray) -> np.ndarray:
        """Put atoms on the orbits of points (R, 3); (R,) the positions (indices) that they are on."""
        m = self.members
        r, member, position = self._members(rows, group)
        _, on = settle(m.shift[member], m.basis[member], grid[r], np.full_like(r, 3))
        index = np.zeros(len(rows), int)
        index[r[on]] = position[on]
        most = int(m.n_operations[group].max())
        orbit = (apply(m.rotations[group, :most], grid[:, None]) + m.shifts[group, :most]) % Q
        key = (orbit[..., 0] * Q + orbit[..., 1]) * Q + orbit[..., 2]
        key[np.arange(most) >= m.n_operations[group, None]] = Q**3
        key.sort(1)
        new = key < Q**3
        new[:, 1:] &= key[:, 1:] != key[:, :-1]
        i, j = new.nonzero()
        place = self.filled[rows[i]] + new.cumsum(1)[i, j] - 1
        found = key[i, j]
        points = np.stack([found // Q**2, found // Q % Q, found % Q], 1).astype(np.float32) / Q
        self.put(rows[i], place, points, self.radius[rows[i]])
        self.filled[rows] += new.sum(1)
        self.reserved[rows] = 0
        return index

    def _members(self, rows: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the open positions: the place in `rows`, the member, and the position's index, each (N,)."""
        r, position = self.open[rows].nonzero()
        row = self._at[group[r], position]
        which, member = ranges(self.members.first[row], self.members.number[row])
        return r[which], member, position[which]

    def _more_special(self, member: np.ndarray, grid: np.ndarray, k: np.ndarray) -> np.ndarray:
        """(N, Q): values of coordinate k (N,) with which no point of a member has its multiplicity."""
        m, first = self.members, k == 0
        which, j = ranges(m.inside_first[member], np.where(first, 0, m.inside_number[member]))
        inner = m.inside[j]
        # By y, those that leave a way around them by z do not count.
        counts = (k[which] == 2) | (m.basis[inner, 2, 2] == m.basis[member[which], 2, 2])
        which, inner = which[counts], inner[counts]
        at, on = settle(m.shift[inner], m.basis[inner], grid[which], k[which])
        which, inner, at = which[on], inner[on], at[on]
        along = k[which]
        found = _coset(which, at[np.arange(len(which)), along], m.basis[inner, along, along], len(member))
        found[:, ::SPECIAL] |= m.bad_x[member] & first[:, None]
        return found

    def _apart(self, rows: np.ndarray, group: np.ndarray, member: np.ndarray, position: np.ndarray, grid: np.ndarray,
               at: np.ndarray, k: np.ndarray, fit: bool) -> np.ndarray:
        """(N, Q): values of coordinate k (N,) with which atoms on a member may still be apart from each other and
        others, if `fit` at distances that fit the elements."""
        m = self.members
        found = np.ones((len(member), Q), bool)
        step, halves, dof = m.basis[member, k, k], m.basis[member, 1, 1] == Q // 2, m.dof[member]
        # The last coordinate tells apart members for whose sakes x and y were allowed.
        moves = np.where(k == 0, step < Q, (k == 2) | (step == 1) | (step == Q) | halves)
        i = np.flatnonzero(moves & (dof > 1))
        if len(i):
            start, along = self._direction(member[i], at[i], k[i])
            free = self._free(rows[i], group[i], start, along, m.basis[member[i]], k[i], fit=fit)
            found[i] = _along(free, start, along, grid[i], k[i])
        i = np.flatnonzero(dof == 1)
        if len(i):
            found[i] = _along(self.lines[rows[i], position[i]], m.line_shift[member[i]], m.line[member[i]], grid[i],
                              k[i])
        return found

    def _direction(self, member: np.ndarray, at: np.ndarray, k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """From where and along what (N, 3) coordinate k moves on members whose first k coordinates are settled."""
        m = self.members
        # What x has settled, too, it may have settled for another member's sake.
        along = np.where((m.basis[member, k, k] < Q)[:, None], m.basis[member, :, k], 0)
        # x may have left two values of the first parameter, which y tells apart.
        again = ((m.dof[member] > 1) & (m.basis[member, 1, 1] == Q // 2) & (k == 1))[:, None]
        return np.where(again, m.line_shift[member], at), np.where(again, m.line[member], along)

    def _apart_ahead(self, rows: np.ndarray, group: np.ndarray, member: np.ndarray, grid: np.ndarray, at: np.ndarray,
                     k: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """(N, Q): of the wanted values of coordinate k those with which some choice, of `TRIES`, of the later ones
        keeps all atoms apart; all of them on lines, and in cells so thick that there always is such a choice."""
        m = self.members
        found = np.ones_like(wanted)
        left = np.flatnonzero((m.dof[member] > 1) & (k < 2))
        left = left[heights(self.metric[rows[left]]).min(1) < _THICK]
        found[left] = False
        for attempt in range(1, TRIES + 1):
            if not len(left):
                break
            chosen, tried, next_ = member[left], tries(attempt), k[left]
            start, along = self._direction(chosen, at[left], next_)
            basis = m.basis[chosen]
            for j in (1, 2):
                later = (tried[j] * (Q // basis[:, j, j]).astype(np.float32)).astype(int) * (j > next_)
                start = start + basis[:, :, j] * later[:, None]
            free = self._free(rows[left], group[left], start, along, basis, next_, whole=True)
            found[left] |= _along(free, start, along, grid[left], next_)
            left = left[(wanted[left] & ~found[left]).any(1)]
        return found

    def _free(self, rows: np.ndarray, group: np.ndarray, start: np.ndarray, along: np.ndarray, basis: np.ndarray,
              k: np.ndarray, whole: bool = False, fit: bool = False) -> np.ndarray:
        """(N, Q): t at which images of start + along * t (1/Q) are apart, as far as what comes after cannot change it.

        Other atoms count once nothing more is free; all does if start is `whole`.
        """
        m, taken = self.members, (self.filled + self.reserved)[rows]
        filled, most = int(taken.max()), int(m.n_operations[group].max())
        own = m.turns[group, 1:most]  # (N, G, 3, 3)
        offset = apply(own, start[:, None]) - m.shifts[group, 1:most]
        turn = apply(own, along[:, None])
        later = np.zeros(len(rows), bool)
        real = np.arange(1, most) < m.n_operations[group, None]
        real &= (turn != 0).any(-1) | (offset % Q != 0).any(-1)  # the same atom, on a mirror for instance
        for j in () if whole else (1, 2):
            free = (basis[:, j, j] == 1) & (j > k)
            later |= free
            real &= ~(free[:, None] & apply(own, basis[:, None, :, j]).any(-1))
        other = start[:, None].astype(np.float32) / Q - self.atoms[rows, :filled]
        present = (np.arange(filled) < taken[:, None]) & ~later[:, None]
        return free_on_line(self.metric[rows],
                            np.concatenate([other, offset.astype(np.float32) / Q], 1),
                            np.concatenate([along[:, None].repeat(filled, 1), turn], 1).astype(np.float32),
                            np.concatenate([present, real], 1),
                            limit=self.limits(rows, filled + most - 1) if fit else None)


def _along(free: np.ndarray, start: np.ndarray, along: np.ndarray, grid: np.ndarray, k: np.ndarray) -> np.ndarray:
    """(N, Q): coordinate k (N,) of points start + along * t for those t (N, Q) that are free and meet the first k of
    grid.

    In steps of 1/Q all of them; where coordinate k runs along t from what is already settled, the rest is met as well.
    """
    each, start, free = np.arange(len(free)), start % Q, free.copy()
    for i in range(2):
        at = np.flatnonzero(k > i)
        if len(at):
            apart = ((grid[at, i] - start[at, i]) % Q).astype(_STEPS.dtype)
            free[at] &= _STEPS[along[at, i]] == apart[:, None]
    first, step = start[each, k], along[each, k]
    # Coordinate c is met at t = c - first or, backwards, first - c: a window of what is free, twice in a row.
    back = step == -1
    free[back] = free[back, ::-1]
    begin = np.where(back, Q - 1 - first, -first) % Q
    found = np.stack([row[i : i + Q] for row, i in zip(np.concatenate([free, free], 1), begin.tolist(), strict=True)])
    still, n = np.flatnonzero(step == 0), np.flatnonzero(abs(step) > 1)
    found[still], found[n] = False, False
    found[still, first[still]] = free[still].any(1)
    if len(n):
        row, j = free[n].nonzero()
        found[n[row], (first[n[row]] + step[n[row]] * j) % Q] = True
    return found


def _any_by(which: np.ndarray, found: np.ndarray, n: int) -> np.ndarray:
    """(n, Q) bool: whether any of the rows i of found (N, Q) with which[i] = row, in rising order, has it."""
    some = np.zeros((n, Q), bool)
    if len(which):
        first = np.flatnonzero(np.diff(which, prepend=-1))
        some[which[first]] = np.bitwise_or.reduceat(found.view(np.int64), first).view(bool)  # eight at once
    return some


def _coset(which: np.ndarray, first: np.ndarray, step: np.ndarray, n: int) -> np.ndarray:
    """(n, Q) bool: in row which[i] the values first[i] + any whole number of step[i]."""
    found = np.zeros((n, Q), bool)
    found[which[step == 1]] = True
    i, j = ranges(np.zeros_like(step), np.where(step == 1, 0, Q // step))
    found[which[i], (first[i] + j * step[i]) % Q] = True
    return found


def bools(indices: Sequence[Iterable[int]]) -> np.ndarray:
    """(R, 27) bool from lists of positions (indices)."""
    found = np.zeros((len(indices), MOST_POSITIONS), bool)
    for row, some in zip(found, indices, strict=True):
        row[list(some)] = True
    return found
