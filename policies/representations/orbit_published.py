"""The `orbits` representation in the published order: group, formula, all orbits, all coordinates, lattice.

A sequence is the prompt, the space group, (element, atoms in the primitive cell) by rising electronegativity and an end
of formula, the orbits of the first element, of the second and so on, largest multiplicity first, the free parameters of
every orbit in the same order, the free parameters of the crystal system, and `<eos>`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from policies.representations import lattice
from policies.representations.asked import Asked, owing
from policies.representations.base import EOS, PAD
from policies.representations.distances import MIN_DISTANCE, MIN_VOLUME
from policies.representations.invariant_formula import Formula, ranks
from policies.representations.invariant_occupations import atoms_of, choices
from policies.representations.lattice import LatticeState, system_of
from policies.representations.orbit_grammar import CELL, COORDINATE, ELEMENT, ENDED, GROUP, ORBIT, OrbitsState
from policies.representations.orbit_tables import ANY
from policies.representations.patterns import Pattern
from policies.representations.quantiser import Q
from policies.representations.symmetry import Symmetrised
from policies.representations.wyckoff import centring, positions
from rlgen.types import Condition, CrystalError

if TYPE_CHECKING:
    from policies.representations.orbits import Orbits

COUNT = 6
#: Å, of a cell in which all different points of the grid are apart: what distances there will be is not yet known.
_EDGE = 1.4 * MIN_DISTANCE * Q


def write(rep: Orbits, crystal: Symmetrised) -> list[int]:
    """The tokens of a crystal, `<eos>` included. Raises CrystalError for a cell off the grid's range."""
    table, points = positions(crystal.group), centring(crystal.group)[0]
    sites = sorted(crystal.sites, key=lambda s: (ranks()[s.z], -table[s.index].multiplicity, s.index, s.grid))
    counts: dict[int, int] = {}
    for site in sites:
        counts[site.z] = counts.get(site.z, 0) + table[site.index].multiplicity // points
    ids = [rep.first["space_group"] + crystal.group]
    for z, n in counts.items():
        ids += [rep.first["element"] + z, rep.first["count"] + n - 1]
    ids += [rep.first["end_formula"]]
    ids += [rep.first["orbit"] + rep.orbit_of[crystal.group, table[site.index].letter] for site in sites]
    ids += [rep.first["coordinate"] + k for site in sites for k in site.grid]
    return [*ids, *lattice.write(crystal.parameters, system_of(crystal.group), rep.first), EOS]


def parse(rep: Orbits, ids: Sequence[int]) -> tuple[int, np.ndarray, list[tuple[int, int, np.ndarray]]]:
    """`Orbits.parse` of tokens (without `<eos>`) in this order."""
    group, end = rep.read(ids[0], "space_group"), rep.first["end_formula"]
    if not group or end not in ids:
        raise CrystalError("parse", "no space group or no end of a formula")
    at = list(ids).index(end)
    if at % 2 == 0 or at == 1:
        raise CrystalError("parse", "a formula of no elements, or an element without a count")
    formula = [(rep.read(ids[i], "element"), rep.read(ids[i + 1], "count") + 1) for i in range(1, at, 2)]
    table, points, at = positions(group), centring(group)[0], at + 1
    sites = []
    for z, n in formula:
        while n > 0:
            if at >= len(ids):
                raise CrystalError("parse", "the orbits do not make up the formula")
            index = rep.tables.of_orbit[group].get(rep.read(ids[at], "orbit"))
            if index is None or not z:
                raise CrystalError("symmetry", f"{rep.vocabulary[ids[at]]} is no orbit of group {group}")
            sites.append((index, z))
            n, at = n - table[index].multiplicity // points, at + 1
        if n:
            raise CrystalError("chemistry", "the orbits make more atoms than the formula says")
    cell = len(ids) - lattice.free_tokens(system_of(group))
    if cell - at != sum(table[index].dof for index, _ in sites):
        raise CrystalError("parse", f"{len(ids) - at} tokens do not make the coordinates and a cell")
    grid = [rep.read(token, "coordinate") for token in ids[at:cell]]
    found = []
    for index, z in sites:
        dof = table[index].dof
        found.append((index, z, np.array(grid[:dof], dtype=np.int64)))
        grid = grid[dof:]
    return group, lattice.read(ids[cell:], system_of(group), rep), found


