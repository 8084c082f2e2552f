"""The grammar of the `orbits` representation, for a whole batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from policies.representations.base import EOS, MAX_Z, PAD, State
from policies.representations.distances import (
    MIN_VOLUME,
    SMALL_AREA,
    TOUCHING,
    TRIES,
    area,
    free_on_line,
    nearest,
    pair_limits,
    radii,
    shortest,
    sites_on_line,
    sites_on_plane,
    too_close,
    tries,
)
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
_SYSTEM_OF = [0, *(1 + crystal_system(group) for group in range(1, 231))]
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
        self.rep, self.t = representation, representation.tables.to(prompts.device)
        self.asked_group, self.asked_n, self.owed = representation.read_prompts(prompts)
        self.asked_system = representation.read_systems(prompts, conditions)
        b, device = len(prompts), prompts.device
        self.chemistry = Chemistry.of(representation, prompts, conditions)
        self.most = torch.full_like(self.asked_n, representation.max_atoms)
        self.chemistry.limit(self.most)
        self._check_asked()
        self.phase = torch.full((b,), GROUP, device=device)
        self.group = torch.zeros(b, dtype=torch.long, device=device)
        self.row = torch.zeros(b, dtype=torch.long, device=device)  # in the tables: of the first position still allowed
        self.site = torch.zeros(b, dtype=torch.long, device=device)  # in the tables: of the position being written
        self.k = torch.zeros(b, dtype=torch.long, device=device)  # free parameters of it written so far
        self.u = torch.zeros(b, 3, device=device)
        self.n = torch.zeros(b, dtype=torch.long, device=device)  # atoms so far, in the primitive cell
        self.fewest = torch.zeros(b, dtype=torch.long, device=device)  # atoms that there must be
        self.atoms = torch.zeros(b, 64, 3, device=device)  # of the conventional cell
        self.filled = torch.zeros(b, dtype=torch.long, device=device)
        self.radius_of = radii(device)
        self.radii = torch.zeros(b, 64, device=device)  # Å, of those atoms
        self.radius = torch.zeros(b, device=device)  # Å, of the element of the position being written
        self.sites: list[list[tuple[int, int]]] = [[] for _ in range(b)]  # position and element of each
        self.lattice: LatticeState | None = None
        self.metric = torch.zeros(b, 3, 3, device=device)
        self._check_systems()

    def _check_systems(self) -> None:
        rows = self.asked_system.nonzero()[:, 0]
        if len(rows):
            mask = torch.zeros(len(self.phase), len(self.rep.vocabulary), dtype=torch.bool, device=self.phase.device)
            self._groups(mask, rows)
            if not (possible := mask[rows].any(1)).all():
                system = SYSTEM.names[int(self.asked_system[rows[~possible][0]]) - 1]
                raise UserError(f"no {system} space group has a choice of Wyckoff positions for all else that is asked")

    def _check_asked(self) -> None:
        rows = self.t.base[self.asked_group]
        possible = self.t.reach[rows].gather(1, self.asked_n[:, None])[:, 0] | (self.asked_group == 0)
        if not possible.all():
            i = int((~possible).nonzero()[0])
            raise UserError(f"no choice of Wyckoff positions of space group {int(self.asked_group[i])} has "
                            f"{int(self.asked_n[i])} atoms in the primitive cell")

    def keep(self, rows: int) -> None:
        for name in ("asked_group", "asked_system", "asked_n", "owed", "most", "phase", "group", "row", "site", "k",
                     "u", "n", "fewest", "atoms", "filled", "radii", "radius", "metric"):
            setattr(self, name, getattr(self, name)[:rows])
        del self.sites[rows:]
        if self.lattice is not None:
            self.lattice.keep(rows)
        self.chemistry.keep(rows)

    # What may come next

    def legal(self) -> torch.Tensor:
        mask = torch.zeros(len(self.phase), len(self.rep.vocabulary), dtype=torch.bool, device=self.phase.device)
        mask[:, PAD] = self.phase == ENDED
        for phase, allow in ((GROUP, self._groups), (CELL, self._cells), (ORBIT, self._orbits),
                             (ELEMENT, self._elements), (COORDINATE, self._coordinates)):
            rows = (self.phase == phase).nonzero()[:, 0]
            if len(rows):
                allow(mask, rows)
        return mask

    def _groups(self, mask: torch.Tensor, rows: torch.Tensor) -> None:
        n, asked = self.asked_n[rows], self.asked_group[rows, None]
        every = torch.arange(231, device=rows.device)
        fits = self.t.reach[self.t.base][:, n].T  # (R, 231)
        some = self.t.least[self.t.base] <= self.most[rows, None]
        good = torch.where(n[:, None] > 0, fits, some) & (every > 0) & ((asked == 0) | (every == asked))
        system = self.asked_system[rows, None]
        good &= (system == 0) | (torch.tensor(_SYSTEM_OF, device=rows.device) == system)
        first = self.rep.first["space_group"]
        mask[rows, first : first + 231] = self.chemistry.groups(rows, good)

    def _cells(self, mask: torch.Tensor, rows: torch.Tensor) -> None:
        assert self.lattice is not None
        self.lattice.legal(mask, rows)

    def _left(self, rows: torch.Tensor) -> torch.Tensor:
        """(R,) atoms that are still to come, or may still come where no number is asked for."""
        asked = self.asked_n[rows]
        return torch.where(asked > 0, asked, self.most[rows]) - self.n[rows]

    def _orbits(self, mask: torch.Tensor, rows: torch.Tensor) -> None:
        t, left, exact = self.t, self._left(rows), self.asked_n[rows] > 0
        begin, group = self.row[rows], self.group[rows]
        at = begin[:, None] + torch.arange(MOST_POSITIONS, device=rows.device)
        inside = at < (t.base[group] + t.count[group])[:, None]
        at = at.clamp(max=len(t.atoms) - 1)
        rest = left[:, None] - t.atoms[at]
        after = torch.where(t.dof[at] > 0, at, at + 1).clamp(max=len(t.atoms) - 1)
        possible = inside & (rest >= 0) & (t.reach[after, rest.clamp(min=0)] | ~exact[:, None])
        possible = self.chemistry.orbits(rows, at, after, left, possible)
        end = torch.where(exact, left == 0, (self.n[rows] > 0) & (self.owed[rows] == 0))
        end = self.chemistry.ends(rows, end)
        room = self._room(rows, at, possible)
        apart = possible & (room > 0)
        lasting = self._lasting(rows, at, after, rest, room, apart)
        symmetric, proper_end = self._symmetric_orbits(rows, at, rest, lasting, end)
        good, proper_end = _first_that_leaves_a_choice(
            (symmetric, proper_end), (lasting, end), (apart, end), (possible, end), (possible, torch.ones_like(end)))
        i, j = good.nonzero(as_tuple=True)
        mask[rows[i], self.rep.first["orbit"] + t.orbit[at[i, j]]] = True
        mask[rows, EOS] = proper_end

    def _symmetric_orbits(self, rows: torch.Tensor, at: torch.Tensor, rest: torch.Tensor, good: torch.Tensor,
                          end: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Narrow positions (R, P), and ends (R,), to those with which the crystal can have just its space group."""
        good, end = good.clone(), end.clone()
        exact = (self.asked_n[rows] > 0)[:, None]
        group, first = self.group[rows], self.t.base[self.group[rows], None]
        wanted = (good & exact).nonzero()
        r, j = wanted[:, 0], wanted[:, 1]
        index, left = (at - first)[r, j], rest[r, j]
        after = torch.where(self.t.dof[at[r, j]] > 0, index, index + 1)
        good[r, j] = torch.tensor(
            [can_have_group(g, [*self.sites[i], (p, FRESH)], n, q, self.rep.max_atoms) for i, g, p, n, q in
             zip(*(x.tolist() for x in (rows[r], group[r], index, left, after)), strict=True)],
            dtype=torch.bool, device=good.device)
        for r in (end & ~exact[:, 0]).nonzero()[:, 0].tolist():
            i = int(rows[r])
            end[r] = has_group(int(self.group[i]), self.sites[i])
        return good, end

    def _room(self, rows: torch.Tensor, at: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """(R, P): for how many sites positions are certain to have room apart from others and each other, `ANY` where
        two or three parameters are free; 0 where not wanted.

        On a line, each atom takes at most twice the limit away from those that follow.
        """
        found = torch.where(wanted, ANY, 0)
        i, j = (wanted & (self.t.dof[at] == 0)).nonzero(as_tuple=True)
        if len(i):
            found[i, j] = (~self._point_taken(rows[i], at[i, j])).long()
        i, j = (wanted & (self.t.dof[at] == 1)).nonzero(as_tuple=True)
        if len(i):
            site, metric = at[i, j], self.metric[rows[i]]
            free = self._free(rows[i], site, torch.zeros_like(i), torch.zeros(len(i), 3, device=rows.device)).sum(1)
            found[i, j] = sites_on_line(free, self.t.matrix[site, 0, :, 0], metric, self.t.own[site])
        i, j = (wanted & self._small(rows, at)).nonzero(as_tuple=True)
        if len(i):
            site, u = at[i, j], torch.zeros(len(i), 3, device=rows.device)
            share = torch.zeros(len(i), device=rows.device)
            for attempt in range(1, TRIES + 1):
                u[:, 1] = tries(attempt, rows.device)[1]
                share += self._free(rows[i], site, torch.zeros_like(i), u, True).float().mean(1) / TRIES
            found[i, j] = sites_on_plane(share, area(self.t.matrix[site, 0, :, :2], self.metric[rows[i]]),
                                         self.t.own[site])
        return found

    def _small(self, rows: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """(R, P) which positions are on planes that may run out of room."""
        found = self.t.dof[at] == 2
        i, j = found.nonzero(as_tuple=True)
        found[i, j] = area(self.t.matrix[at[i, j], 0, :, :2], self.metric[rows[i]]) < SMALL_AREA
        return found

    def _lasting(self, rows: torch.Tensor, at: torch.Tensor, after: torch.Tensor, rest: torch.Tensor,
                 room: torch.Tensor, apart: torch.Tensor) -> torch.Tensor:
        """Narrow positions (R, P) to those after which there is certain to be room for the atoms still to come.

        Where planes and general positions can take all of these there always is.
        """
        t, apart = self.t, apart.clone()
        exact = (self.asked_n[rows] > 0)[:, None]
        full = ~t.roomy[after, rest.clamp(min=0)] | (room < ANY).logical_and(t.dof[at] == 2)
        tight = (apart & exact & full).any(1).nonzero()[:, 0]
        if not len(tight):
            return apart
        group, first = self.group[rows[tight]], self.t.base[self.group[rows[tight]], None]
        others = (at[tight] < first + t.count[group][:, None]) & (rest[tight] >= 0) & (room[tight] == 0)
        rooms = room[tight] + self._room(rows[tight], at[tight], others)
        offset = (at[tight, 0] - first[:, 0]).tolist()
        for r, g, start, left, some in zip(tight.tolist(), group.tolist(), offset, self._left(rows[tight]).tolist(),
                                           rooms.tolist(), strict=True):
            count = int(t.count[g])
            fine = lasting(self.rep.max_atoms, g, start, left, (*[0] * start, *some[: count - start]))[start:]
            apart[r, : len(fine)] &= torch.tensor(fine, device=apart.device)
        return apart

    def _point_taken(self, rows: torch.Tensor, site: torch.Tensor) -> torch.Tensor:
        """(R,): whether atoms of a position without free parameters would be too close to others or to each other."""
        members, filled = int(self.t.members[site].max()), int(self.filled[rows].max())
        point, metric = self.t.shift[site, 0], self.metric[rows]
        own = too_close(metric, self.t.shift[site, 1:members] - point[:, None])
        own &= torch.arange(1, members, device=rows.device) < self.t.members[site, None]
        other = too_close(metric, self.atoms[rows, :filled] - point[:, None])
        other &= torch.arange(filled, device=rows.device) < self.filled[rows, None]
        return own.any(1) | other.any(1)

    def _elements(self, mask: torch.Tensor, rows: torch.Tensor) -> None:
        t, site = self.t, self.site[rows]
        before = self._left(rows)
        left = before - t.atoms[site]
        after = torch.where(t.dof[site] > 0, site, site + 1)
        more = torch.where(self.asked_n[rows] > 0, left > 0, t.least[after] <= left)
        z = torch.arange(1, MAX_Z + 1, device=rows.device)
        owed = self.owed[rows, None]
        good = (owed == 0) | more[:, None] | (z == owed)
        good = self.chemistry.elements(rows, site, after, before, good)
        last = (self.asked_n[rows] > 0) & (left == 0)
        for r in last.nonzero()[:, 0].tolist():
            good[r] = self._symmetric_elements(int(rows[r]), good[r])
        small = good & (self.radius_of[1:] <= self._largest(rows)[:, None])
        first = self.rep.first["element"] + 1
        mask[rows, first : first + MAX_Z] = torch.where(small.any(1, keepdim=True), small, good)

    def _largest(self, rows: torch.Tensor) -> torch.Tensor:
        """(R,) Å: the largest radius of an element that is not too close to its own images and, on a position without
        free parameters, to any other atom."""
        metric, site = self.metric[rows], self.site[rows]
        largest = shortest(metric) / (2 * TOUCHING)
        fixed = (self.t.dof[site] == 0).nonzero()[:, 0]
        if len(fixed):
            rows, site, metric = rows[fixed], site[fixed], metric[fixed]
            members, filled = int(self.t.members[site].max()), int(self.filled[rows].max())
            point = self.t.shift[site, :1]
            own = nearest(metric, self.t.shift[site, 1:members] - point) / (2 * TOUCHING)
            other = nearest(metric, self.atoms[rows, :filled] - point) / TOUCHING - self.radii[rows, :filled]
            own[torch.arange(1, members, device=rows.device) >= self.t.members[site, None]] = torch.inf
            other[torch.arange(filled, device=rows.device) >= self.filled[rows, None]] = torch.inf
            largest[fixed] = torch.cat([largest[fixed, None], own, other], 1).amin(1)
        return largest

    def _symmetric_elements(self, i: int, good: torch.Tensor) -> torch.Tensor:
        """Narrow the elements (118,) of the last site of row i to those that leave it its space group, if any does."""
        group, index = int(self.group[i]), int(self.site[i] - self.t.base[self.group[i]])
        used = {z for _, z in self.sites[i]}
        narrowed = good.clone()
        for z in used:
            if good[z - 1]:
                narrowed[z - 1] = has_group(group, [*self.sites[i], (index, z)])
        if not has_group(group, [*self.sites[i], (index, FRESH)]):
            others = torch.ones_like(good)
            others[[z - 1 for z in used]] = False
            narrowed &= ~others
        return narrowed if narrowed.any() else good

    def _coordinates(self, mask: torch.Tensor, rows: torch.Tensor) -> None:
        first = self.rep.first["coordinate"]
        free = self._free(rows, self.site[rows], self.k[rows], self.u[rows])
        more = (self.k[rows] < self.t.dof[self.site[rows]] - 1).nonzero()[:, 0]
        if len(more):
            ahead = free[more] & self._free_ahead(rows[more], free[more])
            free[more] = torch.where(ahead.any(1, keepdim=True), ahead, free[more])
        fit = free & self._free(rows, self.site[rows], self.k[rows], self.u[rows], radius=self.radius[rows])
        free = torch.where(fit.any(1, keepdim=True), fit, free)
        mask[rows, first : first + Q] = free | ~free.any(1, keepdim=True)

    def _free_ahead(self, rows: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """(R, Q): of the wanted values of the next parameter those with which some choice, of `TRIES`, of the later
        ones keeps all atoms apart."""
        found, left = torch.zeros_like(wanted), torch.arange(len(rows), device=rows.device)
        for attempt in range(1, TRIES + 1):
            at = rows[left]
            k, site = self.k[at], self.site[at]
            later = torch.arange(3, device=at.device) > k[:, None]
            u = torch.where(later & (later.cumsum(1) <= (self.t.dof[site] - 1 - k)[:, None]),
                            tries(attempt, at.device), self.u[at])
            found[left] |= self._free(at, site, k, u, True)
            left = left[(wanted[left] & ~found[left]).any(1)]
            if not len(left):
                break
        return found

    def _free(self, rows: torch.Tensor, site: torch.Tensor, k: torch.Tensor, u: torch.Tensor, whole: bool = False,
              radius: torch.Tensor | None = None) -> torch.Tensor:
        """(R, Q): values of parameter k, after those of u, that keep a position's atoms from each other and others.

        A difference counts as soon as no later parameter can change it: those to other atoms with the last one. With
        `whole`, the later parameters are those of u, too. With `radius` (R,) Å, that of the position's element, atoms
        are kept as far apart as fits their elements.
        """
        members, filled = int(self.t.members[site].max()), int(self.filled[rows].max())
        matrix, shift = self.t.matrix[site, :members], self.t.shift[site, :members]
        point = (matrix * u[:, None, None]).sum(-1) + shift  # parameters to come are still 0
        own = matrix[:, :1] - matrix[:, 1:]  # (R, members - 1, 3, 3)
        now = (torch.arange(3, device=rows.device) == k[:, None])[:, None, None]
        later = (torch.arange(3, device=rows.device) > k[:, None])[:, None, None] & (not whole)
        settled = ((own != 0) & later).flatten(2).any(2).logical_not()
        last = (k == self.t.dof[site] - 1)[:, None] | whole
        start = torch.cat([point[:, :1] - self.atoms[rows, :filled], point[:, :1] - point[:, 1:]], 1)
        line = (matrix[:, 0] * now[:, 0]).sum(-1)
        direction = torch.cat([line[:, None].expand(-1, filled, -1), (own * now).sum(-1)], 1)
        real = torch.cat([(torch.arange(filled, device=rows.device) < self.filled[rows, None]) & last,
                          (torch.arange(1, members, device=rows.device) < self.t.members[site, None]) & settled], 1)
        limit = None
        if radius is not None:
            others = torch.cat([self.radii[rows, :filled], radius[:, None].expand(-1, members - 1)], 1)
            limit = pair_limits(others, radius[:, None])
        return free_on_line(self.metric[rows], start, direction, real, limit=limit)

    # What came

    def advance(self, tokens: torch.Tensor) -> None:
        before = self.phase.clone()
        for phase, take in ((GROUP, self._take_group), (CELL, self._take_cell), (ORBIT, self._take_orbit),
                            (ELEMENT, self._take_element), (COORDINATE, self._take_coordinate)):
            rows = (before == phase).nonzero()[:, 0]
            if len(rows):
                take(rows, tokens[rows])

    def _take_group(self, rows: torch.Tensor, tokens: torch.Tensor) -> None:
        # All rows write their group first, so this happens once, to all of them.
        self.group[rows] = (tokens - self.rep.first["space_group"]).clamp(0, 230)
        self.row = self.t.base[self.group]
        systems = torch.tensor([system_of(g) for g in range(231)], device=tokens.device)[self.group]
        self.fewest = torch.where(self.asked_n > 0, self.asked_n, self.t.least[self.row])
        self.chemistry.raise_to_least(self.fewest, self.group)
        volume = MIN_VOLUME * self.t.points[self.group] * self.fewest
        self.lattice = LatticeState(self.rep.first, systems, volume.double())
        self.lattice.fits = [partial(holds, self.rep.max_atoms, *row) for row in
                             zip(self.group.tolist(), self.fewest.tolist(), strict=True)]
        self.phase[rows] = CELL

    def _take_cell(self, rows: torch.Tensor, tokens: torch.Tensor) -> None:
        assert self.lattice is not None
        done = rows[self.lattice.advance(tokens, rows)]
        if len(done):
            self.metric[done] = self.lattice.metric()[done]
            room = self.lattice.cell_volume()[done] / MIN_VOLUME / self.t.points[self.group[done]]
            self.most[done] = torch.minimum(self.most[done], torch.maximum(room.long(), self.fewest[done]))
            self.chemistry.fit(done, self.most)
            self.phase[done] = ORBIT

    def _take_orbit(self, rows: torch.Tensor, tokens: torch.Tensor) -> None:
        ended = tokens == EOS
        self.phase[rows[ended]] = ENDED
        rows, orbit = rows[~ended], tokens[~ended] - self.rep.first["orbit"]
        at = self.t.base[self.group[rows], None] + torch.arange(MOST_POSITIONS, device=rows.device)
        inside = at < (self.t.base[self.group[rows]] + self.t.count[self.group[rows]])[:, None]
        same = (self.t.orbit[at.clamp(max=len(self.t.atoms) - 1)] == orbit[:, None]) & inside
        self.site[rows] = at[:, 0] + same.int().argmax(1)
        self.k[rows], self.u[rows] = 0, 0.0
        self.phase[rows] = ELEMENT

    def _take_element(self, rows: torch.Tensor, tokens: torch.Tensor) -> None:
        z = tokens - self.rep.first["element"]
        site = self.site[rows]
        self.chemistry.take(rows, site, z)
        self.owed[rows] = torch.where(self.owed[rows] == z, 0, self.owed[rows])
        index = site - self.t.base[self.group[rows]]
        for i, *pair in zip(rows.tolist(), index.tolist(), z.tolist(), strict=True):
            self.sites[i].append((pair[0], pair[1]))
        self.n[rows] += self.t.atoms[site]
        self.radius[rows] = self.radius_of[z]
        fixed = self.t.dof[site] == 0
        self.row[rows] = torch.where(fixed, site + 1, site)
        self.phase[rows] = torch.where(fixed, ORBIT, COORDINATE)
        self._place(rows[fixed])

    def _take_coordinate(self, rows: torch.Tensor, tokens: torch.Tensor) -> None:
        self.u[rows, self.k[rows]] = (tokens - self.rep.first["coordinate"]).float() / Q
        self.k[rows] += 1
        whole = rows[self.k[rows] == self.t.dof[self.site[rows]]]
        self._place(whole)
        self.phase[whole] = ORBIT

    def _place(self, rows: torch.Tensor) -> None:
        """Add the atoms of the positions that these rows have completed."""
        if not len(rows):
            return
        site = self.site[rows]
        members, filled = self.t.members[site], self.filled[rows]
        room = int((filled + members).max())
        if room > self.atoms.shape[1]:
            more = self.atoms.new_zeros(len(self.atoms), room, 3)
            self.atoms = torch.cat([self.atoms, more], 1)
            self.radii = torch.cat([self.radii, more[..., 0]], 1)
        most = int(members.max())
        points = (self.t.matrix[site, :most] * self.u[rows, None, None]).sum(-1) + self.t.shift[site, :most]
        i, j = (torch.arange(most, device=rows.device) < members[:, None]).nonzero(as_tuple=True)
        self.atoms[rows[i], filled[i] + j] = points[i, j]
        self.radii[rows[i], filled[i] + j] = self.radius[rows[i]]
        self.filled[rows] += members


def _first_that_leaves_a_choice(*options: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Row by row the first (orbits (R, P), end (R,)) that allows anything."""
    good, end = options[-1]
    for some, ends in reversed(options[:-1]):
        any_left = some.any(1) | ends
        good, end = torch.where(any_left[:, None], some, good), torch.where(any_left, ends, end)
    return good, end
