"""The grammar of the `orbits` representation, for a whole batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from policies.representations.base import EOS, MAX_Z, PAD, State
from policies.representations.cells import Cells, apply
from policies.representations.distances import MIN_VOLUME, TOUCHING, TRIES, radii, ranges, shortest, tries
from policies.representations.elbow_room import holds
from policies.representations.lattice import LatticeState, system_of
from policies.representations.orbit_chemistry import Chemistry
from policies.representations.orbit_tables import ANY, MOST_POSITIONS, lasting
from policies.representations.patterns import can_have_group, has_group
from policies.representations.quantiser import Q
from rlgen.conditions import SYSTEM, crystal_system
from rlgen.types import Condition, UserError

if TYPE_CHECKING:
    from policies.representations.orbits import Orbits

GROUP, CELL, ORBIT, ELEMENT, COORDINATE, ENDED = range(6)
#: The crystal system, 1 to 7, of each space group; at 0 none.
_SYSTEM_OF = np.array([0, *(1 + crystal_system(group) for group in range(1, 231))])
#: Stands for an element that no other site has.
FRESH = 0


class OrbitsState(State):
    """A space group that can have the number of atoms asked for; a cell that they fit into; positions of that group in
    their order, those without free parameters once, that add up to the number of atoms exactly; the element asked for;
    no two atoms too close, images included; sites that have the space group and no more symmetry; and what `asked`
    demands.

    Where nothing keeps atoms apart or the group as it is, that demand is let go, so that every prefix can be completed.
    Atoms are kept at `MIN_DISTANCE` by looking ahead, and at a distance fit for their elements where, at the element or
    the last parameter of a site, something still allows it.
    """

    def __init__(self, representation: Orbits, prompts: torch.Tensor, conditions: Sequence[Condition] | None):
        self.rep, self.t = representation, representation.tables
        self.asked_group, self.asked_n, self.owed = (x.numpy() for x in representation.read_prompts(prompts))
        self.asked_system = representation.read_systems(prompts, conditions).numpy()
        b = len(prompts)
        self.chemistry = Chemistry.of(representation, prompts, conditions)
        self.most = np.full(b, representation.max_atoms)
        self.chemistry.limit(self.most)
        self._check_asked()
        self.phase = np.full(b, GROUP)
        self.group = np.zeros(b, int)
        self.row = np.zeros(b, int)  # in the tables: of the first position still allowed
        self.site = np.zeros(b, int)  # in the tables: of the position being written
        self.k = np.zeros(b, int)  # free parameters of it written so far
        self.u = np.zeros((b, 3), np.float32)
        self.n = np.zeros(b, int)  # atoms so far, in the primitive cell
        self.fewest = np.zeros(b, int)  # atoms that there must be
        self.cells = Cells(representation.max_atoms, b)
        self.sites: list[list[tuple[int, int]]] = [[] for _ in range(b)]  # position and element of each
        self.lattice: LatticeState | None = None
        self._check_systems()

    def _check_systems(self) -> None:
        rows = np.flatnonzero(self.asked_system)
        if len(rows):
            mask = np.zeros((len(self.phase), len(self.rep.vocabulary)), bool)
            self._groups(mask, rows)
            if not (possible := mask[rows].any(1)).all():
                system = SYSTEM.names[self.asked_system[rows[~possible][0]] - 1]
                raise UserError(f"no {system} space group has a choice of Wyckoff positions for all else that is asked")

    def _check_asked(self) -> None:
        possible = self.t.reach[self.t.base[self.asked_group], self.asked_n] | (self.asked_group == 0)
        if not possible.all():
            i = int(np.flatnonzero(~possible)[0])
            raise UserError(f"no choice of Wyckoff positions of space group {self.asked_group[i]} has "
                            f"{self.asked_n[i]} atoms in the primitive cell")

    def keep(self, rows: int) -> None:
        for name in ("asked_group", "asked_system", "asked_n", "owed", "most", "phase", "group", "row", "site", "k",
                     "u", "n", "fewest"):
            setattr(self, name, getattr(self, name)[:rows])
        del self.sites[rows:]
        self.cells.keep(rows)
        if self.lattice is not None:
            self.lattice.keep(rows)
        self.chemistry.keep(rows)

    # What may come next

    def legal(self) -> torch.Tensor:
        mask = np.zeros((len(self.phase), len(self.rep.vocabulary)), bool)
        mask[:, PAD] = self.phase == ENDED
        for phase, allow in ((GROUP, self._groups), (CELL, self._cells), (ORBIT, self._orbits),
                             (ELEMENT, self._elements), (COORDINATE, self._coordinates)):
            rows = (self.phase == phase).nonzero()[0]
            if len(rows):
                allow(mask, rows)
        return torch.from_numpy(mask)

    def _groups(self, mask: np.ndarray, rows: np.ndarray) -> None:
        n, asked = self.asked_n[rows, None], self.asked_group[rows, None]
        every, base = np.arange(231), self.t.base
        good = np.where(n > 0, self.t.reach[base, n], self.t.least[base] <= self.most[rows, None])  # (R, 231)
        good &= (every > 0) & ((asked == 0) | (every == asked))
        system = self.asked_system[rows, None]
        good &= (system == 0) | (system == _SYSTEM_OF)
        first = self.rep.first["space_group"]
        mask[rows, first : first + 231] = self.chemistry.groups(rows, good)

    def _cells(self, mask: np.ndarray, rows: np.ndarray) -> None:
        assert self.lattice is not None
        self.lattice.legal(torch.from_numpy(mask), torch.from_numpy(rows))

    def _left(self, rows: np.ndarray) -> np.ndarray:
        """(R,) atoms that are still to come, or may still come where no number is asked for."""
        asked = self.asked_n[rows]
        return np.where(asked > 0, asked, self.most[rows]) - self.n[rows]

    def _orbits(self, mask: np.ndarray, rows: np.ndarray) -> None:
        t, left, exact = self.t, self._left(rows), self.asked_n[rows] > 0
        begin, group = self.row[rows], self.group[rows]
        at = begin[:, None] + np.arange(MOST_POSITIONS)
        inside = at < (t.base[group] + t.count[group])[:, None]
        at = at.clip(max=len(t.atoms) - 1)
        rest = left[:, None] - t.atoms[at]
        after = np.where(t.dof[at] > 0, at, at + 1).clip(max=len(t.atoms) - 1)
        possible = inside & (rest >= 0) & (t.reach[after, rest.clip(min=0)] | ~exact[:, None])
        possible = self.chemistry.orbits(rows, at, after, left, possible)
        end = np.where(exact, left == 0, (self.n[rows] > 0) & (self.owed[rows] == 0))
        end = self.chemistry.ends(rows, end)
        room = self.cells.room(rows, at, possible)
        apart = possible & (room > 0)
        lasting = self._lasting(rows, at, after, rest, room, apart)
        symmetric, proper_end = self._symmetric_orbits(rows, at, rest, lasting, end)
        good, proper_end = _first_that_leaves_a_choice(
            (symmetric, proper_end), (lasting, end), (apart, end), (possible, end), (possible, np.ones_like(end)))
        i, j = good.nonzero()
        mask[rows[i], self.rep.first["orbit"] + t.orbit[at[i, j]]] = True
        mask[rows, EOS] = proper_end

    def _symmetric_orbits(self, rows: np.ndarray, at: np.ndarray, rest: np.ndarray, good: np.ndarray, end: np.ndarray
                          ) -> tuple[np.ndarray, np.ndarray]:
        """Narrow positions (R, P), and ends (R,), to those with which the crystal can have just its space group."""
        good, end = good.copy(), end.copy()
        exact = (self.asked_n[rows] > 0)[:, None]
        group, first = self.group[rows], self.t.base[self.group[rows], None]
        r, j = (good & exact).nonzero()
        index, left = (at - first)[r, j], rest[r, j]
        after = np.where(self.t.dof[at[r, j]] > 0, index, index + 1)
        good[r, j] = [can_have_group(g, [*self.sites[i], (p, FRESH)], n, q, self.rep.max_atoms) for i, g, p, n, q in
                      zip(*(x.tolist() for x in (rows[r], group[r], index, left, after)), strict=True)]
        for r in np.flatnonzero(end & ~exact[:, 0]).tolist():
            end[r] = has_group(int(group[r]), self.sites[rows[r]])
        return good, end

    def _lasting(self, rows: np.ndarray, at: np.ndarray, after: np.ndarray, rest: np.ndarray, room: np.ndarray,
                 apart: np.ndarray) -> np.ndarray:
        """Narrow positions (R, P) to those after which there is certain to be room for the atoms still to come.

        Where planes and general positions can take all of these there always is.
        """
        t, apart = self.t, apart.copy()
        exact = (self.asked_n[rows] > 0)[:, None]
        full = ~t.roomy[after, rest.clip(min=0)] | ((room < ANY) & (t.dof[at] == 2))
        tight = np.flatnonzero((apart & exact & full).any(1))
        if not len(tight):
            return apart
        group, first = self.group[rows[tight]], self.t.base[self.group[rows[tight]], None]
        others = (at[tight] < first + t.count[group][:, None]) & (rest[tight] >= 0) & (room[tight] == 0)
        rooms = room[tight] + self.cells.room(rows[tight], at[tight], others)
        offset = (at[tight, 0] - first[:, 0]).tolist()
        for r, g, start, left, some in zip(tight.tolist(), group.tolist(), offset, self._left(rows[tight]).tolist(),
                                           rooms.tolist(), strict=True):
            count = int(t.count[g])
            fine = lasting(self.rep.max_atoms, g, start, left, (*[0] * start, *some[: count - start]))[start:]
            apart[r, : len(fine)] &= fine
        return apart

    def _elements(self, mask: np.ndarray, rows: np.ndarray) -> None:
        t, site = self.t, self.site[rows]
        before = self._left(rows)
        left = before - t.atoms[site]
        after = np.where(t.dof[site] > 0, site, site + 1)
        more = np.where(self.asked_n[rows] > 0, left > 0, t.least[after] <= left)
        z = np.arange(1, MAX_Z + 1)
        owed = self.owed[rows, None]
        good = (owed == 0) | more[:, None] | (z == owed)
        good = self.chemistry.elements(rows, site, after, before, good)
        for r in np.flatnonzero((self.asked_n[rows] > 0) & (left == 0)).tolist():
            good[r] = self._symmetric_elements(int(rows[r]), good[r])
        small = good & (radii()[1:] <= self._largest(rows)[:, None])
        first = self.rep.first["element"] + 1
        mask[rows, first : first + MAX_Z] = np.where(small.any(1, keepdims=True), small, good)

    def _largest(self, rows: np.ndarray) -> np.ndarray:
        """(R,) Å: the largest radius of an element that is not too close to its own images and, on a position without
        free parameters, to any other atom."""
        site = self.site[rows]
        largest = shortest(self.cells.metric[rows]) / (2 * TOUCHING)
        fixed = np.flatnonzero(self.t.dof[site] == 0)
        if len(fixed):
            largest[fixed] = np.minimum(largest[fixed], self.cells.largest(rows[fixed], site[fixed]))
        return largest

    def _symmetric_elements(self, i: int, good: np.ndarray) -> np.ndarray:
        """Narrow the elements (118,) of the last site of row i to those that leave it its space group, if any does."""
        group, index = int(self.group[i]), int(self.site[i] - self.t.base[self.group[i]])
        used = {z for _, z in self.sites[i]}
        narrowed = good.copy()
        for z in used:
            if good[z - 1]:
                narrowed[z - 1] = has_group(group, [*self.sites[i], (index, z)])
        if not has_group(group, [*self.sites[i], (index, FRESH)]):
            others = np.ones_like(good)
            others[[z - 1 for z in used]] = False
            narrowed &= ~others
        return narrowed if narrowed.any() else good

    def _coordinates(self, mask: np.ndarray, rows: np.ndarray) -> None:
        first, site, k = self.rep.first["coordinate"], self.site[rows], self.k[rows]
        free, fit = self.cells.free_and_fit(rows, site, k, self.u[rows], whole=False)
        more = np.flatnonzero(k < self.t.dof[site] - 1)
        if len(more):
            ahead = free[more] & self._free_ahead(rows[more], free[more])
            free[more] = np.where(ahead.any(1, keepdims=True), ahead, free[more])
        fit &= free
        free = np.where(fit.any(1, keepdims=True), fit, free)
        mask[rows, first : first + Q] = free | ~free.any(1, keepdims=True)

    def _free_ahead(self, rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """(R, Q): of the wanted values of the next parameter those with which some choice, of `TRIES`, of the later
        ones keeps all atoms apart."""
        found, left = np.zeros_like(wanted), np.arange(len(rows))
        for attempt in range(1, TRIES + 1):
            at = rows[left]
            k, site = self.k[at], self.site[at]
            later = np.arange(3) > k[:, None]
            u = np.where(later & (later.cumsum(1) <= (self.t.dof[site] - 1 - k)[:, None]), tries(attempt), self.u[at])
            found[left] |= self.cells.free(at, site, k, u)
            left = left[(wanted[left] & ~found[left]).any(1)]
            if not len(left):
                break
        return found

    # What came

    def advance(self, tokens: torch.Tensor) -> None:
        before, came = self.phase.copy(), tokens.numpy()
        for phase, take in ((GROUP, self._take_group), (CELL, self._take_cell), (ORBIT, self._take_orbit),
                            (ELEMENT, self._take_element), (COORDINATE, self._take_coordinate)):
            rows = (before == phase).nonzero()[0]
            if len(rows):
                take(rows, came[rows])

    def _take_group(self, rows: np.ndarray, tokens: np.ndarray) -> None:
        # All rows write their group first, so this happens once, to all of them.
        self.group[rows] = (tokens - self.rep.first["space_group"]).clip(0, 230)
        self.row = self.t.base[self.group]
        self.fewest = np.where(self.asked_n > 0, self.asked_n, self.t.least[self.row])
        self.chemistry.raise_to_least(self.fewest, self.group)
        volume = MIN_VOLUME * self.t.points[self.group] * self.fewest
        systems = torch.tensor([system_of(g) for g in self.group.tolist()])
        self.lattice = LatticeState(self.rep.first, systems, torch.from_numpy(volume))
        self.lattice.fits = [partial(holds, self.rep.max_atoms, *row) for row in
                             zip(self.group.tolist(), self.fewest.tolist(), strict=True)]
        self.phase[rows] = CELL

    def _take_cell(self, rows: np.ndarray, tokens: np.ndarray) -> None:
        assert self.lattice is not None
        done = rows[self.lattice.advance(torch.from_numpy(tokens), torch.from_numpy(rows)).numpy()]
        if len(done):
            self.cells.metric[done] = self.lattice.metric().numpy()[done]
            room = self.lattice.cell_volume().numpy()[done] / MIN_VOLUME / self.t.points[self.group[done]]
            self.most[done] = np.minimum(self.most[done], np.maximum(room.astype(int), self.fewest[done]))
            self.chemistry.fit(done, self.most)
            self.phase[done] = ORBIT

    def _take_orbit(self, rows: np.ndarray, tokens: np.ndarray) -> None:
        ended = tokens == EOS
        self.phase[rows[ended]] = ENDED
        rows, orbit = rows[~ended], tokens[~ended] - self.rep.first["orbit"]
        at = self.t.base[self.group[rows], None] + np.arange(MOST_POSITIONS)
        inside = at < (self.t.base[self.group[rows]] + self.t.count[self.group[rows]])[:, None]
        same = (self.t.orbit[at.clip(max=len(self.t.atoms) - 1)] == orbit[:, None]) & inside
        self.site[rows] = at[:, 0] + same.argmax(1)
        self.k[rows], self.u[rows] = 0, 0
        self.phase[rows] = ELEMENT

    def _take_element(self, rows: np.ndarray, tokens: np.ndarray) -> None:
        z = tokens - self.rep.first["element"]
        site = self.site[rows]
        self.chemistry.take(rows, site, z)
        self.owed[rows] = np.where(self.owed[rows] == z, 0, self.owed[rows])
        index = site - self.t.base[self.group[rows]]
        for i, *pair in zip(rows.tolist(), index.tolist(), z.tolist(), strict=True):
            self.sites[i].append((pair[0], pair[1]))
        self.n[rows] += self.t.atoms[site]
        self.cells.take_element(rows, z)
        fixed = self.t.dof[site] == 0
        self.row[rows] = np.where(fixed, site + 1, site)
        self.phase[rows] = np.where(fixed, ORBIT, COORDINATE)
        self._place(rows[fixed])

    def _take_coordinate(self, rows: np.ndarray, tokens: np.ndarray) -> None:
        self.u[rows, self.k[rows]] = (tokens - self.rep.first["coordinate"]).astype(np.float32) / Q
        self.k[rows] += 1
        whole = rows[self.k[rows] == self.t.dof[self.site[rows]]]
        self._place(whole)
        self.phase[whole] = ORBIT

    def _place(self, rows: np.ndarray) -> None:
        """Add the atoms of the positions that these rows have completed."""
        site, cells = self.site[rows], self.cells
        members = self.t.members[site]
        i, j = ranges(np.zeros_like(site), members)
        points = apply(self.t.matrix[site[i], j], self.u[rows[i]]) + self.t.shift[site[i], j]
        cells.put(rows[i], cells.filled[rows[i]] + j, points, cells.radius[rows[i]])
        cells.filled[rows] += members


def _first_that_leaves_a_choice(*options: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Row by row the first (orbits (R, P), end (R,)) that allows anything."""
    good, end = options[-1]
    for some, ends in reversed(options[:-1]):
        any_left = some.any(1) | ends
        good, end = np.where(any_left[:, None], some, good), np.where(any_left, ends, end)
    return good, end