class PublishedState(OrbitsState):
    """A group and a formula that go together; orbits of the group that make up the formula exactly, with the group and
    no more symmetry; parameters that keep all atoms on different points; a cell that they have room in. Distances are
    not known before the cell, so atoms are not kept apart.
    """

    def __init__(self, representation: Orbits, prompts: torch.Tensor, conditions: Sequence[Condition] | None):
        super().__init__(representation, prompts, conditions)
        self.asked = list(conditions) if conditions else [{}] * len(prompts)
        self.formulas: dict[int, Formula] = {}
        self.patterns: list[Pattern] = [()] * len(prompts)
        self.rest: list[tuple[int, ...]] = [()] * len(prompts)  # as in `InvariantState`
        self.cap = [ANY] * len(prompts)
        self.waiting: list[list[int]] = [[] for _ in prompts]  # rows of the tables whose parameters are to come
        self.cells.metric[:] = np.eye(3) * _EDGE**2
        nothing = torch.zeros(len(prompts), dtype=torch.long)
        self.lattice = LatticeState(representation.first, nothing, nothing.double())

    def keep(self, rows: int) -> None:
        super().keep(rows)
        for name in ("asked", "patterns", "rest", "cap", "waiting"):
            setattr(self, name, getattr(self, name)[:rows])

    def legal(self) -> torch.Tensor:
        mask = np.zeros((len(self.phase), len(self.rep.vocabulary)), bool)
        mask[:, PAD] = self.phase == ENDED
        for phase, allow in ((GROUP, self._groups), (ELEMENT, self._next_elements), (COUNT, self._counts),
                             (ORBIT, self._next_orbits), (COORDINATE, self._coordinates), (CELL, self._cells)):
            rows = (self.phase == phase).nonzero()[0]
            if len(rows):
                allow(mask, rows)
        return torch.from_numpy(mask)

    def _next_elements(self, mask: np.ndarray, rows: np.ndarray) -> None:
        good = np.stack([self.formulas[i].elements() for i in rows.tolist()])
        first = self.rep.first["element"]
        mask[rows, first + 1 : first + good.shape[1]] = good[:, 1:]
        mask[rows, self.rep.first["end_formula"]] = good[:, 0]

    def _counts(self, mask: np.ndarray, rows: np.ndarray) -> None:
        for i in rows.tolist():
            mask[i, [self.rep.first["count"] + c - 1 for c in self.formulas[i].numbers()]] = True

    def _next_orbits(self, mask: np.ndarray, rows: np.ndarray) -> None:
        for i, group in zip(rows.tolist(), self.group[rows].tolist(), strict=True):
            possible, symmetric = choices(self.rep.max_atoms, group, self.patterns[i], self.rest[i], self.cap[i])
            at = self.t.base[group] + np.array(symmetric or possible)
            mask[i, self.rep.first["orbit"] + self.t.orbit[at]] = True

    def _cells(self, mask: np.ndarray, rows: np.ndarray) -> None:
        assert self.lattice is not None
        whole = self.lattice.complete(torch.from_numpy(rows)).numpy()
        mask[rows[whole], EOS] = True
        super()._cells(mask, rows[~whole])

    def advance(self, tokens: torch.Tensor) -> None:
        before, came = self.phase.copy(), tokens.numpy()
        for phase, take in ((GROUP, self._take_group), (ELEMENT, self._take_formula), (COUNT, self._take_count),
                            (ORBIT, self._take_site), (COORDINATE, self._take_parameter), (CELL, self._take_length)):
            rows = (before == phase).nonzero()[0]
            if len(rows):
                take(rows, came[rows])

    def _take_group(self, rows: np.ndarray, tokens: np.ndarray) -> None:
        self.group[rows] = (tokens - self.rep.first["space_group"]).clip(1, 230)
        for i, group in zip(rows.tolist(), self.group[rows].tolist(), strict=True):
            self.formulas[i] = self._formula(i, group)
        self.phase[rows] = ELEMENT

    def _formula(self, i: int, group: int) -> Formula:
        asked = Asked.of(self.asked[i])
        return Formula(self.rep.max_atoms, group, int(self.asked_n[i]), owing(int(self.owed[i]), asked), asked)

    def _take_formula(self, rows: np.ndarray, tokens: np.ndarray) -> None:
        end = tokens == self.rep.first["end_formula"]
        self.phase[rows] = np.where(end, ORBIT, COUNT)
        for i, z in zip(rows.tolist(), (tokens - self.rep.first["element"]).tolist(), strict=True):
            self.formulas[i].z = z
        for i in rows[end].tolist():
            self.rest[i] = tuple(c for _, c in self.formulas[i].written)

    def _take_count(self, rows: np.ndarray, tokens: np.ndarray) -> None:
        for i, count in zip(rows.tolist(), (tokens - self.rep.first["count"] + 1).tolist(), strict=True):
            self.formulas[i].take_number(count)
        self.phase[rows] = ELEMENT

    def _take_site(self, rows: np.ndarray, tokens: np.ndarray) -> None:
        for i, orbit in zip(rows.tolist(), (tokens - self.rep.first["orbit"]).tolist(), strict=True):
            group = int(self.group[i])
            position = self.rep.tables.of_orbit[group][orbit]
            label = max((label for _, label in self.patterns[i]), default=-1) + (self.cap[i] == ANY)
            self.patterns[i] = (*self.patterns[i], (position, label))
            m, (left, *others) = atoms_of(self.rep.max_atoms, group)[position][0], self.rest[i]
            self.rest[i] = (left - m, *others) if left > m else tuple(others)
            self.cap[i] = m if left > m else ANY
            self.waiting[i].append(int(self.t.base[group]) + position)
        self._next_site(rows[[not self.rest[i] for i in rows.tolist()]])

    def _next_site(self, rows: np.ndarray) -> None:
        """Place the points that come next in these rows, and go on to the parameters of a site, or to the cell."""
        for i in rows.tolist():
            while self.waiting[i]:
                self.site[i], self.k[i], self.u[i] = self.waiting[i].pop(0), 0, 0
                if self.t.dof[self.site[i]]:
                    self.phase[i] = COORDINATE
                    break
                self._place(np.array([i]))
            else:
                self._enter_cell(i)

    def _enter_cell(self, i: int) -> None:
        assert self.lattice is not None
        group = int(self.group[i])
        atoms = sum(c for _, c in self.formulas[i].written)
        volume = torch.tensor([MIN_VOLUME * float(self.t.points[group]) * atoms])
        fresh = LatticeState(self.rep.first, torch.tensor([system_of(group)]), volume)
        self.lattice.systems[i], self.lattice.volume[i] = fresh.systems[0], fresh.volume[0]
        self.lattice.parameters[i] = fresh.parameters[0]
        self.phase[i] = CELL

    def _take_parameter(self, rows: np.ndarray, tokens: np.ndarray) -> None:
        self._take_coordinate(rows, tokens)
        self._next_site(rows[self.phase[rows] == ORBIT])

    def _take_length(self, rows: np.ndarray, tokens: np.ndarray) -> None:
        assert self.lattice is not None
        ended = tokens == EOS
        self.phase[rows[ended]] = ENDED
        self.lattice.advance(torch.from_numpy(tokens[~ended]), torch.from_numpy(rows[~ended]))
