"""The grammar of the `invariant` representation, for a whole batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from policies.representations.asked import Asked, owing
from policies.representations.base import EOS, PAD, State
from policies.representations.distances import MIN_VOLUME
from policies.representations.invariant import MULTIPLICITIES
from policies.representations.invariant_cells import bools
from policies.representations.invariant_formula import Formula
from policies.representations.invariant_occupations import (
    ANY,
    Counts,
    atoms_of,
    choices,
    clipped,
    fits,
    lasting,
    makeable,
    needed,
    points,
)
from policies.representations.invariant_places import Places
from policies.representations.invariant_systems import FormulaOfSystem
from policies.representations.lattice import LatticeState, system_of
from policies.representations.patterns import Pattern
from policies.representations.quantiser import Q
from rlgen.types import Condition

if TYPE_CHECKING:
    from policies.representations.invariant import Invariant

FORMULA, COUNT, HALL, CELL, ELEMENT, MULTIPLICITY, COORDINATE, ENDED = range(8)


class InvariantState(State):
    """A formula as asked that the group asked for can have; a group that can have the formula; a cell that it fits
    into; sites in their order that make up the formula exactly, on points of their multiplicity, no two atoms too
    close, images included, and with the space group and no more symmetry.

    Where nothing keeps atoms apart or the group as it is, that demand is let go, so that every prefix can be completed.
    """

    def __init__(self, representation: Invariant, prompts: torch.Tensor, conditions: Sequence[Condition] | None,
                 systems: Sequence[int]):
        """systems: (B,) the crystal system asked for, 1 to 7 or 0."""
        self.rep = representation
        group, n, owed = (x.tolist() for x in representation.read_prompts(prompts))
        b, device = len(prompts), prompts.device
        asked = [Asked.of(c) for c in conditions] if conditions else [None] * b
        owed = [owing(z, some) for z, some in zip(owed, asked, strict=True)]
        self.formulas = [FormulaOfSystem(representation.max_atoms, system, *row[1:]) if system and not row[0] else
                         Formula(representation.max_atoms, *row)
                         for system, row in zip(systems, zip(group, n, owed, asked, strict=True), strict=True)]
        self.phase = torch.full((b,), FORMULA, device=device)
        self.group = torch.zeros(b, dtype=torch.long, device=device)
        self.k = torch.zeros(b, dtype=torch.long, device=device)  # coordinates of the site written so far
        self.grid = torch.zeros(b, 3, dtype=torch.long, device=device)
        self.opened = torch.zeros(b, dtype=torch.bool, device=device)  # whether `places` knows of the next site
        self.places = Places(representation.max_atoms, b, device)
        nothing = torch.zeros(b, dtype=torch.long, device=device)
        self.lattice = LatticeState(representation.first, nothing, nothing.double())
        self.patterns: list[Pattern] = [()] * b
        #: Atoms still to be placed of each element, in order; the first is current. The most that its next site has.
        self.rest: list[Counts] = [()] * b
        self.cap = [ANY] * b
        #: As `lasting` takes them.
        self.room: list[Counts] = [()] * b
        self.lines: list[Counts] = [()] * b

    def keep(self, rows: int) -> None:
        for name in ("phase", "group", "k", "grid", "opened", "formulas", "patterns", "rest", "cap", "room", "lines"):
            setattr(self, name, getattr(self, name)[:rows])
        self.lattice.keep(rows)
        self.places.keep(rows)

    # What may come next

    def legal(self) -> torch.Tensor:
        mask = torch.zeros(len(self.phase), len(self.rep.vocabulary), dtype=torch.bool, device=self.phase.device)
        mask[:, PAD] = self.phase == ENDED
        for phase, allow in ((FORMULA, self._formula), (COUNT, self._counts), (HALL, self._groups),
                             (CELL, self.lattice.legal), (ELEMENT, self._elements),
                             (MULTIPLICITY, self._multiplicities), (COORDINATE, self._coordinates)):
            rows = (self.phase == phase).nonzero()[:, 0]
            if len(rows):
                allow(mask, rows)
        return mask

    def _formula(self, mask: torch.Tensor, rows: torch.Tensor) -> None:
        good = np.stack([self.formulas[i].elements() for i in rows.tolist()])
        element = self.rep.first["element"]
        mask[rows, element + 1 : element + good.shape[1]] = torch.from_numpy(good[:, 1:]).to(mask.device)
        mask[rows, self.rep.first["end_formula"]] = torch.from_numpy(good[:, 0]).to(mask.device)

    def _counts(self, mask: torch.Tensor, rows: torch.Tensor) -> None:
        first = self.rep.first["count"] - 1
        _allow(mask, rows, [[first + c for c in self.formulas[i].numbers()] for i in rows.tolist()])

    def _groups(self, mask: torch.Tensor, rows: torch.Tensor) -> None:
        first = self.rep.first["hall"] - 1
        good = []
        for formula in (self.formulas[i] for i in rows.tolist()):
            some = formula.groups
            good.append([first + g for g in some if makeable(self.rep.max_atoms, g, formula.counts)])
        _allow(mask, rows, good)

    def _elements(self, mask: torch.Tensor, rows: torch.Tensor) -> None:
        """The first one that is not complete, or the end."""
        element = self.rep.first["element"]
        _allow(mask, rows, [[element + self._element(i) if self.rest[i] else EOS] for i in rows.tolist()])

    def _element(self, i: int) -> int:
        formula = self.formulas[i].written
        return formula[len(formula) - len(self.rest[i])][0] if self.rest[i] else 0

    def _multiplicities(self, mask: torch.Tensor, rows: torch.Tensor) -> None:
        if not self.opened[rows].all():
            # What comes next is known one token before; rows that begin a site at the next one are done with these.
            begun = (self.phase == ELEMENT) & torch.tensor([bool(rest) for rest in self.rest], device=rows.device)
            self._open((~self.opened & (begun | (self.phase == MULTIPLICITY))).nonzero()[:, 0])
        first = self.rep.first["multiplicity"]
        open_, multiplicity = self.places.multiplicities(rows, self.group[rows])
        index = torch.bucketize(multiplicity, torch.tensor(MULTIPLICITIES, device=rows.device))
        i, j = open_.nonzero(as_tuple=True)
        mask[rows[i], first + index[i, j]] = True

    def _coordinates(self, mask: torch.Tensor, rows: torch.Tensor) -> None:
        first = self.rep.first["coordinate"]
        mask[rows, first : first + Q] = self.places.values(rows, self.group[rows], self.grid[rows], self.k[rows])

    # What came

    def advance(self, tokens: torch.Tensor) -> None:
        before = torch.where(tokens == PAD, ENDED, self.phase)  # padding moves nothing
        for phase, take in ((FORMULA, self._take_formula), (COUNT, self._take_count), (HALL, self._take_group),
                            (CELL, self._take_cell), (ELEMENT, self._take_element),
                            (MULTIPLICITY, self._take_multiplicity), (COORDINATE, self._take_coordinate)):
            rows = (before == phase).nonzero()[:, 0]
            if len(rows):
                take(rows, tokens[rows])

    def _take_formula(self, rows: torch.Tensor, tokens: torch.Tensor) -> None:
        end = tokens == self.rep.first["end_formula"]
        self.phase[rows] = torch.where(end, HALL, COUNT)
        for i, z in zip(rows[~end].tolist(), (tokens[~end] - self.rep.first["element"]).tolist(), strict=True):
            self.formulas[i].z = z

    def _take_count(self, rows: torch.Tensor, tokens: torch.Tensor) -> None:
        for i, count in zip(rows.tolist(), (tokens - self.rep.first["count"] + 1).tolist(), strict=True):
            self.formulas[i].take_number(count)
        self.phase[rows] = FORMULA

    def _take_group(self, rows: torch.Tensor, tokens: torch.Tensor) -> None:
        self.group[rows] = tokens - self.rep.first["hall"] + 1
        for i in rows.tolist():
            self.rest[i] = tuple(c for _, c in self.formulas[i].written)
        atoms = torch.tensor([sum(self.rest[i]) for i in rows.tolist()], device=rows.device)
        systems = torch.tensor([system_of(g) for g in range(231)], device=rows.device)[self.group[rows]]
        volume = MIN_VOLUME * self.places.t.points[self.group[rows]] * atoms
        fresh = LatticeState(self.rep.first, systems, volume.double())
        self.lattice.systems[rows], self.lattice.volume[rows] = fresh.systems, fresh.volume
        self.lattice.parameters[rows] = fresh.parameters
        for i in rows.tolist():
            self.lattice.fits[i] = partial(fits, self.rep.max_atoms, int(self.group[i]), tuple(sorted(self.rest[i])))
        self.phase[rows] = CELL

    def _take_cell(self, rows: torch.Tensor, tokens: torch.Tensor) -> None:
        done = rows[self.lattice.advance(tokens, rows)]
        if len(done):
            self.places.metric[done] = self.lattice.metric()[done]
            self.phase[done] = ELEMENT

    def _take_element(self, rows: torch.Tensor, tokens: torch.Tensor) -> None:
        ended = tokens == EOS
        self.phase[rows] = torch.where(ended, ENDED, MULTIPLICITY)

    def _open(self, rows: torch.Tensor) -> None:
        """Find the positions that the next site of these rows may be on."""
        self.places.take_element(rows, torch.tensor([self._element(i) for i in rows.tolist()], device=rows.device))
        self.opened[rows] = True
        group = self.group[rows]
        found = [choices(self.rep.max_atoms, int(self.group[i]), self.patterns[i], self.rest[i], self.cap[i])
                 for i in rows.tolist()]
        wanted, proper = (bools([some[k] for some in found], rows.device) for k in range(2))
        points, dof = self.places.points(rows, group), self.places.positions(group)[1]
        apart, fitting = self.places.fit_lines(rows, group, wanted & (points | (dof > 0)))
        fitting &= (dof > 0) | self.places.points_that_fit(rows, group, apart)
        lasts = self._lasting(rows, self.places.room(rows, group, points, False), (apart & (dof == 1)).tolist())
        # How much room lines have takes long to find out, and is only asked where others do not do: with all points
        # that may have to be occupied kept free, and without if that leaves nothing.
        tight = (apart & ~lasts).any(1).nonzero()[:, 0]
        for kept in (True, False):
            if len(tight):
                at = rows[tight]
                if kept:
                    self.places.reserve(at, group[tight], self._points(at))
                room = self.places.room(at, group[tight], points[tight], True)
                lasts[tight] = self._lasting(at, room, [()] * len(at))
                self.places.reserved[at] = 0
                tight = tight[~(apart & lasts)[tight].any(1)]
        self.places.open_for(rows, wanted, apart, lasts, proper, fitting)

    def _lasting(self, rows: torch.Tensor, room: torch.Tensor, lines: Sequence[Sequence[bool]]) -> torch.Tensor:
        """(R, 27) positions after which there is room (R, 27) for all that is still to come, and note how much."""
        found = []
        for i, some, apart in zip(rows.tolist(), room.tolist(), lines, strict=True):
            group = int(self.group[i])
            self.room[i] = clipped(self.rep.max_atoms, group, self.rest[i],
                                   some[: len(atoms_of(self.rep.max_atoms, group))])
            self.lines[i] = tuple(j for j, here in enumerate(apart) if here)
            found.append(lasting(self.rep.max_atoms, group, self.rest[i], self.cap[i], self.room[i], self.lines[i]))
        return bools(found, rows.device)

    def _points(self, rows: torch.Tensor) -> torch.Tensor:
        """(R, 27) the points that may have to be occupied later."""
        return bools([points(self.rep.max_atoms, int(self.group[i]), self.rest[i], self.room[i])
                      for i in rows.tolist()], rows.device)

    def _take_multiplicity(self, rows: torch.Tensor, tokens: torch.Tensor) -> None:
        table = torch.tensor(MULTIPLICITIES, device=rows.device)
        multiplicity = table[(tokens - self.rep.first["multiplicity"]).clamp(0, len(table) - 1)]
        self.places.narrow(rows, self.group[rows], multiplicity, self._needed)
        self.k[rows], self.opened[rows] = 0, False
        self.phase[rows] = COORDINATE

    def _needed(self, i: int, position: int) -> tuple[Counts, Counts]:
        known = self.rep.max_atoms, int(self.group[i]), self.rest[i]
        if position not in lasting(*known, self.cap[i], self.room[i], self.lines[i]):
            return (), ()
        return needed(*known, self.room[i], position)

    def _take_coordinate(self, rows: torch.Tensor, tokens: torch.Tensor) -> None:
        self.grid[rows, self.k[rows]] = tokens - self.rep.first["coordinate"]
        self.k[rows] += 1
        whole = rows[self.k[rows] == 3]
        if len(whole):
            index = self.places.add(whole, self.group[whole], self.grid[whole])
            for i, position in zip(whole.tolist(), index.tolist(), strict=True):
                self._occupy(i, position)
            self.phase[whole] = ELEMENT

    def _occupy(self, i: int, position: int) -> None:
        label = max((label for _, label in self.patterns[i]), default=-1) + (self.cap[i] == ANY)
        self.patterns[i] = (*self.patterns[i], (position, label))
        m = atoms_of(self.rep.max_atoms, int(self.group[i]))[position][0]
        left, *others = self.rest[i]
        self.rest[i] = (left - m, *others) if left > m else tuple(others)
        self.cap[i] = m if left > m else ANY


def _allow(mask: torch.Tensor, rows: torch.Tensor, tokens: Sequence[Sequence[int]]) -> None:
    """Allow in `mask` (B, V) for each row (index) some tokens."""
    at = [i for i, some in zip(rows.tolist(), tokens, strict=True) for _ in some]
    mask[torch.tensor(at, dtype=torch.long, device=mask.device),
         torch.tensor([t for some in tokens for t in some], dtype=torch.long, device=mask.device)] = True
